//! The arithmetic of a HorizontalPodAutoscaler over one external metric.
//! No clock and no task in here: time comes in as an argument.
//!
//! The source of each formula is Kubernetes, `pkg/controller/podautoscaler`: `horizontal.go` for
//! windows, limits and bounds, `replica_calculator.go` for the metric.

use std::collections::VecDeque;
use std::time::Duration;

use super::behavior::{Behavior, Changes, ceil};

/// Time between two syncs, a flag of the cluster (`--horizontal-pod-autoscaler-sync-period`).
pub const SYNC_PERIOD: Duration = Duration::from_secs(15);

/// How a HorizontalPodAutoscaler behaves; the defaults are those of Kubernetes.
#[derive(Debug, Clone, PartialEq)]
pub struct HpaPolicy {
    /// Never fewer replicas than this, and at least 1: zero is KEDA's business.
    pub min: u32,
    /// Never more replicas than this.
    pub max: u32,
    /// No change while the usage is this close to the target (a flag of the cluster).
    pub tolerance: f64,
    /// How a recommendation becomes a number of replicas.
    pub rules: Rules,
}

/// How a recommendation becomes a number of replicas.
#[derive(Debug, Clone, PartialEq)]
pub enum Rules {
    /// Without `behavior`, which is how KEDA makes an HPA unless it is told otherwise
    /// (`controllers/keda/hpa.go`): at most the double or 4 at each sync, whichever is more, and
    /// the largest recommendation of the window counts, both up and down.
    Plain {
        /// The window (`--horizontal-pod-autoscaler-downscale-stabilization`).
        stabilization: Duration,
    },
    /// With `behavior`.
    Behavior(Behavior),
}

impl Default for HpaPolicy {
    fn default() -> Self {
        Self { min: 1, max: 100, tolerance: 0.1, rules: Rules::default() }
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self::Plain { stabilization: Duration::from_secs(300) }
    }
}

/// What a sync needs to know of the metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// The sum of the metric over all replicas.
    pub value: f64,
    /// What it should be.
    pub target: Target,
}

/// What a metric should be; always above zero, since Kubernetes refuses a target of zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// So much for each replica (`AverageValue`, KEDA's default).
    AverageValue(f64),
    /// So much in all (`Value`): replicas then follow the ratio, on top of the ready pods.
    Value {
        /// The target.
        target: f64,
        /// Pods that are ready now.
        ready: u32,
    },
}

/// One autoscaler with what it remembers: its recommendations, and what it changed when.
#[derive(Debug, Clone)]
pub struct Hpa {
    policy: HpaPolicy,
    recommendations: VecDeque<(Duration, u32)>,
    changes: Changes,
}

impl Hpa {
    /// The factor and the number of replicas to which a sync is limited without `behavior`.
    const PLAIN_LIMIT: (u32, u32) = (2, 4);

    /// An autoscaler with no memory yet.
    #[must_use]
    pub fn new(policy: HpaPolicy) -> Self {
        Self { policy, recommendations: VecDeque::new(), changes: Changes::default() }
    }

    /// One sync: how many replicas there should be, given how many there are.
    ///
    /// # Behavior
    /// - With no replicas it is switched off and answers 0: activation is KEDA's business.
    /// - Otherwise the answer lies between the policy's `min` and `max`; a number outside of them
    ///   is put right before the metric is looked at.
    /// - `now` never goes back from one call to the next.
    pub fn sync(&mut self, now: Duration, replicas: u32, usage: Usage) -> u32 {
        // The number at the first sync counts as a recommendation, also at zero.
        if self.recommendations.is_empty() {
            self.recommendations.push_back((now, replicas));
        }
        let (floor, ceiling) = (self.policy.min.max(1), self.policy.max.max(1));
        let wanted = match replicas {
            0 => return 0,
            _ if replicas > ceiling => ceiling,
            _ if replicas < floor => floor,
            _ => self.normalize(now, replicas, usage),
        };
        let wanted = wanted.max(floor).min(ceiling);
        self.changes.record(now, replicas, wanted);
        wanted
    }

