//! A job on loan to a worker, settled once and only once.

use std::sync::Arc;
use std::time::Duration;

use crate::{Job, JobId};

/// A job on loan. Consumed by its settlement; dropped, it comes back when its lease ends.
#[must_use = "an unsettled delivery comes back only when its lease ends"]
#[derive(Debug)]
pub struct Delivery {
    /// The job.
    pub job: Job,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    receipt: Receipt,
}

impl Delivery {
    /// Made by a broker when it hands out a job.
    pub fn new(job: Job, attempt: u32, receipt: Receipt) -> Self {
        Self { job, attempt, receipt }
    }

    /// The proof of the lease, for extending it.
    #[must_use]
    pub fn receipt(&self) -> &Receipt {
        &self.receipt
    }

    /// The job is done and its result is stored.
    pub fn ack(self) -> Settlement {
        self.settle(Verdict::Ack)
    }

    /// The attempt failed; another may succeed after a while.
    pub fn retry(self, after: Duration, reason: impl Into<String>) -> Settlement {
        self.settle(Verdict::Retry { after, reason: reason.into() })
    }

    /// The attempt was never made, for no fault of the job: it is ready at once, uncharged.
    pub fn release(self) -> Settlement {
        self.settle(Verdict::Release)
    }

    /// The job can never succeed: it becomes a dead letter.
    pub fn reject(self, reason: impl Into<String>) -> Settlement {
        self.settle(Verdict::Reject { reason: reason.into() })
    }

    fn settle(self, verdict: Verdict) -> Settlement {
        Settlement { receipt: self.receipt, attempt: self.attempt, verdict }
    }
}

/// Proof of a lease: what a broker needs to know whose delivery is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Receipt {
    /// The job on loan.
    pub job: JobId,
    /// The broker's own mark of this one delivery.
    pub token: Arc<str>,
}

/// What is to become of a delivery. Comes only from a [`Delivery`], which it consumed.
#[must_use = "a settlement takes effect when it is given to the broker"]
#[derive(Debug)]
pub struct Settlement {
    receipt: Receipt,
    attempt: u32,
    verdict: Verdict,
}

impl Settlement {
    /// Whose delivery is meant.
    #[must_use]
    pub fn receipt(&self) -> &Receipt {
        &self.receipt
    }

    /// The attempt that is being settled.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The same for a queue inside this one, which knows the delivery by another receipt.
    pub(crate) fn with_receipt(&self, receipt: Receipt) -> Self {
        Self { receipt, attempt: self.attempt, verdict: self.verdict.clone() }
    }

    /// What is to become of it.
    #[must_use]
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }
}

/// The four ends of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Done.
    Ack,
    /// Failed; ready again after the delay, the attempt charged.
    Retry {
        /// How long to wait.
        after: Duration,
        /// What failed, for the history.
        reason: String,
    },
    /// Not begun; ready at once, the attempt given back.
    Release,
    /// Failed for good.
    Reject {
        /// Why, for whoever reads the dead letters.
        reason: String,
    },
}

/// Whether a lease was still held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// It was, and what was asked is done.
    Held,
    /// It was not: the lease ended before, and nothing was changed.
    Lost,
}
