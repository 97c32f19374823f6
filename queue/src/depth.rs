//! How much waits and runs, at one moment.

use std::time::Duration;

use crate::Timestamp;

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
    /// The sum of the cost hints of ready and in-flight jobs (0 without a hint), where the broker
    /// can tell.
    pub cost: Option<f64>,
    /// When this was true.
    pub as_of: Timestamp,
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
            cost: None,
            as_of,
        }
    }

    /// How long the oldest ready job has waited.
    #[must_use]
    pub fn oldest_age(&self) -> Option<Duration> {
        let age = self.as_of.duration_since(self.oldest_ready?);
        Some(Duration::try_from(age).unwrap_or_default())
    }
}
