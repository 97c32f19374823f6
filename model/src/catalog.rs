//! Which models the code knows, and what a model directory is.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::bert::{self, Family, MODEL_TYPES, Problem, Settings, Task};
use crate::causal::{self, Defaults};
use crate::checkpoint::{self, Checkpoint};
use crate::json::{Fields, is_there};
use crate::safetensors::Entry;
use crate::{LoadError, sentinel};

/// A model the code knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ModelKind {
    /// A sentence encoder of the BERT family: [`crate::bert`].
    Encoder,
    /// A classifier of texts, of the same family.
    Classifier,
    /// A classifier of pairs: how well a document answers a query.
    Reranker,
    /// A classifier of the tokens of a text.
    Tagger,
    /// A language model that goes on with a text: [`crate::causal`].
    Generator,
    /// An anomaly detector: [`crate::sentinel`].
    Sentinel,
}

impl std::fmt::Display for ModelKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Encoder => "encoder",
            Self::Classifier => "classifier",
            Self::Reranker => "reranker",
            Self::Tagger => "tagger",
            Self::Generator => "generator",
            Self::Sentinel => "sentinel",
        })
    }
}

/// Says from `config.json` which code runs the model in this directory.
pub fn recognise(dir: &Path) -> Result<ModelKind, LoadError> {
    let path = dir.join("config.json");
    if !path.exists() {
        let what = "has no config.json; name a directory in the layout of Hugging Face, such as \
                    `ebb model pull` prints";
        return Err(LoadError::malformed(dir, what));
    }
    let fields = Fields::read(&path)?;
    match fields.text(&["model_type"])? {
        Some(sentinel::MODEL_TYPE) => Ok(ModelKind::Sentinel),
        Some(name) if Family::of(name).is_some() => Ok(match Task::read(&fields)? {
            Task::Embedding => ModelKind::Encoder,
            Task::Classification => ModelKind::Classifier,
            Task::Reranking => ModelKind::Reranker,
            Task::Tagging => ModelKind::Tagger,
        }),
        Some(name) if causal::MODEL_TYPES.contains(&name) => {
            // What it checks besides is asked for when it is loaded; with another head it is no generator.
            causal::check_head(&fields)?;
            Ok(ModelKind::Generator)
        }
        other => {
            let architectures = fields.texts("architectures")?.join(", ");
            let found = match other {
                Some(name) if architectures.is_empty() => name.to_owned(),
                Some(name) => format!("{name} ({architectures})"),
                None if architectures.is_empty() => "missing".to_owned(),
                None => format!("missing ({architectures})"),
            };
            let known = [&MODEL_TYPES[..], &causal::MODEL_TYPES].concat().join(", ");
            let remedy = format!("known are {known} and {}", sentinel::MODEL_TYPE);
            Err(fields.wrong("model_type", found, &remedy))
        }
    }
}

/// What `ebb model info` prints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelInfo {
    /// The code that runs it.
    pub kind: ModelKind,
    /// The architecture's own name.
    pub architecture: String,
    /// Transformer or dense layers.
    pub layers: usize,
    /// Width between layers.
    pub hidden: usize,
    /// Numbers in the weights.
    pub parameters: u64,
    /// Tokens a text is cut to, or has with its answer, or readings in a window.
    pub max_tokens: usize,
    /// How tokens become a text's vector, in an encoder.
    pub pooling: Option<String>,
    /// Whether its vectors are made of length one, in an encoder.
    pub normalize: Option<bool>,
    /// What may stand before a text, by name, in an encoder.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub prompts: BTreeMap<String, String>,
    /// The one that stands there where a job names none.
    pub default_prompt: Option<String>,
    /// What becomes of a head's numbers: scores.
    pub problem: Option<Problem>,
    /// A classifier's labels.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Length of the result's vector: a number per label, in a classifier; none in a generator.
    pub dimensions: Option<usize>,
    /// What a generator says of its texts.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub generation: Option<GenerationInfo>,
    /// The files read to run it.
    pub files: Vec<FileInfo>,
}

/// What a generator says of its texts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GenerationInfo {
    /// How many tokens it knows.
    pub vocabulary: usize,
    /// Whether it says how a conversation is written.
    pub chat_template: bool,
    /// How tokens are chosen where a job does not say.
    pub sampling: Defaults,
    /// Fields of `generation_config.json` that would change its answers, and do nothing here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unheeded: Vec<String>,
    /// Tokens that end an answer.
    pub end_tokens: Vec<EndToken>,
}

