//! KEDA's `fallback`: what the metric is said to be after a scaler has failed too often.
//! No clock and no task in here.
//!
//! The source of each rule is KEDA, `pkg/fallback/fallback.go`. A failing `GetMetricSpec` never
//! comes here (kedacore/keda#8056), and `scalingModifiers` are none of one external trigger.

use super::hpa::Target;

/// What to do when the scaler fails.
#[derive(Debug, Clone, PartialEq)]
pub struct FallbackPolicy {
    /// Failures in a row that change nothing (`failureThreshold`).
    pub failure_threshold: u32,
    /// Replicas to have then (`replicas`).
    pub replicas: u32,
    /// Which number of replicas counts (`behavior`).
    pub behavior: FallbackBehavior,
}

/// Which number of replicas counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FallbackBehavior {
    /// The policy's.
    #[default]
    Static,
    /// Those that are there.
    CurrentReplicas,
    /// Those that are there, if they are more than the policy's.
    CurrentReplicasIfHigher,
    /// Those that are there, if they are fewer than the policy's.
    CurrentReplicasIfLower,
}

/// The count of failures of one metric, by polls and by syncs alike.
#[derive(Debug, Clone)]
pub struct Fallback {
    policy: FallbackPolicy,
    failures: u32,
}

impl Fallback {
    /// One without a failure yet.
    #[must_use]
    pub fn new(policy: FallbackPolicy) -> Self {
        Self { policy, failures: 0 }
    }

    /// The scaler answered.
    pub fn on_value(&mut self) {
        self.failures = 0;
    }

    /// The scaler failed: the value that stands in for its own, once it has failed too often.
    ///
    /// # Behavior
    /// - It is the target times the replicas wanted, cut to thousandths; with a target for all
    ///   replicas it is divided by the ready pods, and none without one.
    /// - While there is one, KEDA calls the object active.
    pub fn on_error(&mut self, replicas: u32, target: Target) -> Option<f64> {
        self.failures = self.failures.saturating_add(1);
        if self.failures <= self.policy.failure_threshold {
            return None;
        }
        let fixed = self.policy.replicas;
        let wanted = f64::from(match self.policy.behavior {
            FallbackBehavior::Static => fixed,
            FallbackBehavior::CurrentReplicas => replicas,
            FallbackBehavior::CurrentReplicasIfHigher => replicas.max(fixed),
            FallbackBehavior::CurrentReplicasIfLower => replicas.min(fixed),
        });
        let value = match target {
            Target::AverageValue(target) => target * wanted,
            Target::Value { ready: 0, .. } => return None,
            Target::Value { target, ready } => target * wanted / f64::from(ready),
        };
        Some((value * 1000.0).trunc() / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fallback(behavior: FallbackBehavior) -> Fallback {
        Fallback::new(FallbackPolicy { failure_threshold: 2, replicas: 5, behavior })
    }

    #[test]
    fn failures_count_until_the_scaler_answers() {
        let mut fallback = fallback(FallbackBehavior::Static);
        let mut fail = |answered_before: bool| {
            if answered_before {
                fallback.on_value();
            }
            fallback.on_error(1, Target::AverageValue(10.0))
        };
        let seen = [false, false, false, false, true, false, false].map(&mut fail);
        assert_eq!(seen, [None, None, Some(50.0), Some(50.0), None, None, Some(50.0)]);
    }

    #[test]
    fn the_behavior_says_which_replicas_count() {
        for (behavior, few, many) in [
            (FallbackBehavior::Static, 50.0, 50.0),
            (FallbackBehavior::CurrentReplicas, 30.0, 80.0),
            (FallbackBehavior::CurrentReplicasIfHigher, 50.0, 80.0),
            (FallbackBehavior::CurrentReplicasIfLower, 30.0, 50.0),
        ] {
            let value = |replicas| {
                let mut fallback = fallback(behavior);
                fallback.failures = 2;
                fallback.on_error(replicas, Target::AverageValue(10.0))
            };
            assert_eq!((value(3), value(8)), (Some(few), Some(many)), "{behavior:?}");
        }
    }

    #[test]
    fn a_target_for_all_replicas_needs_a_ready_pod() {
        let value = |ready| {
            let mut fallback = fallback(FallbackBehavior::Static);
            fallback.failures = 2;
            fallback.on_error(1, Target::Value { target: 10.0, ready })
        };
        assert_eq!((value(0), value(3)), (None, Some(16.666)));
    }
}
