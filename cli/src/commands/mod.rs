//! One file per command that asks the queue or a model something and ends.

pub(crate) mod cancel;
pub(crate) mod check;
pub(crate) mod conformance;
pub(crate) mod dlq;
pub(crate) mod enqueue;
pub(crate) mod gateway;
pub(crate) mod model;
pub(crate) mod queue;
pub(crate) mod result;
pub(crate) mod scaler;
pub(crate) mod split;
#[cfg(feature = "cpu")]
pub(crate) mod train;
pub(crate) mod up;
#[cfg(feature = "cpu")]
pub(crate) mod warm;
