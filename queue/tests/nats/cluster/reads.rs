//! What one has written one reads, whichever server one asks: a replica may be behind.

use std::cell::Cell;

use ebb_queue::{Delivery, JobResult, Outcome, Published, Queue, Stored, Timestamp};
use futures::future::join_all;

use super::{on_cluster, replicated_at};
use crate::{job, receive, until_ok};

/// How often each is tried through each server: a replica is behind for a moment, now and then.
const ROUNDS: usize = 8;
/// Who write at the same time.
const WRITERS: usize = 12;

fn answer(id: &str, body: Vec<u8>) -> JobResult {
    let content_type = "text/plain".to_owned();
    let outcome = Outcome::Completed { content_type, body: body.into() };
    let finished_at = Timestamp::from_millisecond(Timestamp::now().as_millisecond()).unwrap();
    let id = id.parse().unwrap();
    JobResult { id, attempt: 1, outcome, finished_at, queue: None }
}

/// What comes of it, and whether it had to be tried again: servers that have no time for each other answer
/// nobody, and what was in vain as far as we know may be found done.
async fn tried<T>(what: impl AsyncFn() -> ebb_queue::Result<T>) -> (T, bool) {
    let n_tries = Cell::new(0);
    let done = until_ok(async || {
        n_tries.set(n_tries.get() + 1);
        what().await
    });
    (done.await, n_tries.get() > 1)
}

async fn put(queue: &Queue, result: &JobResult) -> Stored {
    let (stored, again) = tried(async || queue.put(result).await).await;
    let there = async || queue.get(&result.id).await;
    if again && until_ok(there).await.as_ref() == Some(result) {
        return Stored::Stored;
    }
    stored
}

async fn publish_with_key(queue: &Queue, id: &str, key: &str) -> Published {
    let mut job = job(id);
    job.headers.key = Some(key.to_owned());
    let (mut published, again) = tried(async || queue.publish(vec![job.clone()]).await).await;
    let mut published = published.remove(0);
    published.duplicate &= !(again && published.id.as_str() == id);
    published
}

async fn one(queue: &Queue) -> Delivery {
    until_ok(async || receive(queue, 1).await).await.remove(0)
}

#[test]
fn what_was_written_is_read_at_once_through_each_server() {
    on_cluster(async |cluster| {
        for nth in 0..3 {
            let queue = replicated_at(cluster, nth, "reads").await;
            for round in 0..ROUNDS {
                let id = format!("job-{nth}-{round}");
                assert_a_result_is_there_at_once(&queue, &id).await;
                assert_a_purged_job_is_forgotten_at_once(&queue, &id).await;
            }
        }
    });
}

async fn assert_a_result_is_there_at_once(queue: &Queue, id: &str) {
    // Now and then one that is about as large as the server takes.
    let size = if id.ends_with("-0") { 900 << 10 } else { 9 };
    let result = answer(id, vec![b'x'; size]);
    assert_eq!(put(queue, &result).await, Stored::Stored);
    assert!(until_ok(async || queue.get(&result.id).await).await == Some(result), "{id}");
    assert_eq!(put(queue, &answer(id, vec![])).await, Stored::Duplicate, "{id}");
}

async fn assert_a_purged_job_is_forgotten_at_once(queue: &Queue, id: &str) {
    let key = format!("key-{id}");
    assert!(!publish_with_key(queue, id, &key).await.duplicate, "{id}");
    assert!(publish_with_key(queue, &format!("{id}-again"), &key).await.duplicate, "{id}");
    let rejected = [one(queue).await.reject("no".to_owned())];
    until_ok(async || Ok(queue.settle(&rejected).await?)).await;
    let ids = [id.parse().unwrap()];
    assert_eq!(until_ok(async || queue.show(&ids[0]).await).await.unwrap().reason, "no");
    let (n_purged, again) = tried(async || queue.purge(Some(&ids)).await).await;
    assert!(n_purged == 1 || again && n_purged == 0, "{id} {n_purged}");
    let again = publish_with_key(queue, id, &key).await;
    assert_eq!((again.id.as_str(), again.duplicate), (id, false));
    let done = [one(queue).await.ack()];
    until_ok(async || Ok(queue.settle(&done).await?)).await;
}

#[test]
fn of_many_who_write_the_same_at_once_each_is_told_who_was_first() {
    on_cluster(async |cluster| {
        let queues = [0, 1, 2].map(|nth| replicated_at(cluster, nth, "raced"));
        let queues = join_all(queues).await;
        for round in 0..2 {
            let (id, key) = (format!("raced-{round}"), format!("raced-{round}"));
            let puts = (0..WRITERS).map(|nth| {
                let (queue, result) = (&queues[nth % 3], answer(&id, vec![7; nth]));
                async move { put(queue, &result).await }
            });
            let stored = join_all(puts).await;
            assert_eq!(stored.iter().filter(|one| **one == Stored::Stored).count(), 1);
            let claims = (0..WRITERS).map(|nth| {
                let (queue, id, key) = (&queues[nth % 3], format!("{id}-{nth}"), &key);
                async move { publish_with_key(queue, &id, key).await }
            });
            let published = join_all(claims).await;
            assert_eq!(published.iter().filter(|one| !one.duplicate).count(), 1, "{published:?}");
            assert!(published.iter().all(|one| one.id == published[0].id), "{published:?}");
        }
        assert_eq!(until_ok(async || queues[0].depth().await).await.ready, 2);
    });
}
