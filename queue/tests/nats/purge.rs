//! A purge that is cut off at any moment, and done again.

use std::time::Duration;

use async_nats::HeaderMap;
use ebb_queue::{Job, Queue};
use futures::TryStreamExt;
use tokio::time::timeout;

use crate::{job, on_each, try_open, until};

/// Some that wait in a lane and some that are delayed, all with keys.
fn jobs() -> Vec<Job> {
    let named = (0..60).map(|nth| {
        let mut job = job(&format!("job-{nth}"));
        job.set("ebb-key", &format!("key-{nth}")).unwrap();
        if nth % 3 == 0 {
            job.set("ebb-delay", "1h").unwrap();
        }
        job
    });
    named.collect()
}

async fn purge(queue: &Queue) {
    let steps: Vec<_> = queue.purge_waiting().await.unwrap().try_collect().await.unwrap();
    drop(steps);
}

#[test]
fn a_purge_that_was_cut_off_and_is_done_again_leaves_no_id_or_key_known() {
    on_each(async |server| {
        // From before the first is deleted until all are.
        for millis in [5, 15, 25, 35, 45, 55, 70, 90] {
            let url = format!("{}?queue=cut-{millis}&lease=1s", server.url());
            let queue = try_open(&url).await.unwrap();
            queue.publish(jobs()).await.unwrap();
            timeout(Duration::from_millis(millis), purge(&queue)).await.ok();
            until("all is deleted", async || {
                purge(&queue).await;
                let depth = queue.depth().await.unwrap();
                depth.ready + depth.delayed + depth.in_flight == 0
            })
            .await;
            let again = queue.publish(jobs()).await.unwrap();
            let known: Vec<_> = again.iter().filter(|one| one.duplicate).collect();
            assert!(known.is_empty(), "cut off after {millis} ms: {known:?}");
        }
    });
}

#[test]
fn a_plain_message_that_says_it_is_the_last_one_ends_no_purge() {
    on_each(async |server| {
        let queue = try_open(&server.url()).await.unwrap();
        let client = async_nats::connect(server.url()).await.unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("ebb-place", u64::MAX.to_string());
        client.request_with_headers("ebb.jobs.jobs", headers, "x".into()).await.unwrap();
        // More than a purge takes in one go.
        let jobs = (0..300).map(|nth| job(&nth.to_string())).collect();
        queue.publish(jobs).await.unwrap();
        purge(&queue).await;
        assert_eq!(queue.depth().await.unwrap().ready, 0);
    });
}
