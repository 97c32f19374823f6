//! RabbitMQ by hand: a standing consumer with a prefetch of its own, the results of what is there
//! stored in one go, and one acknowledgement for all of them.

use std::num::NonZeroUsize;

use anyhow::{Context, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};

use super::store::Store;
use crate::broker::Place;
use crate::overhead::lane;

/// Jobs under way to the consumer: with fewer it waits for the broker.
const PREFETCH: u16 = 256;
/// Publications under way while the queue is filled.
const WINDOW: usize = 256;
const PERSISTENT: u8 = 2;

/// A quorum queue, filled and counted by hand.
pub(super) struct Lane {
    /// Dropped, it closes the channel.
    _connection: Connection,
    channel: Channel,
    queue: String,
    store: Store,
}

async fn connect(place: &Place) -> anyhow::Result<(Connection, Channel)> {
    let connection =
        Connection::connect(&super::plain(&place.queue), ConnectionProperties::default()).await;
    let connection = connection.context("cannot connect to rabbitmq")?;
    let channel = connection.create_channel().await?;
    Ok((connection, channel))
}

async fn store(place: &Place) -> anyhow::Result<Store> {
    let results = place.results.as_ref().context("rabbitmq keeps no answers: name a store")?;
    Store::open(results).await
}

/// A queue of another name than ours, which has other arguments.
fn name(place: &Place) -> String {
    format!("bare.{}", place.queue.queue)
}

impl Lane {
    pub(super) async fn make(place: &Place) -> anyhow::Result<Self> {
        let (connection, channel) = connect(place).await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let queue = name(place);
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let options = QueueDeclareOptions::durable();
        channel.queue_declare(queue.as_str().into(), options, arguments).await?;
        Ok(Self { _connection: connection, channel, queue, store: store(place).await? })
    }
}

#[async_trait]
impl lane::Lane for Lane {
    async fn fill(&self, ids: &[String], body: &Bytes) -> anyhow::Result<()> {
        let publish = |id: String| async move {
            let properties = BasicProperties::default()
                .with_delivery_mode(PERSISTENT)
                .with_message_id(id.into());
            let queue = self.queue.as_str().into();
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let confirm =
                self.channel.basic_publish("".into(), queue, options, body, properties).await?;
            let confirmed = confirm.await?;
            ensure!(matches!(confirmed, Confirmation::Ack(None)), "refused: {confirmed:?}");
            Ok(())
        };
        stream::iter(ids.to_vec()).map(publish).buffer_unordered(WINDOW).try_collect().await
    }

    async fn n_left(&self) -> anyhow::Result<u64> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
        let queue = self.queue.as_str().into();
        let queue = self.channel.queue_declare(queue, options, FieldTable::default()).await?;
        Ok(u64::from(queue.message_count()))
    }

    async fn n_unanswered(&self, ids: &[String]) -> anyhow::Result<usize> {
        self.store.n_missing(ids).await
    }
}

/// Works the queue off.
pub(super) async fn serve(place: &Place, batch: NonZeroUsize) -> anyhow::Result<()> {
    let (_connection, channel) = connect(place).await?;
    let store = store(place).await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let queue = name(place).as_str().into();
    let consumer =
        channel.basic_consume(queue, "bare".into(), options, FieldTable::default()).await?;
    let mut chunks = consumer.ready_chunks(batch.get());
    while let Some(chunk) = chunks.next().await {
        let deliveries: Vec<Delivery> = chunk.into_iter().collect::<Result<_, _>>()?;
        let answers = deliveries.iter().map(|delivery| {
            let id = delivery.properties.message_id().as_ref().context("a job has an id")?;
            anyhow::Ok((id.to_string(), super::answer(&delivery.data)?))
        });
        store.put(answers.collect::<Result<_, _>>()?).await?;
        if let Some(last) = deliveries.last() {
            last.acker.ack(BasicAckOptions { multiple: true }).await?;
        }
    }
    anyhow::bail!("the broker ended the consumer")
}
