//! Generators: conversations and completions of OpenAI's API in and out, or protobuf, told piece by
//! piece where the job asks for it.

mod reply;
mod request;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ebb_model::ItemError;
use ebb_model::causal::{
    ChatTemplate, Defaults, Ended, Message, Sequence, Settings, Tokenizer, Transcript, Turn,
};
use ebb_queue::Job;
use serde_json::Map;

use self::reply::{About, Finish};
use self::request::{Prompt, Request, Stream};
use super::{Answer, BadJob, Codec, Next, Spent, Step};
use crate::batcher::Size;

/// Tokens of an answer where a job does not say how many, as far as there is room.
const USUAL_NEW: usize = 256;
/// Tokens of a prompt that are read in a turn, about: what a long one costs the batch that it is in.
const READ_AT_ONCE: usize = 256;
/// Tokens that a sequence gains in a turn, about.
const GAINED_AT_ONCE: usize = 8;
/// Turns in a row that bring a job nothing before it is given up: it may wait for memory that others
/// have, but not for ever.
const MOST_IDLE_TURNS: u32 = 100_000;

/// Speaks for a generator of [`ebb_model::causal`].
#[derive(Debug)]
pub struct GeneratorCodec {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    defaults: Defaults,
    ends: Arc<[u32]>,
    /// Tokens that a prompt and its answer may have together.
    context: usize,
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
            most_new,
            model,
            keys: AtomicU64::new(0),
        }
    }

    /// The tokens that are answered, and whether they are a conversation.
    fn tokens(
        &self,
        request: &mut Request,
        job: &Job,
    ) -> Result<(Vec<u32>, &'static str, bool), BadJob> {
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
            return Err(BadJob(format!("truncate is true; {remedy}")));
        }
        let missing = || BadJob("messages: the model has no chat template; send a prompt".into());
        let template = self.template.as_ref().ok_or_else(missing)?;
        let text = template
            .write(&messages, &request.variables, job.enqueued_at)
            .map_err(|error| bad(&error))?;
        let tokens = self.tokenizer.tokenize_rendered(field, &text).map_err(|error| bad(&error))?;
        Ok((tokens, field, true))
    }

    fn text(
        &self,
        field: &'static str,
        text: &str,
    ) -> Result<(Vec<u32>, &'static str, bool), BadJob> {
        let tokens = self.tokenizer.tokenize(field, text).map_err(|error| bad(&error))?;
        if tokens.is_empty() {
            return Err(BadJob(format!("{field} has no tokens; send a text")));
        }
        Ok((tokens, field, false))
    }

    /// How many tokens the answer may have. Cuts off the beginning of a prompt where it may be.
    fn fit(
        &self,
        tokens: &mut Vec<u32>,
        field: &str,
        request: &Request,
    ) -> Result<(usize, bool), BadJob> {
        let (context, n_prompt) = (self.context, tokens.len());
        let usual = USUAL_NEW.min(self.most_new);
        let wanted = match request.max_new {
            Some((_, n)) => n,
            None if request.truncate => usual.min(context / 2).max(1),
            None => 1,
        };
        let room = context.saturating_sub(wanted);
        let n_before = self.tokenizer.n_before();
        if n_prompt <= room {
            let most = request.max_new.map_or(usual, |(_, n)| n);
            return Ok((most.min(context - n_prompt), false));
        }
        if request.truncate && room > n_before {
            tokens.drain(n_before..n_before + n_prompt - room);
            return Ok((wanted, true));
        }
        let remedy = match request.max_new {
            Some((name, n)) if n_prompt < context => {
                let left = context - n_prompt;
                format!("{name} is {n}, and {left} are left: ask for less")
            }
            _ if field == "messages" => "send less".to_owned(),
            _ => {
                "send less, or truncate: true to have the beginning of a prompt cut off".to_owned()
            }
        };
        let of_both = "tokens with its answer";
        Err(BadJob(format!(
            "{field} has {n_prompt} tokens; the model takes {context} {of_both}: {remedy}"
        )))
    }
}

