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

    /// The number of a token, which has a name from now on.
    ///
    /// # Errors
    /// When the tokenizer's file is not what it should be.
    pub(super) fn of(&mut self, dir: &Path, name: &str) -> Result<Option<u32>, LoadError> {
        if !self.has(name)
            && let Some(id) = file::<Whole>(dir)?.number_of(name)
        {
            self.0.entry(id).or_insert_with(|| name.to_owned());
        }
        Ok(self.0.iter().find(|(_, known)| *known == name).map(|(id, _)| *id))
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
    fn number_of(&self, name: &str) -> Option<u32> {
        let added = self.added_tokens.iter().find(|it| it.content == name).map(|it| it.id);
        added.or_else(|| match self.model.as_ref()?.vocab.as_ref()? {
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
