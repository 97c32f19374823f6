//! What a model's head is for, and what its outputs are called.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::settings::read_json;
use crate::LoadError;

/// What a model makes of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// A vector.
    Embedding,
    /// Scores of labels.
    Classification,
    /// The relevance of a document to a query.
    Reranking,
    /// A label for each of its tokens.
    Tagging,
}

impl Task {
    /// The task that `config.json` tells of.
    pub(crate) fn read(path: &Path) -> Result<Self, LoadError> {
        Ok(read_json::<HeadFile>(path)?.check(path)?.task)
    }
}

/// What the numbers of a classifier's head mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Problem {
    /// One label is right: scores are the softmax.
    SingleLabel,
    /// Any number of labels may be right: each score is a sigmoid of its own.
    MultiLabel,
    /// The numbers themselves.
    Regression,
}

/// The fields of `config.json` that tell of the head.
#[derive(Deserialize)]
pub(crate) struct HeadFile {
    #[serde(default)]
    architectures: Vec<String>,
    id2label: Option<BTreeMap<String, String>>,
    num_labels: Option<usize>,
    problem_type: Option<String>,
    sentence_transformers: Option<OfTrainer>,
    /// Where older versions of sentence-transformers wrote it.
    sbert_ce_default_activation_function: Option<String>,
}

/// What sentence-transformers adds to `config.json`.
#[derive(Deserialize)]
struct OfTrainer {
    activation_fn: Option<String>,
}

/// A head, as `config.json` describes it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HeadConfig {
    pub(crate) task: Task,
    /// Empty where the task is without.
    pub(crate) labels: Vec<String>,
    pub(crate) problem: Problem,
}

/// What may stand behind `BertFor…` and its like in `architectures`.
const HEADS: &str = "known are BertModel, BertForMaskedLM, BertForPreTraining, \
                     BertForSequenceClassification and BertForTokenClassification, and their like \
                     of each family";

impl HeadFile {
    pub(crate) fn check(self, path: &Path) -> Result<HeadConfig, LoadError> {
        let architecture = self.architectures.first().map_or("", String::as_str);
        let head = architecture.split_once("For").map_or("", |(_, head)| head);
        let task = match head {
            // A sentence encoder is often stored with the head that it was trained with.
            "" | "MaskedLM" | "PreTraining" => Task::Embedding,
            "SequenceClassification" => Task::Classification,
            "TokenClassification" => Task::Tagging,
            _ => return Err(LoadError::unsupported(path, "architectures", architecture, HEADS)),
        };
        if task == Task::Embedding {
            return Ok(HeadConfig { task, labels: Vec::new(), problem: Problem::Regression });
        }
        let labels = self.labels(path)?;
        if task == Task::Tagging {
            return Ok(HeadConfig { task, labels, problem: Problem::SingleLabel });
        }
        let is_regression = self.problem_type.as_deref() == Some("regression");
        if labels.len() == 1 && !is_regression {
            // The softmax of one number says nothing: such a head compares pairs.
            let problem = self.activation(path)?;
            return Ok(HeadConfig { task: Task::Reranking, labels, problem });
        }
        let problem = match self.problem_type.as_deref() {
            None | Some("single_label_classification") => Problem::SingleLabel,
            Some("multi_label_classification") => Problem::MultiLabel,
            Some("regression") => Problem::Regression,
            Some(other) => {
                let remedy = "known are single_label_classification, multi_label_classification \
                              and regression";
                return Err(LoadError::unsupported(path, "problem_type", other, remedy));
            }
        };
        Ok(HeadConfig { task, labels, problem })
    }

    /// What a cross-encoder makes of its one number: a sigmoid unless its file says otherwise.
    fn activation(&self, path: &Path) -> Result<Problem, LoadError> {
        const REMEDY: &str = "known are torch.nn.modules.activation.Sigmoid and \
                              torch.nn.modules.linear.Identity";
        let own = self.sentence_transformers.as_ref().and_then(|of| of.activation_fn.as_ref());
        let (field, name) = match (own, &self.sbert_ce_default_activation_function) {
            (Some(name), _) => ("sentence_transformers.activation_fn", name),
            (None, Some(name)) => ("sbert_ce_default_activation_function", name),
            (None, None) => return Ok(Problem::MultiLabel),
        };
        match name.rsplit('.').next().unwrap_or(name) {
            "Sigmoid" => Ok(Problem::MultiLabel),
            "Identity" => Ok(Problem::Regression),
            _ => Err(LoadError::unsupported(path, field, name, REMEDY)),
        }
    }

    /// The labels in the order of the outputs.
    fn labels(&self, path: &Path) -> Result<Vec<String>, LoadError> {
        let Some(names) = &self.id2label else {
            // What transformers assumes.
            return Ok((0..self.num_labels.unwrap_or(2)).map(|n| format!("LABEL_{n}")).collect());
        };
        let named = (0..names.len()).map(|n| names.get(&n.to_string()).cloned());
        let labels: Option<Vec<String>> = named.collect();
        labels.filter(|labels| !labels.is_empty()).ok_or_else(|| {
            let keys = names.keys().cloned().collect::<Vec<_>>().join(", ");
            let found = format!("a map of [{keys}]");
            LoadError::unsupported(path, "id2label", found, "its keys must be 0, 1, 2 and so on")
        })
    }
}

#[cfg(feature = "cpu")]
impl Problem {
    /// The scores of the outputs of a head.
    pub(crate) fn scores(self, logits: &[f32]) -> Vec<f32> {
        match self {
            Self::SingleLabel => softmax(logits),
            Self::MultiLabel => logits.iter().copied().map(sigmoid).collect(),
            Self::Regression => logits.to_vec(),
        }
    }
}

#[cfg(feature = "cpu")]
pub(crate) fn softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = logits.iter().map(|x| (x - max).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.iter().map(|power| power / sum).collect()
}

#[cfg(feature = "cpu")]
pub(crate) fn sigmoid(x: f32) -> f32 {
    // Of what is not above zero, so that nothing overflows.
    let small = (-x.abs()).exp();
    if x >= 0.0 { 1.0 / (1.0 + small) } else { small / (1.0 + small) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(more: &str) -> Result<HeadConfig, String> {
        let text = format!(
            r#"{{"architectures": ["BertForSequenceClassification"], "num_labels": 1{more}}}"#
        );
        let file: HeadFile = serde_json::from_str(&text).unwrap();
        file.check(Path::new("config.json")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_cross_encoder_says_what_becomes_of_its_number() {
        let new = |name| format!(r#", "sentence_transformers": {{"activation_fn": "{name}"}}"#);
        let old = |name| format!(r#", "sbert_ce_default_activation_function": "{name}""#);
        let identity = "torch.nn.modules.linear.Identity";
        for (more, expected) in [
            (String::new(), Problem::MultiLabel),
            (new("torch.nn.modules.activation.Sigmoid"), Problem::MultiLabel),
            (new(identity), Problem::Regression),
            (old(identity), Problem::Regression),
            (new("torch.nn.modules.activation.Sigmoid") + &old(identity), Problem::MultiLabel),
            (r#", "sentence_transformers": {"version": "5.1.0"}"#.to_owned(), Problem::MultiLabel),
        ] {
            let head = head(&more).unwrap();
            assert_eq!((head.task, head.problem), (Task::Reranking, expected), "{more}");
        }
        let error = head(&new("torch.nn.modules.activation.Tanh")).unwrap_err();
        assert!(error.contains("sentence_transformers.activation_fn"), "{error}");
    }
}
