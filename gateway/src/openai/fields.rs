//! Reads the body of a request in one pass: what is handed on stays as it was written.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::refused::{Refused, cut, shown};
use super::values::{AtMost, OneOrMany, Text};

/// The fields of a request. One that is `null` is not there.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    small: BTreeMap<Cow<'a, str>, &'a RawValue>,
    large: BTreeMap<&'static str, OneOrMany<'a>>,
}

/// Fields of texts and messages, of all routes; they may be long, and many.
const LARGE: [&str; 6] = ["input", "inputs", "prompt", "documents", "texts", MESSAGES];
const MESSAGES: &str = "messages";
/// Messages of a conversation, as many as workers take.
pub(super) const MAX_MESSAGES: usize = 2048;
/// Fields of a request at most: twice as many as any route knows.
const MAX_FIELDS: usize = 128;
/// Letters that are told of what a reader of JSON says.
const SAID: usize = 160;

impl<'a> Fields<'a> {
    /// Reads a body; of texts no more than so many are kept.
    pub(super) fn read(body: &'a [u8], max_texts: usize) -> Result<Self, Refused> {
        let mut json = serde_json::Deserializer::from_slice(body);
        let fields = Read { max_texts }.deserialize(&mut json);
        let fields = fields.and_then(|fields| json.end().map(|()| fields));
        fields.map_err(|error| {
            let said = error.to_string();
            let message = format!("body: {}; send an object of JSON in UTF-8", cut(&said, SAID));
            Refused::new(400, "invalid_json", message)
        })
    }

    /// The names of all that are there.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        let small = self.small.keys().map(AsRef::as_ref);
        small.chain(self.large.keys().copied())
    }

    /// The value of a field that is neither of texts nor of messages.
    pub(super) fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.small.get(name).copied()
    }

    /// The value of a field of texts or messages, once.
    pub(super) fn take(&mut self, name: &str) -> Option<OneOrMany<'a>> {
        self.large.remove(name)
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<Cow<'a, str>>, Refused> {
        self.parsed(name, "send a text", |_: &Text<'_>| true)
            .map(|text| text.map(|Text(text)| text))
    }

    pub(super) fn flag(&self, name: &str) -> Result<bool, Refused> {
        let flag = self.parsed(name, "send true or false", |_: &bool| true)?;
        Ok(flag.unwrap_or(false))
    }

    pub(super) fn number(&self, name: &str, within: RangeInclusive<f64>) -> Result<(), Refused> {
        let (least, most) = (within.start(), within.end());
        let remedy = format!("send a number from {least} to {most}");
        self.parsed(name, &remedy, |number| within.contains(number)).map(|_| ())
    }

    pub(super) fn whole(&self, name: &str, least: u64) -> Result<Option<u64>, Refused> {
        let remedy = format!("send a whole number from {least} on");
        self.parsed(name, &remedy, |number| *number >= least)
    }

    /// The value of a field, where it is one that this type has and that will do.
    pub(super) fn parsed<T: Deserialize<'a>>(
        &self,
        name: &str,
        remedy: &str,
        will_do: impl Fn(&T) -> bool,
    ) -> Result<Option<T>, Refused> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let parsed = serde_json::from_str(value.get()).ok().filter(will_do);
        parsed.map(Some).ok_or_else(|| Refused::wrong(name, value, remedy))
    }
}

/// Whether a field might as well not be there: what is empty, zero or false.
pub(super) fn says_nothing(value: &RawValue) -> bool {
    let text = value.get();
    let is_empty = |begin: char, end: char| {
        let inside = text.strip_prefix(begin).and_then(|rest| rest.strip_suffix(end));
        inside.is_some_and(|inside| inside.trim_ascii().is_empty())
    };
    let digits = text.split(['e', 'E']).next().unwrap_or_default();
    let is_zero = || digits.bytes().all(|byte| b"-.0".contains(&byte));
    matches!(text, "null" | "false" | "\"\"")
        || is_empty('[', ']')
        || is_empty('{', '}')
        || is_zero()
}

/// Whether a value is the same as one of these, however it is spaced.
pub(super) fn is_one_of(value: &RawValue, all: &[&str]) -> bool {
    /// Bytes of a value that can be one of them: no more are taken apart.
    const MOST: usize = 64;
    let small = (value.get().len() <= MOST).then(|| serde_json::from_str(value.get()).ok());
    let value: Option<serde_json::Value> = small.flatten();
    value.is_some_and(|value| all.contains(&value.to_string().as_str()))
}

/// Reads a request.
#[derive(Debug, Clone, Copy)]
struct Read {
    max_texts: usize,
}

impl<'de> DeserializeSeed<'de> for Read {
    type Value = Fields<'de>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Read {
    type Value = Fields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Fields { small: BTreeMap::new(), large: BTreeMap::new() };
        while let Some(Text(name)) = map.next_key()? {
            let is_twice = if let Some(name) = LARGE.into_iter().find(|it| *it == name) {
                let most = if name == MESSAGES { MAX_MESSAGES } else { self.max_texts };
                let value = map.next_value_seed(AtMost(most))?;
                value.and_then(|value| fields.large.insert(name, value)).is_some()
            } else {
                let value: &RawValue = map.next_value()?;
                let is_given = value.get() != "null";
                is_given && fields.small.insert(name.clone(), value).is_some()
            };
            if is_twice {
                let words = format_args!("{} is there twice", shown(&name));
                return Err(A::Error::custom(words));
            }
            if fields.small.len() > MAX_FIELDS {
                let words = format_args!("more than {MAX_FIELDS} fields are there");
                return Err(A::Error::custom(words));
            }
        }
        Ok(fields)
    }
}
