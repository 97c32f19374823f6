//! What is published is stored: all of a batch, in order, unchanged, or none of it.

use ebb_queue::{Behavior, Error, ErrorKind};

use crate::fixture::{Fixture, publish, settle, words};

pub async fn a_published_job_is_received_as_it_was(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let mut job = fixture.job(
        "a",
        &[
            ("ebb-model", "mini"),
            ("ebb-ttl", "5m"),
            ("ebb-delay", "0"),
            ("ebb-priority", "high"),
            ("ebb-cost", "12.5"),
            ("ebb-reply-to", "answers"),
            ("ebb-tenant", "lab"),
            ("ebb-key", "once"),
            ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
            ("content-type", "application/octet-stream"),
        ],
    );
    job.body = (0..=255u8).collect::<Vec<_>>().into();
    publish(&queue, job.clone()).await;
    let delivery = fixture.take_one(&fixture.again("two").await).await;
    assert_eq!(delivery.job, job);
    assert_eq!(delivery.attempt, 1);
}

pub async fn a_job_without_an_envelope_stays_without(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let mut job = fixture.job("a", &[]);
    job.body = bytes::Bytes::new();
    publish(&queue, job.clone()).await;
    assert_eq!(fixture.take_one(&queue).await.job, job);
}

/// The longest that is tried where there is no limit, or a higher one.
const LARGE: u64 = 1 << 20;

pub async fn a_large_body_is_kept(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let limit = queue.info().await.unwrap().max_body.unwrap_or(LARGE);
    let mut job = fixture.job("a", &[]);
    job.body = vec![7; limit.min(LARGE).try_into().unwrap()].into();
    publish(&queue, job.clone()).await;
    assert!(fixture.take_one(&queue).await.job == job);
}

pub async fn a_body_over_the_limit_is_refused_and_nothing_is_stored(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let Some(limit) = queue.info().await.unwrap().max_body else { return };
    let mut job = fixture.job("a", &[]);
    job.body = vec![7; usize::try_from(limit).unwrap() + 1].into();
    let refused = queue.publish(vec![fixture.job("b", &[]), job]).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    assert!(refused.to_string().contains(&limit.to_string()), "the limit is named: {refused}");
    fixture.assert_counts(&queue, [0, 0, 0, 0]).await;
    fixture.publish(&queue, &["a", "b"]).await;
}

pub async fn a_batch_is_known_by_its_ids_and_received_in_order(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let batch: Vec<_> = ["c", "a", "b"].iter().map(|name| fixture.job(name, &[])).collect();
    let published = queue.publish(batch).await.unwrap();
    let ids: Vec<_> = published.iter().map(|one| (one.id.as_str(), one.duplicate)).collect();
    assert_eq!(ids, [("c", false), ("a", false), ("b", false)]);
    fixture.publish(&fixture.again("two").await, &["0"]).await;
    fixture.assert_takes(&queue, 9, &["c", "a", "b", "0"]).await;
}

pub async fn an_empty_batch_is_nothing_special(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    assert_eq!(queue.publish(Vec::new()).await.unwrap(), []);
    fixture.assert_counts(&queue, [0, 0, 0, 0]).await;
}

pub async fn a_full_queue_says_so_and_stores_nothing(fixture: &dyn Fixture) {
    let queue = full_at_three(fixture).await;
    fixture.publish(&queue, &["a"]).await;
    publish(&queue, fixture.job("later", &[("ebb-delay", &words(fixture.far()))])).await;
    let batch = vec![fixture.job("b", &[]), fixture.job("c", &[])];
    assert_eq!(queue.publish(batch).await.map_err(|e| e.kind()), Err(ErrorKind::Full));
    fixture.assert_counts(&queue, [1, 0, 1, 0]).await;
    fixture.publish(&queue, &["b"]).await;
    fixture.assert_counts(&queue, [2, 0, 1, 0]).await;
}

pub async fn what_runs_or_is_known_takes_no_room_in_a_full_queue(fixture: &dyn Fixture) {
    let queue = full_at_three(fixture).await;
    fixture.publish(&queue, &["a", "b", "c"]).await;
    assert!(publish(&queue, fixture.job("b", &[])).await.duplicate);
    let running = fixture.take(&queue, 2).await;
    fixture.publish(&queue, &["d", "e"]).await;
    let refused = queue.publish(vec![fixture.job("f", &[])]).await.map_err(|e: Error| e.kind());
    assert_eq!(refused, Err(ErrorKind::Full));
    // What was accepted may always come back.
    for delivery in running {
        settle(&queue, delivery.release()).await;
    }
    fixture.assert_counts(&queue, [5, 0, 0, 0]).await;
}

pub async fn what_a_crash_left_takes_room_and_what_expired_takes_none(fixture: &dyn Fixture) {
    // Much longer than the time to live: the first two are still held when the short one expires.
    let (lease, ttl) = (fixture.lease() * 3, fixture.lease() * 3 / 4);
    let behavior = Behavior { lease, max_ready: Some(3), ..fixture.behavior() };
    let queue = fixture.fresh_with(behavior).await;
    fixture.publish(&queue, &["a", "b"]).await;
    drop(fixture.take(&queue, 2).await);
    fixture.assert_counts(&queue, [0, 2, 0, 0]).await;
    publish(&queue, fixture.job("short", &[("ebb-ttl", &words(ttl))])).await;
    fixture.publish(&queue, &["c", "d"]).await;
    fixture.assert_counts(&queue, [3, 2, 0, 0]).await;
    fixture.pass_by(ttl).await;
    fixture.publish(&queue, &["e"]).await;
    fixture.assert_counts(&queue, [3, 2, 0, 1]).await;
    drop(fixture.take(&queue, 3).await);
    fixture.pass(lease * 5 / 4).await;
    let refused = queue.publish(vec![fixture.job("f", &[])]).await.map_err(|e: Error| e.kind());
    assert_eq!(refused, Err(ErrorKind::Full));
    fixture.assert_counts(&queue, [5, 0, 0, 1]).await;
}

pub async fn queues_on_one_broker_share_nothing(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let other = fixture.beside().await;
    publish(&queue, fixture.job("a", &[("ebb-key", "k")])).await;
    fixture.assert_counts(&other, [0, 0, 0, 0]).await;
    assert!(!publish(&other, fixture.job("a", &[])).await.duplicate);
    assert!(!publish(&other, fixture.job("b", &[("ebb-key", "k")])).await.duplicate);
    queue.put(&fixture.completed("a", 1, "here")).await.unwrap();
    assert_eq!(other.get(&"a".parse().unwrap()).await.unwrap(), None);
    settle(&queue, fixture.take_one(&queue).await.reject("no")).await;
    assert_eq!(other.purge(None).await.unwrap() + other.redrive(None).await.unwrap(), 0);
    fixture.assert_counts(&other, [2, 0, 0, 0]).await;
    fixture.assert_counts(&queue, [0, 0, 0, 1]).await;
}

async fn full_at_three(fixture: &dyn Fixture) -> ebb_queue::Queue {
    fixture.fresh_with(Behavior { max_ready: Some(3), ..fixture.behavior() }).await
}
