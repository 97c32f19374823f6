//! The members of the BERT family: one transformer, three ways to name its parts.

use serde::Serialize;

use super::Task;

/// Which member a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Positions from zero, two token types.
    Bert,
    /// `DistilBERT`: no token types, names of its own.
    DistilBert,
    /// RoBERTa and XLM-R: positions begin behind the number of the padding token.
    Roberta,
}

/// The values of `model_type` that belong to the family.
pub const MODEL_TYPES: [&str; 4] = ["bert", "distilbert", "roberta", "xlm-roberta"];

impl Family {
    /// The last layer of a head: it has a row for each label.
    pub(crate) fn output(self, task: Task) -> &'static str {
        match (self, task) {
            (Self::Roberta, Task::Classification | Task::Reranking) => "classifier.out_proj",
            _ => "classifier",
        }
    }

    /// The member of this `model_type`.
    pub(crate) fn of(model_type: &str) -> Option<Self> {
        match model_type {
            "bert" => Some(Self::Bert),
            "distilbert" => Some(Self::DistilBert),
            "roberta" | "xlm-roberta" => Some(Self::Roberta),
            _ => None,
        }
    }
}

/// A dense layer or a norm inside a transformer layer.
#[cfg(feature = "cpu")]
#[derive(Debug, Clone, Copy)]
pub(crate) enum Part {
    Query,
    Key,
    Value,
    Attended,
    AttentionNorm,
    Up,
    Down,
    OutputNorm,
}

#[cfg(feature = "cpu")]
impl Family {
    /// What stands before the names of the transformer's weights when a head is stored with it.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Self::Bert => "bert.",
            Self::DistilBert => "distilbert.",
            Self::Roberta => "roberta.",
        }
    }

    /// The name of a part of layer `n`, without the prefix.
    pub(crate) fn name(self, n: usize, part: Part) -> String {
        if self == Self::DistilBert {
            let part = match part {
                Part::Query => "attention.q_lin",
                Part::Key => "attention.k_lin",
                Part::Value => "attention.v_lin",
                Part::Attended => "attention.out_lin",
                Part::AttentionNorm => "sa_layer_norm",
                Part::Up => "ffn.lin1",
                Part::Down => "ffn.lin2",
                Part::OutputNorm => "output_layer_norm",
            };
            return format!("transformer.layer.{n}.{part}");
        }
        let part = match part {
            Part::Query => "attention.self.query",
            Part::Key => "attention.self.key",
            Part::Value => "attention.self.value",
            Part::Attended => "attention.output.dense",
            Part::AttentionNorm => "attention.output.LayerNorm",
            Part::Up => "intermediate.dense",
            Part::Down => "output.dense",
            Part::OutputNorm => "output.LayerNorm",
        };
        format!("encoder.layer.{n}.{part}")
    }
}
