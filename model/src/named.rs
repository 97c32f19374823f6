//! Tokens that the small files beside a tokenizer name: what each is for, and its number.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::LoadError;
use crate::catalog::PURPOSES;
use crate::json::{Fields, InOrder, read_json};

/// The field of `tokenizer_config.json` that numbers tokens.
pub(crate) const NUMBERS: &str = "added_tokens_decoder";
const EXTRA: &str = "extra_special_tokens";
/// What version 4 called them.
const ADDITIONAL: &str = "additional_special_tokens";

/// The tokens that a class of tokenizers has by purpose where nothing is said of it.
pub(crate) type Own<'a> = &'a [(&'a str, &'a str)];

/// A token as a small file has it.
#[derive(Deserialize, Clone)]
#[cfg_attr(
    not(feature = "cpu"),
    expect(dead_code, reason = "without a tokenizer only names count")
)]
pub(crate) struct Written {
    pub(crate) content: String,
    #[serde(default)]
    pub(crate) single_word: bool,
    #[serde(default)]
    pub(crate) lstrip: bool,
    #[serde(default)]
    pub(crate) rstrip: bool,
    pub(crate) normalized: Option<bool>,
    #[serde(default)]
    pub(crate) special: bool,
}

/// One that has a number.
#[cfg_attr(
    not(feature = "cpu"),
    expect(dead_code, reason = "without a tokenizer only names count")
)]
pub(crate) struct Numbered {
    pub(crate) id: u32,
    pub(crate) token: Written,
    /// Whether it is for something, and special so, whatever else is said of it.
    pub(crate) is_for: bool,
}

/// A field of `tokenizer_config.json`, as far as tokens are numbered in the order of their names there.
#[derive(Deserialize)]
#[serde(untagged)]
enum Field {
    Text(String),
    Names(InOrder<Value>),
    Other(IgnoredAny),
}

/// Tokens as the small files name them.
pub(crate) struct Named<'a> {
    config: &'a Fields,
    /// Two files that count only where the first has no list of numbers, even an empty one.
    map: Fields,
    numbers: Fields,
    /// By what each is for.
    by_purpose: Vec<(String, Written)>,
    extra: Vec<Written>,
    /// Of `extra` the first so many are special by `added_tokens.json` too.
    n_said: usize,
}

impl<'a> Named<'a> {
    /// Reads the files beside `tokenizer_config.json` as far as they count.
    ///
    /// # Errors
    /// When a token is not written as one: which file and field.
    pub(crate) fn read(dir: &Path, config: &'a Fields, own: Own<'_>) -> Result<Self, LoadError> {
        let older = |name: &str| match config.says(NUMBERS) {
            true => Ok(Fields::none(&dir.join(name))),
            false => Fields::read_if_there(&dir.join(name)),
        };
        let (map, numbers) = (older("special_tokens_map.json")?, older("added_tokens.json")?);
        let (by_purpose, extra) = (Vec::new(), Vec::new());
        let mut named = Self { config, map, numbers, by_purpose, extra, n_said: 0 };
        named.by_purpose = named.by_purpose(own)?;
        (named.extra, named.n_said) = named.extra()?;
        Ok(named)
    }

    /// What each token is called by what it is for, as templates of transformers may write it.
    pub(crate) fn by_name(&self) -> BTreeMap<String, String> {
        let names = self.by_purpose.iter().map(|(name, it)| (name.clone(), it.content.clone()));
        names.collect()
    }

    /// The tokens that are for something, in the order in which they get numbers.
    pub(crate) fn purposes(&self) -> impl Iterator<Item = &Written> {
        self.by_purpose.iter().map(|(_, token)| token)
    }

    /// What the token for a purpose is called, where a file or the class says.
    #[cfg(feature = "cpu")]
    pub(crate) fn name_of(&self, purpose: &str) -> Option<&str> {
        let found = self.by_purpose.iter().rev().find(|(name, _)| name == purpose);
        found.map(|(_, token)| &*token.content)
    }

