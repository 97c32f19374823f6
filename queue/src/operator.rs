//! Where a job is, and what a purge of the jobs that wait has done so far.

use std::fmt;

use crate::Job;

/// Where the job under an id is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Ready: a worker could run it now.
    Waiting,
    /// Ready later: published with a delay, or waiting to be retried.
    Delayed,
    /// Held by a worker under a live lease.
    Running,
    /// Among the dead letters, or about to be: its deadline has passed and nobody holds it.
    Dead,
    /// Acknowledged, and remembered for `key_ttl`.
    Done,
    /// Never published, purged, or done so long ago that it is forgotten.
    Unknown,
}

impl JobState {
    /// As JSON and people have it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Delayed => "delayed",
            Self::Running => "running",
            Self::Dead => "dead",
            Self::Done => "done",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What cancelling a job came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cancelled {
    /// It waited, ready or later, and will not run.
    Waiting,
    /// A worker holds it, and is asked to stop; what it makes of it is dropped.
    Running,
    /// It waits or runs, the broker cannot tell which: whoever comes to it drops it.
    Marked,
    /// It had ended before, as completed, dead or cancelled, and nothing was changed.
    Ended,
    /// The queue does not know it, and nothing was changed.
    Unknown,
}

impl Cancelled {
    /// As JSON and people have it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Marked => "marked",
            Self::Ended => "ended",
            Self::Unknown => "unknown",
        }
    }

    /// Whether the job is cancelled by this.
    #[must_use]
    pub fn took_effect(self) -> bool {
        matches!(self, Self::Waiting | Self::Running | Self::Marked)
    }
}

impl fmt::Display for Cancelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What one step of a purge deleted.
#[derive(Debug, Clone, Default)]
pub struct Purged {
    /// How many jobs.
    pub n_jobs: u64,
    /// Those of them whose bodies lie in a store of payloads, with their references, but for those
    /// that have gone on to another queue, which needs the bodies.
    pub referring: Vec<Job>,
    /// How many dead letters were passed over that are too old, since their bodies lie there.
    pub n_left: u64,
}

/// What a purge makes of a dead letter whose body lies in a store of payloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Elsewhere {
    /// Leaves it, and goes on behind it: whoever has no such store cannot delete the body.
    Leave,
    /// Deletes it and says where its body is: whoever asks deletes that.
    Take,
}

/// Letters that go in one step where their bodies are to be deleted before the next.
const WITH_BODIES: usize = 64;

impl Elsewhere {
    /// Whether this letter may go.
    pub(crate) fn lets_go(self, job: &Job) -> bool {
        self == Self::Take || job.headers.body_ref.is_none()
    }

    /// How many letters a step takes that may take so many.
    pub(crate) fn step(self, most: usize) -> usize {
        match self {
            Self::Leave => most,
            Self::Take => most.min(WITH_BODIES),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_one_word_in_json_too() {
        use JobState::{Dead, Delayed, Done, Running, Unknown, Waiting};
        for state in [Waiting, Delayed, Running, Dead, Done, Unknown] {
            assert_eq!(serde_json::to_value(state).unwrap(), state.word());
        }
        for told in [
            Cancelled::Waiting,
            Cancelled::Running,
            Cancelled::Marked,
            Cancelled::Ended,
            Cancelled::Unknown,
        ] {
            assert_eq!(serde_json::to_value(told).unwrap(), told.word());
        }
    }
}
