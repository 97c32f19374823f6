//! The models Ebb runs and the device they run on; the only crate that knows burn.
//!
//! This file is the seam: [`Model`], what can go wrong, and the name of a device.
//! With the feature `cpu` (on by default) come the sentence [`encoder`](bert), the
//! [`generator`](causal) and the anomaly [`sentinel`]; without it only [`echo`], [`pull`] and the
//! [`catalog`] are built, in seconds.

#[cfg(feature = "cpu")]
mod added;
pub mod bert;
pub mod catalog;
pub mod causal;
mod checkpoint;
mod device;
pub mod echo;
mod error;
mod first_runs;
mod json;
mod mapped;
mod named;
#[cfg(feature = "cpu")]
mod probe;
#[cfg(feature = "cpu")]
mod processor;
pub mod pull;
mod safetensors;
pub mod sentinel;

pub use catalog::{ModelInfo, ModelKind, recognise};
pub use device::{DeviceChoice, DeviceError, Dtype, keep_kernels};
#[cfg(feature = "cpu")]
pub use device::{Opened, use_threads};
pub use error::{InferError, InferErrorKind, ItemError, LoadError};
pub use first_runs::FirstRuns;

/// How the rows of a batch lie on a device, and so which belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Layout {
    /// Side by side, each as long as the longest: the device works through padding.
    #[default]
    Padded,
    /// End to end: a row costs its own length, whatever lies beside it.
    Packed,
    /// End to end as well, on a device that has little to do before the first row: there a short row
    /// gains next to nothing beside a long one, for which it waits, and belongs among its like.
    Alike,
}

/// A model on its device.
///
/// # Behavior
/// - Built on, and living on, the device thread: neither `Send` nor async.
/// - One result per input, in the order of the inputs.
/// - `Err` inside is the fault of that item alone, and says nothing of its neighbours.
/// - `Err` outside means that the batch as a whole failed; [`InferError::kind`] says what helps.
/// - An output that is not finite is an [`ItemError`], never a result.
/// - A panic is the caller's to catch; the model is not used again after one.
pub trait Model: 'static {
    /// What one job asks, already decoded.
    type Input: Send + 'static;
    /// What one job gets.
    type Output: Send + 'static;

    /// How the rows of a batch lie on the device, as far as whoever makes batches is concerned.
    fn layout(&self) -> Layout {
        Layout::Padded
    }

    /// From now on tells `first_runs` of each batch with work of a shape that was not run before, where
    /// kernels are compiled and tuned for a shape, for minutes.
    fn tell_first_runs(&mut self, _first_runs: FirstRuns) {}

    /// Runs one batch.
    fn infer(
        &mut self,
        batch: &[Self::Input],
    ) -> Result<Vec<Result<Self::Output, ItemError>>, InferError>;
}
