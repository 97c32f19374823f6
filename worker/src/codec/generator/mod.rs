//! Generators: conversations and completions of OpenAI's API in and out, or protobuf, told piece by
//! piece where the job asks for it.

mod binary;
mod reply;
mod request;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ebb_model::causal::{
    ChatTemplate, Defaults, Ended, Message, Sequence, Settings, Tokenizer, Transcript, Turn,
};
use ebb_queue::Job;
use serde_json::Map;

use self::reply::{About, Finish, Piece};
use self::request::{Prompt, Request, Stream};
use super::{Answer, BadJob, Codec, Next, Spent, Step};
use crate::batcher::Size;

/// Tokens of an answer where a job does not say how many, as far as there is room.
const USUAL_NEW: usize = 256;
/// Tokens of a prompt that are read in a turn, about: what a long one costs the batch that it is in.
const READ_AT_ONCE: usize = 256;
/// Tokens that a sequence gains in a turn, about.
const GAINED_AT_ONCE: usize = 8;

/// Speaks for a generator of [`ebb_model::causal`].
#[derive(Debug)]
pub struct GeneratorCodec {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    defaults: Defaults,
    ends: Arc<[u32]>,
    /// Tokens that a prompt and its answer may have together.
    context: usize,
    /// What the model would take of them with enough memory.
    of_model: usize,
    /// How many tokens the model knows.
    vocabulary: usize,
    /// Tokens that an answer may have.
    most_new: usize,
    model: String,
    /// The key of the next sequence.
    keys: AtomicU64,
}

impl GeneratorCodec {
    /// Writes answers of at most so many tokens in the name of this model.
    #[must_use]
    pub fn new(
        tokenizer: Tokenizer,
        template: Option<ChatTemplate>,
        settings: &Settings,
        model: String,
        most_new: usize,
    ) -> Self {
        Self {
            tokenizer,
            template,
            defaults: settings.defaults,
            ends: Arc::clone(settings.ends()),
            context: settings.context(),
            of_model: settings.context(),
            vocabulary: settings.vocabulary(),
            most_new,
            model,
            keys: AtomicU64::new(0),
        }
    }

    /// Says that the worker's memory for keys and values is for so many tokens of a text, which may be
    /// fewer than the model takes.
    #[must_use]
    pub fn with_room_for(mut self, n_tokens: usize) -> Self {
        self.context = self.of_model.min(n_tokens);
        self
    }

    /// The tokens that are answered.
    fn tokens(&self, request: &mut Request, job: &Job) -> Result<Asking, BadJob> {
        let (field, messages) = match &mut request.prompt {
            Prompt::Messages(messages) => ("messages", std::mem::take(messages)),
            Prompt::Input(text) if self.template.is_some() => {
                let (role, content) = ("user".to_owned(), std::mem::take(text));
                ("input", vec![Message { role, content, rest: Map::new() }])
            }
            Prompt::Input(text) => return self.text("input", text),
            Prompt::Text(text) => return self.text("prompt", text),
        };
        if request.truncate {
            let remedy = "it is for a prompt; of a conversation send less";
            return Err(BadJob::new(format!("truncate is true; {remedy}")));
        }
        let missing = || BadJob::new("messages: the model has no chat template; send a prompt");
        let template = self.template.as_ref().ok_or_else(missing)?;
        let text = template.write((field, &messages), &request.variables, job.enqueued_at)?;
        let tokens = self.tokenizer.tokenize_rendered(field, &text)?;
        if let Some(name) = self.unknown(&tokens)
            && !messages.iter().any(|message| message.content.contains(&name))
        {
            return Err(BadJob::of_model(format!(
                "{field}: the chat template writes {name}, a token that the model does not know; use \
                 the tokenizer and the template beside it"
            )));
        }
        Ok(Asking { tokens, field, is_chat: true })
    }

    /// The first of the tokens that a tokenizer has and its model does not.
    fn unknown(&self, tokens: &[u32]) -> Option<String> {
        let token = tokens.iter().find(|token| **token as usize >= self.vocabulary)?;
        Some(self.tokenizer.name_of(*token).unwrap_or_default())
    }

