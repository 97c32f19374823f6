//! Causal language models of the Llama family: a sequence grows by some tokens in each turn.

mod config;
#[cfg(feature = "cpu")]
mod forward;
#[cfg(feature = "cpu")]
mod packed;
mod turn;
#[cfg(feature = "cpu")]
mod weights;

pub use config::MODEL_TYPES;
pub use turn::{Ended, Sampling, Sequence, Turn};
