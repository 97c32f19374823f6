//! What `tokenizer_config.json` says of the way to cut a text, and what of it counts: transformers'
//! classes of a family make the first steps of a tokenizer anew, whatever `tokenizer.json` has.

use std::path::Path;

use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::{
    NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TruncationDirection,
};

use super::Family;
use crate::catalog::TOKENIZER;
use crate::json::Fields;
use crate::{LoadError, added};

/// The file.
pub(super) const NAME: &str = "tokenizer_config.json";

/// Who cuts a text in transformers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// `BertTokenizer` and `DistilBertTokenizer`: a `BertNormalizer` of three fields.
    Bert {
        /// Whether the model is told to which text a token belongs.
        with_types: bool,
    },
    /// `RobertaTokenizer`: the pre-tokenizer has its field.
    Roberta,
    /// `XLMRobertaTokenizer`: the same, of another pre-tokenizer.
    XlmRoberta,
    /// Takes `tokenizer.json` as it is. Under this name version 5 tells no model to which text a token
    /// belongs, unless the file names that input.
    Backend,
    /// As it is too. Version 4, which wrote this name, told.
    Other,
}

/// The fields that a tokenizer depends on beside `tokenizer.json`.
#[derive(Debug)]
pub(super) struct TokenizerConfig {
    fields: Fields,
    class: Class,
}

impl Class {
    /// The tokens that it has where the file does not say otherwise.
    fn tokens(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Bert { .. } => &[
                ("unk_token", "[UNK]"),
                ("sep_token", "[SEP]"),
                ("pad_token", "[PAD]"),
                ("cls_token", "[CLS]"),
                ("mask_token", "[MASK]"),
            ],
            Self::Roberta | Self::XlmRoberta => &[
                ("bos_token", "<s>"),
                ("eos_token", "</s>"),
                ("unk_token", "<unk>"),
                ("sep_token", "</s>"),
                ("pad_token", "<pad>"),
                ("cls_token", "<s>"),
                ("mask_token", "<mask>"),
            ],
            Self::Backend | Self::Other => &[],
        }
    }
}

impl TokenizerConfig {
    /// Reads the file, where there is one, and from it or from `config.json` whose tokenizer it is.
    pub(super) fn read(dir: &Path, family: Family) -> Result<Self, LoadError> {
        let fields = Fields::read_if_there(&dir.join(NAME))?;
        let config = Fields::read(&dir.join("config.json"))?;
        let field = &["tokenizer_class"];
        let name = match fields.text(field)? {
            None => config.text(field)?,
            name => name,
        };
        let is_xlm = config.text(&["model_type"])? == Some("xlm-roberta");
        let class = match name.map(|name| name.strip_suffix("Fast").unwrap_or(name)) {
            Some("BertTokenizer") => Class::Bert { with_types: true },
            Some("DistilBertTokenizer") => Class::Bert { with_types: false },
            Some("RobertaTokenizer") => Class::Roberta,
            Some("XLMRobertaTokenizer") => Class::XlmRoberta,
            Some("TokenizersBackend") => Class::Backend,
            Some(_) => Class::Other,
            // What transformers takes for the type of the model.
            None if is_xlm => Class::XlmRoberta,
            None => match family {
                Family::Bert | Family::DistilBert => Class::Bert { with_types: true },
                Family::Roberta => Class::Roberta,
            },
        };
        Ok(Self { fields, class })
    }

    /// What stands in the file.
    pub(super) fn fields(&self) -> &Fields {
        &self.fields
    }

    /// Makes of a tokenizer what transformers makes of it.
    pub(super) fn apply(
        &self,
        inner: &mut tokenizers::Tokenizer,
        dir: &Path,
    ) -> Result<(), LoadError> {
        match self.class {
            Class::Bert { .. } => self.apply_normalizer(inner, dir)?,
            Class::Roberta | Class::XlmRoberta => self.apply_prefix_space(inner, dir)?,
            Class::Backend | Class::Other => {}
        }
        added::add(inner, dir, &self.fields, self.class.tokens())
    }

