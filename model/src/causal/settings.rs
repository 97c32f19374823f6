//! What the small files of a generator say: its shape, where its answers end, how tokens are chosen,
//! and how a conversation is written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use super::Sampling;
use super::class::Class;
use super::config::Config;
use super::numbers::Numbers;
use crate::LoadError;
use crate::json::{Fields, is_there};
use crate::named::Named;

/// What says how tokens are chosen where a job does not.
pub(super) const GENERATION: &str = "generation_config.json";

/// A generator's shape and its way with texts.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub(crate) config: Config,
    /// How tokens are chosen where a job does not say.
    pub defaults: Defaults,
    /// What `generation_config.json` says besides that would change what is generated, and does
    /// nothing here.
    pub unheeded: Vec<String>,
    ends: Arc<[u32]>,
    /// What the tokens are called that a tokenizer has beside those of its texts.
    named: BTreeMap<u32, String>,
    /// Tokens by what they are for, such as `bos_token`.
    pub(crate) special: BTreeMap<String, String>,
    pub(crate) template: Option<Template>,
}

/// How the next token is chosen, as `generation_config.json` has it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Defaults {
    /// Whether by chance; else it is the likeliest.
    pub do_sample: bool,
    /// What logits are divided by, where it is by chance.
    pub temperature: f32,
    /// How many of the likeliest are candidates; all of them without it.
    pub top_k: Option<usize>,
    /// What the candidates have together of the probability.
    pub top_p: f32,
    /// See [`Sampling::repetition_penalty`].
    pub repetition_penalty: f32,
}

/// A chat template as it was found.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Template {
    pub(crate) path: PathBuf,
    pub(crate) source: String,
}

/// Fields of `generation_config.json` that change what is generated and are not known here, and the
/// number with which they do nothing; without one it is `null`, `false` or an empty list.
const UNHEEDED: [(&str, Option<f64>); 29] = [
    ("bad_words_ids", None),
    ("begin_suppress_tokens", None),
    ("constraints", None),
    ("diversity_penalty", Some(0.0)),
    ("dola_layers", None),
    ("encoder_no_repeat_ngram_size", Some(0.0)),
    ("encoder_repetition_penalty", Some(1.0)),
    ("epsilon_cutoff", Some(0.0)),
    ("eta_cutoff", Some(0.0)),
    ("exponential_decay_length_penalty", None),
    ("force_words_ids", None),
    ("forced_bos_token_id", None),
    ("forced_eos_token_id", None),
    ("guidance_scale", Some(1.0)),
    ("max_time", None),
    ("min_length", Some(0.0)),
    ("min_new_tokens", Some(0.0)),
    ("min_p", Some(0.0)),
    ("no_repeat_ngram_size", Some(0.0)),
    ("num_beam_groups", Some(1.0)),
    ("num_beams", Some(1.0)),
    ("num_return_sequences", Some(1.0)),
    ("penalty_alpha", Some(0.0)),
    ("sequence_bias", None),
    ("stop_strings", None),
    ("suppress_tokens", None),
    ("token_healing", None),
    ("top_h", None),
    ("typical_p", Some(1.0)),
];

impl Settings {
    /// Reads and checks a directory; the weights and the vocabulary are not opened.
    ///
    /// # Errors
    /// When a file is missing or is not what it should be: which, and what to do.
    pub fn read(dir: &Path) -> Result<Self, LoadError> {
        let path = dir.join("config.json");
        let config = Config::read(&path)?;
        let beside = |name| Fields::read_if_there(&dir.join(name));
        let (generation, tokenizer) = (beside(GENERATION)?, beside("tokenizer_config.json")?);
        let own = Class::of(dir, &tokenizer)?.map_or(&[][..], Class::tokens);
        let tokens = Named::read(dir, &tokenizer, own)?;
        let special = tokens.by_name();
        let mut numbers = Numbers::read(dir, &tokens)?;
        // A model that was taught to converse may only say in its tokenizer what ends an answer.
        let own =
            special.get("eos_token").map(|name| numbers.of(dir, &tokens, name)).transpose()?;
        let ends = ends(&generation, &Fields::read(&path)?)?;
        let mut ends: Vec<u32> = ends.into_iter().chain(own.flatten()).collect();
        ends.sort_unstable();
        ends.dedup();
        Ok(Self {
            config,
            defaults: Defaults::read(&generation)?,
            unheeded: unheeded(&generation),
            ends: ends.into(),
            named: numbers.into_names(),
            special,
            template: Template::find(dir, &tokenizer)?,
        })
    }