/// What an answer depends on, and what was said of it so far.
#[derive(Debug)]
pub struct Asked {
    transcript: Transcript,
    is_chat: bool,
    is_cut: bool,
    n_prompt: usize,
    stream: Option<Stream>,
    /// Whether a piece was told.
    is_begun: bool,
    finish: Option<Finish>,
    /// How far the model has read at most.
    n_read: usize,
    n_idle_turns: u32,
}

impl Asked {
    fn about<'a>(&self, job: &'a Job, model: &'a str) -> About<'a> {
        let Self { is_chat, is_cut, n_prompt, .. } = *self;
        About { job, model, is_chat, is_cut, n_prompt, n_new: self.transcript.n_tokens() }
    }

    /// Counts the turns that bring nothing.
    fn count(&mut self, turn: &Turn) -> Result<(), BadJob> {
        let brings = !turn.tokens.is_empty() || turn.n_read > self.n_read || turn.ended.is_some();
        self.n_read = self.n_read.max(turn.n_read);
        self.n_idle_turns = if brings { 0 } else { self.n_idle_turns + 1 };
        if self.n_idle_turns < MOST_IDLE_TURNS {
            return Ok(());
        }
        Err(BadJob(format!(
            "the model wrote nothing in {MOST_IDLE_TURNS} turns; send less, or give the worker more \
             room with --kv-memory"
        )))
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
        Some(about.piece(news, is_first, self.finish, with_usage))
    }
}

impl Codec for GeneratorCodec {
    type Input = Sequence;
    type Output = Turn;
    type Asked = Asked;

    const TAKES_TURNS: bool = true;

    fn decode(&self, job: &Job) -> Result<(Sequence, Asked), BadJob> {
        let mut request = Request::read(job, &self.defaults, self.most_new)?;
        let (mut tokens, field, is_chat) = self.tokens(&mut request, job)?;
        let (max_new, is_cut) = self.fit(&mut tokens, field, &request)?;
        let n_prompt = tokens.len();
        let Request { sampling, stops, stream, .. } = request;
        // An answer begins, and what a prompt is gone on with keeps the space before it.
        let transcript = Transcript::new(self.tokenizer.clone(), !is_chat, stops);
        let asked = Asked {
            transcript,
            is_chat,
            is_cut,
            n_prompt,
            stream,
            is_begun: false,
            finish: None,
            n_read: 0,
            n_idle_turns: 0,
        };
        let key = self.keys.fetch_add(1, Ordering::Relaxed);
        let ends = Arc::clone(&self.ends);
        Ok((Sequence { key, tokens, n_prompt, max_new, ends, sampling }, asked))
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
        asked.count(&turn)?;
        let is_stopped = asked.transcript.read(&turn.tokens);
        sequence.tokens.extend(&turn.tokens);
        let is_full = sequence.tokens.len() - sequence.n_prompt >= sequence.max_new;
        asked.finish = match turn.ended {
            _ if is_stopped => Some(Finish::Stop),
            Some(Ended::Stop) => Some(Finish::Stop),
            Some(Ended::Length) => Some(Finish::Length),
            None => is_full.then_some(Finish::Length),
        };
        if asked.finish.is_some() {
            asked.transcript.end();
        }
        let piece = asked.piece(job, &self.model);
        let next = if asked.finish.is_some() { Next::Answer(turn) } else { Next::Turn(sequence) };
        Ok(Step { next, piece })
    }

    fn encode(&self, _: Turn, asked: Asked, job: &Job, spent: &Spent) -> Answer {
        // There is one at the end of the last turn.
        let finish = asked.finish.unwrap_or(Finish::Length);
        asked.about(job, &self.model).answer(asked.transcript.text(), finish, spent)
    }
}

fn bad(error: &ItemError) -> BadJob {
    BadJob(error.to_string())
}

#[cfg(test)]
mod tests;
