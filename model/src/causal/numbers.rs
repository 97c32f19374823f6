//! The numbers of the tokens that a tokenizer has beside those of its texts, without the tokenizer.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::LoadError;
use crate::catalog::TOKENIZER;
use crate::json::{is_there, read_json};
use crate::named::Named;

/// What the tokens are called.
pub(super) struct Numbers(BTreeMap<u32, String>);

/// The part of a `tokenizer.json` that names the tokens that were added to its vocabulary.
#[derive(Deserialize, Default)]
struct Added {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
}

/// The same with the vocabulary.
#[derive(Deserialize, Default)]
struct Whole {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    model: Option<Model>,
}

#[derive(Deserialize)]
struct Model {
    vocab: Option<Words>,
}

/// The words of a vocabulary, with their numbers or in the order of these.
#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    ByName(HashMap<String, u32>),
    InOrder(Vec<(String, IgnoredAny)>),
    Other(IgnoredAny),
}

impl Numbers {
    /// From the small file where it has them, since the other is large.
    ///
    /// # Errors
    /// When a file is not what it should be: which, and what to do.
    pub(super) fn read(dir: &Path, tokens: &Named<'_>) -> Result<Self, LoadError> {
        let named = tokens.by_number()?.into_iter();
        let named: Vec<(u32, String)> = named.map(|it| (it.id, it.token.content)).collect();
        // Some writers leave the list empty.
        if tokens.is_numbered() && !named.is_empty() {
            return Ok(Self(named.into_iter().collect()));
        }
        let added = file::<Added>(dir)?.added_tokens.into_iter();
        let mut numbers = Self(added.map(|it| (it.id, it.content)).collect());
        let older: Vec<_> = named.into_iter().filter(|(_, name)| !numbers.has(name)).collect();
        if older.is_empty() {
            return Ok(numbers);
        }
        // A number of an older file counts where the tokenizer itself has none.
        let whole = file::<Whole>(dir)?;
        for (id, name) in older {
            numbers.0.entry(whole.number_of(&name).unwrap_or(id)).or_insert(name);
        }
        Ok(numbers)
    }

    /// The number of a token that is for something, which has a name from now on. Where no file gives
    /// it one, it is that which the tokenizer will give it.
    ///
    /// # Errors
    /// When the tokenizer's file is not what it should be.
    pub(super) fn of(
        &mut self,
        dir: &Path,
        tokens: &Named<'_>,
        name: &str,
    ) -> Result<Option<u32>, LoadError> {
        if !self.has(name) {
            let whole = file::<Whole>(dir)?;
            if let Some(id) = whole.number_of(name).or_else(|| self.next_of(&whole, tokens, name)) {
                self.0.entry(id).or_insert_with(|| name.to_owned());
            }
        }
        Ok(self.0.iter().find(|(_, known)| *known == name).map(|(id, _)| *id))
    }

    /// The number of a token that no file numbers: such tokens lie behind all others, in the order of
    /// what they are for.
    fn next_of(&self, whole: &Whole, tokens: &Named<'_>, name: &str) -> Option<u32> {
        let added = whole.added_tokens.iter().map(|it| it.id);
        let behind = added.chain(self.0.keys().copied()).map(|id| id.saturating_add(1));
        let first = behind.fold(whole.n_words()?, u32::max);
        let mut new: Vec<&str> = Vec::new();
        for content in tokens.purposes().map(|it| &*it.content) {
            let is_known = self.has(content) || whole.number_of(content).is_some();
            // A token without letters is none.
            if !is_known && !content.is_empty() && !new.contains(&content) {
                new.push(content);
            }
        }
        let place = new.iter().position(|known| *known == name)?;
        first.checked_add(u32::try_from(place).ok()?)
    }

    /// All of them.
    pub(super) fn into_names(self) -> BTreeMap<u32, String> {
        self.0
    }

    fn has(&self, name: &str) -> bool {
        self.0.values().any(|known| known == name)
    }
}

impl Whole {
    fn words(&self) -> Option<&Words> {
        self.model.as_ref()?.vocab.as_ref()
    }

    fn n_words(&self) -> Option<u32> {
        let n_words = match self.words()? {
            Words::ByName(words) => words.len(),
            Words::InOrder(words) => words.len(),
            Words::Other(_) => return None,
        };
        u32::try_from(n_words).ok()
    }

    fn number_of(&self, name: &str) -> Option<u32> {
        let added = self.added_tokens.iter().find(|it| it.content == name).map(|it| it.id);
        added.or_else(|| match self.words()? {
            Words::ByName(words) => words.get(name).copied(),
            Words::InOrder(words) => {
                let place = words.iter().position(|(word, _)| word == name)?;
                u32::try_from(place).ok()
            }
            Words::Other(_) => None,
        })
    }
}

/// A part of the tokenizer's file; a directory that was only begun has none yet.
fn file<T: DeserializeOwned + Default>(dir: &Path) -> Result<T, LoadError> {
    let path = dir.join(TOKENIZER);
    if is_there(&path)? { read_json(&path) } else { Ok(T::default()) }
}
