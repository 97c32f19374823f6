//! The process of a broker that a bench starts, with what it waits for before it answers.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use ebb_queue::{Address, QueueUrl, Synchronous};
use ebb_servers::{
    Nats, NatsOptions, Persistence, RabbitMq, RabbitMqOptions, Redis, RedisOptions, Sync,
};

use super::{BrokerKind, Durability};

/// A broker's process.
#[derive(Debug)]
pub(super) enum Server {
    Nats(Nats),
    RabbitMq(RabbitMq),
    Redis(Redis),
}

/// Where a broker that was started is, its process if it has one, and how it is set.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) url: QueueUrl,
    pub(super) server: Option<Server>,
    pub(super) words: &'static str,
}

impl Started {
    /// Starts a broker on data below this folder.
    pub(super) async fn make(
        kind: BrokerKind,
        durability: Durability,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let folder = folder.join(kind.to_string());
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let strict = durability == Durability::Strict;
        let words = match (kind, strict) {
            (BrokerKind::Sqlite, true) => "sqlite, synchronous=full",
            (BrokerKind::Sqlite, false) => "sqlite, synchronous=normal",
            (BrokerKind::Nats, true) => "nats, sync_interval: always",
            (BrokerKind::Nats, false) => "nats, sync_interval: 2m",
            (BrokerKind::Amqp, _) => "amqp, quorum queues",
            (BrokerKind::Redis, true) => "redis, appendfsync always",
            (BrokerKind::Redis, false) => "redis, appendfsync everysec",
        };
        if kind == BrokerKind::Sqlite {
            return Ok(Self { url: sqlite(&folder, strict), server: None, words });
        }
        let server = Server::start(kind, strict, folder).await?;
        Ok(Self { url: server.url().parse()?, server: Some(server), words })
    }
}

fn sqlite(folder: &Path, strict: bool) -> QueueUrl {
    let path = folder.join("queue.db");
    let synchronous = if strict { Synchronous::Full } else { Synchronous::Normal };
    let address = Address::Sqlite { path: path.clone(), synchronous };
    QueueUrl { address, ..QueueUrl::sqlite(path) }
}

impl Server {
    async fn start(kind: BrokerKind, strict: bool, folder: PathBuf) -> anyhow::Result<Self> {
        let data = Some(folder);
        Ok(match kind {
            BrokerKind::Sqlite => anyhow::bail!("sqlite has no process"),
            BrokerKind::Nats => {
                let sync = if strict { Sync::Always } else { Sync::Default };
                let options = NatsOptions { sync, data, ..NatsOptions::default() };
                Self::Nats(Nats::start(options).await?)
            }
            // Quorum queues wait for the disk however the server is set.
            BrokerKind::Amqp => {
                let options = RabbitMqOptions { data, ..RabbitMqOptions::default() };
                Self::RabbitMq(RabbitMq::start(options).await?)
            }
            BrokerKind::Redis => {
                let persistence =
                    if strict { Persistence::Always } else { Persistence::EverySecond };
                let options = RedisOptions { persistence, data, ..RedisOptions::default() };
                Self::Redis(Redis::start(options).await?)
            }
        })
    }

    fn url(&self) -> String {
        match self {
            Self::Nats(nats) => nats.url(),
            Self::RabbitMq(rabbitmq) => rabbitmq.url(),
            Self::Redis(redis) => redis.url(),
        }
    }

    /// Its process, while it runs.
    pub(super) fn pid(&self) -> Option<u32> {
        match self {
            Self::Nats(nats) => nats.pid(),
            Self::RabbitMq(rabbitmq) => rabbitmq.pid(),
            Self::Redis(redis) => redis.pid(),
        }
    }

    /// Kills it with -9; nothing where it is dead already.
    pub(super) fn kill(&mut self) {
        match self {
            Self::Nats(nats) => nats.kill(),
            Self::RabbitMq(rabbitmq) => rabbitmq.kill(),
            Self::Redis(redis) => redis.kill(),
        }
    }

    /// Kills it with -9, leaves it dead for a while, and starts it again on the same data.
    pub(super) async fn restart(&mut self, down: Duration) -> anyhow::Result<()> {
        self.kill();
        tokio::time::sleep(down).await;
        match self {
            Self::Nats(nats) => nats.restart().await?,
            Self::RabbitMq(rabbitmq) => rabbitmq.restart().await?,
            Self::Redis(redis) => redis.restart().await?,
        }
        Ok(())
    }
}
