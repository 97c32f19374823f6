//! Classification: each text is a job; of a tagger the answers are entities.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::body::{Body, json};
use super::embeddings::Usage;
use super::fields::Fields;
use super::inputs::{Inputs, check_count, inputs, not_texts, quoted};
use super::refused::Place;
use super::values::{Object, Texts};
use super::{About, Answer, Bounds, Refused, Route, Shape};

/// What a classifier or a tagger answers.
#[derive(Debug, Deserialize)]
struct Told<'a> {
    #[serde(borrow)]
    data: Vec<Object<'a>>,
    usage: Usage,
}

#[derive(Debug, Serialize)]
struct Response<'a> {
    id: &'a str,
    object: &'static str,
    model: &'a str,
    data: Vec<Item<'a>>,
    usage: Usage,
}

#[derive(Debug, Serialize)]
struct Item<'a> {
    index: usize,
    #[serde(flatten)]
    told: Object<'a>,
}

pub(super) fn read(
    fields: &mut Fields<'_>,
    bounds: &Bounds,
) -> Result<(Vec<Bytes>, Answer), Refused> {
    fields.whole("top_k", 1)?;
    fields.text("aggregation")?;
    fields.flag("truncate")?;
    let (Inputs { texts, place }, shape) = match fields.texts("inputs") {
        None => (inputs(fields, "input", "input", bounds)?, Shape::List),
        Some(_) if fields.names().any(|name| name == "input") => {
            let message = "input and inputs are both given; send one of them";
            return Err(Refused::invalid("inputs", message));
        }
        Some(Texts::One(text)) => {
            let place = Place { field: "inputs", in_job: "input", is_spread: false };
            (Inputs { texts: vec![quoted(&text).into()], place }, Shape::BareOne)
        }
        Some(Texts::List(items)) => (batch(&items, bounds)?, Shape::Bare),
        Some(Texts::Other(kind)) => return Err(not_texts("inputs", kind)),
    };
    let same = Body::of(Route::Classify, fields);
    let bodies = same.each(("input", &texts), 1, bounds, |_, _| ())?;
    Ok((bodies, Answer { route: Route::Classify, place, shape }))
}

/// Texts as text-embeddings-inference has them: a list of lists of one text each, since a list of two
/// is a pair there.
fn batch<'a>(items: &[&'a RawValue], bounds: &Bounds) -> Result<Inputs<'a>, Refused> {
    const REMEDY: &str = r#"send a text, or [["a text"], ["another"]]; pairs are for /v1/rerank"#;
    check_count("inputs", items.len(), bounds)?;
    let read = |(index, item): (usize, &&'a RawValue)| {
        let texts: Option<[&'a RawValue; 1]> = serde_json::from_str(item.get()).ok();
        let text = texts.map(|[text]| text).filter(|text| super::inputs::is_text(text));
        let wrong = || Refused::wrong(&format!("inputs[{index}]"), item, REMEDY);
        Ok(text.ok_or_else(wrong)?.get().into())
    };
    let texts = items.iter().enumerate().map(read).collect::<Result<_, _>>()?;
    Ok(Inputs { texts, place: Place { field: "inputs", in_job: "input", is_spread: true } })
}

pub(super) fn whole(shape: Shape, about: &About, bodies: &[&Bytes]) -> Result<Bytes, Refused> {
    let About { id, model, .. } = about;
    let wrong = || Refused::of_another_kind(model, "labels");
    let (mut data, mut usage) = (Vec::with_capacity(bodies.len()), Usage::default());
    for (index, body) in bodies.iter().enumerate() {
        let Told { data: one, usage: took } = serde_json::from_slice(body).map_err(|_| wrong())?;
        let Ok([mut told]) = <[Object<'_>; 1]>::try_from(one) else { return Err(wrong()) };
        usage.add(took);
        told.0.remove("index");
        data.push(Item { index, told });
    }
    let is_known =
        |item: &Item<'_>| ["scores", "entities"].iter().any(|it| item.told.0.contains_key(*it));
    if !data.iter().all(is_known) {
        return Err(wrong());
    }
    if shape == Shape::List {
        return Ok(json(&Response { id, object: "list", model, data, usage }));
    }
    let scores = data.iter().map(|item| item.told.0.get("scores").copied().ok_or_else(wrong));
    let all: Vec<&RawValue> = scores.collect::<Result<_, _>>()?;
    match all[..] {
        [one] if shape == Shape::BareOne => Ok(json(&one)),
        _ => Ok(json(&all)),
    }
}
