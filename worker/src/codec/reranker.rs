//! Rerankers: a query and documents in, the documents by relevance out.

use std::num::NonZeroUsize;

use ebb_model::bert::{Classification, Tokenizer, Tokens};
use ebb_proto::ebb::v1;
use ebb_queue::Job;
use serde::{Deserialize, Serialize};

use super::body::Shape;
use super::texts::{self, TooLong, Usage};
use super::{Answer, BadJob, Codec, Spent};
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

pub(super) const SHAPE: Shape = Shape {
    example: r#"{"query": "text", "documents": ["text", "text"]}"#,
    fields: &["query", "documents", "top_n", "return_documents", "raw_scores", "truncate"],
};

/// What a job asks.
#[derive(Debug, Deserialize)]
pub struct Request {
    query: String,
    documents: Vec<Document>,
    top_n: Option<NonZeroUsize>,
    #[serde(default)]
    return_documents: bool,
    #[serde(default)]
    raw_scores: bool,
    #[serde(default, rename = "truncate")]
    too_long: TooLong,
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
    truncated: bool,
}

#[derive(Debug, Serialize)]
struct Shown<'a> {
    text: &'a str,
}

impl Codec for RerankerCodec {
    type Input = Vec<Tokens>;
    type Output = Vec<Classification>;
    type Asked = Request;

    fn decode(&self, job: &Job) -> Result<(Vec<Tokens>, Request), BadJob> {
        let request = request(job)?;
        texts::check_count("documents", "texts", request.documents.len())?;
        let documents = request.documents.iter().map(Document::text);
        let pairs = self.tokenizer.tokenize_pairs(&request.query, documents)?;
        for (index, pair) in pairs.iter().enumerate() {
            request.too_long.check(pair, format_args!("documents[{index}] with the query"))?;
        }
        Ok((pairs, request))
    }

    fn size(&self, pairs: &Vec<Tokens>) -> Size {
        texts::size(pairs.iter())
    }

    fn encode(
        &self,
        found: Vec<Classification>,
        request: Request,
        job: &Job,
        spent: &Spent,
    ) -> Answer {
        let n_tokens = found.iter().map(|one| one.tokens).sum();
        let n_cut = found.iter().filter(|one| one.is_cut).count();
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
            truncated: one.is_cut,
        });
        if super::is_protobuf(job) {
            let usage = super::usage(n_tokens, spent);
            let response = v1::RerankResponse { results: results.map(Into::into).collect(), usage };
            return Answer { n_cut, ..super::protobuf(&response, n_tokens) };
        }
        let (results, model) = (results.collect(), &self.model);
        let usage = Usage::of(n_tokens, spent);
        let response = Response { object: "list", results, model, usage };
        Answer { n_cut, ..texts::answer(&response, n_tokens) }
    }
}

fn request(job: &Job) -> Result<Request, BadJob> {
    if !super::is_protobuf(job) {
        return SHAPE.read(job);
    }
    let v1::RerankRequest { query, documents, top_n, return_documents, raw_scores, truncate } =
        super::message(job)?;
    let query = query.ok_or_else(|| BadJob::new("body: missing field `query`"))?;
    let documents = documents.into_iter().map(Document::Text).collect();
    let top_n = super::given(top_n).and_then(NonZeroUsize::new);
    let too_long = truncate.into();
    Ok(Request { query, documents, top_n, return_documents, raw_scores, too_long })
}

impl From<Found<'_>> for v1::RankedDocument {
    fn from(found: Found<'_>) -> Self {
        Self {
            index: u32::try_from(found.index).unwrap_or(u32::MAX),
            relevance_score: found.relevance_score,
            document: found.document.map(|shown| shown.text.to_owned()),
            truncated: found.truncated,
        }
    }
}

#[cfg(test)]
mod tests {
    use ebb_queue::Timestamp;
    use prost::Message;
    use serde_json::{Value, json};

    use super::*;
    use crate::codec::{binary, fixture};

    fn codec() -> RerankerCodec {
        let tokenizer = Tokenizer::load(&fixture("tiny-rerank-bert")).unwrap();
        RerankerCodec::new(tokenizer, "tiny".into())
    }

    fn job(body: &Value) -> Job {
        Job::new(body.to_string(), Timestamp::UNIX_EPOCH)
    }

    fn found(logit: f32, score: f32) -> Classification {
        Classification { logits: vec![logit], scores: vec![score], tokens: 4, is_cut: false }
    }

