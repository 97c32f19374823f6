//! Embeddings: each text is a job, and all vectors are one list.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::body::{Body, json};
use super::fields::Fields;
use super::inputs::{Inputs, inputs};
use super::{About, Answer, Bounds, Refused, Route, Shape};

/// How far the length of a vector is from 1 that its model has made so, in 16 bits at worst.
const ROUNDING: f64 = 0.01;

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
    let texts = inputs(fields, "input", "input", bounds)?;
    jobs(fields, texts, bounds, (Route::Embeddings, Shape::List))
}

/// As text-embeddings-inference has it.
pub(super) fn read_bare(
    fields: &mut Fields<'_>,
    bounds: &Bounds,
) -> Result<(Vec<Bytes>, Answer), Refused> {
    fields.whole("dimensions", 1)?;
    fields.text("prompt_name")?;
    fields.flag("truncate")?;
    let texts = inputs(fields, "inputs", "input", bounds)?;
    jobs(fields, texts, bounds, (Route::Embed, Shape::Bare))
}

fn jobs(
    fields: &Fields<'_>,
    Inputs { texts, place }: Inputs<'_>,
    bounds: &Bounds,
    (route, shape): (Route, Shape),
) -> Result<(Vec<Bytes>, Answer), Refused> {
    let same = Body::of(route, fields);
    let bodies = same.each(("input", &texts), 1, bounds, |_, _| ())?;
    Ok((bodies, Answer { route, place, shape, kind: None }))
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

/// A list of vectors, each of length 1 whatever its model gives.
pub(super) fn bare(about: &About, bodies: &[&Bytes]) -> Result<Bytes, Refused> {
    let wrong = || Refused::of_another_kind(&about.model, "vectors");
    let vectors: Option<Vec<_>> = bodies.iter().map(|body| only_vector(body)).collect();
    Ok(json(&vectors.ok_or_else(wrong)?))
}

fn only_vector(body: &Bytes) -> Option<Cow<'_, RawValue>> {
    let told: Told<'_> = serde_json::from_slice(body).ok()?;
    let [Vector { embedding, .. }] = told.data[..] else { return None };
    unit(embedding.get())
}

/// The vector over its length; as it was written where that is 1 already, and where it is 0.
fn unit(embedding: &str) -> Option<Cow<'_, RawValue>> {
    let vector: Vec<f32> = serde_json::from_str(embedding).ok()?;
    let length = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    if !length.is_finite() {
        return None;
    }
    if length == 0.0 || (length - 1.0).abs() <= ROUNDING {
        return serde_json::from_str(embedding).ok().map(Cow::Borrowed);
    }
    let scaled: Vec<f32> = vector.iter().map(|x| (f64::from(*x) / length) as f32).collect();
    serde_json::value::to_raw_value(&scaled).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_of_length_1_is_handed_on_as_it_was_written_and_another_is_scaled() {
        for (written, told) in [
            ("[0.60000,0.8]", "[0.60000,0.8]"),
            ("[3,4]", "[0.6,0.8]"),
            ("[0.0,0.0]", "[0.0,0.0]"),
            ("[1e-30,0]", "[1.0,0.0]"),
        ] {
            assert_eq!(unit(written).unwrap().get(), told);
        }
        for written in [r#""AACAPw==""#, "[1e300]", "[[1]]"] {
            assert!(unit(written).is_none(), "{written}");
        }
    }
}
