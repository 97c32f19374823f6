//! Classifiers: a text or several in, the scores of the labels out.

use std::num::NonZeroUsize;

use ebb_model::bert::{Classification, Settings, Tokenizer, Tokens};
use ebb_queue::Job;
use serde::{Deserialize, Serialize};

use super::texts::{self, Input};
use super::{Answer, BadJob, Codec};
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

#[derive(Debug, Deserialize)]
struct Request {
    input: Input,
    #[serde(default)]
    #[expect(dead_code, reason = "read so that a wrong one is refused; the answer looks again")]
    top_k: Option<NonZeroUsize>,
}

/// The one field of a request that its answer depends on.
#[derive(Debug, Default, Deserialize)]
struct Shown {
    top_k: Option<NonZeroUsize>,
}

#[derive(Debug, Serialize)]
struct Item<'a> {
    index: usize,
    label: &'a str,
    score: f32,
    scores: Vec<Scored<'a>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Scored<'a> {
    label: &'a str,
    score: f32,
}

impl Codec for ClassifierCodec {
    type Input = Vec<Tokens>;
    type Output = Vec<Classification>;

    fn decode(&self, job: &Job) -> Result<Vec<Tokens>, BadJob> {
        let request: Request = super::json(job)?;
        texts::tokenize(&self.tokenizer, None, &request.input.texts()?)
    }

    fn size(&self, texts: &Vec<Tokens>) -> Size {
        texts::size(texts.iter())
    }

    fn encode(&self, found: Vec<Classification>, job: &Job) -> Answer {
        let n_tokens = found.iter().map(|one| one.tokens).sum();
        let shown: Shown = super::json(job).unwrap_or_default();
        let n_shown = shown.top_k.map_or(self.labels.len(), NonZeroUsize::get);
        let data = found.iter().enumerate().map(|(index, one)| {
            let mut scores = ranked(&self.labels, &one.scores);
            let Scored { label, score } = scores[0];
            scores.truncate(n_shown);
            Item { index, label, score, scores }
        });
        texts::list(data, &self.model, n_tokens)
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
    use serde_json::Value;

    use super::*;
    use crate::codec::fixture;

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
        let found = vec![Classification { logits: scores.clone(), scores, tokens: 5 }];
        let answer = codec().encode(found.clone(), &job(r#"{"input": "a"}"#));
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        let item = &body["data"][0];
        assert_eq!((&item["label"], &item["index"]), (&"warm".into(), &0.into()), "{body}");
        let labels: Vec<_> =
            item["scores"].as_array().unwrap().iter().map(|scored| &scored["label"]).collect();
        assert_eq!(labels, ["warm", "calm", "hot"]);
        assert_eq!(body["usage"]["total_tokens"], 5);
        let answer = codec().encode(found, &job(r#"{"input": "a", "top_k": 1}"#));
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(body["data"][0]["scores"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn what_cannot_be_answered_is_named() {
        assert_eq!(codec().decode(&job(r#"{"input": ["a", "b"]}"#)).unwrap().len(), 2);
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
}
