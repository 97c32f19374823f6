//! The texts of a request.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::Bounds;
use super::fields::Fields;
use super::refused::{Place, Refused};
use super::values::{List, OneOrMany};

/// Texts as JSON has them, and where they were.
#[derive(Debug)]
pub(super) struct Inputs<'a> {
    pub(super) texts: Vec<Cow<'a, str>>,
    pub(super) place: Place,
}

/// The texts of a field, each to be a job of its own that has it by this name.
pub(super) fn inputs<'a>(
    fields: &mut Fields<'a>,
    field: &'static str,
    in_job: &'static str,
    bounds: &Bounds,
) -> Result<Inputs<'a>, Refused> {
    match fields.take(field) {
        None => Err(Refused::missing(field, "send a text or a list of texts")),
        Some(OneOrMany::One(text)) => {
            let place = Place { field, in_job, is_spread: false };
            Ok(Inputs { texts: vec![quoted(&text).into()], place })
        }
        Some(OneOrMany::Many(List { items, n })) => {
            check_count(field, n, bounds.max_inputs)?;
            let items = items.into_iter().enumerate();
            let texts = items.map(|(index, item)| text(item, field, index));
            let texts = texts.collect::<Result<_, _>>()?;
            Ok(Inputs { texts, place: Place { field, in_job, is_spread: true } })
        }
        Some(OneOrMany::Other(kind)) => Err(not_texts(field, kind)),
    }
}

/// A text of a list.
fn text<'a>(item: &'a RawValue, field: &str, index: usize) -> Result<Cow<'a, str>, Refused> {
    if is_text(item) {
        return Ok(item.get().into());
    }
    let remedy = match field {
        "input" => "send texts, not tokens (LangChain: check_embedding_ctx_length=False)",
        _ => "send texts, not tokens",
    };
    Err(Refused::wrong(&format!("{field}[{index}]"), item, remedy))
}

pub(super) fn is_text(value: &RawValue) -> bool {
    value.get().starts_with('"')
}

pub(super) fn is_object(value: &RawValue) -> bool {
    value.get().starts_with('{')
}

pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

pub(super) fn not_texts(field: &str, kind: &str) -> Refused {
    Refused::invalid(field, format!("{field} is {kind}; send a text or a list of texts"))
}

/// Refuses a list that is too long, or of nothing.
pub(super) fn check_count(field: &str, n: usize, most: usize) -> Result<(), Refused> {
    if (1..=most).contains(&n) {
        return Ok(());
    }
    let code = if n > most { "too_many_inputs" } else { "invalid_value" };
    Err(Refused { code, ..Refused::invalid(field, format!("{field} has {n}; send 1 to {most}")) })
}
