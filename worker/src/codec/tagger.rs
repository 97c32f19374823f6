//! Taggers: a text or several in, the entities in them out.

use ebb_model::bert::{self, Entity, Pieces, Settings, Tagged, Tokenizer};
use ebb_proto::ebb::v1;
use ebb_queue::Job;
use serde::{Deserialize, Serialize};

use super::body::Shape;
use super::texts::{self, Input, TooLong};
use super::{Answer, BadJob, Codec, Spent};
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

pub(super) const SHAPE: Shape =
    Shape { example: r#"{"input": "text"}"#, fields: &["input", "aggregation", "truncate"] };

#[derive(Debug, Deserialize)]
struct Request {
    input: Input,
    #[serde(default)]
    aggregation: Aggregation,
    #[serde(default, rename = "truncate")]
    too_long: TooLong,
}

/// What an answer depends on: the texts, and how their words are put together.
#[derive(Debug)]
pub struct Asked {
    texts: Vec<String>,
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
    type Asked = Asked;

    fn decode(&self, job: &Job) -> Result<(Vec<Pieces>, Asked), BadJob> {
        let Request { input, aggregation, too_long } = request(job)?;
        let texts = input.texts()?;
        texts::check_count("input", "texts", texts.len())?;
        let cut = |(index, text): (usize, &String)| -> Result<Pieces, BadJob> {
            let pieces = self.tokenizer.tokenize_pieces(text)?;
            too_long.check(&pieces.tokens, format_args!("input[{index}]"))?;
            Ok(pieces)
        };
        let pieces = texts.iter().enumerate().map(cut).collect::<Result<_, _>>()?;
        Ok((pieces, Asked { texts, aggregation }))
    }

    fn size(&self, texts: &Vec<Pieces>) -> Size {
        texts::size(texts.iter().map(|text| &text.tokens))
    }

    fn encode(&self, found: Vec<Tagged>, asked: Asked, job: &Job, spent: &Spent) -> Answer {
        let Asked { texts, aggregation } = asked;
        let n_tokens = found.iter().map(|one| one.tokens).sum();
        let n_cut = found.iter().filter(|one| one.is_cut).count();
        let group = match aggregation {
            Aggregation::Simple => bert::entities,
            Aggregation::Words => bert::words,
        };
        let data = found.iter().zip(&texts).enumerate().map(|(index, (one, text))| {
            let entities = group(&one.tags, &self.labels);
            let entities = entities.into_iter().map(|entity| shown(entity, text)).collect();
            Item { index, entities, truncated: one.is_cut }
        });
        if super::is_protobuf(job) {
            let usage = super::usage(n_tokens, spent);
            let response = v1::TaggingResponse { texts: data.map(Into::into).collect(), usage };
            return Answer { n_cut, ..super::protobuf(&response, n_tokens) };
        }
        Answer { n_cut, ..texts::list(data, &self.model, n_tokens, spent) }
    }
}

fn request(job: &Job) -> Result<Request, BadJob> {
    if !super::is_protobuf(job) {
        return SHAPE.read(job);
    }
    let v1::TaggingRequest { input, aggregation, truncate } = super::message(job)?;
    let aggregation = match v1::tagging_request::Aggregation::try_from(aggregation) {
        Ok(v1::tagging_request::Aggregation::Simple) => Aggregation::Simple,
        Ok(v1::tagging_request::Aggregation::Words) => Aggregation::Words,
        Err(_) => return Err(BadJob::new(format!("aggregation is {aggregation}; use 0 or 1"))),
    };
    Ok(Request { input: Input::Several(input), aggregation, too_long: truncate.into() })
}

impl From<Item> for v1::TaggedText {
    fn from(item: Item) -> Self {
        let place = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let entities = item.entities.into_iter().map(|found| {
            let Found { label, score, word, start, end } = found;
            v1::Entity { label, score, word, start: place(start), end: place(end) }
        });
        Self { entities: entities.collect(), truncated: item.truncated }
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
    use prost::Message;
    use serde_json::{Value, json};

    use super::*;
    use crate::codec::{binary, fixture};

    fn codec() -> TaggerCodec {
        let dir = fixture("tiny-tags-bert");
        let settings = Settings::read(&dir).unwrap();
        TaggerCodec::new(Tokenizer::load(&dir).unwrap(), &settings, "tiny".into())
    }

    fn encoded(job: &Job) -> Answer {
        let tag = |label, start, end, word| Tag { label, score: 0.5, start, end, word: Some(word) };
        // B-PER I-PER O, and the second half of the second word: places are in characters.
        let tags = vec![tag(1, 0, 3, 0), tag(2, 4, 6, 1), tag(2, 6, 8, 1), tag(0, 9, 10, 2)];
        let found = vec![Tagged { tags, tokens: 6, is_cut: true }];
        let (_, asked) = codec().decode(job).unwrap();
        codec().encode(found, asked, job, &Spent { seconds: 0.25, share: 0.5 })
    }

    fn answer(body: &Value) -> Value {
        let job = Job::new(body.to_string(), Timestamp::UNIX_EPOCH);
        serde_json::from_slice(&encoded(&job).body).unwrap()
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

    #[test]
    fn a_text_that_is_too_long_is_refused_where_its_end_may_not_be_cut_off() {
        let input = vec!["a".to_owned(), "a ".repeat(70)];
        let written = |truncate| {
            let body = json!({"input": input, "truncate": truncate});
            Job::new(body.to_string(), Timestamp::UNIX_EPOCH)
        };
        let (input, aggregation) = (input.clone(), 0);
        let message = v1::TaggingRequest { input, aggregation, truncate: Some(false) };
        for refused in [written(false), binary(&message)] {
            let error = codec().decode(&refused).unwrap_err().to_string();
            assert!(error.starts_with("input[1] has 72 tokens; the model takes 64"), "{error}");
        }
        assert!(codec().decode(&written(true)).is_ok());
    }

    #[test]
    fn protobuf_asks_and_is_answered_the_same() {
        for (aggregation, name) in [(0, "simple"), (1, "words")] {
            let input = vec!["Zoë Ångs .".to_owned()];
            let request = v1::TaggingRequest { input, aggregation, truncate: None };
            let told = answer(&json!({"input": ["Zoë Ångs ."], "aggregation": name}));
            let response = v1::TaggingResponse::decode(encoded(&binary(&request)).body).unwrap();
            let expected = told["data"][0]["entities"].as_array().unwrap();
            let found = &response.texts[0];
            assert_eq!((found.entities.len(), found.truncated), (expected.len(), true));
            assert_eq!(encoded(&binary(&request)).n_cut, 1);
            for (entity, expected) in found.entities.iter().zip(expected) {
                let v1::Entity { label, score, word, start, end } = entity;
                let shown = json!({
                    "label": label, "score": score, "word": word, "start": start, "end": end,
                });
                assert_eq!(&shown, expected, "{name}");
            }
            let usage = v1::Usage { tokens: 6, device_seconds: 0.25, batch_share: 0.5 };
            assert_eq!(response.usage, Some(usage));
        }
        let odd = v1::TaggingRequest { input: vec!["a".into()], aggregation: 2, truncate: None };
        let error = codec().decode(&binary(&odd)).unwrap_err().to_string();
        assert_eq!(error, "aggregation is 2; use 0 or 1");
    }
}
