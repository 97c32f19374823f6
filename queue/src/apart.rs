//! Jobs on one broker, their answers on another.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;

use crate::cancel;
use crate::{
    Backlog, Broker, Cancelled, Clock, DeadLetter, DeadLetters, Delivery, Depth, Elsewhere, Frame,
    Info, Job, JobId, JobResult, JobState, Link, Operator, Outcome, Published, Purged, Queue,
    Receipt, Result, ResultStore, Settled, Settlement, Stored, Unsettled, WorkerStatus,
};

/// A queue whose answers lie in another one's store.
///
/// A job that dies of its deadline before any worker had it is answered by the broker that holds
/// it, so what the store does not know is looked for there.
pub(crate) struct Apart {
    jobs: Queue,
    answers: Queue,
    clock: Arc<dyn Clock>,
}

impl Apart {
    pub(crate) fn new(jobs: Queue, answers: Queue, clock: Arc<dyn Clock>) -> Self {
        Self { jobs, answers, clock }
    }
}

#[async_trait]
impl Backlog for Apart {
    async fn depth(&self) -> Result<Depth> {
        self.jobs.depth().await
    }

    async fn workers(&self) -> Result<Vec<WorkerStatus>> {
        self.jobs.workers().await
    }

    async fn arrivals(&self) -> Result<BoxStream<'static, ()>> {
        self.jobs.arrivals().await
    }

    async fn info(&self) -> Result<Info> {
        self.jobs.info().await
    }

    async fn ping(&self) -> Result<()> {
        self.jobs.ping().await
    }

    fn link(&self) -> &Link {
        self.jobs.link()
    }

    async fn close(&self) -> Result<()> {
        self.jobs.close().await
    }
}

#[async_trait]
impl Broker for Apart {
    async fn publish(&self, jobs: Vec<Job>) -> Result<Vec<Published>> {
        self.jobs.publish(jobs).await
    }

    async fn receive(&self, max: NonZeroUsize, wait: Duration) -> Result<Vec<Delivery>> {
        self.jobs.receive(max, wait).await
    }

    async fn extend(&self, receipts: &[Receipt]) -> Result<Vec<Settled>> {
        self.jobs.extend(receipts).await
    }

    async fn cancellations(&self) -> Result<BoxStream<'static, JobId>> {
        self.jobs.cancellations().await
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<Vec<Settled>, Unsettled> {
        self.jobs.settle(settlements).await
    }

    async fn report(&self, status: &WorkerStatus) -> Result<()> {
        self.jobs.report(status).await
    }

    async fn reply(&self, to: &str, result: &JobResult, traceparent: Option<&str>) -> Result<()> {
        self.jobs.reply(to, result, traceparent).await
    }

    async fn purge_old(&self, elsewhere: Elsewhere) -> Result<Purged> {
        self.jobs.purge_old(elsewhere).await
    }

    fn lease(&self) -> Duration {
        self.jobs.lease()
    }
}

#[async_trait]
impl DeadLetters for Apart {
    async fn list(&self, max: usize) -> Result<Vec<DeadLetter>> {
        self.jobs.list(max).await
    }

    async fn show(&self, id: &JobId) -> Result<Option<DeadLetter>> {
        self.jobs.show(id).await
    }

    async fn redrive(&self, ids: Option<&[JobId]>) -> Result<u64> {
        self.jobs.redrive(ids).await
    }

    async fn purge(&self, ids: Option<&[JobId]>) -> Result<u64> {
        self.jobs.purge(ids).await
    }
}

#[async_trait]
impl Operator for Apart {
    async fn state(&self, id: &JobId) -> Result<Option<JobState>> {
        self.jobs.state(id).await
    }

    async fn has_gone_on(&self, id: &JobId) -> Result<bool> {
        self.jobs.has_gone_on(id).await
    }

    /// First where answers are: whoever comes first there has said how the job ended. Who cancelled it
    /// before may not have come to what follows.
    async fn cancel(&self, id: &JobId) -> Result<Cancelled> {
        let state = self.jobs.state(id).await?;
        match state {
            Some(JobState::Unknown) => return Ok(Cancelled::Unknown),
            Some(JobState::Dead | JobState::Done) => return Ok(Cancelled::Ended),
            None | Some(JobState::Waiting | JobState::Delayed | JobState::Running) => {}
        }
        let before = self.answers.get(id).await?.map(|before| before.outcome);
        let is_cancelled = before == Some(Outcome::Cancelled);
        let waits = matches!(state, Some(JobState::Waiting | JobState::Delayed));
        if !is_cancelled && !cancel::put(&*self.answers, id, self.clock.now(), waits).await? {
            return Ok(Cancelled::Ended);
        }
        Ok(match self.jobs.cancel(id).await? {
            // It was there a moment ago, and nothing that comes of it is stored.
            Cancelled::Unknown => Cancelled::Marked,
            cancelled => cancelled,
        })
    }

