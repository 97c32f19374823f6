//! What a generator answers, in the shapes of OpenAI's API or in protobuf.

use bytes::Bytes;
use ebb_proto::ebb::v1::{self, GenerationPiece, GenerationResponse};
use ebb_queue::Job;
use prost::Message as _;
use serde::Serialize;
use serde_json::json;

use super::super::{Answer, Spent, is_protobuf, protobuf, texts, usage};

/// Why an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Finish {
    /// The model ended it, or one of the job's own texts did.
    Stop,
    /// It has as many tokens as it may have.
    Length,
}

/// What an answer tells beside its text.
#[derive(Debug, Clone, Copy)]
pub(super) struct About<'a> {
    pub(super) job: &'a Job,
    pub(super) model: &'a str,
    /// Whether it answers a conversation, and does not go on with a text.
    pub(super) is_chat: bool,
    /// Whether the beginning of the prompt was cut off.
    pub(super) is_cut: bool,
    pub(super) n_prompt: usize,
    /// Tokens of the prompt that were not computed for it.
    pub(super) n_reused: usize,
    pub(super) n_new: usize,
}

/// A part of an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece<'a> {
    pub(super) text: &'a str,
    pub(super) is_first: bool,
    /// Of the last one.
    pub(super) finish: Option<Finish>,
    pub(super) with_usage: bool,
}

/// What a job took: what OpenAI tells of it.
#[derive(Debug, Clone, Copy, Serialize)]
struct Counts {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptDetails,
}

/// Of the tokens of a prompt.
#[derive(Debug, Clone, Copy, Serialize)]
struct PromptDetails {
    cached_tokens: usize,
}

/// And what Ebb does.
#[derive(Debug, Serialize)]
struct Usage {
    #[serde(flatten)]
    counts: Counts,
    #[serde(flatten)]
    spent: Spent,
}

/// Of a stream that tells what it took the last object has this and no choice, and all others have it
/// as `null`.
#[derive(Debug, Serialize)]
struct Response<'a, C, U> {
    id: &'a str,
    object: &'static str,
    /// In seconds since the epoch.
    created: i64,
    model: &'a str,
    choices: Vec<C>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<U>,
}

#[derive(Debug, Serialize)]
struct Choice<'a> {
    index: usize,
    #[serde(flatten)]
    said: Said<'a>,
    finish_reason: Option<Finish>,
    #[serde(skip_serializing_if = "Option::is_none")]
    truncated: Option<bool>,
}

/// A text by the name that it has in its object.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Said<'a> {
    Message(Words<'a>),
    Delta(Words<'a>),
    Text(&'a str),
}

#[derive(Debug, Serialize)]
struct Words<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    content: &'a str,
}

/// Who answers.
const ROLE: Option<&str> = Some("assistant");

impl About<'_> {
    /// The answer as it is stored.
    pub(super) fn answer(&self, text: &str, finish: Finish, spent: &Spent) -> Answer {
        let tokens = self.n_prompt + self.n_new;
        let (n_cut, n_reused) = (usize::from(self.is_cut), self.n_reused);
        if is_protobuf(self.job) {
            let response = GenerationResponse {
                text: text.to_owned(),
                finish_reason: finish.into(),
                prompt_tokens: self.n_prompt as u64,
                completion_tokens: self.n_new as u64,
                usage: usage(tokens, spent),
                truncated: self.is_cut,
                cached_tokens: n_reused as u64,
            };
            return Answer { n_cut, n_reused, ..protobuf(&response, tokens) };
        }
        let (object, said) = if self.is_chat {
            ("chat.completion", Said::Message(Words { role: ROLE, content: text }))
        } else {
            ("text_completion", Said::Text(text))
        };
        let truncated = Some(self.is_cut);
        let choice = Choice { index: 0, said, finish_reason: Some(finish), truncated };
        let usage = Some(Usage { counts: self.counts(), spent: *spent });
        Answer {
            n_cut,
            n_reused,
            ..texts::answer(&self.response(object, vec![choice], usage), tokens)
        }
    }

    /// A piece of it for who follows the job: an object on a line of its own, or a message behind its
    /// length; and behind the last one what the job took, where the stream tells it.
    pub(super) fn piece(&self, piece: Piece<'_>) -> Bytes {
        let Piece { text, is_first, finish, with_usage } = piece;
        let tells_usage = with_usage && finish.is_some();
        let Counts { prompt_tokens, completion_tokens, .. } = self.counts();
        if is_protobuf(self.job) {
            let count = |n: usize| if tells_usage { n as u64 } else { 0 };
            let piece = GenerationPiece {
                text: text.to_owned(),
                finish_reason: finish.map_or(0, i32::from),
                prompt_tokens: count(prompt_tokens),
                completion_tokens: count(completion_tokens),
                cached_tokens: count(self.n_reused),
            };
            return piece.encode_length_delimited_to_vec().into();
        }
        let (object, said) = if self.is_chat {
            let role = ROLE.filter(|_| is_first);
            ("chat.completion.chunk", Said::Delta(Words { role, content: text }))
        } else {
            ("text_completion", Said::Text(text))
        };
        let choice = Choice { index: 0, said, finish_reason: finish, truncated: None };
        let none: Option<Option<Counts>> = with_usage.then_some(None);
        let mut lines = json!(self.response(object, vec![choice], none)).to_string() + "\n";
        if tells_usage {
            let no_choices: Vec<Choice<'_>> = Vec::new();
            let usage = Some(self.counts());
            lines += &(json!(self.response(object, no_choices, usage)).to_string() + "\n");
        }
        lines.into()
    }

    fn response<C, U>(
        &self,
        object: &'static str,
        choices: Vec<C>,
        usage: Option<U>,
    ) -> Response<'_, C, U> {
        let (id, created) = (self.job.id.as_str(), self.job.enqueued_at.as_second());
        Response { id, object, created, model: self.model, choices, usage }
    }

    fn counts(&self) -> Counts {
        let (prompt_tokens, completion_tokens) = (self.n_prompt, self.n_new);
        Counts {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptDetails { cached_tokens: self.n_reused },
        }
    }
}

impl From<Finish> for i32 {
    fn from(finish: Finish) -> Self {
        match finish {
            Finish::Stop => v1::FinishReason::Stop.into(),
            Finish::Length => v1::FinishReason::Length.into(),
        }
    }
}
