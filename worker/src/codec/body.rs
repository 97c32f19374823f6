//! Bodies of JSON, and what is said of one that is not what a model takes.

use std::fmt;

use ebb_queue::Job;
use ebb_telemetry::edits;
use serde::Deserializer;
use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use serde_json::error::Category;

use super::BadJob;

/// Letters of a field that are compared: no field of ours has more.
const LONGEST: usize = 64;
/// Fields that are compared: who sends more of them has not mistyped one.
const MOST: usize = 64;
/// Letters of a name that has many neighbours.
const SHORT: usize = 5;

/// What a model takes in a body of JSON.
pub(super) struct Shape {
    /// Such a body, for whoever sent another.
    pub(super) example: &'static str,
    /// The fields that it may have; empty where a slip in one is looked for elsewhere.
    pub(super) fields: &'static [&'static str],
}

impl Shape {
    /// Reads a body, whatever the content type says: plain clients rarely set one.
    pub(super) fn read<T: DeserializeOwned>(&self, job: &Job) -> Result<T, BadJob> {
        if !self.fields.is_empty() {
            // A field with a slip in it may be the one that is missing.
            let mut slip = None;
            let look = Look { known: self.fields, slip: &mut slip };
            // What is no object is told of below.
            serde_json::Deserializer::from_slice(&job.body).deserialize_map(look).ok();
            slip.map_or(Ok(()), Err)?;
        }
        serde_json::from_slice(&job.body).map_err(|error| {
            let why = match error.classify() {
                Category::Syntax | Category::Eof => not_json(&error),
                _ => error.to_string(),
            };
            BadJob::new(format!("body: {why}; send {}", self.example))
        })
    }
}

/// Looks for a slip in the fields of a body as they come, and keeps none of them.
struct Look<'a> {
    known: &'a [&'a str],
    slip: &'a mut Option<BadJob>,
}

impl<'de> Visitor<'de> for Look<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut n_unknown = 0;
        while n_unknown < MOST
            && let Some(field) = map.next_key::<String>()?
        {
            n_unknown += usize::from(!self.known.contains(&&*field));
            let Err(slip) = refuse_slip(&field, self.known) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if !says_nothing(&map.next_value()?) {
                *self.slip = Some(slip);
                break;
            }
        }
        Ok(())
    }
}

/// The same for fields that are kept.
pub(super) fn refuse_slips<'a>(
    fields: impl Iterator<Item = (&'a str, &'a Value)>,
    known: &[&str],
) -> Result<(), BadJob> {
    let unknown = fields.filter(|(field, _)| !known.contains(field)).take(MOST);
    let mut saying = unknown.filter(|(_, value)| !says_nothing(value));
    saying.try_for_each(|(field, _)| refuse_slip(field, known))
}

/// Refuses a field that nobody knows and that is nearly one of these: it was meant to have an effect.
/// Others may stand there, and mean nothing here.
fn refuse_slip(field: &str, known: &[&str]) -> Result<(), BadJob> {
    if field.len() > LONGEST || known.contains(&field) {
        return Ok(());
    }
    let lower = field.to_lowercase();
    let near = known.iter().filter(|own| is_near(&lower, own));
    match near.min_by_key(|own| (edits(&lower, own), **own)) {
        Some(own) => Err(BadJob::new(format!("{field} is not known; use {own}"))),
        None => Ok(()),
    }
}

/// Whether a field may have been meant as this one. A short one has neighbours that are fields of
/// other servers, as `top_a` is of `top_k`: only a separator, or the last letter, is too many or few.
fn is_near(field: &str, own: &str) -> bool {
    if edits(field, own) > own.len() / 4 {
        return false;
    }
    let [one, other] = [field, own].map(|name| name.replace(['_', '-', ' '], ""));
    own.len() > SHORT || one.starts_with(&other) || other.starts_with(&one)
}

/// Whether a field might as well not be there.
pub(super) fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(true) => false,
    }
}

/// For whoever sent a text, or wrote JSON with a slip in it.
fn not_json(error: &serde_json::Error) -> String {
    let reason = error.to_string();
    let reason = match reason.rsplit_once(" at line ").map_or(&*reason, |(reason, _)| reason) {
        // What a parser says of a text.
        "expected ident" | "expected value" => String::new(),
        slip => format!(" ({slip})"),
    };
    format!("not JSON, at line {}, column {}{reason}", error.line(), error.column())
}

