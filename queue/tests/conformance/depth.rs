//! The counts are of one moment, and say all that a scaler needs.

use std::time::Duration;

use ebb_queue::{Depth, Timestamp};

use crate::fixture::{Fixture, publish, settle, words};

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
    let (queue, other) = (fixture.fresh().await, fixture.again("scaler").await);
    fixture.publish(&queue, &["done", "dead", "retried", "running", "abandoned", "ready"]).await;
    publish(&queue, fixture.job("delayed", &[("ebb-delay", &words(fixture.far()))])).await;
    let mut deliveries = fixture.take(&queue, 5).await.into_iter();
    let mut next = || deliveries.next().unwrap();
    let settlements =
        [next().ack(), next().reject("bad"), next().retry(fixture.lease() * 9, "later")];
    queue.settle(&settlements).await.unwrap();
    fixture.assert_counts(&other, [1, 2, 2, 1]).await;
    let running = next();
    fixture.pass(fixture.lease() * 2 / 3).await;
    queue.extend(&[running.receipt().clone()]).await.unwrap();
    fixture.pass(fixture.lease() * 2 / 3).await;
    fixture.assert_counts(&queue, [2, 1, 2, 1]).await;
}

pub async fn the_oldest_ready_job_gives_the_age(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let oldest = fixture.job("a", &[("ebb-priority", "low")]);
    publish(&queue, oldest.clone()).await;
    let age = fixture.lease() * 2 / 3;
    fixture.pass(age).await;
    let newest = fixture.job("b", &[("ebb-priority", "high")]);
    publish(&queue, newest.clone()).await;
    let is_oldest = |depth: &Depth| depth.oldest_ready == Some(oldest.enqueued_at);
    let depth = fixture.depth_when(&queue, is_oldest).await;
    assert_eq!(depth.oldest_ready, Some(oldest.enqueued_at));
    let latest = age + fixture.lease() / 6 + fixture.lag();
    assert!((age..latest).contains(&depth.oldest_age().unwrap()), "{depth:?}");
    settle(&queue, fixture.take(&queue, 1).await.remove(0).ack()).await;
    let depth = fixture.depth_when(&queue, |depth| is_oldest(depth) && depth.ready == 1).await;
    assert_eq!(depth.oldest_ready, Some(oldest.enqueued_at));
    let held = fixture.take(&queue, 1).await;
    let depth = fixture.depth_when(&queue, |depth| depth.oldest_ready.is_none()).await;
    assert_eq!(depth.oldest_ready, None);
    assert_eq!(held.len(), 1);
}

pub async fn the_next_due_moment_is_known(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let job = fixture.job("a", &[("ebb-delay", &words(fixture.far()))]);
    publish(&queue, job.clone()).await;
    fixture.assert_next_due(&queue, job.headers.not_before).await;
    publish(&queue, fixture.job("b", &[])).await;
    fixture.assert_next_due(&queue, job.headers.not_before).await;
    let before = fixture.now();
    let held = fixture.take(&queue, 1).await.remove(0);
    let lease_ends = before + fixture.lease() - Duration::from_millis(1);
    let is_lease = |due: Timestamp| due >= lease_ends && due <= fixture.now() + fixture.lease();
    let depth = fixture.depth_when(&queue, |depth| depth.next_due.is_some_and(is_lease)).await;
    assert!(depth.next_due.is_some_and(is_lease), "{depth:?}");
    settle(&queue, held.retry(fixture.short(), "again")).await;
    let is_retry = |due: Timestamp| due <= fixture.now() + fixture.short();
    let depth = fixture.depth_when(&queue, |depth| depth.next_due.is_some_and(is_retry)).await;
    assert!(depth.next_due.is_some_and(is_retry), "{depth:?}");
    fixture.pass_by(fixture.short()).await;
    fixture.assert_next_due(&queue, job.headers.not_before).await;
}

pub async fn the_cost_of_what_waits_and_runs_is_summed(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    for (name, cost) in [("a", "1.5"), ("b", "2"), ("c", "4"), ("d", "8")] {
        publish(&queue, fixture.job(name, &[("ebb-cost", cost)])).await;
    }
    fixture.publish(&queue, &["free"]).await;
    publish(
        &queue,
        fixture.job("later", &[("ebb-cost", "100"), ("ebb-delay", &words(fixture.far()))]),
    )
    .await;
    let mut deliveries = fixture.take(&queue, 3).await.into_iter();
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
