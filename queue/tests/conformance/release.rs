//! An attempt that was never made is not charged.

use crate::fixture::{Fixture, settle};

pub async fn a_released_job_is_ready_at_once_and_uncharged(fixture: &dyn Fixture) {
    let (queue, other) = (fixture.fresh().await, fixture.again("two").await);
    fixture.publish(&queue, &["a"]).await;
    for _ in 0..10 {
        let delivery = fixture.take_one(&queue).await;
        assert_eq!(delivery.attempt, 1);
        settle(&queue, delivery.release()).await;
        fixture.assert_counts(&other, [1, 0, 0, 0]).await;
    }
    assert_eq!(fixture.take_one(&other).await.attempt, 1);
}

pub async fn released_jobs_keep_their_places(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a", "b", "c", "d"]).await;
    for delivery in fixture.take(&queue, 3).await.into_iter().rev() {
        settle(&queue, delivery.release()).await;
    }
    fixture.assert_takes(&queue, 9, &["a", "b", "c", "d"]).await;
}

pub async fn a_release_leaves_no_trace_in_the_history(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a"]).await;
    settle(&queue, fixture.take_one(&queue).await.release()).await;
    settle(&queue, fixture.take_one(&queue).await.reject("bad")).await;
    let letter = queue.list(1).await.unwrap().remove(0);
    assert_eq!((letter.attempts, letter.history.len()), (1, 1));
}

pub async fn a_late_release_counts_while_nobody_took_the_job(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a"]).await;
    let delivery = fixture.take_one(&queue).await;
    fixture.pass(fixture.lease() * 2).await;
    settle(&queue, delivery.release()).await;
    assert_eq!(fixture.take_one(&queue).await.attempt, 1);
}
