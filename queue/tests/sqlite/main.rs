//! What the embedded broker promises beyond the conformance suite: many processes on one file,
//! `kill -9` at any moment, files of others, and quiet when nothing happens.
#![allow(unreachable_pub, reason = "nobody is outside a test binary")]
#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

mod files;
mod news;
mod processes;
mod replies;
mod sharing;

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use ebb_queue::{Delivery, Job, JobResult, OpenOptions, Outcome, Queue, QueueUrl, Timestamp, open};

/// The queue in this file.
pub fn url(file: &Path) -> QueueUrl {
    QueueUrl::sqlite(file)
}

/// Another handle on the queue, with connections of its own.
pub async fn handle(url: &QueueUrl) -> Queue {
    open(url, OpenOptions::default()).await.unwrap()
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
