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

/// So many failures in a row, while the broker answers otherwise, are those of one queue.
const MANY: u32 = 10;

/// Pauses before a queue that cannot be opened is tried again: each try is a connection.
const OPENINGS: RetryPolicy = RetryPolicy { cap: Duration::from_secs(30), ..PAUSES };

/// What a publish may take at most: longer than the brokers' own limits.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// The same to a queue that has failed, since the others wait for it; besides there is time for the
/// bodies.
const HASTE: Duration = Duration::from_secs(1);

/// Bytes of bodies that a broker takes in a millisecond, if it takes them slowly.
const SLOW: usize = 10_000;

/// A queue that jobs go to, and those that wait for it.
pub(super) struct Lane {
    /// Missing until it could be opened.
    pub(super) queue: Option<Queue>,
    pub(super) waiting: VecDeque<Held>,
    /// Jobs that are published together: fewer where there is little room.
    pub(super) chunk: usize,
    pub(super) is_full: bool,
    /// It takes no jobs, for a reason other than that it is full.
    pub(super) refuses: bool,
    /// When jobs were given back to the intake because of that.
    pub(super) gave_back: Option<Instant>,
    /// A publish may have had its effect though it failed, and none has gone well since.
    pub(super) in_doubt: bool,
    /// Failures in a row while the broker answers otherwise.
    pub(super) n_alone: u32,
    pub(super) failures: Failures,
    /// When a job or weights last named it.
    pub(super) used: Instant,
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

    /// A job or weights name it.
    pub(super) fn touch(&mut self) {
        self.used = Instant::now();
    }

    /// Whether nothing has named it for so long.
    pub(super) fn is_idle_for(&self, span: Duration) -> bool {
        self.used.elapsed() >= span
    }

    /// What a publish of these jobs may take.
    pub(super) fn limit(&self, batch: &[Held]) -> Duration {
        if self.failures.are_none() {
            return PATIENCE;
        }
        let n_bytes: usize = batch.iter().map(|held| held.delivery.job.body.len()).sum();
        HASTE + Duration::from_millis(u64::try_from(n_bytes / SLOW).unwrap_or(u64::MAX))
    }

    /// It took jobs.
    pub(super) fn succeeded(&mut self) {
        self.failures.reset();
        (self.is_full, self.refuses, self.in_doubt) = (false, false, false);
        (self.gave_back, self.n_alone) = (None, 0);
        self.chunk = (self.chunk * 2).min(CHUNK);
    }

    /// It did not answer; whether its broker does otherwise says whether that is about this queue.
    pub(super) fn did_not_answer(&mut self, is_alone: bool) {
        self.in_doubt = true;
        self.n_alone = if is_alone { self.n_alone.saturating_add(1) } else { 0 };
        self.refuses |= self.n_alone >= MANY;
        // Fewer are sooner done, where there is little time.
        self.chunk = (self.chunk / 2).max(1);
    }

    /// Bytes of the bodies that wait.
    pub(super) fn n_bytes(&self) -> usize {
        self.waiting.iter().map(|held| held.delivery.job.body.len()).sum()
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
        Self {
            queue: None,
            waiting: VecDeque::new(),
            chunk: CHUNK,
            is_full: false,
            refuses: false,
            gave_back: None,
            in_doubt: false,
            n_alone: 0,
            failures: Failures::default(),
            used: Instant::now(),
        }
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

    pub(super) fn are_none(&self) -> bool {
        self.n == 0
    }

    pub(super) fn may_try(&self) -> bool {
        self.until.is_none_or(|until| until <= Instant::now())
    }
}
