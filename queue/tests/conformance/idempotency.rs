//! A job that is published again is the job that is known.

use std::time::Duration;

use ebb_queue::Queue;

use crate::fixture::{Fixture, publish, settle};

pub async fn an_id_seen_before_stores_nothing(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a"]).await;
    let mut other = fixture.job("a", &[("ebb-priority", "high")]);
    other.body = "something else".into();
    let published = publish(&fixture.again("two").await, other).await;
    assert_eq!((published.id.as_str(), published.duplicate), ("a", true));
    let delivery = fixture.take_one(&queue).await;
    assert_eq!(delivery.job.body, "a");
}

pub async fn a_key_seen_before_answers_with_the_first_id(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let key = [("ebb-key", "order-7")];
    assert!(!publish(&queue, fixture.job("a", &key)).await.duplicate);
    let second = publish(&fixture.again("two").await, fixture.job("b", &key)).await;
    assert_eq!((second.id.as_str(), second.duplicate), ("a", true));
    assert!(!publish(&queue, fixture.job("c", &[("ebb-key", "order-8")])).await.duplicate);
    fixture.assert_takes(&queue, 9, &["a", "c"]).await;
    // The id that was not stored is free.
    assert!(!publish(&queue, fixture.job("b", &[])).await.duplicate);
}

pub async fn the_id_is_looked_up_before_the_key(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    publish(&queue, fixture.job("a", &[("ebb-key", "k")])).await;
    publish(&queue, fixture.job("b", &[])).await;
    let again = publish(&queue, fixture.job("b", &[("ebb-key", "k")])).await;
    assert_eq!((again.id.as_str(), again.duplicate), ("b", true));
}

pub async fn repetitions_within_a_batch_are_found(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let key = [("ebb-key", "k")];
    let batch = vec![
        fixture.job("a", &key),
        fixture.job("a", &[]),
        fixture.job("b", &key),
        fixture.job("c", &[]),
    ];
    let published = queue.publish(batch).await.unwrap();
    let ids: Vec<_> = published.iter().map(|one| (one.id.as_str(), one.duplicate)).collect();
    assert_eq!(ids, [("a", false), ("a", true), ("a", true), ("c", false)]);
    fixture.assert_counts(&queue, [2, 0, 0, 0]).await;
}

pub async fn a_job_is_known_while_it_waits_runs_or_is_dead(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    publish(&queue, fixture.job("a", &[("ebb-key", "k")])).await;
    let key_ttl = fixture.behavior().key_ttl;
    let long = key_ttl * 5 / 4;
    let delivery = fixture.take_one(&queue).await;
    assert!(is_known(fixture, &queue).await);
    settle(&queue, delivery.retry(key_ttl * 3 / 2, "much later")).await;
    fixture.pass(long).await;
    assert!(is_known(fixture, &queue).await);
    fixture.pass(key_ttl / 2).await;
    settle(&queue, fixture.take_one(&queue).await.reject("bad")).await;
    fixture.pass(long).await;
    assert!(is_known(fixture, &queue).await);
    fixture.assert_counts(&queue, [0, 0, 0, 1]).await;
}

pub async fn a_job_that_was_done_is_known_for_a_while(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    publish(&queue, fixture.job("a", &[("ebb-key", "k")])).await;
    settle(&queue, fixture.take_one(&queue).await.ack()).await;
    fixture.pass(fixture.behavior().key_ttl / 2).await;
    assert!(is_known(fixture, &queue).await);
    fixture.assert_counts(&queue, [0, 0, 0, 0]).await;
    fixture.pass(fixture.behavior().key_ttl).await;
    let again = publish(&queue, fixture.job("b", &[("ebb-key", "k")])).await;
    assert_eq!((again.id.as_str(), again.duplicate), ("b", false));
    assert!(!publish(&queue, fixture.job("a", &[])).await.duplicate);
    fixture.assert_takes(&queue, 9, &["b", "a"]).await;
}

pub async fn a_purged_job_is_unknown_at_once(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    publish(&queue, fixture.job("a", &[("ebb-key", "k")])).await;
    settle(&queue, fixture.take_one(&queue).await.reject("bad")).await;
    assert_eq!(queue.purge(None).await.unwrap(), 1);
    assert!(!publish(&queue, fixture.job("b", &[("ebb-key", "k")])).await.duplicate);
    assert!(!publish(&queue, fixture.job("a", &[])).await.duplicate);
}

pub async fn the_same_job_published_by_many_at_once_is_stored_once(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    // Opened before the first of them publishes: its key must not be forgotten by the last.
    let mut handles = Vec::new();
    for _ in 0..8 {
        handles.push(fixture.again("producer").await);
    }
    let mut producers = tokio::task::JoinSet::new();
    for (n, queue) in handles.into_iter().enumerate() {
        let job = fixture.job(&format!("job-{n}"), &[("ebb-key", "k")]);
        producers.spawn(async move { publish(&queue, job).await });
    }
    let published = producers.join_all().await;
    let first: Vec<_> = published.iter().filter(|one| !one.duplicate).collect();
    assert_eq!(first.len(), 1);
    assert!(published.iter().all(|one| one.id == first[0].id));
    fixture.assert_takes(&queue, 9, &[first[0].id.as_str()]).await;
}

/// Whether both the id `a` and the key `k` lead to the job `a`.
async fn is_known(fixture: &dyn Fixture, queue: &Queue) -> bool {
    let by_id = publish(queue, fixture.job("a", &[])).await;
    let by_key = publish(queue, fixture.job("b", &[("ebb-key", "k")])).await;
    fixture.pass(Duration::from_millis(1)).await;
    by_id == by_key && by_id.duplicate && by_id.id.as_str() == "a"
}
