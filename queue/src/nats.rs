//! NATS JetStream.

use crate::memory::MemoryQueue;
use crate::{Behavior, Error, ErrorKind, NatsAddress, OpenOptions, Result};

/// A queue on NATS JetStream.
pub(crate) struct NatsQueue;

impl NatsQueue {
    /// Not spoken yet.
    pub(crate) async fn open(
        _address: &NatsAddress,
        _queue: &str,
        _behavior: &Behavior,
        _options: OpenOptions,
    ) -> Result<MemoryQueue> {
        Err(Error::new(ErrorKind::Invalid, "this version does not speak nats yet; use sqlite:PATH"))
    }
}
