//! Conversations and completions: each answer that is asked for is a job.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::body::Body;
use super::fields::{Fields, MAX_MESSAGES, says_nothing};
use super::inputs::{Inputs, check_count, inputs, is_object, is_text, quoted};
use super::refused::Place;
use super::values::{AtMost, List, Object, OneOrMany, Text};
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
    let shape = Shape::Choices { n, with_usage };
    Ok((bodies, Answer { route, place, shape, kind: None }))
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
    match fields.get("stop") {
        Some(stop) if !is_stop(stop) => {
            Err(Refused::wrong("stop", stop, "send a text or a list of at most 4"))
        }
        _ => Ok(()),
    }
}

/// Whether a value is a text that ends an answer, or a few.
fn is_stop(value: &RawValue) -> bool {
    const MOST: usize = 4;
    match AtMost(MOST).of(value) {
        Some(OneOrMany::One(text)) => !text.is_empty(),
        Some(OneOrMany::Many(List { items, n })) => {
            n <= MOST && items.iter().all(|item| is_text(item) && item.get() != "\"\"")
        }
        Some(OneOrMany::Other(_)) | None => false,
    }
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

/// Parts of all messages of a conversation at most.
const MAX_PARTS: usize = 4 * MAX_MESSAGES;

/// The messages as a job has them.
fn conversation(fields: &mut Fields<'_>) -> Result<String, Refused> {
    const REMEDY: &str = "send a list of objects with role and content";
    let wrong = |kind| Err(Refused::invalid("messages", format!("messages is {kind}; {REMEDY}")));
    let List { items, n } = match fields.take("messages") {
        None => return Err(Refused::missing("messages", REMEDY)),
        Some(OneOrMany::Many(messages)) => messages,
        Some(OneOrMany::One(_)) => return wrong("a text"),
        Some(OneOrMany::Other(kind)) => return wrong(kind),
    };
    check_count("messages", n, MAX_MESSAGES)?;
    let (mut written, mut n_parts) = (String::from("["), 0);
    for (index, message) in items.into_iter().enumerate() {
        let place = format!("messages[{index}]");
        if !is_object(message) {
            return Err(Refused::wrong(&place, message, REMEDY));
        }
        let message = serde_json::from_str(message.get()).map_err(|error| {
            // Where in the message it is would be taken for a place in the body.
            let said = error.to_string();
            let said = said.rsplit_once(" at line ").map_or(&*said, |(said, _)| said);
            Refused::invalid(&place, format!("{place}: {said}; {REMEDY}, each field once"))
        })?;
        if index > 0 {
            written.push(',');
        }
        write_message(&mut written, &message, &place, &mut n_parts)?;
    }
    written.push(']');
    Ok(written)
}

/// Writes a message as a worker reads it, and counts its parts.
fn write_message(
    to: &mut String,
    message: &Object<'_>,
    place: &str,
    n_parts: &mut usize,
) -> Result<(), Refused> {
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
    check_content(fields.get("content").copied(), &format!("{place}.content"), n_parts)?;
    // What OpenAI's newer models call a developer is the system of all templates; some leave out
    // silently what a role says that they do not know.
    let role = if role.0 == "developer" { "system" } else { &*role.0 };
    to.push_str("{\"role\":");
    to.push_str(&quoted(role));
    for (name, value) in fields {
        if name != "role" && value.get() != "null" {
            to.push(',');
            to.push_str(&quoted(name));
            to.push(':');
            to.push_str(value.get());
        }
    }
    to.push('}');
    Ok(())
}

/// Refuses what is neither a text nor made of texts.
fn check_content(
    content: Option<&RawValue>,
    place: &str,
    n_parts: &mut usize,
) -> Result<(), Refused> {
    let Some(content) = content.filter(|content| content.get() != "null") else {
        return Err(Refused::missing(place, "send a text"));
    };
    if is_text(content) {
        return Ok(());
    }
    let Some(OneOrMany::Many(List { items, n })) = AtMost(MAX_PARTS - *n_parts).of(content) else {
        return Err(Refused::wrong(place, content, "send a text, or a list of parts of type text"));
    };
    if items.len() < n {
        let message = format!("{place} has {n} parts; send {MAX_PARTS} at most in all messages");
        return Err(Refused { code: "too_many_inputs", ..Refused::invalid(place, message) });
    }
    *n_parts += n;
    let mut parts = items.into_iter().enumerate();
    parts.try_for_each(|(index, part)| check_part(part, &format!("{place}[{index}]")))
}

/// Refuses a part of a message that is no text.
fn check_part(part: &RawValue, place: &str) -> Result<(), Refused> {
    #[derive(Deserialize)]
    struct Part<'a> {
        #[serde(borrow)]
        r#type: Option<&'a RawValue>,
        #[serde(borrow)]
        text: Option<&'a RawValue>,
    }
    const REMEDY: &str = "send parts of type text";
    let read = is_object(part).then(|| serde_json::from_str(part.get()).ok()).flatten();
    let Some(Part { r#type: kind, text }) = read else {
        return Err(Refused::wrong(place, part, REMEDY));
    };
    let place_of_type = format!("{place}.type");
    match kind {
        None => return Err(Refused::missing(&place_of_type, REMEDY)),
        Some(kind) if kind.get() != "\"text\"" => {
            let remedy = "only parts of type text are read";
            return Err(Refused::unsupported(&place_of_type, kind, remedy));
        }
        Some(_) => {}
    }
    if !text.is_some_and(is_text) {
        return Err(Refused::missing(&format!("{place}.text"), "send a text"));
    }
    Ok(())
}
