//! RabbitMQ.

use crate::memory::MemoryQueue;
use crate::{AmqpAddress, Behavior, Error, ErrorKind, OpenOptions, Result};

/// A queue on RabbitMQ.
pub(crate) struct AmqpQueue;

impl AmqpQueue {
    /// Not spoken yet.
    pub(crate) async fn open(
        _address: &AmqpAddress,
        _queue: &str,
        _behavior: &Behavior,
        _options: OpenOptions,
    ) -> Result<MemoryQueue> {
        Err(Error::new(ErrorKind::Invalid, "this version does not speak amqp yet; use sqlite:PATH"))
    }
}
