//! How many jobs KEDA starts for a ScaledJob at a poll. No clock and no task in here.
//!
//! The source of each rule is KEDA: `pkg/scaling/scaledjob/metrics.go` for the numbers,
//! `pkg/scaling/executor/scale_jobs.go` for the strategies. "Job" here is a Kubernetes Job.

use super::behavior::ceil;

/// How many jobs there may be; the defaults are KEDA's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct JobPolicy {
    /// Jobs that are kept without work (`minReplicaCount`).
    pub min: u32,
    /// Jobs at most (`maxReplicaCount`).
    pub max: u32,
    /// What is taken off for jobs that are there (`scalingStrategy`).
    pub strategy: Strategy,
}

/// What is taken off the number of jobs that the metric asks for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Strategy {
    /// Those that run: right for a metric that counts what is in flight (`mode: jobs`).
    Default,
    /// A number, and a share of those that run, rounded down.
    Custom {
        /// `customScalingQueueLengthDeduction`.
        deduction: u32,
        /// `customScalingRunningJobPercentage`, as KEDA reads it: 0.5 is a half.
        running_share: f64,
    },
    /// Those that have no pod running yet: right for a metric that counts only what waits
    /// (`mode: waiting`).
    Accurate,
    /// Nothing but what keeps them under `max`: as many as fit, while there is work.
    Eager,
}

impl Default for JobPolicy {
    fn default() -> Self {
        Self { min: 0, max: 100, strategy: Strategy::Default }
    }
}

/// The jobs of the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Jobs {
    /// Not finished, the pending ones among them.
    pub running: u32,
    /// Without a pod that runs.
    pub pending: u32,
}

/// Jobs to start at a poll; `value` and `target` are those of an `AverageValue` metric.
///
/// # Behavior
/// - Inactive, or a value of 0, starts nothing beyond `min`.
/// - A custom strategy may go past `max` jobs, as KEDA's does; the others never do with a
///   metric that fits them.
#[must_use]
pub fn to_start(policy: JobPolicy, jobs: Jobs, active: bool, value: f64, target: f64) -> u32 {
    // KEDA takes a trigger for active only above 0; `min` makes the object active in any case.
    let active = active && value > 0.0;
    let (value, wanted) = match active {
        true => (ceil(value), ceil((value / target).min(f64::from(policy.max)))),
        false => (0, 0),
    };
    let (most, wish) = if jobs.running < policy.min {
        let missing = policy.min - jobs.running;
        (i64::from(missing), missing)
    } else {
        policy.strategy.most(policy, jobs, wanted, value)
    };
    if !active && policy.min == 0 {
        return 0;
    }
    wish.min(u32::try_from(most).unwrap_or(0))
}

impl Strategy {
    /// Jobs to start at most, and how many there is work for.
    fn most(self, policy: JobPolicy, jobs: Jobs, wanted: u32, value: u32) -> (i64, u32) {
        let (max, wanted) = (i64::from(policy.max), i64::from(wanted));
        let running = i64::from(jobs.running - policy.min);
        let pending = i64::from(jobs.pending);
        match self {
            Self::Default => (wanted - running, value),
            Self::Custom { deduction, running_share } => {
                let share = (running as f64 * running_share) as i64;
                ((wanted - i64::from(deduction) - share).min(max), value)
            }
            Self::Accurate if wanted + running - pending > max => (max - running, value),
            Self::Accurate => (wanted - pending, value),
            Self::Eager => ((max - running - pending).min(wanted), policy.max),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, proptest};

    use super::*;

    #[track_caller]
    fn check(strategy: Strategy, max: u32, cases: &[(f64, u32, u32, u32)]) {
        for (value, running, pending, expected) in cases {
            let policy = JobPolicy { max, strategy, ..JobPolicy::default() };
            let jobs = Jobs { running: *running, pending: *pending };
            let started = to_start(policy, jobs, true, *value, 1.0);
            assert_eq!(started, *expected, "{value}, {running} running, {pending} pending");
        }
    }

    #[test]
    fn the_default_takes_off_what_runs() {
        // (value, running, pending, started)
        check(Strategy::Default, 5, &[(3.0, 1, 0, 2), (3.0, 3, 0, 0), (9.0, 2, 0, 3)]);
        check(Strategy::Default, 5, &[(2.5, 0, 0, 3), (1.0, 4, 2, 0)]);
    }

    #[test]
    fn kedas_own_cases_of_the_custom_strategy_come_out_the_same() {
        let strategy = Strategy::Custom { deduction: 1, running_share: 0.5 };
        check(strategy, 5, &[(3.0, 2, 0, 1)]);
        check(strategy, 10, &[(10.0, 0, 0, 9)]);
        let nothing = Strategy::Custom { deduction: 0, running_share: 0.0 };
        check(nothing, 5, &[(3.0, 4, 0, 3)]);
    }

    #[test]
    fn accurate_takes_off_what_has_not_begun_and_keeps_under_the_most() {
        check(Strategy::Accurate, 5, &[(3.0, 2, 0, 3), (5.0, 2, 0, 3), (5.0, 4, 2, 1)]);
        check(Strategy::Accurate, 10, &[(3.0, 4, 2, 1), (3.0, 3, 3, 0)]);
        check(Strategy::Accurate, 20, &[(15.0, 15, 15, 0), (20.0, 15, 10, 5)]);
    }

    #[test]
    fn eager_fills_up() {
        check(Strategy::Eager, 10, &[(4.0, 0, 0, 4), (9.0, 4, 0, 6), (9.0, 4, 2, 4)]);
    }

    #[test]
    fn active_with_a_metric_of_zero_starts_nothing() {
        check(Strategy::Default, 5, &[(0.0, 0, 0, 0)]);
        check(Strategy::Eager, 5, &[(0.0, 0, 0, 0)]);
    }

    #[test]
    fn the_least_number_is_started_without_work() {
        let policy = JobPolicy { min: 3, ..JobPolicy::default() };
        let start = |running| to_start(policy, Jobs { running, pending: 0 }, false, 0.0, 1.0);
        assert_eq!([start(0), start(2), start(3), start(5)], [3, 1, 0, 0]);
    }

    proptest! {
        #[test]
        fn there_are_never_more_jobs_than_the_most_but_with_a_custom_strategy(
            max in 1u32..20,
            running in 0u32..20,
            share in 0.0f64..1.0,
            value in 0.0f64..50.0,
            which in 0usize..3,
        ) {
            let strategy = [Strategy::Default, Strategy::Accurate, Strategy::Eager][which];
            let running = running.min(max);
            let pending = (f64::from(running) * share) as u32;
            let policy = JobPolicy { max, strategy, ..JobPolicy::default() };
            let started = to_start(policy, Jobs { running, pending }, true, value, 1.0);
            prop_assert!(running + started <= max, "{running} and {started} of {max}");
        }
    }
}
