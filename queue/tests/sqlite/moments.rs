//! Clocks that are set, and moments that come while something goes on.

use std::time::Duration;

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
