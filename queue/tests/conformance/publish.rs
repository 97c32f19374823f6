//! What is published is stored: all of a batch, in order, unchanged, or none of it.

use std::time::Duration;

use ebb_queue::{Behavior, Error, ErrorKind};

use crate::fixture::{Fixture, counts, names, publish, settle, take, take_one};

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
    let delivery = take_one(&fixture.again("two").await).await;
    assert_eq!(delivery.job, job);
    assert_eq!(delivery.attempt, 1);
}

pub async fn a_job_without_an_envelope_stays_without(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let mut job = fixture.job("a", &[]);
    job.body = bytes::Bytes::new();
    publish(&queue, job.clone()).await;
    assert_eq!(take_one(&queue).await.job, job);
}

pub async fn a_body_of_a_megabyte_is_kept(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let mut job = fixture.job("a", &[]);
    job.body = vec![7; 1 << 20].into();
    publish(&queue, job.clone()).await;
    assert!(take_one(&queue).await.job == job);
}

pub async fn a_batch_is_known_by_its_ids_and_received_in_order(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let batch: Vec<_> = ["c", "a", "b"].iter().map(|name| fixture.job(name, &[])).collect();
    let published = queue.publish(batch).await.unwrap();
    let ids: Vec<_> = published.iter().map(|one| (one.id.as_str(), one.duplicate)).collect();
    assert_eq!(ids, [("c", false), ("a", false), ("b", false)]);
    fixture.publish(&fixture.again("two").await, &["0"]).await;
    assert_eq!(names(&take(&queue, 9).await), ["c", "a", "b", "0"]);
}

pub async fn an_empty_batch_is_nothing_special(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    assert_eq!(queue.publish(Vec::new()).await.unwrap(), []);
    assert_eq!(counts(&queue).await, [0, 0, 0, 0]);
}

pub async fn a_full_queue_says_so_and_stores_nothing(fixture: &dyn Fixture) {
    let queue = full_at_three(fixture).await;
    fixture.publish(&queue, &["a"]).await;
    publish(&queue, fixture.job("later", &[("ebb-delay", "10s")])).await;
    let batch = vec![fixture.job("b", &[]), fixture.job("c", &[])];
    assert_eq!(queue.publish(batch).await.map_err(|e| e.kind()), Err(ErrorKind::Full));
    assert_eq!(counts(&queue).await, [1, 0, 1, 0]);
    fixture.publish(&queue, &["b"]).await;
    assert_eq!(counts(&queue).await, [2, 0, 1, 0]);
}

pub async fn what_runs_or_is_known_takes_no_room_in_a_full_queue(fixture: &dyn Fixture) {
    let queue = full_at_three(fixture).await;
    fixture.publish(&queue, &["a", "b", "c"]).await;
    assert!(publish(&queue, fixture.job("b", &[])).await.duplicate);
    let running = take(&queue, 2).await;
    fixture.publish(&queue, &["d", "e"]).await;
    let refused = queue.publish(vec![fixture.job("f", &[])]).await.map_err(|e: Error| e.kind());
    assert_eq!(refused, Err(ErrorKind::Full));
    // What was accepted may always come back.
    for delivery in running {
        settle(&queue, delivery.release()).await;
    }
    assert_eq!(counts(&queue).await, [5, 0, 0, 0]);
}

pub async fn what_a_crash_left_takes_room_and_what_expired_takes_none(fixture: &dyn Fixture) {
    let queue = full_at_three(fixture).await;
    fixture.publish(&queue, &["a", "b"]).await;
    drop(take(&queue, 2).await);
    publish(&queue, fixture.job("short", &[("ebb-ttl", "10s")])).await;
    fixture.publish(&queue, &["c", "d"]).await;
    assert_eq!(counts(&queue).await, [3, 2, 0, 0]);
    fixture.pass(Duration::from_secs(11)).await;
    fixture.publish(&queue, &["e"]).await;
    assert_eq!(counts(&queue).await, [3, 2, 0, 1]);
    drop(take(&queue, 3).await);
    fixture.pass(fixture.lease() * 2).await;
    let refused = queue.publish(vec![fixture.job("f", &[])]).await.map_err(|e: Error| e.kind());
    assert_eq!(refused, Err(ErrorKind::Full));
    assert_eq!(counts(&queue).await, [5, 0, 0, 1]);
}

pub async fn queues_on_one_broker_share_nothing(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let other = fixture.beside().await;
    publish(&queue, fixture.job("a", &[("ebb-key", "k")])).await;
    assert_eq!(counts(&other).await, [0, 0, 0, 0]);
    assert!(!publish(&other, fixture.job("a", &[])).await.duplicate);
    assert!(!publish(&other, fixture.job("b", &[("ebb-key", "k")])).await.duplicate);
    queue.put(&fixture.completed("a", 1, "here")).await.unwrap();
    assert_eq!(other.get(&"a".parse().unwrap()).await.unwrap(), None);
    settle(&queue, take_one(&queue).await.reject("no")).await;
    assert_eq!(other.purge(None).await.unwrap() + other.redrive(None).await.unwrap(), 0);
    assert_eq!(counts(&other).await, [2, 0, 0, 0]);
    assert_eq!(counts(&queue).await, [0, 0, 0, 1]);
}

async fn full_at_three(fixture: &dyn Fixture) -> ebb_queue::Queue {
    fixture.fresh_with(Behavior { max_ready: Some(3), ..fixture.behavior() }).await
}
