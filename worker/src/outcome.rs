//! What becomes of a job, in the words of the metrics.

use std::sync::atomic::Ordering::Relaxed;

use ebb_queue::{Settled, Settlement, Verdict};

use crate::shared::Counts;

impl Counts {
    /// Counts a job that left.
    pub(crate) fn count(&self, outcome: &'static str) {
        let counter = match outcome {
            COMPLETED => &self.completed,
            REJECTED => &self.failed,
            RETRIED => &self.retried,
            RELEASED => &self.released,
            CANCELLED => &self.cancelled,
            _ => &self.lost,
        };
        counter.fetch_add(1, Relaxed);
    }
}

/// The label of a job that asked for a model which is not here.
pub(crate) const NO_MODEL: &str = "none";

pub(crate) const COMPLETED: &str = "completed";
const REJECTED: &str = "rejected";
const RETRIED: &str = "retried";
const RELEASED: &str = "released";
pub(crate) const CANCELLED: &str = "cancelled";
pub(crate) const LOST: &str = "lost";

/// All of them.
pub(crate) const OUTCOMES: [&str; 6] = [COMPLETED, REJECTED, RETRIED, RELEASED, CANCELLED, LOST];

/// What became of a job, by what was asked and what the broker said.
pub(crate) fn outcome(settlement: &Settlement, answer: Settled) -> &'static str {
    match (answer, settlement.verdict()) {
        (Settled::Lost, _) => LOST,
        (Settled::Cancelled, _) => CANCELLED,
        (Settled::Held, Verdict::Ack) => COMPLETED,
        (Settled::Held, Verdict::Reject(_)) => REJECTED,
        (Settled::Held, Verdict::Retry { .. }) => RETRIED,
        (Settled::Held, Verdict::Release) => RELEASED,
    }
}
