//! `config.json` of the BERT family, checked: what is computed, and how large it is.

use std::path::Path;

use super::family::{Family, MODEL_TYPES};
use super::task::HeadConfig;
use crate::LoadError;
use crate::json::Fields;

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

/// Most of whatever is counted: far above what is trained, and products of two of them are numbers.
const MOST: usize = 1 << 24;
/// Most transformer layers.
const MOST_LAYERS: usize = 1 << 12;

impl Config {
    /// Reads and checks `config.json`.
    pub(crate) fn read(path: &Path) -> Result<Self, LoadError> {
        let fields = Fields::read(path)?;
        // The type first: other fields of a model that is not ours have other names.
        let model_type = fields.text(&["model_type"])?.unwrap_or("missing");
        let Some(family) = Family::of(model_type) else {
            let remedy = format!("known here are {}", MODEL_TYPES.join(", "));
            return Err(fields.wrong("model_type", model_type, &remedy));
        };
        let activation = activation(&fields)?;
        let head = HeadConfig::read(&fields)?;
        let architecture = fields.texts("architectures")?.first().copied().unwrap_or(model_type);
        let size = |names: &[&str]| fields.required_size(names, 1..=MOST);
        let (hidden, heads) = widths(&fields)?;
        let vocabulary = size(&["vocab_size"])?;
        let (positions, first_position) = positions(&fields, family, vocabulary)?;
        let token_types = match family {
            Family::DistilBert => 0,
            Family::Bert | Family::Roberta => {
                fields.size(&["type_vocab_size"], 1..=MOST)?.unwrap_or(2)
            }
        };
        Ok(Self {
            family,
            architecture: architecture.to_owned(),
            layers: fields.required_size(&["num_hidden_layers", "n_layers"], 1..=MOST_LAYERS)?,
            hidden,
            heads,
            intermediate: size(&["intermediate_size", "hidden_dim"])?,
            vocabulary,
            positions,
            first_position,
            token_types,
            layer_norm_eps: layer_norm_eps(&fields, family)?,
            activation,
            head,
        })
    }
}

/// What a norm adds to the variance. A DistilBERT has no field for it, and looks at none.
fn layer_norm_eps(fields: &Fields, family: Family) -> Result<f32, LoadError> {
    const USUAL: f64 = 1e-12;
    let eps = match family {
        Family::DistilBert => None,
        Family::Bert | Family::Roberta => fields.number("layer_norm_eps", 0.0..=1.0)?,
    };
    Ok(eps.unwrap_or(USUAL) as f32)
}

/// The width between layers, and the heads that share it.
fn widths(fields: &Fields) -> Result<(usize, usize), LoadError> {
    let heads = fields.required_size(&["num_attention_heads", "n_heads"], 1..=MOST)?;
    let hidden = fields.required_size(&["hidden_size", "dim"], 1..=MOST)?;
    if hidden.is_multiple_of(heads) {
        return Ok((hidden, heads));
    }
    Err(fields.wrong("hidden_size", hidden, "it must divide by num_attention_heads"))
}

/// Tokens that a text may have, and rows of the table of positions before that of the first.
fn positions(
    fields: &Fields,
    family: Family,
    vocabulary: usize,
) -> Result<(usize, usize), LoadError> {
    let rows = fields.required_size(&["max_position_embeddings"], 1..=MOST)?;
    let first = match family {
        Family::Bert | Family::DistilBert => 0,
        Family::Roberta => {
            let padding = fields.size(&["pad_token_id"], 0..=MOST)?.unwrap_or(1);
            if padding >= vocabulary {
                let remedy = format!("it must be below vocab_size, which is {vocabulary}");
                return Err(fields.wrong("pad_token_id", padding, &remedy));
            }
            padding + 1
        }
    };
    match rows.saturating_sub(first) {
        0 => {
            let remedy = "it must be more than pad_token_id + 1";
            Err(fields.wrong("max_position_embeddings", rows, remedy))
        }
        positions => Ok((positions, first)),
    }
}

/// The activation, of a model that is otherwise of a known make.
fn activation(fields: &Fields) -> Result<Activation, LoadError> {
    let kind = fields.text(&["position_embedding_type"])?;
    if let Some(kind) = kind.filter(|kind| *kind != "absolute") {
        return Err(fields.wrong("position_embedding_type", kind, "only absolute is known"));
    }
    if fields.flag("is_decoder")? {
        return Err(fields.wrong("is_decoder", "true", "only encoders are known"));
    }
    match fields.text(&["hidden_act", "activation"])?.unwrap_or("gelu") {
        "gelu" | "gelu_python" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        other => Err(fields.wrong("hidden_act", other, "gelu, gelu_new and relu are known")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_distilbert_has_the_norms_of_its_class_whatever_its_file_says() {
        for (name, expected) in [("tiny-distilbert", 1e-12), ("tiny-bert", 0.5)] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
            let text = std::fs::read(path.join("config.json")).unwrap();
            let mut json: serde_json::Value = serde_json::from_slice(&text).unwrap();
            json["layer_norm_eps"] = 0.5.into();
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("config.json");
            std::fs::write(&path, json.to_string()).unwrap();
            assert_eq!(Config::read(&path).unwrap().layer_norm_eps, expected, "{name}");
        }
    }
}
