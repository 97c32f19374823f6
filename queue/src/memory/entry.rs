//! A job of the queue in memory, and where it stands.

use std::sync::Arc;

use crate::{Attempt, DeadLetter, Failure, Job, Timestamp, WorkerId};

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) job: Job,
    pub(super) attempts: u32,
    pub(super) history: Vec<Attempt>,
    /// The last lease, kept after its settlement so that one that is sent again is known.
    pub(super) token: Option<Arc<str>>,
    pub(super) state: State,
}

#[derive(Debug)]
pub(super) enum State {
    /// Published, retried, released or put back; leads to `Leased`, past the deadline to `Dead`.
    Waiting { due: Timestamp },
    /// Handed out; leads anywhere, and past `until` to another `Leased` as well.
    Leased { until: Timestamp, worker: WorkerId },
    /// Acked; forgotten at last.
    Done { forget_at: Timestamp },
    /// Rejected or expired; leads to `Waiting` when it is put back.
    Dead { failure: Failure, died_at: Timestamp, rank: u64 },
}

impl Entry {
    /// The moment from which anybody may take the job, if it waits or runs.
    pub(super) fn free_at(&self) -> Option<Timestamp> {
        match self.state {
            State::Waiting { due } => Some(due),
            State::Leased { until, .. } => Some(until),
            State::Done { .. } | State::Dead { .. } => None,
        }
    }

    pub(super) fn is_held(&self, now: Timestamp) -> bool {
        matches!(self.state, State::Leased { until, .. } if until > now)
    }

    pub(super) fn is_ready(&self, now: Timestamp) -> bool {
        self.free_at().is_some_and(|at| at <= now) && !self.job.expired(now)
    }

    /// The deadline has passed, and nobody is at work on it.
    pub(super) fn is_expired(&self, now: Timestamp) -> bool {
        self.free_at().is_some() && !self.is_held(now) && self.job.expired(now)
    }

    pub(super) fn waits(&self, now: Timestamp) -> bool {
        self.free_at().is_some() && !self.is_held(now) && !self.job.expired(now)
    }

    /// The holder of the last lease, if it never settled, is taken for crashed.
    pub(super) fn record_crash(&mut self) {
        if let State::Leased { until, worker } = &self.state {
            let what = format!("lease expired, held by {worker}");
            self.history.push(Attempt { attempt: self.attempts, at: *until, what });
        }
    }

    pub(super) fn record(&mut self, at: Timestamp, what: &str) {
        self.history.push(Attempt { attempt: self.attempts, at, what: what.to_owned() });
    }

    pub(super) fn dead_letter(&self) -> Option<(u64, DeadLetter)> {
        let State::Dead { failure, died_at, rank } = &self.state else {
            return None;
        };
        let letter = DeadLetter {
            job: self.job.clone(),
            attempts: self.attempts,
            kind: failure.kind,
            reason: failure.reason.clone(),
            died_at: *died_at,
            history: self.history.clone(),
        };
        Some((*rank, letter))
    }
}
