//! Large bodies travel by reference: the body lies in a store, the job carries its claim check.
//!
//! A job whose header `ebb-body-ref` names a key has as its body a JSON reference to what lies in
//! the store under that key: `{"key": "bodies/NAME", "size": BYTES, "sha256": HEX}`. Any producer
//! may do this by itself, with a name that no other body has: it stores the object first and
//! publishes the job then. A worker with the same store gets the body as if it had travelled with
//! the job.
//!
//! A large answer is a reference as well, to `results/NAME`: its content type says
//! `application/vnd.ebb.reference+json`, and its field `content_type` what the answer itself is. A
//! reply carries the same reference.
//!
//! The body of a job is deleted when the job is acknowledged or purged. What is left otherwise is
//! for the lifecycle rules of the store: of a producer that crashed before it published, of jobs
//! that were refused by a broker that may have stored some of them all the same, of a job that is cancelled while it
//! waits, of one that is purged longer than
//! `result_ttl` after it was published, and of all answers. Delete in `results/` what is older than
//! `result_ttl`, and in `bodies/` what is older than any job gets.
//!
//! A body that alone is refused, by a store that lets others be read, is asked for again with growing
//! pauses, each of which is charged, and its job is a dead letter in the end: it would keep its place, and
//! others from theirs. That the store refuses it alone is known from another body that is read: one that
//! came with it, in a folder one that lies there, and on S3 `bodies/ebb-probe`, which is written for that.
//! A store that is away or refuses all costs no job an attempt.
//!
//! A job that has gone on to another queue needs its body there. The record of that is a result and
//! forgotten like one, so of an older job nobody knows, and its body stays.
//!
//! In the result store of the queue a body lives as long as a result: a job that waits longer, or is
//! put back from the dead letters later, has lost it. One whose delay says so is refused.

mod fetch;
mod operator;
mod payloads;
mod reference;
mod store;

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use tokio::time::Instant;
use tracing::warn;

use crate::{
    Backlog, Broker, Clock, Delivery, Depth, Elsewhere, Error, ErrorKind, Frame, Info, Job, JobId,
    JobResult, Link, Outcome, Published, Purged, Queue, Receipt, Result, ResultStore, Settled,
    Settlement, Stored, Unsettled, Verdict, WorkerStatus, answer_at,
};
pub use payloads::{INLINE_LIMIT, Payloads, PayloadsUrl};
pub use reference::{REFERENCE, lies_elsewhere};
use reference::{Reference, parse_receipt};
use store::{Store, Trouble};

/// Bodies that are on their way at a time.
const ABREAST: usize = 8;

/// How long a receive that was to end sooner looks behind jobs whose bodies are gone. Many may be, each look
/// for some takes its time, and whoever receives is to hear meanwhile that it has to stop.
const BURYING: Duration = Duration::from_secs(1);

/// The longest that an answered settlement waits for the deletion of bodies.
const DELETION: Duration = Duration::from_secs(5);

/// The queue with its large bodies in this store; what [`crate::open`] does when it is given one.
///
/// `result_ttl` is how long the queue keeps the record that a job has gone on to another one.
///
/// # Errors
/// When the queue does not say how large a body it takes.
// Boxed for what `crate::open` is boxed for.
#[inline(never)]
pub fn over(
    queue: Queue,
    payloads: Payloads,
    result_ttl: Duration,
    clock: Arc<dyn Clock>,
) -> BoxFuture<'static, Result<Queue>> {
    Box::pin(async move {
        let claim = Claim::new(queue, payloads, (result_ttl, clock)).await?;
        Ok(Arc::new(claim) as Queue)
    })
}

/// A queue whose large bodies lie in a store.
struct Claim {
    queue: Queue,
    store: Arc<Store>,
    clock: Arc<dyn Clock>,
    /// How long it is known that a job has gone on.
    result_ttl: Duration,
    inline: usize,
    largest: usize,
    /// Of jobs that are published together, the queue stores all or none.
    has_whole_batches: bool,
    /// Jobs whose bodies alone were refused here.
    refused: Mutex<HashSet<JobId>>,
}

impl Claim {
    async fn new(
        queue: Queue,
        payloads: Payloads,
        (result_ttl, clock): (Duration, Arc<dyn Clock>),
    ) -> Result<Self> {
        let info = queue.info().await?;
        let has_whole_batches = info.has_whole_batches();
        let max_body =
            info.max_body.map_or(usize::MAX, |max| usize::try_from(max).unwrap_or(usize::MAX));
        let Payloads { inline, largest, .. } = payloads;
        let store = Arc::new(Store::new(payloads, Arc::clone(&queue), max_body));
        let inline = inline.min(max_body / 2);
        let refused = Mutex::default();
        Ok(Self { queue, store, clock, result_ttl, inline, largest, has_whole_batches, refused })
    }

