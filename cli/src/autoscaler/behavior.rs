//! `behavior` of a HorizontalPodAutoscaler: windows, steps and tolerances, up and down.
//! No clock and no task in here: time comes in as an argument.
//!
//! The source of each formula is Kubernetes, `pkg/controller/podautoscaler/horizontal.go`; the
//! defaults stand in `pkg/apis/autoscaling/v2/defaults.go`. KEDA hands
//! `advanced.horizontalPodAutoscalerConfig.behavior` on as it is (`controllers/keda/hpa.go`).

use std::collections::VecDeque;
use std::time::Duration;

/// How replicas are added and taken away; the defaults are those of Kubernetes for an HPA that
/// sets any part of `behavior`.
#[derive(Debug, Clone, PartialEq)]
pub struct Behavior {
    /// `scaleUp`: at once, by 4 replicas or the double within 15 s, whichever is more.
    pub up: Scaling,
    /// `scaleDown`: to the largest recommendation of 5 minutes, without further limits.
    pub down: Scaling,
}

/// One direction of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Scaling {
    /// Which of the steps counts (`selectPolicy`).
    pub select: Select,
    /// The limits (`policies`); none of them is none at all.
    pub steps: Vec<Step>,
    /// `stabilizationWindowSeconds`; none is the default of the direction.
    pub window: Option<Duration>,
    /// No change while the usage is this close to the target (Kubernetes 1.33); none is the
    /// cluster's.
    pub tolerance: Option<f64>,
}

/// Which of several steps counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Select {
    /// The one that allows the largest change.
    Max,
    /// The one that allows the smallest change.
    Min,
    /// None: there is no change in this direction.
    Disabled,
}

/// What may change within a period (`periodSeconds`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Step {
    /// So many replicas (`type: Pods`).
    Pods(u32, Duration),
    /// So many percent of the replicas at the start of the period (`type: Percent`).
    Percent(u32, Duration),
}

const UP_WINDOW: Duration = Duration::ZERO;
const DOWN_WINDOW: Duration = Duration::from_secs(300);
const PERIOD: Duration = Duration::from_secs(15);

impl Default for Behavior {
    fn default() -> Self {
        let scaling = |steps| Scaling { select: Select::Max, steps, window: None, tolerance: None };
        Self {
            up: scaling(vec![Step::Pods(4, PERIOD), Step::Percent(100, PERIOD)]),
            down: scaling(vec![Step::Percent(100, PERIOD)]),
        }
    }
}

impl Behavior {
    /// Moves towards what the recommendations of both windows agree on: up to the smallest of the
    /// one, down to the largest of the other.
    pub(super) fn stabilize(
        &self,
        now: Duration,
        replicas: u32,
        recommended: u32,
        recent: impl Iterator<Item = (Duration, u32)>,
    ) -> u32 {
        let (mut least, mut most) = (recommended, recommended);
        for (at, n) in recent {
            let age = now.saturating_sub(at);
            if age < self.up.window.unwrap_or(UP_WINDOW) {
                least = least.min(n);
            }
            if age < self.down.window.unwrap_or(DOWN_WINDOW) {
                most = most.max(n);
            }
        }
        replicas.max(least).min(most)
    }

    /// What the steps leave of a change.
    pub(super) fn limit(
        &self,
        now: Duration,
        replicas: u32,
        wanted: u32,
        changes: &Changes,
    ) -> u32 {
        let start = |period| i64::from(replicas) - changes.within(now, period);
        if wanted > replicas {
            let allowed = self.up.steps.iter().map(|step| step.up_from(start(step.period())));
            let limit =
                self.up.select.of(allowed.collect(), replicas, Iterator::max, Iterator::min);
            return wanted.min(limit.max(replicas));
        }
        let allowed = self.down.steps.iter().map(|step| step.down_from(start(step.period())));
        let limit = self.down.select.of(allowed.collect(), replicas, Iterator::min, Iterator::max);
        wanted.max(limit.min(replicas))
    }

    /// How close to the target the usage may be, below and above, without a change.
    pub(super) fn tolerances(&self, default: f64) -> (f64, f64) {
        (self.down.tolerance.unwrap_or(default), self.up.tolerance.unwrap_or(default))
    }

    pub(super) fn longest_window(&self) -> Duration {
        self.up.window.unwrap_or(UP_WINDOW).max(self.down.window.unwrap_or(DOWN_WINDOW))
    }

    pub(super) fn longest_period(&self) -> Duration {
        let steps = self.up.steps.iter().chain(&self.down.steps);
        steps.map(|step| step.period()).max().unwrap_or_default()
    }
}

impl Select {
    /// The selected limit; `largest` and `smallest` say which of them allows which change.
    fn of(
        self,
        limits: Vec<u32>,
        replicas: u32,
        largest: fn(std::vec::IntoIter<u32>) -> Option<u32>,
        smallest: fn(std::vec::IntoIter<u32>) -> Option<u32>,
    ) -> u32 {
        let limit = match self {
            Self::Max => largest(limits.into_iter()),
            Self::Min => smallest(limits.into_iter()),
            Self::Disabled => None,
        };
        limit.unwrap_or(replicas)
    }
}

impl Step {
    fn period(self) -> Duration {
        match self {
            Self::Pods(_, period) | Self::Percent(_, period) => period,
        }
    }

    fn up_from(self, start: i64) -> u32 {
        match self {
            Self::Pods(n, _) => whole(start + i64::from(n)),
            Self::Percent(n, _) => ceil(start as f64 * (1.0 + f64::from(n) / 100.0)),
        }
    }

    fn down_from(self, start: i64) -> u32 {
        match self {
            Self::Pods(n, _) => whole(start - i64::from(n)),
            // Rounded down, as Kubernetes does: the cast saturates at 0.
            Self::Percent(n, _) => (start as f64 * (1.0 - f64::from(n) / 100.0)) as u32,
        }
    }
}

fn whole(n: i64) -> u32 {
    u32::try_from(n.max(0)).unwrap_or(u32::MAX)
}

/// Rounds up; what is not a number, or below zero, is 0.
pub(super) fn ceil(value: f64) -> u32 {
    // The cast saturates, and takes what is not a number for 0.
    value.ceil() as u32
}

/// What was changed, and when.
#[derive(Debug, Clone, Default)]
pub(super) struct Changes(VecDeque<(Duration, i64)>);

impl Changes {
    pub(super) fn record(&mut self, now: Duration, from: u32, to: u32) {
        if from != to {
            self.0.push_back((now, i64::from(to) - i64::from(from)));
        }
    }

    pub(super) fn forget(&mut self, now: Duration, older: Duration) {
        self.0.retain(|(at, _)| now.saturating_sub(*at) < older);
    }

    /// The sum of what was changed within a period: added less taken away.
    fn within(&self, now: Duration, period: Duration) -> i64 {
        let recent = self.0.iter().filter(|(at, _)| now.saturating_sub(*at) < period);
        recent.map(|(_, change)| change).sum()
    }
}
