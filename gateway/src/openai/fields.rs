//! Reads the body of a request in one pass: what is handed on stays as it was written.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::refused::Refused;
use super::values::{Messages, Text, Texts};

/// The fields of a request. One that is `null` is not there.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    small: BTreeMap<Cow<'a, str>, &'a RawValue>,
    texts: BTreeMap<&'static str, Texts<'a>>,
    messages: Option<Messages<'a>>,
}

/// Fields of texts, of all routes; their values may be long.
const TEXTS: [&str; 5] = ["input", "inputs", "prompt", "documents", "texts"];
/// The field of a conversation.
pub(super) const MESSAGES: &str = "messages";

impl<'a> Fields<'a> {
    /// Reads a body.
    pub(super) fn read(body: &'a [u8]) -> Result<Self, Refused> {
        serde_json::from_slice(body).map_err(|error| {
            let message = format!("body: {error}; send an object of JSON in UTF-8");
            Refused::new(400, "invalid_json", message)
        })
    }

    /// The names of all that are there.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        let small = self.small.keys().map(AsRef::as_ref);
        let messages = self.messages.iter().map(|_| MESSAGES);
        small.chain(self.texts.keys().copied()).chain(messages)
    }

    /// The value of a field that is neither of texts nor of messages.
    pub(super) fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.small.get(name).copied()
    }

    /// The texts of a field.
    pub(super) fn texts(&mut self, name: &str) -> Option<Texts<'a>> {
        self.texts.remove(name)
    }

    /// The conversation.
    pub(super) fn messages(&mut self) -> Option<Messages<'a>> {
        self.messages.take()
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
    match serde_json::from_str(value.get()) {
        Ok(Value::Null | Value::Bool(false)) => true,
        Ok(Value::Number(number)) => number.as_f64() == Some(0.0),
        Ok(Value::String(text)) => text.is_empty(),
        Ok(Value::Array(list)) => list.is_empty(),
        Ok(Value::Object(map)) => map.is_empty(),
        Ok(Value::Bool(true)) | Err(_) => false,
    }
}

/// Whether a value is the same as one of these, however it is spaced.
pub(super) fn is_one_of(value: &RawValue, all: &[&str]) -> bool {
    let value: Option<Value> = serde_json::from_str(value.get()).ok();
    value.is_some_and(|value| all.contains(&value.to_string().as_str()))
}

fn is_null(value: &RawValue) -> bool {
    value.get() == "null"
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let (small, texts, messages) = (BTreeMap::new(), BTreeMap::new(), None);
                let mut fields = Fields { small, texts, messages };
                while let Some(Text(name)) = map.next_key()? {
                    let is_twice = if let Some(name) = TEXTS.into_iter().find(|it| *it == name) {
                        let texts: Option<Texts<'_>> = map.next_value()?;
                        texts.and_then(|texts| fields.texts.insert(name, texts)).is_some()
                    } else if name == MESSAGES {
                        let messages: Option<Messages<'_>> = map.next_value()?;
                        messages.and_then(|it| fields.messages.replace(it)).is_some()
                    } else {
                        let value: &RawValue = map.next_value()?;
                        let is_given = !is_null(value);
                        is_given && fields.small.insert(name.clone(), value).is_some()
                    };
                    if is_twice {
                        return Err(A::Error::custom(format_args!("{name} is there twice")));
                    }
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(Read)
    }
}
