//! A model that returns its input: for tests and benches of everything around a model.
//!
//! Each way in which a real model can fail can be asked for, by an item or of the model. An item that
//! is streamed is returned word by word, a turn for each, as a generator would.

use std::time::Duration;

use serde::Deserialize;

use crate::{InferError, ItemError, Model};

/// One item, and what shall happen to it. In JSON every field but `input` is optional.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct EchoInput {
    /// The text to return.
    pub input: String,
    /// Adds so many milliseconds to the time of its batch.
    #[serde(default)]
    pub sleep_ms: u64,
    /// Fails this item alone.
    #[serde(default)]
    pub fail: bool,
    /// Fails every batch it is in with [`InferError::Batch`].
    #[serde(default)]
    pub poison: bool,
    /// Fails every batch it is in with [`InferError::Device`].
    #[serde(default)]
    pub lose_device: bool,
    /// Panics in every batch it is in.
    #[serde(default)]
    pub panic: bool,
    /// Returns a word at a time, each with the space behind it.
    #[serde(default)]
    pub stream: bool,
    /// How long a turn lasts at least, in milliseconds.
    #[serde(default)]
    pub turn_ms: u64,
    /// Fails every batch it is in with [`InferError::Batch`], at this turn, from 0.
    #[serde(default)]
    pub poison_at: Option<usize>,
    /// Panics in every batch it is in, at this turn, from 0.
    #[serde(default)]
    pub panic_at: Option<usize>,
    /// Turns behind it.
    #[serde(skip)]
    pub turn: usize,
    /// Bytes of the text that those returned.
    #[serde(skip)]
    pub n_returned: usize,
}

impl EchoInput {
    /// An item that succeeds.
    pub fn new(input: impl Into<String>) -> Self {
        Self { input: input.into(), ..Self::default() }
    }

    /// The same item, a turn later.
    ///
    /// # Errors
    /// When all of it was returned: its whole text.
    pub fn after_a_turn(mut self) -> Result<Self, String> {
        self.turn += 1;
        self.n_returned += self.word().len();
        let goes_on = self.stream && self.n_returned < self.input.len();
        if goes_on { Ok(self) } else { Err(self.input) }
    }

    /// The word of this turn, with the space behind it. However long the text is, the words before it
    /// are not looked at again.
    fn word(&self) -> &str {
        let left = self.input.get(self.n_returned..).unwrap_or_default();
        left.split_inclusive(char::is_whitespace).next().unwrap_or_default()
    }
}

/// Returns its input, after the time it was told to take.
#[derive(Debug, Clone, Default)]
pub struct Echo {
    batch_time: Duration,
    item_time: Duration,
    memory_for: Option<usize>,
}

impl Echo {
    /// An echo that takes no time and has room for everything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes this long for each batch, whatever is in it.
    pub fn with_batch_time(mut self, time: Duration) -> Self {
        self.batch_time = time;
        self
    }

    /// Takes this long more for each item.
    pub fn with_item_time(mut self, time: Duration) -> Self {
        self.item_time = time;
        self
    }

    /// Runs out of memory on a batch of more than `items`.
    pub fn with_memory_for(mut self, items: usize) -> Self {
        self.memory_for = Some(items);
        self
    }

    /// The time this batch takes.
    pub fn time_of(&self, batch: &[EchoInput]) -> Duration {
        let asked = batch.iter().map(|item| item.sleep_ms).fold(0, u64::saturating_add);
        let turn = batch.iter().map(|item| item.turn_ms).max().unwrap_or_default();
        let n_items = u32::try_from(batch.len()).unwrap_or(u32::MAX);
        let asked = Duration::from_millis(asked.saturating_add(turn));
        asked.saturating_add(self.batch_time).saturating_add(self.item_time * n_items)
    }
}

impl Model for Echo {
    type Input = EchoInput;
    type Output = String;

