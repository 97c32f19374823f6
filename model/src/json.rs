//! Small JSON files: read whole, or field by field where an error is to name the field.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::LoadError;

/// Letters of a value that an error shows.
const SHOWN: usize = 60;

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, LoadError> {
    let text = std::fs::read_to_string(path).map_err(|error| LoadError::io(path, error))?;
    serde_json::from_str(&text).map_err(|error| LoadError::malformed(path, error))
}

/// Whether a file is there. A link to nothing is: whoever reads it says what is wrong, for a model may
/// run without the file and be another.
pub(crate) fn is_there(path: &Path) -> Result<bool, LoadError> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(LoadError::io(path, error)),
    }
}

/// An object in the order of its file, where what comes first counts: a [`Map`] is sorted by name.
pub(crate) struct InOrder<T>(pub(crate) Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for InOrder<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(InFileOrder(PhantomData))
    }
}

struct InFileOrder<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for InFileOrder<T> {
    type Value = InOrder<T>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    /// Of a name that comes twice the last value counts, in the place of the first.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<InOrder<T>, A::Error> {
        let (mut all, mut places) = (Vec::<(String, T)>::new(), HashMap::new());
        while let Some((name, value)) = map.next_entry::<String, T>()? {
            let place = *places.entry(name.clone()).or_insert(all.len());
            match all.get_mut(place) {
                Some(old) => old.1 = value,
                None => all.push((name, value)),
            }
        }
        Ok(InOrder(all))
    }
}

/// An object whose fields are taken one by one: of a wrong one serde tells the line, this the name.
///
/// A field that is `null` is not there: Python writes its `None` so.
#[derive(Debug)]
pub(crate) struct Fields {
    path: PathBuf,
    map: Map<String, Value>,
}

impl Fields {
    pub(crate) fn read(path: &Path) -> Result<Self, LoadError> {
        match read_json(path)? {
            Value::Object(map) => Ok(Self { path: path.to_owned(), map }),
            _ => Err(LoadError::malformed(path, "not a JSON object; fetch it again")),
        }
    }

    /// The same, without fields where there is no such file.
    pub(crate) fn read_if_there(path: &Path) -> Result<Self, LoadError> {
        if is_there(path)? {
            return Self::read(path);
        }
        Ok(Self::none(path))
    }

    /// A file that is not there, or does not count.
    pub(crate) fn none(path: &Path) -> Self {
        Self { path: path.to_owned(), map: Map::new() }
    }