    fn normalize(&mut self, now: Duration, replicas: u32, usage: Usage) -> u32 {
        let recommended = self.recommend(replicas, usage);
        let wanted = match &self.policy.rules {
            Rules::Plain { stabilization } => {
                let recent = self.recommendations.iter();
                let recent = recent.filter(|(at, _)| now.saturating_sub(*at) <= *stabilization);
                let largest = recent.map(|(_, n)| *n).max().unwrap_or(0).max(recommended);
                let (factor, least) = Self::PLAIN_LIMIT;
                largest.min(replicas.saturating_mul(factor).max(least))
            }
            Rules::Behavior(behavior) => {
                let recent = self.recommendations.iter().copied();
                let stable = behavior.stabilize(now, replicas, recommended, recent);
                behavior.limit(now, replicas, stable, &self.changes)
            }
        };
        self.remember(now, recommended);
        wanted
    }

    /// What the metric alone asks for.
    fn recommend(&self, replicas: u32, usage: Usage) -> u32 {
        let ratio = match usage.target {
            Target::AverageValue(target) => usage.value / (target * f64::from(replicas)),
            Target::Value { target, .. } => usage.value / target,
        };
        let (down, up) = match &self.policy.rules {
            Rules::Plain { .. } => (self.policy.tolerance, self.policy.tolerance),
            Rules::Behavior(behavior) => behavior.tolerances(self.policy.tolerance),
        };
        if (1.0 - down..=1.0 + up).contains(&ratio) {
            return replicas;
        }
        match usage.target {
            Target::AverageValue(target) => ceil(usage.value / target),
            Target::Value { ready, .. } => ceil(ratio * f64::from(ready)),
        }
    }

    fn remember(&mut self, now: Duration, recommended: u32) {
        let longest = match &self.policy.rules {
            Rules::Plain { stabilization } => *stabilization,
            Rules::Behavior(behavior) => behavior.longest_window(),
        };
        self.recommendations.retain(|(at, _)| now.saturating_sub(*at) <= longest);
        self.recommendations.push_back((now, recommended));
        let period = match &self.policy.rules {
            Rules::Plain { .. } => Duration::ZERO,
            Rules::Behavior(behavior) => behavior.longest_period(),
        };
        self.changes.forget(now, period);
    }
}

