//! KEDA's decisions for one ScaledObject: from zero, to zero, and how it reads numbers.
//! No clock and no task in here: time comes in as an argument.

use std::time::Duration;

/// How KEDA scales one object; the defaults are KEDA's.
#[derive(Debug, Clone, PartialEq)]
pub struct ExecutorPolicy {
    /// Replicas that are kept without work (`minReplicaCount`).
    pub min: u32,
    /// How long after the last sign of activity the replicas are kept (`cooldownPeriod`).
    pub cooldown: Duration,
}

impl Default for ExecutorPolicy {
    fn default() -> Self {
        Self { min: 0, cooldown: Duration::from_secs(300) }
    }
}

/// What a poll found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// There is work.
    Active,
    /// There is none.
    Inactive,
    /// The scaler did not answer, or not well.
    Unknown,
}

/// The part of KEDA that takes an object from zero and back to zero.
///
/// Between zero and zero it leaves the number to the HorizontalPodAutoscaler.
#[derive(Debug, Clone)]
pub struct Executor {
    policy: ExecutorPolicy,
    last_active: Option<Duration>,
}

impl Executor {
    /// An object that has never been active.
    #[must_use]
    pub fn new(policy: ExecutorPolicy) -> Self {
        Self { policy, last_active: None }
    }

    /// A poll's outcome: how many replicas there should be, given how many there are.
    ///
    /// # Behavior
    /// - What is not known changes nothing.
    /// - Active at zero: one replica, or the least number if that is more.
    /// - Inactive: to zero in one step, once the cooldown since the last activity is over. An
    ///   object that was never active has no cooldown.
    pub fn on_poll(&mut self, now: Duration, replicas: u32, activity: Activity) -> u32 {
        match activity {
            Activity::Unknown => replicas,
            Activity::Active => self.on_active(now, replicas),
            Activity::Inactive if self.policy.min > 0 => replicas.max(self.policy.min),
            Activity::Inactive if self.cooling(now) => replicas,
            Activity::Inactive => 0,
        }
    }

    /// The scaler pushed `true`. A pushed `false` is ignored, and so has no method.
    pub fn on_push(&mut self, now: Duration, replicas: u32) -> u32 {
        self.on_active(now, replicas)
    }

    fn on_active(&mut self, now: Duration, replicas: u32) -> u32 {
        self.last_active = Some(now);
        if replicas == 0 { self.policy.min.max(1) } else { replicas }
    }

    fn cooling(&self, now: Duration) -> bool {
        self.last_active.is_some_and(|at| now.saturating_sub(at) <= self.policy.cooldown)
    }
}

/// How long KEDA waits before it opens a stream again.
///
/// Doubled by each error up to a minute, and reset by nothing but a clean end.
#[derive(Debug, Clone)]
pub struct Reconnect {
    next: Duration,
}

impl Reconnect {
    const FIRST: Duration = Duration::from_secs(2);
    const LONGEST: Duration = Duration::from_secs(60);

    /// The delay after the stream ended as the server wished.
    pub fn after_end(&mut self) -> Duration {
        self.next = Self::FIRST;
        Self::FIRST
    }

    /// The delay after the stream broke.
    pub fn after_error(&mut self) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(Self::LONGEST);
        delay
    }
}

impl Default for Reconnect {
    fn default() -> Self {
        Self { next: Self::FIRST }
    }
}

