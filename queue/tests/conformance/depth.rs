//! The counts are of one moment, and say all that a scaler needs.

use std::time::Duration;

use ebb_queue::Depth;

use crate::fixture::{Fixture, counts, publish, settle, take};

pub async fn an_empty_queue_is_empty(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let before = fixture.now();
    let depth = queue.depth().await.unwrap();
    assert!(before <= later(depth.as_of, 1) && depth.as_of <= fixture.now());
    let empty = Depth { cost: depth.cost, ..Depth::empty(depth.as_of) };
    assert_eq!(depth, empty);
    assert_eq!(depth.cost.unwrap_or_default(), 0.0);
}

pub async fn each_job_is_counted_once_whatever_its_state(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["done", "dead", "retried", "running", "abandoned", "ready"]).await;
    publish(&queue, fixture.job("delayed", &[("ebb-delay", "1h")])).await;
    let mut deliveries = take(&queue, 5).await.into_iter();
    let mut next = || deliveries.next().unwrap();
    let settlements =
        [next().ack(), next().reject("bad"), next().retry(fixture.lease() * 9, "later")];
    queue.settle(&settlements).await.unwrap();
    assert_eq!(counts(&fixture.again("scaler").await).await, [1, 2, 2, 1]);
    let running = next();
    fixture.pass(fixture.lease() * 2 / 3).await;
    queue.extend(&[running.receipt().clone()]).await.unwrap();
    fixture.pass(fixture.lease() * 2 / 3).await;
    assert_eq!(counts(&queue).await, [2, 1, 2, 1]);
}

pub async fn the_oldest_ready_job_gives_the_age(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let oldest = fixture.job("a", &[("ebb-priority", "low")]);
    publish(&queue, oldest.clone()).await;
    fixture.pass(Duration::from_secs(20)).await;
    let newest = fixture.job("b", &[("ebb-priority", "high")]);
    publish(&queue, newest.clone()).await;
    let depth = queue.depth().await.unwrap();
    assert_eq!(depth.oldest_ready, Some(oldest.enqueued_at));
    assert!((20..25).contains(&depth.oldest_age().unwrap().as_secs()));
    settle(&queue, take(&queue, 1).await.remove(0).ack()).await;
    assert_eq!(queue.depth().await.unwrap().oldest_ready, Some(oldest.enqueued_at));
    let held = take(&queue, 1).await;
    assert_eq!(queue.depth().await.unwrap().oldest_ready, None);
    assert_eq!(held.len(), 1);
}

pub async fn the_next_due_moment_is_known(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let job = fixture.job("a", &[("ebb-delay", "1h")]);
    publish(&queue, job.clone()).await;
    assert_eq!(queue.depth().await.unwrap().next_due, job.headers.not_before);
    publish(&queue, fixture.job("b", &[])).await;
    assert_eq!(queue.depth().await.unwrap().next_due, job.headers.not_before);
    let before = fixture.now();
    let held = take(&queue, 1).await.remove(0);
    let due = queue.depth().await.unwrap().next_due.unwrap();
    assert!(due >= before + fixture.lease() - Duration::from_millis(1));
    assert!(due <= fixture.now() + fixture.lease());
    settle(&queue, held.retry(Duration::from_secs(1), "again")).await;
    let due = queue.depth().await.unwrap().next_due.unwrap();
    assert!(due <= fixture.now() + Duration::from_secs(1));
    fixture.pass(Duration::from_secs(2)).await;
    assert_eq!(queue.depth().await.unwrap().next_due, job.headers.not_before);
}

pub async fn the_cost_of_what_waits_and_runs_is_summed(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    for (name, cost) in [("a", "1.5"), ("b", "2"), ("c", "4"), ("d", "8")] {
        publish(&queue, fixture.job(name, &[("ebb-cost", cost)])).await;
    }
    fixture.publish(&queue, &["free"]).await;
    publish(&queue, fixture.job("later", &[("ebb-cost", "100"), ("ebb-delay", "1h")])).await;
    let mut deliveries = take(&queue, 3).await.into_iter();
    let mut next = || deliveries.next().unwrap();
    queue.settle(&[next().ack(), next().reject("bad")]).await.unwrap();
    // A broker that cannot tell says so.
    if let Some(cost) = queue.depth().await.unwrap().cost {
        assert_eq!(cost, 12.0);
    }
}

fn later(at: ebb_queue::Timestamp, millis: u64) -> ebb_queue::Timestamp {
    at + Duration::from_millis(millis)
}
