//! The arithmetic of a HorizontalPodAutoscaler over one external metric of type `AverageValue`.
//! No clock and no task in here: time comes in as an argument.

use std::collections::VecDeque;
use std::time::Duration;

/// How a HorizontalPodAutoscaler behaves; the defaults are those of Kubernetes.
#[derive(Debug, Clone, PartialEq)]
pub struct HpaPolicy {
    /// Never fewer replicas than this, and at least 1: zero is KEDA's business.
    pub min: u32,
    /// Never more replicas than this.
    pub max: u32,
    /// No change while the usage per replica is this close to the target.
    pub tolerance: f64,
    /// Scale down only to the largest recommendation of this window.
    pub stabilization: Duration,
    /// Replicas that may be added within a period, whatever their number.
    pub up_replicas: u32,
    /// Percent of the replicas that may be added within a period; the larger of the two counts.
    pub up_percent: u32,
    /// The period of both limits.
    pub up_period: Duration,
}

impl Default for HpaPolicy {
    fn default() -> Self {
        Self {
            min: 1,
            max: 100,
            tolerance: 0.1,
            stabilization: Duration::from_secs(300),
            up_replicas: 4,
            up_percent: 100,
            up_period: Duration::from_secs(15),
        }
    }
}

/// What a sync needs to know of the metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// The sum of the metric over all replicas.
    pub value: f64,
    /// What one replica should have of it.
    pub target: f64,
}

/// One autoscaler with what it remembers: its recommendations, and what it added when.
#[derive(Debug, Clone)]
pub struct Hpa {
    policy: HpaPolicy,
    recommendations: VecDeque<(Duration, u32)>,
    changes: VecDeque<(Duration, i64)>,
}

impl Hpa {
    /// An autoscaler with no memory yet.
    #[must_use]
    pub fn new(policy: HpaPolicy) -> Self {
        Self { policy, recommendations: VecDeque::new(), changes: VecDeque::new() }
    }

    /// One sync: how many replicas there should be, given how many there are.
    ///
    /// # Behavior
    /// - With no replicas it is switched off and answers 0: activation is KEDA's business.
    /// - Otherwise the answer lies between the policy's `min` and `max`.
    /// - `now` never goes back from one call to the next.
    pub fn sync(&mut self, now: Duration, replicas: u32, usage: Usage) -> u32 {
        if replicas == 0 {
            return 0;
        }
        let recommended = self.recommend(replicas, usage);
        let stable = self.stabilize(now, replicas, recommended);
        let limit = self.scale_up_limit(now, replicas).min(self.policy.max);
        let floor = self.policy.min.max(1);
        let wanted = stable.min(limit).max(floor).min(self.policy.max.max(1));
        if wanted != replicas {
            self.changes.push_back((now, i64::from(wanted) - i64::from(replicas)));
        }
        wanted
    }

    fn recommend(&self, replicas: u32, usage: Usage) -> u32 {
        let ratio = usage.value / (usage.target * f64::from(replicas));
        let tolerance = self.policy.tolerance;
        if (1.0 - tolerance..=1.0 + tolerance).contains(&ratio) {
            return replicas;
        }
        replicas_for(usage)
    }

    /// The largest recommendation of the window holds replicas up, and never adds any.
    fn stabilize(&mut self, now: Duration, replicas: u32, recommended: u32) -> u32 {
        let window = self.policy.stabilization;
        self.recommendations.retain(|(at, _)| now.saturating_sub(*at) < window);
        self.recommendations.push_back((now, recommended));
        let held = self.recommendations.iter().map(|(_, n)| *n).max().unwrap_or(recommended);
        recommended.max(replicas.min(held))
    }

    fn scale_up_limit(&mut self, now: Duration, replicas: u32) -> u32 {
        let policy = &self.policy;
        self.changes.retain(|(at, _)| now.saturating_sub(*at) < policy.up_period);
        let changed: i64 = self.changes.iter().map(|(_, change)| change).sum();
        let start = u32::try_from(i64::from(replicas) - changed).unwrap_or(0);
        let by_count = start.saturating_add(policy.up_replicas);
        let by_share = f64::from(start) * (1.0 + f64::from(policy.up_percent) / 100.0);
        by_count.max(ceil(by_share)).max(replicas)
    }
}

/// Replicas so that none has more than its target.
#[must_use]
pub fn replicas_for(usage: Usage) -> u32 {
    ceil(usage.value / usage.target)
}

