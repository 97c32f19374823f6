//! A queue as the bench sees it while somebody works it off: filled, counted, checked.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use ebb_queue::{Job, JobId, Queue, Timestamp};
use futures::{StreamExt, TryStreamExt, stream};

/// Leases that no round outlives: what a lost lease costs is a question for `chaos`.
pub(super) const LEASE: Duration = Duration::from_secs(30);

/// A queue that is filled, counted and checked, each with the client that belongs to it.
#[async_trait]
pub(super) trait Lane: Send + Sync {
    /// Puts jobs of this body into it, each under its own id.
    async fn fill(&self, ids: &[String], body: &Bytes) -> anyhow::Result<()>;

    /// Jobs that wait for somebody to take them.
    async fn n_left(&self) -> anyhow::Result<u64>;

    /// How many of the jobs have no result.
    async fn n_unanswered(&self, ids: &[String]) -> anyhow::Result<usize>;
}

/// One of our own queues, which the worker serves; on SQLite the bare loop does too.
pub(super) struct Ours(pub(super) Queue);

/// Jobs of one publication, and publications on their way at the same time: some brokers commit
/// each one, so a single one after the other would take long.
const CHUNK: usize = 500;
const AT_ONCE: usize = 4;

#[async_trait]
impl Lane for Ours {
    async fn fill(&self, ids: &[String], body: &Bytes) -> anyhow::Result<()> {
        let now = Timestamp::now();
        let publish = |ids: Vec<String>| async move {
            let jobs = ids.into_iter().map(|id| {
                let id = id.parse()?;
                Ok(Job { id, ..Job::new(body.clone(), now) })
            });
            let jobs: ebb_queue::Result<Vec<_>> = jobs.collect();
            self.0.publish(jobs?).await.map(drop)
        };
        // Owned, since the future of a borrowed slice is not general enough to be sent.
        let chunks: Vec<Vec<String>> = ids.chunks(CHUNK).map(<[String]>::to_vec).collect();
        let published = stream::iter(chunks).map(publish).buffer_unordered(AT_ONCE);
        published.try_collect::<()>().await.context("cannot publish")
    }

    async fn n_left(&self) -> anyhow::Result<u64> {
        let depth = self.0.depth().await?;
        if depth.dead > 0 {
            let letters = self.0.list(1).await?;
            let reason = letters.first().map_or("unknown", |letter| letter.reason.as_str());
            bail!("{} jobs failed for good, one because: {reason}", depth.dead);
        }
        ensure!(depth.delayed == 0, "{} jobs failed and wait for another attempt", depth.delayed);
        Ok(depth.ready)
    }

    async fn n_unanswered(&self, ids: &[String]) -> anyhow::Result<usize> {
        let ids: Vec<JobId> = ids.iter().map(|id| id.parse()).collect::<Result<_, _>>()?;
        let answers = stream::iter(ids).map(|id| async move {
            let result = self.0.get(&id).await?;
            anyhow::Ok(result.is_some_and(|result| result.outcome.is_completed()))
        });
        let answers: Vec<bool> = answers.buffer_unordered(32).try_collect().await?;
        Ok(answers.iter().filter(|answered| !**answered).count())
    }
}
