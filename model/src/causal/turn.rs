//! What goes into a generator for one turn, and what comes out of it.

use std::sync::Arc;

/// One sequence that is to grow.
///
/// It says all that the next tokens depend on: a model that has lost what it kept of a sequence reads
/// its tokens again and goes on to the same end.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence {
    /// By which the model finds again what it kept of this sequence; no other has it in this process.
    pub key: u64,
    /// The prompt's tokens, then those that were generated so far.
    pub tokens: Vec<u32>,
    /// How many of them are the prompt's; at least one.
    pub n_prompt: usize,
    /// Tokens that may be generated in all; with none it ends at once.
    pub max_new: usize,
    /// Tokens that end it and are no part of its text.
    pub ends: Arc<[u32]>,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// Held by all that there is of this sequence, and by nobody else: once it is gone the sequence
    /// comes no more, and a model that keeps something for it has room for others.
    pub life: Arc<()>,
}

/// How a token is chosen among all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Logits are divided by this, once the penalties are taken; 0 takes the likeliest token, and of
    /// equals that of the lowest number.
    pub temperature: f32,
    /// Only so many of the likeliest tokens are candidates, where it is given.
    pub top_k: Option<usize>,
    /// The likeliest tokens that together have this probability are candidates, of those that `top_k`
    /// leaves; 1 for all.
    pub top_p: f32,
    /// Taken from the logit of a token once for each time that it was generated.
    pub frequency_penalty: f32,
    /// Taken from the logit of a token that was generated at all.
    pub presence_penalty: f32,
    /// Divides the logit of a token of the prompt or the answer if it is positive, else multiplies it.
    pub repetition_penalty: f32,
    /// Where chance comes from: with the number of the generated token it decides, whatever ran beside
    /// it.
    pub seed: u64,
}

impl Default for Sampling {
    /// The likeliest token, always.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

/// What a sequence gained in one turn.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Turn {
    /// The tokens, in order, without one that ended the sequence. None while a long prompt is read, or
    /// others had all of the memory.
    pub tokens: Vec<u32>,
    /// Whether it has ended with these, and why.
    pub ended: Option<Ended>,
    /// How many of the sequence's tokens the model has read by now: the rest of a long prompt is
    /// read in the turns to come.
    pub n_read: usize,
    /// How many of these were not computed for it: another sequence that begins alike had read them.
    pub n_reused: usize,
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By one of its end tokens, which is not among those it gained.
    Stop,
    /// It has as many tokens as it may have, or as the model can read.
    Length,
}