    /// A token for a purpose that is not what it must be, by the file that says what it is.
    #[cfg(feature = "cpu")]
    pub(crate) fn wrong(
        &self,
        purpose: &str,
        found: impl std::fmt::Display,
        remedy: &str,
    ) -> LoadError {
        self.who_says(purpose).unwrap_or(self.config).wrong(purpose, found, remedy)
    }

    /// The tokens of the lists, in the same order behind them.
    #[cfg(feature = "cpu")]
    pub(crate) fn others(&self) -> &[Written] {
        &self.extra
    }

    /// Whether `tokenizer_config.json` numbers tokens, be it none: older files do not count then.
    pub(crate) fn is_numbered(&self) -> bool {
        self.config.says(NUMBERS)
    }

    /// A token whose number is another in the tokenizer, or that has none there.
    #[cfg(feature = "cpu")]
    pub(crate) fn misnumbered(&self, id: u32, content: &str, found: Option<u32>) -> LoadError {
        let found = found.map_or("none".to_owned(), |found| found.to_string());
        let remedy =
            format!("by tokenizer.json its number is {found}; take both files of the same model");
        match self.is_numbered() {
            true => self.config.wrong(&format!("{NUMBERS}.{id}"), format!("{content:?}"), &remedy),
            false => self.numbers.wrong(content, id, &remedy),
        }
    }

    /// The file that counts for a purpose.
    fn who_says(&self, purpose: &str) -> Option<&Fields> {
        [&self.map, self.config].into_iter().find(|fields| fields.says(purpose))
    }

    fn by_purpose(&self, own: Own<'_>) -> Result<Vec<(String, Written)>, LoadError> {
        let mut found = Vec::new();
        let mut add = |name: &str, token: Written| found.push((name.to_owned(), token));
        for purpose in PURPOSES {
            let said = self.who_says(purpose);
            let own = own.iter().find(|(name, _)| *name == purpose);
            match (said, own) {
                (Some(fields), _) => {
                    token_of(fields, purpose)?.into_iter().for_each(|token| add(purpose, token));
                }
                (None, Some((_, content))) => add(purpose, Written::special(content)),
                (None, None) => {}
            }
        }
        // A class, and a model, may have names of its own for what a token is for.
        let is_other = |name: &str| name.ends_with("_token") && !PURPOSES.contains(&name);
        for (name, content) in own.iter().filter(|(name, _)| is_other(name)) {
            let said = self.config.says(name).then(|| token_of(self.config, name)).transpose()?;
            let token = said.unwrap_or_else(|| Some(Written::special(content)));
            token.into_iter().for_each(|token| add(name, token));
        }
        if self.config.is_empty() {
            return Ok(found);
        }
        let InOrder(fields) = read_json::<InOrder<Field>>(self.config.path())?;
        let is_new = |name: &str| is_other(name) && !own.iter().any(|(known, _)| *known == name);
        let mut extra = Vec::new();
        for (name, field) in &fields {
            match field {
                Field::Text(content) if is_new(name) => add(name, Written::special(content)),
                Field::Names(InOrder(tokens)) if name == EXTRA => {
                    let named = tokens.iter().filter_map(|(name, it)| Some((name, it.as_str()?)));
                    extra.extend(named.map(|(name, it)| (name.clone(), Written::special(it))));
                }
                _ => {}
            }
        }
        found.extend(extra);
        Ok(found)
    }