    fn apply_normalizer(
        &self,
        inner: &mut tokenizers::Tokenizer,
        dir: &Path,
    ) -> Result<(), LoadError> {
        let is_on = |name| Ok::<_, LoadError>(self.fields.choice(name)?.unwrap_or(true));
        let (lowercase, chinese) = (is_on("do_lower_case")?, is_on("tokenize_chinese_chars")?);
        let strip_accents = self.fields.choice("strip_accents")?;
        match inner.get_normalizer() {
            Some(NormalizerWrapper::BertNormalizer(_)) => {}
            other => return Err(self.contradicts(dir, "normalizer", other, "BertNormalizer")),
        }
        match inner.get_pre_tokenizer() {
            Some(PreTokenizerWrapper::BertPreTokenizer(_)) => {}
            other => return Err(self.contradicts(dir, "pre_tokenizer", other, "BertPreTokenizer")),
        }
        inner.with_normalizer(Some(BertNormalizer::new(true, chinese, strip_accents, lowercase)));
        Ok(())
    }

    /// Of a RoBERTa the field counts. What an XLM-R makes otherwise without the space is more than that.
    fn apply_prefix_space(
        &self,
        inner: &mut tokenizers::Tokenizer,
        dir: &Path,
    ) -> Result<(), LoadError> {
        const FIELD: &str = "add_prefix_space";
        let with_space = self.fields.choice(FIELD)?;
        let own = inner.get_pre_tokenizer();
        if self.class == Class::XlmRoberta {
            return match own.and_then(begins_with_space) {
                Some(true) if with_space != Some(false) => Ok(()),
                Some(begins) if with_space.is_some_and(|with| with != begins) => {
                    let remedy =
                        format!("{TOKENIZER} says otherwise; take both files of one model");
                    Err(self.fields.wrong(FIELD, !begins, &remedy))
                }
                _ => Err(self.contradicts(dir, "pre_tokenizer", own, "Metaspace with a space")),
            };
        }
        let Some(PreTokenizerWrapper::ByteLevel(bytes)) = own else {
            return Err(self.contradicts(dir, "pre_tokenizer", own, "ByteLevel"));
        };
        let with_space = with_space.unwrap_or_default();
        let bytes = bytes.add_prefix_space(with_space);
        inner.with_pre_tokenizer(Some(bytes));
        // It knows whether the first word was given a space, or the place of that word is one off.
        if let Some(PostProcessorWrapper::Roberta(around)) = inner.get_post_processor() {
            let around = around.clone().add_prefix_space(with_space);
            inner.with_post_processor(Some(around));
        }
        Ok(())
    }

    /// The end at which a text is cut off that is too long: what the tokenizer's own file says counts
    /// where this one says nothing.
    pub(super) fn cut_at(
        &self,
        own: Option<TruncationDirection>,
    ) -> Result<TruncationDirection, LoadError> {
        const FIELD: &str = "truncation_side";
        match self.fields.text(&[FIELD])? {
            None => Ok(own.unwrap_or(TruncationDirection::Right)),
            Some("right") => Ok(TruncationDirection::Right),
            Some("left") => Ok(TruncationDirection::Left),
            Some(other) => Err(self.fields.wrong(FIELD, other, "it must be right or left")),
        }
    }

    /// Whether the model is told to which text of a pair a token belongs.
    pub(super) fn has_types(&self) -> Result<bool, LoadError> {
        const FIELD: &str = "model_input_names";
        if self.fields.value(FIELD).is_some() {
            return Ok(self.fields.texts(FIELD)?.contains(&"token_type_ids"));
        }
        Ok(match self.class {
            Class::Bert { with_types } => with_types,
            Class::Roberta | Class::XlmRoberta | Class::Backend => false,
            Class::Other => true,
        })
    }

    /// The tokenizer is made otherwise than the class of the small file makes one.
    fn contradicts<T: serde::Serialize>(
        &self,
        dir: &Path,
        field: &str,
        found: Option<&T>,
        expected: &str,
    ) -> LoadError {
        let value = found.and_then(|found| serde_json::to_value(found).ok());
        let kind = value.as_ref().and_then(|value| value.get("type")?.as_str());
        let class = match self.class {
            Class::Bert { .. } => "BertTokenizer",
            Class::Roberta => "RobertaTokenizer",
            Class::XlmRoberta => "XLMRobertaTokenizer",
            Class::Backend | Class::Other => "PreTrainedTokenizerFast",
        };
        let remedy = format!(
            "the {class} that {NAME} asks for has {expected}; where this file is right, set \
             tokenizer_class there to PreTrainedTokenizerFast"
        );
        LoadError::unsupported(&dir.join(TOKENIZER), field, kind.unwrap_or("missing"), &remedy)
    }
}