    /// Puts a body into the store if it is large; the job to publish, and the key of the body.
    async fn check_in(&self, mut job: Job) -> Result<(Job, Option<String>)> {
        let n = job.body.len();
        // A producer may have done so itself.
        if n <= self.inline || job.headers.body_ref.is_some() {
            return Ok((job, None));
        }
        if n > self.largest {
            let words = format!("body is {n} bytes; send at most {}", self.largest);
            return Err(Error::new(ErrorKind::Invalid, words));
        }
        self.store.check_wait(&job, self.clock.now())?;
        let key = Reference::fresh_key();
        let reference = Reference::new(key.clone(), &job.body, hash(job.body.clone()).await?);
        self.store.put(&key, &job.body).await?;
        reference.replace_body(&mut job);
        Ok((job, Some(key)))
    }

    /// The result as it is stored: its answer in the store and a reference here, if it is large.
    async fn check_in_answer(&self, result: &JobResult) -> Result<Option<JobResult>> {
        let Outcome::Completed { content_type, body } = &result.outcome else { return Ok(None) };
        if body.len() <= self.inline {
            return Ok(None);
        }
        let sha256 = hash(body.clone()).await?;
        let reference = Reference::new(Reference::result_key(result, &sha256), body, sha256);
        self.store.put(&reference.key, body).await?;
        Ok(Some(reference.replace_answer(result, content_type)))
    }
}

/// Deletes bodies that nobody needs any more, as far as the store lets us.
async fn delete(store: &Store, keys: Vec<String>) {
    if keys.is_empty() {
        return;
    }
    let delete = |key: String| async move {
        if let Err(error) = store.delete(&key).await {
            warn!(key, %error, "a body was not deleted; the store's lifecycle rules may");
        }
    };
    let deletions = stream::iter(keys).for_each_concurrent(ABREAST, delete);
    if tokio::time::timeout(DELETION, deletions).await.is_err() {
        warn!("bodies were not deleted in time; the store's lifecycle rules may");
    }
}

/// The result with its answer; none when that is gone, for then its time to live is over.
async fn whole(store: &Store, result: JobResult) -> Result<Option<JobResult>> {
    let Some((reference, content_type)) = Reference::of_result(&result) else {
        return Ok(Some(result));
    };
    match store.get(&reference).await {
        Ok(body) => {
            let outcome = Outcome::Completed { content_type, body };
            Ok(Some(JobResult { outcome, ..result }))
        }
        Err(Trouble::Gone(reason)) => {
            warn!(job.id = %result.id, reason, "a result is forgotten");
            Ok(None)
        }
        Err(Trouble::Refused(error) | Trouble::Away(error)) => Err(error),
    }
}

/// Hashes where it keeps nobody waiting.
async fn hash(body: Bytes) -> Result<String> {
    let hashed = tokio::task::spawn_blocking(move || reference::sha256_of(&body)).await;
    hashed.map_err(|error| {
        Error::new(ErrorKind::Internal, "hashing a body was cut short").caused_by(error)
    })
}

#[async_trait]
impl Backlog for Claim {
    async fn depth(&self) -> Result<Depth> {
        self.queue.depth().await
    }

    async fn workers(&self) -> Result<Vec<WorkerStatus>> {
        self.queue.workers().await
    }

    async fn arrivals(&self) -> Result<BoxStream<'static, ()>> {
        self.queue.arrivals().await
    }

    async fn info(&self) -> Result<Info> {
        let info = self.queue.info().await?;
        Ok(Info { max_body: Some(self.largest as u64), ..info })
    }

    async fn ping(&self) -> Result<()> {
        self.queue.ping().await
    }

    fn link(&self) -> &Link {
        self.queue.link()
    }

    async fn close(&self) -> Result<()> {
        self.queue.close().await
    }
}

