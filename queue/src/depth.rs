//! How much waits and runs, at one moment.

use std::time::Duration;

use crate::{Priority, Timestamp};

/// The jobs of one queue, counted by state in one consistent look.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Depth {
    /// Jobs that could be received now: published, due again, or left by an expired lease.
    pub ready: u64,
    /// Jobs on loan under a live lease.
    pub in_flight: u64,
    /// Jobs that will be ready later: published with a delay, or waiting to be retried.
    pub delayed: u64,
    /// Dead letters, and expired jobs that are about to be.
    pub dead: u64,
    /// When the oldest ready job was published.
    pub oldest_ready: Option<Timestamp>,
    /// The next moment at which time alone makes a job ready: a delay or a lease that ends.
    pub next_due: Option<Timestamp>,
    /// The same of delays alone: when the next delayed job is due.
    pub next_delayed: Option<Timestamp>,
    /// The sum of the cost hints of ready and in-flight jobs (0 without a hint), where the broker
    /// can tell.
    pub cost: Option<f64>,
    /// The ready jobs by priority, where the broker can tell; they add up to `ready`.
    pub ready_by_priority: Option<ByPriority>,
    /// The soonest deadline of a ready job. `None` where none has one, or the broker cannot tell.
    pub first_deadline: Option<Timestamp>,
    /// Jobs that were handed out and are in flight no more, counted since whenever, where the broker
    /// counts them: of a queue of Ebb its workers tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub done: Option<u64>,
    /// When this was true.
    pub as_of: Timestamp,
    /// How long the look only waited to look again, which costs the broker nothing.
    #[serde(skip)]
    pub waited: Duration,
}

/// Jobs by priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct ByPriority {
    /// Those that go first.
    pub high: u64,
    /// Those in turn, and all of which no priority is known.
    pub normal: u64,
    /// Those that go when nothing else waits.
    pub low: u64,
}

impl ByPriority {
    /// The count of one priority.
    #[must_use]
    pub fn of(&self, priority: Priority) -> u64 {
        match priority {
            Priority::High => self.high,
            Priority::Normal => self.normal,
            Priority::Low => self.low,
        }
    }

    /// The count of one priority, to be changed.
    pub fn of_mut(&mut self, priority: Priority) -> &mut u64 {
        match priority {
            Priority::High => &mut self.high,
            Priority::Normal => &mut self.normal,
            Priority::Low => &mut self.low,
        }
    }

    /// All of them together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.high.saturating_add(self.normal).saturating_add(self.low)
    }
}

impl Depth {
    /// An empty queue.
    #[must_use]
    pub fn empty(as_of: Timestamp) -> Self {
        Self {
            ready: 0,
            in_flight: 0,
            delayed: 0,
            dead: 0,
            oldest_ready: None,
            next_due: None,
            next_delayed: None,
            cost: None,
            ready_by_priority: None,
            first_deadline: None,
            done: None,
            as_of,
            waited: Duration::ZERO,
        }
    }

    /// How long the oldest ready job has waited.
    #[must_use]
    pub fn oldest_age(&self) -> Option<Duration> {
        let age = self.as_of.duration_since(self.oldest_ready?);
        Some(Duration::try_from(age).unwrap_or_default())
    }
}
