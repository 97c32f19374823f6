//! Causal language models of the Llama family: a sequence grows by some tokens in each turn.

mod config;
mod forward;
mod turn;

pub use turn::{Ended, Sampling, Sequence, Turn};
