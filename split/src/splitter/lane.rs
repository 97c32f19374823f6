//! A queue that jobs go to, and how patiently it is tried.

use std::collections::VecDeque;
use std::time::Duration;

use ebb_queue::{Delivery, Queue, RetryPolicy};
use tokio::time::Instant;

/// Jobs that are published together.
pub(super) const CHUNK: usize = 128;

/// Pauses before a queue that is full, or a broker that does not answer, is tried again.
const PAUSES: RetryPolicy = RetryPolicy {
    max_attempts: u32::MAX,
    base: Duration::from_millis(50),
    cap: Duration::from_secs(2),
};

/// Pauses before a queue that cannot be opened is tried again: each try is a connection.
const OPENINGS: RetryPolicy = RetryPolicy { cap: Duration::from_secs(30), ..PAUSES };

/// A queue that jobs go to, and those that wait for it.
pub(super) struct Lane {
    /// Missing until it could be opened.
    pub(super) queue: Option<Queue>,
    pub(super) waiting: VecDeque<Held>,
    /// Jobs that are published together: fewer where there is little room.
    pub(super) chunk: usize,
    pub(super) is_full: bool,
    pub(super) failures: Failures,
}

/// A job that has a place to go.
pub(super) struct Held {
    pub(super) delivery: Delivery,
    pub(super) spilled: bool,
    /// Whether it may have gone there before.
    pub(super) before: bool,
}

impl Lane {
    /// One that is open already.
    pub(super) fn new(queue: Queue) -> Self {
        Self { queue: Some(queue), ..Self::default() }
    }

    /// Jobs that could not be published now wait in front of the others.
    pub(super) fn put_back(&mut self, batch: Vec<Held>) {
        batch.into_iter().rev().for_each(|held| self.waiting.push_front(held));
    }

    /// It could not be opened, or not be published to.
    pub(super) fn failed(&mut self) {
        let pauses = if self.queue.is_some() { &PAUSES } else { &OPENINGS };
        self.failures.add_one(pauses);
    }
}

/// One that is still to be opened.
impl Default for Lane {
    fn default() -> Self {
        let (waiting, failures) = (VecDeque::new(), Failures::default());
        Self { queue: None, waiting, chunk: CHUNK, is_full: false, failures }
    }
}

/// Calls in a row that failed, and until when no other is made.
#[derive(Debug, Default)]
pub(super) struct Failures {
    n: u32,
    until: Option<Instant>,
}

impl Failures {
    pub(super) fn add(&mut self) {
        self.add_one(&PAUSES);
    }

    fn add_one(&mut self, pauses: &RetryPolicy) {
        self.n = self.n.saturating_add(1);
        let pause = pauses.after(self.n, rand::random()).unwrap_or(pauses.cap);
        self.until = Some(Instant::now() + pause);
    }

    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    pub(super) fn may_try(&self) -> bool {
        self.until.is_none_or(|until| until <= Instant::now())
    }
}
