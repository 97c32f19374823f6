//! A job on loan to a worker, settled once and only once.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::{Error, Failure, Job, JobId, Result};

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
    pub fn reject(self, failure: impl Into<Failure>) -> Settlement {
        self.settle(Verdict::Reject(failure.into()))
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
    /// Failed for good; why, for whoever reads the dead letters.
    Reject(Failure),
}

impl Verdict {
    /// How long the job has to wait before it is ready again, if it ever is.
    pub(crate) fn delay(&self) -> Duration {
        match self {
            Self::Retry { after, .. } => *after,
            Self::Ack | Self::Release | Self::Reject(_) => Duration::ZERO,
        }
    }
}

/// Whether a lease was still held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// It was, and what was asked is done.
    Held,
    /// It was not: the lease ended before, and nothing was changed.
    Lost,
    /// It was not: the job was cancelled, that is stored and told, and nothing was changed.
    Cancelled,
}

/// Not all settlements were carried out; of those that were, what became of them.
#[derive(Debug)]
pub struct Unsettled {
    /// Why; where jobs fail for several reasons, one that a later try may find gone.
    pub error: Error,
    answers: Vec<Option<Settled>>,
}

impl Unsettled {
    /// The answers in the order of the settlements, none for those to be sent again; what is
    /// missing at the end counts as none.
    #[must_use]
    pub fn new(error: Error, answers: Vec<Option<Settled>>) -> Self {
        Self { error, answers }
    }
}

/// What became of the settlement at this place of a call; none if it is to be sent again.
#[must_use]
pub fn answer_at(answers: &Result<Vec<Settled>, Unsettled>, nth: usize) -> Option<Settled> {
    match answers {
        Ok(answers) => answers.get(nth).copied(),
        Err(unsettled) => unsettled.answers.get(nth).copied().flatten(),
    }
}

impl fmt::Display for Unsettled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Unsettled {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

/// Of none of them it is known that it was carried out.
impl From<Error> for Unsettled {
    fn from(error: Error) -> Self {
        Self { error, answers: Vec::new() }
    }
}

impl From<Unsettled> for Error {
    fn from(unsettled: Unsettled) -> Self {
        unsettled.error
    }
}

/// All answers, or those that are known and why the others are not.
pub(crate) fn all_settled(
    answers: Vec<Option<Settled>>,
    failed: Option<Error>,
) -> Result<Vec<Settled>, Unsettled> {
    match failed {
        Some(error) => Err(Unsettled { error, answers }),
        None => Ok(answers.into_iter().flatten().collect()),
    }
}

/// Keeps one of the errors of settlements: the first, unless a later one may heal and it does not.
pub(crate) fn note(failed: &mut Option<Error>, error: Error) {
    if failed.as_ref().is_none_or(|first| !first.kind().heals() && error.kind().heals()) {
        *failed = Some(error);
    }
}
