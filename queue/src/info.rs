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