    async fn purge_waiting(&self) -> Result<BoxStream<'static, Result<Purged>>> {
        self.jobs.purge_waiting().await
    }
}

#[async_trait]
impl ResultStore for Apart {
    async fn put(&self, result: &JobResult) -> Result<Stored> {
        self.answers.put(result).await
    }

    async fn get(&self, id: &JobId) -> Result<Option<JobResult>> {
        match self.answers.get(id).await? {
            Some(result) => Ok(Some(result)),
            None => self.jobs.get(id).await,
        }
    }

    async fn chunk(&self, id: &JobId, attempt: u32, seq: u64, body: Bytes) -> Result<Stored> {
        self.answers.chunk(id, attempt, seq, body).await
    }

    async fn follow(&self, id: &JobId, from_seq: u64) -> Result<BoxStream<'static, Result<Frame>>> {
        let mut answers = self.answers.follow(id, from_seq).await?;
        let mut jobs = self.jobs.follow(id, from_seq).await?;
        let (store, id) = (self.answers.clone(), id.clone());
        let frames = async_stream::stream! {
            let mut is_open = true;
            loop {
                let frame = tokio::select! { biased;
                    frame = answers.next() => frame,
                    frame = jobs.next(), if is_open => frame,
                };
                if frame.is_none() && is_open {
                    // The store has never heard of the job: only its broker knows that no result
                    // can come. One that came was stored before the job was acknowledged.
                    is_open = false;
                    if matches!(store.get(&id).await, Ok(Some(_))) {
                        continue;
                    }
                }
                let Some(frame) = frame else { break };
                let is_last = matches!(frame, Ok(Frame::Final(_)) | Err(_));
                yield frame;
                if is_last {
                    break;
                }
            }
        };
        Ok(frames.boxed())
    }

    fn result_ttl(&self) -> Duration {
        self.answers.result_ttl()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faulty::{Faults, Faulty};
    use crate::memory::MemoryQueue;
    use crate::{Behavior, ErrorKind, OpenOptions, SystemClock, Timestamp};

    fn job(name: &str) -> Job {
        Job { id: name.parse().unwrap(), ..Job::new("{}", Timestamp::now()) }
    }

    #[tokio::test]
    async fn who_says_first_where_answers_are_how_a_job_ended_has_said_it() {
        let memory = || Arc::new(MemoryQueue::new(&Behavior::default(), OpenOptions::default()));
        let (jobs, answers) = (memory(), memory());
        let apart = Apart::new(jobs.clone(), answers.clone(), Arc::new(SystemClock));
        apart.publish(vec![job("answered"), job("waits")]).await.unwrap();
        let id: JobId = "answered".parse().unwrap();
        let outcome = Outcome::Completed { content_type: String::new(), body: Bytes::new() };
        let answer =
            JobResult { outcome, ..JobResult::buried(id.clone(), 1, "".into(), Timestamp::now()) };
        apart.put(&answer).await.unwrap();
        assert_eq!(apart.cancel(&id).await.unwrap(), Cancelled::Ended);
        assert_eq!(apart.get(&id).await.unwrap(), Some(answer));

        let id: JobId = "waits".parse().unwrap();
        assert_eq!(apart.cancel(&id).await.unwrap(), Cancelled::Waiting);
        assert_eq!(answers.get(&id).await.unwrap().unwrap().outcome, Outcome::Cancelled);
        assert_eq!(apart.cancel(&"never".parse().unwrap()).await.unwrap(), Cancelled::Unknown);
    }

    #[tokio::test]
    async fn who_died_while_cancelling_a_job_can_be_followed_by_another() {
        let memory = || Arc::new(MemoryQueue::new(&Behavior::default(), OpenOptions::default()));
        let (inner, answers) = (memory(), memory());
        inner.publish(vec![job("a")]).await.unwrap();
        let id: JobId = "a".parse().unwrap();
        // As if by who died right after.
        assert!(cancel::put(&*answers, &id, Timestamp::now(), false).await.unwrap());
        let faults = Faults { fail_before: 1.0, ..Faults::default() };
        let jobs = Arc::new(Faulty::new(inner.clone(), faults, 7));
        let apart = Apart::new(jobs.clone(), answers.clone(), Arc::new(SystemClock));
        let error = apart.cancel(&id).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        jobs.set(Faults::default());
        assert_eq!(apart.cancel(&id).await.unwrap(), Cancelled::Waiting);
        assert_eq!(inner.depth().await.unwrap().ready, 0);
        assert_eq!(apart.cancel(&id).await.unwrap(), Cancelled::Ended);
    }
}