#[cfg(test)]
mod tests {
    use ebb_queue::Timestamp;
    use serde_json::json;

    use super::super::{classifier, echo, encoder, reranker, sentinel, tagger};
    use super::*;

    const KNOWN: &[&str] = &["n", "stop", "seed", "input", "top_k", "max_tokens", "dimensions"];

    fn read(shape: &Shape, body: &str) -> Result<Value, String> {
        shape
            .read(&Job::new(body.to_owned(), Timestamp::UNIX_EPOCH))
            .map_err(|error| error.to_string())
    }

    fn told(field: &str) -> Option<String> {
        let streamed = read(&Shape { example: "", fields: KNOWN }, &json!({field: 1}).to_string());
        let kept = refuse_slips([(field, &json!(1))].into_iter(), KNOWN);
        assert_eq!(streamed.as_ref().err(), kept.err().map(|error| error.to_string()).as_ref());
        streamed.err()
    }

    #[test]
    fn a_field_that_is_nearly_a_known_one_is_refused_with_it() {
        for (field, known) in [
            ("max_token", "max_tokens"),
            ("maxTokens", "max_tokens"),
            ("dimensoins", "dimensions"),
            ("inputs", "input"),
            ("inpu", "input"),
            ("Input", "input"),
            ("topk", "top_k"),
            ("top-k", "top_k"),
        ] {
            let words = format!("{field} is not known; use {known}");
            assert_eq!(told(field), Some(words));
        }
    }

    #[test]
    fn a_field_that_is_known_or_is_like_no_other_is_left_alone() {
        let long = "input".repeat(1000);
        for field in ["input", "n", "m", "", "user", "model", "store", "max_time", "min_p", &long] {
            assert_eq!(told(field), None, "{field}");
        }
    }

    #[test]
    fn what_other_servers_take_is_no_slip_in_a_short_name_of_any_model() {
        let fields = ["step", "need", "speed", "top_n", "top_p", "top_a", "top_k", "fall"];
        let shapes = [
            classifier::SHAPE,
            echo::SHAPE,
            encoder::SHAPE,
            reranker::SHAPE,
            sentinel::SHAPE,
            tagger::SHAPE,
            Shape { example: "", fields: KNOWN },
        ];
        for shape in shapes {
            for field in fields {
                let body = json!({field: 1});
                assert_eq!(read(&shape, &body.to_string()), Ok(body), "{:?}", shape.fields);
            }
        }
    }

    #[test]
    fn a_slip_that_says_nothing_is_left_alone() {
        let shape = Shape { example: "", fields: KNOWN };
        for value in ["null", "0", "0.0", "false", "\"\"", "[]", "{}"] {
            let body = format!(r#"{{"max_token": {value}, "inputs": 1}}"#);
            assert_eq!(read(&shape, &body), Err("inputs is not known; use input".into()));
            let body = format!(r#"{{"max_token": {value}}}"#);
            assert!(read(&shape, &body).is_ok(), "{body}");
        }
        for value in ["1", "true", "\"a\"", "[0]", r#"{"a": null}"#] {
            let body = format!(r#"{{"max_token": {value}}}"#);
            assert_eq!(read(&shape, &body), Err("max_token is not known; use max_tokens".into()));
        }
    }

    #[test]
    fn so_many_fields_are_no_slips() {
        let shape = Shape { example: "", fields: KNOWN };
        for (n_others, is_told) in [(MOST - 1, true), (MOST, false)] {
            let others: String = (0..n_others).map(|n| format!(r#""other-{n}": [1], "#)).collect();
            // Known ones do not count.
            let body = format!(r#"{{"n": 1, "stop": 2, {others}"inputs": 1}}"#);
            assert_eq!(read(&shape, &body).is_err(), is_told);
            let map: serde_json::Map<String, Value> = serde_json::from_str(&body).unwrap();
            let fields = map.iter().map(|(name, value)| (name.as_str(), value));
            let (last, others): (Vec<_>, Vec<_>) = fields.partition(|(name, _)| *name == "inputs");
            let fields = others.into_iter().chain(last);
            assert_eq!(refuse_slips(fields, KNOWN).is_err(), is_told);
        }
    }
}