/// A token that ends an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EndToken {
    /// Its number.
    pub id: u32,
    /// What it is called, where the tokenizer says.
    pub token: Option<String>,
}

/// A file of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileInfo {
    /// Its path in the directory.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its hash, in hex.
    pub sha256: String,
}

/// What cuts texts into tokens, in a model of texts.
pub(crate) const TOKENIZER: &str = "tokenizer.json";

/// What a token of it may be for, as the files beside it name it.
pub(crate) const PURPOSES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The files that a model is read from beside its weights and its modules, where it has them.
pub(crate) const FILES: [&str; 17] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "config_sentence_transformers.json",
    "generation_config.json",
    "modules.json",
    "sentence_albert_config.json",
    "sentence_bert_config.json",
    "sentence_camembert_config.json",
    "sentence_distilbert_config.json",
    "sentence_roberta_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
    "special_tokens_map.json",
    TOKENIZER,
    "tokenizer_config.json",
];

/// Classes that cut texts in Python alone, and so have no such file.
#[cfg(feature = "cpu")]
const IN_PYTHON: [&str; 3] = ["BertJapaneseTokenizer", "BertweetTokenizer", "PhobertTokenizer"];

/// Reads what cuts texts into tokens.
///
/// # Errors
/// When it is not there, with the way to make it where there is one.
#[cfg(feature = "cpu")]
pub(crate) fn read_tokenizer(dir: &Path) -> Result<Vec<u8>, LoadError> {
    const FIELD: &[&str] = &["tokenizer_class"];
    let path = dir.join(TOKENIZER);
    if !is_there(&path)? {
        for name in ["tokenizer_config.json", "config.json"] {
            let fields = Fields::read_if_there(&dir.join(name))?;
            if let Some(class) = fields.text(FIELD)?.filter(|class| IN_PYTHON.contains(class)) {
                let remedy = "it cuts texts in Python alone and makes no tokenizer.json, without \
                              which no model of texts is served; take another model";
                return Err(fields.wrong(FIELD[0], class, remedy));
            }
        }
    }
    std::fs::read(&path).map_err(|error| LoadError::io(&path, error))
}

impl ModelInfo {
    /// Reads a model directory; hashes every file of it.
    pub fn read(dir: &Path) -> Result<Self, LoadError> {
        let kind = recognise(dir)?;
        let weights = Checkpoint::open(dir)?;
        if kind == ModelKind::Generator {
            let settings = causal::check_texts(dir)?;
            return Ok(Self::of_generator(&settings, n_parameters(&weights), files_of(dir, &[])?));
        }
        if kind != ModelKind::Sentinel {
            // Without one it is still told what the model is.
            let tokenizer = bert::tokenizer_file(dir)?;
            let settings =
                if tokenizer.is_some() { bert::check_texts(dir)? } else { Settings::read(dir)? };
            settings.check_labels(&weights)?;
            let mut parameters = n_parameters(&weights);
            for layer in &settings.projections {
                parameters =
                    parameters.saturating_add(n_parameters(&Checkpoint::open(layer.folder())?));
            }
            let mut others = settings.module_files().to_vec();
            others.extend(tokenizer.map(str::to_owned));
            let files = files_of(dir, &others)?;
            return Ok(Self::of_text(kind, &settings, parameters, files));
        }
        let config = sentinel::Config::read(dir)?;
        Ok(Self {
            kind,
            architecture: "autoencoder".into(),
            layers: sentinel::LAYERS,
            hidden: config.hidden,
            parameters: n_parameters(&weights),
            max_tokens: config.window,
            pooling: None,
            normalize: None,
            prompts: BTreeMap::new(),
            default_prompt: None,
            problem: None,
            labels: Vec::new(),
            dimensions: Some(1),
            generation: None,
            files: files_of(dir, &[])?,
        })
    }

    fn of_generator(settings: &causal::Settings, parameters: u64, files: Vec<FileInfo>) -> Self {
        let end = |id: &u32| EndToken { id: *id, token: settings.name_of(*id).map(str::to_owned) };
        Self {
            kind: ModelKind::Generator,
            architecture: settings.architecture().to_owned(),
            layers: settings.layers(),
            hidden: settings.hidden(),
            parameters,
            max_tokens: settings.context(),
            pooling: None,
            normalize: None,
            prompts: BTreeMap::new(),
            default_prompt: None,
            problem: None,
            labels: Vec::new(),
            dimensions: None,
            generation: Some(GenerationInfo {
                vocabulary: settings.vocabulary(),
                chat_template: settings.has_template(),
                sampling: settings.defaults,
                unheeded: settings.unheeded.clone(),
                end_tokens: settings.ends().iter().map(end).collect(),
            }),
            files,
        }
    }

