//! Clocks that are set, and moments that come while something goes on.

use std::time::Duration;

use ebb_queue::JobId;
use futures::{StreamExt, TryStreamExt};
use rusqlite::Connection;

use crate::{answer, handle_with_clock, job, take, url};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn what_is_forgotten_is_swept_also_after_the_clock_was_set_back() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("queue.db");
    let mut url = url(&file);
    url.behavior.result_ttl = SECOND * 60;
    let (queue, clock) = handle_with_clock(&url).await;
    clock.pass(SECOND * 3600);
    queue.publish(vec![job("a")]).await.unwrap();
    let delivery = take(&queue, 1, Duration::ZERO).await.remove(0);
    clock.set_back(SECOND * 3600);
    queue.put(&answer(&delivery)).await.unwrap();
    let db = Connection::open(&file).unwrap();
    let n_results =
        || -> i64 { db.query_row("SELECT count(*) FROM results", [], |row| row.get(0)).unwrap() };
    assert_eq!(n_results(), 1);
    clock.pass(SECOND * 62);
    queue.publish(vec![job("b")]).await.unwrap();
    assert_eq!(n_results(), 0);
}

#[tokio::test]
async fn a_purge_misses_nothing_that_falls_due_while_it_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (queue, clock) = handle_with_clock(&url(&folder.path().join("queue.db"))).await;
    let delayed = |name: &str| {
        let mut job = job(name);
        job.set("ebb-delay", "60s").unwrap();
        job
    };
    let name: JobId = "b".parse().unwrap();
    queue.publish(vec![delayed("a"), delayed(name.as_str())]).await.unwrap();
    let mut steps = queue.purge_waiting().await.unwrap();
    for _ in 0..3 {
        steps.next().await.unwrap().unwrap();
    }
    clock.pass(SECOND * 61);
    // A worker comes, and takes one of two.
    take(&queue, 1, Duration::ZERO).await;
    steps.try_collect::<Vec<_>>().await.unwrap();
    assert_eq!(queue.depth().await.unwrap().ready, 0);
}
