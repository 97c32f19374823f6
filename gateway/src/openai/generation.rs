//! Conversations and completions: each answer that is asked for is a job.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::body::Body;
use super::fields::{Fields, says_nothing};
use super::inputs::{Inputs, inputs, is_text};
use super::refused::Place;
use super::values::{Messages, Object, Text};
use super::{Answer, Bounds, Refused, Route, Shape};

/// Reads what is the same of both.
pub(super) fn read(
    route: Route,
    fields: &mut Fields<'_>,
    bounds: &Bounds,
) -> Result<(Vec<Bytes>, Answer), Refused> {
    check_numbers(fields)?;
    let (in_job, prompts, place) = if route == Route::ChatCompletions {
        let place = Place { field: "messages", in_job: "messages", is_spread: false };
        ("messages", vec![Cow::Owned(conversation(fields)?)], place)
    } else {
        let Inputs { texts, place } = inputs(fields, "prompt", "prompt", bounds)?;
        ("prompt", texts, place)
    };
    let n = answers(fields, prompts.len(), bounds)?;
    let with_usage = stream(fields, prompts.len(), n)?;
    let mut same = Body::of(route, fields);
    if fields.flag("stream")? {
        same.put("stream", "true");
    }
    let seed = seed(fields)?;
    let bodies = same.each((in_job, &prompts), n, bounds, |body, answer| {
        // A job without one has a seed of its own.
        if let Some(seed) = seed {
            body.put("seed", &seed.wrapping_add(answer).to_string());
        }
    })?;
    Ok((bodies, Answer { route, place, shape: Shape::Choices { n, with_usage } }))
}

