//! Jobs that wait: RabbitMQ deletes them without a look at them.

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use lapin::options::QueuePurgeOptions;

use super::AmqpQueue;
use super::cancel;
use super::core::Core;
use super::voice;
use crate::{Cancelled, JobId, JobState, Operator, Purged, Result};

/// Deletes what waits in one queue of the broker; what somebody holds is not there.
async fn purge(core: &Core, queue: &str) -> Result<Purged> {
    let session = core.session().await?;
    let purging = async {
        let channel = session.intake.create_channel().await?;
        let n_jobs = channel.queue_purge(queue.into(), QueuePurgeOptions::default()).await?;
        channel.close(200, "done".into()).await?;
        Ok(n_jobs)
    };
    let n_jobs = session.patiently("delete what waits", purging).await?;
    Ok(Purged { n_jobs: n_jobs.into(), ..Purged::default() })
}

#[async_trait]
impl Operator for AmqpQueue {
    async fn state(&self, _id: &JobId) -> Result<Option<JobState>> {
        // A queue can be read from its head only.
        Ok(None)
    }

    async fn has_gone_on(&self, _id: &JobId) -> Result<bool> {
        // Nothing is kept beside the jobs, so a split keeps no records.
        Ok(false)
    }

    async fn cancel(&self, id: &JobId) -> Result<Cancelled> {
        cancel::cancel(self.core(), self.results()?, id).await
    }

    async fn purge_waiting(&self) -> Result<BoxStream<'static, Result<Purged>>> {
        let core = self.core();
        let session = core.session().await?;
        core.find_levels(&session).await?;
        // Levels that were told of by now are heard of, and what moves on is met where it gets to.
        voice::catch_up(core, &session).await?;
        let queues = core.names.waiting(core.n_levels());
        let begin = (self.clone(), queues.into_iter());
        let steps = stream::try_unfold(begin, |(queue, mut rest)| async move {
            let Some(name) = rest.next() else { return Ok(None) };
            let purged = purge(queue.core(), &name).await?;
            Ok(Some((purged, (queue, rest))))
        });
        Ok(steps.boxed())
    }
}
