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

/// So is a silence that outlasts this and more than one call: the first may be the end of an outage.
const SILENCE: Duration = Duration::from_secs(10);

/// What a publish may take at most: longer than the brokers' own limits.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// A queue that jobs go to, and those that wait for it.
pub(super) struct Lane {
    /// Missing until it could be opened.
    pub(super) queue: Option<Queue>,
    pub(super) waiting: VecDeque<Held>,
    /// Jobs on their way there; no others are sent meanwhile.
    pub(super) out: Vec<Held>,
    /// When they, or those before them, were sent.
    sent: Instant,
    /// Jobs that are published together: fewer where there is little room.
    pub(super) chunk: usize,
    pub(super) is_full: bool,
    /// It takes no jobs, for a reason other than that it is full.
    pub(super) refuses: bool,
    /// When jobs were given back to the intake because of that.
    pub(super) gave_back: Option<Instant>,
    /// A publish may have had its effect though it failed, and none has gone well since.
    pub(super) in_doubt: bool,
    /// Failures in a row while the broker answers otherwise, and when the first of them began.
    n_alone: u32,
    silent_since: Option<Instant>,
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

    /// These jobs are sent there.
    pub(super) fn begin(&mut self, batch: Vec<Held>) {
        (self.out, self.sent) = (batch, Instant::now());
    }

    /// It took jobs.
    pub(super) fn succeeded(&mut self) {
        self.failures.reset();
        (self.is_full, self.refuses, self.in_doubt) = (false, false, false);
        self.gave_back = None;
        self.chunk = (self.chunk * 2).min(CHUNK);
        self.answered();
    }

    /// It has said something, if no more than that it is full: what silence there was is over.
    pub(super) fn answered(&mut self) {
        (self.n_alone, self.silent_since) = (0, None);
    }

    /// It did not answer; whether its broker does otherwise says whether that is about this queue.
    pub(super) fn did_not_answer(&mut self, is_alone: bool) {
        self.in_doubt = true;
        if is_alone {
            self.n_alone = self.n_alone.saturating_add(1);
            let since = *self.silent_since.get_or_insert(self.sent);
            let is_silent = self.n_alone > 1 && since.elapsed() >= SILENCE;
            self.refuses |= self.n_alone >= MANY || is_silent;
        } else {
            (self.n_alone, self.silent_since) = (0, None);
        }
        // Fewer are sooner done, and fewer are in doubt.
        self.chunk = (self.chunk / 2).max(1);
    }

    /// Its jobs, those on their way there included.
    pub(super) fn n_jobs(&self) -> usize {
        self.waiting.len() + self.out.len()
    }

    /// Bytes of their bodies.
    pub(super) fn n_bytes(&self) -> usize {
        self.waiting.iter().chain(&self.out).map(|held| held.delivery.job.body.len()).sum()
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
            out: Vec::new(),
            sent: Instant::now(),
            chunk: CHUNK,
            is_full: false,
            refuses: false,
            gave_back: None,
            in_doubt: false,
            n_alone: 0,
            silent_since: None,
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

    /// Whether the last call went well.
    pub(super) fn are_none(&self) -> bool {
        self.n == 0
    }

    pub(super) fn may_try(&self) -> bool {
        self.until.is_none_or(|until| until <= Instant::now())
    }
}
