//! Sentence encoders: the embeddings of OpenAI's API in and out, or protobuf.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ebb_model::bert::{Embedding, Settings, Tokenizer, Tokens};
use ebb_proto::ebb::v1::{self, EmbeddingRequest, EmbeddingResponse};
use ebb_queue::Job;
use serde::{Deserialize, Serialize};

use super::body::Shape;
use super::texts::{self, Input, TooLong};
use super::{Answer, BadJob, Codec, Spent};
use crate::batcher::Size;

/// Speaks for [`ebb_model::bert::Encoder`].
#[derive(Debug)]
pub struct EncoderCodec {
    tokenizer: Tokenizer,
    dimensions: usize,
    /// Numbers of a vector where a job does not say how many.
    shown: Option<usize>,
    of_length_one: bool,
    model: String,
}

impl EncoderCodec {
    /// Cuts texts with this tokenizer, and answers in the name of this model.
    #[must_use]
    pub fn new(tokenizer: Tokenizer, settings: &Settings, model: String) -> Self {
        let (dimensions, of_length_one) = (settings.dimensions(), settings.normalize);
        Self { tokenizer, dimensions, shown: None, of_length_one, model }
    }

    /// Answers with so many numbers where a job does not say how many.
    ///
    /// # Errors
    /// When the model has fewer.
    pub fn with_dimensions(mut self, n: Option<usize>) -> Result<Self, BadJob> {
        self.check_dimensions(n.map(|n| n as u64))?;
        self.shown = n;
        Ok(self)
    }

    /// Refuses more numbers than the model has.
    fn check_dimensions(&self, asked: Option<u64>) -> Result<(), BadJob> {
        match asked {
            Some(n) if n == 0 || n > self.dimensions as u64 => {
                let own = self.dimensions;
                Err(BadJob::new(format!(
                    "dimensions is {n}; the model has {own}, ask for 1 to {own}"
                )))
            }
            _ => Ok(()),
        }
    }
}

pub(super) const SHAPE: Shape = Shape {
    example: r#"{"input": "text"}"#,
    fields: &["input", "encoding_format", "dimensions", "prompt_name", "truncate"],
};

/// What is read of a request; what else OpenAI's has, such as `model` and `user`, is no matter here.
#[derive(Debug, Deserialize)]
struct Request {
    input: Input,
    #[serde(default)]
    encoding_format: EncodingFormat,
    dimensions: Option<u64>,
    prompt_name: Option<String>,
    #[serde(default, rename = "truncate")]
    too_long: TooLong,
}

/// What an answer depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    encoding_format: EncodingFormat,
    dimensions: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum EncodingFormat {
    #[default]
    Float,
    Base64,
}

#[derive(Debug, Serialize)]
struct Item<'a> {
    object: &'static str,
    index: usize,
    embedding: Vector<'a>,
    truncated: bool,
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
    type Asked = Asked;

    fn decode(&self, job: &Job) -> Result<(Vec<Tokens>, Asked), BadJob> {
        let Request { input, encoding_format, dimensions, prompt_name, too_long } = request(job)?;
        self.check_dimensions(dimensions)?;
        let (texts, prompt) = (input.texts()?, prompt_name.as_deref());
        let tokens = texts::tokenize(&self.tokenizer, prompt, &texts, too_long)?;
        let dimensions = dimensions.and_then(|n| usize::try_from(n).ok()).or(self.shown);
        Ok((tokens, Asked { encoding_format, dimensions }))
    }

    fn size(&self, texts: &Vec<Tokens>) -> Size {
        texts::size(texts.iter())
    }

    fn encode(
        &self,
        mut embeddings: Vec<Embedding>,
        asked: Asked,
        job: &Job,
        spent: &Spent,
    ) -> Answer {
        let n_tokens: usize = embeddings.iter().map(|embedding| embedding.tokens).sum();
        let n_cut = embeddings.iter().filter(|embedding| embedding.is_cut).count();
        if let Some(n) = asked.dimensions {
            embeddings.iter_mut().for_each(|one| one.shorten(n, self.of_length_one));
        }
        if super::is_protobuf(job) {
            let told = |one: Embedding| v1::Embedding { values: one.vector, truncated: one.is_cut };
            let embeddings = embeddings.into_iter().map(told).collect();
            let (tokens, usage) = (n_tokens as u64, super::usage(n_tokens, spent));
            let response = EmbeddingResponse { embeddings, tokens, usage };
            return Answer { n_cut, ..super::protobuf(&response, n_tokens) };
        }
        let data = embeddings.iter().enumerate().map(|(index, embedding)| {
            let vector = match asked.encoding_format {
                EncodingFormat::Float => Vector::Float(&embedding.vector),
                EncodingFormat::Base64 => Vector::Base64(base64(&embedding.vector)),
            };
            let truncated = embedding.is_cut;
            Item { object: "embedding", index, embedding: vector, truncated }
        });
        Answer { n_cut, ..texts::list(data, &self.model, n_tokens, spent) }
    }
}

