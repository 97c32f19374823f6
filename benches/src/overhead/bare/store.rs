//! Where the bare loop stores answers when its broker keeps none: the store of the worker.

use anyhow::Result;
use bytes::Bytes;
use ebb_queue::{Address, JSON, JobId, JobResult, Outcome, Queue, QueueUrl, Timestamp};
use futures::future::try_join_all;
use redis::aio::MultiplexedConnection;

use super::redis as by_hand;
use crate::broker::Place;

/// A store of answers.
pub(super) enum Store {
    /// By hand.
    Redis(MultiplexedConnection, String),
    /// By our client, as the worker does it.
    Ours(Queue),
}

impl Store {
    pub(super) async fn open(url: &QueueUrl) -> Result<Self> {
        if matches!(url.address, Address::Redis(_)) {
            let connection = by_hand::connect(&super::plain(url)).await?;
            return Ok(Self::Redis(connection, url.queue.clone()));
        }
        let place = Place { queue: url.clone(), results: None };
        Ok(Self::Ours(place.open("bare").await?))
    }

    /// Stores answers, all in one go.
    pub(super) async fn put(&self, answers: Vec<(String, Bytes)>) -> Result<()> {
        match self {
            Self::Redis(connection, stream) => {
                let mut pipeline = redis::pipe();
                for (id, body) in answers {
                    pipeline.set_ex(by_hand::key(stream, &id), &body[..], 86_400).ignore();
                }
                Ok(pipeline.query_async::<()>(&mut connection.clone()).await?)
            }
            Self::Ours(queue) => {
                let results = answers.into_iter().map(|(id, body)| completed(&id, body));
                let results: Vec<JobResult> = results.collect::<Result<_>>()?;
                try_join_all(results.iter().map(|result| queue.put(result))).await?;
                Ok(())
            }
        }
    }

    /// How many of these answers are missing.
    pub(super) async fn n_missing(&self, ids: &[String]) -> Result<usize> {
        match self {
            Self::Redis(connection, stream) => by_hand::n_missing(connection, stream, ids).await,
            Self::Ours(queue) => {
                let mut missing = 0;
                for id in ids {
                    let id: JobId = id.parse()?;
                    missing += usize::from(queue.get(&id).await?.is_none());
                }
                Ok(missing)
            }
        }
    }
}

fn completed(id: &str, body: Bytes) -> Result<JobResult> {
    let outcome = Outcome::Completed { content_type: JSON.to_owned(), body };
    Ok(JobResult {
        id: id.parse()?,
        attempt: 1,
        outcome,
        finished_at: Timestamp::now(),
        queue: None,
    })
}
