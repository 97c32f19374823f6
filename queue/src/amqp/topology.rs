//! The queues and exchanges of one queue, made or found.

use futures::future::join_all;
use lapin::options::{
    ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};

use super::errors;
use super::names::{self, EXCHANGE, FIRST_LEVELS, Holds, LANES, Lane, Names};
use super::parcel::long;
use crate::{ErrorKind, Missing, Priority, Result};

/// Attempts are counted by us. From RabbitMQ 4 on a job would be dropped after 20 deliveries, so
/// the broker's own limit is set out of reach, the same on every version.
const DELIVERY_LIMIT: i64 = 1_000_000_000;

/// Makes or finds all that is there from the start.
pub(super) async fn prepare(channel: &Channel, names: &Names, missing: Missing) -> Result<()> {
    if missing == Missing::Refuse {
        return find(channel, names).await;
    }
    let maker = Maker { channel, names };
    let (status, due, dead) = (names.status(), names.due(), names.dead());
    // What does not build on each other is asked for in one breath; the broker keeps the order.
    let made = tokio::join!(
        maker.exchange(EXCHANGE, ExchangeKind::Topic),
        maker.exchange(&status, ExchangeKind::Fanout),
        maker.exchange(&due, ExchangeKind::Topic),
        maker.queue(&dead, kept()),
    );
    all([made.0, made.1, made.2, made.3])?;
    let lanes = join_all(LANES.map(async |lane| {
        let queue = names.lane(lane);
        maker.queue(&queue, kept()).await?;
        maker.bind(&queue, EXCHANGE, &queue).await?;
        maker.bind(&queue, &due, &lane.due_pattern()).await
    }));
    all(lanes.await)?;
    levels(channel, names, 0..FIRST_LEVELS).await
}

/// The first failure that says why, if there is one. What does not fit closes the channel, and all
/// that was asked for in the same breath then fails for want of it.
fn all(results: impl IntoIterator<Item = Result<()>>) -> Result<()> {
    let failures = results.into_iter().filter_map(Result::err);
    failures.min_by_key(|error| error.kind() == ErrorKind::Unavailable).map_or(Ok(()), Err)
}

/// Makes levels of delay where they are missing.
pub(super) async fn levels(
    channel: &Channel,
    names: &Names,
    levels: std::ops::Range<u32>,
) -> Result<()> {
    let maker = Maker { channel, names };
    let made = levels.map(async |level| {
        let below = match level.checked_sub(1) {
            Some(below) => names.level(below),
            None => names.due(),
        };
        let name = names.level(level);
        // All exchanges are asked for before the first of them is passed on to.
        maker.exchange(&name, ExchangeKind::Topic).await?;
        maker.queue(&name, held(level, &below)).await?;
        maker.bind(&name, &name, &names::level_pattern(level, Holds::It)).await?;
        maker.pass(&name, &below, &names::level_pattern(level, Holds::Not)).await
    });
    all(join_all(made).await)
}

async fn find(channel: &Channel, names: &Names) -> Result<()> {
    let maker = Maker { channel, names };
    for exchange in [EXCHANGE.to_owned(), names.status(), names.due()] {
        maker.found_exchange(&exchange).await?;
    }
    let queues = LANES.map(|lane| names.lane(lane)).into_iter().chain([names.dead()]);
    let found = queues.map(async |queue| {
        let options = QueueDeclareOptions::durable().passive();
        let found = channel.queue_declare(queue.as_str().into(), options, FieldTable::default());
        found.await.map(drop).map_err(|error| maker.failed(&error))
    });
    all(join_all(found).await)
}

struct Maker<'a> {
    channel: &'a Channel,
    names: &'a Names,
}

impl Maker<'_> {
    async fn exchange(&self, name: &str, kind: ExchangeKind) -> Result<()> {
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let made = self.channel.exchange_declare(name.into(), kind, options, FieldTable::default());
        made.await.map_err(|error| self.failed(&error))
    }

    async fn found_exchange(&self, name: &str) -> Result<()> {
        let options = ExchangeDeclareOptions { passive: true, ..Default::default() };
        let found = self.channel.exchange_declare(
            name.into(),
            ExchangeKind::Topic,
            options,
            FieldTable::default(),
        );
        found.await.map_err(|error| self.failed(&error))
    }

    async fn queue(&self, name: &str, arguments: FieldTable) -> Result<()> {
        let options = QueueDeclareOptions::durable();
        let made = self.channel.queue_declare(name.into(), options, arguments);
        made.await.map(drop).map_err(|error| self.failed(&error))
    }

    async fn bind(&self, queue: &str, exchange: &str, key: &str) -> Result<()> {
        let options = QueueBindOptions::default();
        let bound = self.channel.queue_bind(
            queue.into(),
            exchange.into(),
            key.into(),
            options,
            FieldTable::default(),
        );
        bound.await.map_err(|error| self.failed(&error))
    }

    /// What one exchange gets and the pattern fits, another gets too.
    async fn pass(&self, from: &str, to: &str, key: &str) -> Result<()> {
        let options = ExchangeBindOptions::default();
        let bound = self.channel.exchange_bind(
            to.into(),
            from.into(),
            key.into(),
            options,
            FieldTable::default(),
        );
        bound.await.map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &lapin::Error) -> crate::Error {
        errors::topology(error, &self.names.lane(Lane::New(Priority::Normal)))
    }
}

/// A queue whose jobs stay until somebody takes them.
fn kept() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), long("quorum"));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(DELIVERY_LIMIT));
    arguments
}

/// A queue whose jobs go on after a while, and are not lost on the way.
fn held(level: u32, next: &str) -> FieldTable {
    let mut arguments = kept();
    let mut put = |name: &str, value| {
        arguments.insert(name.into(), value);
    };
    put("x-message-ttl", AMQPValue::LongLongInt(names::hold_millis(level)));
    put("x-dead-letter-exchange", long(next));
    put("x-dead-letter-strategy", long("at-least-once"));
    // At-least-once asks for it.
    put("x-overflow", long("reject-publish"));
    arguments
}