    /// The architecture's own name.
    pub fn architecture(&self) -> &str {
        &self.config.architecture
    }

    /// Transformer layers.
    pub fn layers(&self) -> usize {
        self.config.layers
    }

    /// Width between layers.
    pub fn hidden(&self) -> usize {
        self.config.hidden
    }

    /// How many tokens the model knows.
    pub fn vocabulary(&self) -> usize {
        self.config.vocabulary
    }

    /// Tokens that a prompt and its answer may have together.
    pub fn context(&self) -> usize {
        self.config.positions
    }

    /// Tokens that end an answer.
    pub fn ends(&self) -> &Arc<[u32]> {
        &self.ends
    }

    /// What such a token is called, where the tokenizer says.
    pub fn name_of(&self, token: u32) -> Option<&str> {
        self.named.get(&token).map(String::as_str)
    }

    /// Whether the model says how a conversation is written.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }
}

impl Defaults {
    fn read(generation: &Fields) -> Result<Self, LoadError> {
        let number = |name, within| -> Result<Option<f32>, LoadError> {
            Ok(generation.number(name, within)?.map(|it| it as f32))
        };
        Ok(Self {
            do_sample: generation.flag("do_sample")?,
            temperature: number("temperature", 0.0..=100.0)?.unwrap_or(1.0),
            // 0 is how transformers turns it off.
            top_k: generation.size(&["top_k"], 0..=usize::MAX)?.filter(|k| *k > 0),
            top_p: number("top_p", 0.0..=1.0)?.unwrap_or(1.0),
            repetition_penalty: number("repetition_penalty", 0.01..=100.0)?.unwrap_or(1.0),
        })
    }

    /// The same, for a job that says nothing.
    #[must_use]
    pub fn sampling(&self) -> Sampling {
        Sampling {
            temperature: if self.do_sample { self.temperature } else { 0.0 },
            top_k: self.top_k,
            top_p: self.top_p,
            repetition_penalty: self.repetition_penalty,
            ..Sampling::default()
        }
    }
}

impl Template {
    /// In a file of its own, or as a field of another; of several by name it is the default.
    fn find(dir: &Path, tokenizer: &Fields) -> Result<Option<Self>, LoadError> {
        let path = dir.join("chat_template.jinja");
        if is_there(&path)? {
            let source = std::fs::read_to_string(&path);
            let source = source.map_err(|error| LoadError::io(&path, error))?;
            return Ok(Some(Self { path, source }));
        }
        let alone = Fields::read_if_there(&dir.join("chat_template.json"))?;
        let found = Self::field(&alone)?;
        if found.is_some() { Ok(found) } else { Self::field(tokenizer) }
    }

    fn field(fields: &Fields) -> Result<Option<Self>, LoadError> {
        const NAME: &str = "chat_template";
        let of =
            |source: &str| Some(Self { path: fields.path().to_owned(), source: source.to_owned() });
        match fields.value(NAME) {
            None => Ok(None),
            Some(Value::String(source)) => Ok(of(source)),
            Some(Value::Array(list)) => {
                let text = |one: &Value, name: &str| one.get(name)?.as_str().map(str::to_owned);
                let all = list.iter().map(|one| Some((text(one, "name")?, text(one, "template")?)));
                let Some(all) = all.collect::<Option<BTreeMap<_, _>>>() else {
                    let remedy = "each of the list must have a name and a template";
                    return Err(fields.wrong(NAME, "a list", remedy));
                };
                let names = || all.keys().cloned().collect::<Vec<_>>().join(", ");
                let missing = || fields.wrong(NAME, names(), "one of them must be called default");
                all.get("default").map(|source| of(source)).ok_or_else(missing)
            }
            Some(_) => Err(fields.wrong(NAME, "of another type", "it must be a text or a list")),
        }
    }
}

/// The names of the fields that would do something, and do not here.
pub(super) fn unheeded(generation: &Fields) -> Vec<String> {
    let does = |(name, idle): &(&str, Option<f64>)| match generation.value(name) {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Array(list)) => !list.is_empty(),
        Some(Value::Object(map)) => !map.is_empty(),
        Some(value) => value.as_f64().is_none() || value.as_f64() != *idle,
    };
    UNHEEDED.iter().filter(|one| does(one)).map(|(name, _)| (*name).to_owned()).collect()
}

