//! A delivery is settled once, by whoever holds it.

use std::time::Duration;

use ebb_queue::{Delivery, Settled, Settlement};

use crate::fixture::{Fixture, counts, settle, take, take_one};

pub async fn an_acked_job_never_comes_back(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a"]).await;
    let delivery = take_one(&queue).await;
    assert_eq!(settle(&fixture.again("two").await, delivery.ack()).await, Settled::Held);
    fixture.pass(fixture.lease() * 2).await;
    assert!(take(&queue, 1).await.is_empty());
    assert_eq!(counts(&queue).await, [0, 0, 0, 0]);
}

pub async fn a_late_ack_counts_while_nobody_took_the_job(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a"]).await;
    let delivery = take_one(&queue).await;
    fixture.pass(fixture.lease() * 2).await;
    assert_eq!(counts(&queue).await, [1, 0, 0, 0]);
    assert_eq!(settle(&queue, delivery.ack()).await, Settled::Held);
    assert_eq!(counts(&queue).await, [0, 0, 0, 0]);
}

type Way = fn(Delivery) -> Settlement;

/// The ways to settle, and the counts of the queue after each.
const WAYS: [(Way, [u64; 4]); 4] = [
    (Delivery::ack, [0, 0, 0, 0]),
    (|delivery| delivery.retry(Duration::from_secs(1), "again"), [0, 0, 1, 0]),
    (Delivery::release, [1, 0, 0, 0]),
    (|delivery| delivery.reject("never"), [0, 0, 0, 1]),
];

pub async fn a_lost_lease_changes_nothing_however_it_is_settled(fixture: &dyn Fixture) {
    for (way, _) in WAYS {
        let (queue, other) = (fixture.fresh().await, fixture.again("two").await);
        fixture.publish(&queue, &["a"]).await;
        let stale = take_one(&queue).await;
        fixture.pass(fixture.lease() * 2).await;
        let current = take_one(&other).await;
        assert_eq!(settle(&queue, way(stale)).await, Settled::Lost);
        assert_eq!(counts(&queue).await, [0, 1, 0, 0]);
        assert_eq!(settle(&other, current.ack()).await, Settled::Held);
    }
}

pub async fn a_settlement_sent_again_is_held_and_has_the_effect_of_one(fixture: &dyn Fixture) {
    for (way, after) in WAYS {
        let queue = fixture.fresh().await;
        fixture.publish(&queue, &["a"]).await;
        let settlement = way(take_one(&queue).await);
        for _ in 0..3 {
            let settled = queue.settle(std::slice::from_ref(&settlement)).await.unwrap();
            assert_eq!(settled, [Settled::Held]);
            assert_eq!(counts(&queue).await, after);
        }
        fixture.pass(Duration::from_secs(2)).await;
        let attempts: Vec<_> = take(&queue, 2).await.iter().map(|one| one.attempt).collect();
        let expected: &[u32] = match after {
            [1, ..] => &[1],
            [_, _, 1, _] => &[2],
            _ => &[],
        };
        assert_eq!(attempts, expected);
    }
}

pub async fn a_settlement_sent_again_is_lost_once_the_job_went_on(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a"]).await;
    let again = take_one(&queue).await.retry(Duration::ZERO, "again");
    let send = || async { queue.settle(std::slice::from_ref(&again)).await.unwrap()[0] };
    assert_eq!(send().await, Settled::Held);
    let delivery = take_one(&queue).await;
    assert_eq!(send().await, Settled::Lost);
    assert_eq!(counts(&queue).await, [0, 1, 0, 0]);
    assert_eq!(settle(&queue, delivery.reject("never")).await, Settled::Held);
    queue.redrive(None).await.unwrap();
    assert_eq!(send().await, Settled::Lost);
    assert_eq!(counts(&queue).await, [1, 0, 0, 0]);
}

pub async fn a_settlement_sent_again_is_lost_once_the_job_is_forgotten(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a"]).await;
    let ack = [take_one(&queue).await.ack()];
    queue.settle(&ack).await.unwrap();
    fixture.pass(fixture.behavior().key_ttl / 2).await;
    assert_eq!(queue.settle(&ack).await.unwrap(), [Settled::Held]);
    fixture.pass(fixture.behavior().key_ttl).await;
    assert_eq!(queue.settle(&ack).await.unwrap(), [Settled::Lost]);
}

pub async fn each_of_a_batch_is_answered_in_order(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a"]).await;
    let stale = take_one(&queue).await;
    fixture.pass(fixture.lease() * 2).await;
    fixture.publish(&queue, &["b", "c"]).await;
    let mut current = take(&queue, 3).await.into_iter();
    let mut next = || current.next().unwrap();
    let batch = [next().ack(), stale.reject("late"), next().reject("bad"), next().release()];
    let (held, lost) = (Settled::Held, Settled::Lost);
    assert_eq!(queue.settle(&batch).await.unwrap(), [held, lost, held, held]);
    assert_eq!(counts(&queue).await, [1, 0, 0, 1]);
    assert_eq!(queue.settle(&[]).await.unwrap(), []);
}
