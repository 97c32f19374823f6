//! One server of each kind for all tests of a process: RabbitMQ takes seconds to start.

use std::sync::OnceLock;

use crate::{
    Error, Nats, NatsCluster, NatsOptions, NatsVersion, RabbitMq, RabbitMqOptions, Redis,
    RedisOptions, Result,
};

type Shared<T> = OnceLock<Result<T>>;

impl Nats {
    /// The one of this process, started by whoever asks first. Not to be called from async code.
    ///
    /// # Errors
    /// As [`Nats::start`].
    pub fn shared(version: NatsVersion) -> Result<&'static Self> {
        static NEWEST: Shared<Nats> = OnceLock::new();
        static OLDEST: Shared<Nats> = OnceLock::new();
        let shared = if version == NatsVersion::Newest { &NEWEST } else { &OLDEST };
        once(shared, Self::start(NatsOptions { version, ..NatsOptions::default() }))
    }
}

impl NatsCluster {
    /// The one of this process, of the newest version, started by whoever asks first. Not to be
    /// called from async code.
    ///
    /// # Errors
    /// As [`NatsCluster::start`].
    pub fn shared() -> Result<&'static Self> {
        static SHARED: Shared<NatsCluster> = OnceLock::new();
        once(&SHARED, Self::start(NatsVersion::Newest))
    }
}

impl RabbitMq {
    /// The one of this process, started by whoever asks first. Not to be called from async code.
    ///
    /// # Errors
    /// As [`RabbitMq::start`].
    pub fn shared() -> Result<&'static Self> {
        static SHARED: Shared<RabbitMq> = OnceLock::new();
        once(&SHARED, Self::start(RabbitMqOptions::default()))
    }
}

impl Redis {
    /// The one of this process, started by whoever asks first. Not to be called from async code.
    ///
    /// # Errors
    /// As [`Redis::start`].
    pub fn shared() -> Result<&'static Self> {
        static SHARED: Shared<Redis> = OnceLock::new();
        once(&SHARED, Self::start(RedisOptions::default()))
    }
}

fn once<T>(shared: &Shared<T>, start: impl Future<Output = Result<T>>) -> Result<&T> {
    let start = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Error::because("cannot start a server", error))?;
        runtime.block_on(start)
    };
    shared.get_or_init(start).as_ref().map_err(Clone::clone)
}
