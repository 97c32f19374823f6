//! What a model directory says of itself: read from its small files, checked, and made one.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::config::Config;
use super::modules::{Modules, Pooling};
use super::projection::Projection;
use super::task::{Problem, Task};
use super::transformer;
use crate::LoadError;
use crate::checkpoint::Checkpoint;
use crate::json::{Fields, is_there, read_json};
use crate::safetensors::Entry;

/// The file in which sentence-transformers keeps what is of no module.
pub(crate) const SENTENCE_CONFIG: &str = "config_sentence_transformers.json";

/// A model's shape and its way with texts.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Tokens a text is cut to, the special ones counted.
    pub max_tokens: usize,
    /// From tokens to text, in an encoder.
    pub pooling: Pooling,
    /// Whether an encoder's result has length one.
    pub normalize: bool,
    pub(crate) config: Config,
    pub(crate) lower_case: bool,
    pub(crate) prompts: Prompts,
    /// Behind the pooling of an encoder.
    pub(crate) projections: Vec<Projection>,
    module_files: Vec<String>,
}

/// What may stand before a text.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Prompts {
    /// By name.
    pub(crate) named: BTreeMap<String, String>,
    /// Where a job names none.
    pub(crate) default: String,
    /// What that is called.
    pub(crate) default_name: Option<String>,
    /// Whether their tokens are pooled with the text's.
    pub(crate) are_pooled: bool,
}

#[derive(Deserialize, Default)]
struct PromptsFile {
    #[serde(default)]
    prompts: BTreeMap<String, String>,
    default_prompt_name: Option<String>,
}

impl Settings {
    /// Reads and checks a directory; the weights and the vocabulary are not opened.
    pub fn read(dir: &Path) -> Result<Self, LoadError> {
        let config = Config::read(&dir.join("config.json"))?;
        let modules = match config.head.task {
            Task::Embedding => Modules::read(dir)?,
            Task::Classification | Task::Reranking | Task::Tagging => Modules::of_head(dir)?,
        };
        let transformer = transformer::read(&modules.transformer)?;
        let tokenizer = Fields::read_if_there(&modules.transformer.join("tokenizer_config.json"))?;
        let prompts = Prompts::read(dir, modules.include_prompt)?;
        if config.head.task != Task::Embedding {
            prompts.refuse_default(dir)?;
        }
        let mut projections: Vec<Projection> = Vec::new();
        for folder in &modules.dense {
            let width = projections.last().map_or(config.hidden, Projection::width);
            projections.push(Projection::read(dir.join(folder), width)?);
        }
        let declared = match transformer::limit(&transformer)? {
            Some(length) => length,
            None => {
                // The second is what versions 2 and 3 of transformers called it.
                let names = ["model_max_length", "max_len"];
                let name = names.into_iter().find(|name| tokenizer.says(name));
                let limit = name.map(|name| tokenizer.limit(name)).transpose()?.flatten();
                limit.unwrap_or(config.positions)
            }
        };
        Ok(Self {
            max_tokens: declared.min(config.positions),
            pooling: modules.pooling,
            normalize: modules.normalize,
            config,
            lower_case: transformer.flag("do_lower_case")?,
            prompts,
            module_files: modules.files(),
            projections,
        })
    }

    /// The files of the modules behind the transformer, in the directory.
    pub(crate) fn module_files(&self) -> &[String] {
        &self.module_files
    }

    /// The name in `architectures`, or of the model type.
    pub fn architecture(&self) -> &str {
        &self.config.architecture
    }

    /// Transformer layers.
    pub fn layers(&self) -> usize {
        self.config.layers
    }

    /// What the model makes of a text.
    pub fn task(&self) -> Task {
        self.config.head.task
    }

    /// A classifier's labels, in the order of its outputs.
    pub fn labels(&self) -> &[String] {
        &self.config.head.labels
    }

    /// Holds the labels against the outputs of the head.
    pub(crate) fn check_labels(&self, weights: &Checkpoint) -> Result<(), LoadError> {
        if self.task() == Task::Embedding {
            return Ok(());
        }
        let name = format!("{}.weight", self.config.family.output(self.task()));
        let Some(Entry { shape, .. }) = weights.entry(&name) else {
            let message =
                "is missing; the weights have no head, as architectures in config.json says";
            return Err(weights.wrong(&name, message));
        };
        let n_labels = self.labels().len();
        if shape.first() == Some(&n_labels) {
            return Ok(());
        }
        let message = format!(
            "is {shape:?}, and config.json tells of {n_labels} labels; id2label, or num_labels \
             without it, must have one for each row"
        );
        Err(weights.wrong(&name, message))
    }

    /// What a classifier's outputs mean.
    pub fn problem(&self) -> Problem {
        self.config.head.problem
    }

    /// What an encoder's jobs may ask to stand before their texts, by name.
    pub fn prompts(&self) -> &BTreeMap<String, String> {
        &self.prompts.named
    }

    /// The name of the one that stands there where a job names none.
    pub fn default_prompt(&self) -> Option<&str> {
        self.prompts.default_name.as_deref()
    }

    /// Width of a token's vector.
    pub fn hidden(&self) -> usize {
        self.config.hidden
    }

    /// Numbers of an encoder's result.
    pub fn dimensions(&self) -> usize {
        self.projections.last().map_or(self.config.hidden, Projection::width)
    }
}

impl Prompts {
    fn read(dir: &Path, are_pooled: bool) -> Result<Self, LoadError> {
        let path = dir.join(SENTENCE_CONFIG);
        let file: PromptsFile =
            if is_there(&path)? { read_json(&path)? } else { PromptsFile::default() };
        let mut prompts = Self { named: file.prompts, are_pooled, ..Self::default() };
        let Some(name) = file.default_prompt_name else { return Ok(prompts) };
        let Some(prompt) = prompts.named.get(&name) else {
            let remedy = "it must be a key of prompts";
            return Err(LoadError::unsupported(&path, "default_prompt_name", name, remedy));
        };
        if !are_pooled && !prompt.is_empty() {
            let remedy = "a prompt left out of the pooling (include_prompt) is not known";
            return Err(LoadError::unsupported(&path, "default_prompt_name", name, remedy));
        }
        prompts.default.clone_from(prompt);
        prompts.default_name = Some(name);
        Ok(prompts)
    }

    /// Of a model with a head: nothing stands before its texts.
    fn refuse_default(&self, dir: &Path) -> Result<(), LoadError> {
        match &self.default_name {
            Some(name) if !self.default.is_empty() => {
                let remedy = "prompts are known of encoders only; take it out where the model was \
                              trained without";
                let path = dir.join(SENTENCE_CONFIG);
                Err(LoadError::unsupported(&path, "default_prompt_name", name, remedy))
            }
            _ => Ok(()),
        }
    }
}
