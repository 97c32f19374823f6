//! From a job's body to what a model takes, and from what it gives to a result.
//!
//! One file per model; the only ones in this crate that know the generated protobuf types.

#[cfg(feature = "cpu")]
mod classifier;
mod echo;
#[cfg(feature = "cpu")]
mod encoder;
#[cfg(feature = "cpu")]
mod reranker;
#[cfg(feature = "cpu")]
mod sentinel;
#[cfg(feature = "cpu")]
mod tagger;
#[cfg(feature = "cpu")]
mod texts;

use bytes::Bytes;
use ebb_queue::Job;

use crate::batcher::Size;

#[cfg(feature = "cpu")]
pub use classifier::ClassifierCodec;
pub use echo::EchoCodec;
#[cfg(feature = "cpu")]
pub use encoder::EncoderCodec;
#[cfg(feature = "cpu")]
pub use reranker::RerankerCodec;
#[cfg(feature = "cpu")]
pub use sentinel::SentinelCodec;
#[cfg(feature = "cpu")]
pub use tagger::TaggerCodec;

/// Speaks for one model. Runs on CPU threads, many at once.
pub trait Codec: Send + Sync + 'static {
    /// What the model takes for one job.
    type Input: Send + 'static;
    /// What the model gives for one job.
    type Output: Send + 'static;

    /// Reads a job.
    ///
    /// # Errors
    /// When the job can never be answered: which field, and the remedy.
    fn decode(&self, job: &Job) -> Result<Self::Input, BadJob>;

    /// How much of the device a job takes.
    fn size(&self, input: &Self::Input) -> Size;

    /// Writes the answer in the form that the job asked in.
    fn encode(&self, output: Self::Output, job: &Job) -> Answer;
}

/// A job that can never be answered, in words for whoever sent it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadJob(pub String);

/// The answer to a job, ready to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What the body is.
    pub content_type: &'static str,
    /// The answer itself.
    pub body: Bytes,
    /// The body of a job of its own for the alert queue.
    pub alert: Option<Bytes>,
}

/// Reads a body as JSON, whatever the content type says: plain clients rarely set one.
fn json<T: serde::de::DeserializeOwned>(job: &Job) -> Result<T, BadJob> {
    serde_json::from_slice(&job.body).map_err(|error| BadJob(format!("body: {error}")))
}

/// A tiny model that is committed beside the tests of the models.
#[cfg(all(test, feature = "cpu"))]
fn fixture(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/data").join(name)
}
