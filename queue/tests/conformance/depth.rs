//! The counts are of one moment, and say all that a scaler needs.

use std::time::Duration;

use ebb_queue::{Behavior, ByPriority, Depth, Timestamp};

use crate::fixture::{Fixture, publish, settle, words};

pub async fn an_empty_queue_is_empty(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let before = fixture.now();
    let depth = fixture.depth(&queue).await;
    assert!(before <= later(depth.as_of, 1) && depth.as_of <= fixture.now());
    let Depth { cost, ready_by_priority, waited, .. } = depth;
    assert_eq!(depth, Depth { cost, ready_by_priority, waited, ..Depth::empty(depth.as_of) });
    assert_eq!(cost.unwrap_or_default(), 0.0);
    assert_eq!(ready_by_priority.unwrap_or_default(), ByPriority::default());
}

pub async fn each_job_is_counted_once_whatever_its_state(fixture: &dyn Fixture) {
    let lease = fixture.lease() * 2;
    let queue = fixture.fresh_with(Behavior { lease, ..fixture.behavior() }).await;
    let other = fixture.again("scaler").await;
    fixture.publish(&queue, &["done", "dead", "retried", "running", "abandoned", "ready"]).await;
    publish(&queue, fixture.job("delayed", &[("ebb-delay", &words(fixture.far()))])).await;
    let mut deliveries = fixture.take(&queue, 5).await.into_iter();
    let mut next = || deliveries.next().unwrap();
    let settlements =
        [next().ack(), next().reject("bad"), next().retry(fixture.lease() * 9, "later")];
    queue.settle(&settlements).await.unwrap();
    fixture.assert_counts(&other, [1, 2, 2, 1]).await;
    let running = next();
    // What is done about a lease has half of it to spare.
    fixture.pass(lease / 2).await;
    queue.extend(&[running.receipt().clone()]).await.unwrap();
    fixture.pass_by(lease / 2).await;
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
    let latest = Duration::try_from(fixture.now().duration_since(oldest.enqueued_at)).unwrap();
    assert!((age..=latest).contains(&depth.oldest_age().unwrap()), "{depth:?}");
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
    assert_eq!(depth.next_delayed, job.headers.not_before, "a lease is no delay");
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
    if let Some(cost) = fixture.depth(&queue).await.cost {
        assert_eq!(cost, 12.0);
    }
}

pub async fn what_is_ready_is_told_by_priority(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    for (name, priority) in [("a", "low"), ("b", "high"), ("c", "low"), ("d", "low")] {
        publish(&queue, fixture.job(name, &[("ebb-priority", priority)])).await;
    }
    fixture.publish(&queue, &["e", "f"]).await;
    let of_high = fixture.job("g", &[("ebb-priority", "high")]);
    publish(&queue, of_high).await;
    let later = [("ebb-priority", "high"), ("ebb-delay", &words(fixture.far()))];
    publish(&queue, fixture.job("h", &later)).await;
    let assert_told = async |expected: ByPriority| {
        let told = |depth: &Depth| depth.ready_by_priority.is_none_or(|by| by == expected);
        let depth = fixture.depth_when(&queue, told).await;
        // A broker that cannot tell says so.
        assert_eq!(depth.ready_by_priority.unwrap_or(expected), expected);
        assert_eq!(depth.ready, expected.total());
    };
    assert_told(ByPriority { high: 2, normal: 2, low: 3 }).await;
    let held = fixture.take(&queue, 3).await;
    assert_told(ByPriority { high: 0, normal: 1, low: 3 }).await;
    assert_eq!(held.len(), 3);
}

pub async fn the_soonest_deadline_of_what_is_ready_is_known(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let ttl = |times: u32| words(fixture.far() * times);
    let soon = fixture.job("soon", &[("ebb-ttl", &ttl(2)), ("ebb-priority", "high")]);
    let late = fixture.job("late", &[("ebb-ttl", &ttl(3))]);
    let delayed =
        fixture.job("delayed", &[("ebb-ttl", &ttl(2)), ("ebb-delay", &words(fixture.far()))]);
    for job in [&late, &delayed, &soon] {
        publish(&queue, job.clone()).await;
    }
    fixture.publish(&queue, &["whenever"]).await;
    let assert_told = async |expected: Option<Timestamp>| {
        // Deadlines may be kept to a tenth of a second.
        let near = |told: Timestamp, at: Timestamp| {
            told.duration_since(at).abs() <= jiff::SignedDuration::from_millis(100)
        };
        let fits = |depth: &Depth| match (depth.first_deadline, expected) {
            (Some(told), Some(at)) => near(told, at),
            (told, _) => told.is_none(),
        };
        let depth = fixture.depth_when(&queue, fits).await;
        assert!(fits(&depth), "{expected:?} and {depth:?}");
        depth.first_deadline.is_some()
    };
    let is_told = assert_told(soon.headers.deadline).await;
    let held = fixture.take(&queue, 1).await;
    // A broker that cannot tell says so, and never knows only sometimes.
    assert_eq!(assert_told(late.headers.deadline).await, is_told);
    let rest = fixture.take(&queue, 2).await;
    assert!(!assert_told(None).await);
    assert_eq!((held.len(), rest.len()), (1, 2));
}

fn later(at: ebb_queue::Timestamp, millis: u64) -> ebb_queue::Timestamp {
    at + Duration::from_millis(millis)
}
