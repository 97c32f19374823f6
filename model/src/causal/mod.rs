//! Causal language models of the Llama family: a sequence grows by some tokens in each turn.

mod config;
#[cfg(feature = "cpu")]
mod engine;
#[cfg(feature = "cpu")]
mod forward;
#[cfg(feature = "cpu")]
mod generator;
#[cfg(feature = "cpu")]
mod graph;
#[cfg(feature = "cpu")]
mod groups;
#[cfg(feature = "cpu")]
mod packed;
#[cfg(feature = "cpu")]
mod plan;
#[cfg(feature = "cpu")]
mod pool;
#[cfg(feature = "cpu")]
mod sampler;
#[cfg(feature = "cpu")]
mod source;
mod turn;
#[cfg(feature = "cpu")]
mod weights;

pub use config::MODEL_TYPES;
#[cfg(feature = "cpu")]
pub use generator::Generator;
#[cfg(feature = "cpu")]
pub use source::Source;
pub use turn::{Ended, Sampling, Sequence, Turn};
