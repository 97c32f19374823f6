//! Rerankers: a query and documents in, the documents by relevance out.

use std::num::NonZeroUsize;

use ebb_model::bert::{Classification, Tokenizer, Tokens};
use ebb_queue::Job;
use serde::{Deserialize, Serialize};

use super::texts::{self, Usage};
use super::{Answer, BadJob, Codec};
use crate::batcher::Size;

/// Speaks for [`ebb_model::bert::Classifier`] where it compares pairs.
#[derive(Debug)]
pub struct RerankerCodec {
    tokenizer: Tokenizer,
    model: String,
}

impl RerankerCodec {
    /// Cuts pairs with this tokenizer, and answers in the name of this model.
    #[must_use]
    pub fn new(tokenizer: Tokenizer, model: String) -> Self {
        Self { tokenizer, model }
    }
}

#[derive(Debug, Deserialize)]
struct Request {
    query: String,
    documents: Vec<Document>,
    top_n: Option<NonZeroUsize>,
    #[serde(default)]
    return_documents: bool,
    #[serde(default)]
    raw_scores: bool,
}

/// A text, or an object with one.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Document {
    Text(String),
    Object { text: String },
}

impl Document {
    fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Object { text } => text,
        }
    }
}

#[derive(Debug, Serialize)]
struct Response<'a> {
    object: &'static str,
    results: Vec<Found<'a>>,
    model: &'a str,
    usage: Usage,
}

#[derive(Debug, Serialize)]
struct Found<'a> {
    index: usize,
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Shown<'a>>,
}

#[derive(Debug, Serialize)]
struct Shown<'a> {
    text: &'a str,
}

impl Codec for RerankerCodec {
    type Input = Vec<Tokens>;
    type Output = Vec<Classification>;

    fn decode(&self, job: &Job) -> Result<Vec<Tokens>, BadJob> {
        let request: Request = super::json(job)?;
        texts::check_count("documents", "texts", request.documents.len())?;
        let documents = request.documents.iter();
        let pairs =
            documents.map(|document| self.tokenizer.tokenize_pair(&request.query, document.text()));
        pairs.collect::<Result<_, _>>().map_err(|error| BadJob(error.to_string()))
    }

    fn size(&self, pairs: &Vec<Tokens>) -> Size {
        texts::size(pairs.iter())
    }

    fn encode(&self, found: Vec<Classification>, job: &Job) -> Answer {
        let request: Request = super::json(job).expect("it was read before it ran");
        let n_tokens = found.iter().map(|one| one.tokens).sum();
        let score =
            |one: &Classification| if request.raw_scores { one.logits[0] } else { one.scores[0] };
        let mut ranked: Vec<_> = found.iter().zip(&request.documents).enumerate().collect();
        // By the number itself: far from zero its sigmoid tells nothing apart.
        ranked.sort_by(|(_, (one, _)), (_, (other, _))| other.logits[0].total_cmp(&one.logits[0]));
        ranked.truncate(request.top_n.map_or(usize::MAX, NonZeroUsize::get));
        let results = ranked.into_iter().map(|(index, (one, document))| Found {
            index,
            relevance_score: score(one),
            document: request.return_documents.then(|| Shown { text: document.text() }),
        });
        let (results, model) = (results.collect(), &self.model);
        texts::answer(&Response { object: "list", results, model, usage: Usage::of(n_tokens) })
    }
}

#[cfg(test)]
mod tests {
    use ebb_queue::Timestamp;
    use serde_json::{Value, json};

    use super::*;
    use crate::codec::fixture;

    fn codec() -> RerankerCodec {
        let tokenizer = Tokenizer::load(&fixture("tiny-rerank-bert")).unwrap();
        RerankerCodec::new(tokenizer, "tiny".into())
    }

    fn job(body: &Value) -> Job {
        Job::new(body.to_string(), Timestamp::UNIX_EPOCH)
    }

    fn found(logit: f32, score: f32) -> Classification {
        Classification { logits: vec![logit], scores: vec![score], tokens: 4 }
    }

    fn answer(more: &Value) -> Value {
        let mut body = json!({"query": "q", "documents": ["a", {"text": "b"}, "c"]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        // The sigmoids of the first two are the same in single precision.
        let found = vec![found(20.0, 1.0), found(30.0, 1.0), found(-1.0, 0.25)];
        serde_json::from_slice(&codec().encode(found, &job(&body)).body).unwrap()
    }

    #[test]
    fn documents_come_by_relevance_with_their_places() {
        let body = answer(&json!({}));
        let places: Vec<_> =
            body["results"].as_array().unwrap().iter().map(|found| &found["index"]).collect();
        assert_eq!(places, [1, 0, 2]);
        assert_eq!(body["results"][2], json!({"index": 2, "relevance_score": 0.25}));
        assert_eq!(body["usage"]["total_tokens"], 12);
        let body = answer(&json!({"top_n": 1, "return_documents": true, "raw_scores": true}));
        let best = json!([{"index": 1, "relevance_score": 30.0, "document": {"text": "b"}}]);
        assert_eq!(body["results"], best);
    }

    #[test]
    fn what_cannot_be_answered_is_named() {
        let good = json!({"query": "q", "documents": ["a", {"text": "b"}]});
        assert_eq!(codec().decode(&job(&good)).unwrap().len(), 2);
        for (body, says) in [
            (json!({"documents": ["a"]}), "missing field `query`"),
            (json!({"query": "q"}), "missing field `documents`"),
            (json!({"query": "q", "documents": []}), "documents has 0 texts; send 1 to"),
            (json!({"query": "q", "documents": [7]}), "body: "),
            (json!({"query": "q", "documents": ["a"], "top_n": 0}), "nonzero"),
        ] {
            let error = codec().decode(&job(&body)).expect_err(says).to_string();
            assert!(error.contains(says), "{body}: {error}");
        }
    }
}
