//! Redis by hand: XREADGROUP, then one MULTI of the results, XACK and XDEL.

use std::num::NonZeroUsize;
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::streams::{StreamId, StreamReadOptions, StreamReadReply};
use redis::{AsyncCommands, AsyncConnectionConfig, Client, RedisResult};

use crate::broker::Place;
use crate::overhead::lane;

const GROUP: &str = "bare";
/// Commands of one round trip while the queue is filled.
const PIPELINE: usize = 500;
const DAY_S: u64 = 86_400;

/// A stream, filled and counted by hand.
pub(super) struct Lane {
    connection: MultiplexedConnection,
    stream: String,
}

/// Where the result of a job is.
pub(super) fn key(stream: &str, id: &str) -> String {
    format!("{stream}:result:{id}")
}

/// A connection that waits as long as a blocking read takes.
pub(super) async fn connect(url: &str) -> anyhow::Result<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let connection = Client::open(url)?.get_multiplexed_async_connection_with_config(&config).await;
    connection.context("cannot connect to redis")
}

/// How many of these results are missing.
pub(super) async fn n_missing(
    connection: &MultiplexedConnection,
    stream: &str,
    ids: &[String],
) -> anyhow::Result<usize> {
    let mut connection = connection.clone();
    let mut missing = 0;
    for ids in ids.chunks(PIPELINE) {
        let keys: Vec<String> = ids.iter().map(|id| key(stream, id)).collect();
        let n_there: usize = connection.exists(keys).await?;
        missing += ids.len() - n_there;
    }
    Ok(missing)
}

impl Lane {
    pub(super) async fn make(place: &Place) -> anyhow::Result<Self> {
        let mut connection = connect(&super::plain(&place.queue)).await?;
        let stream = place.queue.queue.clone();
        let made: RedisResult<()> = connection.xgroup_create_mkstream(&stream, GROUP, "0").await;
        made.context("cannot make the group")?;
        Ok(Self { connection, stream })
    }
}

#[async_trait]
impl lane::Lane for Lane {
    async fn fill(&self, ids: &[String], body: &Bytes) -> anyhow::Result<()> {
        let mut connection = self.connection.clone();
        for ids in ids.chunks(PIPELINE) {
            let mut pipeline = redis::pipe();
            for id in ids {
                let fields = [("ebb-id", id.as_bytes()), ("body", &body[..])];
                pipeline.xadd(&self.stream, "*", &fields).ignore();
            }
            pipeline.query_async::<()>(&mut connection).await?;
        }
        Ok(())
    }

    async fn n_left(&self) -> anyhow::Result<u64> {
        Ok(self.connection.clone().xlen(&self.stream).await?)
    }

    async fn n_unanswered(&self, ids: &[String]) -> anyhow::Result<usize> {
        n_missing(&self.connection, &self.stream, ids).await
    }
}

/// Works the stream off.
pub(super) async fn serve(place: &Place, batch: NonZeroUsize) -> anyhow::Result<()> {
    let mut connection = connect(&super::plain(&place.queue)).await?;
    let stream = &place.queue.queue;
    let options = StreamReadOptions::default()
        .group(GROUP, "bare")
        .count(batch.get())
        .block(Duration::from_secs(10).as_millis() as usize);
    loop {
        let read: Option<StreamReadReply> =
            connection.xread_options(&[stream], &[">"], &options).await?;
        let entries = read.into_iter().flat_map(|read| read.keys).flat_map(|key| key.ids);
        let entries: Vec<StreamId> = entries.collect();
        if entries.is_empty() {
            continue;
        }
        let mut pipeline = redis::pipe();
        pipeline.atomic();
        for entry in &entries {
            let id: String = entry.get("ebb-id").context("a job has an id")?;
            let body: Vec<u8> = entry.get("body").context("a job has a body")?;
            pipeline.set_ex(key(stream, &id), &super::answer(&body)?[..], DAY_S).ignore();
        }
        let done: Vec<&str> = entries.iter().map(|entry| entry.id.as_str()).collect();
        pipeline.xack(stream, GROUP, &done).ignore().xdel(stream, &done).ignore();
        pipeline.query_async::<()>(&mut connection).await?;
    }
}
