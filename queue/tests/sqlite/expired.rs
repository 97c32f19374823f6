//! Jobs that expire while no worker runs.

use std::time::Duration;

use ebb_queue::Timestamp;
use rusqlite::Connection;

use crate::{handle_with_clock, job, url};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn whoever_writes_buries_some_so_that_no_look_has_to_read_them_all() {
    const MANY: u64 = 1200;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("queue.db");
    let (queue, clock) = handle_with_clock(&url(&file)).await;
    let jobs = (0..MANY).map(|nth| {
        let mut job = job(&format!("late-{nth}"));
        job.headers.deadline = Some(Timestamp::now() + SECOND * 60);
        job
    });
    queue.publish(jobs.collect()).await.unwrap();
    clock.pass(SECOND * 61);
    let db = Connection::open(&file).unwrap();
    let n_read = || -> i64 {
        let sql = "SELECT count(*) FROM jobs WHERE deadline IS NOT NULL";
        db.query_row(sql, [], |row| row.get(0)).unwrap()
    };
    assert_eq!((n_read(), queue.depth().await.unwrap().dead), (1200, MANY));
    let mut n_published = 0;
    while n_read() > 0 {
        assert!(n_published < 9, "a producer that goes on buries them");
        clock.pass(SECOND);
        queue.publish(vec![job(&format!("new-{n_published}"))]).await.unwrap();
        n_published += 1;
    }
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.ready, depth.dead), (n_published, MANY));
}

#[tokio::test]
async fn a_job_that_cannot_be_read_keeps_no_other_from_being_buried_or_received() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("queue.db");
    let (queue, clock) = handle_with_clock(&url(&file)).await;
    let names = ["history", "id", "headers", "good", "late"];
    let jobs = names.map(|name| {
        let mut job = job(name);
        job.headers.deadline = Some(Timestamp::now() + SECOND * 60);
        job
    });
    queue.publish(jobs.to_vec()).await.unwrap();
    let db = Connection::open(&file).unwrap();
    let sql =
        "UPDATE jobs SET lease = 1, worker = 'gone', history = 'no history' WHERE id = 'history'";
    db.execute(sql, []).unwrap();
    db.execute("UPDATE jobs SET id = CAST(x'ff' AS TEXT) WHERE id = 'id'", []).unwrap();
    let sql = "UPDATE payloads SET headers = CAST(x'ff' AS TEXT) WHERE n = (SELECT n FROM jobs WHERE id = 'headers')";
    db.execute(sql, []).unwrap();
    clock.pass(SECOND * 61);
    queue.publish(vec![job("new")]).await.unwrap();
    let dead = || -> i64 {
        let sql = "SELECT count(*) FROM jobs WHERE state = 3";
        db.query_row(sql, [], |row| row.get(0)).unwrap()
    };
    assert_eq!(dead(), 2);
    let received = crate::take(&queue, 9, Duration::ZERO).await;
    let received: Vec<_> = received.iter().map(|one| one.job.id.as_str()).collect();
    assert_eq!(received, ["new"]);
    assert_eq!(queue.list(9).await.unwrap().len(), 2);
}
