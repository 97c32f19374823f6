//! The tokenizer that transformers makes of a `tokenizer.json` where a small file names one of Llama's
//! classes: they have steps of their own, whatever the file says of them.

use std::path::Path;

use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence;
use tokenizers::decoders::strip::Strip;
use tokenizers::normalizers::Replace;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{ModelWrapper, NormalizerWrapper, PostProcessorWrapper, Tokenizer};

use super::class::Class;
use crate::LoadError;
use crate::catalog::TOKENIZER;
use crate::json::Fields;
use crate::named::Named;

/// The letter that is a space in the words of such a tokenizer.
const SPACE: char = '\u{2581}';

/// Puts the steps of such a class in place of the file's own. What stands around a text stays the
/// file's, but for [`frame`].
///
/// # Errors
/// When the class makes no tokenizer of such a vocabulary, or a field of it is not what it should be.
pub(super) fn apply(
    inner: &mut Tokenizer,
    dir: &Path,
    class: Class,
    tokenizer: &Fields,
) -> Result<(), LoadError> {
    let ModelWrapper::BPE(words) = inner.get_model() else {
        let remedy = "the LlamaTokenizer that tokenizer_config.json asks for has BPE; where this \
                      file is right, set tokenizer_class there to PreTrainedTokenizerFast";
        return Err(LoadError::unsupported(&dir.join(TOKENIZER), "model.type", "another", remedy));
    };
    let mut words = words.clone();
    (words.byte_fallback, words.fuse_unk, words.ignore_merges) = (true, true, false);
    (words.dropout, words.continuing_subword_prefix, words.end_of_word_suffix) = (None, None, None);
    // Its own class passes the token on; what Llama's has no bytes for is left out.
    if class == Class::Llama {
        words.unk_token = None;
    }
    inner.with_model(words);
    let with_space = tokenizer.choice("add_prefix_space")?.unwrap_or(true);
    let everywhere = class == Class::Llama && tokenizer.flag("legacy")?;
    let scheme = match (with_space, everywhere) {
        (false, _) => PrependScheme::Never,
        (true, true) => PrependScheme::Always,
        (true, false) => PrependScheme::First,
    };
    inner.with_normalizer(None::<NormalizerWrapper>);
    inner.with_pre_tokenizer(Some(Metaspace::new(SPACE, scheme, false)));
    let spaces = Replace::new(SPACE.to_string(), " ");
    let spaces = spaces.map_err(|error| LoadError::malformed(&dir.join(TOKENIZER), error))?;
    let mut steps = vec![
        DecoderWrapper::Replace(spaces),
        DecoderWrapper::ByteFallback(ByteFallback::new()),
        DecoderWrapper::Fuse(Fuse::new()),
    ];
    if with_space || class == Class::CodeLlama {
        steps.push(DecoderWrapper::Strip(Strip::new(' ', 1, 0)));
    }
    inner.with_decoder(Some(Sequence::new(steps)));
    Ok(())
}

