//! Bodies of JSON, and what is said of one that is not what a model takes.

use std::collections::BTreeMap;

use ebb_queue::Job;
use ebb_telemetry::edits;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::error::Category;

use super::BadJob;

/// Letters of a field that are compared: no field of ours has more.
const LONGEST: usize = 64;
/// Fields that are compared: who sends more of them has not mistyped one.
const MOST: usize = 64;

/// What a model takes in a body of JSON.
pub(super) struct Shape {
    /// Such a body, for whoever sent another.
    pub(super) example: &'static str,
    /// The fields that it may have.
    pub(super) fields: &'static [&'static str],
}

impl Shape {
    /// Reads a body, whatever the content type says: plain clients rarely set one.
    pub(super) fn read<T: DeserializeOwned>(&self, job: &Job) -> Result<T, BadJob> {
        // A field with a slip in it may be the one that is missing.
        if let Ok(fields) = serde_json::from_slice::<BTreeMap<String, IgnoredAny>>(&job.body) {
            refuse_slips(fields.keys().map(String::as_str), self.fields)?;
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

/// Refuses a field that nobody knows and that is nearly one of these: it was meant to have an effect.
/// Others may stand there, and mean nothing here.
pub(super) fn refuse_slips<'a>(
    fields: impl Iterator<Item = &'a str>,
    known: &[&str],
) -> Result<(), BadJob> {
    let unknown = fields.filter(|field| field.len() <= LONGEST && !known.contains(field));
    for field in unknown.take(MOST) {
        let lower = field.to_lowercase();
        let nearest = known.iter().map(|own| (edits(&lower, own), own)).min();
        if let Some((_, own)) = nearest.filter(|(n_edits, own)| *n_edits <= own.len() / 4) {
            return Err(BadJob::new(format!("{field} is not known; use {own}")));
        }
    }
    Ok(())
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
    use super::*;

    fn told(field: &str) -> Option<String> {
        const KNOWN: &[&str] = &["n", "stop", "input", "top_p", "max_tokens", "dimensions"];
        refuse_slips([field].into_iter(), KNOWN).err().map(|error| error.to_string())
    }

    #[test]
    fn a_field_that_is_nearly_a_known_one_is_refused_with_it() {
        for (field, known) in [
            ("max_token", "max_tokens"),
            ("maxTokens", "max_tokens"),
            ("dimensoins", "dimensions"),
            ("inputs", "input"),
            ("Input", "input"),
            ("topp", "top_p"),
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
    fn so_many_fields_are_no_slips() {
        let many: Vec<String> = (0..MOST).map(|n| format!("other-{n}")).collect();
        let fields = many.iter().map(String::as_str).chain(["inputs"]);
        assert!(refuse_slips(fields, &["input"]).is_ok());
    }
}
