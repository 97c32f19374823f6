//! What large bodies promise that lie in a store: nobody notices, and none is lost or left over.
#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

mod answers;
mod batches;
mod jobs;
mod operator;
mod s3;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ebb_queue::memory::MemoryQueue;
use ebb_queue::{
    Behavior, Clock, Delivery, Job, JobId, JobResult, OpenOptions, Outcome, Payloads, PayloadsUrl,
    Queue, SystemClock, Timestamp, claim,
};

/// Bodies above this many bytes lie in the store.
pub(crate) const INLINE: usize = 100;

/// A queue in memory, with its large bodies in a folder.
pub(crate) struct Site {
    /// As workers and producers see it.
    pub(crate) queue: Queue,
    /// Without the store.
    pub(crate) plain: MemoryQueue,
    pub(crate) folder: PathBuf,
    _dir: tempfile::TempDir,
}

impl Site {
    pub(crate) async fn new() -> Self {
        Self::with(Behavior::default()).await
    }

    pub(crate) async fn with(behavior: Behavior) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("store");
        let plain = MemoryQueue::new(&behavior, OpenOptions::default());
        let url = PayloadsUrl::File(folder.clone());
        let queue = keeping_records(&plain, &url, behavior.result_ttl).await;
        Self { queue, plain, folder, _dir: dir }
    }

    /// The keys in a folder of the store.
    pub(crate) fn keys(&self, kind: &str) -> Vec<PathBuf> {
        let Ok(folder) = std::fs::read_dir(self.folder.join(kind)) else { return Vec::new() };
        folder.map(|entry| entry.unwrap().path()).collect()
    }
}

/// The queue with its large bodies in this store.
pub(crate) async fn over(plain: &MemoryQueue, url: &PayloadsUrl) -> Queue {
    keeping_records(plain, url, Behavior::default().result_ttl).await
}

/// The same where the record that a job has gone on is kept for so long.
async fn keeping_records(plain: &MemoryQueue, url: &PayloadsUrl, ttl: Duration) -> Queue {
    let mut payloads = Payloads::open(url).unwrap();
    payloads.inline = INLINE;
    payloads.largest = 1 << 20;
    claim::over(Arc::new(plain.clone()), payloads, ttl, Arc::new(SystemClock)).await.unwrap()
}

/// A body of so many bytes, like no other.
pub(crate) fn body(n: usize) -> Vec<u8> {
    (0..n).map(|at| (at * 7 + n) as u8).collect()
}

pub(crate) fn job(name: &str, n: usize) -> Job {
    let mut job = Job::new(body(n), Timestamp::now());
    job.id = name.parse().unwrap();
    job
}

pub(crate) fn id(name: &str) -> JobId {
    name.parse().unwrap()
}

/// What is ready now, at most so many.
pub(crate) async fn take(queue: &Queue, max: usize) -> Vec<Delivery> {
    queue.receive(NonZeroUsize::new(max).unwrap(), Duration::ZERO).await.unwrap()
}

/// An answer of so many bytes.
pub(crate) fn answer(name: &str, attempt: u32, n: usize) -> JobResult {
    let (content_type, body) = ("text/plain".to_owned(), body(n).into());
    let outcome = Outcome::Completed { content_type, body };
    // To the millisecond, as it is stored.
    let finished_at = Timestamp::from_millisecond(1_900_000_000_000).unwrap();
    JobResult { id: id(name), attempt, outcome, finished_at, queue: None }
}

/// A clock that is set forward, by seconds.
#[derive(Debug, Default)]
pub(crate) struct Ahead(pub(crate) AtomicU64);

impl Clock for Ahead {
    fn now(&self) -> Timestamp {
        Timestamp::now() + Duration::from_secs(self.0.load(Ordering::Relaxed))
    }
}