    fn infer(&mut self, batch: &[EchoInput]) -> Result<Vec<Result<String, ItemError>>, InferError> {
        if let Some(room) = self.memory_for.filter(|room| batch.len() > *room) {
            return Err(InferError::OutOfMemory(format!("room for {room} items")));
        }
        let time = self.time_of(batch);
        if !time.is_zero() {
            #[allow(
                clippy::disallowed_methods,
                reason = "a model owns its thread, and may keep it"
            )]
            std::thread::sleep(time);
        }
        for item in batch {
            let panics = item.panic || item.panic_at == Some(item.turn);
            assert!(!panics, "an item asked for a panic");
            if item.lose_device {
                return Err(InferError::Device("an item asked for it".into()));
            }
            if item.poison || item.poison_at == Some(item.turn) {
                return Err(InferError::Batch("an item is poison".into()));
            }
        }
        let answer = |item: &EchoInput| {
            if item.fail {
                return Err(ItemError::new("the item asked to fail; set fail to false"));
            }
            if item.stream {
                return Ok(item.word().to_owned());
            }
            Ok(item.input.clone())
        };
        Ok(batch.iter().map(answer).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::InferErrorKind;

    fn item(json: &str) -> EchoInput {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn an_echo_answers_in_order_and_fails_one_item_alone() {
        let batch = [
            EchoInput::new("a"),
            item(r#"{"input": "b", "fail": true}"#),
            item(r#"{"input": "c", "unknown": 1}"#),
        ];
        let results = Echo::new().infer(&batch).unwrap();
        assert_eq!(results[0].as_deref(), Ok("a"));
        assert!(results[1].is_err());
        assert_eq!(results[2].as_deref(), Ok("c"));
    }

    #[test]
    fn a_batch_fails_as_it_was_told_to() {
        for (json, kind) in [
            (r#"{"input": "", "poison": true}"#, InferErrorKind::Batch),
            (r#"{"input": "", "lose_device": true}"#, InferErrorKind::Device),
        ] {
            let batch = [EchoInput::new("fine"), item(json)];
            assert_eq!(Echo::new().infer(&batch).unwrap_err().kind(), kind, "{json}");
        }
        let mut small = Echo::new().with_memory_for(1);
        let two = [EchoInput::new("a"), EchoInput::new("b")];
        assert_eq!(small.infer(&two).unwrap_err().kind(), InferErrorKind::OutOfMemory);
        assert!(small.infer(&two[..1]).is_ok());
    }

    #[test]
    fn the_time_of_a_batch_is_the_sum_of_what_was_asked() {
        let echo = Echo::new()
            .with_batch_time(Duration::from_millis(100))
            .with_item_time(Duration::from_millis(10));
        let batch = [EchoInput::new("a"), item(r#"{"input": "b", "sleep_ms": 5}"#)];
        assert_eq!(echo.time_of(&batch), Duration::from_millis(125));
        let longest = EchoInput { sleep_ms: u64::MAX, turn_ms: u64::MAX, ..EchoInput::new("c") };
        assert!(echo.time_of(&[longest.clone(), longest]) > Duration::from_millis(u64::MAX));
    }

    #[test]
    #[should_panic(expected = "asked for a panic")]
    fn an_item_can_panic() {
        let _unreached = Echo::new().infer(&[item(r#"{"input": "", "panic": true}"#)]);
    }

    #[test]
    fn a_streamed_item_is_returned_word_by_word() {
        let mut next = Some(item(r#"{"input": "a  b\nc", "stream": true, "poison_at": 4}"#));
        let mut said = Vec::new();
        while let Some(item) = next {
            said.push(Echo::new().infer(std::slice::from_ref(&item)).unwrap()[0].clone().unwrap());
            next = item.after_a_turn().ok();
        }
        assert_eq!(said, ["a ", " ", "b\n", "c"]);
        let whole = item(r#"{"input": "a b", "turn_ms": 20}"#);
        assert_eq!(Echo::new().time_of(&[whole.clone(), whole.clone()]).as_millis(), 20);
        assert_eq!(whole.clone().after_a_turn(), Err("a b".to_owned()));
        let late = EchoInput { turn: 1, poison_at: Some(1), ..whole };
        assert_eq!(Echo::new().infer(&[late]).unwrap_err().kind(), InferErrorKind::Batch);
    }

    #[test]
    fn an_input_is_required() {
        assert!(serde_json::from_str::<EchoInput>(r#"{"fail": true}"#).is_err());
    }
}
