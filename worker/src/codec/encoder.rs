//! Sentence encoders: the embeddings of OpenAI's API in and out, or protobuf.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ebb_model::bert::{Embedding, Tokenizer, Tokens};
use ebb_proto::ebb::v1::{self, EmbeddingRequest, EmbeddingResponse};
use ebb_queue::{Job, PROTOBUF};
use prost::Message;
use serde::{Deserialize, Serialize};

use super::texts::{self, Input, Usage};
use super::{Answer, BadJob, Codec};
use crate::batcher::Size;

/// Speaks for [`ebb_model::bert::Encoder`].
#[derive(Debug)]
pub struct EncoderCodec {
    tokenizer: Tokenizer,
    model: String,
}

impl EncoderCodec {
    /// Cuts texts with this tokenizer, and answers in the name of this model.
    #[must_use]
    pub fn new(tokenizer: Tokenizer, model: String) -> Self {
        Self { tokenizer, model }
    }
}

/// What is read of a request; what else OpenAI's has, such as `model` and `user`, is no matter here.
#[derive(Debug, Deserialize)]
struct Request {
    input: Input,
    #[serde(default)]
    #[expect(dead_code, reason = "read so that a wrong one is refused; the answer looks again")]
    encoding_format: EncodingFormat,
    dimensions: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum EncodingFormat {
    #[default]
    Float,
    Base64,
}

/// The one field of a request that its answer depends on.
#[derive(Debug, Default, Deserialize)]
struct Format {
    #[serde(default)]
    encoding_format: EncodingFormat,
}

#[derive(Debug, Serialize)]
struct Response<'a> {
    object: &'static str,
    data: Vec<Item<'a>>,
    model: &'a str,
    usage: Usage,
}

#[derive(Debug, Serialize)]
struct Item<'a> {
    object: &'static str,
    index: usize,
    embedding: Vector<'a>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Vector<'a> {
    Float(&'a [f32]),
    Base64(String),
}

impl Codec for EncoderCodec {
    type Input = Vec<Tokens>;
    type Output = Vec<Embedding>;

    fn decode(&self, job: &Job) -> Result<Vec<Tokens>, BadJob> {
        texts::tokenize(&self.tokenizer, &texts(job)?)
    }

    fn size(&self, texts: &Vec<Tokens>) -> Size {
        texts::size(texts)
    }

    fn encode(&self, embeddings: Vec<Embedding>, job: &Job) -> Answer {
        let n_tokens: usize = embeddings.iter().map(|embedding| embedding.tokens).sum();
        if job.content_type() == PROTOBUF {
            let vectors = embeddings.into_iter().map(|embedding| embedding.vector);
            let embeddings = vectors.map(|values| v1::Embedding { values }).collect();
            let response = EmbeddingResponse { embeddings, tokens: n_tokens as u64 };
            let body = response.encode_to_vec().into();
            return Answer { content_type: PROTOBUF, body, alert: None };
        }
        let format: Format = super::json(job).unwrap_or_default();
        let data = embeddings.iter().enumerate().map(|(index, embedding)| {
            let vector = match format.encoding_format {
                EncodingFormat::Float => Vector::Float(&embedding.vector),
                EncodingFormat::Base64 => Vector::Base64(base64(&embedding.vector)),
            };
            Item { object: "embedding", index, embedding: vector }
        });
        let usage = Usage::of(n_tokens);
        texts::answer(&Response { object: "list", data: data.collect(), model: &self.model, usage })
    }
}

fn texts(job: &Job) -> Result<Vec<String>, BadJob> {
    if job.content_type() == PROTOBUF {
        let request = EmbeddingRequest::decode(job.body.clone());
        return Ok(request.map_err(|error| BadJob(format!("body: {error}")))?.input);
    }
    let request: Request = super::json(job)?;
    if let Some(dimensions) = request.dimensions {
        let remedy = "leave it out, the model's own width is used";
        return Err(BadJob(format!("dimensions is {dimensions}; {remedy}")));
    }
    request.input.texts()
}

/// Little-endian floats, as OpenAI's clients unpack them.
fn base64(vector: &[f32]) -> String {
    let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
    BASE64.encode(bytes)
}

#[cfg(test)]
mod tests {
    use ebb_queue::Timestamp;

    use super::*;

    fn job(body: &str) -> Job {
        Job::new(body.to_owned(), Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_request_is_read_as_openai_writes_it() {
        for (body, expected) in [
            (r#"{"input": "a"}"#, vec!["a"]),
            (r#"{"input": ["a", "b"], "model": "x", "user": "y"}"#, vec!["a", "b"]),
            (r#"{"input": "", "encoding_format": "base64"}"#, vec![""]),
        ] {
            assert_eq!(texts(&job(body)).unwrap(), expected, "{body}");
        }
        let mut binary = Job::new(
            EmbeddingRequest { input: vec!["a".into()] }.encode_to_vec(),
            Timestamp::UNIX_EPOCH,
        );
        binary.headers.content_type = Some(PROTOBUF.to_owned());
        assert_eq!(texts(&binary).unwrap(), ["a"]);
    }

    #[test]
    fn what_cannot_be_answered_is_named() {
        for (body, says) in [
            ("not JSON", "body: "),
            ("{}", "missing field `input`"),
            (r#"{"input": [1, 2]}"#, "send text, not tokens"),
            (r#"{"input": "a", "dimensions": 64}"#, "dimensions is 64; leave it out"),
            (r#"{"input": "a", "encoding_format": "hex"}"#, "expected `float` or `base64`"),
        ] {
            let error = texts(&job(body)).expect_err(body).to_string();
            assert!(error.contains(says), "{body}: {error}");
        }
    }

    #[test]
    fn base64_is_of_little_endian_floats() {
        assert_eq!(base64(&[1.0, -2.0]), "AACAPwAAAMA=");
    }
}
