//! Redis Streams.

use crate::memory::MemoryQueue;
use crate::{Behavior, Error, ErrorKind, OpenOptions, RedisAddress, Result};

/// A queue on Redis Streams.
pub(crate) struct RedisQueue;

impl RedisQueue {
    /// Not spoken yet.
    pub(crate) async fn open(
        _address: &RedisAddress,
        _queue: &str,
        _behavior: &Behavior,
        _options: OpenOptions,
    ) -> Result<MemoryQueue> {
        Err(Error::new(
            ErrorKind::Invalid,
            "this version does not speak redis yet; use sqlite:PATH",
        ))
    }
}
