//! From text to tokens, and from a token to what it says.

use std::path::Path;
use std::sync::Arc;

use super::class::Class;
use super::letters::Letters;
use super::{Settings, tokenizer_class};
use crate::bert::{check_length, guarded, uncut};
use crate::catalog::TOKENIZER;
use crate::json::Fields;
use crate::named::Named;
use crate::{ItemError, LoadError, added, catalog};

/// A model's own way to cut a text; cheap to clone, and shared by threads.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    letters: Arc<Letters>,
    /// Tokens that stand before any text.
    n_before: usize,
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a model.
    ///
    /// # Errors
    /// When it is missing, is not what it should be, or has words that the model does not know: which
    /// field, and what to do.
    pub fn of(settings: &Settings, dir: &Path) -> Result<Self, LoadError> {
        let tokenizer = Self::load(dir)?;
        let (path, known) = (dir.join(TOKENIZER), settings.vocabulary());
        let words = tokenizer.inner.get_vocab(false).into_values().max();
        let n_words = words.map_or(0, |last| last as usize + 1);
        if n_words > known {
            let remedy = format!("the model knows {known}; take the tokenizer.json of this model");
            return Err(LoadError::unsupported(&path, "model.vocab", n_words, &remedy));
        }
        Ok(tokenizer)
    }

    /// Tokens that were added to the vocabulary and that the model does not know: a text that has one of
    /// them cannot be read.
    pub fn unknown(&self, settings: &Settings) -> Vec<String> {
        let added = self.inner.get_added_tokens_decoder().into_iter();
        let unknown = added.filter(|(id, _)| *id as usize >= settings.vocabulary());
        let mut unknown: Vec<_> = unknown.map(|(id, token)| (id, token.content)).collect();
        unknown.sort_unstable();
        unknown.into_iter().map(|(_, token)| token).collect()
    }

    /// Reads `tokenizer.json`, and what `tokenizer_config.json` makes of it and adds to it.
    ///
    /// # Errors
    /// When it is missing, or is not what it should be: which field, and what to do.
    pub fn load(dir: &Path) -> Result<Self, LoadError> {
        let (path, text) = (dir.join(TOKENIZER), catalog::read_tokenizer(dir)?);
        let malformed = |error: tokenizers::Error| LoadError::malformed(&path, error);
        let mut inner = guarded(&path, || tokenizers::Tokenizer::from_bytes(&text))?;
        // What the file says of padding and truncation was meant for whoever saved it.
        inner.with_padding(None).with_truncation(None).map_err(malformed)?;
        let config = Fields::read_if_there(&dir.join("tokenizer_config.json"))?;
        let class = Class::of(dir, &config)?;
        if let Some(class) = class {
            tokenizer_class::apply(&mut inner, dir, class, &config)?;
        }
        let named = Named::read(dir, &config, class.map_or(&[][..], Class::tokens))?;
        added::add(&mut inner, &named, &config)?;
        if let Some(class) = class {
            tokenizer_class::frame(&mut inner, &named, class)?;
        }
        let [none, some] = ["", "a"].map(|text| guarded(&path, || inner.encode_fast(text, true)));
        let (none, some) = (none?, some?);
        let both = none.get_ids().iter().zip(some.get_ids());
        let n_before = both.take_while(|(one, other)| one == other).count();
        let letters = Letters::of(&inner, &path)?;
        Ok(Self { inner: Arc::new(inner), letters: Arc::new(letters), n_before })
    }

    /// Cuts a text into tokens, with those that belong around each text of this model.
    ///
    /// # Errors
    /// When it is too long to be cut, or cannot be.
    pub fn tokenize(&self, field: &str, text: &str) -> Result<Vec<u32>, ItemError> {
        self.cut(field, text, true)
    }

    /// Cuts what a chat template wrote, which has written what belongs around it.
    ///
    /// # Errors
    /// When it is too long to be cut, or cannot be.
    pub fn tokenize_rendered(&self, field: &str, text: &str) -> Result<Vec<u32>, ItemError> {
        self.cut(field, text, false)
    }

    fn cut(&self, field: &str, text: &str, framed: bool) -> Result<Vec<u32>, ItemError> {
        check_length(field, text)?;
        let encoding = self.inner.encode_fast(text, framed);
        let encoding = encoding.map_err(|error| uncut(field, &error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// What a token is called.
    pub fn name_of(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// How many tokens stand before any text.
    pub fn n_before(&self) -> usize {
        self.n_before
    }

    /// A token that is part of a text: not one that only means something to the model, and not one
    /// that the tokenizer does not know.
    pub(crate) fn shown(&self, id: u32) -> Option<String> {
        let token = self.inner.id_to_token(id)?;
        let is_special = self.inner.get_added_vocabulary().is_special_token(&token);
        (!is_special).then_some(token)
    }

    pub(crate) fn letters(&self) -> &Letters {
        &self.letters
    }

    #[cfg(test)]
    pub(crate) fn decode(&self, tokens: &[u32]) -> String {
        self.inner.decode(tokens, true).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The tiny model with a tokenizer that has one more token, in its vocabulary or beside it.
    fn with(more: impl FnOnce(&mut Value)) -> tempfile::TempDir {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama");
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(from.join("config.json"), dir.path().join("config.json")).unwrap();
        let mut file =
            serde_json::from_slice(&std::fs::read(from.join(TOKENIZER)).unwrap()).unwrap();
        more(&mut file);
        std::fs::write(dir.path().join(TOKENIZER), file.to_string()).unwrap();
        dir
    }

    #[test]
    fn a_tokenizer_of_another_model_is_refused() {
        let dir = with(|file| file["model"]["vocab"]["zzzz"] = 384.into());
        let settings = Settings::read(dir.path()).unwrap();
        let error = Tokenizer::of(&settings, dir.path()).unwrap_err().to_string();
        let says =
            "tokenizer.json: model.vocab is 385; the model knows 384; take the tokenizer.json";
        assert!(error.contains(says), "{error}");
    }

    #[test]
    fn a_token_that_only_the_small_file_adds_is_one_as_in_transformers() {
        let token = |content: &str, special: bool| {
            json!({"content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": special})
        };
        let dir = with(|_| {});
        let n = Tokenizer::load(dir.path()).unwrap().inner.get_vocab_size(true);
        let ids = |added: Value| {
            let file = json!({"added_tokens_decoder": added}).to_string();
            std::fs::write(dir.path().join("tokenizer_config.json"), file).unwrap();
            let tokenizer = Tokenizer::load(dir.path()).map_err(|error| error.to_string())?;
            Ok::<_, String>((tokenizer.tokenize("prompt", "a<think>b").unwrap(), tokenizer))
        };
        let (_, plain) = ids(json!({})).unwrap();
        let letter = |text| plain.tokenize("prompt", text).unwrap()[0];
        let (found, tokenizer) = ids(json!({n.to_string(): token("<think>", true)})).unwrap();
        assert_eq!(found, [letter("a"), n as u32, letter("b")]);
        assert_eq!(tokenizer.shown(n as u32), None);
        let (_, tokenizer) = ids(json!({n.to_string(): token("<think>", false)})).unwrap();
        assert_eq!(tokenizer.shown(n as u32).as_deref(), Some("<think>"));
        let named = json!({"eos_token": "<think>", "extra_special_tokens": ["<end>"]});
        std::fs::write(dir.path().join("tokenizer_config.json"), named.to_string()).unwrap();
        let tokenizer = Tokenizer::load(dir.path()).unwrap();
        let found = tokenizer.tokenize("prompt", "a<end><think>b").unwrap();
        assert_eq!(found, [letter("a"), n as u32 + 1, n as u32, letter("b")]);
        assert_eq!((tokenizer.shown(n as u32), tokenizer.shown(n as u32 + 1)), (None, None));
        // What older versions wrote in a file of its own, and not as special.
        std::fs::remove_file(dir.path().join("tokenizer_config.json")).unwrap();
        std::fs::write(dir.path().join("added_tokens.json"), json!({"<1.5>": n}).to_string())
            .unwrap();
        let tokenizer = Tokenizer::load(dir.path()).unwrap();
        assert_eq!(tokenizer.tokenize("prompt", "<1.5>").unwrap(), [n as u32]);
        assert_eq!(tokenizer.shown(n as u32).as_deref(), Some("<1.5>"));
        let error = ids(json!({(n + 1).to_string(): token("<think>", true)})).unwrap_err();
        let says = format!("added_tokens_decoder.{} is \"<think>\"; by tokenizer.json", n + 1);
        assert!(error.contains(&says) && error.contains("tokenizer_config.json"), "{error}");
    }

    #[test]
    fn a_token_beside_the_vocabulary_that_the_model_does_not_know_is_told() {
        let dir = with(|file| {
            let token = json!({"id": 384, "content": "<pad>", "single_word": false, "lstrip": false,
                               "rstrip": false, "normalized": false, "special": true});
            file["added_tokens"].as_array_mut().unwrap().push(token);
        });
        let settings = Settings::read(dir.path()).unwrap();
        let tokenizer = Tokenizer::of(&settings, dir.path()).unwrap();
        assert_eq!(tokenizer.unknown(&settings), ["<pad>"]);
        let own = with(|_| {});
        assert_eq!(Tokenizer::of(&settings, own.path()).unwrap().unknown(&settings), [""; 0]);
    }
}
