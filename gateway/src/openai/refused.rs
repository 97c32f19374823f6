//! Why a request is not answered, in the shape of OpenAI's errors.

use std::borrow::Cow;

use bytes::Bytes;
use ebb_queue::{Failure, FailureKind, JobId};
use serde::Serialize;
use serde_json::value::RawValue;

use super::Ended;

/// Letters of a value that a message shows.
const SHOWN: usize = 60;

/// A request that is not answered, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// The status of the response.
    pub status: u16,
    /// What went wrong, in one word for programs.
    pub code: &'static str,
    /// OpenAI's `error.type`.
    pub kind: &'static str,
    /// The field of the request that is to be changed, and where in it.
    pub param: Option<String>,
    /// In words, with the remedy.
    pub message: String,
}

#[derive(Debug, Serialize)]
struct Body<'a> {
    error: Error<'a>,
    #[serde(skip_serializing_if = "<[JobId]>::is_empty")]
    ids: &'a [JobId],
}

#[derive(Debug, Serialize)]
struct Error<'a> {
    message: &'a str,
    r#type: &'a str,
    param: Option<&'a str>,
    code: &'a str,
}

impl Refused {
    /// Of a status and a code; the kind is that which OpenAI has for the status.
    #[must_use]
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        let kind = match status {
            429 => "requests",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        Self { status, code, kind, param: None, message: message.into() }
    }

    /// Names the field.
    #[must_use]
    pub fn at(self, param: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..self }
    }

    /// The body of the response, and the data of an event that ends a stream:
    /// `{"error": {"message", "type", "param", "code"}}`.
    #[must_use]
    pub fn body(&self) -> Bytes {
        self.body_about(&[])
    }

    /// The same, with the ids of jobs beside the error, where there are any.
    pub(crate) fn body_about(&self, ids: &[JobId]) -> Bytes {
        let Self { code, kind, param, message, .. } = self;
        let error = Error { message, r#type: kind, param: param.as_deref(), code };
        serde_json::to_vec(&Body { error, ids }).expect("texts alone").into()
    }

    /// Of a job that failed: the status and the code say what there is to do about it.
    #[must_use]
    pub fn failed(Failure { kind, reason }: &Failure) -> Self {
        let (status, code) = match kind {
            FailureKind::Invalid => (400, "invalid_value"),
            FailureKind::Expired => {
                let message = format!("the job had no answer before its deadline: {reason}");
                let refused = Self::new(504, "deadline_passed", message);
                return Self { kind: "timeout_error", ..refused };
            }
            FailureKind::Attempts => (500, "attempts_spent"),
            FailureKind::Model => (500, "model_failed"),
            FailureKind::Lost => (500, "body_lost"),
            _ => (500, "job_failed"),
        };
        Self::new(status, code, reason)
    }

    /// Of a job whose answer lies in a store of payloads which the gateway does not have.
    #[must_use]
    pub fn elsewhere() -> Self {
        let words = "the answer lies in a store of payloads that the gateway was not given; its operator \
                     gives it --payloads, as the workers have it";
        Self::new(500, "answer_elsewhere", words)
    }

    /// Whether the same request may be answered at another time. One whose job has failed would make
    /// another job that fails again, or costs workers their lives; only a body that was lost comes anew.
    /// One that came too late would wait as long again, for a job of its own.
    /// OpenAI's clients heed the response header `x-should-retry: false`.
    #[must_use]
    pub fn is_worth_another_try(&self) -> bool {
        let has_failed = matches!(self.code, "attempts_spent" | "model_failed" | "job_failed");
        let is_late = matches!(self.code, "timeout" | "deadline_passed");
        let is_elsewhere = self.code == "answer_elsewhere";
        matches!(self.status, 408 | 429 | 500..) && !has_failed && !is_late && !is_elsewhere
    }

    pub(super) fn missing(param: &str, remedy: &str) -> Self {
        let message = format!("{param} is missing; {remedy}");
        Self::new(400, "missing_required_parameter", message).at(param)
    }

    pub(super) fn invalid(param: &str, message: impl Into<String>) -> Self {
        Self::new(400, "invalid_value", message).at(param)
    }

    /// Of a field that has this value.
    pub(super) fn wrong(param: &str, value: &RawValue, remedy: &str) -> Self {
        Self::invalid(param, format!("{param} is {}; {remedy}", shown(value.get())))
    }

    /// Of a field whose value asks for what is not there.
    pub(super) fn unsupported(param: &str, value: &RawValue, remedy: &str) -> Self {
        Self { code: "unsupported_parameter", ..Self::wrong(param, value, remedy) }
    }

    /// Of a model whose jobs are answered otherwise than the route tells.
    pub(super) fn of_another_kind(model: &str, what: &str) -> Self {
        let message = format!("the model {model} does not answer with {what}; ask it elsewhere");
        Self::new(400, "model_not_supported", message).at("model")
    }
}

