//! From a job's body to what a model takes, and from what it gives to a result.
//!
//! One file or folder per model; the only ones in this crate that know the generated protobuf types.

mod body;
#[cfg(feature = "cpu")]
mod classifier;
mod echo;
#[cfg(feature = "cpu")]
mod encoder;
#[cfg(feature = "cpu")]
mod generator;
#[cfg(feature = "cpu")]
mod reranker;
#[cfg(feature = "cpu")]
mod sentinel;
#[cfg(feature = "cpu")]
mod tagger;
#[cfg(feature = "cpu")]
mod texts;

use std::any::Any;
use std::time::Duration;

use bytes::Bytes;
use ebb_model::ItemError;
#[cfg(feature = "cpu")]
use ebb_queue::PROTOBUF;
use ebb_queue::{Failure, FailureKind, Job};
use serde::Serialize;

use crate::batcher::Size;
use crate::device::Cargo;

#[cfg(feature = "cpu")]
pub use classifier::ClassifierCodec;
pub use echo::EchoCodec;
#[cfg(feature = "cpu")]
pub use encoder::EncoderCodec;
#[cfg(feature = "cpu")]
pub use generator::GeneratorCodec;
#[cfg(feature = "cpu")]
pub use reranker::RerankerCodec;
#[cfg(feature = "cpu")]
pub use sentinel::SentinelCodec;
#[cfg(feature = "cpu")]
pub use tagger::TaggerCodec;

/// Speaks for one model. What it reads and writes of whole jobs it does on CPU threads, many at once.
pub trait Codec: Send + Sync + 'static {
    /// What the model takes for one job.
    type Input: Send + 'static;
    /// What the model gives for one job.
    type Output: Send + 'static;
    /// What the answer depends on besides: a job is read once.
    type Asked: Send + 'static;

    /// Whether its jobs take several turns of the model as a rule, as those of a generator do. What a
    /// turn takes says nothing of what a job takes then, and a worker holds no more of them than run.
    const TAKES_TURNS: bool = false;

    /// Reads a job.
    ///
    /// # Errors
    /// When the job can never be answered: which field, and the remedy.
    fn decode(&self, job: &Job) -> Result<(Self::Input, Self::Asked), BadJob>;

    /// How much of the device a job takes, in its next turn where it takes several.
    fn size(&self, input: &Self::Input) -> Size;

    /// What follows a turn of the model. Runs after each, and once only; `asked` may keep what was
    /// said so far. It runs on no CPU thread of its own, one job of a batch after the other while the
    /// next turn waits: what takes long belongs into [`Self::encode`]. Where a job takes one turn, its output is the answer.
    ///
    /// # Errors
    /// When the job cannot be answered after all.
    fn advance(
        &self,
        _input: Self::Input,
        output: Self::Output,
        _asked: &mut Self::Asked,
        _job: &Job,
    ) -> Result<Step<Self::Input, Self::Output>, BadJob> {
        Ok(Step { next: Next::Answer(output), piece: None })
    }

    /// Writes the answer in the form that the job asked in.
    fn encode(&self, output: Self::Output, asked: Self::Asked, job: &Job, spent: &Spent) -> Answer;
}

/// What follows a turn of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step<I, O> {
    /// Whether there is another one.
    pub next: Next<I, O>,
    /// What this turn adds, for who follows the job, where it asked for a stream. Pieces may be
    /// joined: who reads them sees where one ends by what they hold.
    pub piece: Option<Bytes>,
}

/// Where a job goes from a turn of its model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next<I, O> {
    /// It is done.
    Answer(O),
    /// To the model once more.
    Turn(I),
    /// The same, of one that had no room in this turn: where no other of its batch had, there is some
    /// time before the next.
    Wait(I),
}

/// What a job took of the device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Spent {
    /// Its share of the time of the batches that it was in, over all its turns; in seconds.
    #[serde(rename = "device_seconds")]
    pub seconds: f64,
    /// That share: its own cost beside the costs of all jobs of the batch, of several turns the seconds
    /// above beside the time of all its batches.
    #[serde(rename = "batch_share")]
    pub share: f64,
}

impl Spent {
    /// The share of a job of this cost in a batch of jobs that cost so much together, and took this.
    #[must_use]
    pub fn of(cost: usize, all: usize, took: Duration) -> Self {
        let share = cost as f64 / all.max(1) as f64;
        Self { seconds: took.as_secs_f64() * share, share }
    }
}

/// What the answer to a job depends on besides its output; each codec knows its own type.
pub(crate) struct Asked(Box<dyn Any + Send>);

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Asked")
    }
}

/// A codec whose types nobody else needs to know.
pub(crate) trait AnyCodec: Send + Sync {
    fn takes_turns(&self) -> bool;
    fn decode(&self, job: &Job) -> Result<(Cargo, Asked, Size), BadJob>;
    fn advance(
        &self,
        input: Cargo,
        output: Cargo,
        asked: &mut Asked,
        job: &Job,
    ) -> Result<Step<(Cargo, Size), Cargo>, BadJob>;
    fn encode(&self, output: Cargo, asked: Asked, job: &Job, spent: &Spent) -> Answer;
}

