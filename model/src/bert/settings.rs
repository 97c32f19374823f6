//! What a model directory says of itself: read from six small files, checked, and made one.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::LoadError;

/// How the vectors of the tokens become one vector of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// The average of all tokens.
    Mean,
    /// The first token.
    Cls,
    /// The largest value of any token, per dimension.
    Max,
}

/// The activation between the two layers of a feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    /// Exact, by the error function.
    Gelu,
    /// The approximation by tanh.
    GeluTanh,
    Relu,
}

/// An encoder's shape and its way with texts.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The name in `architectures`, or of the model type.
    pub architecture: String,
    /// Transformer layers.
    pub layers: usize,
    /// Width of a token's vector, and of the result.
    pub hidden: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width inside the feed-forward block.
    pub intermediate: usize,
    /// Tokens a text is cut to, the special ones counted.
    pub max_tokens: usize,
    /// From tokens to text.
    pub pooling: Pooling,
    /// Whether the result has length one.
    pub normalize: bool,
    pub(crate) vocabulary: usize,
    pub(crate) positions: usize,
    pub(crate) token_types: usize,
    pub(crate) layer_norm_eps: f32,
    pub(crate) activation: Activation,
    pub(crate) lower_case: bool,
    pub(crate) prompt: String,
}

#[derive(Deserialize)]
struct ConfigFile {
    model_type: String,
    #[serde(default)]
    architectures: Vec<String>,
    num_hidden_layers: usize,
    hidden_size: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    #[serde(default = "gelu")]
    hidden_act: String,
    #[serde(default = "eps")]
    layer_norm_eps: f32,
    max_position_embeddings: usize,
    #[serde(default = "two")]
    type_vocab_size: usize,
    vocab_size: usize,
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

#[derive(Deserialize)]
struct ModuleEntry {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize, Default)]
struct TransformerFile {
    max_seq_length: Option<usize>,
    #[serde(default)]
    do_lower_case: bool,
}

#[derive(Deserialize, Default)]
struct TokenizerFile {
    // Written as 1e30 where there is no limit.
    model_max_length: Option<f64>,
}

#[derive(Deserialize, Default)]
struct PromptsFile {
    #[serde(default)]
    prompts: std::collections::BTreeMap<String, String>,
    default_prompt_name: Option<String>,
}

/// `pooling_mode` is the newer form, a name or a list of names; the flags are the older.
#[derive(Deserialize)]
struct PoolingFile {
    pooling_mode: Option<PoolingMode>,
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
    #[serde(default)]
    pooling_mode_max_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_sqrt_len_tokens: bool,
    #[serde(default)]
    pooling_mode_weightedmean_tokens: bool,
    #[serde(default)]
    pooling_mode_lasttoken: bool,
    #[serde(default = "yes")]
    include_prompt: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum PoolingMode {
    One(String),
    Several(Vec<String>),
}

fn yes() -> bool {
    true
}

impl Settings {
    /// Reads and checks a directory; the weights and the vocabulary are not opened.
    pub fn read(dir: &Path) -> Result<Self, LoadError> {
        let config_path = dir.join("config.json");
        let config: ConfigFile = read_json(&config_path)?;
        let activation = config.check(&config_path)?;
        let modules = Modules::read(dir)?;
        let transformer: TransformerFile =
            read_json_if_there(&modules.transformer.join("sentence_bert_config.json"))?;
        let tokenizer: TokenizerFile =
            read_json_if_there(&modules.transformer.join("tokenizer_config.json"))?;
        let prompt = read_prompt(dir, modules.include_prompt)?;

        let positions = config.max_position_embeddings;
        let declared = transformer.max_seq_length.unwrap_or_else(|| {
            // A float to integer cast saturates, which is what 1e30 asks for.
            tokenizer.model_max_length.map_or(positions, |length| length as usize)
        });
        Ok(Self {
            architecture: config.architectures.first().unwrap_or(&config.model_type).clone(),
            layers: config.num_hidden_layers,
            hidden: config.hidden_size,
            heads: config.num_attention_heads,
            intermediate: config.intermediate_size,
            max_tokens: declared.min(positions),
            pooling: modules.pooling,
            normalize: modules.normalize,
            vocabulary: config.vocab_size,
            positions,
            token_types: config.type_vocab_size,
            layer_norm_eps: config.layer_norm_eps,
            activation,
            lower_case: transformer.do_lower_case,
            prompt,
        })
    }
}

impl ConfigFile {
    fn check(&self, path: &Path) -> Result<Activation, LoadError> {
        let unsupported = |field: &str, found: &str, remedy: &str| {
            LoadError::unsupported(path, field, found, remedy)
        };
        if self.model_type != "bert" {
            return Err(unsupported("model_type", &self.model_type, "only bert is known here"));
        }
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
            return Err(unsupported(
                "hidden_size",
                &found,
                "it must divide by num_attention_heads",
            ));
        }
        match self.hidden_act.as_str() {
            "gelu" | "gelu_python" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
            "relu" => Ok(Activation::Relu),
            other => Err(unsupported("hidden_act", other, "gelu, gelu_new and relu are known")),
        }
    }
}

