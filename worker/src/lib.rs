//! The worker: receives jobs, batches them on the fly, runs a model, stores the results, settles.
//!
//! [`run`] is the whole of it, as the command line asks; [`Pipeline`] is the same without command
//! line and probes, for tests and benches. The way of a job stands in three files: `receive` (and
//! decode), `infer` (and batch), `settle` (and store), and `stream` beside it. The pure parts are [`batcher`], [`lanes`],
//! [`bisect`] and [`fit`].

mod alert;
pub mod batcher;
pub mod bisect;
mod board;
mod cancel;
mod codec;
mod config;
mod deletion;
mod device;
pub mod fit;
#[cfg(feature = "cpu")]
mod generators;
mod gpu;
mod held;
mod infer;
mod intake;
pub mod lanes;
mod lease;
mod memory;
mod metrics;
mod models;
#[cfg(feature = "cpu")]
mod origin;
mod outcome;
mod pauses;
mod pipeline;
mod placing;
mod receive;
mod retention;
#[cfg(feature = "cpu")]
mod room;
mod run;
mod serve;
mod served;
mod settle;
mod shared;
mod sparing;
mod stages;
mod status;
mod stream;
mod trace;
mod under_way;
#[cfg(feature = "cpu")]
mod warm;
mod wedge;

pub use codec::{Answer, BadJob, Codec, EchoCodec, Next, Spent, Step};
#[cfg(feature = "cpu")]
pub use codec::{
    ClassifierCodec, EncoderCodec, GeneratorCodec, RerankerCodec, SentinelCodec, TaggerCodec,
};
pub use config::{WorkerArgs, store_apart};
pub use deletion::Pod;
pub use device::{BuildError, Device, DeviceBuilder, Phases};
pub use metrics::Metrics;
pub use pipeline::{Error, Pipeline};
pub use placing::DeviceArgs;
pub use run::run;
pub use served::{ModelParts, QueueParts};
pub use shared::{Parts, Settings, Summary};
#[cfg(feature = "cpu")]
pub use warm::{WarmArgs, Warmed, WarmedShape, warm};
