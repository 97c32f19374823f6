//! Reranking: a query with all its documents is one job, and its results are ranked already.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::body::{Body, json};
use super::embeddings::Usage;
use super::fields::Fields;
use super::inputs::{check_count, is_object, is_text, not_texts};
use super::refused::Place;
use super::values::{List, OneOrMany};
use super::{About, Answer, Bounds, Refused, Route, Shape};

/// What a reranker answers.
#[derive(Debug, Deserialize)]
struct Told<'a> {
    #[serde(borrow)]
    results: Vec<Found<'a>>,
    usage: Usage,
}

#[derive(Debug, Deserialize, Serialize)]
struct Found<'a> {
    index: usize,
    #[serde(borrow)]
    relevance_score: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Document<'a>>,
    #[serde(default)]
    truncated: bool,
}

#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
struct Document<'a> {
    #[serde(borrow)]
    text: &'a RawValue,
}

#[derive(Debug, Serialize)]
struct Response<'a> {
    id: &'a str,
    object: &'static str,
    model: &'a str,
    results: Vec<Found<'a>>,
    usage: Usage,
}

/// A result as text-embeddings-inference has it.
#[derive(Debug, Serialize)]
struct Rank<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a RawValue>,
    score: &'a RawValue,
}

pub(super) fn read(
    fields: &mut Fields<'_>,
    bounds: &Bounds,
) -> Result<(Vec<Bytes>, Answer), Refused> {
    if fields.text("query")?.is_none() {
        return Err(Refused::missing("query", "send a text"));
    }
    fields.whole("top_n", 1)?;
    for name in ["return_documents", "raw_scores", "truncate"] {
        fields.flag(name)?;
    }
    let (field, shape, texts) = match (fields.take("documents"), fields.take("texts")) {
        (Some(texts), None) => ("documents", Shape::List, texts),
        (None, Some(texts)) => ("texts", Shape::Bare, texts),
        (None, None) => return Err(Refused::missing("documents", "send a list of texts")),
        (Some(_), Some(_)) => {
            let message = "documents and texts are both given; send one of them";
            return Err(Refused::invalid("texts", message));
        }
    };
    let List { items: documents, n } = match texts {
        OneOrMany::Many(documents) => documents,
        OneOrMany::One(_) => return Err(not_texts(field, "a text")),
        OneOrMany::Other(kind) => return Err(not_texts(field, kind)),
    };
    check_count(field, n, bounds.max_inputs)?;
    let texts = documents.iter().enumerate();
    let texts: Vec<&str> =
        texts.map(|(index, document)| text(document, field, index)).collect::<Result<_, _>>()?;
    let mut body = Body::of(Route::Rerank, fields);
    body.put("documents", &format!("[{}]", texts.join(",")));
    if fields.flag("return_text")? {
        if fields.get("return_documents").is_some() {
            let message = "return_text and return_documents are both given; send one of them";
            return Err(Refused::invalid("return_text", message));
        }
        body.put("return_documents", "true");
    }
    let place = Place { field, in_job: "documents", is_spread: false };
    Ok((vec![body.end()], Answer { route: Route::Rerank, place, shape, kind: None }))
}

/// The text of a document, as it was written.
fn text<'a>(document: &'a RawValue, field: &str, index: usize) -> Result<&'a str, Refused> {
    if is_text(document) {
        return Ok(document.get());
    }
    let object = is_object(document).then(|| serde_json::from_str(document.get()).ok());
    let text = object.flatten().map(|Document { text }| text);
    text.filter(|text| is_text(text)).map(RawValue::get).ok_or_else(|| {
        Refused::wrong(
            &format!("{field}[{index}]"),
            document,
            r#"send a text or {"text": "a text"}"#,
        )
    })
}

pub(super) fn whole(shape: Shape, about: &About, bodies: &[&Bytes]) -> Result<Bytes, Refused> {
    let About { id, model, .. } = about;
    let wrong = || Refused::of_another_kind(model, "documents by their relevance");
    let [body] = bodies else { return Err(wrong()) };
    let Told { results, usage } = serde_json::from_slice(body).map_err(|_| wrong())?;
    if shape == Shape::List {
        return Ok(json(&Response { id, object: "list", model, results, usage }));
    }
    let ranks = results.iter().map(|found| Rank {
        index: found.index,
        text: found.document.map(|document| document.text),
        score: found.relevance_score,
    });
    Ok(json(&ranks.collect::<Vec<_>>()))
}