/// Puts around a text what such a class puts there whatever the file has, once all tokens have their
/// numbers: a CodeLlama's first token, where it has one.
///
/// # Errors
/// When that is no token of the tokenizer.
pub(super) fn frame(
    inner: &mut Tokenizer,
    named: &Named<'_>,
    class: Class,
) -> Result<(), LoadError> {
    const FIRST: &str = "bos_token";
    if class != Class::CodeLlama {
        return Ok(());
    }
    let Some(first) = named.name_of(FIRST) else {
        inner.with_post_processor(None::<PostProcessorWrapper>);
        return Ok(());
    };
    let Some(id) = inner.token_to_id(first) else {
        let found = format!("{first:?}");
        return Err(named.wrong(FIRST, found, "it must be a token of the tokenizer"));
    };
    let part = |id| serde_json::json!({"Sequence": {"id": id, "type_id": 0}});
    let made = serde_json::json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": first, "type_id": 0}}, part("A")],
        "pair": [part("A"), part("B")],
        "special_tokens": {first: {"id": first, "ids": [id], "tokens": [first]}},
    });
    let made: TemplateProcessing =
        serde_json::from_value(made).expect("these are the fields of such a step");
    inner.with_post_processor(Some(made));
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::{Tokenizer, Transcript};
    use super::*;

    /// A tokenizer like that of the first Llamas, and what transformers makes of it
    /// (`tests/data/make_tokenizers.py`).
    fn reference() -> Value {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        let text = std::fs::read(data.join("llama_tokenizers.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    fn directory(file: &Value, model: &Value, tokenizer: &Value) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let files =
            [(TOKENIZER, file), ("config.json", model), ("tokenizer_config.json", tokenizer)];
        for (name, content) in files {
            std::fs::write(dir.path().join(name), content.to_string()).unwrap();
        }
        dir
    }

    fn load(file: &Value, model: &Value, tokenizer: &Value) -> Result<Tokenizer, String> {
        let dir = directory(file, model, tokenizer);
        Tokenizer::load(dir.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn texts_are_cut_and_answers_written_as_by_the_class_that_is_named() {
        let reference = reference();
        for case in reference["cases"].as_array().unwrap() {
            let mut model = case["own"].clone();
            model["model_type"] = case["model_type"].clone();
            let tokenizer = load(&reference["tokenizer"], &model, &case["config"]).unwrap();
            let what = format!("{model} {}", case["config"]);
            for text in case["texts"].as_array().unwrap() {
                let found = tokenizer.tokenize("prompt", text[0].as_str().unwrap()).unwrap();
                assert_eq!(json!(found), text[1], "{what}: {}", text[0]);
            }
            for answer in case["answers"].as_array().unwrap() {
                let tokens: Vec<u32> = serde_json::from_value(answer[0].clone()).unwrap();
                let mut transcript = Transcript::new(tokenizer.clone(), false, []);
                for some in tokens.chunks(2) {
                    transcript.read(some);
                }
                transcript.end();
                assert_eq!(transcript.text(), answer[1], "{what}: {tokens:?}");
                assert_eq!(tokenizer.decode(&tokens), answer[1], "{what}: {tokens:?}");
            }
        }
    }

    #[test]
    fn templates_are_told_the_tokens_of_the_class_that_is_named() {
        let reference = reference();
        for case in reference["cases"].as_array().unwrap() {
            let name = format!("tests/data/tiny-{}", case["model_type"].as_str().unwrap());
            let data = Path::new(env!("CARGO_MANIFEST_DIR")).join(&name);
            let mut model: Value =
                serde_json::from_slice(&std::fs::read(data.join("config.json")).unwrap()).unwrap();
            model.as_object_mut().unwrap().extend(case["own"].as_object().unwrap().clone());
            let dir = directory(&reference["tokenizer"], &model, &case["config"]);
            let special = super::super::Settings::read(dir.path()).unwrap().special;
            assert_eq!(json!(special), case["special"], "{name}: {}", case["config"]);
        }
    }

    #[test]
    fn a_file_whose_letters_are_bytes_is_taken_as_it_is_and_one_without_bpe_is_refused() {
        let (model, class) =
            (json!({"model_type": "llama"}), json!({"tokenizer_class": "LlamaTokenizer"}));
        let mut file = reference()["tokenizer"].clone();
        file["pre_tokenizer"] = json!({"type": "ByteLevel", "add_prefix_space": false,
                                       "trim_offsets": true, "use_regex": true});
        let ids = |class: &Value| {
            load(&file, &model, class).unwrap().tokenize("prompt", "the a</s>b").unwrap()
        };
        assert_eq!(ids(&class), ids(&json!({})));
        file["model"] = json!({"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"});
        file["pre_tokenizer"] = Value::Null;
        let error = load(&file, &model, &class).unwrap_err();
        assert!(error.contains("tokenizer.json: model.type is another; the LlamaTok"), "{error}");
    }

    #[test]
    fn words_of_which_the_file_says_no_bytes_are_read_in_bytes_all_the_same() {
        let (model, class) =
            (json!({"model_type": "llama"}), json!({"tokenizer_class": "LlamaTokenizer"}));
        let mut file = reference()["tokenizer"].clone();
        let whole = load(&file, &model, &class).unwrap().tokenize("prompt", "温 é").unwrap();
        file["model"]["byte_fallback"] = false.into();
        let found = load(&file, &model, &class).unwrap().tokenize("prompt", "温 é").unwrap();
        assert_eq!(found, whole);
    }

    #[test]
    fn words_are_cut_without_chance_ends_and_unknown_tokens_as_the_class_has_them() {
        let model = json!({"model_type": "llama"});
        let ids = |file: &Value, class: &str| {
            let class = json!({"tokenizer_class": class});
            load(file, &model, &class).unwrap().tokenize("prompt", "the pump 温").unwrap()
        };
        let file = reference()["tokenizer"].clone();
        let mut other = file.clone();
        other["model"]["dropout"] = json!(1.0);
        other["model"]["end_of_word_suffix"] = json!("</w>");
        assert_eq!(ids(&other, "LlamaTokenizer"), ids(&file, "LlamaTokenizer"));
        let mut without = file.clone();
        without["model"]["vocab"].as_object_mut().unwrap().remove("<0xE6>");
        let unknown = |class: &str| ids(&without, class).contains(&0);
        assert_eq!((unknown("LlamaTokenizer"), unknown("CodeLlamaTokenizer")), (false, true));
    }
}