/// What `modules.json` lists: the transformer, a pooling, perhaps a normalisation.
struct Modules {
    transformer: PathBuf,
    pooling: Pooling,
    include_prompt: bool,
    normalize: bool,
}

impl Modules {
    fn read(dir: &Path) -> Result<Self, LoadError> {
        let path = dir.join("modules.json");
        // A bare BERT directory is averaged, as sentence-transformers does.
        let mut modules = Self {
            transformer: dir.to_owned(),
            pooling: Pooling::Mean,
            include_prompt: true,
            normalize: false,
        };
        if !path.exists() {
            return Ok(modules);
        }
        let entries: Vec<ModuleEntry> = read_json(&path)?;
        for (place, entry) in entries.iter().enumerate() {
            // The package path differs between versions, the class name does not.
            let class = entry.kind.rsplit('.').next().unwrap_or(&entry.kind);
            match (class, place) {
                ("Transformer", 0) if entry.path.is_empty() => {}
                ("Pooling", 1) => {
                    let path = dir.join(&entry.path).join("config.json");
                    let file: PoolingFile = read_json(&path)?;
                    modules.include_prompt = file.include_prompt;
                    modules.pooling = file.mode(&path)?;
                }
                ("Normalize", 2) => modules.normalize = true,
                _ => {
                    let field = format!("module {place}");
                    let found = format!("{} in {:?}", entry.kind, entry.path);
                    let remedy =
                        "known are Transformer in \"\", Pooling, and Normalize, in this order";
                    return Err(LoadError::unsupported(&path, &field, found, remedy));
                }
            }
        }
        Ok(modules)
    }
}

impl PoolingFile {
    fn mode(&self, path: &Path) -> Result<Pooling, LoadError> {
        let flags = [
            ("cls", self.pooling_mode_cls_token),
            ("max", self.pooling_mode_max_tokens),
            ("mean", self.pooling_mode_mean_tokens),
            ("mean_sqrt_len_tokens", self.pooling_mode_mean_sqrt_len_tokens),
            ("weightedmean", self.pooling_mode_weightedmean_tokens),
            ("lasttoken", self.pooling_mode_lasttoken),
        ];
        let mut names: Vec<String> = match &self.pooling_mode {
            Some(PoolingMode::One(name)) => vec![name.clone()],
            Some(PoolingMode::Several(names)) => names.clone(),
            None => {
                flags.iter().filter(|(_, on)| *on).map(|(name, _)| (*name).to_owned()).collect()
            }
        };
        if names.is_empty() {
            names.push("mean".into());
        }
        match names.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["mean"] => Ok(Pooling::Mean),
            ["cls"] => Ok(Pooling::Cls),
            ["max"] => Ok(Pooling::Max),
            _ => {
                let remedy = "one of mean, cls and max is known";
                Err(LoadError::unsupported(path, "pooling_mode", names.join("+"), remedy))
            }
        }
    }
}

fn read_prompt(dir: &Path, include_prompt: bool) -> Result<String, LoadError> {
    let path = dir.join("config_sentence_transformers.json");
    let file: PromptsFile = read_json_if_there(&path)?;
    let Some(name) = file.default_prompt_name else { return Ok(String::new()) };
    let Some(prompt) = file.prompts.get(&name) else {
        let remedy = "it must be a key of prompts";
        return Err(LoadError::unsupported(&path, "default_prompt_name", name, remedy));
    };
    if !include_prompt && !prompt.is_empty() {
        let remedy = "a prompt left out of the pooling (include_prompt) is not known";
        return Err(LoadError::unsupported(&path, "default_prompt_name", name, remedy));
    }
    Ok(prompt.clone())
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, LoadError> {
    let text = std::fs::read_to_string(path).map_err(|error| LoadError::io(path, error))?;
    serde_json::from_str(&text).map_err(|error| LoadError::malformed(path, error))
}

fn read_json_if_there<T: DeserializeOwned + Default>(path: &Path) -> Result<T, LoadError> {
    if path.exists() { read_json(path) } else { Ok(T::default()) }
}