/// Replicas so that none has more than its target.
#[must_use]
pub fn replicas_for(value: f64, target: f64) -> u32 {
    ceil(value / target)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::autoscaler::behavior::{Select, Step};

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn usage(value: f64) -> Usage {
        Usage { value, target: Target::AverageValue(10.0) }
    }

    fn plain(max: u32, stabilization: u64) -> HpaPolicy {
        let rules = Rules::Plain { stabilization: seconds(stabilization) };
        HpaPolicy { max, rules, ..HpaPolicy::default() }
    }

    fn with(change: impl FnOnce(&mut Behavior)) -> HpaPolicy {
        let mut behavior = Behavior::default();
        change(&mut behavior);
        HpaPolicy { rules: Rules::Behavior(behavior), ..HpaPolicy::default() }
    }

    /// Syncs a fresh autoscaler through `(second, value)`, from so many replicas.
    #[track_caller]
    fn check_from(start: u32, policy: HpaPolicy, steps: &[(u64, f64)], expected: &[u32]) {
        let mut hpa = Hpa::new(policy);
        let mut replicas = start;
        let mut seen = Vec::new();
        for (second, value) in steps {
            replicas = hpa.sync(seconds(*second), replicas, usage(*value));
            seen.push(replicas);
        }
        assert_eq!(seen, expected);
    }

    #[track_caller]
    fn check(policy: HpaPolicy, steps: &[(u64, f64)], expected: &[u32]) {
        check_from(1, policy, steps, expected);
    }

    #[test]
    fn the_metric_is_divided_by_the_target_and_rounded_up() {
        for (value, expected) in [(0.0, 0), (0.1, 1), (10.0, 1), (10.1, 2), (f64::NAN, 0)] {
            assert_eq!(replicas_for(value, 10.0), expected, "{value}");
        }
    }

    #[test]
    fn kedas_own_end_to_end_cases_come_out_the_same() {
        check(plain(2, 300), &[(0, 10.0), (15, 20.0)], &[1, 2]);
        let mut hpa = Hpa::new(plain(3, 300));
        let usage = Usage { value: 22.222, target: Target::AverageValue(6.111) };
        assert_eq!(hpa.sync(seconds(0), 1, usage), 3);
    }

    #[test]
    fn what_was_measured_on_a_cluster_comes_out_the_same() {
        // KEDA 2.20, sync 5 s, window 10 s, value 37 and target 5: 1, 4, 8, and back.
        let mut hpa = Hpa::new(plain(100, 10));
        let mut seen = Vec::new();
        let mut replicas = 1;
        for (second, value) in [(0, 37.0), (5, 37.0), (10, 0.0), (15, 0.0), (20, 0.0)] {
            let usage = Usage { value, target: Target::AverageValue(5.0) };
            replicas = hpa.sync(seconds(second), replicas, usage);
            seen.push(replicas);
        }
        assert_eq!(seen, [4, 8, 8, 8, 1]);
    }

    #[test]
    fn a_tenth_above_or_below_changes_nothing() {
        check(HpaPolicy::default(), &[(0, 11.0), (15, 9.0), (30, 11.1)], &[1, 1, 2]);
    }

    #[test]
    fn a_tolerance_of_its_own_counts_in_its_direction_alone() {
        let policy = with(|behavior| {
            behavior.up.tolerance = Some(0.5);
            behavior.down.window = Some(Duration::ZERO);
        });
        check_from(2, policy, &[(0, 30.0), (15, 30.1), (30, 26.9)], &[2, 4, 3]);
    }

    #[test]
    fn without_behavior_a_sync_doubles_or_goes_to_four() {
        let steps = [(0, 1e4), (15, 1e4), (30, 1e4), (45, 1e4), (60, 1e4), (75, 1e4)];
        check(HpaPolicy::default(), &steps, &[4, 8, 16, 32, 64, 100]);
        // The limit is for a sync, however soon it comes after the last.
        check(HpaPolicy::default(), &[(0, 1e4), (1, 1e4)], &[4, 8]);
    }

    #[test]
    fn without_behavior_an_old_recommendation_also_adds_replicas() {
        let mut hpa = Hpa::new(HpaPolicy::default());
        assert_eq!(hpa.sync(seconds(0), 1, usage(40.0)), 4);
        // KEDA took it to zero, and activated it again.
        assert_eq!(hpa.sync(seconds(15), 0, usage(0.0)), 0);
        assert_eq!(hpa.sync(seconds(30), 1, usage(5.0)), 4);
        assert_eq!(hpa.sync(seconds(301), 4, usage(5.0)), 1);
    }

    #[test]
    fn with_behavior_an_old_recommendation_never_adds_a_replica() {
        let mut hpa = Hpa::new(with(|_| ()));
        assert_eq!(hpa.sync(seconds(0), 1, usage(50.0)), 5);
        assert_eq!(hpa.sync(seconds(15), 1, usage(5.0)), 1);
    }

    #[test]
    fn with_behavior_four_are_added_in_a_period_or_they_are_doubled() {
        let steps = [(0, 1e4), (15, 1e4), (30, 1e4), (45, 1e4), (60, 1e4)];
        check(with(|_| ()), &steps, &[5, 10, 20, 40, 80]);
        // A second sync within the period adds nothing.
        check(with(|_| ()), &[(0, 1e4), (5, 1e4), (16, 1e4)], &[5, 5, 10]);
    }

    #[test]
    fn the_smaller_step_counts_where_it_is_selected_and_none_where_it_is_disabled() {
        let steps = [(0, 1e4), (15, 1e4)];
        check_from(8, with(|behavior| behavior.up.select = Select::Min), &steps, &[12, 16]);
        check_from(8, with(|behavior| behavior.up.select = Select::Disabled), &steps, &[8, 8]);
        let steps = [(0, 0.0), (999, 0.0)];
        check_from(8, with(|behavior| behavior.down.select = Select::Disabled), &steps, &[8, 8]);
    }

    #[test]
    fn a_window_holds_scaling_up_back_to_the_smallest_recommendation() {
        let policy = with(|behavior| behavior.up.window = Some(seconds(30)));
        let steps = [(0, 10.0), (15, 40.0), (29, 30.0), (46, 50.0), (60, 50.0)];
        check(policy, &steps, &[1, 1, 1, 3, 5]);
    }

    #[test]
    fn scaling_down_waits_for_the_window_and_then_goes_at_once() {
        let steps =
            [(0, 40.0), (15, 10.0), (30, 20.0), (61, 0.0), (76, 0.0), (91, 0.0), (121, 0.0)];
        check(plain(100, 60), &steps, &[4, 4, 4, 2, 2, 1, 1]);
        let policy = with(|behavior| behavior.down.window = Some(seconds(60)));
        check(policy, &steps, &[4, 4, 4, 2, 2, 1, 1]);
    }

    #[test]
    fn a_step_limits_how_many_go_in_a_period() {
        let policy = with(|behavior| {
            behavior.down.window = Some(Duration::ZERO);
            behavior.down.steps = vec![Step::Pods(1, seconds(60)), Step::Percent(50, seconds(120))];
            behavior.down.select = Select::Min;
        });
        let steps = [(0, 0.0), (15, 0.0), (61, 0.0), (122, 0.0)];
        check_from(8, policy.clone(), &steps, &[7, 7, 6, 5]);
        let Rules::Behavior(mut behavior) = policy.rules else { unreachable!() };
        behavior.down.select = Select::Max;
        let policy = HpaPolicy { rules: Rules::Behavior(behavior), ..HpaPolicy::default() };
        check_from(8, policy, &steps, &[4, 4, 3, 2]);
    }

    #[test]
    fn a_target_for_all_replicas_moves_the_ready_ones_by_the_ratio() {
        let sync = |ready, value| {
            let target = Target::Value { target: 10.0, ready };
            let mut hpa = Hpa::new(plain(100, 0));
            assert_eq!(hpa.sync(seconds(0), 4, Usage { value: 10.0, target }), 4);
            hpa.sync(seconds(1), 4, Usage { value, target })
        };
        for (ready, value, expected) in [(4, 20.0, 8), (3, 20.0, 6), (4, 10.9, 4), (4, 5.0, 2)] {
            assert_eq!(sync(ready, value), expected, "{ready} ready, {value}");
        }
    }

    #[test]
    fn a_number_out_of_bounds_is_put_right_whatever_the_metric_says() {
        check_from(9, plain(5, 300), &[(0, 1e4)], &[5]);
        check_from(2, HpaPolicy { min: 3, ..HpaPolicy::default() }, &[(0, 0.0)], &[3]);
    }

    #[test]
    fn nothing_happens_at_zero() {
        assert_eq!(Hpa::new(HpaPolicy::default()).sync(seconds(0), 0, usage(1e9)), 0);
    }

    fn scaling() -> impl Strategy<Value = Rules> {
        prop_oneof![
            (0u64..600).prop_map(|window| Rules::Plain { stabilization: seconds(window) }),
            (0u64..600, 0u64..60).prop_map(|(down, up)| {
                let mut behavior = Behavior::default();
                behavior.down.window = Some(seconds(down));
                behavior.up.window = Some(seconds(up));
                Rules::Behavior(behavior)
            }),
        ]
    }

    proptest! {
        #[test]
        fn replicas_stay_within_their_bounds(
            rules in scaling(),
            min in 0u32..5,
            extra in 0u32..20,
            steps in prop::collection::vec((0u64..40, -10.0f64..1e6), 1..60),
        ) {
            let policy = HpaPolicy { min, max: min.max(1) + extra, rules, ..HpaPolicy::default() };
            let mut hpa = Hpa::new(policy.clone());
            let (mut now, mut replicas) = (0, min.max(1));
            for (wait, value) in steps {
                now += wait;
                let before = replicas;
                replicas = hpa.sync(seconds(now), replicas, usage(value));
                prop_assert!(replicas >= min.max(1) && replicas <= policy.max);
                prop_assert!(replicas <= (before + 4).max(before * 2), "{before} -> {replicas}");
            }
        }

        #[test]
        fn more_work_never_means_fewer_replicas(
            rules in scaling(),
            replicas in 1u32..50,
            less in 0.0f64..1000.0,
            more in 0.0f64..1000.0,
        ) {
            // Within the tolerance the number is kept, so compare what lies outside of it.
            let policy = HpaPolicy { tolerance: 0.0, rules, ..HpaPolicy::default() };
            let of = |value: f64| Hpa::new(policy.clone()).sync(seconds(0), replicas, usage(value));
            let (less, more) = (less.min(more), less.max(more));
            prop_assert!(of(less) <= of(more));
        }

        #[test]
        fn without_a_window_a_steady_load_settles_where_it_should(value in 0.0f64..900.0) {
            let mut hpa = Hpa::new(plain(100, 0));
            let mut replicas = 1;
            for step in 0..20 {
                replicas = hpa.sync(seconds(step * 15), replicas, usage(value));
            }
            let exact = f64::from(replicas_for(value, 10.0).max(1));
            let settled = f64::from(replicas);
            let close = (value / (10.0 * settled) - 1.0).abs() <= 0.1;
            prop_assert!(settled == exact || close, "{settled} for {exact}");
        }
    }
}
