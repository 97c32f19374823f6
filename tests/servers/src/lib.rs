//! Real brokers for tests and benches, and a collector of spans: started on ports of their own, gone
//! with whoever started them, even when that is killed. Beside them, what the tests of several crates
//! hold to be so.

mod authority;
mod cluster;
mod collector;
mod home;
mod metrics;
mod nats;
mod ports;
mod probe;
mod program;
mod rabbitmq;
mod redis;
mod server;
mod shared;
mod watched;

pub use authority::{Authority, TlsFiles};
pub use cluster::NatsCluster;
pub use collector::{Collector, Seen};
pub use metrics::assert_page_tells;
pub use nats::{Nats, NatsOptions, NatsVersion, Sync};
pub use ports::Port;
pub use rabbitmq::{RabbitMq, RabbitMqOptions};
pub use redis::{Persistence, Redis, RedisOptions};
pub use watched::Watched;

/// What went wrong, in words that name the program, where it was looked for, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(pub(crate) String);

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

impl Error {
    fn because(what: &str, source: impl std::fmt::Display) -> Self {
        Self(format!("{what}: {source}"))
    }
}
