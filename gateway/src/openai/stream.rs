//! An answer that is told while it is written, and goes on where another attempt begins it anew.

use bytes::Bytes;

use super::written::{self, News, Written};
use super::{About, Answer, Ended, Refused, Shape};

/// The events of one response: what their `data:` lines hold.
#[derive(Debug)]
pub struct Streamed {
    answer: Answer,
    about: About,
    /// Whether the client was told anything.
    is_begun: bool,
    /// Whether it was told all.
    is_ended: bool,
    /// What was said to the client.
    sent: String,
    /// Bytes of it that the attempt of now has said too.
    n_again: usize,
    /// The beginning of a line whose end is not there yet.
    line: Vec<u8>,
}

/// The last event of a stream that went well.
const DONE: &[u8] = b"[DONE]";

impl Streamed {
    pub(super) fn new(answer: Answer, about: About) -> Self {
        let (sent, line) = (String::new(), Vec::new());
        Self { answer, about, is_begun: false, is_ended: false, sent, n_again: 0, line }
    }

    /// What comes before all text; nothing the second time. The others say it by themselves.
    pub fn begin(&mut self) -> Vec<Bytes> {
        let says_role = self.answer.route == super::Route::ChatCompletions;
        let is_begun = std::mem::replace(&mut self.is_begun, true);
        let news = (says_role && !is_begun).then_some(News::Role);
        news.into_iter().map(|news| self.object(news)).collect()
    }

    /// Takes a piece of the attempt of now: whole lines of JSON, or parts of such.
    pub fn piece(&mut self, piece: &[u8]) -> Vec<Bytes> {
        let mut events = Vec::new();
        if self.is_ended || self.with_usage().is_none() {
            return events;
        }
        events.extend(self.begin());
        let Some(end) = piece.iter().rposition(|byte| *byte == b'\n') else {
            self.line.extend_from_slice(piece);
            return events;
        };
        let (ended, rest) = piece.split_at(end + 1);
        let mut lines = std::mem::replace(&mut self.line, rest.to_vec());
        lines.extend_from_slice(ended);
        for line in lines.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii) {
            if line.is_empty() {
                continue;
            }
            let said = written::text_of(line).ok_or_else(|| {
                Refused::of_another_kind(&self.about.model, "a text piece by piece")
            });
            match said.and_then(|text| self.say(&text)) {
                Ok(event) => events.extend(event),
                Err(refused) => {
                    events.extend(self.fail(&refused));
                    break;
                }
            }
        }
        events
    }

    /// Says that another attempt begins, so that the pieces before are void. What the client was told
    /// stays said: the attempt goes on behind it where it says the same, and else the stream fails.
    pub fn void(&mut self) {
        self.n_again = 0;
        self.line.clear();
    }

    /// Ends it. Of a completed job the result counts, whichever pieces came.
    pub fn end(&mut self, ended: &Ended) -> Vec<Bytes> {
        let mut events = Vec::new();
        if self.is_ended {
            return events;
        }
        events.extend(self.begin());
        let told = match self.with_usage() {
            Some(with_usage) => self.rest(ended, with_usage),
            None => {
                self.answer.whole(&self.about, std::slice::from_ref(ended)).map(|all| vec![all])
            }
        };
        match told {
            Ok(told) => {
                events.extend(told);
                events.push(Bytes::from_static(DONE));
                self.is_ended = true;
            }
            Err(refused) => events.extend(self.fail(&refused)),
        }
        events
    }

    /// Bytes that it keeps of what was said, for another attempt that says it again.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        self.sent.len() + self.line.len()
    }

    /// Whether all was told that will be: nothing follows, whatever comes.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.is_ended
    }

    /// Ends it with an error, whatever becomes of the job.
    pub fn fail(&mut self, refused: &Refused) -> Vec<Bytes> {
        let is_ended = std::mem::replace(&mut self.is_ended, true);
        (!is_ended).then(|| refused.body()).into_iter().collect()
    }

    /// Whether it tells what it took; nothing where the answer is not written piece by piece.
    fn with_usage(&self) -> Option<bool> {
        match self.answer.shape {
            Shape::Choices { with_usage, .. } => Some(with_usage),
            _ => None,
        }
    }

    /// What is left to say at the end.
    fn rest(&mut self, ended: &Ended, with_usage: bool) -> Result<Vec<Bytes>, Refused> {
        let bodies = self.answer.bodies(std::slice::from_ref(ended))?;
        let body = bodies.first().expect("one result has one body");
        let Written { text, finish, usage, .. } =
            written::read::<String>(self.answer.route, &self.about, body)?;
        self.void();
        let mut events: Vec<Bytes> = self.say(&text)?.into_iter().collect();
        if self.n_again < self.sent.len() {
            return Err(diverged());
        }
        events.push(self.object(News::Finish(finish)));
        events.extend(with_usage.then(|| self.object(News::Usage(usage))));
        Ok(events)
    }

    /// Says what of this text was not said.
    fn say(&mut self, text: &str) -> Result<Option<Bytes>, Refused> {
        let again = &self.sent.as_bytes()[self.n_again..];
        let n = again.len().min(text.len());
        if again[..n] != text.as_bytes()[..n] {
            return Err(diverged());
        }
        self.n_again += n;
        // Both are whole characters up to here, so this is the end of one.
        let news = &text[n..];
        if news.is_empty() {
            return Ok(None);
        }
        self.sent.push_str(news);
        self.n_again = self.sent.len();
        Ok(Some(self.object(News::Text(news))))
    }

    fn object(&self, news: News<'_>) -> Bytes {
        let with_usage = self.with_usage() == Some(true);
        written::object(self.answer.route, &self.about, with_usage, news)
    }
}

fn diverged() -> Refused {
    let message = "the job had to begin anew and says something else than what was sent already; ask \
                   again, or without a stream";
    Refused::new(500, "answer_changed", message)
}
