//! Taggers: a text or several in, the entities in them out.

use ebb_model::bert::{self, Entity, Pieces, Settings, Tagged, Tokenizer};
use ebb_queue::Job;
use serde::{Deserialize, Serialize};

use super::texts::{self, Input};
use super::{Answer, BadJob, Codec};
use crate::batcher::Size;

/// Speaks for [`ebb_model::bert::Tagger`].
#[derive(Debug)]
pub struct TaggerCodec {
    tokenizer: Tokenizer,
    labels: Vec<String>,
    model: String,
}

impl TaggerCodec {
    /// Cuts texts with this tokenizer, and answers with these labels in the name of this model.
    #[must_use]
    pub fn new(tokenizer: Tokenizer, settings: &Settings, model: String) -> Self {
        Self { tokenizer, labels: settings.labels().to_vec(), model }
    }
}

#[derive(Debug, Deserialize)]
struct Request {
    input: Input,
    #[serde(default)]
    aggregation: Aggregation,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Aggregation {
    /// Neighbours of one label are one entity.
    #[default]
    Simple,
    /// Each word for itself, with its whole label.
    Words,
}

#[derive(Debug, Serialize)]
struct Item {
    index: usize,
    entities: Vec<Found>,
    truncated: bool,
}

#[derive(Debug, Serialize)]
struct Found {
    label: String,
    score: f32,
    word: String,
    start: usize,
    end: usize,
}

impl Codec for TaggerCodec {
    type Input = Vec<Pieces>;
    type Output = Vec<Tagged>;

    fn decode(&self, job: &Job) -> Result<Vec<Pieces>, BadJob> {
        let request: Request = super::json(job)?;
        let texts = request.input.texts()?;
        texts::check_count("input", "texts", texts.len())?;
        let pieces = texts.iter().map(|text| self.tokenizer.tokenize_pieces(text));
        pieces.collect::<Result<_, _>>().map_err(|error| BadJob(error.to_string()))
    }

    fn size(&self, texts: &Vec<Pieces>) -> Size {
        texts::size(texts.iter().map(|text| &text.tokens))
    }

    fn encode(&self, found: Vec<Tagged>, job: &Job) -> Answer {
        let request: Request = super::json(job).expect("it was read before it ran");
        let texts = request.input.texts().expect("it was read before it ran");
        let n_tokens = found.iter().map(|one| one.tokens).sum();
        let group = match request.aggregation {
            Aggregation::Simple => bert::entities,
            Aggregation::Words => bert::words,
        };
        let data = found.iter().zip(&texts).enumerate().map(|(index, (one, text))| {
            let entities = group(&one.tags, &self.labels);
            let entities = entities.into_iter().map(|entity| shown(entity, text)).collect();
            Item { index, entities, truncated: one.is_cut }
        });
        texts::list(data, &self.model, n_tokens)
    }
}

fn shown(entity: Entity, text: &str) -> Found {
    let Entity { label, score, start, end } = entity;
    let word = text.chars().skip(start).take(end - start).collect();
    Found { label, score, word, start, end }
}

#[cfg(test)]
mod tests {
    use ebb_model::bert::Tag;
    use ebb_queue::Timestamp;
    use serde_json::{Value, json};

    use super::*;
    use crate::codec::fixture;

    fn codec() -> TaggerCodec {
        let dir = fixture("tiny-tags-bert");
        let settings = Settings::read(&dir).unwrap();
        TaggerCodec::new(Tokenizer::load(&dir).unwrap(), &settings, "tiny".into())
    }

    fn answer(body: &Value) -> Value {
        let tag = |label, start, end, word| Tag { label, score: 0.5, start, end, word: Some(word) };
        // B-PER I-PER O, and the second half of the second word: places are in characters.
        let tags = vec![tag(1, 0, 3, 0), tag(2, 4, 6, 1), tag(2, 6, 8, 1), tag(0, 9, 10, 2)];
        let found = vec![Tagged { tags, tokens: 6, is_cut: false }];
        let job = Job::new(body.to_string(), Timestamp::UNIX_EPOCH);
        serde_json::from_slice(&codec().encode(found, &job).body).unwrap()
    }

    #[test]
    fn entities_are_told_with_their_words_and_places() {
        let body = answer(&json!({"input": "Zoë Ångs ."}));
        let expected =
            json!([{"label": "PER", "score": 0.5, "word": "Zoë Ångs", "start": 0, "end": 8}]);
        assert_eq!(body["data"][0]["entities"], expected);
        let body = answer(&json!({"input": ["Zoë Ångs ."], "aggregation": "words"}));
        let expected = json!([
            {"label": "B-PER", "score": 0.5, "word": "Zoë", "start": 0, "end": 3},
            {"label": "I-PER", "score": 0.5, "word": "Ångs", "start": 4, "end": 8},
        ]);
        assert_eq!(body["data"][0]["entities"], expected);
    }

    #[test]
    fn what_cannot_be_answered_is_named() {
        for (body, says) in [
            (json!({"input": []}), "input has 0 texts; send 1 to"),
            (json!({"input": "a", "aggregation": "max"}), "expected `simple` or `words`"),
        ] {
            let job = Job::new(body.to_string(), Timestamp::UNIX_EPOCH);
            let error = codec().decode(&job).expect_err(says).to_string();
            assert!(error.contains(says), "{body}: {error}");
        }
    }
}
