//! What a job is, where it waits and where its result goes.
//!
//! The seam is this page: [`Backlog`] is all that the scaler may see, [`Broker`] all that a worker
//! may do, [`DeadLetters`] and [`Operator`] what an operator may do, [`ResultStore`] where answers go.
//! [`open`] turns a URL into a [`Queue`] that has all of them.
//!
//! The `# Behavior` lists are the contract of every broker; the conformance suite holds each to it.

mod address;
mod amqp;
mod apart;
mod aside;
mod behavior;
mod cancel;
pub mod claim;
mod clock;
mod delivery;
mod depth;
mod dial;
mod error;
mod failure;
pub mod faulty;
mod follow;
mod given;
pub mod header;
mod info;
mod job;
mod link;
pub mod memory;
mod moved;
mod nats;
mod open;
mod operator;
mod owed;
mod reason;
mod redis;
mod result;
mod retention;
mod retry;
mod server;
mod source;
pub mod sqlite;
mod status;
mod typed;
mod unread;
mod wire;

use std::num::NonZeroUsize;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

pub use address::{Address, AmqpAddress, NatsAddress, RedisAddress, Synchronous};
pub use behavior::Behavior;
pub use claim::{INLINE_LIMIT, Payloads, PayloadsUrl};
pub use clock::{Clock, SystemClock, Timestamp, TokioClock, parse_span, read_span};
pub use delivery::{Delivery, Receipt, Settled, Settlement, Unsettled, Verdict, answer_at};
pub use depth::{ByPriority, Depth};
pub use error::{Error, ErrorKind, Result};
pub use failure::{Failure, FailureKind};
pub use given::UrlFrom;
pub use info::{Info, Limit, Warning};
pub use job::{Headers, JSON, Job, JobId, PROTOBUF, Priority};
pub use link::Link;
pub use open::{DEFAULT_QUEUE, Missing, Moved, OpenOptions, Queue, QueueUrl, Results, open};
pub use operator::{Cancelled, Elsewhere, JobState, Purged};
pub use reason::short_reason;
pub use result::{Frame, JobResult, Outcome, Stored};
pub use retention::{Look, Retention};
pub use retry::RetryPolicy;
pub use server::{Secret, Server, Tls};
pub use source::{Foreign, Reader, Source, look_at};
pub use sqlite::Watchers;
pub use status::{BatchTime, Phase, WorkerId, WorkerStatus};
pub use typed::TypedUrl;

/// What the scaler may see: it can look, not touch.
#[async_trait]
pub trait Backlog: Send + Sync {
    /// Counts the jobs of this queue by state.
    ///
    /// # Behavior
    /// - An expired job that nobody holds counts as dead from its deadline on, not as ready or
    ///   delayed: nobody wakes a GPU for it. One whose completed result is stored counts as done.
    async fn depth(&self) -> Result<Depth>;

    /// The last status of each worker that reported within the last few seconds.
    async fn workers(&self) -> Result<Vec<WorkerStatus>>;

    /// Yields whenever a job has become ready or a worker has reported a new phase.
    ///
    /// # Behavior
    /// - Armed when this returns: what is published afterwards is told, from any process.
    /// - Told within 20 ms at the median; several publishes may be told as one.
    /// - May be told without cause; never carries a job, and consumes none.
    /// - Told too when a delay begins, so that the reader knows the new [`Depth::next_due`].
    /// - Time alone is not told: see [`Depth::next_due`].
    async fn arrivals(&self) -> Result<BoxStream<'static, ()>>;

    /// What the broker is, how it is set, and what it cannot promise.
    async fn info(&self) -> Result<Info>;

    /// Whether the broker answers for this queue, by the least that can be asked: a look at the depth where
    /// nothing less tells.
    async fn ping(&self) -> Result<()> {
        self.depth().await.map(drop)
    }

    /// The connection of this handle to its broker.
    fn link(&self) -> &Link;

    /// Leaves the broker in order; to be called when the last delivery is settled.
    ///
    /// # Behavior
    /// - Gives back what this handle fetched ahead and handed to nobody, uncharged. Nothing is received
    ///   through it afterwards, and arrivals may end.
    /// - What the broker keeps for who listens is gone before the connection is. A handle that is dropped
    ///   does the same a little later, as long as its process lives.
    /// - Takes about a second at most on a broker that answers.
    async fn close(&self) -> Result<()>;
}

