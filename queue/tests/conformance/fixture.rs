//! What the suite needs of a broker, and the words that the promises are written in.

use std::num::NonZeroUsize;
use std::time::Duration;

use async_trait::async_trait;
use ebb_queue::{
    Behavior, Delivery, Depth, ErrorKind, Failure, Job, JobResult, Missing, Outcome, Published,
    Queue, Settled, Settlement, Timestamp,
};
use futures::StreamExt;
use futures::future::LocalBoxFuture;
use futures::stream::BoxStream;
use tokio::time::Instant;

use crate::mail::Mailbox;
use crate::plain::Plain;

/// A promise, to be kept by any broker.
pub type Promise = for<'a> fn(&'a dyn Fixture) -> LocalBoxFuture<'a, ()>;

/// A broker to hold to its promises.
///
/// One that cannot be told the time lets it pass for real: the spans of the promises are fractions
/// of its [`Behavior`], which may be short.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// `memory`, `sqlite`, …
    fn kind(&self) -> &'static str;

    /// How queues behave unless a promise asks for something else.
    fn behavior(&self) -> Behavior {
        behavior()
    }

    /// Makes a new and empty queue, for the worker `one`.
    async fn fresh_with(&self, behavior: Behavior) -> Queue;

    /// Opens the last fresh queue once more, as another process would.
    async fn again(&self, worker: &str) -> Queue;

    /// Opens the queue of this name, which no promise has opened before; none where queues are not
    /// found by their names.
    async fn named(&self, name: &str, missing: Missing) -> Option<ebb_queue::Result<Queue>>;

    /// Where a client of this broker waits for replies; none where there are no other clients.
    async fn mailbox(&self) -> Option<Mailbox>;

    /// A client of this broker that publishes to the last fresh queue and knows nothing of us; none
    /// where there are no other clients.
    async fn plain(&self) -> Option<Plain>;

    /// Opens another queue beside the last fresh one, on the same broker.
    async fn beside(&self) -> Queue;

    /// What time it is for the broker.
    fn now(&self) -> Timestamp;

    /// Lets time pass for the broker.
    async fn pass(&self, span: Duration);

    /// How long a count or a job that is ready again may take to be seen; nothing for a broker that
    /// answers all from one place.
    fn lag(&self) -> Duration {
        Duration::ZERO
    }
}

/// Where time does not have to pass for real.
pub fn behavior() -> Behavior {
    let lease = Duration::from_secs(30);
    Behavior { lease, result_ttl: lease * 4, key_ttl: lease * 4, dead_ttl: None, max_ready: None }
}

