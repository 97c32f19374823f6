//! Classifiers: a text or several in, the scores of the labels out.

use std::num::NonZeroUsize;

use ebb_model::bert::{Classification, Settings, Tokenizer, Tokens};
use ebb_proto::ebb::v1;
use ebb_queue::Job;
use serde::{Deserialize, Serialize};

use super::body::Shape;
use super::texts::{self, Input, TooLong};
use super::{Answer, BadJob, Codec, Spent};
use crate::batcher::Size;

/// Speaks for [`ebb_model::bert::Classifier`].
#[derive(Debug)]
pub struct ClassifierCodec {
    tokenizer: Tokenizer,
    labels: Vec<String>,
    model: String,
}

impl ClassifierCodec {
    /// Cuts texts with this tokenizer, and answers with these labels in the name of this model.
    #[must_use]
    pub fn new(tokenizer: Tokenizer, settings: &Settings, model: String) -> Self {
        Self { tokenizer, labels: settings.labels().to_vec(), model }
    }
}

pub(super) const SHAPE: Shape =
    Shape { example: r#"{"input": "text"}"#, fields: &["input", "top_k", "truncate"] };

#[derive(Debug, Deserialize)]
struct Request {
    input: Input,
    #[serde(default)]
    top_k: Option<NonZeroUsize>,
    #[serde(default, rename = "truncate")]
    too_long: TooLong,
}

#[derive(Debug, Serialize)]
struct Item<'a> {
    index: usize,
    label: &'a str,
    score: f32,
    scores: Vec<Scored<'a>>,
    truncated: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Scored<'a> {
    label: &'a str,
    score: f32,
}

impl Codec for ClassifierCodec {
    type Input = Vec<Tokens>;
    type Output = Vec<Classification>;
    /// How many labels are shown of each text.
    type Asked = Option<NonZeroUsize>;

    fn decode(&self, job: &Job) -> Result<(Vec<Tokens>, Option<NonZeroUsize>), BadJob> {
        let Request { input, top_k, too_long } = request(job)?;
        Ok((texts::tokenize(&self.tokenizer, None, &input.texts()?, too_long)?, top_k))
    }

    fn size(&self, texts: &Vec<Tokens>) -> Size {
        texts::size(texts.iter())
    }

    fn encode(
        &self,
        found: Vec<Classification>,
        top_k: Option<NonZeroUsize>,
        job: &Job,
        spent: &Spent,
    ) -> Answer {
        let n_tokens = found.iter().map(|one| one.tokens).sum();
        let n_cut = found.iter().filter(|one| one.is_cut).count();
        let n_shown = top_k.map_or(self.labels.len(), NonZeroUsize::get);
        let data = found.iter().enumerate().map(|(index, one)| {
            let mut scores = ranked(&self.labels, &one.scores);
            let Scored { label, score } = scores[0];
            scores.truncate(n_shown);
            Item { index, label, score, scores, truncated: one.is_cut }
        });
        if super::is_protobuf(job) {
            let classifications = data.map(Into::into).collect();
            let usage = super::usage(n_tokens, spent);
            let response = v1::ClassificationResponse { classifications, usage };
            return Answer { n_cut, ..super::protobuf(&response, n_tokens) };
        }
        Answer { n_cut, ..texts::list(data, &self.model, n_tokens, spent) }
    }
}

fn request(job: &Job) -> Result<Request, BadJob> {
    if !super::is_protobuf(job) {
        return SHAPE.read(job);
    }
    let v1::ClassificationRequest { input, top_k, truncate } = super::message(job)?;
    let top_k = super::given(top_k).and_then(NonZeroUsize::new);
    Ok(Request { input: Input::Several(input), top_k, too_long: truncate.into() })
}

impl From<Item<'_>> for v1::Classification {
    fn from(item: Item<'_>) -> Self {
        let scores = item.scores.into_iter();
        let scores =
            scores.map(|Scored { label, score }| v1::LabelScore { label: label.into(), score });
        let (label, scores) = (item.label.into(), scores.collect());
        Self { label, score: item.score, scores, truncated: item.truncated }
    }
}

/// The labels from the best to the worst; among equals the order is the model's.
fn ranked<'a>(labels: &'a [String], scores: &[f32]) -> Vec<Scored<'a>> {
    let scored = labels.iter().zip(scores);
    let mut all: Vec<_> = scored.map(|(label, score)| Scored { label, score: *score }).collect();
    all.sort_by(|one, other| other.score.total_cmp(&one.score));
    all
}

#[cfg(test)]
mod tests {
    use ebb_queue::Timestamp;
    use prost::Message;
    use serde_json::Value;

    use super::*;
    use crate::codec::{binary, fixture};

