//! The answer to a job.

use bytes::Bytes;

use crate::{Failure, FailureKind, JSON, JobId, Timestamp};

/// The answer to a job, or the reason why there is none.
#[derive(Debug, Clone, PartialEq)]
pub struct JobResult {
    /// The job.
    pub id: JobId,
    /// The attempt that made this.
    pub attempt: u32,
    /// Whether there is an answer.
    pub outcome: Outcome,
    /// When it was made.
    pub finished_at: Timestamp,
    /// The queue whose worker made it, where that is told: of two versions, which one answered.
    pub queue: Option<String>,
}

/// Whether there is an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The answer.
    Completed {
        /// What the body is; `application/json` unless the job asked otherwise.
        content_type: String,
        /// The answer itself.
        body: Bytes,
    },
    /// None, and why; the job lies in the dead letters.
    Failed(Failure),
    /// None, since somebody cancelled the job; it is no dead letter.
    Cancelled,
}

/// The reason of a cancelled job, where one has to be named.
pub(crate) const CANCELLED: &str = "cancelled";

impl JobResult {
    /// The failure of a job that its queue buries by itself.
    pub(crate) fn buried(id: JobId, attempt: u32, failure: Failure, at: Timestamp) -> Self {
        let outcome = Outcome::Failed(failure.shortened());
        Self { id, attempt, outcome, finished_at: at, queue: None }
    }

    /// Why its job is a dead letter, where this is the result that is stored and `failure` is what this
    /// attempt found: what an earlier attempt stored before it was lost counts, so that whoever asks for
    /// the result and whoever looks at the dead letters read the same.
    #[must_use]
    pub fn why_dead(&self, attempt: u32, failure: Failure) -> Failure {
        match &self.outcome {
            Outcome::Failed(stored) if self.attempt < attempt && self.moved_to().is_none() => {
                stored.clone()
            }
            _ => failure,
        }
    }

    /// What is stored of a job that somebody cancelled.
    pub(crate) fn cancelled(id: JobId, attempt: u32, at: Timestamp) -> Self {
        Self { id, attempt, outcome: Outcome::Cancelled, finished_at: at, queue: None }
    }

    /// The result as the body of a message, and what that is.
    pub(crate) fn reply_body(&self) -> (String, Bytes) {
        let error = |error: serde_json::Value| (JSON.to_owned(), error.to_string().into());
        match &self.outcome {
            Outcome::Completed { content_type, body } => (content_type.clone(), body.clone()),
            Outcome::Failed(Failure { kind, reason }) => {
                error(serde_json::json!({ "error": reason, "kind": kind }))
            }
            Outcome::Cancelled => error(serde_json::json!({ "error": CANCELLED })),
        }
    }
}

impl Outcome {
    /// Whether there is an answer.
    #[must_use]
    pub fn is_completed(&self) -> bool {
        matches!(self, Self::Completed { .. })
    }

    /// Whether nothing takes its place any more: an answer, or that the job was cancelled. A failure
    /// gives way to both, since a dead letter can be put back.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Completed { .. } | Self::Cancelled => true,
            Self::Failed { .. } => false,
        }
    }

    /// What there is to do about a failure; none of anything else.
    #[must_use]
    pub fn failure_kind(&self) -> Option<FailureKind> {
        match self {
            Self::Failed(failure) => Some(failure.kind),
            Self::Completed { .. } | Self::Cancelled => None,
        }
    }

    /// `completed`, `failed` or `cancelled`, as headers and stores have it.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Completed { .. } => "completed",
            Self::Failed { .. } => "failed",
            Self::Cancelled => CANCELLED,
        }
    }
}

/// What became of something offered to the result store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It is stored.
    Stored,
    /// Something was there before, and stays.
    Duplicate,
    /// A later attempt is on it, and this one is not wanted any more.
    Stale,
}

/// One piece of a result that is being followed.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    /// A piece.
    Chunk {
        /// The attempt that made it.
        attempt: u32,
        /// Its place, from 0.
        seq: u64,
        /// The piece itself.
        body: Bytes,
    },
    /// The whole; nothing follows.
    Final(JobResult),
}