impl dyn Fixture + '_ {
    pub async fn fresh(&self) -> Queue {
        self.fresh_with(self.behavior()).await
    }

    /// A new and empty queue for a promise that wants no lease to end, however slow the machine.
    pub async fn fresh_patient(&self) -> Queue {
        self.fresh_with(Behavior { lease: self.lease() * 10, ..self.behavior() }).await
    }

    pub fn lease(&self) -> Duration {
        self.behavior().lease
    }

    /// A while that ends well before a lease that begins now.
    pub fn short(&self) -> Duration {
        self.lease() / 2
    }

    /// A while that no promise waits for.
    pub fn far(&self) -> Duration {
        self.lease() * 120
    }

    /// Lets this span pass and a little more.
    pub async fn pass_by(&self, span: Duration) {
        self.pass(span * 11 / 10).await;
    }

    /// What is seen once it fits, or when the lag of the broker is over.
    pub async fn when<T>(&self, look: impl AsyncFn() -> T, fits: impl Fn(&T) -> bool) -> T {
        let end = Instant::now() + self.lag();
        loop {
            let seen = look().await;
            if fits(&seen) || Instant::now() >= end {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What is answered, asked again while a broker with a lag cannot tell: servers that have not
    /// heard of each other for a moment say so instead of guessing.
    async fn answer<T>(&self, ask: impl AsyncFn() -> ebb_queue::Result<T>) -> T {
        let end = Instant::now() + self.lag();
        loop {
            let answer = ask().await;
            let cannot_tell =
                answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::Unavailable);
            if !cannot_tell || Instant::now() >= end {
                return answer.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn depth(&self, queue: &Queue) -> Depth {
        self.answer(async || queue.depth().await).await
    }

    pub async fn depth_when(&self, queue: &Queue, fits: impl Fn(&Depth) -> bool) -> Depth {
        self.when(async || self.depth(queue).await, fits).await
    }

    /// Ready, in flight, delayed, dead.
    pub async fn counts(&self, queue: &Queue) -> [u64; 4] {
        let Depth { ready, in_flight, delayed, dead, .. } = self.depth(queue).await;
        [ready, in_flight, delayed, dead]
    }

    /// Receives at most so many; waits so long for the first.
    pub async fn receive(&self, queue: &Queue, max: NonZeroUsize, wait: Duration) -> Vec<Delivery> {
        self.answer(async || queue.receive(max, wait).await).await
    }

    /// Ready, in flight, delayed, dead.
    pub async fn assert_counts(&self, queue: &Queue, expected: [u64; 4]) {
        let seen = self.when(async || self.counts(queue).await, |seen| *seen == expected).await;
        assert_eq!(seen, expected, "ready, in flight, delayed, dead");
    }

    pub async fn assert_next_due(&self, queue: &Queue, expected: Option<Timestamp>) {
        let depth = self.depth_when(queue, |depth| depth.next_due == expected).await;
        assert_eq!(depth.next_due, expected);
    }

    /// Receives so many that are ready now.
    pub async fn take(&self, queue: &Queue, n_jobs: usize) -> Vec<Delivery> {
        self.take_some(queue, n_jobs, n_jobs).await
    }

    /// Receives at most so many, until the expected number is there or the lag is over.
    async fn take_some(&self, queue: &Queue, max: usize, n_expected: usize) -> Vec<Delivery> {
        let end = Instant::now() + self.lag();
        let mut taken = Vec::new();
        while let Some(room) = NonZeroUsize::new(max - taken.len()) {
            let wait = if taken.len() < n_expected { end - Instant::now() } else { Duration::ZERO };
            taken.extend(self.receive(queue, room, wait).await);
            if taken.len() >= n_expected || Instant::now() >= end {
                break;
            }
        }
        taken
    }

    /// Receives the one job that is ready.
    pub async fn take_one(&self, queue: &Queue) -> Delivery {
        let mut taken = self.take_some(queue, 2, 1).await;
        assert_eq!(names(&taken).len(), 1, "one job is ready");
        taken.remove(0)
    }

    /// Receives one of those that are ready.
    pub async fn take_one_of(&self, queue: &Queue) -> Delivery {
        self.take(queue, 1).await.pop().expect("a job is ready")
    }

    /// Receives at most so many; what is ready are these.
    pub async fn assert_takes(&self, queue: &Queue, max: usize, expected: &[&str]) {
        let taken = self.take_some(queue, max, expected.len()).await;
        assert_eq!(names(&taken), expected);
    }

    pub async fn assert_nothing_ready(&self, queue: &Queue) {
        let nine = NonZeroUsize::new(9).unwrap();
        let taken = self.receive(queue, nine, Duration::ZERO).await;
        assert!(taken.is_empty(), "ready: {:?}", names(&taken));
    }

    /// Takes the one ready job and rejects it.
    pub async fn kill(&self, queue: &Queue, reason: &str) {
        let delivery = self.take_one(queue).await;
        assert_eq!(settle(queue, delivery.reject(reason)).await, Settled::Held);
    }

    /// A job of this name with these headers, published now.
    pub fn job(&self, name: &str, headers: &[(&str, &str)]) -> Job {
        let now = Timestamp::from_millisecond(self.now().as_millisecond()).unwrap();
        let mut job = Job::from_message(headers.iter().copied(), name.to_owned(), now).unwrap();
        job.id = name.parse().unwrap();
        job
    }

    /// Publishes jobs of these names, one by one.
    pub async fn publish(&self, queue: &Queue, names: &[&str]) {
        for name in names {
            assert!(!publish(queue, self.job(name, &[])).await.duplicate);
        }
    }

    pub fn completed(&self, name: &str, attempt: u32, body: &str) -> JobResult {
        let content_type = "text/plain".to_owned();
        let outcome = Outcome::Completed { content_type, body: body.to_owned().into() };
        self.result(name, attempt, outcome)
    }

    pub fn failed(&self, name: &str, attempt: u32, reason: &str) -> JobResult {
        let is_expired = reason == "expired";
        let failure = if is_expired { Failure::expired() } else { reason.into() };
        self.result(name, attempt, Outcome::Failed(failure))
    }

    fn result(&self, name: &str, attempt: u32, outcome: Outcome) -> JobResult {
        let finished_at = Timestamp::from_millisecond(self.now().as_millisecond()).unwrap();
        JobResult { id: name.parse().unwrap(), attempt, outcome, finished_at, queue: None }
    }
}

pub async fn publish(queue: &Queue, job: Job) -> Published {
    queue.publish(vec![job]).await.unwrap().remove(0)
}

pub async fn settle(queue: &Queue, settlement: Settlement) -> Settled {
    queue.settle(&[settlement]).await.unwrap()[0]
}

pub async fn extend(queue: &Queue, delivery: &Delivery) -> Settled {
    queue.extend(&[delivery.receipt().clone()]).await.unwrap()[0]
}

/// A span as a header has it.
pub fn words(span: Duration) -> String {
    format!("{}ms", span.as_millis())
}

pub fn names(deliveries: &[Delivery]) -> Vec<&str> {
    deliveries.iter().map(|delivery| delivery.job.id.as_str()).collect()
}

/// The next of a stream, which must come soon.
pub async fn soon<T>(stream: &mut BoxStream<'static, T>) -> Option<T> {
    let next = tokio::time::timeout(Duration::from_secs(30), stream.next()).await;
    next.expect("the stream has something to tell")
}
