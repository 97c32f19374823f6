//! Answers KEDA: how many replicas a queue wants, and whether it may have none.
//!
//! [`decide`] is the heart, and pure. Around it: [`Trigger`] reads the metadata, the observers
//! (`watch`) keep one snapshot per queue, `service` speaks `externalscaler.proto`, and [`Scaler`]
//! puts it on a port. [`conformance`] examines any scaler as KEDA would find it.

pub mod conformance;

mod config;
mod decision;
mod metrics;
mod observe;
mod push;
mod server;
mod service;
mod trigger;
mod watch;

pub use config::ScalerArgs;
pub use decision::{Decision, Snapshot, Why, decide, whole};
pub use observe::Connect;
pub use server::{Scaler, run};
pub use trigger::{Mode, Trigger, TriggerError};