    fn answer(more: &Value) -> Value {
        let mut body = json!({"query": "q", "documents": ["a", {"text": "b"}, "c"]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        // The sigmoids of the first two are the same in single precision.
        serde_json::from_slice(&encoded(&job(&body)).body).unwrap()
    }

    fn encoded(job: &Job) -> Answer {
        let mut found = vec![found(20.0, 1.0), found(30.0, 1.0), found(-1.0, 0.25)];
        found[0].is_cut = true;
        let (_, asked) = codec().decode(job).unwrap();
        codec().encode(found, asked, job, &Spent { seconds: 0.25, share: 0.5 })
    }

    #[test]
    fn documents_come_by_relevance_with_their_places() {
        let body = answer(&json!({}));
        let places: Vec<_> =
            body["results"].as_array().unwrap().iter().map(|found| &found["index"]).collect();
        assert_eq!(places, [1, 0, 2]);
        assert_eq!(body["results"][1]["truncated"], true);
        assert_eq!(
            body["results"][2],
            json!({"index": 2, "relevance_score": 0.25, "truncated": false})
        );
        assert_eq!(body["usage"]["total_tokens"], 12);
        let body = answer(&json!({"top_n": 1, "return_documents": true, "raw_scores": true}));
        let best = json!({
            "index": 1, "relevance_score": 30.0, "document": {"text": "b"}, "truncated": false,
        });
        assert_eq!(body["results"], json!([best]));
    }

    #[test]
    fn what_cannot_be_answered_is_named() {
        let good = json!({"query": "q", "documents": ["a", {"text": "b"}]});
        assert_eq!(codec().decode(&job(&good)).unwrap().0.len(), 2);
        for (body, says) in [
            (json!({"documents": ["a"]}), "missing field `query`"),
            (json!({"documents": ["a"]}), "; send {\"query\": \"text\", \"documents\""),
            (json!({"query": "q", "documents": ["a"], "topN": 1}), "topN is not known; use top_n"),
            (json!({"query": "q"}), "missing field `documents`"),
            (json!({"query": "q", "documents": []}), "documents has 0 texts; send 1 to"),
            (json!({"query": "q", "documents": [7]}), "body: "),
            (json!({"query": "q", "documents": ["a"], "top_n": 0}), "nonzero"),
        ] {
            let error = codec().decode(&job(&body)).expect_err(says).to_string();
            assert!(error.contains(says), "{body}: {error}");
        }
    }

    #[test]
    fn a_pair_that_is_too_long_is_refused_where_it_may_not_be_cut() {
        // Each has room alone, and the first document beside the query too.
        let (query, documents) = ("a ".repeat(40), ["a ".repeat(21), "a ".repeat(40)]);
        let written =
            |truncate| job(&json!({"query": query, "documents": documents, "truncate": truncate}));
        let message = v1::RerankRequest {
            query: Some(query.clone()),
            documents: documents.to_vec(),
            truncate: Some(false),
            ..Default::default()
        };
        for refused in [written(false), binary(&message)] {
            let error = codec().decode(&refused).unwrap_err().to_string();
            let says = "documents[1] with the query has 83 tokens; the model takes 64: send less";
            assert!(error.starts_with(says), "{error}");
        }
        assert!(codec().decode(&written(true)).is_ok());
    }

    #[test]
    fn protobuf_asks_and_is_answered_the_same() {
        let request = v1::RerankRequest {
            query: Some("q".into()),
            documents: ["a", "b", "c"].map(str::to_owned).into(),
            top_n: 2,
            return_documents: true,
            raw_scores: true,
            truncate: None,
        };
        let told = answer(&json!({"top_n": 2, "return_documents": true, "raw_scores": true}));
        let response = v1::RerankResponse::decode(encoded(&binary(&request)).body).unwrap();
        let cut: Vec<_> = response.results.iter().map(|ranked| ranked.truncated).collect();
        assert_eq!((cut, encoded(&binary(&request)).n_cut), (vec![false, true], 1));
        for (ranked, expected) in response.results.iter().zip(told["results"].as_array().unwrap()) {
            assert_eq!(expected["index"], ranked.index);
            assert_eq!(
                expected["relevance_score"].as_f64().unwrap() as f32,
                ranked.relevance_score
            );
            assert_eq!(expected["document"]["text"], ranked.document.as_deref().unwrap());
        }
        let usage = v1::Usage { tokens: 12, device_seconds: 0.25, batch_share: 0.5 };
        assert_eq!(response.usage, Some(usage));
        let mute = v1::RerankRequest { query: None, ..request };
        let error = codec().decode(&binary(&mute)).unwrap_err().to_string();
        assert_eq!(error, "body: missing field `query`");
    }
}
