//! Jobs that have gone on to another queue of their broker, such as that of a new version: whoever
//! asks the first queue for the answer gets it from there.
//!
//! The record of it is a failed result of attempt 0 with a reason that nothing else has. So each
//! broker keeps it without knowing of it: it is stored only where there is nothing, it says the same
//! for ever, and a completed result that is put there by somebody else takes its place.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::Mutex;
use tracing::warn;

use crate::open::{check_queue, open_single};
use crate::{
    Backlog, Broker, Cancelled, DeadLetter, DeadLetters, Delivery, Depth, Elsewhere, Error,
    ErrorKind, Frame, Info, Job, JobId, JobResult, JobState, Link, Missing, Moved, OpenOptions,
    Operator, Outcome, Published, Purged, Queue, QueueUrl, Receipt, Result, ResultStore, Settled,
    Settlement, Stored, Timestamp, Unsettled, WorkerStatus,
};

/// What the reason of such a record begins with; the name of the queue follows.
const MARK: &str = "ebb-moved-to: ";

/// A job that went on more often than this goes in a circle.
const HOPS: usize = 8;

impl JobResult {
    /// The record that a job has gone on to this queue of the same broker, to be put into the store
    /// of the queue where it was. A record that is there already stays, and says where the job is.
    #[must_use]
    pub fn moved(id: JobId, to: &str, at: Timestamp) -> Self {
        let outcome = Outcome::Failed(format!("{MARK}{to}").into());
        Self { id, attempt: 0, outcome, finished_at: at, queue: None }
    }

    /// The queue that the job has gone on to, if that is what this says.
    #[must_use]
    pub fn moved_to(&self) -> Option<&str> {
        let Outcome::Failed(failure) = &self.outcome else { return None };
        let to = failure.reason.strip_prefix(MARK).filter(|_| self.attempt == 0)?;
        check_queue(to).is_ok().then_some(to)
    }
}

/// Whether the other queue has nothing for us: it is gone, or not ours to look at.
fn has_nothing(error: &Error) -> bool {
    error.lacks_queue() || error.kind() == ErrorKind::Denied
}

/// A queue that follows its jobs to where they went.
#[derive(Clone)]
pub(crate) struct Trail(Arc<Inner>);

struct Inner {
    queue: Queue,
    url: QueueUrl,
    options: OpenOptions,
    /// The other queues of the broker that were asked so far.
    others: Mutex<HashMap<String, Queue>>,
}

impl Trail {
    pub(crate) fn new(queue: Queue, url: QueueUrl, options: OpenOptions) -> Self {
        // Who only asks makes no queue; what is not there yet has no answer yet.
        let options = OpenOptions {
            missing: Missing::Refuse,
            results: None,
            payloads: None,
            moved: Moved::Show,
            ..options
        };
        Self(Arc::new(Inner { queue, url, options, others: Mutex::default() }))
    }

    async fn other(&self, name: &str) -> Result<Queue> {
        let Inner { url, options, others, .. } = &*self.0;
        let mut others = others.lock().await;
        if let Some(queue) = others.get(name) {
            return Ok(Arc::clone(queue));
        }
        let queue = open_single(&url.with_queue(name)?, options.clone()).await?;
        others.insert(name.to_owned(), Arc::clone(&queue));
        Ok(queue)
    }

    async fn answer(&self, id: &JobId) -> Result<Option<JobResult>> {
        Ok(self.end(id).await?.and_then(|(_, found)| found))
    }

    /// The queue that the job has gone on to in the end, with what there is of an answer; none where
    /// it goes in a circle.
    async fn end(&self, id: &JobId) -> Result<Option<(Queue, Option<JobResult>)>> {
        let mut queue = Arc::clone(&self.0.queue);
        for _ in 0..=HOPS {
            let found = queue.get(id).await?;
            let Some(to) = found.as_ref().and_then(JobResult::moved_to) else {
                return Ok(Some((queue, found)));
            };
            queue = self.other(to).await?;
        }
        Ok(None)
    }

