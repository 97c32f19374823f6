//! What `tokenizer_config.json` says of the way to cut a text, and what of it counts: transformers'
//! classes of a family make all steps of a tokenizer anew, whatever `tokenizer.json` has.

use std::path::Path;

use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::{
    ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, Tokenizer as Inner, TruncationDirection,
};

use super::Family;
use super::vocabulary::{BERTS, CONVBERT, DPRS};
use crate::catalog::TOKENIZER;
use crate::json::{Fields, is_there};
use crate::named::{Named, Own};
use crate::{LoadError, added};

/// The file.
pub(super) const NAME: &str = "tokenizer_config.json";

/// The letter that is a space in the words of an XLM-R.
const SPACE: char = '\u{2581}';

/// The number of the token that stands for what an XLM-R does not know, by its class.
const UNKNOWN: usize = 3;

/// The names under which transformers has RoBERTa's class.
const ROBERTAS: [&str; 4] =
    ["RobertaTokenizer", "BartTokenizer", "LEDTokenizer", "LongformerTokenizer"];

/// What a BERT's class goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Steps {
    /// The three fields.
    Fields,
    /// Two of them: letters are small whatever the third says.
    SmallLetters,
    /// `tokenizer.json`, in all but what stands around a text.
    File,
}

/// Who cuts a text in transformers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// `BertTokenizer` and `DistilBertTokenizer`: a `BertNormalizer` of three fields, and `WordPiece`.
    Bert {
        /// Whether the model is told to which text a token belongs.
        with_types: bool,
        steps: Steps,
    },
    /// `RobertaTokenizer`: pairs of bytes, and the pre-tokenizer has its field.
    Roberta,
    /// `XLMRobertaTokenizer`: of the file's steps it has the words and the map of letters.
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
    fn tokens(self) -> Own<'static> {
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
        let bert = |with_types, steps| Class::Bert { with_types, steps };
        let class = match name.map(|name| name.strip_suffix("Fast").unwrap_or(name)) {
            Some(CONVBERT) if is_there(&dir.join(TOKENIZER))? => bert(true, Steps::File),
            Some(name) if BERTS.contains(&name) || name == CONVBERT => bert(true, Steps::Fields),
            Some(name) if DPRS.contains(&name) => bert(true, Steps::SmallLetters),
            Some("DistilBertTokenizer") => bert(false, Steps::Fields),
            Some(name) if ROBERTAS.contains(&name) => Class::Roberta,
            Some("XLMRobertaTokenizer") => Class::XlmRoberta,
            Some("TokenizersBackend") => Class::Backend,
            Some(_) => Class::Other,
            // What transformers takes for the type of the model.
            None if is_xlm => Class::XlmRoberta,
            None => match family {
                Family::Bert | Family::DistilBert => bert(true, Steps::Fields),
                Family::Roberta => Class::Roberta,
            },
        };
        Ok(Self { fields, class })
    }

    /// Makes of a tokenizer what transformers makes of it.
    pub(super) fn apply(&self, inner: &mut Inner, dir: &Path) -> Result<(), LoadError> {
        let named = Named::read(dir, &self.fields, self.class.tokens())?;
        match self.class {
            Class::Bert { steps: Steps::File, .. } | Class::Backend | Class::Other => {}
            Class::Bert { steps, .. } => self.apply_bert(inner, dir, &named, steps)?,
            Class::Roberta => self.apply_roberta(inner, dir)?,
            Class::XlmRoberta => self.apply_xlm_roberta(inner, dir)?,
        }
        added::add(inner, &named, &self.fields)?;
        self.frame(inner, &named)
    }

    fn apply_bert(
        &self,
        inner: &mut Inner,
        dir: &Path,
        named: &Named<'_>,
        by: Steps,
    ) -> Result<(), LoadError> {
        let is_on = |name| Ok::<_, LoadError>(self.fields.choice(name)?.unwrap_or(true));
        let lowercase = is_on("do_lower_case")? || by == Steps::SmallLetters;
        let chinese = is_on("tokenize_chinese_chars")?;
        let strip_accents = self.fields.choice("strip_accents")?;
        let ModelWrapper::WordPiece(words) = inner.get_model() else {
            return Err(self.contradicts(dir, "model", Some(inner.get_model()), "WordPiece"));
        };
        match inner.get_normalizer() {
            Some(NormalizerWrapper::BertNormalizer(_)) => {}
            other => return Err(self.contradicts(dir, "normalizer", other, "BertNormalizer")),
        }
        match inner.get_pre_tokenizer() {
            Some(PreTokenizerWrapper::BertPreTokenizer(_)) => {}
            other => return Err(self.contradicts(dir, "pre_tokenizer", other, "BertPreTokenizer")),
        }
        let usual = WordPiece::default();
        let mut words = words.clone();
        words.unk_token = token(named, "unk_token")?;
        words.continuing_subword_prefix = usual.continuing_subword_prefix;
        words.max_input_chars_per_word = usual.max_input_chars_per_word;
        inner.with_model(words);
        inner.with_normalizer(Some(BertNormalizer::new(true, chinese, strip_accents, lowercase)));
        Ok(())
    }

    fn apply_roberta(&self, inner: &mut Inner, dir: &Path) -> Result<(), LoadError> {
        let ModelWrapper::BPE(words) = inner.get_model() else {
            return Err(self.contradicts(dir, "model", Some(inner.get_model()), "BPE"));
        };
        if let own @ Some(_) = inner.get_normalizer() {
            return Err(self.contradicts(dir, "normalizer", own, "none"));
        }
        match inner.get_pre_tokenizer() {
            Some(PreTokenizerWrapper::ByteLevel(_)) => {}
            other => return Err(self.contradicts(dir, "pre_tokenizer", other, "ByteLevel")),
        }
        let mut words = words.clone();
        (words.dropout, words.unk_token, words.fuse_unk) = (None, None, false);
        (words.byte_fallback, words.ignore_merges) = (false, false);
        (words.continuing_subword_prefix, words.end_of_word_suffix) = (None, None);
        inner.with_model(words);
        let with_space = self.fields.flag("add_prefix_space")?;
        inner.with_pre_tokenizer(Some(ByteLevel::new(with_space, true, true)));
        Ok(())
    }

    /// What is made otherwise without the space before a text is more than that, and not known here.
    fn apply_xlm_roberta(&self, inner: &mut Inner, dir: &Path) -> Result<(), LoadError> {
        const FIELD: &str = "add_prefix_space";
        let ModelWrapper::Unigram(words) = inner.get_model() else {
            return Err(self.contradicts(dir, "model", Some(inner.get_model()), "Unigram"));
        };
        let words = Unigram::from(words.iter().cloned().collect(), Some(UNKNOWN), false);
        let words = words.map_err(|error| LoadError::malformed(&dir.join(TOKENIZER), error))?;
        let with_space = self.fields.choice(FIELD)?;
        let own = inner.get_pre_tokenizer();
        match own.and_then(begins_with_space) {
            Some(true) if with_space != Some(false) => {}
            Some(begins) if with_space.is_some_and(|with| with != begins) => {
                let remedy = format!("{TOKENIZER} says otherwise; take both files of one model");
                return Err(self.fields.wrong(FIELD, !begins, &remedy));
            }
            _ => {
                let expected = "Metaspace with a space";
                return Err(self.contradicts(dir, "pre_tokenizer", own, expected));
            }
        }
        let steps = inner.get_normalizer().map_or(&[][..], steps);
        // What else versions before 5 wrote makes spaces fewer, and this class cuts at spaces itself.
        if !steps.iter().all(|step| is_map(step) || makes_spaces_fewer(step)) {
            let expected = "Precompiled, and nothing beside it but for spaces";
            return Err(self.contradicts(dir, "normalizer", inner.get_normalizer(), expected));
        }
        let letters = steps.iter().find(|step| is_map(step)).cloned();
        inner.with_model(words);
        inner.with_normalizer(letters);
        let spaces = Metaspace::new(SPACE, PrependScheme::Always, true);
        let steps = vec![WhitespaceSplit.into(), spaces.into()];
        inner.with_pre_tokenizer(Some(Sequence::new(steps)));
        Ok(())
    }

    /// Puts around a text, or two, what the class puts there, once all tokens have their numbers.
    fn frame(&self, inner: &mut Inner, named: &Named<'_>) -> Result<(), LoadError> {
        let (first, last) = match self.class {
            Class::Bert { .. } | Class::Roberta => ("cls_token", "sep_token"),
            Class::XlmRoberta => ("bos_token", "eos_token"),
            Class::Backend | Class::Other => return Ok(()),
        };
        let token = |purpose| {
            let (name, remedy) = (token(named, purpose)?, "it must be a token of the tokenizer");
            let wrong = || named.wrong(purpose, format!("{name:?}"), remedy);
            let id = inner.token_to_id(&name).ok_or_else(wrong)?;
            Ok::<_, LoadError>((name, id))
        };
        let (first, last) = (token(first)?, token(last)?);
        if matches!(self.class, Class::Bert { .. }) {
            inner.with_post_processor(Some(BertProcessing::new(last, first)));
            return Ok(());
        }
        let around = RobertaProcessing::new(last, first);
        // The places of words begin behind their spaces, of a RoBERTa that does not say otherwise.
        let trims =
            self.class == Class::Roberta && self.fields.choice("trim_offsets")?.unwrap_or(true);
        let with_space = self.fields.flag("add_prefix_space")?;
        let around = around.trim_offsets(trims).add_prefix_space(with_space);
        inner.with_post_processor(Some(around));
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
            Class::Bert { with_types, .. } => with_types,
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

/// What a token that a class needs is called.
fn token(named: &Named<'_>, purpose: &str) -> Result<String, LoadError> {
    let missing = || named.wrong(purpose, "null", "its class needs one; name it, or take it out");
    named.name_of(purpose).map(str::to_owned).ok_or_else(missing)
}

fn steps(own: &NormalizerWrapper) -> &[NormalizerWrapper] {
    match own {
        NormalizerWrapper::Sequence(all) => all.as_ref(),
        one => std::slice::from_ref(one),
    }
}

/// Whether a step is the map of letters of a SentencePiece model.
fn is_map(step: &NormalizerWrapper) -> bool {
    matches!(step, NormalizerWrapper::Precompiled(_))
}

fn makes_spaces_fewer(step: &NormalizerWrapper) -> bool {
    match step {
        NormalizerWrapper::StripNormalizer(_) => true,
        NormalizerWrapper::Replace(step) => {
            let is_space = [" ", "\u{2581}"].contains(&&*step.content);
            // The library tells of a pattern only as it is written.
            is_space && serde_json::to_value(step).is_ok_and(|step| is_of_spaces(&step["pattern"]))
        }
        _ => false,
    }
}

/// Whether a pattern of a step that replaces is of spaces alone, one at least.
fn is_of_spaces(pattern: &serde_json::Value) -> bool {
    let behind_spaces = |kind: &str| pattern[kind].as_str()?.strip_prefix(' ');
    let behind = |kind| behind_spaces(kind).map(|rest| rest.trim_start_matches(' '));
    behind("String") == Some("")
        || behind("Regex").is_some_and(|rest| ["", "+", "{1,}", "{2,}"].contains(&rest))
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
            if case["places"].is_array() {
                let found = tokenizer.tokenize_pieces(text).unwrap();
                let places: Vec<_> = found.pieces.iter().map(|it| (it.start, it.end)).collect();
                assert_eq!(json!(places), case["places"], "{case}");
            }
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
        let xlm = "XLMRobertaTokenizerFast";
        let lower = json!({"type": "Lowercase"});
        let replace = |kind: &str, pattern: &str, content: &str| {
            let step = json!({"type": "Replace", "pattern": {kind: pattern}, "content": content});
            json!({"normalizer": step})
        };
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
            (
                "tiny-roberta",
                roberta,
                json!({"pre_tokenizer": {"type": "Whitespace"}}),
                "pre_tokenizer is Whitespace; the RobertaTokenizer",
            ),
            ("tiny-bert", roberta, json!({"normalizer": null}), "model is WordPiece; the Roberta"),
            ("tiny-roberta", roberta, json!({"normalizer": lower}), "normalizer is Lowercase"),
            ("tiny-roberta", bert, json!({}), "model is BPE; the BertTokenizer"),
            ("tiny-roberta", xlm, json!({}), "model is BPE; the XLMRobertaTokenizer"),
            ("tiny-xlm-roberta", xlm, json!({}), "normalizer is Sequence; the XLMRobertaTok"),
            (
                "tiny-xlm-roberta",
                xlm,
                json!({"pre_tokenizer": {"prepend_scheme": "never"}}),
                "pre_tokenizer is Metaspace; the XLMRobertaTokenizer",
            ),
            ("tiny-xlm-roberta", xlm, replace("String", "a", " "), "normalizer is Replace; the X"),
            ("tiny-xlm-roberta", xlm, replace("String", " ", ""), "normalizer is Replace; the X"),
            ("tiny-xlm-roberta", xlm, replace("Regex", " .", " "), "normalizer is Replace; the X"),
            ("tiny-xlm-roberta", xlm, replace("Regex", " *", " "), "normalizer is Replace; the X"),
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
    }

    #[test]
    fn a_number_or_a_space_that_the_tokenizer_has_otherwise_is_refused() {
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
    }

    #[test]
    fn a_field_that_is_not_what_it_should_be_is_named() {
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
            (
                json!({"special_tokens_map.json": {"cls_token": null}}),
                "special_tokens_map.json: cls_token is null; its class needs one",
            ),
            (
                json!({"special_tokens_map.json": {"sep_token": ""}}),
                "special_tokens_map.json: sep_token is \"\"; it must be a token",
            ),
            (json!({NAME: {"sep_token": ""}}), "tokenizer_config.json: sep_token is \"\"; it must"),
            (json!({NAME: {"mask_token": 1}}), "tokenizer_config.json: mask_token is another; it"),
            (json!({NAME: {"extra_special_tokens": [1]}}), "extra_special_tokens is another; it"),
        ] {
            let error = Tokenizer::load(model("tiny-bert", &files).path()).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
