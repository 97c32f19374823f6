//! `config.json` of a decoder, checked: what is computed, and how large it is.

/// The shape of a decoder of the Llama family.
///
/// Each layer: RMS norm, attention with rotary positions and shared keys and values, residual, RMS
/// norm, a feed-forward block gated by SiLU, residual.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Config {
    /// The first of `architectures`, for people.
    pub(crate) architecture: String,
    pub(crate) layers: usize,
    pub(crate) hidden: usize,
    /// Width between the two layers of a feed-forward block.
    pub(crate) intermediate: usize,
    /// Heads of the queries.
    pub(crate) heads: usize,
    /// Heads of the keys and values; divides `heads`.
    pub(crate) kv_heads: usize,
    /// Width of a head; `heads` of them need not make `hidden`.
    pub(crate) head_width: usize,
    pub(crate) vocabulary: usize,
    /// Tokens that a sequence may have.
    pub(crate) positions: usize,
    pub(crate) norm_eps: f32,
    pub(crate) rope: Rope,
    /// Whether queries, keys and values have biases (Qwen2, and `attention_bias`).
    pub(crate) qkv_bias: bool,
    /// Whether the product after attention has a bias (`attention_bias` of Llama).
    pub(crate) out_bias: bool,
    /// Whether queries and keys are normed by head before they are turned (Qwen3).
    pub(crate) qk_norm: bool,
    /// Whether the logits are made with the table of embeddings.
    pub(crate) tied: bool,
}

/// How positions turn queries and keys.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rope {
    pub(crate) theta: f64,
    pub(crate) scaling: Option<Scaling>,
}

/// How a model was stretched to longer texts than it was first trained on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Scaling {
    /// Positions are divided by this.
    Linear(f64),
    /// Slow frequencies are divided by `factor`, fast ones stay, those in between are blended (Llama 3).
    Llama3 { factor: f64, low_freq_factor: f64, high_freq_factor: f64, original_positions: f64 },
}