    /// All fields, whatever stands in them.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.map.iter().map(|(name, value)| (&**name, value))
    }

    /// Whether there is nothing in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Whether a field stands there, be it `null`: without it the class of a model has a value of its own.
    pub(crate) fn says(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// A text; `names` are those that the field has in one model or another.
    pub(crate) fn text(&self, names: &[&str]) -> Result<Option<&str>, LoadError> {
        self.take(names, "it must be a text", Value::as_str)
    }

    /// A list of texts, empty where there is none.
    pub(crate) fn texts(&self, name: &str) -> Result<Vec<&str>, LoadError> {
        let texts = self.take(&[name], "it must be a list of texts", texts)?;
        Ok(texts.unwrap_or_default())
    }

    /// One number of a token, or several.
    pub(crate) fn ids(&self, name: &str) -> Result<Option<Vec<u32>>, LoadError> {
        let id = |value: &Value| u32::try_from(value.as_u64()?).ok();
        let ids = |value: &Value| match value {
            Value::Array(several) => several.iter().map(id).collect(),
            one => Some(vec![id(one)?]),
        };
        self.take(&[name], "it must be the number of a token, or a list of them", ids)
    }

    pub(crate) fn flag(&self, name: &str) -> Result<bool, LoadError> {
        Ok(self.choice(name)?.unwrap_or_default())
    }

    /// A flag of which it matters that it is not there.
    pub(crate) fn choice(&self, name: &str) -> Result<Option<bool>, LoadError> {
        self.take(&[name], "it must be true or false", Value::as_bool)
    }

    pub(crate) fn object(&self, name: &str) -> Result<Option<&Map<String, Value>>, LoadError> {
        self.take(&[name], "it must be an object", Value::as_object)
    }

    /// A number within these.
    pub(crate) fn number(
        &self,
        name: &str,
        within: RangeInclusive<f64>,
    ) -> Result<Option<f64>, LoadError> {
        let remedy = format!("it must be a number from {} to {}", within.start(), within.end());
        self.take(&[name], &remedy, |value| value.as_f64().filter(|it| within.contains(it)))
    }

    /// A whole number within these.
    pub(crate) fn size(
        &self,
        names: &[&str],
        within: RangeInclusive<usize>,
    ) -> Result<Option<usize>, LoadError> {
        let (least, most) = (within.start(), within.end());
        let remedy = format!("it must be a whole number from {least} to {most}");
        let size = |value: &Value| usize::try_from(value.as_u64()?).ok();
        self.take(names, &remedy, |value| size(value).filter(|it| within.contains(it)))
    }

    /// The same, of a field without which there is no model.
    pub(crate) fn required_size(
        &self,
        names: &[&str],
        within: RangeInclusive<usize>,
    ) -> Result<usize, LoadError> {
        let missing = || self.wrong(names[0], "missing", "it is part of every such model");
        self.size(names, within)?.ok_or_else(missing)
    }

    /// A number of tokens, for which some write 1e30 where there is no limit.
    pub(crate) fn limit(&self, name: &str) -> Result<Option<usize>, LoadError> {
        // A float to integer cast saturates, which is what 1e30 asks for.
        let limit = |value: &Value| value.as_f64().filter(|it| *it >= 1.0).map(|it| it as usize);
        self.take(&[name], "it must be a number from 1 on", limit)
    }

    /// Whatever stands in a field.
    pub(crate) fn value(&self, name: &str) -> Option<&Value> {
        self.get(name).filter(|value| !value.is_null())
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A field of this file that holds what it must not.
    pub(crate) fn wrong(
        &self,
        name: &str,
        found: impl std::fmt::Display,
        remedy: &str,
    ) -> LoadError {
        LoadError::unsupported(&self.path, name, found, remedy)
    }

    fn take<'a, T>(
        &'a self,
        names: &[&str],
        remedy: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, LoadError> {
        let mut there = names.iter().filter_map(|name| Some((*name, self.get(name)?)));
        let Some((name, value)) = there.find(|(_, value)| !value.is_null()) else {
            return Ok(None);
        };
        read(value).map(Some).ok_or_else(|| self.wrong(name, shown(value), remedy))
    }

    /// A field, or with dots between their names one of a field that is an object.
    fn get(&self, name: &str) -> Option<&Value> {
        let (first, inner) = name.split_once('.').unwrap_or((name, ""));
        let mut inner = inner.split('.').filter(|name| !name.is_empty());
        inner.try_fold(self.map.get(first)?, |value, name| value.get(name))
    }
}

fn texts(list: &Value) -> Option<Vec<&str>> {
    list.as_array()?.iter().map(Value::as_str).collect()
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Fields {
        let Value::Object(map) = serde_json::from_str(text).unwrap() else { panic!("{text}") };
        Fields { path: "config.json".into(), map }
    }

    #[test]
    fn null_is_a_field_that_is_not_there() {
        for fields in [of("{}"), of(r#"{"a": null, "b": null, "c": null}"#)] {
            assert_eq!(fields.text(&["a"]).unwrap(), None);
            assert_eq!(fields.texts("a").unwrap(), [""; 0]);
            assert_eq!(fields.size(&["a", "b"], 1..=9).unwrap(), None);
            assert_eq!((fields.limit("a").unwrap(), fields.flag("b").unwrap()), (None, false));
            assert_eq!(fields.text(&["c.d"]).unwrap(), None);
            let error = fields.required_size(&["a", "b"], 1..=9).unwrap_err().to_string();
            assert!(error.contains("config.json: a is missing"), "{error}");
        }
        assert_eq!(of(r#"{"a": null, "b": 3}"#).size(&["a", "b"], 1..=9).unwrap(), Some(3));
        assert_eq!(of(r#"{"c": {"d": "e"}}"#).text(&["c.d"]).unwrap(), Some("e"));
    }

    #[test]
    fn what_is_no_such_value_is_named_and_shown_in_short() {
        for value in ["0", "10", "-1", "2.5", "3.0", "1e30", "18446744073709551616", "\"3\""] {
            let error = of(&format!(r#"{{"n": {value}}}"#)).size(&["n"], 1..=9).unwrap_err();
            assert!(error.to_string().contains("a whole number from 1 to 9"), "{error}");
        }
        for value in ["0", "-3", "true"] {
            of(&format!(r#"{{"n": {value}}}"#)).limit("n").unwrap_err();
        }
        assert_eq!(of(r#"{"n": 1e30}"#).limit("n").unwrap(), Some(usize::MAX));
        let long = format!(r#"{{"n": [{}1]}}"#, "1, ".repeat(1000));
        let error = of(&long).text(&["n"]).unwrap_err().to_string();
        assert!(error.starts_with("config.json: n is [1,1,") && error.len() < 150, "{error}");
    }
}
