//! A delivery is settled once, by whoever holds it.

use std::time::Duration;

use ebb_queue::{Delivery, Settled, Settlement};

use crate::fixture::{Fixture, settle};

pub async fn an_acked_job_never_comes_back(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a"]).await;
    let delivery = fixture.take_one(&queue).await;
    assert_eq!(settle(&fixture.again("two").await, delivery.ack()).await, Settled::Held);
    fixture.pass(fixture.lease() * 2).await;
    fixture.assert_nothing_ready(&queue).await;
    fixture.assert_counts(&queue, [0, 0, 0, 0]).await;
}

pub async fn a_late_ack_counts_while_nobody_took_the_job(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a"]).await;
    let delivery = fixture.take_one(&queue).await;
    fixture.pass_by(fixture.lease()).await;
    fixture.assert_counts(&queue, [1, 0, 0, 0]).await;
    assert_eq!(settle(&queue, delivery.ack()).await, Settled::Held);
    fixture.assert_counts(&queue, [0, 0, 0, 0]).await;
}

/// A way to settle; a retry comes back after this span.
type Way = fn(Delivery, Duration) -> Settlement;

/// The ways to settle, and the counts of the queue after each.
const WAYS: [(Way, [u64; 4]); 4] = [
    (|delivery, _| delivery.ack(), [0, 0, 0, 0]),
    (|delivery, later| delivery.retry(later, "again"), [0, 0, 1, 0]),
    (|delivery, _| delivery.release(), [1, 0, 0, 0]),
    (|delivery, _| delivery.reject("never"), [0, 0, 0, 1]),
];

pub async fn a_lost_lease_changes_nothing_however_it_is_settled(fixture: &dyn Fixture) {
    for (way, _) in WAYS {
        let (queue, other) = (fixture.fresh().await, fixture.again("two").await);
        fixture.publish(&queue, &["a"]).await;
        let stale = fixture.take_one(&queue).await;
        fixture.pass_by(fixture.lease()).await;
        let current = fixture.take_one(&other).await;
        assert_eq!(settle(&queue, way(stale, fixture.lease())).await, Settled::Lost);
        fixture.assert_counts(&queue, [0, 1, 0, 0]).await;
        assert_eq!(settle(&other, current.ack()).await, Settled::Held);
    }
}

pub async fn a_settlement_sent_again_is_held_and_has_the_effect_of_one(fixture: &dyn Fixture) {
    for (way, after) in WAYS {
        let queue = fixture.fresh().await;
        fixture.publish(&queue, &["a"]).await;
        let settlement = way(fixture.take_one(&queue).await, fixture.lease());
        for _ in 0..3 {
            let settled = queue.settle(std::slice::from_ref(&settlement)).await.unwrap();
            assert_eq!(settled, [Settled::Held]);
            fixture.assert_counts(&queue, after).await;
        }
        fixture.pass_by(fixture.lease()).await;
        match after {
            [1, ..] => assert_eq!(fixture.take_one(&queue).await.attempt, 1),
            [_, _, 1, _] => assert_eq!(fixture.take_one(&queue).await.attempt, 2),
            _ => fixture.assert_nothing_ready(&queue).await,
        }
    }
}

pub async fn a_settlement_sent_again_is_lost_once_the_job_went_on(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a"]).await;
    let again = fixture.take_one(&queue).await.retry(Duration::ZERO, "again");
    let send = || async { queue.settle(std::slice::from_ref(&again)).await.unwrap()[0] };
    assert_eq!(send().await, Settled::Held);
    let delivery = fixture.take_one(&queue).await;
    assert_eq!(send().await, Settled::Lost);
    fixture.assert_counts(&queue, [0, 1, 0, 0]).await;
    assert_eq!(settle(&queue, delivery.reject("never")).await, Settled::Held);
    queue.redrive(None).await.unwrap();
    assert_eq!(send().await, Settled::Lost);
    fixture.assert_counts(&queue, [1, 0, 0, 0]).await;
}

pub async fn a_settlement_sent_again_is_lost_once_the_job_is_forgotten(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a"]).await;
    let ack = [fixture.take_one(&queue).await.ack()];
    queue.settle(&ack).await.unwrap();
    fixture.pass(fixture.behavior().key_ttl / 2).await;
    assert_eq!(queue.settle(&ack).await.unwrap(), [Settled::Held]);
    fixture.pass(fixture.behavior().key_ttl).await;
    assert_eq!(queue.settle(&ack).await.unwrap(), [Settled::Lost]);
}

pub async fn each_of_a_batch_is_answered_in_order(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a"]).await;
    let stale = fixture.take_one(&queue).await;
    fixture.pass_by(fixture.lease()).await;
    fixture.publish(&queue, &["b", "c"]).await;
    let mut current = fixture.take(&queue, 3).await.into_iter();
    let mut next = || current.next().unwrap();
    let batch = [next().ack(), stale.reject("late"), next().reject("bad"), next().release()];
    let (held, lost) = (Settled::Held, Settled::Lost);
    assert_eq!(queue.settle(&batch).await.unwrap(), [held, lost, held, held]);
    fixture.assert_counts(&queue, [1, 0, 0, 1]).await;
    assert_eq!(queue.settle(&[]).await.unwrap(), []);
}
