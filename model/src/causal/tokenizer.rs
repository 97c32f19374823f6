//! From text to tokens, and from a token to what it says.

use std::path::Path;
use std::sync::Arc;

use super::letters::Letters;
use crate::bert::{check_length, guarded};
use crate::catalog::TOKENIZER;
use crate::{ItemError, LoadError};

/// A model's own way to cut a text; cheap to clone, and shared by threads.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    letters: Arc<Letters>,
    /// Tokens that stand before any text.
    n_before: usize,
}

impl Tokenizer {
    /// Reads `tokenizer.json`.
    ///
    /// # Errors
    /// When it is missing, or is not what it should be: which field, and what to do.
    pub fn load(dir: &Path) -> Result<Self, LoadError> {
        let path = dir.join(TOKENIZER);
        let text = std::fs::read(&path).map_err(|error| LoadError::io(&path, error))?;
        let malformed = |error: tokenizers::Error| LoadError::malformed(&path, error);
        let mut inner = guarded(&path, || tokenizers::Tokenizer::from_bytes(&text))?;
        // What the file says of padding and truncation was meant for whoever saved it.
        inner.with_padding(None).with_truncation(None).map_err(malformed)?;
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
        let encoding = self.inner.encode_fast(text, framed).map_err(|error| {
            ItemError::new(format!("{field} cannot be cut into tokens: {error}"))
        })?;
        Ok(encoding.get_ids().to_vec())
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
