//! A job on loan is nobody else's while its lease lasts, and somebody's again when it ends.

use ebb_queue::Settled;

use crate::fixture::{Fixture, extend, names, settle};

pub async fn a_leased_job_is_hidden_until_its_lease_ends(fixture: &dyn Fixture) {
    let (queue, other) = (fixture.fresh().await, fixture.again("two").await);
    assert_eq!(queue.lease(), fixture.lease());
    fixture.publish(&queue, &["a"]).await;
    drop(fixture.take_one(&queue).await);
    fixture.pass(fixture.short()).await;
    fixture.assert_nothing_ready(&other).await;
    fixture.assert_counts(&other, [0, 1, 0, 0]).await;
    fixture.pass(fixture.lease() * 2 / 3).await;
    fixture.assert_counts(&other, [1, 0, 0, 0]).await;
    assert_eq!(fixture.take_one(&other).await.attempt, 2);
}

pub async fn a_crash_is_charged_and_recorded_with_the_name_of_the_worker(fixture: &dyn Fixture) {
    let (queue, other) = (fixture.fresh().await, fixture.again("two").await);
    fixture.publish(&queue, &["a"]).await;
    drop(fixture.take_one(&queue).await);
    fixture.pass_by(fixture.lease()).await;
    drop(fixture.take_one(&other).await);
    fixture.pass_by(fixture.lease()).await;
    let third = fixture.take_one(&queue).await;
    assert_eq!(third.attempt, 3);
    settle(&queue, third.reject("enough")).await;
    let letter = queue.show(&"a".parse().unwrap()).await.unwrap().unwrap();
    let history: Vec<_> = letter.history.iter().map(|a| (a.attempt, a.what.as_str())).collect();
    let crashes = [(1, "lease expired, held by one"), (2, "lease expired, held by two")];
    assert_eq!(history, [crashes[0], crashes[1], (3, "enough")]);
    assert_eq!(letter.attempts, 3);
    assert!(letter.history.is_sorted_by_key(|attempt| attempt.at));
}

pub async fn an_extended_lease_starts_anew(fixture: &dyn Fixture) {
    let (queue, other) = (fixture.fresh().await, fixture.again("two").await);
    fixture.publish(&queue, &["a"]).await;
    let delivery = fixture.take_one(&queue).await;
    for _ in 0..3 {
        fixture.pass(fixture.short()).await;
        assert_eq!(extend(&other, &delivery).await, Settled::Held);
        fixture.assert_counts(&queue, [0, 1, 0, 0]).await;
    }
    fixture.assert_nothing_ready(&queue).await;
    fixture.pass_by(fixture.lease()).await;
    assert_eq!(fixture.take_one(&queue).await.attempt, 2);
}

pub async fn an_ended_lease_that_nobody_took_can_be_extended(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a"]).await;
    let delivery = fixture.take_one(&queue).await;
    fixture.pass(fixture.lease() * 2).await;
    assert_eq!(extend(&queue, &delivery).await, Settled::Held);
    fixture.assert_nothing_ready(&queue).await;
    assert_eq!(settle(&queue, delivery.ack()).await, Settled::Held);
}

pub async fn a_lease_that_somebody_else_has_is_lost(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a", "b"]).await;
    let first = fixture.take(&queue, 1).await.remove(0);
    fixture.pass_by(fixture.lease()).await;
    let others = fixture.take(&fixture.again("two").await, 2).await;
    assert_eq!(names(&others), ["a", "b"]);
    let receipts = [first.receipt().clone(), others[1].receipt().clone()];
    assert_eq!(queue.extend(&receipts).await.unwrap(), [Settled::Lost, Settled::Held]);
    fixture.pass(fixture.short()).await;
    fixture.assert_counts(&queue, [0, 2, 0, 0]).await;
}

pub async fn a_settled_delivery_cannot_be_extended(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a", "b", "c"]).await;
    let deliveries = fixture.take(&queue, 3).await;
    let receipts: Vec<_> = deliveries.iter().map(|one| one.receipt().clone()).collect();
    let mut deliveries = deliveries.into_iter();
    let mut next = || deliveries.next().unwrap();
    let settlements = [next().ack(), next().release(), next().reject("no")];
    queue.settle(&settlements).await.unwrap();
    assert_eq!(queue.extend(&receipts).await.unwrap(), [Settled::Lost; 3]);
    fixture.assert_counts(&queue, [1, 0, 0, 1]).await;
}
