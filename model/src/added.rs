//! Tokens that a tokenizer has beside its vocabulary, and that only the small files beside it name.

use std::collections::HashSet;
use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use tokenizers::{AddedToken, Tokenizer};

use crate::LoadError;
use crate::catalog::PURPOSES;
use crate::json::{Fields, InOrder, read_json};

const FIELD: &str = "added_tokens_decoder";
const EXTRA: &str = "extra_special_tokens";
/// What version 4 called them.
const ADDITIONAL: &str = "additional_special_tokens";

#[derive(Deserialize, Clone)]
struct Written {
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
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
struct Named<'a> {
    config: &'a Fields,
    /// Two files that count only where the first has no list of numbers, even an empty one.
    map: Fields,
    numbers: Fields,
    /// Each is for something, and special so, whatever else is said of it.
    by_purpose: Vec<Written>,
    extra: Vec<Written>,
    /// Of `extra` the first so many are special by `added_tokens.json` too.
    n_said: usize,
}

/// Adds what `tokenizer_config.json` names and `tokenizer.json` does not have so, as transformers does:
/// first by number, then what is for something, then the others. Without numbers there, older files
/// count. `own` are the tokens that a class has by purpose where nothing is said of it.
///
/// # Errors
/// When a token would get another number than it has there.
pub(crate) fn add(
    inner: &mut Tokenizer,
    dir: &Path,
    config: &Fields,
    own: &[(&str, &str)],
) -> Result<(), LoadError> {
    let named = Named::read(dir, config, own)?;
    let by_number = named.by_number()?;
    let before = inner.get_added_tokens_decoder();
    let mut known: HashSet<&str> = before.values().map(|it| &*it.content).collect();
    let is_old = config.says(FIELD);
    let is_new = |(id, token): &&(u32, AddedToken)| match is_old {
        true => before.get(id).is_none_or(|it| !is_same(it, token)),
        false => !known.contains(&*token.content),
    };
    let mut new: Vec<AddedToken> =
        by_number.iter().filter(is_new).map(|(_, token)| token.clone()).collect();
    known.extend(by_number.iter().map(|(_, token)| &*token.content));
    let purposes = named.by_purpose.iter().map(|it| (it, true));
    for (written, is_for) in purposes.chain(named.extra.iter().map(|it| (it, false))) {
        if known.insert(&written.content) {
            new.push(written.clone().token(is_for));
        }
    }
    // A number that an older file gives a token of tokenizer.json does not count.
    let is_new =
        |(_, token): &&(u32, AddedToken)| is_old || inner.token_to_id(&token.content).is_none();
    let numbered: Vec<_> = by_number.iter().filter(is_new).collect();
    inner.add_tokens(&new);
    inner.set_encode_special_tokens(config.flag("split_special_tokens")?);
    numbered.iter().try_for_each(|(id, token)| named.check(inner, *id, &token.content))
}

/// What the token for a purpose is called, where the small files say.
pub(crate) fn name_of(
    dir: &Path,
    config: &Fields,
    purpose: &str,
) -> Result<Option<String>, LoadError> {
    let named = Named::read(dir, config, &[])?;
    match named.who_says(purpose) {
        Some(fields) => Ok(token_of(fields, purpose)?.map(|it| it.content)),
        None => Ok(None),
    }
}

impl<'a> Named<'a> {
    fn read(dir: &Path, config: &'a Fields, own: &[(&str, &str)]) -> Result<Self, LoadError> {
        let older = |name: &str| match config.says(FIELD) {
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

    /// The file that counts for a purpose.
    fn who_says(&self, purpose: &str) -> Option<&Fields> {
        [&self.map, self.config].into_iter().find(|fields| fields.says(purpose))
    }

    fn by_purpose(&self, own: &[(&str, &str)]) -> Result<Vec<Written>, LoadError> {
        let mut found = Vec::new();
        for purpose in PURPOSES {
            let said = self.who_says(purpose);
            let own = own.iter().find(|(name, _)| *name == purpose);
            match (said, own) {
                (Some(fields), _) => found.extend(token_of(fields, purpose)?),
                (None, Some((_, content))) => found.push(Written::special(content)),
                (None, None) => {}
            }
        }
        // A model may have names of its own for what a token is for.
        if self.config.is_empty() {
            return Ok(found);
        }
        let InOrder(fields) = read_json::<InOrder<Field>>(self.config.path())?;
        let is_own = |name: &str| name.ends_with("_token") && !PURPOSES.contains(&name);
        let mut extra = Vec::new();
        for (name, field) in &fields {
            match field {
                Field::Text(content) if is_own(name) => found.push(Written::special(content)),
                Field::Names(InOrder(tokens)) if name == EXTRA => {
                    let contents = tokens.iter().filter_map(|(_, value)| value.as_str());
                    extra.extend(contents.map(Written::special));
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
    fn by_number(&self) -> Result<Vec<(u32, AddedToken)>, LoadError> {
        let wrong = |found: &dyn std::fmt::Display| {
            self.config.wrong(FIELD, found, "it must be of numbers and tokens with content")
        };
        let for_some: HashSet<&str> = self.by_purpose.iter().map(|it| &*it.content).collect();
        let is_for = |content: &str| for_some.contains(content);
        let said = self.said()?;
        let mut found = Vec::new();
        for (id, token) in self.config.object(FIELD)?.into_iter().flatten() {
            let number: u32 = id.parse().map_err(|_| wrong(&format!("of {id:?}")))?;
            let written = Written::deserialize(token).map_err(|error| wrong(&error))?;
            let is_for = is_for(&written.content);
            found.push((number, written.token(is_for)));
        }
        for (content, id) in self.numbers.all() {
            let wrong = || self.numbers.wrong(content, id, "it must be the number of a token");
            let number = id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong)?;
            let is_special = said.contains(content);
            let written = Written { special: is_special, ..Written::special(content) };
            found.push((number, written.token(is_for(content))));
        }
        found.sort_by_key(|(id, _)| *id);
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

    /// Holds the number that a token was given against the one that it must have.
    fn check(&self, inner: &Tokenizer, id: u32, content: &str) -> Result<(), LoadError> {
        let number = inner.token_to_id(content);
        if number == Some(id) && inner.id_to_token(id).as_deref() == Some(content) {
            return Ok(());
        }
        let number = number.map_or("none".to_owned(), |number| number.to_string());
        let remedy =
            format!("by tokenizer.json its number is {number}; take both files of the same model");
        Err(match self.config.says(FIELD) {
            true => self.config.wrong(&format!("{FIELD}.{id}"), format!("{content:?}"), &remedy),
            false => self.numbers.wrong(content, id, &remedy),
        })
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

    fn token(self, is_for: bool) -> AddedToken {
        let token = AddedToken::from(self.content, self.special || is_for)
            .single_word(self.single_word)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip);
        token.normalized(self.normalized.unwrap_or(!self.special))
    }
}

/// In all that it does: the library tells two apart by their content alone.
fn is_same(one: &AddedToken, other: &AddedToken) -> bool {
    let flags = |it: &AddedToken| (it.single_word, it.lstrip, it.rstrip, it.normalized, it.special);
    one.content == other.content && flags(one) == flags(other)
}