/// What a worker or a producer may do.
#[async_trait]
pub trait Broker: Backlog {
    /// Stores the jobs durably, all or none, and says for each under which id it is known.
    ///
    /// # Behavior
    /// - An id or an idempotency key seen before stores nothing and returns the first id: while the
    ///   first job waits, runs or lies in the dead letters, and for `key_ttl` after it was done. A
    ///   purge forgets both at once. The id is looked up first, then the key.
    /// - With `max_ready`, more waiting jobs (ready or delayed) than that are refused with
    ///   [`ErrorKind::Full`] and nothing is stored; duplicates do not count. A broker that is full for
    ///   a reason of its own says the same, and [`Error::may_be_stored`] whether that is certain.
    /// - [`ErrorKind::Invalid`] is said of the jobs alone, such as of a body that is too large; that
    ///   we may not publish here is [`ErrorKind::Denied`].
    /// - A job is visible to `depth` and `receive` when this returns.
    async fn publish(&self, jobs: Vec<Job>) -> Result<Vec<Published>>;

    /// Leases up to `max` ready jobs, waiting up to `wait` for the first one.
    ///
    /// # Behavior
    /// - High priority first, then in order of publication.
    /// - Charges an attempt to each job and records a crash of its last holder in its history, as
    ///   `lease expired` and whose it was.
    /// - An expired job is never delivered: it becomes a dead letter with the reason `expired`. A job
    ///   under a live lease is left alone.
    /// - An expired job whose completed result is stored is done as if acked, and no dead letter: its
    ///   worker was lost between the two.
    /// - A message of a plain producer whose headers do not parse becomes a dead letter with the
    ///   reason, its body kept.
    /// - Of all these a result tells whoever waits, and then a reply where one was asked for: the
    ///   failure, or what a lost worker has stored. It is sent once as long as no process and no
    ///   connection is lost: else it may be repeated, or missing where the queue had ended the job.
    ///   That it cannot be sent keeps no job alive.
    /// - Dropping the future loses nothing: what was fetched comes back with its lease.
    async fn receive(&self, max: NonZeroUsize, wait: Duration) -> Result<Vec<Delivery>>;

    /// Starts the leases anew, and says for each whether it is still held.
    ///
    /// # Behavior
    /// - A lease that ended is held all the same until somebody else took the job.
    /// - A delivery that was settled is not held any more, and neither is a job that was cancelled, where
    ///   the broker knows of that: who finds out else acknowledges the job, and tells of it.
    async fn extend(&self, receipts: &[Receipt]) -> Result<Vec<Settled>>;

    /// Yields the id of a job soon after it was cancelled, for whoever may be running it.
    ///
    /// # Behavior
    /// - Armed when this returns: what is cancelled afterwards is told within a second, from any process.
    /// - A hint and no more: one may be missing while a connection is made anew, and one may be told
    ///   without cause. Whether a job was cancelled is what its result says.
    async fn cancellations(&self) -> Result<BoxStream<'static, JobId>>;

    /// Carries out verdicts, and says for each whether the lease was still held.
    ///
    /// # Behavior
    /// - A lost lease changes nothing: the job belongs to somebody else by now.
    /// - A lease that ended is held all the same until somebody else took the job, or it died of
    ///   its deadline.
    /// - Idempotent: a settlement sent again after an error has the effect of one, and is answered
    ///   as held until the job is handed out, put back, purged or forgotten.
    /// - One that cannot be carried out leaves the others to their end, as far as the broker tells
    ///   them apart; the error says which were.
    /// - A retried or released job keeps its place in the order of publication.
    /// - Retry and reject write the reason into the history; release leaves no trace.
    async fn settle(&self, settlements: &[Settlement]) -> Result<Vec<Settled>, Unsettled>;

    /// Publishes what a worker is doing; forgotten when not repeated within [`STATUS_TTL`].
    async fn report(&self, status: &WorkerStatus) -> Result<()>;

    /// Sends the result as a message to where its job asked for it.
    ///
    /// # Behavior
    /// - The body of the message is the answer itself, or `{"error": REASON, "kind": KIND}` as JSON;
    ///   its headers are `ebb-id`, `ebb-attempt`, `ebb-outcome` (`completed`, `failed` or `cancelled`), of a
    ///   failed one `ebb-kind`, and `content-type`.
    /// - `to` is what the broker's clients listen to: a NATS subject, an AMQP queue, a Redis stream;
    ///   on the embedded queue another queue, where it is a job of the same id, which expires when the
    ///   result is forgotten. A stream that a reply begins goes as long after its last one.
    /// - `traceparent` travels with it: whoever reads the reply is in the trace of the job.
    /// - May be sent twice when a worker is lost between this and its acknowledgement.
    /// - The queue does the same for a job that it ends by itself, see [`Broker::receive`].
    async fn reply(&self, to: &str, result: &JobResult, traceparent: Option<&str>) -> Result<()>;