/// Rounds up; what is not a number, or below zero, is 0.
fn ceil(value: f64) -> u32 {
    // The cast saturates, and takes what is not a number for 0.
    value.ceil() as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn usage(value: f64) -> Usage {
        Usage { value, target: 10.0 }
    }

    /// Syncs a fresh autoscaler through `(second, value)`, from one replica.
    fn check(policy: HpaPolicy, steps: &[(u64, f64)], expected: &[u32]) {
        let mut hpa = Hpa::new(policy);
        let mut replicas = 1;
        let mut seen = Vec::new();
        for (second, value) in steps {
            replicas = hpa.sync(seconds(*second), replicas, usage(*value));
            seen.push(replicas);
        }
        assert_eq!(seen, expected);
    }

    #[test]
    fn the_metric_is_divided_by_the_target_and_rounded_up() {
        for (value, expected) in [(0.0, 0), (0.1, 1), (10.0, 1), (10.1, 2), (f64::NAN, 0)] {
            assert_eq!(replicas_for(usage(value)), expected, "{value}");
        }
    }

    #[test]
    fn kedas_own_end_to_end_cases_come_out_the_same() {
        let policy = || HpaPolicy { max: 2, ..HpaPolicy::default() };
        check(policy(), &[(0, 10.0), (15, 20.0)], &[1, 2]);
        let mut hpa = Hpa::new(HpaPolicy { max: 3, ..HpaPolicy::default() });
        assert_eq!(hpa.sync(seconds(0), 1, Usage { value: 22.222, target: 6.111 }), 3);
    }

    #[test]
    fn a_tenth_above_or_below_changes_nothing() {
        check(HpaPolicy::default(), &[(0, 11.0), (15, 9.0), (30, 11.1)], &[1, 1, 2]);
    }

    #[test]
    fn scaling_up_adds_four_or_doubles_whichever_is_more() {
        let steps = [(0, 1e4), (15, 1e4), (30, 1e4), (45, 1e4), (60, 1e4)];
        check(HpaPolicy::default(), &steps, &[5, 10, 20, 40, 80]);
        // A second sync within the period adds nothing.
        check(HpaPolicy::default(), &[(0, 1e4), (5, 1e4), (16, 1e4)], &[5, 5, 10]);
    }

    #[test]
    fn scaling_down_waits_for_the_window_and_then_goes_at_once() {
        let policy = HpaPolicy { stabilization: seconds(60), ..HpaPolicy::default() };
        let steps =
            [(0, 50.0), (15, 10.0), (30, 20.0), (60, 0.0), (75, 0.0), (90, 0.0), (120, 0.0)];
        check(policy, &steps, &[5, 5, 5, 2, 2, 1, 1]);
    }

    #[test]
    fn an_old_recommendation_never_adds_a_replica() {
        let mut hpa = Hpa::new(HpaPolicy::default());
        assert_eq!(hpa.sync(seconds(0), 1, usage(50.0)), 5);
        // KEDA took it to zero, and activated it again.
        assert_eq!(hpa.sync(seconds(15), 1, usage(5.0)), 1);
    }

    #[test]
    fn nothing_happens_at_zero() {
        assert_eq!(Hpa::new(HpaPolicy::default()).sync(seconds(0), 0, usage(1e9)), 0);
    }

    proptest! {
        #[test]
        fn replicas_stay_within_their_bounds(
            min in 0u32..5,
            extra in 0u32..20,
            steps in prop::collection::vec((0u64..40, -10.0f64..1e6), 1..60),
        ) {
            let policy = HpaPolicy { min, max: min.max(1) + extra, ..HpaPolicy::default() };
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
            replicas in 1u32..50,
            less in 0.0f64..1000.0,
            more in 0.0f64..1000.0,
        ) {
            // Within the tolerance the number is kept, so compare what lies outside of it.
            let of = |value: f64| Hpa::new(HpaPolicy { tolerance: 0.0, ..HpaPolicy::default() })
                .sync(seconds(0), replicas, usage(value));
            let (less, more) = (less.min(more), less.max(more));
            prop_assert!(of(less) <= of(more));
        }

        #[test]
        fn without_a_window_a_steady_load_settles_where_it_should(value in 0.0f64..900.0) {
            let policy = HpaPolicy { stabilization: Duration::ZERO, ..HpaPolicy::default() };
            let mut hpa = Hpa::new(policy);
            let mut replicas = 1;
            for step in 0..20 {
                replicas = hpa.sync(seconds(step * 15), replicas, usage(value));
            }
            let exact = f64::from(replicas_for(usage(value)).max(1));
            let settled = f64::from(replicas);
            let close = (value / (10.0 * settled) - 1.0).abs() <= 0.1;
            prop_assert!(settled == exact || close, "{settled} for {exact}");
        }
    }
}