/// Why a cast cannot fail.
const OWN: &str = "what this codec decoded, and its model made";

impl<C: Codec> AnyCodec for C {
    fn takes_turns(&self) -> bool {
        C::TAKES_TURNS
    }

    fn decode(&self, job: &Job) -> Result<(Cargo, Asked, Size), BadJob> {
        let (input, asked) = Codec::decode(self, job)?;
        let size = self.size(&input);
        Ok((Box::new(input), Asked(Box::new(asked)), size))
    }

    fn advance(
        &self,
        input: Cargo,
        output: Cargo,
        asked: &mut Asked,
        job: &Job,
    ) -> Result<Step<(Cargo, Size), Cargo>, BadJob> {
        let (input, output) = (*input.downcast().expect(OWN), *output.downcast().expect(OWN));
        let asked = asked.0.downcast_mut().expect(OWN);
        let Step { next, piece } = Codec::advance(self, input, output, asked, job)?;
        let sized = |input| {
            let size = self.size(&input);
            (Box::new(input) as _, size)
        };
        let next = match next {
            Next::Answer(output) => Next::Answer(Box::new(output) as _),
            Next::Turn(input) => Next::Turn(sized(input)),
            Next::Wait(input) => Next::Wait(sized(input)),
        };
        Ok(Step { next, piece })
    }

    fn encode(&self, output: Cargo, asked: Asked, job: &Job, spent: &Spent) -> Answer {
        let output = *output.downcast().expect(OWN);
        Codec::encode(self, output, *asked.0.downcast().expect(OWN), job, spent)
    }
}

/// A job that can never be answered, in words for whoever sent it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{words}")]
pub struct BadJob {
    words: String,
    is_models: bool,
}

impl BadJob {
    /// One that is wrong itself: name the field and the remedy.
    pub fn new(words: impl Into<String>) -> Self {
        Self { words: words.into(), is_models: false }
    }

    /// One that is as it should be, and that the files of the model make nothing of.
    pub fn of_model(words: impl Into<String>) -> Self {
        Self { words: words.into(), is_models: true }
    }

    /// The failure that it ends in.
    pub(crate) fn failure(self) -> Failure {
        let Self { words, is_models } = self;
        Failure::new(if is_models { FailureKind::Model } else { FailureKind::Invalid }, words)
    }
}

/// What is wrong with an item is wrong with its job.
impl From<ItemError> for BadJob {
    fn from(error: ItemError) -> Self {
        Self { words: error.to_string(), is_models: error.is_models() }
    }
}

/// The answer to a job, ready to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What the body is.
    pub content_type: &'static str,
    /// The answer itself.
    pub body: Bytes,
    /// The body of a job of its own for the alert queue.
    pub alert: Option<Bytes>,
    /// Tokens of the job's texts, padding not counted; 0 where the model knows none.
    pub tokens: usize,
    /// Texts whose ends were cut off.
    pub n_cut: usize,
    /// Tokens of a prompt that were not computed for it, for another had the same ones.
    pub n_reused: usize,
}

/// Whether a job speaks protobuf, and so wants to be answered.
#[cfg(feature = "cpu")]
fn is_protobuf(job: &Job) -> bool {
    job.content_type() == PROTOBUF
}

/// Reads a body as one of our messages.
#[cfg(feature = "cpu")]
fn message<M: prost::Message + Default>(job: &Job) -> Result<M, BadJob> {
    M::decode(job.body.clone()).map_err(|error| BadJob::new(format!("body: {error}")))
}

/// The answer of one of our messages.
#[cfg(feature = "cpu")]
fn protobuf(response: &impl prost::Message, tokens: usize) -> Answer {
    let body = response.encode_to_vec().into();
    Answer { content_type: PROTOBUF, body, alert: None, tokens, n_cut: 0, n_reused: 0 }
}

/// A number of which 0 says that it was not given.
#[cfg(feature = "cpu")]
fn given(n: u32) -> Option<usize> {
    usize::try_from(n).ok().filter(|n| *n > 0)
}

/// What a job took, in our message.
#[cfg(feature = "cpu")]
fn usage(tokens: usize, spent: &Spent) -> Option<ebb_proto::ebb::v1::Usage> {
    let Spent { seconds: device_seconds, share: batch_share } = *spent;
    Some(ebb_proto::ebb::v1::Usage { tokens: tokens as u64, device_seconds, batch_share })
}

/// A tiny model that is committed beside the tests of the models.
#[cfg(all(test, feature = "cpu"))]
fn fixture(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/data").join(name)
}

/// A job that speaks protobuf.
#[cfg(all(test, feature = "cpu"))]
fn binary(request: &impl prost::Message) -> Job {
    let mut job = Job::new(request.encode_to_vec(), ebb_queue::Timestamp::UNIX_EPOCH);
    job.headers.content_type = Some(PROTOBUF.to_owned());
    job
}