    /// Deletes dead letters that ended longer ago than `dead_ttl`, the oldest first and no more than a
    /// step of them; to be called about once a minute, and again while it deletes some.
    ///
    /// # Behavior
    /// - Where there is no `dead_ttl` it does nothing. It goes by that of this handle: nothing on the
    ///   broker depends on it, so it may change at any time.
    /// - One that is younger stays, and so does a job that was put back meanwhile, with its id, its key
    ///   and its body, and what a redrive that was cut off left in both places.
    /// - Letters whose bodies lie in a store of payloads are passed over or taken, as is asked for: of
    ///   those that it passes over it looks at no more than a step, and nobody looks behind them then.
    /// - An error means that nothing was deleted: of a step that was cut off behind some it says what they
    ///   were, and the next one meets the error again.
    /// - A letter leaves nothing behind: its id and its key are unknown at once, as well as a failed
    ///   result and its chunks, but for those in a store of answers that is apart, and for the record
    ///   that it has gone on to another queue. Who follows its result is told that none can come.
    async fn purge_old(&self, elsewhere: Elsewhere) -> Result<Purged>;

    /// How long a delivery is held before it goes to somebody else.
    fn lease(&self) -> Duration;
}

/// What each kind of broker cannot promise however it is set, by the scheme of its URL.
pub const LIMITS: [(&str, &[Limit]); 3] =
    [("nats", nats::LIMITS), ("amqp", amqp::LIMITS), ("redis", redis::LIMITS)];

/// A worker that has not reported for this long is taken for gone.
pub const STATUS_TTL: Duration = Duration::from_secs(5);

/// What an operator may do with the jobs that failed for good.
///
/// An expired job that nobody holds is one of them from its deadline on.
#[async_trait]
pub trait DeadLetters: Send + Sync {
    /// The newest dead letters first, at most `max`.
    async fn list(&self, max: usize) -> Result<Vec<DeadLetter>>;

    /// One dead letter, if there is one under this id.
    async fn show(&self, id: &JobId) -> Result<Option<DeadLetter>>;

    /// Puts jobs back with fresh attempts and their history kept; `None` means all. Returns how many.
    ///
    /// # Behavior
    /// - A deadline or TTL that has passed is cleared, else the job would die again.
    /// - The jobs are ready at once, behind what was published before, in the order in which they
    ///   died, or in which they are named.
    /// - Attempts count from 1 again, so the failed result and the chunks of the job are forgotten;
    ///   who follows it waits for the new ones.
    async fn redrive(&self, ids: Option<&[JobId]>) -> Result<u64>;

    /// Deletes dead letters for good; `None` means all. Returns how many.
    ///
    /// # Behavior
    /// - A letter leaves nothing behind: its id and its key are unknown at once, as well as a failed
    ///   result and its chunks, but for those in a store of answers that is apart, and for the record
    ///   that it has gone on to another queue. Who follows its result is told that none can come.
    /// - What dies meanwhile stays where all are meant.
    async fn purge(&self, ids: Option<&[JobId]>) -> Result<u64>;
}

/// What an operator may ask and do about the other jobs.
#[async_trait]
pub trait Operator: Send + Sync {
    /// Where the job under this id is; none where the broker cannot tell.
    ///
    /// # Behavior
    /// - Costs the same at any depth, and touches nothing.
    async fn state(&self, id: &JobId) -> Result<Option<JobState>>;

    /// Whether the job has gone on to another queue, as the record says that is kept beside the jobs.
    async fn has_gone_on(&self, id: &JobId) -> Result<bool>;

    /// Cancels a job that waits or runs: nobody wants its answer any more.
    ///
    /// # Behavior
    /// - Its result is stored as [`Outcome::Cancelled`], unless there is one that stays: whoever comes first
    ///   has said how the job ended. Who follows it is told, and a reply is sent where one was asked for.
    /// - A job that waits never runs from then on, whoever receives next and however late: it is gone
    ///   where the broker can find it, and dropped uncharged by whoever receives it where it cannot.
    /// - One that runs is told of by [`Broker::cancellations`]. Its answer, or its failure, is a duplicate
    ///   and dropped; so is its retry.
    /// - It is no dead letter. Its id and its key are known as those of a job that was done.
    /// - A job that has ended stays as it is, a dead letter among them: cancelling twice is cancelling once.
    async fn cancel(&self, id: &JobId) -> Result<Cancelled>;