    fn check_known(&self, Asking { tokens, field, .. }: &Asking) -> Result<(), BadJob> {
        self.unknown(tokens).map_or(Ok(()), |name| {
            Err(BadJob::new(format!(
                "{field} has {name}, a token that the model does not know; leave it out"
            )))
        })
    }

    fn text(&self, field: &'static str, text: &str) -> Result<Asking, BadJob> {
        let tokens = self.tokenizer.tokenize(field, text)?;
        if tokens.is_empty() {
            return Err(BadJob::new(format!("{field} has no tokens; send a text")));
        }
        Ok(Asking { tokens, field, is_chat: false })
    }

    /// How many tokens the answer may have, and whether the beginning of the prompt was cut off for it:
    /// only where it may be, and where the prompt does not fit.
    fn fit(&self, asking: &mut Asking, request: &Request) -> Result<(usize, bool), BadJob> {
        let (context, n_prompt) = (self.context, asking.tokens.len());
        if let Some((name, n)) = request.max_new.filter(|(_, n)| *n >= context) {
            let remedy = format!("{} with the prompt: ask for less", self.limit());
            return Err(BadJob::new(format!("{name} is {n}; {remedy}")));
        }
        let usual = USUAL_NEW.min(self.most_new);
        let (least, most) = request.max_new.map_or((1, usual), |(_, n)| (n, n));
        if n_prompt + least <= context {
            return Ok((most.min(context - n_prompt), false));
        }
        // An answer of one token would be of no use.
        let kept_free = request.max_new.map_or(usual.min(context / 2).max(1), |(_, n)| n);
        let (room, n_before) = (context - kept_free, self.tokenizer.n_before());
        if request.truncate && room > n_before {
            asking.tokens.drain(n_before..n_before + n_prompt - room);
            return Ok((kept_free, true));
        }
        let (field, limit, remedy) = (asking.field, self.limit(), asking.remedy(request, context));
        Err(BadJob::new(format!(
            "{field} has {n_prompt} tokens; {limit} with its answer: {remedy}"
        )))
    }

    /// What a prompt and its answer may have, in words.
    fn limit(&self) -> String {
        let (context, of_model) = (self.context, self.of_model);
        if context == of_model {
            return format!("the model takes {context} tokens");
        }
        format!(
            "this worker has memory for {context} tokens (--kv-memory; the model takes {of_model})"
        )
    }
}

/// What is answered, as tokens.
struct Asking {
    tokens: Vec<u32>,
    /// Where the job has it.
    field: &'static str,
    /// Whether it is a conversation, of which nothing can be cut off.
    is_chat: bool,
}

impl Asking {
    /// What to do where it is too long.
    fn remedy(&self, request: &Request, context: usize) -> String {
        let left = context.saturating_sub(self.tokens.len());
        let first = match request.max_new {
            Some((name, n)) if left > 0 => {
                format!("{name} is {n}, and {left} are left: ask for less")
            }
            Some((name, n)) if request.truncate => {
                format!("{name} is {n} and leaves no room for a text: ask for less")
            }
            _ => "send less".to_owned(),
        };
        if self.is_chat || request.truncate {
            return first;
        }
        format!("{first}, or truncate: true to have its beginning cut off")
    }
}

/// What an answer depends on, and what was said of it so far.
#[derive(Debug)]
pub struct Asked {
    transcript: Transcript,
    is_chat: bool,
    is_cut: bool,
    n_prompt: usize,
    /// Tokens that were read of it and its answer, and tokens of the prompt that were not computed
    /// for it.
    n_read: usize,
    n_reused: usize,
    stream: Option<Stream>,
    /// Whether a piece was told.
    is_begun: bool,
    finish: Option<Finish>,
}

impl Asked {
    fn about<'a>(&self, job: &'a Job, model: &'a str) -> About<'a> {
        let Self { is_chat, is_cut, n_prompt, n_reused, .. } = *self;
        let n_new = self.transcript.n_tokens();
        About { job, model, is_chat, is_cut, n_prompt, n_reused, n_new }
    }

