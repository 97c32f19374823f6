//! The scaler over a real connection, called as KEDA calls it.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

mod calls;
mod check;
mod config;
mod crowd;
mod explain;
mod first;
mod foreign;
mod kit;
mod limits;
mod outage;
mod push;
mod replicas;
mod server;
mod tls;
mod traces;
mod wire;