    /// The tokens of the lists, and of how many of them `added_tokens.json` knows: a list by the older
    /// name counts there only where the newer name holds nothing, and never that of the map.
    fn extra(&self) -> Result<(Vec<Written>, usize), LoadError> {
        let mut found = tokens_of(&self.map, EXTRA)?;
        let from_map = found.len();
        let mut listed = tokens_of(self.config, EXTRA)?;
        if listed.is_empty() {
            listed = tokens_of(self.config, ADDITIONAL)?;
        }
        let has_names = |it: &Value| it.as_object().is_some_and(|names| !names.is_empty());
        let n_said = match self.config.value(EXTRA).is_some_and(has_names) {
            true => from_map,
            false => from_map + listed.len(),
        };
        match n_said == from_map {
            true => found.extend(listed),
            false => {
                listed.append(&mut found);
                found = listed;
            }
        }
        // An object there names tokens by purpose, and is no list.
        let is_list =
            self.config.says(EXTRA) && self.config.value(EXTRA).is_none_or(|it| !it.is_object());
        if !is_list && !self.config.says(ADDITIONAL) && !self.map.says(EXTRA) {
            found.extend(tokens_of(&self.map, ADDITIONAL)?);
        }
        Ok((found, n_said))
    }

    /// The tokens that are named with a number, in the order of these.
    ///
    /// # Errors
    /// When a number is none, or a token is not written as one: which file and field.
    pub(crate) fn by_number(&self) -> Result<Vec<Numbered>, LoadError> {
        let wrong = |found: &dyn std::fmt::Display| {
            self.config.wrong(NUMBERS, found, "it must be of numbers and tokens with content")
        };
        let for_some: HashSet<&str> = self.by_purpose.iter().map(|(_, it)| &*it.content).collect();
        let is_for = |content: &str| for_some.contains(content);
        let said = self.said()?;
        let mut found = Vec::new();
        for (id, token) in self.config.object(NUMBERS)?.into_iter().flatten() {
            let id: u32 = id.parse().map_err(|_| wrong(&format!("of {id:?}")))?;
            let token = Written::deserialize(token).map_err(|error| wrong(&error))?;
            found.push(Numbered { id, is_for: is_for(&token.content), token });
        }
        for (content, id) in self.numbers.all() {
            let wrong = || self.numbers.wrong(content, id, "it must be the number of a token");
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong)?;
            let token = Written { special: said.contains(content), ..Written::special(content) };
            found.push(Numbered { id, is_for: is_for(content), token });
        }
        found.sort_by_key(|it| it.id);
        Ok(found)
    }

    /// What `added_tokens.json` takes for special: not what only a class or a model's own name says.
    fn said(&self) -> Result<HashSet<String>, LoadError> {
        let mut said: HashSet<String> =
            self.extra[..self.n_said].iter().map(|it| it.content.clone()).collect();
        for purpose in PURPOSES {
            if let Some(fields) = self.who_says(purpose) {
                said.extend(token_of(fields, purpose)?.map(|it| it.content));
            }
        }
        Ok(said)
    }
}

/// The token of a field, which is a text or an object with one.
fn token_of(fields: &Fields, name: &str) -> Result<Option<Written>, LoadError> {
    let Some(value) = fields.value(name) else { return Ok(None) };
    let wrong = || fields.wrong(name, "another", "it must be a text, or an object with content");
    Written::of(value).map(Some).ok_or_else(wrong)
}

/// The tokens of a list; of another form there is none.
fn tokens_of(fields: &Fields, name: &str) -> Result<Vec<Written>, LoadError> {
    let Some(Value::Array(list)) = fields.value(name) else { return Ok(Vec::new()) };
    let wrong = || fields.wrong(name, "another", "it must be a list of texts, or of objects");
    list.iter().map(|value| Written::of(value).ok_or_else(wrong)).collect()
}

impl Written {
    fn of(value: &Value) -> Option<Self> {
        match value {
            Value::String(content) => Some(Self::special(content)),
            other => Self::deserialize(other).ok(),
        }
    }

    fn special(content: &str) -> Self {
        let (content, normalized, special) = (content.to_owned(), None, true);
        Self { content, single_word: false, lstrip: false, rstrip: false, normalized, special }
    }
}
