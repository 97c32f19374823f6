//! Classification: each text is a job; of a tagger the answers are entities.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::body::{Body, json};
use super::embeddings::Usage;
use super::fields::Fields;
use super::inputs::{Inputs, check_count, inputs, not_texts, quoted};
use super::refused::Place;
use super::values::{List, Object, OneOrMany, Text};
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

/// What a model finds in texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Labels,
    Entities,
}

impl Kind {
    /// The kind that a request is for, by a field that workers of the other do not read.
    fn asked(fields: &Fields<'_>) -> Result<Option<Self>, Refused> {
        let is_given = |kind: &Self| fields.get(kind.field()).is_some();
        let given = [Self::Labels, Self::Entities].map(|kind| Some(kind).filter(is_given));
        match given {
            [Some(_), Some(_)] => {
                let message = "top_k is for labels and aggregation for entities; send one of them";
                Err(Refused::invalid("aggregation", message))
            }
            [labels, entities] => Ok(labels.or(entities)),
        }
    }

    /// The field of a request that is for this kind alone.
    fn field(self) -> &'static str {
        match self {
            Self::Labels => "top_k",
            Self::Entities => "aggregation",
        }
    }

    /// The kind of an answer.
    fn of(told: &Object<'_>) -> Option<Self> {
        let has = |name: &str| told.0.contains_key(name);
        match (has("scores"), has("entities")) {
            (true, _) => Some(Self::Labels),
            (false, true) => Some(Self::Entities),
            (false, false) => None,
        }
    }
}

pub(super) fn read(
    fields: &mut Fields<'_>,
    bounds: &Bounds,
) -> Result<(Vec<Bytes>, Answer), Refused> {
    fields.whole("top_k", 1)?;
    let one_of = |name: &Text<'_>| ["simple", "words"].contains(&&*name.0);
    fields.parsed("aggregation", "send simple or words", one_of)?;
    fields.flag("truncate")?;
    let kind = Kind::asked(fields)?;
    let (Inputs { texts, place }, shape) = match fields.take("inputs") {
        None => (inputs(fields, "input", "input", bounds)?, Shape::List),
        Some(_) if fields.names().any(|name| name == "input") => {
            let message = "input and inputs are both given; send one of them";
            return Err(Refused::invalid("inputs", message));
        }
        Some(OneOrMany::One(text)) => {
            let place = Place { field: "inputs", in_job: "input", is_spread: false };
            (Inputs { texts: vec![quoted(&text).into()], place }, Shape::BareOne)
        }
        Some(OneOrMany::Many(list)) => (batch(&list, bounds)?, Shape::Bare),
        Some(OneOrMany::Other(kind)) => return Err(not_texts("inputs", kind)),
    };
    let same = Body::of(Route::Classify, fields);
    let bodies = same.each(("input", &texts), 1, bounds, |_, _| ())?;
    Ok((bodies, Answer { route: Route::Classify, place, shape, kind }))
}

/// Texts as text-embeddings-inference has them: a list of lists of one text each, since a list of two
/// is a pair there.
fn batch<'a>(list: &List<'a>, bounds: &Bounds) -> Result<Inputs<'a>, Refused> {
    const REMEDY: &str = r#"send a text, or [["a text"], ["another"]]; pairs are for /v1/rerank"#;
    check_count("inputs", list.n, bounds.max_inputs)?;
    let read = |(index, item): (usize, &&'a RawValue)| {
        let texts: Option<[&'a RawValue; 1]> = serde_json::from_str(item.get()).ok();
        let text = texts.map(|[text]| text).filter(|text| super::inputs::is_text(text));
        let wrong = || Refused::wrong(&format!("inputs[{index}]"), item, REMEDY);
        Ok(text.ok_or_else(wrong)?.get().into())
    };
    let texts = list.items.iter().enumerate().map(read).collect::<Result<_, _>>()?;
    Ok(Inputs { texts, place: Place { field: "inputs", in_job: "input", is_spread: true } })
}

pub(super) fn whole(
    (shape, kind): (Shape, Option<Kind>),
    about: &About,
    bodies: &[&Bytes],
) -> Result<Bytes, Refused> {
    let About { id, model, .. } = about;
    let wrong = || Refused::of_another_kind(model, "labels");
    let (mut data, mut usage) = (Vec::with_capacity(bodies.len()), Usage::default());
    for (index, body) in bodies.iter().enumerate() {
        let Told { data: one, usage: took } = serde_json::from_slice(body).map_err(|_| wrong())?;
        let Ok([mut told]) = <[Object<'_>; 1]>::try_from(one) else { return Err(wrong()) };
        let found = Kind::of(&told).ok_or_else(wrong)?;
        if let Some(kind) = kind.filter(|kind| *kind != found) {
            return Err(dropped(kind, model));
        }
        usage.add(took);
        told.0.remove("index");
        data.push(Item { index, told });
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

/// The worker has read past a field, since its model finds something else.
fn dropped(asked: Kind, model: &str) -> Refused {
    let (field, what) = match asked {
        Kind::Labels => (asked.field(), "entities"),
        Kind::Entities => (asked.field(), "labels"),
    };
    let message = format!("{field} is of no effect: the model {model} finds {what}; leave it out");
    Refused { code: "unsupported_parameter", ..Refused::invalid(field, message) }
}