/// Refuses at once what each worker would.
fn check_numbers(fields: &Fields<'_>) -> Result<(), Refused> {
    for (name, within) in [
        ("temperature", 0.0..=2.0),
        ("top_p", 0.0..=1.0),
        ("frequency_penalty", -2.0..=2.0),
        ("presence_penalty", -2.0..=2.0),
        ("repetition_penalty", 0.1..=10.0),
    ] {
        fields.number(name, within)?;
    }
    for name in ["max_completion_tokens", "max_tokens", "max_new_tokens"] {
        fields.whole(name, 1)?;
    }
    fields.parsed("top_k", "send a whole number", |_: &i64| true)?;
    let object = |value: &&RawValue| value.get().starts_with('{');
    fields.parsed("chat_template_kwargs", "send an object", object)?;
    let stops = |stops: &Stops<'_>| match stops {
        Stops::One(text) => !text.is_empty(),
        Stops::Several(texts) => texts.len() <= 4 && texts.iter().all(|text| !text.is_empty()),
    };
    fields.parsed("stop", "send a text or a list of at most 4", stops).map(|_| ())
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Stops<'a> {
    One(Cow<'a, str>),
    Several(Vec<Cow<'a, str>>),
}

/// How many answers there are to each prompt.
fn answers(fields: &Fields<'_>, n_prompts: usize, bounds: &Bounds) -> Result<usize, Refused> {
    let n = fields.whole("n", 1)?.unwrap_or(1);
    let most = bounds.max_inputs / n_prompts.max(1);
    usize::try_from(n).ok().filter(|n| *n <= most || *n == 1).ok_or_else(|| {
        let message = match n_prompts {
            1 => format!("n is {n}; send 1 to {most}"),
            _ => format!("n is {n} with {n_prompts} prompts; send 1 to {}", most.max(1)),
        };
        Refused { code: "too_many_inputs", ..Refused::invalid("n", message) }
    })
}

/// The bits of the seed, as a worker reads them.
fn seed(fields: &Fields<'_>) -> Result<Option<u64>, Refused> {
    let remedy = "send a whole number of 64 bits";
    let seed = fields.parsed("seed", remedy, |seed: &i128| {
        (i128::from(i64::MIN)..=i128::from(u64::MAX)).contains(seed)
    })?;
    // The same bits, so that two seeds are never one.
    Ok(seed.map(|seed| u64::try_from(seed).unwrap_or_else(|_| (seed as i64).cast_unsigned())))
}

/// Whether a stream tells what it took.
fn stream(fields: &Fields<'_>, n_prompts: usize, n: usize) -> Result<bool, Refused> {
    #[derive(Default, Deserialize)]
    struct Options {
        include_usage: Option<bool>,
    }
    let remedy = "send an object; include_usage is true or false";
    let options = fields.parsed("stream_options", remedy, |_: &Options| true)?;
    if fields.flag("stream")? && n_prompts * n > 1 {
        let param = if n > 1 { "n" } else { "prompt" };
        let message = format!(
            "stream is true and {} answers are asked for; a stream has one: leave stream out, or \
             send several requests",
            n_prompts * n
        );
        return Err(Refused::invalid(param, message));
    }
    Ok(options.and_then(|options| options.include_usage).unwrap_or(false))
}

/// The messages as a job has them.
fn conversation(fields: &mut Fields<'_>) -> Result<String, Refused> {
    const REMEDY: &str = "send a list of objects with role and content";
    let messages = match fields.messages() {
        None => return Err(Refused::missing("messages", REMEDY)),
        Some(Messages::List(messages)) => messages,
        Some(Messages::Other(kind)) => {
            return Err(Refused::invalid("messages", format!("messages is {kind}; {REMEDY}")));
        }
    };
    if messages.is_empty() {
        return Err(Refused::invalid("messages", format!("messages has none; {REMEDY}")));
    }
    let mut written = String::from("[");
    for (index, message) in messages.into_iter().enumerate() {
        let place = format!("messages[{index}]");
        let message = message
            .map_err(|kind| Refused::invalid(&place, format!("{place} is {kind}; {REMEDY}")))?;
        if index > 0 {
            written.push(',');
        }
        write_message(&mut written, &message, &place)?;
    }
    written.push(']');
    Ok(written)
}

/// Writes a message as a worker reads it.
fn write_message(to: &mut String, message: &Object<'_>, place: &str) -> Result<(), Refused> {
    let Object(fields) = message;
    for name in ["tool_calls", "function_call"] {
        if let Some(value) = fields.get(name).filter(|value| !says_nothing(value)) {
            let remedy = "a model calls no tools here; leave it out";
            return Err(Refused::unsupported(&format!("{place}.{name}"), value, remedy));
        }
    }
    let role = format!("{place}.role");
    let role: Text<'_> = match fields.get("role") {
        None => return Err(Refused::missing(&role, "send a text such as user")),
        Some(value) => serde_json::from_str(value.get())
            .map_err(|_| Refused::wrong(&role, value, "send a text such as user"))?,
    };
    check_content(fields.get("content").copied(), &format!("{place}.content"))?;
    // What OpenAI's newer models call a developer is the system of all templates; some leave out
    // silently what a role says that they do not know.
    let role = if role.0 == "developer" { "system" } else { &*role.0 };
    to.push_str("{\"role\":");
    to.push_str(&super::inputs::quoted(role));
    for (name, value) in fields {
        if name != "role" && value.get() != "null" {
            to.push(',');
            to.push_str(&super::inputs::quoted(name));
            to.push(':');
            to.push_str(value.get());
        }
    }
    to.push('}');
    Ok(())
}

/// Refuses what is neither a text nor made of texts.
fn check_content(content: Option<&RawValue>, place: &str) -> Result<(), Refused> {
    let Some(content) = content.filter(|content| content.get() != "null") else {
        return Err(Refused::missing(place, "send a text"));
    };
    if is_text(content) {
        return Ok(());
    }
    let parts: Option<Vec<Object<'_>>> = serde_json::from_str(content.get()).ok();
    let wrong = || Refused::wrong(place, content, "send a text, or a list of parts of type text");
    for (index, Object(part)) in parts.ok_or_else(wrong)?.iter().enumerate() {
        let place = format!("{place}[{index}]");
        let kind = part.get("type");
        if kind.map(|kind| kind.get()) != Some("\"text\"") {
            let place = format!("{place}.type");
            return Err(match kind {
                None => Refused::missing(&place, "send parts of type text"),
                Some(kind) => {
                    Refused::unsupported(&place, kind, "only parts of type text are read")
                }
            });
        }
        if !part.get("text").is_some_and(|text| is_text(text)) {
            return Err(Refused::missing(&format!("{place}.text"), "send a text"));
        }
    }
    Ok(())
}
