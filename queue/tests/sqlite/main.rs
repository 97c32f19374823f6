//! What the embedded broker promises beyond the conformance suite: many processes on one file,
//! `kill -9` at any moment, files of others, and quiet when nothing happens.
#![allow(unreachable_pub, reason = "nobody is outside a test binary")]
#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

mod expired;
mod files;
mod moments;
mod news;
mod processes;
mod replies;
mod sharing;

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ebb_queue::{
    Clock, Delivery, Job, JobResult, OpenOptions, Outcome, Queue, QueueUrl, Timestamp, open,
};

/// The queue in this file.
pub fn url(file: &Path) -> QueueUrl {
    QueueUrl::sqlite(file)
}

/// Another handle on the queue, with connections of its own.
pub async fn handle(url: &QueueUrl) -> Queue {
    open(url, OpenOptions::default()).await.unwrap()
}

/// A clock that is set forward, and back again.
#[derive(Debug, Default)]
pub struct Ahead(AtomicU64);

impl Ahead {
    /// Sets it forward, by whole seconds.
    pub fn pass(&self, span: Duration) {
        self.0.fetch_add(span.as_secs(), Ordering::Relaxed);
    }

    /// Sets it back by no more than it was set forward.
    pub fn set_back(&self, span: Duration) {
        self.0.fetch_sub(span.as_secs(), Ordering::Relaxed);
    }
}

impl Clock for Ahead {
    fn now(&self) -> Timestamp {
        Timestamp::now() + Duration::from_secs(self.0.load(Ordering::Relaxed))
    }
}

/// A handle that goes by such a clock.
pub async fn handle_with_clock(url: &QueueUrl) -> (Queue, Arc<Ahead>) {
    let clock = Arc::new(Ahead::default());
    let options = OpenOptions { clock: clock.clone(), ..OpenOptions::default() };
    (open(url, options).await.unwrap(), clock)
}

/// A job of this name.
pub fn job(name: &str) -> Job {
    let mut job = Job::new("body", Timestamp::now());
    job.id = name.parse().unwrap();
    job
}

/// Receives what is ready now, at most so many.
pub async fn take(queue: &Queue, max: usize, wait: Duration) -> Vec<Delivery> {
    queue.receive(NonZeroUsize::new(max).unwrap(), wait).await.unwrap()
}

/// The answer to a delivery: its own body.
pub fn answer(delivery: &Delivery) -> JobResult {
    let (content_type, body) = ("text/plain".to_owned(), delivery.job.body.clone());
    JobResult {
        id: delivery.job.id.clone(),
        attempt: delivery.attempt,
        outcome: Outcome::Completed { content_type, body },
        finished_at: Timestamp::now(),
        queue: None,
    }
}
