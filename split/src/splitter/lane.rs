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

/// A queue that jobs go to, and those that wait for it.
pub(super) struct Lane {
    pub(super) queue: Queue,
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
}

impl Lane {
    pub(super) fn new(queue: Queue) -> Self {
        let (waiting, failures) = (VecDeque::new(), Failures::default());
        Self { queue, waiting, chunk: CHUNK, is_full: false, failures }
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
        self.n = self.n.saturating_add(1);
        let pause = PAUSES.after(self.n, rand::random()).unwrap_or(PAUSES.cap);
        self.until = Some(Instant::now() + pause);
    }

    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    pub(super) fn may_try(&self) -> bool {
        self.until.is_none_or(|until| until <= Instant::now())
    }
}
