//! `config.json` of the BERT family, checked: what is computed, and how large it is.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::family::{Family, MODEL_TYPES};
use super::settings::read_json;
use super::task::{HeadConfig, HeadFile};
use crate::LoadError;

/// The activation between the two layers of a feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    /// Exact, by the error function.
    Gelu,
    /// The approximation by tanh.
    GeluTanh,
    Relu,
}

/// The transformer's shape.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Config {
    pub(crate) family: Family,
    pub(crate) architecture: String,
    pub(crate) layers: usize,
    pub(crate) hidden: usize,
    pub(crate) heads: usize,
    pub(crate) intermediate: usize,
    pub(crate) vocabulary: usize,
    /// Tokens a text may have.
    pub(crate) positions: usize,
    /// Rows of the table of positions before that of the first token.
    pub(crate) first_position: usize,
    /// Zero where there are no token types.
    pub(crate) token_types: usize,
    pub(crate) layer_norm_eps: f32,
    pub(crate) activation: Activation,
    pub(crate) head: HeadConfig,
}

#[derive(Deserialize)]
struct ConfigFile {
    model_type: String,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(alias = "n_layers")]
    num_hidden_layers: usize,
    #[serde(alias = "dim")]
    hidden_size: usize,
    #[serde(alias = "n_heads")]
    num_attention_heads: usize,
    #[serde(alias = "hidden_dim")]
    intermediate_size: usize,
    #[serde(default = "gelu", alias = "activation")]
    hidden_act: String,
    #[serde(default = "eps")]
    layer_norm_eps: f32,
    max_position_embeddings: usize,
    #[serde(default = "two")]
    type_vocab_size: usize,
    vocab_size: usize,
    pad_token_id: Option<usize>,
    #[serde(default)]
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
}

fn gelu() -> String {
    "gelu".into()
}

fn eps() -> f32 {
    1e-12
}

fn two() -> usize {
    2
}

impl Config {
    /// Reads and checks `config.json`.
    pub(crate) fn read(path: &Path) -> Result<Self, LoadError> {
        // The type first: other fields of a model that is not ours have other names.
        let kind: BTreeMap<String, serde_json::Value> = read_json(path)?;
        let model_type = kind.get("model_type").and_then(|kind| kind.as_str()).unwrap_or("missing");
        let Some(family) = Family::of(model_type) else {
            let remedy = format!("known here are {}", MODEL_TYPES.join(", "));
            return Err(LoadError::unsupported(path, "model_type", model_type, &remedy));
        };
        let file: ConfigFile = read_json(path)?;
        let activation = file.check(path)?;
        let head = read_json::<HeadFile>(path)?.check(path)?;
        let first_position = match family {
            Family::Roberta => file.pad_token_id.unwrap_or(1) + 1,
            Family::Bert | Family::DistilBert => 0,
        };
        let positions = file.max_position_embeddings.saturating_sub(first_position);
        if positions == 0 {
            let found = file.max_position_embeddings;
            let remedy = "it must be more than pad_token_id + 1";
            return Err(LoadError::unsupported(path, "max_position_embeddings", found, remedy));
        }
        Ok(Self {
            family,
            architecture: file.architectures.into_iter().next().unwrap_or(file.model_type),
            layers: file.num_hidden_layers,
            hidden: file.hidden_size,
            heads: file.num_attention_heads,
            intermediate: file.intermediate_size,
            vocabulary: file.vocab_size,
            positions,
            first_position,
            token_types: if family == Family::DistilBert { 0 } else { file.type_vocab_size },
            layer_norm_eps: file.layer_norm_eps,
            activation,
            head,
        })
    }
}

impl ConfigFile {
    fn check(&self, path: &Path) -> Result<Activation, LoadError> {
        let unsupported = |field: &str, found: &str, remedy: &str| {
            LoadError::unsupported(path, field, found, remedy)
        };
        if let Some(kind) = self.position_embedding_type.as_deref().filter(|k| *k != "absolute") {
            return Err(unsupported("position_embedding_type", kind, "only absolute is known"));
        }
        if self.is_decoder {
            return Err(unsupported("is_decoder", "true", "only encoders are known"));
        }
        for (field, size) in [
            ("num_hidden_layers", self.num_hidden_layers),
            ("hidden_size", self.hidden_size),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("type_vocab_size", self.type_vocab_size),
            ("vocab_size", self.vocab_size),
        ] {
            if size == 0 {
                return Err(unsupported(field, "0", "it must be at least 1"));
            }
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let found = self.hidden_size.to_string();
            let remedy = "it must divide by num_attention_heads";
            return Err(unsupported("hidden_size", &found, remedy));
        }
        match self.hidden_act.as_str() {
            "gelu" | "gelu_python" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
            "relu" => Ok(Activation::Relu),
            other => Err(unsupported("hidden_act", other, "gelu, gelu_new and relu are known")),
        }
    }
}