    fn of_text(
        kind: ModelKind,
        settings: &Settings,
        parameters: u64,
        files: Vec<FileInfo>,
    ) -> Self {
        let is_encoder = kind == ModelKind::Encoder;
        let n_labels = settings.labels().len();
        Self {
            kind,
            architecture: settings.architecture().to_owned(),
            layers: settings.layers(),
            hidden: settings.hidden(),
            parameters,
            max_tokens: settings.max_tokens,
            pooling: is_encoder.then(|| settings.pooling.to_string()),
            normalize: is_encoder.then_some(settings.normalize),
            prompts: settings.prompts().clone(),
            default_prompt: settings.default_prompt().map(str::to_owned),
            problem: (!is_encoder).then(|| settings.problem()),
            labels: settings.labels().to_vec(),
            dimensions: Some(if is_encoder { settings.dimensions() } else { n_labels }),
            generation: None,
            files,
        }
    }
}

/// Numbers in the weights. Positions are stored as integers beside them by some writers.
fn n_parameters(weights: &Checkpoint) -> u64 {
    let floats = weights.entries().map(|(_, entry)| entry).filter(|it| it.dtype.contains('F'));
    floats.filter_map(Entry::n_elements).fold(0, u64::saturating_add)
}

/// Hashes the files that a model is read from, the weights last.
fn files_of(dir: &Path, others: &[String]) -> Result<Vec<FileInfo>, LoadError> {
    // A pooling may lie in the model's own folder, and its file is one of those of all then.
    let others = others.iter().filter(|name| !FILES.contains(&name.as_str()));
    let mut names = Vec::new();
    for name in FILES {
        if is_there(&dir.join(name))? {
            names.push(name.to_owned());
        }
    }
    names.extend(others.cloned());
    names.extend(checkpoint::files(dir)?);
    let file = |name: String| {
        let path = dir.join(&name);
        let (bytes, sha256) = hash(&path).map_err(|error| LoadError::io(&path, error))?;
        Ok(FileInfo { name, bytes, sha256 })
    };
    names.into_iter().map(file).collect()
}