    fn codec() -> ClassifierCodec {
        let dir = fixture("tiny-classes-bert");
        let settings = Settings::read(&dir).unwrap();
        ClassifierCodec::new(Tokenizer::load(&dir).unwrap(), &settings, "tiny".into())
    }

    fn job(body: &str) -> Job {
        Job::new(body.to_owned(), Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn labels_come_from_the_best_to_the_worst() {
        let scores = vec![0.2, 0.7, 0.1];
        let found =
            vec![Classification { logits: scores.clone(), scores, tokens: 5, is_cut: false }];
        let spent = Spent { seconds: 0.25, share: 0.5 };
        let answer = codec().encode(found.clone(), None, &job(r#"{"input": "a"}"#), &spent);
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        let item = &body["data"][0];
        assert_eq!((&item["label"], &item["index"]), (&"warm".into(), &0.into()), "{body}");
        let labels: Vec<_> =
            item["scores"].as_array().unwrap().iter().map(|scored| &scored["label"]).collect();
        assert_eq!(labels, ["warm", "calm", "hot"]);
        assert_eq!((&item["truncated"], answer.n_cut), (&false.into(), 0));
        let usage = serde_json::json!({
            "prompt_tokens": 5, "total_tokens": 5, "device_seconds": 0.25, "batch_share": 0.5,
        });
        assert_eq!((&body["usage"], answer.tokens), (&usage, 5));
        let one = job(r#"{"input": "a", "top_k": 1}"#);
        let (_, asked) = codec().decode(&one).unwrap();
        let answer = codec().encode(found, asked, &one, &spent);
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(body["data"][0]["scores"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn what_cannot_be_answered_is_named() {
        assert_eq!(codec().decode(&job(r#"{"input": ["a", "b"]}"#)).unwrap().0.len(), 2);
        for (body, says) in [
            ("no JSON", "body: "),
            (r#"{"input": []}"#, "input has 0 texts; send 1 to"),
            (r#"{"input": 7}"#, "input is neither a text nor"),
            (r#"{"input": "a", "top_k": 0}"#, "nonzero"),
        ] {
            let error = codec().decode(&job(body)).expect_err(body).to_string();
            assert!(error.contains(says), "{body}: {error}");
        }
    }

    #[test]
    fn a_text_that_is_too_long_is_refused_where_its_end_may_not_be_cut_off() {
        let input = vec!["a".to_owned(), "a ".repeat(70)];
        let written = |truncate| serde_json::json!({"input": input, "truncate": truncate});
        let message =
            v1::ClassificationRequest { input: input.clone(), top_k: 0, truncate: Some(false) };
        for refused in [job(&written(false).to_string()), binary(&message)] {
            let error = codec().decode(&refused).unwrap_err().to_string();
            assert!(error.starts_with("input[1] has 72 tokens; the model takes 64"), "{error}");
        }
        assert!(codec().decode(&job(&written(true).to_string())).is_ok());
    }

    #[test]
    fn protobuf_asks_and_is_answered_the_same() {
        let input = vec!["a".into(), "b".into()];
        let request = v1::ClassificationRequest { input, top_k: 2, truncate: None };
        let binary_job = binary(&request);
        let written = job(r#"{"input": ["a", "b"], "top_k": 2}"#);
        let (tokens, asked) = codec().decode(&binary_job).unwrap();
        assert_eq!((&tokens, asked), (&codec().decode(&written).unwrap().0, NonZeroUsize::new(2)));

        let scores = vec![0.2, 0.7, 0.1];
        let found =
            vec![Classification { logits: scores.clone(), scores, tokens: 5, is_cut: true }];
        let spent = Spent { seconds: 0.25, share: 0.5 };
        let body = codec().encode(found.clone(), asked, &written, &spent).body;
        let told: Value = serde_json::from_slice(&body).unwrap();
        let answer = codec().encode(found, asked, &binary_job, &spent);
        let n_cut = answer.n_cut;
        let response = v1::ClassificationResponse::decode(answer.body).unwrap();
        let one = &response.classifications[0];
        assert_eq!((one.label.as_str(), one.score), ("warm", 0.7));
        assert_eq!((&told["data"][0]["truncated"], one.truncated, n_cut), (&true.into(), true, 1));
        for (pair, expected) in one.scores.iter().zip(told["data"][0]["scores"].as_array().unwrap())
        {
            assert_eq!(expected["label"], pair.label);
            assert_eq!(expected["score"].as_f64().unwrap() as f32, pair.score);
        }
        assert_eq!(one.scores.len(), 2);
        let usage = v1::Usage { tokens: 5, device_seconds: 0.25, batch_share: 0.5 };
        assert_eq!(response.usage, Some(usage));
        let none = codec().decode(&binary(&v1::ClassificationRequest::default()));
        assert!(none.unwrap_err().to_string().contains("input has 0 texts"));
    }
}
