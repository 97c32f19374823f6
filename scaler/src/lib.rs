//! Answers KEDA: how many replicas a queue wants, and whether it may have none.
//!
//! [`decide`] is the heart, and pure. Around it: `profiles` says which broker a trigger means and
//! whether it may, [`Trigger`] reads the metadata, a [`Learner`] learns from what is seen, the
//! observers (`watch`) keep one snapshot per queue, `service` speaks `externalscaler.proto`,
//! `explain` remembers why, and [`Scaler`] puts it on a port. [`conformance`] examines any scaler
//! as KEDA would find it.

pub mod conformance;

mod activation;
mod cause;
mod check;
mod client;
mod config;
mod connection;
mod decision;
mod explain;
mod figures;
mod file;
mod health;
#[cfg(test)]
mod kit;
mod learn;
mod limits;
mod metrics;
mod names;
mod news;
mod observe;
mod open;
mod place;
mod policy;
mod profiles;
mod push;
mod readiness;
mod reflection;
mod reload;
mod resolved;
mod resolver;
mod server;
mod service;
mod shared;
mod site;
mod snapshot;
mod tls;
mod trace;
mod trigger;
mod unread;
mod value;
mod view;
mod watch;

pub use activation::Why;
pub use check::{
    Answer, Asking, CheckArgs, Checkup, Problem, ProblemKind, ProfileCheck, TriggerCheck, check,
};
pub use config::ScalerArgs;
pub use decision::{Decision, decide, whole};
pub use learn::{Arrivals, Evidence, Inflow, Learned, Learner, Pace, Recent};
pub use push::{Cadence, Push, Reason, Seen};
pub use server::{Scaler, run};
pub use site::Connect;
pub use snapshot::Snapshot;
pub use tls::TlsArgs;
pub use trigger::{Activation, Low, Mode, OPTIONS, Priors, Trigger, TriggerError, TriggerOption};
pub use value::{Basis, LeftOut};
