//! What a model's head is for, and what its outputs are called.

use serde::Serialize;

use super::modules::MODULES;
use super::settings::SENTENCE_CONFIG;
use crate::LoadError;
use crate::json::{Fields, is_there};

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
    /// The task that `config.json` tells of, with what stands beside it.
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
                     of each family; for a plain encoder under a name of its own, set BertModel \
                     there";

impl HeadConfig {
    /// Reads and checks what `config.json` says of the head.
    pub(crate) fn read(fields: &Fields) -> Result<Self, LoadError> {
        // Where nothing is named it is a bare transformer.
        let architecture = fields.texts("architectures")?.first().copied().unwrap_or_default();
        let task = match architecture.split_once("For") {
            None if architecture.is_empty() || architecture.ends_with("Model") => Task::Embedding,
            // A class from elsewhere, which the modules put to use as a plain encoder.
            None if is_there(&fields.path().with_file_name(MODULES))? => Task::Embedding,
            // A sentence encoder is often stored with the head that it was trained with.
            Some((_, "MaskedLM" | "PreTraining")) => Task::Embedding,
            Some((_, "SequenceClassification")) => Task::Classification,
            Some((_, "TokenClassification")) => Task::Tagging,
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
        // The softmax of one number says nothing: such a head compares pairs. So does one that was
        // trained on a number, where it says what becomes of it.
        let declared = if labels.len() == 1 { activation(fields)? } else { None };
        if labels.len() == 1 && (problem_type != Some("regression") || declared.is_some()) {
            let problem = declared.unwrap_or(Problem::MultiLabel);
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

/// What a cross-encoder makes of its one number, where it says so: a sigmoid otherwise.
fn activation(fields: &Fields) -> Result<Option<Problem>, LoadError> {
    const REMEDY: &str = "known are torch.nn.modules.activation.Sigmoid and \
                          torch.nn.modules.linear.Identity";
    let beside = Fields::read_if_there(&fields.path().with_file_name(SENTENCE_CONFIG))?;
    // The latter two are where versions of sentence-transformers before 6 and before 4 wrote it.
    for (fields, field) in [
        (&beside, "activation_fn"),
        (fields, "sentence_transformers.activation_fn"),
        (fields, "sbert_ce_default_activation_function"),
    ] {
        let Some(name) = fields.text(&[field])? else { continue };
        return match name.rsplit('.').next().unwrap_or(name) {
            "Sigmoid" => Ok(Some(Problem::MultiLabel)),
            "Identity" => Ok(Some(Problem::Regression)),
            _ => Err(fields.wrong(field, name, REMEDY)),
        };
    }
    Ok(None)
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

    /// A head of one label, with more in `config.json` and something beside it.
    fn head(more: &str, beside: Option<&str>) -> Result<HeadConfig, String> {
        let text = format!(
            r#"{{"architectures": ["BertForSequenceClassification"], "num_labels": 1{more}}}"#
        );
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        if let Some(name) = beside {
            let text = format!(r#"{{"activation_fn": "{name}", "model_type": "CrossEncoder"}}"#);
            std::fs::write(dir.path().join(SENTENCE_CONFIG), text).unwrap();
        }
        HeadConfig::read(&Fields::read(&path).unwrap()).map_err(|error| error.to_string())
    }

    const IDENTITY: &str = "torch.nn.modules.linear.Identity";
    const SIGMOID: &str = "torch.nn.modules.activation.Sigmoid";

    #[test]
    fn a_cross_encoder_says_what_becomes_of_its_number() {
        let new = |name| format!(r#", "sentence_transformers": {{"activation_fn": "{name}"}}"#);
        let old = |name| format!(r#", "sbert_ce_default_activation_function": "{name}""#);
        for (more, beside, expected) in [
            (String::new(), None, Problem::MultiLabel),
            (new(SIGMOID), None, Problem::MultiLabel),
            (new(IDENTITY), None, Problem::Regression),
            (old(IDENTITY), None, Problem::Regression),
            (new(SIGMOID) + &old(IDENTITY), None, Problem::MultiLabel),
            (
                r#", "sentence_transformers": {"version": "5.1.0"}"#.to_owned(),
                None,
                Problem::MultiLabel,
            ),
            (String::new(), Some(IDENTITY), Problem::Regression),
            (String::new(), Some(SIGMOID), Problem::MultiLabel),
            (new(SIGMOID), Some(IDENTITY), Problem::Regression),
            (old(IDENTITY), Some(SIGMOID), Problem::MultiLabel),
        ] {
            let head = head(&more, beside).unwrap();
            assert_eq!((head.task, head.problem), (Task::Reranking, expected), "{more} {beside:?}");
        }
        let tanh = "torch.nn.modules.activation.Tanh";
        let error = head(&new(tanh), None).unwrap_err();
        assert!(error.contains("sentence_transformers.activation_fn"), "{error}");
        let error = head(&new(SIGMOID), Some(tanh)).unwrap_err();
        let says = format!("{SENTENCE_CONFIG}: activation_fn is {tanh}; known are");
        assert!(error.contains(&says), "{error}");
    }

    #[test]
    fn a_plain_encoder_has_any_name_where_the_modules_of_a_sentence_encoder_stand_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let read = |name: &str| {
            std::fs::write(&path, format!(r#"{{"architectures": ["{name}"]}}"#)).unwrap();
            let head = HeadConfig::read(&Fields::read(&path).unwrap());
            head.map(|head| head.task).map_err(|error| error.to_string())
        };
        let error = read("Contriever").unwrap_err();
        assert!(error.contains("architectures is Contriever; known are BertModel"), "{error}");
        assert!(error.contains("a plain encoder under a name of its own"), "{error}");
        std::fs::write(dir.path().join("modules.json"), "[]").unwrap();
        assert_eq!(read("Contriever"), Ok(Task::Embedding));
        let error = read("BertForQuestionAnswering").unwrap_err();
        assert!(error.contains("architectures is BertForQuestionAnswering; known are"), "{error}");
    }

    #[test]
    fn a_head_that_was_trained_on_a_number_compares_pairs_where_it_says_what_becomes_of_it() {
        let regression = r#", "problem_type": "regression""#;
        let plain = head(regression, None).unwrap();
        assert_eq!((plain.task, plain.problem), (Task::Classification, Problem::Regression));
        for (name, problem) in [(SIGMOID, Problem::MultiLabel), (IDENTITY, Problem::Regression)] {
            let old = format!(r#"{regression}, "sbert_ce_default_activation_function": "{name}""#);
            for found in [head(regression, Some(name)).unwrap(), head(&old, None).unwrap()] {
                assert_eq!((found.task, found.problem), (Task::Reranking, problem), "{name}");
            }
        }
    }
}