    /// What this turn adds, for who follows the job.
    fn piece(&mut self, job: &Job, model: &str) -> Option<bytes::Bytes> {
        let Stream { with_usage } = self.stream?;
        let about = self.about(job, model);
        let news = self.transcript.news();
        if news.is_empty() && self.finish.is_none() {
            return None;
        }
        let is_first = !std::mem::replace(&mut self.is_begun, true);
        Some(about.piece(Piece { text: news, is_first, finish: self.finish, with_usage }))
    }
}

impl Codec for GeneratorCodec {
    type Input = Sequence;
    type Output = Turn;
    type Asked = Asked;

    const TAKES_TURNS: bool = true;

    fn decode(&self, job: &Job) -> Result<(Sequence, Asked), BadJob> {
        let mut request = Request::read(job, &self.defaults, self.most_new)?;
        let mut asking = self.tokens(&mut request, job)?;
        self.check_known(&asking)?;
        let (max_new, is_cut) = self.fit(&mut asking, &request)?;
        let Asking { tokens, is_chat, .. } = asking;
        let n_prompt = tokens.len();
        let Request { sampling, stops, stream, .. } = request;
        // An answer begins, and what a prompt is gone on with keeps the space before it.
        let transcript = Transcript::new(self.tokenizer.clone(), !is_chat, stops);
        let asked = Asked {
            transcript,
            is_chat,
            is_cut,
            n_prompt,
            n_read: 0,
            n_reused: 0,
            stream,
            is_begun: false,
            finish: None,
        };
        let key = self.keys.fetch_add(1, Ordering::Relaxed);
        let ends = Arc::clone(&self.ends);
        let life = Arc::default();
        Ok((Sequence { key, tokens, n_prompt, max_new, ends, sampling, life }, asked))
    }

    /// A turn of it: what is still to be read, as far as one turn reads it, and a few tokens more.
    ///
    /// Of a prompt that takes several turns each counts as if it read as much as the first.
    fn size(&self, sequence: &Sequence) -> Size {
        let is_read = sequence.tokens.len() > sequence.n_prompt;
        let n_unread = if is_read { 1 } else { sequence.n_prompt.min(READ_AT_ONCE) };
        Size::of([n_unread + GAINED_AT_ONCE])
    }

    fn advance(
        &self,
        mut sequence: Sequence,
        turn: Turn,
        asked: &mut Asked,
        job: &Job,
    ) -> Result<Step<Sequence, Turn>, BadJob> {
        // One that brings nothing waits for memory or a device that others have. The first of a batch
        // always gains something, and who has begun goes before who has not: it is its turn some day.
        let waits = turn.tokens.is_empty() && turn.n_read == asked.n_read;
        asked.n_read = turn.n_read;
        if turn.n_read > 0 {
            asked.n_reused = turn.n_reused.min(asked.n_prompt);
        }
        let is_stopped = asked.transcript.read(&turn.tokens);
        sequence.tokens.extend(&turn.tokens);
        let is_full = sequence.tokens.len() - sequence.n_prompt >= sequence.max_new;
        asked.finish = match turn.ended {
            _ if is_stopped => Some(Finish::Stop),
            Some(Ended::Stop) => Some(Finish::Stop),
            Some(Ended::Length) => Some(Finish::Length),
            None => is_full.then_some(Finish::Length),
        };
        // What is left of a character may be the stop.
        if asked.finish.is_some() && asked.transcript.end() {
            asked.finish = Some(Finish::Stop);
        }
        let piece = asked.piece(job, &self.model);
        let next = match asked.finish {
            Some(_) => Next::Answer(turn),
            None if waits => Next::Wait(sequence),
            None => Next::Turn(sequence),
        };
        Ok(Step { next, piece })
    }

    fn encode(&self, _: Turn, asked: Asked, job: &Job, spent: &Spent) -> Answer {
        // There is one at the end of the last turn.
        let finish = asked.finish.unwrap_or(Finish::Length);
        asked.about(job, &self.model).answer(asked.transcript.text(), finish, spent)
    }
}

#[cfg(test)]
mod tests;
