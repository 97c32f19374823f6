//! The scaler over a real connection, called as KEDA calls it.

mod calls;
mod crowd;
mod kit;
mod outage;
mod push;
mod server;
