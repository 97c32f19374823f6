//! Values of a request that stay as they were written, or that may be of any kind.
//!
//! A body of a few megabytes can have a million items. So what is read keeps a bounded number of them
//! and counts the others.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::refused::shown;

/// What a field has that may have one thing or many.
#[derive(Debug)]
pub(super) enum OneOrMany<'a> {
    /// A text.
    One(Cow<'a, str>),
    /// Whatever a list has.
    Many(List<'a>),
    /// No text and no list, but this.
    Other(&'static str),
}

/// The items of a list, as they were written.
#[derive(Debug, Default)]
pub(super) struct List<'a> {
    /// The first of them, as many as may be.
    pub(super) items: Vec<&'a RawValue>,
    /// How many there are.
    pub(super) n: usize,
}

/// An object whose values stay as they were written.
#[derive(Debug, Default)]
pub(super) struct Object<'a>(pub(super) BTreeMap<Cow<'a, str>, &'a RawValue>);

/// A text, borrowed where it has no escapes.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

/// Fields of an object at most.
const MAX_FIELDS: usize = 64;

/// Reads a value of any kind, and of a list so many items; nothing where it is `null`.
#[derive(Debug, Clone, Copy)]
pub(super) struct AtMost(pub(super) usize);

impl AtMost {
    /// The same of a value that was read already; nothing as well where it is none.
    pub(super) fn of(self, value: &RawValue) -> Option<OneOrMany<'_>> {
        let mut json = serde_json::Deserializer::from_str(value.get());
        self.deserialize(&mut json).ok().flatten()
    }
}

impl<'de> DeserializeSeed<'de> for AtMost {
    type Value = Option<OneOrMany<'de>>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for AtMost {
    type Value = Option<OneOrMany<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or a list")
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Some(OneOrMany::Other("a boolean")))
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Some(OneOrMany::Other("a number")))
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Self::Value, E> {
        Ok(Some(OneOrMany::Other("a number")))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Some(OneOrMany::Other("a number")))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(OneOrMany::One(Cow::Owned(text.to_owned()))))
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Some(OneOrMany::One(Cow::Borrowed(text))))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while items.len() < self.0
            && let Some(item) = list.next_element()?
        {
            items.push(item);
        }
        let mut n = items.len();
        while list.next_element::<IgnoredAny>()?.is_some() {
            n += 1;
        }
        Ok(Some(OneOrMany::Many(List { items, n })))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Some(OneOrMany::Other("an object")))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = BTreeMap::new();
                while let Some((Text(name), value)) = map.next_entry()? {
                    if fields.len() == MAX_FIELDS {
                        let words = format_args!("more than {MAX_FIELDS} fields are there");
                        return Err(A::Error::custom(words));
                    }
                    if fields.insert(name.clone(), value).is_some() {
                        let words = format_args!("{} is there twice", shown(&name));
                        return Err(A::Error::custom(words));
                    }
                }
                Ok(Object(fields))
            }
        }
        deserializer.deserialize_map(Read)
    }
}

impl Serialize for Object<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(&self.0)
    }
}