/// The size and the SHA-256 of a file.
pub(crate) fn hash(path: &Path) -> std::io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        bytes += n as u64;
    }
    Ok((bytes, hex(&hasher.finalize())))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("writing to a string");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_recognised_or_named_with_what_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let told = recognise(dir.path()).unwrap_err().to_string();
        assert!(told.contains("has no config.json; name a directory"), "{told}");
        let check = |config: &str| {
            std::fs::write(dir.path().join("config.json"), config).unwrap();
            recognise(dir.path()).map_err(|error| error.to_string())
        };
        for name in MODEL_TYPES {
            let config = format!(r#"{{"model_type": "{name}"}}"#);
            assert_eq!(check(&config), Ok(ModelKind::Encoder));
        }
        assert_eq!(check(r#"{"model_type": "ebb-sentinel"}"#), Ok(ModelKind::Sentinel));
        for (name, architecture) in [
            ("llama", "LlamaForCausalLM"),
            ("mistral", "MistralForCausalLM"),
            ("qwen2", "Qwen2ForCausalLM"),
            ("qwen3", "Qwen3ForCausalLM"),
        ] {
            let config =
                format!(r#"{{"model_type": "{name}", "architectures": ["{architecture}"]}}"#);
            assert_eq!(check(&config), Ok(ModelKind::Generator));
        }
        for (config, says) in [
            (
                r#"{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}"#,
                "model_type is gpt2 (GPT2LMHeadModel); known are bert, distilbert, roberta, \
                 xlm-roberta, llama, mistral, qwen2, qwen3 and ebb-sentinel",
            ),
            (
                r#"{"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}"#,
                "architectures is LlamaForSequenceClassification; LlamaForCausalLM is known",
            ),
            (r#"{"model_type": "qwen2"}"#, "architectures is missing"),
            (r#"{"model_type": "t5"}"#, "model_type is t5; known are"),
            (r#"{"architectures": ["X"]}"#, "model_type is missing (X); known are"),
            ("{}", "model_type is missing; known are"),
            ("[", "config.json: EOF"),
        ] {
            let error = check(config).expect_err(says);
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn a_missing_tokenizer_is_told_with_the_way_to_make_it_where_there_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let told = || read_tokenizer(dir.path()).unwrap_err().to_string();
        let way = "by AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)";
        assert!(told().contains("tokenizer.json: ") && told().contains(way), "{}", told());
        write("config.json", r#"{"tokenizer_class": "BertJapaneseTokenizer"}"#);
        let says = "config.json: tokenizer_class is BertJapaneseTokenizer; it cuts texts in Python";
        assert!(told().contains(says), "{}", told());
        write("tokenizer_config.json", r#"{"tokenizer_class": "PhobertTokenizer"}"#);
        let says = "tokenizer_config.json: tokenizer_class is PhobertTokenizer; it cuts texts in";
        assert!(told().contains(says), "{}", told());
        // With the file it does not matter who else could cut a text.
        write(TOKENIZER, "{}");
        assert_eq!(read_tokenizer(dir.path()).unwrap(), b"{}");
    }

    #[test]
    fn the_info_of_a_model_is_read_from_its_files() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-bert");
        let info = ModelInfo::read(&dir).unwrap();
        assert_eq!((info.layers, info.hidden, info.max_tokens), (2, 32, 512));
        assert_eq!(info.pooling.as_deref(), Some("mean"));
        assert_eq!(info.architecture, "BertModel");
        assert_eq!((info.normalize, info.problem, &info.default_prompt), (Some(true), None, &None));
        let prompts: Vec<_> = info.prompts.iter().map(|(name, text)| [name, text]).collect();
        assert_eq!(prompts, [["document", ""], ["query", ""]]);
        let weights = info.files.iter().find(|file| file.name == "model.safetensors").unwrap();
        assert_eq!(weights.bytes, std::fs::metadata(dir.join("model.safetensors")).unwrap().len());
        assert_eq!(weights.sha256.len(), 64);
        assert!(info.parameters * 4 < weights.bytes && info.parameters > 30_000);
    }

    #[test]
    fn an_encoder_tells_its_default_prompt_and_that_its_vectors_have_any_length() {
        let dir = tempfile::tempdir().unwrap();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-distilbert");
        std::fs::create_dir(dir.path().join("1_Pooling")).unwrap();
        for name in ["config.json", "model.safetensors", "modules.json", "1_Pooling/config.json"] {
            std::fs::copy(from.join(name), dir.path().join(name)).unwrap();
        }
        let prompts = r#"{"prompts": {"a": "", "b": "find: "}, "default_prompt_name": "b"}"#;
        std::fs::write(dir.path().join("config_sentence_transformers.json"), prompts).unwrap();
        let info = ModelInfo::read(dir.path()).unwrap();
        assert_eq!((info.normalize, info.default_prompt.as_deref()), (Some(false), Some("b")));
        assert_eq!(info.prompts["b"], "find: ");
    }

    #[test]
    fn a_head_tells_what_becomes_of_its_numbers() {
        for (name, problem) in [
            ("tiny-classes-bert", Problem::SingleLabel),
            ("tiny-classes-roberta", Problem::MultiLabel),
            ("tiny-rerank-bert", Problem::MultiLabel),
            ("tiny-tags-bert", Problem::SingleLabel),
        ] {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
            let info = ModelInfo::read(&dir).unwrap();
            assert_eq!((info.problem, info.normalize), (Some(problem), None), "{name}");
        }
    }

    #[test]
    fn a_classifier_tells_its_labels_instead_of_a_pooling() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-classes-roberta");
        let info = ModelInfo::read(&dir).unwrap();
        assert_eq!((info.kind, info.dimensions), (ModelKind::Classifier, Some(4)));
        assert_eq!(info.labels, ["noise", "heat", "wear", "leak"]);
        assert_eq!((info.pooling, info.max_tokens), (None, 64));
    }

    #[test]
    fn a_generator_tells_its_way_with_texts() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-qwen3");
        let info = ModelInfo::read(&dir).unwrap();
        assert_eq!(
            (info.kind, info.max_tokens, info.dimensions),
            (ModelKind::Generator, 256, None)
        );
        let told = serde_json::to_value(&info).unwrap();
        assert_eq!((&told["vocabulary"], &told["chat_template"]), (&384.into(), &true.into()));
        assert_eq!(told["sampling"]["do_sample"], false);
        let ends = serde_json::json!([
            {"id": 0, "token": "<|endoftext|>"}, {"id": 2, "token": "<|im_end|>"},
        ]);
        assert_eq!(told["end_tokens"], ends);
        assert!(info.files.iter().any(|file| file.name == "generation_config.json"));
    }
}
