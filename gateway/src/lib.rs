//! An HTTP front door to the queue, for whoever wants no broker's client.
//!
//! What it takes is an ordinary job on an ordinary queue: the scaler sees it and a pool starts from
//! zero, while the gateway holds the request. It runs nothing itself, knows no model, and keeps nothing:
//! any of its replicas answers for the jobs of the others.

mod admission;
mod config;
mod connections;
mod envelope;
mod file;
mod files;
mod following;
mod ids;
mod keys;
mod letters;
mod local;
mod memory;
mod metrics;
mod models;
pub mod openai;
mod prefer;
mod rate;
mod readiness;
mod refusal;
mod reload;
mod routes;
mod run;
mod sse;
mod trace;
mod waiting;
mod wanted;

pub use config::GatewayArgs;
pub use ids::Ids;
pub use keys::Keys;
pub use metrics::Metrics;
pub use models::{Model, ModelPlan, Models};
pub use routes::{Limits, Parts, router};
pub use run::run;
pub use wanted::Canceller;
