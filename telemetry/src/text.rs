//! A configuration file as TOML, read key by key, so that each mistake is told with its line and with
//! what to write instead. Pure.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

/// A key, and where it stands.
pub type Key<'t> = Spanned<DeString<'t>>;
/// What a key has, and where it stands.
pub type Value<'t> = Spanned<DeValue<'t>>;

/// What is wrong with a file, where, and what to write instead. Shows no value: it may be a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {words}")]
pub struct TextError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub words: String,
}

/// The text of a file, which tells lines.
#[derive(Debug, Clone, Copy)]
pub struct Text<'a>(pub &'a str);

impl<'a> Text<'a> {
    /// The tables and keys of the file.
    ///
    /// # Errors
    /// Where it is not TOML.
    pub fn root(self) -> Result<Spanned<DeTable<'a>>, TextError> {
        DeTable::parse(self.0).map_err(|error| {
            let at = error.span().unwrap_or(0..0);
            self.error(&at, format!("this is not TOML: {}", error.message()))
        })
    }

    /// What a key has is a table.
    ///
    /// # Errors
    /// Where it is something else.
    pub fn table<'t>(self, at: &str, value: &'t Value<'t>) -> Result<&'t DeTable<'t>, TextError> {
        match value.get_ref() {
            DeValue::Table(table) => Ok(table),
            _ => Err(self.error(&value.span(), format!("{at} is a table; write [{at}]"))),
        }
    }

    /// What a key has is a text.
    ///
    /// # Errors
    /// Where it is something else.
    pub fn string(self, at: &str, value: &Value<'_>) -> Result<String, TextError> {
        match value.get_ref() {
            DeValue::String(text) => Ok(text.clone().into_owned()),
            _ => Err(self.error(&value.span(), format!("{at} is a text, in quotes"))),
        }
    }

    /// What a key has is a list of texts.
    ///
    /// # Errors
    /// Where it is something else.
    pub fn strings(self, at: &str, value: &Value<'_>) -> Result<Vec<String>, TextError> {
        let DeValue::Array(texts) = value.get_ref() else {
            let words = format!("{at} is a list of texts, such as [\"a\", \"b\"]");
            return Err(self.error(&value.span(), words));
        };
        texts.iter().map(|text| self.string(at, text)).collect()
    }

    /// What a key has is a number above zero.
    ///
    /// # Errors
    /// Where it is something else.
    pub fn count(self, at: &str, value: &Value<'_>) -> Result<u32, TextError> {
        let number = match value.get_ref() {
            DeValue::Integer(number) if number.radix() == 10 => number.as_str().parse().ok(),
            _ => None,
        };
        let words = || format!("{at} is a number from 1 to {}", u32::MAX);
        number.filter(|number| *number > 0).ok_or_else(|| self.error(&value.span(), words()))
    }

    /// What a key has is true or false.
    ///
    /// # Errors
    /// Where it is something else.
    pub fn flag(self, at: &str, value: &Value<'_>) -> Result<bool, TextError> {
        match value.get_ref() {
            DeValue::Boolean(flag) => Ok(*flag),
            _ => Err(self.error(&value.span(), format!("{at} is true or false"))),
        }
    }

    /// That nobody knows the key, and which was meant.
    #[must_use]
    pub fn unknown(self, at: &str, key: &Key<'_>, known: &[&str]) -> TextError {
        let name = key.get_ref();
        let own = if at.is_empty() { name.clone().into_owned() } else { format!("{at}.{name}") };
        let shown: String = own.chars().take(128).collect();
        let nearest = known.iter().min_by_key(|other| edits(name, other));
        let nearest = nearest.filter(|other| edits(name, other) <= other.len() / 2);
        let words = match nearest {
            Some(nearest) => format!("key {shown:?} is not known; use {nearest}"),
            None => format!("key {shown:?} is not known; the keys are {}", known.join(", ")),
        };
        self.error(&key.span(), words)
    }

    /// What is wrong here.
    #[must_use]
    pub fn error(self, at: &Range<usize>, words: String) -> TextError {
        TextError { line: self.line(at), words }
    }

    /// The line of a place, from 1.
    #[must_use]
    pub fn line(self, at: &Range<usize>) -> usize {
        let before = self.0.as_bytes().iter().take(at.start);
        1 + before.filter(|byte| **byte == b'\n').count()
    }
}

/// Letters to insert, delete or replace until `a` is `b`.
#[must_use]
pub fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(left != *right);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_value_is_told_with_its_line_and_what_to_write() {
        let file = Text("a = 1\nb = 0\nc = [1]\n");
        let root = file.root().unwrap();
        let told = |name: &str| {
            let (key, value) = root.get_ref().get_key_value(name).unwrap();
            let at = key.get_ref();
            let told = [
                file.table(at, value).map(drop),
                file.string(at, value).map(drop),
                file.strings(at, value).map(drop),
                file.count(at, value).map(drop),
            ];
            told.map(|told| told.err().map(|error| error.to_string()))
        };
        assert_eq!(told("a")[3], None);
        assert_eq!(told("b")[3].as_deref(), Some("line 2: b is a number from 1 to 4294967295"));
        assert_eq!(told("a")[0].as_deref(), Some("line 1: a is a table; write [a]"));
        assert_eq!(told("a")[1].as_deref(), Some("line 1: a is a text, in quotes"));
        assert_eq!(told("c")[2].as_deref(), Some("line 3: c is a text, in quotes"));
        assert!(told("b")[2].as_deref().unwrap().starts_with("line 2: b is a list of texts"));
        assert!(Text("a = \n").root().unwrap_err().to_string().starts_with("line 1: this is not"));
    }

    #[test]
    fn the_nearest_key_is_named_and_all_where_none_is_near() {
        let file = Text("\nquue = 1\ncolour = 2");
        let root = file.root().unwrap();
        let told = |name: &str| {
            let (key, _) = root.get_ref().get_key_value(name).unwrap();
            file.unknown("models.a", key, &["queue", "results"]).to_string()
        };
        assert_eq!(told("quue"), "line 2: key \"models.a.quue\" is not known; use queue");
        assert!(told("colour").ends_with("not known; the keys are queue, results"));
    }
}