fn request(job: &Job) -> Result<Request, BadJob> {
    if !super::is_protobuf(job) {
        return SHAPE.read(job);
    }
    let EmbeddingRequest { input, dimensions, prompt_name, truncate } = super::message(job)?;
    let input = Input::Several(input);
    let dimensions = super::given(dimensions).map(|n| n as u64);
    let prompt_name = Some(prompt_name).filter(|name| !name.is_empty());
    let (encoding_format, too_long) = (EncodingFormat::Float, truncate.into());
    Ok(Request { input, encoding_format, dimensions, prompt_name, too_long })
}

/// Little-endian floats, as OpenAI's clients unpack them.
fn base64(vector: &[f32]) -> String {
    let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
    BASE64.encode(bytes)
}

#[cfg(test)]
mod tests {
    use ebb_queue::Timestamp;
    use prost::Message;

    use super::*;
    use crate::codec::{binary, fixture};

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
        let binary = binary(&EmbeddingRequest { input: vec!["a".into()], ..Default::default() });
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
            ("{}", "missing field `input` at line 1 column 2; send {\"input\": \"text\"}"),
            (r#"{"inputs": "a"}"#, "inputs is not known; use input"),
            (r#"{"input": "a", "dimension": 4}"#, "dimension is not known; use dimensions"),
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
            let (job, found) = (job(body), vec![Embedding { vector, tokens: 3, is_cut: false }]);
            let (_, asked) = codec.decode(&job).unwrap();
            let answer = codec.encode(found, asked, &job, &Spent::default());
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
        assert_eq!(asked.0, written.0);
    }

    #[test]
    fn a_text_that_is_too_long_is_refused_where_its_end_may_not_be_cut_off() {
        let codec = codec("tiny-distilbert");
        let input = vec!["a".to_owned(), "a ".repeat(62), "a ".repeat(70)];
        let says = "input[2] has 72 tokens; the model takes 64: send less, or leave truncate out to \
                    have the end cut off";
        for (truncate, expected) in [(Some(false), Err(says)), (Some(true), Ok(3)), (None, Ok(3))] {
            let written = serde_json::json!({"input": input, "truncate": truncate}).to_string();
            let message = EmbeddingRequest { input: input.clone(), truncate, ..Default::default() };
            for job in [job(&written), binary(&message)] {
                let found = codec.decode(&job).map(|(texts, _)| texts.len());
                assert_eq!(found, expected.map_err(BadJob::new), "{truncate:?}");
            }
        }
        let error = codec.decode(&job(r#"{"input": "a", "truncate": 1}"#)).unwrap_err().to_string();
        assert!(error.contains("expected a boolean"), "{error}");
    }

    #[test]
    fn base64_is_of_little_endian_floats() {
        assert_eq!(base64(&[1.0, -2.0]), "AACAPwAAAMA=");
    }

    #[test]
    fn protobuf_asks_and_is_answered_the_same() {
        let codec = codec("tiny-xlm-roberta");
        let request = EmbeddingRequest {
            input: vec!["warm".into()],
            dimensions: 2,
            prompt_name: "query".into(),
            truncate: None,
        };
        let written = job(r#"{"input": ["warm"], "dimensions": 2, "prompt_name": "query"}"#);
        let (tokens, asked) = codec.decode(&binary(&request)).unwrap();
        assert_eq!((tokens, asked), codec.decode(&written).unwrap());

        let found = || {
            let mut vector = vec![1.0; 16];
            vector[..2].copy_from_slice(&[3.0, 4.0]);
            vec![Embedding { vector, tokens: 3, is_cut: true }]
        };
        let spent = Spent { seconds: 0.25, share: 0.5 };
        let answer = codec.encode(found(), asked, &binary(&request), &spent);
        let response = EmbeddingResponse::decode(answer.body).unwrap();
        assert_eq!((&*response.embeddings[0].values, response.tokens), (&[0.6, 0.8][..], 3));
        let usage = v1::Usage { tokens: 3, device_seconds: 0.25, batch_share: 0.5 };
        assert_eq!((response.usage, answer.tokens), (Some(usage), 3));
        assert_eq!((response.embeddings[0].truncated, answer.n_cut), (true, 1));
        let told: serde_json::Value =
            serde_json::from_slice(&codec.encode(found(), asked, &written, &spent).body).unwrap();
        assert_eq!(told["usage"]["device_seconds"], 0.25);
        assert_eq!(told["usage"]["total_tokens"], 3);
        assert_eq!(told["data"][0]["truncated"], true);

        let too_many = EmbeddingRequest { dimensions: 17, ..request };
        let error = codec.decode(&binary(&too_many)).unwrap_err().to_string();
        assert!(error.contains("dimensions is 17; the model has 16"), "{error}");
    }

    #[test]
    fn a_worker_may_shorten_the_vectors_of_those_who_do_not_ask() {
        let codec = codec("tiny-xlm-roberta").with_dimensions(Some(2)).unwrap();
        let n = |body: &str| codec.decode(&job(body)).unwrap().1.dimensions;
        assert_eq!(n(r#"{"input": "a"}"#), Some(2));
        assert_eq!(n(r#"{"input": "a", "dimensions": 4}"#), Some(4));
        let error = codec.with_dimensions(Some(17)).unwrap_err().to_string();
        assert_eq!(error, "dimensions is 17; the model has 16, ask for 1 to 16");
    }
}
