//! What a worker says of itself once a second.

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// A worker's name, unique for the life of its process.
pub type WorkerId = String;

/// What a worker says of itself; the scaler learns from it what the broker cannot tell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Who speaks.
    pub id: WorkerId,
    /// The pod or host it runs on.
    pub pod: String,
    /// What it is doing.
    pub phase: Phase,
    /// Jobs it holds.
    pub in_flight: u64,
    /// Jobs it can run at once (its largest batch).
    pub slots: u64,
    /// Jobs completed since it started.
    pub completed: u64,
    /// Jobs that failed for good since it started.
    pub failed: u64,
    /// The fitted time of a batch, once there was one.
    pub batch_time: Option<BatchTime>,
    /// Seconds from the start of the process to readiness, by phase, in order.
    pub cold_start: Vec<(String, f64)>,
    /// Seconds from the start of the process to its first result, once there was one: the cold start
    /// and what it waited for its first job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_result: Option<f64>,
    /// Device and model, in words.
    pub model: String,
    /// When it said so.
    pub at: Timestamp,
}

/// Where a worker is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Loading its model; leads to `Idle`.
    Starting,
    /// Ready, and nothing to do; leads to `Busy` and `Draining`.
    Idle,
    /// Holding jobs; leads to `Idle` and `Draining`.
    Busy,
    /// Finishing what it holds; leads out.
    Draining,
}

/// The fitted time of a batch: `seconds = base + per_cost * cost`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BatchTime {
    /// Seconds that any batch takes.
    pub base: f64,
    /// Seconds per unit of cost, padding counted.
    pub per_cost: f64,
    /// Mean seconds per job, batches considered.
    pub per_job: f64,
}
