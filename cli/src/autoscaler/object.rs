//! One ScaledObject: KEDA's executor, its fallback and the HorizontalPodAutoscaler on one target.
//! No clock and no task in here: time comes in as an argument.
//!
//! The source of who acts when is KEDA, `pkg/scaling/scale_handler.go`.

use std::time::Duration;

use super::fallback::{Fallback, FallbackPolicy};
use super::hpa::{Hpa, HpaPolicy, Target, Usage};
use super::keda::{Activity, Executor, ExecutorPolicy, Outage};

/// How one object is scaled; the defaults are KEDA's and Kubernetes'.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ObjectPolicy {
    /// From zero and back to zero. `outage` follows from the fallback.
    pub executor: ExecutorPolicy,
    /// In between.
    pub hpa: HpaPolicy,
    /// What stands in for a scaler that fails.
    pub fallback: Option<FallbackPolicy>,
    /// What the target is for.
    pub metric: MetricType,
}

/// `metricType` of a trigger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MetricType {
    /// The target is for each replica.
    #[default]
    AverageValue,
    /// The target is for all of them.
    Value,
}

/// What the scaler said, asked as KEDA asks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Look {
    /// All three calls were answered.
    Answered {
        /// The metric.
        value: f64,
        /// What it should be.
        target: f64,
        /// Whether there is work.
        active: bool,
    },
    /// `GetMetrics` or `IsActive` failed; the target is known.
    Failed {
        /// What the metric should be.
        target: f64,
    },
    /// `GetMetricSpec` failed, or the scaler is not there.
    Silent,
}

/// The replicas of the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replicas {
    /// Asked for.
    pub wanted: u32,
    /// Ready to work.
    pub ready: u32,
}

/// One object with all that it remembers.
#[derive(Debug, Clone)]
pub struct ScaledObject {
    executor: Executor,
    hpa: Hpa,
    fallback: Option<Fallback>,
    metric: MetricType,
}

impl ScaledObject {
    /// An object that has just been made, at the moment 0.
    #[must_use]
    pub fn new(policy: ObjectPolicy) -> Self {
        let zero = policy.fallback.as_ref().is_some_and(|fallback| fallback.replicas == 0);
        let outage = if zero { Outage::Release } else { policy.executor.outage };
        Self {
            executor: Executor::new(ExecutorPolicy { outage, ..policy.executor }),
            hpa: Hpa::new(policy.hpa),
            fallback: policy.fallback.map(Fallback::new),
            metric: policy.metric,
        }
    }

    /// KEDA has polled: how many replicas there should be.
    pub fn poll(&mut self, now: Duration, replicas: Replicas, look: Look) -> u32 {
        let activity = match look {
            Look::Answered { active: true, .. } => Activity::Active,
            Look::Answered { active: false, .. } => Activity::Inactive,
            Look::Failed { .. } | Look::Silent => Activity::Unknown,
        };
        // A fallback makes the object active.
        let stands_in = activity == Activity::Unknown && self.usage(replicas, look).is_some();
        if activity != Activity::Unknown {
            self.answered();
        }
        let activity = if stands_in { Activity::Active } else { activity };
        self.executor.on_poll(now, replicas.wanted, activity)
    }

    /// The HorizontalPodAutoscaler has synced: how many replicas there should be. Nothing known
    /// changes nothing, and with no replicas it is switched off.
    pub fn sync(&mut self, now: Duration, replicas: Replicas, look: Look) -> u32 {
        if replicas.wanted == 0 {
            return 0;
        }
        match self.usage(replicas, look) {
            Some(usage) => self.hpa.sync(now, replicas.wanted, usage),
            None => replicas.wanted,
        }
    }

    /// The scaler has pushed `true`.
    pub fn push(&mut self, now: Duration, replicas: u32) -> u32 {
        self.executor.on_push(now, replicas)
    }

    fn usage(&mut self, replicas: Replicas, look: Look) -> Option<Usage> {
        match look {
            Look::Answered { value, target, .. } => {
                self.answered();
                Some(Usage { value, target: self.target(target, replicas) })
            }
            Look::Failed { target } => {
                let target = self.target(target, replicas);
                let value = self.fallback.as_mut()?.on_error(replicas.wanted, target)?;
                Some(Usage { value, target })
            }
            Look::Silent => None,
        }
    }

    fn answered(&mut self) {
        if let Some(fallback) = &mut self.fallback {
            fallback.on_value();
        }
    }

    fn target(&self, target: f64, replicas: Replicas) -> Target {
        match self.metric {
            MetricType::AverageValue => Target::AverageValue(target),
            MetricType::Value => Target::Value { target, ready: replicas.ready },
        }
    }
}

#[cfg(test)]
mod tests;