/// The number KEDA takes from a pair of a float and an integer field.
///
/// The float counts if it is above zero, else the integer; what is no number, or below zero, is
/// zero; three decimals are kept.
#[must_use]
pub fn number(float: f64, int: i64) -> f64 {
    let value = if float > 0.0 { float } else { int as f64 };
    if !value.is_finite() || value < 0.0 {
        return 0.0;
    }
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::autoscaler::hpa::{Hpa, HpaPolicy, Usage};

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn executor(min: u32, cooldown: u64) -> Executor {
        Executor::new(ExecutorPolicy { min, cooldown: seconds(cooldown) })
    }

    #[test]
    fn activation_from_zero_sets_one_or_the_least_number() {
        for (min, expected) in [(0, 1), (1, 1), (3, 3)] {
            assert_eq!(executor(min, 10).on_poll(seconds(0), 0, Activity::Active), expected);
            assert_eq!(executor(min, 10).on_push(seconds(0), 0), expected);
            assert_eq!(executor(min, 10).on_push(seconds(0), 7), 7);
        }
    }

    #[test]
    fn zero_comes_in_one_step_after_the_cooldown() {
        let mut executor = executor(0, 10);
        assert_eq!(executor.on_push(seconds(5), 0), 1);
        assert_eq!(executor.on_poll(seconds(15), 8, Activity::Inactive), 8);
        assert_eq!(executor.on_poll(seconds(16), 8, Activity::Inactive), 0);
    }

    #[test]
    fn a_push_and_an_active_poll_both_start_the_cooldown_anew() {
        let mut executor = executor(0, 10);
        executor.on_push(seconds(0), 0);
        executor.on_poll(seconds(8), 2, Activity::Active);
        assert_eq!(executor.on_poll(seconds(18), 2, Activity::Inactive), 2);
        executor.on_push(seconds(18), 2);
        assert_eq!(executor.on_poll(seconds(28), 2, Activity::Inactive), 2);
        assert_eq!(executor.on_poll(seconds(29), 2, Activity::Inactive), 0);
    }

    #[test]
    fn an_object_that_was_never_active_has_no_cooldown() {
        assert_eq!(executor(0, 300).on_poll(seconds(0), 4, Activity::Inactive), 0);
    }

    #[test]
    fn the_least_number_is_kept_without_work() {
        let mut executor = executor(2, 0);
        assert_eq!(executor.on_poll(seconds(0), 0, Activity::Inactive), 2);
        assert_eq!(executor.on_poll(seconds(99), 5, Activity::Inactive), 5);
    }

    #[test]
    fn streams_are_opened_again_as_keda_does() {
        let mut reconnect = Reconnect::default();
        let delays: Vec<u64> = (0..7).map(|_| reconnect.after_error().as_secs()).collect();
        assert_eq!(delays, [2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(reconnect.after_end(), seconds(2));
        assert_eq!(reconnect.after_error(), seconds(2));
    }

    #[test]
    fn numbers_are_read_as_keda_reads_them() {
        for (float, int, expected) in [
            (22.222, 22, 22.222),
            (0.0, 7, 7.0),
            (-1.0, 7, 7.0),
            (0.0, -7, 0.0),
            (f64::NAN, 3, 3.0),
            (f64::INFINITY, 3, 0.0),
            (1.234_56, 1, 1.235),
            (0.000_4, 9, 0.0),
        ] {
            assert_eq!(number(float, int), expected, "{float} {int}");
        }
    }

    /// What happens to an object at one moment.
    #[derive(Debug, Clone)]
    enum Step {
        Poll(Activity),
        Push,
        Sync(f64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Poll(Activity::Active)),
            Just(Step::Poll(Activity::Inactive)),
            Just(Step::Poll(Activity::Unknown)),
            Just(Step::Push),
            (0.0f64..2000.0).prop_map(Step::Sync),
        ]
    }

    proptest! {
        #[test]
        fn busy_replicas_are_never_taken_to_zero(
            min in 0u32..3,
            cooldown in 0u64..30,
            steps in prop::collection::vec((0u64..20, step()), 1..100),
        ) {
            let max = 10;
            let mut executor = executor(min, cooldown);
            let mut hpa = Hpa::new(HpaPolicy { min, max, ..HpaPolicy::default() });
            let (mut now, mut replicas, mut active_at) = (0, min, None);
            for (wait, step) in steps {
                now += wait;
                let before = replicas;
                replicas = match step {
                    Step::Poll(activity) => executor.on_poll(seconds(now), replicas, activity),
                    Step::Push => executor.on_push(seconds(now), replicas),
                    Step::Sync(value) => {
                        hpa.sync(seconds(now), replicas, Usage { value, target: 10.0 })
                    }
                };
                prop_assert!(replicas <= max);
                prop_assert!(replicas >= min);
                let active = matches!(step, Step::Push | Step::Poll(Activity::Active));
                if active {
                    active_at = Some(now);
                    prop_assert!(replicas >= 1, "no work starves");
                }
                let warm = active_at.is_some_and(|at| now - at <= cooldown);
                if warm && before > 0 {
                    prop_assert!(replicas > 0, "to zero {now} s after {active_at:?}");
                }
                if matches!(step, Step::Poll(Activity::Unknown)) {
                    prop_assert_eq!(replicas, before);
                }
            }
        }

        /// A small world: jobs arrive, each replica does some per second, polls come now and then.
        #[test]
        fn every_job_is_done_and_the_pool_ebbs_to_zero(
            arrivals in prop::collection::vec(0u32..40, 1..60),
            per_second in 1u32..5,
            polling in 1u64..10,
            syncing in 1u64..15,
            cooldown in 0u64..10,
        ) {
            let mut executor = executor(0, cooldown);
            let policy = HpaPolicy { max: 8, stabilization: seconds(20), ..HpaPolicy::default() };
            let mut hpa = Hpa::new(policy);
            let (mut ready, mut replicas) = (0u32, 0u32);
            let total: u32 = arrivals.iter().sum();
            let end = arrivals.len() as u64 + u64::from(total) + polling + cooldown + 30;
            for second in 0..end {
                ready += arrivals.get(second as usize).copied().unwrap_or(0);
                if second.is_multiple_of(polling) {
                    let activity = if ready > 0 { Activity::Active } else { Activity::Inactive };
                    replicas = executor.on_poll(seconds(second), replicas, activity);
                    prop_assert!(ready == 0 || replicas > 0, "work starves at {second} s");
                }
                if second.is_multiple_of(syncing) {
                    let usage = Usage { value: f64::from(ready), target: 5.0 };
                    replicas = hpa.sync(seconds(second), replicas, usage);
                }
                ready = ready.saturating_sub(replicas * per_second);
            }
            prop_assert_eq!((ready, replicas), (0, 0));
        }
    }
}
