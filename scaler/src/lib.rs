//! Answers KEDA: how many replicas a queue wants, and whether it may have none.
//!
//! [`decide`] is the heart, and pure. Around it: [`Trigger`] reads the metadata, a [`Learner`] learns
//! from what is seen, the observers (`watch`) keep one snapshot per queue, `service` speaks
//! `externalscaler.proto`, and [`Scaler`] puts it on a port. [`conformance`] examines any scaler as
//! KEDA would find it.

pub mod conformance;

mod activation;
mod config;
mod decision;
#[cfg(test)]
mod kit;
mod learn;
mod metrics;
mod observe;
mod push;
mod server;
mod service;
mod trigger;
mod value;
mod watch;

pub use activation::Why;
pub use config::ScalerArgs;
pub use decision::{Decision, Snapshot, decide, whole};
pub use learn::{Arrivals, Evidence, Learned, Learner, Pace, Recent};
pub use observe::Connect;
pub use server::{Scaler, run};
pub use trigger::{Activation, Mode, OPTIONS, Priors, Trigger, TriggerError, TriggerOption};
pub use value::Basis;
