//! What one has written one reads, whichever server one asks: a replica may be behind.

use ebb_queue::{JobResult, Outcome, Published, Queue, Stored, Timestamp};
use futures::future::join_all;

use super::{on_cluster, replicated_at};
use crate::{job, receive};

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

async fn publish_with_key(queue: &Queue, id: &str, key: &str) -> Published {
    let mut job = job(id);
    job.headers.key = Some(key.to_owned());
    queue.publish(vec![job]).await.unwrap().remove(0)
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
    assert_eq!(queue.put(&result).await.unwrap(), Stored::Stored);
    assert!(queue.get(&result.id).await.unwrap() == Some(result), "{id}");
    assert_eq!(queue.put(&answer(id, vec![])).await.unwrap(), Stored::Duplicate, "{id}");
}

async fn assert_a_purged_job_is_forgotten_at_once(queue: &Queue, id: &str) {
    let key = format!("key-{id}");
    assert!(!publish_with_key(queue, id, &key).await.duplicate, "{id}");
    assert!(publish_with_key(queue, &format!("{id}-again"), &key).await.duplicate, "{id}");
    let delivery = receive(queue, 1).await.unwrap().remove(0);
    queue.settle(&[delivery.reject("no".to_owned())]).await.unwrap();
    let ids = [id.parse().unwrap()];
    assert_eq!(queue.show(&ids[0]).await.unwrap().unwrap().reason, "no");
    assert_eq!(queue.purge(Some(&ids)).await.unwrap(), 1, "{id}");
    let again = publish_with_key(queue, id, &key).await;
    assert_eq!((again.id.as_str(), again.duplicate), (id, false));
    let delivery = receive(queue, 1).await.unwrap().remove(0);
    queue.settle(&[delivery.ack()]).await.unwrap();
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
                async move { queue.put(&result).await.unwrap() }
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
        assert_eq!(queues[0].depth().await.unwrap().ready, 2);
    });
}
