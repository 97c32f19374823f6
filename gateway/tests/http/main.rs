//! The routes of a gateway over the queue in memory, with a small worker or none.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod admission;
mod connections;
mod inference;
mod jobs;
mod lifecycle;
mod running;
mod scene;
mod streams;