/// Whether a text begins with a space, of a step that says so, alone or among others.
fn begins_with_space(pre: &PreTokenizerWrapper) -> Option<bool> {
    match pre {
        PreTokenizerWrapper::Metaspace(spaces) => {
            Some(spaces.get_prepend_scheme() != PrependScheme::Never)
        }
        PreTokenizerWrapper::Sequence(all) => all.as_ref().iter().find_map(begins_with_space),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::bert::Tokenizer;

    fn data(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
    }

    /// Fields put in place of others; those that are null are taken out, as are files.
    fn change(value: &mut Value, changes: &Value) {
        for (name, change) in changes.as_object().unwrap() {
            match (&mut value[name], change) {
                (_, Value::Null) => drop(value.as_object_mut().unwrap().remove(name)),
                (inner @ Value::Object(_), Value::Object(_)) => self::change(inner, change),
                (field, other) => *field = other.clone(),
            }
        }
    }

    /// A tiny model with fields changed, by file.
    fn model(model: &str, files: &Value) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let files = files.as_object().unwrap();
        for entry in std::fs::read_dir(data(model)).unwrap().flatten() {
            let (from, to) = (entry.path(), dir.path().join(entry.file_name()));
            let changes = files.get(entry.file_name().to_str().unwrap());
            if changes.is_some_and(Value::is_null) {
                continue;
            }
            if from.is_dir() {
                std::fs::create_dir(&to).unwrap();
                std::fs::copy(from.join("config.json"), to.join("config.json")).unwrap();
            } else if let Some(text) = changes.and_then(Value::as_str) {
                std::fs::write(to, text).unwrap();
            } else if let Some(changes) = changes {
                let mut json = serde_json::from_slice(&std::fs::read(from).unwrap()).unwrap();
                change(&mut json, changes);
                std::fs::write(to, json.to_string()).unwrap();
            } else {
                std::fs::copy(from, to).unwrap();
            }
        }
        for (name, content) in files.iter().filter(|(name, _)| !data(model).join(name).exists()) {
            let text = content.as_str().map_or_else(|| content.to_string(), str::to_owned);
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    #[test]
    fn a_text_is_cut_as_transformers_cuts_it_whatever_the_small_files_say() {
        let cases = std::fs::read(data("tokenizer_configs.json")).unwrap();
        let cases: Vec<Value> = serde_json::from_slice(&cases).unwrap();
        for case in cases {
            let dir = model(case["model"].as_str().unwrap(), &case["files"]);
            let tokenizer = Tokenizer::load(dir.path()).unwrap();
            let text = case["text"].as_str().unwrap();
            let found = match case["pair"].as_str() {
                None => tokenizer.tokenize(text).unwrap(),
                Some(other) => tokenizer.tokenize_pairs(text, [other]).unwrap().remove(0),
            };
            assert_eq!(json!(found.ids()), case["ids"], "{case}");
            let mut types: Vec<u64> =
                serde_json::from_value(case["types"].clone()).unwrap_or_default();
            if types.iter().all(|of| *of == 0) {
                types.clear();
            }
            assert_eq!(json!(found.types()), json!(types), "{case}");
        }
    }

    #[test]
    fn a_text_that_is_cut_at_its_beginning_is_known_to_have_been_longer() {
        let left = json!({NAME: {"truncation_side": "left", "model_max_length": 9}});
        let tokenizer = Tokenizer::load(model("tiny-rerank-bert", &left).path()).unwrap();
        let text = "pump motor bearing valve sensor warm cold the of";
        let single = tokenizer.tokenize(text).unwrap();
        assert_eq!((single.len(), single.n_whole(), single.is_cut()), (9, 11, true));
        let pair = tokenizer.tokenize_pairs(text, ["pump"]).unwrap().remove(0);
        assert_eq!((pair.len(), pair.n_whole(), pair.is_cut()), (9, 13, true));
        let pieces = tokenizer.tokenize_pieces(text).unwrap();
        assert_eq!((pieces.tokens, pieces.pieces[1].start), (single, 11));
    }

    #[test]
    fn a_tokenizer_that_its_class_would_not_make_is_refused_with_both_ways_out() {
        let (bert, roberta) = ("BertTokenizer", "RobertaTokenizer");
        let lower = json!({"type": "Lowercase"});
        for (name, class, tokenizer, says) in [
            ("tiny-bert", bert, json!({"normalizer": {"type": "Lowercase"}}), "Lowercase"),
            ("tiny-bert", bert, json!({"normalizer": null}), "normalizer is missing"),
            (
                "tiny-bert",
                bert,
                json!({"normalizer": {"type": "Sequence", "normalizers": [lower]}}),
                "normalizer is Sequence; the BertTokenizer",
            ),
            ("tiny-bert", bert, json!({"pre_tokenizer": {"type": "Whitespace"}}), "is Whitespace"),
            ("tiny-bert", roberta, json!({}), "pre_tokenizer is BertPreTokenizer; the Roberta"),
            ("tiny-roberta", "XLMRobertaTokenizerFast", json!({}), "pre_tokenizer is ByteLevel"),
            (
                "tiny-xlm-roberta",
                "XLMRobertaTokenizer",
                json!({"pre_tokenizer": {"prepend_scheme": "never"}}),
                "pre_tokenizer is Metaspace; the XLMRobertaTokenizer",
            ),
        ] {
            let files = json!({NAME: {"tokenizer_class": class}, TOKENIZER: tokenizer});
            let dir = model(name, &files);
            let error = Tokenizer::load(dir.path()).unwrap_err().to_string();
            assert!(error.contains("tokenizer.json: ") && error.contains(says), "{error}");
            assert!(error.contains("set tokenizer_class there to PreTrained"), "{error}");
            let files =
                json!({NAME: {"tokenizer_class": "PreTrainedTokenizerFast"}, TOKENIZER: tokenizer});
            Tokenizer::load(model(name, &files).path()).unwrap();
        }
        for (id, content) in [("400", "new"), ("5", "[CLS]"), ("133", "motor")] {
            let files = json!({NAME: {"added_tokens_decoder": {id: {"content": content}}}});
            let error = Tokenizer::load(model("tiny-bert", &files).path()).unwrap_err().to_string();
            let says =
                format!("{NAME}: added_tokens_decoder.{id} is {content:?}; by tokenizer.json");
            assert!(error.contains(&says), "{error}");
        }
        for (written, declared) in [("always", false), ("never", true)] {
            let files = json!({
                NAME: {"tokenizer_class": "XLMRobertaTokenizer", "add_prefix_space": declared},
                TOKENIZER: {"pre_tokenizer": {"prepend_scheme": written}},
            });
            let dir = model("tiny-xlm-roberta", &files);
            let error = Tokenizer::load(dir.path()).unwrap_err().to_string();
            assert!(error.contains(&format!("add_prefix_space is {declared}; tok")), "{error}");
        }
        for (field, value) in [("truncation_side", json!("both")), ("do_lower_case", json!(1))] {
            let dir = model("tiny-bert", &json!({NAME: {field: value}}));
            let error = Tokenizer::load(dir.path()).unwrap_err().to_string();
            assert!(error.contains(&format!("{NAME}: {field} is ")), "{error}");
        }
    }

    #[test]
    fn tokens_that_the_small_files_name_otherwise_are_refused_with_their_file() {
        for (files, says) in [
            (
                json!({"added_tokens.json": {"[New]": 400}}),
                "added_tokens.json: [New] is 400; by tokenizer.json its number is 174; take both",
            ),
            (
                json!({"added_tokens.json": {"[New]": "a"}}),
                "added_tokens.json: [New] is \"a\"; it must",
            ),
            (json!({NAME: {"mask_token": 1}}), "tokenizer_config.json: mask_token is another; it"),
            (json!({NAME: {"extra_special_tokens": [1]}}), "extra_special_tokens is another; it"),
        ] {
            let error = Tokenizer::load(model("tiny-bert", &files).path()).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
