//! What the suite needs of a broker, and the words that the promises are written in.

use std::num::NonZeroUsize;
use std::time::Duration;

use async_trait::async_trait;
use ebb_queue::{
    Behavior, Delivery, Depth, Job, JobResult, Outcome, Published, Queue, Settled, Settlement,
    Timestamp,
};
use futures::StreamExt;
use futures::stream::BoxStream;

/// A broker to hold to its promises.
///
/// One that cannot be told the time lets it pass for real: the spans of the promises are fractions
/// of its [`Behavior`], which may be short.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// How queues behave unless a promise asks for something else.
    fn behavior(&self) -> Behavior {
        let lease = Duration::from_secs(30);
        Behavior { lease, result_ttl: lease * 4, key_ttl: lease * 4, max_ready: None }
    }

    /// Makes a new and empty queue, for the worker `one`.
    async fn fresh_with(&self, behavior: Behavior) -> Queue;

    /// Opens the last fresh queue once more, as another process would.
    async fn again(&self, worker: &str) -> Queue;

    /// Opens another queue beside the last fresh one, on the same broker.
    async fn beside(&self) -> Queue;

    /// What time it is for the broker.
    fn now(&self) -> Timestamp;

    /// Lets time pass for the broker.
    async fn pass(&self, span: Duration);
}

impl dyn Fixture + '_ {
    pub async fn fresh(&self) -> Queue {
        self.fresh_with(self.behavior()).await
    }

    pub fn lease(&self) -> Duration {
        self.behavior().lease
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
        self.result(name, attempt, Outcome::Failed { reason: reason.to_owned() })
    }

    fn result(&self, name: &str, attempt: u32, outcome: Outcome) -> JobResult {
        let finished_at = Timestamp::from_millisecond(self.now().as_millisecond()).unwrap();
        JobResult { id: name.parse().unwrap(), attempt, outcome, finished_at }
    }
}

pub async fn publish(queue: &Queue, job: Job) -> Published {
    queue.publish(vec![job]).await.unwrap().remove(0)
}

/// Receives what is ready now, at most so many.
pub async fn take(queue: &Queue, max: usize) -> Vec<Delivery> {
    queue.receive(NonZeroUsize::new(max).unwrap(), Duration::ZERO).await.unwrap()
}

/// Receives the one job that is ready.
pub async fn take_one(queue: &Queue) -> Delivery {
    let mut deliveries = take(queue, 2).await;
    assert_eq!(names(&deliveries).len(), 1, "one job is ready");
    deliveries.remove(0)
}

pub async fn settle(queue: &Queue, settlement: Settlement) -> Settled {
    queue.settle(&[settlement]).await.unwrap()[0]
}

pub async fn extend(queue: &Queue, delivery: &Delivery) -> Settled {
    queue.extend(&[delivery.receipt().clone()]).await.unwrap()[0]
}

/// Takes the one ready job and rejects it.
pub async fn kill(queue: &Queue, reason: &str) {
    assert_eq!(settle(queue, take_one(queue).await.reject(reason)).await, Settled::Held);
}

pub fn names(deliveries: &[Delivery]) -> Vec<&str> {
    deliveries.iter().map(|delivery| delivery.job.id.as_str()).collect()
}

/// Ready, in flight, delayed, dead.
pub async fn counts(queue: &Queue) -> [u64; 4] {
    let Depth { ready, in_flight, delayed, dead, .. } = queue.depth().await.unwrap();
    [ready, in_flight, delayed, dead]
}

/// The next of a stream, which must come soon.
pub async fn soon<T>(stream: &mut BoxStream<'static, T>) -> Option<T> {
    let next = tokio::time::timeout(Duration::from_secs(5), stream.next()).await;
    next.expect("the stream has something to tell")
}
