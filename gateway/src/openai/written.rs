//! What generators write, and how OpenAI's API tells it: whole, or as the objects of a stream.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::body::json;
use super::values::Text;
use super::{About, Refused, Route};

/// The answer of one job.
#[derive(Debug)]
pub(super) struct Written<T> {
    pub(super) text: T,
    pub(super) finish: Finish,
    pub(super) usage: Usage,
    truncated: Option<bool>,
}

/// Why an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Finish {
    /// The model ended it, or a text of `stop` did.
    Stop,
    /// It has as many tokens as it may have.
    Length,
}

/// What jobs took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    /// Workers of before do not tell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prompt_tokens_details: Option<PromptDetails>,
}

/// What a prompt took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
struct PromptDetails {
    /// Tokens that were not computed for it.
    cached_tokens: u64,
}

/// What a generator answers.
#[derive(Debug, Deserialize)]
#[serde(bound(deserialize = "T: Deserialize<'de>"))]
struct Told<T> {
    choices: Vec<Choice<T>>,
    usage: Usage,
}

#[derive(Debug, Deserialize)]
#[serde(bound(deserialize = "T: Deserialize<'de>"))]
struct Choice<T> {
    message: Option<Content<T>>,
    text: Option<T>,
    finish_reason: Finish,
    truncated: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Content<T> {
    content: T,
}

/// A line of a piece.
#[derive(Debug, Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    choices: Vec<Part<'a>>,
}

#[derive(Debug, Deserialize)]
struct Part<'a> {
    #[serde(borrow)]
    delta: Option<Content<Text<'a>>>,
    #[serde(borrow)]
    text: Option<Text<'a>>,
}

#[derive(Debug, Serialize)]
struct Response<'a, T> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<Shown<T>>,
    /// In a stream that tells what it took all objects have it, and all but the last as `null`.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Debug, Serialize)]
struct Shown<T> {
    index: usize,
    #[serde(flatten)]
    said: Said<T>,
    logprobs: (),
    finish_reason: Option<Finish>,
    #[serde(skip_serializing_if = "Option::is_none")]
    truncated: Option<bool>,
}

/// A text by the name that it has in its object.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Said<T> {
    Message(Message<T>),
    Delta(Delta<T>),
    Text(T),
}

#[derive(Debug, Serialize)]
struct Message<T> {
    role: &'static str,
    content: T,
    refusal: (),
}

#[derive(Debug, Serialize)]
struct Delta<T> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<T>,
}

/// Who answers.
const ROLE: &str = "assistant";

/// What an object of a stream tells.
#[derive(Debug, Clone, Copy)]
pub(super) enum News<'a> {
    Role,
    Text(&'a str),
    Finish(Finish),
    Usage(Usage),
}

/// Reads the answer of a job.
pub(super) fn read<'a, T: Deserialize<'a>>(
    route: Route,
    about: &About,
    body: &'a [u8],
) -> Result<Written<T>, Refused> {
    let what = match route {
        Route::ChatCompletions => "a conversation",
        _ => "a completion",
    };
    let wrong = || Refused::of_another_kind(&about.model, what);
    let Told { choices, usage } = serde_json::from_slice(body).map_err(|_| wrong())?;
    let Ok([choice]) = <[Choice<T>; 1]>::try_from(choices) else { return Err(wrong()) };
    let Choice { message, text, finish_reason: finish, truncated } = choice;
    let text = match route {
        Route::ChatCompletions => message.map(|message| message.content),
        _ => text,
    };
    Ok(Written { text: text.ok_or_else(wrong)?, finish, usage, truncated })
}

/// The response of all jobs, so many of each prompt one after the other.
pub(super) fn whole(
    route: Route,
    about: &About,
    bodies: &[&Bytes],
    n_of_each: usize,
) -> Result<Bytes, Refused> {
    let (mut choices, mut usage) = (Vec::with_capacity(bodies.len()), Usage::default());
    for (index, body) in bodies.iter().enumerate() {
        let written: Written<&RawValue> = read(route, about, body)?;
        usage.add(written.usage, index % n_of_each == 0);
        let Written { text: content, finish, truncated, .. } = written;
        let said = match route {
            Route::ChatCompletions => Said::Message(Message { role: ROLE, content, refusal: () }),
            _ => Said::Text(content),
        };
        choices.push(Shown { index, said, logprobs: (), finish_reason: Some(finish), truncated });
    }
    let object = match route {
        Route::ChatCompletions => "chat.completion",
        _ => "text_completion",
    };
    let About { id, created, model } = about;
    let usage = Some(Some(usage));
    Ok(json(&Response { id, object, created: *created, model, choices, usage }))
}

impl Usage {
    /// A prompt counts once, however many answers it has.
    fn add(&mut self, other: Self, is_first_of_prompt: bool) {
        if is_first_of_prompt {
            self.prompt_tokens = self.prompt_tokens.saturating_add(other.prompt_tokens);
            let cached = [self.prompt_tokens_details, other.prompt_tokens_details];
            let cached = cached.into_iter().flatten();
            self.prompt_tokens_details = cached.reduce(|one, other| PromptDetails {
                cached_tokens: one.cached_tokens.saturating_add(other.cached_tokens),
            });
        }
        self.completion_tokens = self.completion_tokens.saturating_add(other.completion_tokens);
        self.total_tokens = self.prompt_tokens.saturating_add(self.completion_tokens);
    }
}

/// The text of a line of a piece; nothing where it is of no generator.
pub(super) fn text_of(line: &[u8]) -> Option<String> {
    let Line { choices } = serde_json::from_slice(line).ok()?;
    let texts = choices.into_iter().filter_map(|part| match part.delta {
        Some(Content { content: Text(text) }) => Some(text),
        None => part.text.map(|Text(text)| text),
    });
    Some(texts.collect())
}

/// An object of a stream.
pub(super) fn object(route: Route, about: &About, with_usage: bool, news: News<'_>) -> Bytes {
    let is_chat = route == Route::ChatCompletions;
    let delta = |role, content| Said::Delta(Delta { role, content });
    let (said, finish_reason) = match news {
        News::Role => (Some(delta(Some(ROLE), Some(""))), None),
        News::Text(text) if is_chat => (Some(delta(None, Some(text))), None),
        News::Text(text) => (Some(Said::Text(text)), None),
        News::Finish(finish) if is_chat => (Some(delta(None, None)), Some(finish)),
        News::Finish(finish) => (Some(Said::Text("")), Some(finish)),
        News::Usage(_) => (None, None),
    };
    let shown = |said| Shown { index: 0, said, logprobs: (), finish_reason, truncated: None };
    let usage = match news {
        News::Usage(usage) => Some(Some(usage)),
        _ => with_usage.then_some(None),
    };
    let object = if is_chat { "chat.completion.chunk" } else { "text_completion" };
    let About { id, created, model } = about;
    let choices = said.map(shown).into_iter().collect();
    json(&Response { id, object, created: *created, model, choices, usage })
}