    /// Deletes the jobs that wait, ready or delayed, a step at a time as the stream is read.
    ///
    /// # Behavior
    /// - Spares what is held under a live lease, and the dead letters: an expired job that nobody
    ///   holds is one of them.
    /// - What is published or put back meanwhile may stay.
    /// - A job leaves nothing behind: its id and its key are unknown at once, as well as a failed
    ///   result and its chunks, but for those in a store of answers that is apart, and for the record
    ///   that it has gone on to another queue. Who follows its result is told that none can come; no reply is sent.
    /// - Ends with the first error, behind what the step deleted that it cut off. To drop the stream
    ///   leaves the rest where it is. Of a step that was cut off by either, a broker without transactions
    ///   may have charged an attempt to jobs that it has not deleted, and may have forgotten their ids and
    ///   keys: the next purge deletes them, and one that is published again before runs twice.
    async fn purge_waiting(&self) -> Result<BoxStream<'static, Result<Purged>>>;
}

/// Where answers go, keyed by job id.
#[async_trait]
pub trait ResultStore: Send + Sync {
    /// Stores a result unless one is there already.
    ///
    /// # Behavior
    /// - A completed result is never replaced by anything, and neither is that a job was cancelled.
    /// - A failed one is replaced by either of these, of whatever attempt, and never by a failure: a dead
    ///   letter was put back, or whoever was given up has an answer after all.
    /// - Refused as stale when a later attempt has begun to send chunks.
    /// - Voids the chunks of earlier attempts; a failed or cancelled result voids all of them.
    /// - Kept for `result_ttl` from now on.
    async fn put(&self, result: &JobResult) -> Result<Stored>;

    /// The result, while its time to live lasts.
    async fn get(&self, id: &JobId) -> Result<Option<JobResult>>;

    /// Adds a piece of a result that is still being made; `seq` counts from 0 in each attempt.
    ///
    /// # Behavior
    /// - Refused as stale when a later attempt has sent chunks, or the result is complete.
    /// - The first of a later attempt voids what earlier attempts sent.
    /// - A piece that is there already is a duplicate and stays as it is.
    /// - Kept for `result_ttl`.
    async fn chunk(&self, id: &JobId, attempt: u32, seq: u64, body: Bytes) -> Result<Stored>;

    /// The chunks from `from_seq` on as they come, then the result, then the end.
    ///
    /// # Behavior
    /// - A chunk of another attempt means that what was sent before is void; it begins at 0 again.
    /// - `from_seq` counts in the attempt that is current: who goes on and finds another attempt
    ///   than before has missed its beginning, and follows anew from 0.
    /// - Waits as long as there is no result, also for a job that nobody has published yet.
    /// - Ends without a result when none can come: the job is done and its result forgotten or never
    ///   stored, or it is purged. Told soon in the process that does it, elsewhere
    ///   within seconds.
    async fn follow(&self, id: &JobId, from_seq: u64) -> Result<BoxStream<'static, Result<Frame>>>;

    /// How long a result is kept.
    fn result_ttl(&self) -> Duration;
}

/// What [`Broker::publish`] made of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The id under which the job is known.
    pub id: JobId,
    /// True when the id or the key was there before and nothing was stored.
    pub duplicate: bool,
}

/// A job that failed for good.
#[derive(Debug, Clone, serde::Serialize)]
pub struct DeadLetter {
    /// The job as it was published.
    pub job: Job,
    /// How many attempts were charged.
    pub attempts: u32,
    /// What there is to do about it.
    pub kind: FailureKind,
    /// Why it ended here, in words.
    pub reason: String,
    /// When it ended here.
    pub died_at: Timestamp,
    /// What became of each attempt, oldest first.
    pub history: Vec<Attempt>,
}

/// What became of one attempt.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Attempt {
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// When it ended.
    pub at: Timestamp,
    /// What happened, in words: `lease expired`, or the reason given by the worker.
    pub what: String,
}

/// One broker for all seams; what [`open`] returns.
pub trait AnyQueue: Broker + DeadLetters + Operator + ResultStore {}
impl<T: Broker + DeadLetters + Operator + ResultStore> AnyQueue for T {}
