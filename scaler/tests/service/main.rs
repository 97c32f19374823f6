//! The scaler over a real connection, called as KEDA calls it.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

mod calls;
mod crowd;
mod kit;
mod outage;
mod push;
mod server;
