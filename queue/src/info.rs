//! What a broker said of itself, and what it cannot promise.

use serde::Serialize;

/// What was found out when the queue was opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Info {
    /// `nats`, `amqp`, `redis`, `sqlite` or `memory`.
    pub broker: &'static str,
    /// The server and its version, in its own words.
    pub version: String,
    /// The longest body that `publish` takes, in bytes, where there is a limit.
    pub max_body: Option<u64>,
    /// Settings that are weaker than the promises.
    pub warnings: Vec<Warning>,
    /// What this kind of broker cannot promise however it is set.
    pub limits: &'static [Limit],
}

/// A setting of a server that is weaker than the promise, or a feature that it lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// One of a few words, for a label: `power_loss`, `eviction`, `old_server`, …
    pub code: &'static str,
    /// What it means, and what to set.
    pub text: String,
}

/// A promise that a kind of broker cannot keep to the letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// The promise, in a few words: `ordering`, `duplicates`, `fencing`, …
    pub promise: &'static str,
    /// What holds instead, and why.
    pub instead: &'static str,
}

/// What a broker that may store a part of a batch says of itself.
const BATCHES: &str = "batches";

impl Info {
    /// Whether of jobs that are published together all are stored or none.
    #[must_use]
    pub fn has_whole_batches(&self) -> bool {
        !self.limits.iter().any(|limit| limit.promise == BATCHES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brokers_that_store_a_batch_job_by_job_say_so() {
        let whole = crate::LIMITS.map(|(broker, limits)| {
            let (version, warnings) = (String::new(), Vec::new());
            let info = Info { broker, version, max_body: None, warnings, limits };
            (broker, info.has_whole_batches())
        });
        assert_eq!(whole, [("nats", false), ("amqp", false), ("redis", true)]);
    }
}