    /// The other queue that the job has gone on to, if it has.
    async fn gone_to(&self, id: &JobId) -> Result<Option<Queue>> {
        match self.end(id).await {
            Ok(end) => {
                let queue = end.map(|(queue, _)| queue);
                Ok(queue.filter(|queue| !Arc::ptr_eq(queue, &self.0.queue)))
            }
            // Who may look at letters need not be one who may read answers.
            Err(error) if has_nothing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The dead letter where its job went, with the queue that has it.
    async fn letter_elsewhere(&self, id: &JobId) -> Result<Option<(Queue, DeadLetter)>> {
        let Some(queue) = self.gone_to(id).await? else { return Ok(None) };
        match queue.show(id).await {
            Ok(letter) => Ok(letter.map(|letter| (queue, letter))),
            Err(error) if has_nothing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts the letter back where its job went, unless it is one that was put back here just now.
    async fn redrive_elsewhere(&self, id: &JobId) -> Result<u64> {
        let here = self.0.queue.state(id).await?;
        if !matches!(here, None | Some(JobState::Done | JobState::Unknown)) {
            return Ok(0);
        }
        let Some(queue) = self.gone_to(id).await? else { return Ok(0) };
        match queue.redrive(Some(std::slice::from_ref(id))).await {
            Err(error) if has_nothing(&error) => Ok(0),
            done => done,
        }
    }

    /// Says of a letter that was not deleted where it is.
    async fn tell_where(&self, id: &JobId) {
        let Ok(Some((queue, _))) = self.letter_elsewhere(id).await else { return };
        let others = self.0.others.lock().await;
        if let Some((name, _)) = others.iter().find(|(_, other)| Arc::ptr_eq(other, &queue)) {
            warn!(job.id = %id, queue = %name, "its dead letter is in another queue, and is deleted there");
        }
    }
}

#[async_trait]
impl ResultStore for Trail {
    async fn put(&self, result: &JobResult) -> Result<Stored> {
        self.0.queue.put(result).await
    }

    async fn get(&self, id: &JobId) -> Result<Option<JobResult>> {
        self.answer(id).await
    }

    async fn chunk(&self, id: &JobId, attempt: u32, seq: u64, body: Bytes) -> Result<Stored> {
        self.0.queue.chunk(id, attempt, seq, body).await
    }

    async fn follow(&self, id: &JobId, from_seq: u64) -> Result<BoxStream<'static, Result<Frame>>> {
        // Armed when this returns, as everywhere.
        let mut frames = self.0.queue.follow(id, from_seq).await?;
        let (trail, id) = (self.clone(), id.clone());
        let followed = async_stream::try_stream! {
            for _ in 0..=HOPS {
                let mut next = None;
                while let Some(frame) = frames.next().await {
                    let frame = frame?;
                    if let Frame::Final(result) = &frame
                        && let Some(to) = result.moved_to()
                    {
                        next = Some(to.to_owned());
                        break;
                    }
                    let is_last = matches!(frame, Frame::Final(_));
                    yield frame;
                    if is_last {
                        return;
                    }
                }
                let Some(to) = next else { break };
                frames = trail.other(&to).await?.follow(&id, from_seq).await?;
            }
            // It ended without an answer, unless one was put where the job was first.
            if let Some(result) = trail.answer(&id).await? {
                yield Frame::Final(result);
            }
        };
        Ok(followed.boxed())
    }

    fn result_ttl(&self) -> Duration {
        self.0.queue.result_ttl()
    }
}

#[async_trait]
impl Backlog for Trail {
    async fn depth(&self) -> Result<Depth> {
        self.0.queue.depth().await
    }

    async fn workers(&self) -> Result<Vec<WorkerStatus>> {
        self.0.queue.workers().await
    }

    async fn arrivals(&self) -> Result<BoxStream<'static, ()>> {
        self.0.queue.arrivals().await
    }

    async fn info(&self) -> Result<Info> {
        self.0.queue.info().await
    }

    async fn ping(&self) -> Result<()> {
        self.0.queue.ping().await
    }

    fn link(&self) -> &Link {
        self.0.queue.link()
    }

    async fn close(&self) -> Result<()> {
        self.0.queue.close().await
    }
}

#[async_trait]
impl Broker for Trail {
    async fn publish(&self, jobs: Vec<Job>) -> Result<Vec<Published>> {
        self.0.queue.publish(jobs).await
    }

    async fn receive(&self, max: NonZeroUsize, wait: Duration) -> Result<Vec<Delivery>> {
        self.0.queue.receive(max, wait).await
    }

    async fn extend(&self, receipts: &[Receipt]) -> Result<Vec<Settled>> {
        self.0.queue.extend(receipts).await
    }

    async fn cancellations(&self) -> Result<BoxStream<'static, JobId>> {
        self.0.queue.cancellations().await
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<Vec<Settled>, Unsettled> {
        self.0.queue.settle(settlements).await
    }

    async fn report(&self, status: &WorkerStatus) -> Result<()> {
        self.0.queue.report(status).await
    }

    async fn reply(&self, to: &str, result: &JobResult, traceparent: Option<&str>) -> Result<()> {
        self.0.queue.reply(to, result, traceparent).await
    }

    async fn purge_old(&self, elsewhere: Elsewhere) -> Result<Purged> {
        self.0.queue.purge_old(elsewhere).await
    }

    fn lease(&self) -> Duration {
        self.0.queue.lease()
    }
}

#[async_trait]
impl DeadLetters for Trail {
    async fn list(&self, max: usize) -> Result<Vec<DeadLetter>> {
        self.0.queue.list(max).await
    }

    /// Here, or else where its job went.
    async fn show(&self, id: &JobId) -> Result<Option<DeadLetter>> {
        if let Some(letter) = self.0.queue.show(id).await? {
            return Ok(Some(letter));
        }
        Ok(self.letter_elsewhere(id).await?.map(|(_, letter)| letter))
    }

    /// All are those that are here; one that is named may be where its job went.
    async fn redrive(&self, ids: Option<&[JobId]>) -> Result<u64> {
        let n_here = self.0.queue.redrive(ids).await?;
        let (mut n, mut failed) = (n_here, None);
        for id in ids.filter(|ids| n_here < ids.len() as u64).into_iter().flatten() {
            match self.redrive_elsewhere(id).await {
                Ok(n_there) => n += n_there,
                Err(error) => {
                    warn!(job.id = %id, %error, "it was not seen whether its job went on and died");
                    failed = Some(error);
                }
            }
        }
        // What was done is told.
        failed.filter(|_| n == 0).map_or(Ok(n), Err)
    }

    /// Of this queue alone: who asks here does not know whether the body can go as well.
    async fn purge(&self, ids: Option<&[JobId]>) -> Result<u64> {
        let n = self.0.queue.purge(ids).await?;
        for id in ids.filter(|ids| n < ids.len() as u64).into_iter().flatten() {
            self.tell_where(id).await;
        }
        Ok(n)
    }
}

#[async_trait]
impl Operator for Trail {
    async fn state(&self, id: &JobId) -> Result<Option<JobState>> {
        let here = self.0.queue.state(id).await?;
        if !matches!(here, None | Some(JobState::Done | JobState::Unknown)) {
            return Ok(here);
        }
        match self.end(id).await {
            Ok(Some((queue, _))) => queue.state(id).await,
            Ok(None) => Ok(here),
            // Who may look need not be one who may read answers.
            Err(error) if error.kind() == ErrorKind::Denied => Ok(here),
            Err(error) => Err(error),
        }
    }

    async fn has_gone_on(&self, id: &JobId) -> Result<bool> {
        self.0.queue.has_gone_on(id).await
    }

    /// Where it went; here where it is not known there, since who passes it on has only begun to.
    async fn cancel(&self, id: &JobId) -> Result<Cancelled> {
        let Some((queue, _)) = self.end(id).await? else { return Ok(Cancelled::Unknown) };
        let there = queue.cancel(id).await?;
        if there != Cancelled::Unknown || Arc::ptr_eq(&queue, &self.0.queue) {
            return Ok(there);
        }
        match self.0.queue.state(id).await? {
            None | Some(JobState::Unknown | JobState::Done | JobState::Dead) => Ok(there),
            Some(JobState::Waiting | JobState::Delayed | JobState::Running) => {
                self.0.queue.cancel(id).await
            }
        }
    }

    async fn purge_waiting(&self) -> Result<BoxStream<'static, Result<Purged>>> {
        self.0.queue.purge_waiting().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> JobId {
        "job-1".parse().unwrap()
    }

    #[tokio::test]
    async fn a_job_that_went_on_is_where_it_went() {
        let folder = tempfile::tempdir().unwrap();
        let intake = QueueUrl::sqlite(folder.path().join("queue.db"));
        let open = async |url: &QueueUrl| crate::open(url, OpenOptions::default()).await.unwrap();
        let queue = open(&intake).await;
        assert_eq!(queue.state(&id()).await.unwrap(), Some(JobState::Unknown));
        let mut job = Job { id: id(), ..Job::new("{}", Timestamp::now()) };
        job.set("ebb-delay", "1h").unwrap();
        open(&intake.with_queue("canary").unwrap()).await.publish(vec![job]).await.unwrap();
        queue.put(&JobResult::moved(id(), "canary", Timestamp::now())).await.unwrap();
        assert_eq!(queue.state(&id()).await.unwrap(), Some(JobState::Delayed));
    }

    /// An intake and the queue where its jobs go, in a folder.
    async fn opened() -> (tempfile::TempDir, Queue, Queue) {
        let folder = tempfile::tempdir().unwrap();
        let intake = QueueUrl::sqlite(folder.path().join("queue.db"));
        let open = async |url: &QueueUrl| crate::open(url, OpenOptions::default()).await.unwrap();
        let canary = intake.with_queue("canary").unwrap();
        let (queue, canary) = (open(&intake).await, open(&canary).await);
        (folder, queue, canary)
    }

    #[tokio::test]
    async fn a_job_that_went_on_is_cancelled_where_it_went() {
        let (_folder, queue, canary) = opened().await;
        queue.put(&JobResult::moved(id(), "canary", Timestamp::now())).await.unwrap();
        // It is on its way, and nowhere yet.
        assert_eq!(queue.cancel(&id()).await.unwrap(), Cancelled::Unknown);
        canary.publish(vec![Job { id: id(), ..Job::new("{}", Timestamp::now()) }]).await.unwrap();
        assert_eq!(queue.cancel(&id()).await.unwrap(), Cancelled::Waiting);
        assert_eq!(queue.get(&id()).await.unwrap().unwrap().outcome, Outcome::Cancelled);
        assert_eq!(canary.depth().await.unwrap().ready, 0);
    }

    #[tokio::test]
    async fn a_job_that_has_not_arrived_where_it_goes_is_cancelled_where_it_is() {
        let (_folder, queue, _canary) = opened().await;
        queue.publish(vec![Job { id: id(), ..Job::new("{}", Timestamp::now()) }]).await.unwrap();
        queue.put(&JobResult::moved(id(), "canary", Timestamp::now())).await.unwrap();
        assert_eq!(queue.cancel(&id()).await.unwrap(), Cancelled::Waiting);
        assert_eq!(queue.get(&id()).await.unwrap().unwrap().outcome, Outcome::Cancelled);
        assert_eq!(queue.depth().await.unwrap().ready, 0);
    }

    /// Publishes a job, has a worker reject it, and says how many letters there are then.
    async fn dies(queue: &Queue) -> u64 {
        let job = Job { id: id(), ..Job::new("{}", Timestamp::now()) };
        queue.publish(vec![job]).await.unwrap();
        rejects(queue).await
    }

    async fn rejects(queue: &Queue) -> u64 {
        let delivery =
            queue.receive(NonZeroUsize::MIN, Duration::from_secs(5)).await.unwrap().pop();
        queue.settle(&[delivery.unwrap().reject("it is bad")]).await.unwrap();
        queue.depth().await.unwrap().dead
    }

    #[tokio::test]
    async fn a_dead_letter_of_a_job_that_went_on_is_shown_and_put_back_where_it_went() {
        let (_folder, queue, canary) = opened().await;
        assert_eq!(dies(&canary).await, 1);
        let (ids, other) = ([id()], ["job-2".parse().unwrap()]);
        assert!(queue.show(&id()).await.unwrap().is_none(), "it has not come by here");
        assert_eq!(queue.redrive(Some(&ids)).await.unwrap(), 0);
        queue.put(&JobResult::moved(id(), "canary", Timestamp::now())).await.unwrap();
        assert_eq!(queue.show(&id()).await.unwrap().unwrap().reason, "it is bad");
        assert_eq!(queue.redrive(None).await.unwrap(), 0, "all are those of this queue");
        assert_eq!(queue.redrive(Some(&[ids.clone(), other].concat())).await.unwrap(), 1);
        assert_eq!(canary.depth().await.unwrap().ready, 1);
        assert_eq!(rejects(&canary).await, 1);
        assert_eq!(queue.purge(None).await.unwrap(), 0);
        assert_eq!(queue.purge(Some(&ids)).await.unwrap(), 0, "it is deleted there alone");
        assert_eq!(canary.depth().await.unwrap().dead, 1);
    }

    #[tokio::test]
    async fn a_queue_that_is_gone_has_no_letters_and_hides_nothing_that_was_done_here() {
        let folder = tempfile::tempdir().unwrap();
        let intake = QueueUrl::sqlite(folder.path().join("queue.db"));
        let queue = crate::open(&intake, OpenOptions::default()).await.unwrap();
        assert_eq!(dies(&queue).await, 1);
        let gone: JobId = "job-2".parse().unwrap();
        queue.put(&JobResult::moved(gone.clone(), "canary", Timestamp::now())).await.unwrap();
        assert!(queue.show(&gone).await.unwrap().is_none());
        assert_eq!(queue.redrive(Some(std::slice::from_ref(&gone))).await.unwrap(), 0);
        assert_eq!(queue.redrive(Some(&[gone, id()])).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn a_letter_that_was_here_is_not_put_back_elsewhere_too() {
        let (_folder, queue, canary) = opened().await;
        queue.put(&JobResult::moved(id(), "canary", Timestamp::now())).await.unwrap();
        assert_eq!((dies(&queue).await, dies(&canary).await), (1, 1));
        let ids = [id(), "job-2".parse().unwrap()];
        assert_eq!(queue.redrive(Some(&ids)).await.unwrap(), 1);
        assert_eq!(canary.depth().await.unwrap().dead, 1);
    }

    #[test]
    fn a_record_is_told_from_a_failure_that_reads_alike() {
        let record = JobResult::moved(id(), "jobs-canary", Timestamp::UNIX_EPOCH);
        assert_eq!(record.moved_to(), Some("jobs-canary"));
        assert_eq!(JobResult { attempt: 1, ..record.clone() }.moved_to(), None);
        for reason in ["expired", "ebb-moved-to: ", "ebb-moved-to: a b", "it ebb-moved-to: a"] {
            let outcome = Outcome::Failed(reason.into());
            assert_eq!(JobResult { outcome, ..record.clone() }.moved_to(), None, "{reason}");
        }
    }
}