#[async_trait]
impl Broker for Claim {
    async fn publish(&self, jobs: Vec<Job>) -> Result<Vec<Published>> {
        let checked = stream::iter(jobs).map(|job| self.check_in(job));
        let checked: Vec<_> = checked.buffered(ABREAST).collect().await;
        let (mut jobs, mut keys, mut failure) = (Vec::new(), Vec::new(), None);
        for one in checked {
            match one {
                Ok((job, key)) => {
                    jobs.push(job);
                    keys.push(key);
                }
                Err(error) => failure = Some(error),
            }
        }
        let is_whole = self.has_whole_batches || jobs.len() == 1;
        let published = match failure {
            None => self.queue.publish(jobs).await,
            Some(error) => {
                delete(&self.store, keys.into_iter().flatten().collect()).await;
                return Err(error);
            }
        };
        let unused: Vec<_> = match &published {
            Ok(published) => {
                let duplicates = published.iter().zip(keys).filter(|(one, _)| one.duplicate);
                duplicates.filter_map(|(_, key)| key).collect()
            }
            // Of a part of a batch nobody knows.
            Err(error) if is_whole && !error.may_be_stored() => {
                keys.into_iter().flatten().collect()
            }
            Err(_) => Vec::new(),
        };
        delete(&self.store, unused).await;
        published
    }

    async fn receive(&self, max: NonZeroUsize, wait: Duration) -> Result<Vec<Delivery>> {
        let began = Instant::now();
        loop {
            let left = wait.saturating_sub(began.elapsed());
            let deliveries = self.queue.receive(max, left).await?;
            if deliveries.iter().all(|one| one.job.headers.body_ref.is_none()) {
                return Ok(deliveries);
            }
            let whole = self.fetch_all(deliveries).await?;
            if !whole.is_empty() || began.elapsed() >= wait.max(BURYING) {
                return Ok(whole);
            }
        }
    }

    async fn extend(&self, receipts: &[Receipt]) -> Result<Vec<Settled>> {
        let own: Vec<_> =
            receipts.iter().map(|receipt| parse_receipt(receipt).0.into_owned()).collect();
        self.queue.extend(&own).await
    }

    async fn cancellations(&self) -> Result<BoxStream<'static, JobId>> {
        self.queue.cancellations().await
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<Vec<Settled>, Unsettled> {
        let own: Vec<_> = settlements
            .iter()
            .map(|one| one.with_receipt(parse_receipt(one.receipt()).0.into_owned()))
            .collect();
        let answers = self.queue.settle(&own).await;
        // Of one that was cancelled nobody else has the body.
        let has_ended =
            |nth| matches!(answer_at(&answers, nth), Some(Settled::Held | Settled::Cancelled));
        let done = settlements.iter().enumerate();
        let done = done.filter(|(nth, one)| *one.verdict() == Verdict::Ack && has_ended(*nth));
        let keys = done.filter_map(|(_, one)| parse_receipt(one.receipt()).1.map(str::to_owned));
        delete(&self.store, keys.collect()).await;
        answers
    }

    async fn report(&self, status: &WorkerStatus) -> Result<()> {
        self.queue.report(status).await
    }

    async fn reply(&self, to: &str, result: &JobResult, traceparent: Option<&str>) -> Result<()> {
        let reference = self.check_in_answer(result).await?;
        self.queue.reply(to, reference.as_ref().unwrap_or(result), traceparent).await
    }

    /// With the bodies, whatever is asked for: here is the store.
    async fn purge_old(&self, _elsewhere: Elsewhere) -> Result<Purged> {
        let mut purged = self.queue.purge_old(Elsewhere::Take).await?;
        self.bodies().delete(std::mem::take(&mut purged.referring)).await;
        Ok(purged)
    }

    fn lease(&self) -> Duration {
        self.queue.lease()
    }
}

#[async_trait]
impl ResultStore for Claim {
    async fn put(&self, result: &JobResult) -> Result<Stored> {
        let reference = self.check_in_answer(result).await?;
        self.queue.put(reference.as_ref().unwrap_or(result)).await
    }

    async fn get(&self, id: &JobId) -> Result<Option<JobResult>> {
        match self.queue.get(id).await? {
            Some(result) => whole(&self.store, result).await,
            None => Ok(None),
        }
    }

    async fn chunk(&self, id: &JobId, attempt: u32, seq: u64, body: Bytes) -> Result<Stored> {
        self.queue.chunk(id, attempt, seq, body).await
    }

    async fn follow(&self, id: &JobId, from_seq: u64) -> Result<BoxStream<'static, Result<Frame>>> {
        let mut frames = self.queue.follow(id, from_seq).await?;
        let store = Arc::clone(&self.store);
        let fetched = async_stream::try_stream! {
            while let Some(frame) = frames.next().await {
                match frame? {
                    Frame::Final(result) => {
                        if let Some(result) = whole(&store, result).await? {
                            yield Frame::Final(result);
                        }
                        return;
                    }
                    piece @ Frame::Chunk { .. } => yield piece,
                }
            }
        };
        Ok(fetched.boxed())
    }

    fn result_ttl(&self) -> Duration {
        self.queue.result_ttl()
    }
}