/// As much of a value or a name as people read.
pub(super) fn shown(text: &str) -> Cow<'_, str> {
    cut(text, SHOWN)
}

/// A text with so many letters at most.
pub(super) fn cut(text: &str, most: usize) -> Cow<'_, str> {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}

/// Where a client has what a worker calls by a name of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// The client's field of texts.
    pub(super) field: &'static str,
    /// The field of the same texts in a job.
    pub(super) in_job: &'static str,
    /// Whether each text is a job of its own, of those that the field has as a list.
    pub(super) is_spread: bool,
}

impl Place {
    /// The text of this number.
    pub(super) fn of(&self, index: usize) -> String {
        let field = self.field;
        if self.is_spread { format!("{field}[{index}]") } else { field.to_owned() }
    }

    /// A reason with the client's names in it, and what it is about, where it begins with a field of a
    /// job, as the reasons of most jobs do that are wrong.
    fn read(&self, reason: &str, index: usize, fields: &[&str]) -> Option<(String, String)> {
        let end = reason.find([' ', ':'])?;
        let (place, rest) = reason.split_at(end);
        let name = place.split(['[', '.']).next()?;
        if name == self.in_job {
            let inner = &place[name.len()..];
            // Workers take the one text of such a job for a list of one, which no client has sent.
            let own = if self.in_job == "input" { inner.strip_prefix("[0]") } else { None };
            let inner = own.unwrap_or(inner);
            let place = self.of(index) + inner;
            return Some((format!("{place}{rest}"), place));
        }
        let is_known = name == "body" || fields.contains(&name);
        is_known.then(|| (reason.to_owned(), place.to_owned()))
    }
}

impl Ended {
    /// The answer of a job; or why the request has none, since its job of this number ended otherwise.
    pub(super) fn answer(
        &self,
        place: &Place,
        index: usize,
        fields: &[&str],
    ) -> Result<&Bytes, Refused> {
        let about = || place.is_spread.then(|| place.of(index));
        let named = |refused: Refused| match about() {
            Some(place) => {
                let message = format!("{place}: {}", refused.message);
                Refused { message, ..refused }.at(place)
            }
            None => refused,
        };
        match self {
            Self::Completed(body) => Ok(body),
            Self::Cancelled => {
                Err(named(Refused::new(410, "job_cancelled", "the job was cancelled")))
            }
            Self::Elsewhere => Err(named(Refused::elsewhere())),
            Self::Gone => {
                let words = "the job was purged, or its result is not kept any more";
                Err(named(Refused::new(410, "result_gone", words)))
            }
            Self::Failed(failure) => {
                let refused = Refused::failed(failure);
                let is_clients = failure.kind == FailureKind::Invalid;
                let read = is_clients.then(|| place.read(&failure.reason, index, fields)).flatten();
                Err(match read {
                    Some((message, param)) => Refused { message, ..refused }.at(param),
                    None => named(refused),
                })
            }
        }
    }
}