/// The tokens that end an answer as far as the model itself says.
fn ends(generation: &Fields, config: &Fields) -> Result<Vec<u32>, LoadError> {
    const NAME: &str = "eos_token_id";
    let ends = match generation.ids(NAME)? {
        // What a class of transformers has where this is silent ends no answer there either.
        None => config.ids(NAME)?,
        ends => ends,
    };
    Ok(ends.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
    }

    /// The settings of a tiny model with other files beside its configuration.
    fn with(files: &[(&str, Value)]) -> Result<Settings, String> {
        let dir = tempfile::tempdir().unwrap();
        let config = std::fs::read(fixture("tiny-llama/config.json")).unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        for (name, content) in files {
            let text = content.as_str().map_or_else(|| content.to_string(), str::to_owned);
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        Settings::read(dir.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_directory_says_where_answers_end_and_what_ends_are_called() {
        let settings = Settings::read(&fixture("tiny-llama")).unwrap();
        assert_eq!(settings.ends()[..], [0, 2]);
        assert_eq!(settings.name_of(2), Some("<|im_end|>"));
        assert_eq!((settings.context(), settings.vocabulary()), (256, 384));
        assert!(settings.has_template());
    }

    #[test]
    fn ends_are_those_of_all_who_say_something() {
        let generation = |ends: Value| ("generation_config.json", json!({"eos_token_id": ends}));
        let tokenizer = json!({
            "eos_token": {"content": "<end>"},
            "added_tokens_decoder": {"7": {"content": "<end>"}, "8": {"content": "<other>"}},
        });
        let tokenizer = ("tokenizer_config.json", tokenizer);
        for (files, expected) in [
            (vec![], vec![2]),
            (vec![generation(json!(5))], vec![5]),
            (vec![generation(json!([5, 4, 5]))], vec![4, 5]),
            (vec![generation(json!(null)), tokenizer.clone()], vec![2, 7]),
            (vec![tokenizer], vec![2, 7]),
        ] {
            assert_eq!(with(&files).unwrap().ends()[..], expected, "{files:?}");
        }
        let error = with(&[generation(json!("</s>"))]).unwrap_err();
        assert!(error.contains("eos_token_id is \"</s>\"; it must be the number"), "{error}");
    }

    #[test]
    fn an_end_that_only_an_older_file_or_the_vocabulary_numbers_is_one() {
        let map = ("special_tokens_map.json", json!({"eos_token": {"content": "<|im_end|>"}}));
        let numbers = ("added_tokens.json", json!({"<|im_end|>": 32000}));
        let added = |id: u32| json!([{"id": id, "content": "<|im_end|>"}]);
        let words = |vocab: Value, added: Value| {
            ("tokenizer.json", json!({"added_tokens": added, "model": {"vocab": vocab}}))
        };
        let config = json!({"eos_token": "<|im_end|>", "added_tokens_decoder": {
            "7": {"content": "<other>"}}});
        for (files, expected) in [
            (vec![map.clone()], vec![2]),
            (vec![map.clone(), numbers.clone()], vec![2, 32000]),
            // The older file does not count for what the tokenizer has.
            (vec![map.clone(), numbers.clone(), words(json!({}), added(9))], vec![2, 9]),
            (vec![map.clone(), numbers, words(json!({"<|im_end|>": 8}), json!([]))], vec![2, 8]),
            (vec![map, words(json!([["a", 0.0], ["<|im_end|>", -1.5]]), json!([]))], vec![1, 2]),
            (
                vec![("tokenizer_config.json", config), words(json!({"<|im_end|>": 8}), added(9))],
                vec![2, 9],
            ),
        ] {
            let settings = with(&files).unwrap();
            assert_eq!(settings.ends()[..], expected, "{files:?}");
            let own = *expected.iter().find(|id| **id != 2).unwrap_or(&0);
            assert_eq!(settings.name_of(own), (own > 0).then_some("<|im_end|>"), "{files:?}");
        }
    }

    /// As transformers generates: it reads `config.json` for this, and asks no class.
    #[test]
    fn an_end_that_only_the_class_of_a_model_has_ends_no_answer() {
        for name in ["tiny-llama", "tiny-mistral", "tiny-qwen2", "tiny-qwen3"] {
            for value in [None, Some(Value::Null)] {
                let dir = tempfile::tempdir().unwrap();
                let config = std::fs::read(fixture(name).join("config.json")).unwrap();
                let mut config: Value = serde_json::from_slice(&config).unwrap();
                let fields = config.as_object_mut().unwrap();
                fields.remove("eos_token_id");
                fields.extend(value.map(|value| ("eos_token_id".to_owned(), value)));
                std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
                assert!(Settings::read(dir.path()).unwrap().ends().is_empty(), "{name}");
            }
        }
    }

    /// The numbers are those of transformers.
    #[test]
    fn an_end_that_no_file_numbers_has_the_number_that_the_tokenizer_gives_it() {
        let whole = std::fs::read(fixture("tiny-llama/tokenizer.json")).unwrap();
        let whole: Value = serde_json::from_slice(&whole).unwrap();
        let named = |name: &str| json!({"content": name, "special": true});
        let config = |fields: Value| vec![("tokenizer_config.json", fields)];
        let map = |fields: Value| vec![("special_tokens_map.json", fields)];
        let older = ("added_tokens.json", json!({"<x>": 384}));
        let numbered = json!({"384": named("<x>")});
        for (mut files, expected) in [
            (map(json!({"eos_token": "<end>", "pad_token": "<other>"})), 384),
            (map(json!({"eos_token": "<end>", "bos_token": "<begin>"})), 385),
            (config(json!({"eos_token": "<end>", "bos_token": "<end>"})), 384),
            (config(json!({"eos_token": "<end>", "bos_token": "a"})), 384),
            ([config(json!({"eos_token": "<end>"})), vec![older]].concat(), 385),
            (config(json!({"eos_token": "<end>", "added_tokens_decoder": {}})), 384),
            (
                config(json!({
                    "eos_token": "<end>", "bos_token": "<begin>", "added_tokens_decoder": numbered,
                })),
                386,
            ),
            (
                config(json!({
                    "eos_token": "<end>", "bos_token": "<x>", "added_tokens_decoder": numbered,
                })),
                385,
            ),
        ] {
            files.push(("tokenizer.json", whole.clone()));
            let settings = with(&files).unwrap();
            assert_eq!(settings.ends()[..], [2, expected], "{:?}", files[0]);
            assert_eq!(settings.name_of(expected), Some("<end>"), "{:?}", files[0]);
        }
    }

    #[test]
    fn ends_are_named_by_the_tokenizer_where_the_small_file_names_none() {
        let named = json!({"added_tokens": [{"id": 9, "content": "<end>"}]});
        let tokenizer = ("tokenizer.json", named);
        for more in [json!({}), json!({"added_tokens_decoder": {}})] {
            let mut config = json!({"eos_token": "<end>"});
            config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let settings = with(&[("tokenizer_config.json", config), tokenizer.clone()]).unwrap();
            assert_eq!((&settings.ends()[..], settings.name_of(9)), (&[2, 9][..], Some("<end>")));
        }
    }

    #[test]
    fn tokens_are_chosen_by_chance_only_where_the_model_says_so() {
        let of = |generation: Value| {
            with(&[("generation_config.json", generation)]).unwrap().defaults.sampling()
        };
        let plain = Sampling::default();
        assert_eq!(of(json!({})), plain);
        assert_eq!(of(json!({"temperature": 0.6})), plain);
        let chance = json!({"do_sample": true, "temperature": 0.5, "top_k": 20, "top_p": 0.75,
                            "repetition_penalty": 1.25});
        let expected = Sampling {
            temperature: 0.5,
            top_k: Some(20),
            top_p: 0.75,
            repetition_penalty: 1.25,
            ..plain
        };
        assert_eq!(of(chance), expected);
        assert_eq!(
            of(json!({"do_sample": true, "top_k": 0})),
            Sampling { temperature: 1.0, ..plain }
        );
        for wrong in [json!({"top_p": 1.5}), json!({"do_sample": 1}), json!({"top_k": -1})] {
            let error = with(&[("generation_config.json", wrong)]).unwrap_err();
            assert!(error.contains("generation_config.json: "), "{error}");
        }
    }

    #[test]
    fn what_would_change_an_answer_and_does_not_is_known_by_its_name() {
        let of = |generation: Value| {
            with(&[("generation_config.json", generation)]).unwrap().unheeded.join(" ")
        };
        // What real files say without asking for anything.
        let idle = json!({
            "_from_model_config": true, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
            "do_sample": true, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "max_length": 20,
            "max_new_tokens": 512, "repetition_penalty": 1.1, "transformers_version": "5.24.0",
            "num_beams": 1, "min_p": null, "typical_p": 1.0, "no_repeat_ngram_size": 0,
            "suppress_tokens": [], "min_p": 0.0, "length_penalty": 1.0, "use_cache": true,
            "penalty_alpha": null, "token_healing": false, "sequence_bias": {},
        });
        assert_eq!(of(idle), "");
        assert_eq!(of(json!({})), "");
        let all = json!({
            "min_p": 0.05, "no_repeat_ngram_size": 3, "suppress_tokens": [1], "typical_p": 0.9,
            "bad_words_ids": [[1, 2]], "num_beams": 4, "stop_strings": "end", "top_h": 0.3,
            "forced_eos_token_id": 2, "watermarking": 1,
        });
        let expected = "bad_words_ids forced_eos_token_id min_p no_repeat_ngram_size num_beams \
                        stop_strings suppress_tokens top_h typical_p";
        assert_eq!(of(all), expected);
    }

    #[test]
    fn a_template_is_found_wherever_models_keep_it() {
        let jinja = ("chat_template.jinja", json!("in a file"));
        let alone = ("chat_template.json", json!({"chat_template": "in json"}));
        let config =
            |template: Value| ("tokenizer_config.json", json!({"chat_template": template}));
        let named = json!([
            {"name": "tool_use", "template": "for tools"},
            {"name": "default", "template": "the default"},
        ]);
        for (files, expected) in [
            (vec![], None),
            (vec![config(json!(null))], None),
            (vec![config(json!("a field"))], Some("a field")),
            (vec![config(named.clone())], Some("the default")),
            (vec![alone.clone(), config(json!("a field"))], Some("in json")),
            (vec![jinja, alone, config(named)], Some("in a file")),
        ] {
            let settings = with(&files).unwrap();
            let found = settings.template.as_ref().map(|template| template.source.as_str());
            assert_eq!((found, settings.has_template()), (expected, expected.is_some()));
        }
        for (wrong, says) in [
            (json!([{"name": "a", "template": "x"}]), "chat_template is a; one of them must be"),
            (json!([{"name": "a"}]), "each of the list must have a name and a template"),
            (json!({"default": "x"}), "it must be a text or a list"),
        ] {
            let error = with(&[config(wrong)]).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn special_tokens_are_by_the_files_that_count_in_transformers() {
        let map = json!({"pad_token": "<pad>", "bos_token": "<other>", "sep_token": null});
        let map = ("special_tokens_map.json", map);
        let tokenizer = |more: Value| {
            let mut config = json!({
                "bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": null,
                "sep_token": "<sep>", "image_token": "<image>",
            });
            config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            ("tokenizer_config.json", config)
        };
        let all = |bos: &str, more: Value| {
            let mut all = json!({"bos_token": bos, "eos_token": "</s>", "image_token": "<image>"});
            all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            all
        };
        let llama = json!({"tokenizer_class": "LlamaTokenizer", "bos_token": "<b>"});
        for (files, expected) in [
            (vec![], json!({})),
            (vec![tokenizer(json!({}))], all("<s>", json!({"sep_token": "<sep>"}))),
            (
                vec![tokenizer(json!({})), map.clone()],
                all("<other>", json!({"pad_token": "<pad>"})),
            ),
            (
                vec![tokenizer(json!({"added_tokens_decoder": {}})), map],
                all("<s>", json!({"sep_token": "<sep>"})),
            ),
            (
                vec![("tokenizer_config.json", llama)],
                json!({"bos_token": "<b>", "eos_token": "</s>", "unk_token": "<unk>"}),
            ),
        ] {
            assert_eq!(json!(with(&files).unwrap().special), expected, "{files:?}");
        }
        let error = with(&[("tokenizer_config.json", json!({"eos_token": 2}))]).unwrap_err();
        assert!(error.contains("tokenizer_config.json: eos_token is another; it"), "{error}");
    }
}
