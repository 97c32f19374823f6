//! Values of a request that stay as they were written, or that may be of any kind.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

/// What a field of texts has.
#[derive(Debug)]
pub(super) enum Texts<'a> {
    One(Cow<'a, str>),
    /// Whatever a list has.
    List(Vec<&'a RawValue>),
    /// No text and no list.
    Other(&'static str),
}

/// What a field of messages has.
#[derive(Debug)]
pub(super) enum Messages<'a> {
    List(Vec<Result<Object<'a>, &'static str>>),
    Other(&'static str),
}

/// An object whose values stay as they were written.
#[derive(Debug, Default)]
pub(super) struct Object<'a>(pub(super) BTreeMap<Cow<'a, str>, &'a RawValue>);

/// A text, borrowed where it has no escapes.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

/// Reads a value of any kind; each kind that is of no use is named.
trait Kind<'a>: Sized {
    const EXPECTED: &'static str;

    fn other(kind: &'static str) -> Self;

    fn text(_: Cow<'a, str>) -> Self {
        Self::other("a text")
    }

    fn list<A: SeqAccess<'a>>(list: A) -> Result<Self, A::Error> {
        ignore_list(list).map(|()| Self::other("a list"))
    }

    fn object<A: MapAccess<'a>>(object: A) -> Result<Self, A::Error> {
        ignore_object(object).map(|()| Self::other("an object"))
    }
}

fn ignore_list<'a, A: SeqAccess<'a>>(mut list: A) -> Result<(), A::Error> {
    while list.next_element::<IgnoredAny>()?.is_some() {}
    Ok(())
}

fn ignore_object<'a, A: MapAccess<'a>>(mut object: A) -> Result<(), A::Error> {
    while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
    Ok(())
}

struct Any<T>(PhantomData<T>);

impl<'a, T: Kind<'a>> Visitor<'a> for Any<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<T, E> {
        Ok(T::other("a boolean"))
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<T, E> {
        Ok(T::other("a number"))
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<T, E> {
        Ok(T::other("a number"))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<T, E> {
        Ok(T::other("a number"))
    }

    fn visit_unit<E: Error>(self) -> Result<T, E> {
        Ok(T::other("null"))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        Ok(T::text(Cow::Owned(text.to_owned())))
    }

    fn visit_borrowed_str<E: Error>(self, text: &'a str) -> Result<T, E> {
        Ok(T::text(Cow::Borrowed(text)))
    }

    fn visit_seq<A: SeqAccess<'a>>(self, list: A) -> Result<T, A::Error> {
        T::list(list)
    }

    fn visit_map<A: MapAccess<'a>>(self, object: A) -> Result<T, A::Error> {
        T::object(object)
    }
}

impl<'a> Kind<'a> for Texts<'a> {
    const EXPECTED: &'static str = "a text or a list of texts";

    fn other(kind: &'static str) -> Self {
        Self::Other(kind)
    }

    fn text(text: Cow<'a, str>) -> Self {
        Self::One(text)
    }

    fn list<A: SeqAccess<'a>>(mut list: A) -> Result<Self, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Self::List(items))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Texts<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any::<Texts<'de>>(PhantomData))
    }
}

impl<'a> Kind<'a> for Messages<'a> {
    const EXPECTED: &'static str = "a list of messages";

    fn other(kind: &'static str) -> Self {
        Self::Other(kind)
    }

    fn list<A: SeqAccess<'a>>(mut list: A) -> Result<Self, A::Error> {
        let mut messages = Vec::new();
        while let Some(Message(message)) = list.next_element()? {
            messages.push(message);
        }
        Ok(Self::List(messages))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Messages<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any::<Messages<'de>>(PhantomData))
    }
}

/// An object, or the kind of what is in its place.
struct Message<'a>(Result<Object<'a>, &'static str>);

impl<'a> Kind<'a> for Message<'a> {
    const EXPECTED: &'static str = "a message";

    fn other(kind: &'static str) -> Self {
        Self(Err(kind))
    }

    fn object<A: MapAccess<'a>>(object: A) -> Result<Self, A::Error> {
        Object::of(object).map(|object| Self(Ok(object)))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Message<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any::<Message<'de>>(PhantomData))
    }
}

impl<'a> Object<'a> {
    fn of<A: MapAccess<'a>>(mut object: A) -> Result<Self, A::Error> {
        let mut fields = BTreeMap::new();
        while let Some((Text(name), value)) = object.next_entry()? {
            if fields.insert(name.clone(), value).is_some() {
                return Err(A::Error::custom(format_args!("{name} is there twice")));
            }
        }
        Ok(Self(fields))
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

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                Object::of(map)
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
