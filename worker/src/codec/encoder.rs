//! Sentence encoders: the embeddings of OpenAI's API in and out, or protobuf.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ebb_model::bert::{Embedding, Settings, Tokenizer, Tokens};
use ebb_proto::ebb::v1::{self, EmbeddingRequest, EmbeddingResponse};
use ebb_queue::{Job, PROTOBUF};
use prost::Message;
use serde::{Deserialize, Serialize};

use super::texts::{self, Input};
use super::{Answer, BadJob, Codec};
use crate::batcher::Size;

/// Speaks for [`ebb_model::bert::Encoder`].
#[derive(Debug)]
pub struct EncoderCodec {
    tokenizer: Tokenizer,
    dimensions: usize,
    of_length_one: bool,
    model: String,
}

impl EncoderCodec {
    /// Cuts texts with this tokenizer, and answers in the name of this model.
    #[must_use]
    pub fn new(tokenizer: Tokenizer, settings: &Settings, model: String) -> Self {
        let (dimensions, of_length_one) = (settings.hidden(), settings.normalize);
        Self { tokenizer, dimensions, of_length_one, model }
    }

    /// Refuses more numbers than the model has.
    fn check_dimensions(&self, asked: Option<u64>) -> Result<(), BadJob> {
        match asked {
            Some(n) if n == 0 || n > self.dimensions as u64 => {
                let own = self.dimensions;
                Err(BadJob(format!("dimensions is {n}; the model has {own}, ask for 1 to {own}")))
            }
            _ => Ok(()),
        }
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
    prompt_name: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum EncodingFormat {
    #[default]
    Float,
    Base64,
}

/// The fields of a request that its answer depends on.
#[derive(Debug, Default, Deserialize)]
struct Format {
    #[serde(default)]
    encoding_format: EncodingFormat,
    dimensions: Option<usize>,
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
        let request = request(job)?;
        self.check_dimensions(request.dimensions)?;
        let prompt = request.prompt_name.as_deref();
        texts::tokenize(&self.tokenizer, prompt, &request.input.texts()?)
    }

    fn size(&self, texts: &Vec<Tokens>) -> Size {
        texts::size(texts.iter())
    }

    fn encode(&self, mut embeddings: Vec<Embedding>, job: &Job) -> Answer {
        let n_tokens: usize = embeddings.iter().map(|embedding| embedding.tokens).sum();
        if job.content_type() == PROTOBUF {
            let vectors = embeddings.into_iter().map(|embedding| embedding.vector);
            let embeddings = vectors.map(|values| v1::Embedding { values }).collect();
            let response = EmbeddingResponse { embeddings, tokens: n_tokens as u64 };
            let body = response.encode_to_vec().into();
            return Answer { content_type: PROTOBUF, body, alert: None };
        }
        let format: Format = super::json(job).unwrap_or_default();
        if let Some(n) = format.dimensions {
            embeddings.iter_mut().for_each(|one| one.shorten(n, self.of_length_one));
        }
        let data = embeddings.iter().enumerate().map(|(index, embedding)| {
            let vector = match format.encoding_format {
                EncodingFormat::Float => Vector::Float(&embedding.vector),
                EncodingFormat::Base64 => Vector::Base64(base64(&embedding.vector)),
            };
            Item { object: "embedding", index, embedding: vector }
        });
        texts::list(data, &self.model, n_tokens)
    }
}

fn request(job: &Job) -> Result<Request, BadJob> {
    if job.content_type() != PROTOBUF {
        return super::json(job);
    }
    let request = EmbeddingRequest::decode(job.body.clone());
    let texts = request.map_err(|error| BadJob(format!("body: {error}")))?.input;
    let (input, encoding_format) = (Input::Several(texts), EncodingFormat::Float);
    Ok(Request { input, encoding_format, dimensions: None, prompt_name: None })
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
    use crate::codec::fixture;

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
            assert_eq!(request(&job(body)).unwrap().input.texts().unwrap(), expected, "{body}");
        }
        let mut binary = Job::new(
            EmbeddingRequest { input: vec!["a".into()] }.encode_to_vec(),
            Timestamp::UNIX_EPOCH,
        );
        binary.headers.content_type = Some(PROTOBUF.to_owned());
        assert_eq!(request(&binary).unwrap().input.texts().unwrap(), ["a"]);
    }

    fn codec(name: &str) -> EncoderCodec {
        let dir = fixture(name);
        let settings = Settings::read(&dir).unwrap();
        EncoderCodec::new(Tokenizer::load(&dir).unwrap(), &settings, "tiny".into())
    }

    #[test]
    fn what_cannot_be_answered_is_named() {
        let codec = codec("tiny-xlm-roberta");
        for (body, says) in [
            ("not JSON", "body: "),
            ("{}", "missing field `input`"),
            (r#"{"input": [1, 2]}"#, "send text, not tokens"),
            (r#"{"input": []}"#, "input has 0 texts"),
            (r#"{"input": "a", "dimensions": 17}"#, "dimensions is 17; the model has 16"),
            (r#"{"input": "a", "dimensions": 0}"#, "dimensions is 0; the model has 16"),
            (r#"{"input": "a", "prompt_name": "x"}"#, "the model's are document, query"),
            (r#"{"input": "a", "encoding_format": "hex"}"#, "expected `float` or `base64`"),
        ] {
            let error = codec.decode(&job(body)).expect_err(body).to_string();
            assert!(error.contains(says), "{body}: {error}");
        }
    }

    #[test]
    fn a_shorter_vector_has_the_length_of_the_models_own() {
        let body = r#"{"input": "a", "dimensions": 2}"#;
        for (name, expected) in [("tiny-xlm-roberta", [0.6, 0.8]), ("tiny-distilbert", [3.0, 4.0])]
        {
            let codec = codec(name);
            let mut vector = vec![1.0; 16];
            vector[..2].copy_from_slice(&[3.0, 4.0]);
            let answer = codec.encode(vec![Embedding { vector, tokens: 3 }], &job(body));
            let answer: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
            let found: Vec<f32> =
                serde_json::from_value(answer["data"][0]["embedding"].clone()).unwrap();
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn a_prompt_is_cut_with_its_text() {
        let codec = codec("tiny-xlm-roberta");
        let asked = codec.decode(&job(r#"{"input": "warm", "prompt_name": "query"}"#)).unwrap();
        let written = codec.decode(&job(r#"{"input": "query: warm"}"#)).unwrap();
        assert_eq!(asked, written);
    }

    #[test]
    fn base64_is_of_little_endian_floats() {
        assert_eq!(base64(&[1.0, -2.0]), "AACAPwAAAMA=");
    }
}
