//! What the requests and answers of the models of text have in common.

use std::fmt;

use ebb_model::bert::{Tokenizer, Tokens};
use ebb_queue::JSON;
use serde::{Deserialize, Serialize};

use super::{Answer, BadJob, Spent};
use crate::batcher::Size;

/// Texts in one job, as many as OpenAI takes.
pub(super) const MAX_TEXTS: usize = 2048;

/// A text or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Input {
    One(String),
    Several(Vec<String>),
    Other(serde::de::IgnoredAny),
}

impl Input {
    pub(super) fn texts(self) -> Result<Vec<String>, BadJob> {
        match self {
            Self::One(text) => Ok(vec![text]),
            Self::Several(texts) => Ok(texts),
            Self::Other(_) => Err(BadJob::new(
                "input is neither a text nor a list of texts; send text, not tokens",
            )),
        }
    }
}

/// What becomes of a text that is longer than the model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(from = "Option<bool>")]
pub(super) enum TooLong {
    /// Its end is cut off.
    #[default]
    Cut,
    /// Its job fails.
    Refuse,
}

/// From `truncate` of a request.
impl From<Option<bool>> for TooLong {
    fn from(truncate: Option<bool>) -> Self {
        if truncate == Some(false) { Self::Refuse } else { Self::Cut }
    }
}

impl TooLong {
    /// Refuses the text at this place if its end was cut off and may not be.
    pub(super) fn check(self, text: &Tokens, place: fmt::Arguments<'_>) -> Result<(), BadJob> {
        if self == Self::Cut || !text.is_cut() {
            return Ok(());
        }
        let (n_whole, most) = (text.n_whole(), text.len());
        Err(BadJob::new(format!(
            "{place} has {n_whole} tokens; the model takes {most}: send less, or leave truncate out \
             to have the end cut off"
        )))
    }
}

/// Cuts the texts of one job, with the prompt of this name before each.
pub(super) fn tokenize(
    tokenizer: &Tokenizer,
    prompt: Option<&str>,
    texts: &[String],
    too_long: TooLong,
) -> Result<Vec<Tokens>, BadJob> {
    check_count("input", "texts", texts.len())?;
    let prompt = tokenizer.prompt(prompt)?;
    let cut = |(index, text): (usize, &String)| {
        let tokens = tokenizer.tokenize_after(prompt, text)?;
        too_long.check(&tokens, format_args!("input[{index}]"))?;
        Ok(tokens)
    };
    texts.iter().enumerate().map(cut).collect()
}

pub(super) fn check_count(field: &str, what: &str, n: usize) -> Result<(), BadJob> {
    if (1..=MAX_TEXTS).contains(&n) {
        return Ok(());
    }
    Err(BadJob::new(format!("{field} has {n} {what}; send 1 to {MAX_TEXTS}")))
}

pub(super) fn size<'a>(texts: impl Iterator<Item = &'a Tokens>) -> Size {
    Size::of(texts.map(Tokens::len))
}

/// One item for each text, in the shape of OpenAI's lists.
#[derive(Debug, Serialize)]
struct List<'a, T> {
    object: &'static str,
    data: Vec<T>,
    model: &'a str,
    usage: Usage,
}

/// What a job took: what OpenAI tells of it, and then what Ebb does.
#[derive(Debug, Serialize)]
pub(super) struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
    #[serde(flatten)]
    spent: Spent,
}

impl Usage {
    pub(super) fn of(n_tokens: usize, spent: &Spent) -> Self {
        Self { prompt_tokens: n_tokens, total_tokens: n_tokens, spent: *spent }
    }
}

pub(super) fn list<T: Serialize>(
    data: impl Iterator<Item = T>,
    model: &str,
    n_tokens: usize,
    spent: &Spent,
) -> Answer {
    let (data, usage) = (data.collect(), Usage::of(n_tokens, spent));
    answer(&List { object: "list", data, model, usage }, n_tokens)
}

pub(super) fn answer(response: &impl Serialize, tokens: usize) -> Answer {
    let body = serde_json::to_vec(response).expect("no map and no foreign type in it");
    Answer { content_type: JSON, body: body.into(), alert: None, tokens, n_cut: 0, n_reused: 0 }
}
