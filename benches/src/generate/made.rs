//! A decoder of a known shape with weights of chance, as a directory: what is measured depends on the
//! shape alone, and no download is needed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::weights::{self, Fill, Kind};

/// The numbers of a decoder that decide how much it computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Shape {
    /// 30 layers of 576, as SmolLM2-135M
    #[value(name = "smollm2-135m")]
    SmolLm2,
    /// 2 layers of 64, to try the bench itself
    Tiny,
}

/// The same, in numbers.
struct Sizes {
    layers: usize,
    hidden: usize,
    inner: usize,
    heads: usize,
    kv_heads: usize,
    vocabulary: usize,
    positions: usize,
}

impl Shape {
    fn sizes(self) -> Sizes {
        let (layers, hidden, inner) = match self {
            Self::SmolLm2 => (30, 576, 1536),
            Self::Tiny => (2, 64, 128),
        };
        let (heads, kv_heads, vocabulary, positions) = match self {
            Self::SmolLm2 => (9, 3, 49152, 8192),
            Self::Tiny => (4, 2, 512, 512),
        };
        Sizes { layers, hidden, inner, heads, kv_heads, vocabulary, positions }
    }
}

/// Writes a model of this shape, in bf16 as such models are published.
pub(super) fn make(shape: Shape, dir: &Path, seed: u64) -> Result<PathBuf> {
    let sizes = shape.sizes();
    let config = json!({
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": sizes.layers,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.inner,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": sizes.positions,
        "rope_theta": 100_000.0,
        "vocab_size": sizes.vocabulary,
        "tie_word_embeddings": true,
        "torch_dtype": "bfloat16",
    });
    std::fs::write(dir.join("config.json"), config.to_string()).context("config.json")?;
    weights::write(&dir.join("model.safetensors"), Kind::Bf16, &tensors(&sizes), seed)?;
    Ok(dir.to_owned())
}

/// How many tokens a model knows.
pub(super) fn vocabulary(dir: &Path) -> Result<u32> {
    let config = std::fs::read_to_string(dir.join("config.json")).context("config.json")?;
    let config: Value = serde_json::from_str(&config)?;
    let size = config["vocab_size"].as_u64().context("config.json has no vocab_size")?;
    u32::try_from(size).context("vocab_size is too large")
}

/// The tensors by their names, with their shapes; norms have one dimension and change nothing.
fn tensors(sizes: &Sizes) -> Vec<(String, Vec<usize>, Fill)> {
    let Sizes { layers, hidden, inner, heads, kv_heads, vocabulary, .. } = *sizes;
    let kv = hidden / heads * kv_heads;
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![vocabulary, hidden])];
    for layer in 0..layers {
        let of_layer = [
            ("input_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.k_proj", vec![kv, hidden]),
            ("self_attn.v_proj", vec![kv, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
        ];
        let named = |(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape);
        tensors.extend(of_layer.into_iter().map(named));
    }
    tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
    let filled = |(name, shape): (String, Vec<usize>)| {
        let fill = if shape.len() == 1 { Fill::One } else { Fill::Chance };
        (name, shape, fill)
    };
    tensors.into_iter().map(filled).collect()
}
