//! Embeddings: each text is a job, and all vectors are one list.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::body::{Body, json};
use super::fields::Fields;
use super::inputs::{Inputs, inputs};
use super::{About, Answer, Bounds, Refused, Route, Shape};

/// What an encoder answers.
#[derive(Debug, Deserialize)]
struct Told<'a> {
    #[serde(borrow)]
    data: Vec<Vector<'a>>,
    usage: Usage,
}

#[derive(Debug, Deserialize)]
struct Vector<'a> {
    #[serde(borrow)]
    embedding: &'a RawValue,
    #[serde(default)]
    truncated: bool,
}

/// What jobs took.
#[derive(Debug, Clone, Copy, Default, Deserialize, Serialize)]
pub(super) struct Usage {
    pub(super) prompt_tokens: u64,
    pub(super) total_tokens: u64,
}

impl Usage {
    pub(super) fn add(&mut self, other: Self) {
        self.prompt_tokens = self.prompt_tokens.saturating_add(other.prompt_tokens);
        self.total_tokens = self.total_tokens.saturating_add(other.total_tokens);
    }
}

#[derive(Debug, Serialize)]
struct Response<'a> {
    object: &'static str,
    data: Vec<Item<'a>>,
    model: &'a str,
    usage: Usage,
}

#[derive(Debug, Serialize)]
struct Item<'a> {
    object: &'static str,
    index: usize,
    embedding: &'a RawValue,
    truncated: bool,
}

pub(super) fn read(
    fields: &mut Fields<'_>,
    bounds: &Bounds,
) -> Result<(Vec<Bytes>, Answer), Refused> {
    let one_of = |format: &Cow<'_, str>| ["float", "base64"].contains(&&**format);
    fields.parsed("encoding_format", "send float or base64", one_of)?;
    fields.whole("dimensions", 1)?;
    fields.text("prompt_name")?;
    fields.flag("truncate")?;
    let Inputs { texts, place } = inputs(fields, "input", "input", bounds)?;
    let same = Body::of(Route::Embeddings, fields);
    let bodies = same.each(("input", &texts), 1, bounds, |_, _| ())?;
    Ok((bodies, Answer { route: Route::Embeddings, place, shape: Shape::List, kind: None }))
}

pub(super) fn whole(about: &About, bodies: &[&Bytes]) -> Result<Bytes, Refused> {
    let model = &*about.model;
    let wrong = || Refused::of_another_kind(model, "vectors");
    let (mut data, mut usage) = (Vec::with_capacity(bodies.len()), Usage::default());
    for (index, body) in bodies.iter().enumerate() {
        let told: Told<'_> = serde_json::from_slice(body).map_err(|_| wrong())?;
        let [Vector { embedding, truncated }] = told.data[..] else { return Err(wrong()) };
        data.push(Item { object: "embedding", index, embedding, truncated });
        usage.add(told.usage);
    }
    Ok(json(&Response { object: "list", data, model, usage }))
}
