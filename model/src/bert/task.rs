//! What a model's head is for, and what its outputs are called.

use serde::Serialize;

use crate::LoadError;
use crate::json::Fields;

/// Labels that a model may have without naming them.
const MOST_UNNAMED: usize = 100_000;

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
    pub(crate) fn read(fields: &Fields) -> Result<Self, LoadError> {
        Ok(HeadConfig::read(fields)?.task)
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

impl HeadConfig {
    /// Reads and checks what `config.json` says of the head.
    pub(crate) fn read(fields: &Fields) -> Result<Self, LoadError> {
        // Where nothing is named it is a bare transformer.
        let architecture = fields.texts("architectures")?.first().copied().unwrap_or_default();
        let head = architecture.split_once("For").map_or("", |(_, head)| head);
        let task = match head {
            // A sentence encoder is often stored with the head that it was trained with.
            "" | "MaskedLM" | "PreTraining" => Task::Embedding,
            "SequenceClassification" => Task::Classification,
            "TokenClassification" => Task::Tagging,
            _ => return Err(fields.wrong("architectures", architecture, HEADS)),
        };
        if task == Task::Embedding {
            return Ok(Self { task, labels: Vec::new(), problem: Problem::Regression });
        }
        let labels = labels(fields)?;
        if task == Task::Tagging {
            return Ok(Self { task, labels, problem: Problem::SingleLabel });
        }
        let problem_type = fields.text(&["problem_type"])?;
        if labels.len() == 1 && problem_type != Some("regression") {
            // The softmax of one number says nothing: such a head compares pairs.
            let problem = activation(fields)?;
            return Ok(Self { task: Task::Reranking, labels, problem });
        }
        let problem = match problem_type {
            None | Some("single_label_classification") => Problem::SingleLabel,
            Some("multi_label_classification") => Problem::MultiLabel,
            Some("regression") => Problem::Regression,
            Some(other) => {
                let remedy = "known are single_label_classification, multi_label_classification \
                              and regression";
                return Err(fields.wrong("problem_type", other, remedy));
            }
        };
        Ok(Self { task, labels, problem })
    }
}

/// What a cross-encoder makes of its one number: a sigmoid unless its file says otherwise.
fn activation(fields: &Fields) -> Result<Problem, LoadError> {
    const REMEDY: &str = "known are torch.nn.modules.activation.Sigmoid and \
                          torch.nn.modules.linear.Identity";
    // The second is where older versions of sentence-transformers wrote it.
    for field in ["sentence_transformers.activation_fn", "sbert_ce_default_activation_function"] {
        let Some(name) = fields.text(&[field])? else { continue };
        return match name.rsplit('.').next().unwrap_or(name) {
            "Sigmoid" => Ok(Problem::MultiLabel),
            "Identity" => Ok(Problem::Regression),
            _ => Err(fields.wrong(field, name, REMEDY)),
        };
    }
    Ok(Problem::MultiLabel)
}

/// The labels in the order of the outputs.
fn labels(fields: &Fields) -> Result<Vec<String>, LoadError> {
    let Some(names) = fields.object("id2label")? else {
        // What transformers assumes.
        let n_labels = fields.size(&["num_labels"], 1..=MOST_UNNAMED)?.unwrap_or(2);
        return Ok((0..n_labels).map(|n| format!("LABEL_{n}")).collect());
    };
    let named = (0..names.len()).map(|n| names.get(&n.to_string())?.as_str().map(str::to_owned));
    let labels: Option<Vec<String>> = named.collect();
    labels.filter(|labels| !labels.is_empty()).ok_or_else(|| {
        let keys = names.keys().take(8).map(String::as_str).collect::<Vec<_>>().join(", ");
        let found = format!("a map of [{keys}]");
        let remedy = "its keys must be 0, 1, 2 and so on, and its values the names of labels";
        fields.wrong("id2label", found, remedy)
    })
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
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        HeadConfig::read(&Fields::read(&path).unwrap()).map_err(|error| error.to_string())
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
