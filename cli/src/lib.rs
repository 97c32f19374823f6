//! The all-in-one binary: one tree of commands over the queue, the scaler, the worker and the models.
//!
//! [`autoscaler`] is KEDA on one machine; its arithmetic can be driven by a simulator as well.

pub mod autoscaler;
mod choose;
mod cli;
mod commands;
mod demo;
mod exit;
mod local;
mod meter;
mod options;
mod output;
mod pieces;
mod pool;
mod results;
mod spread;
mod trace;

pub use cli::{Cli, run};
