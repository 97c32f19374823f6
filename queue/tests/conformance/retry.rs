//! A failed attempt is charged, and the job comes back after its delay, not before.

use std::time::Duration;

use ebb_queue::Settled;

use crate::fixture::{Fixture, publish, settle, words};

pub async fn a_retried_job_comes_back_after_its_delay_and_not_before(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a"]).await;
    let delay = fixture.lease();
    let retry = fixture.take_one(&queue).await.retry(delay, "try again");
    assert_eq!(settle(&queue, retry).await, Settled::Held);
    fixture.pass(delay / 4).await;
    fixture.assert_counts(&queue, [0, 0, 1, 0]).await;
    fixture.assert_nothing_ready(&queue).await;
    fixture.pass(delay).await;
    fixture.assert_counts(&queue, [1, 0, 0, 0]).await;
    assert_eq!(fixture.take_one(&queue).await.attempt, 2);
}

pub async fn a_retry_without_delay_is_ready_at_once_in_its_old_place(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a", "b"]).await;
    let first = fixture.take(&queue, 1).await.remove(0);
    settle(&queue, first.retry(Duration::ZERO, "again")).await;
    fixture.assert_takes(&queue, 9, &["a", "b"]).await;
}

pub async fn the_reasons_of_retries_stand_in_the_history(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a"]).await;
    for reason in ["first", "second"] {
        settle(&queue, fixture.take_one(&queue).await.retry(Duration::ZERO, reason)).await;
    }
    settle(&queue, fixture.take_one(&queue).await.reject("last")).await;
    let letter = queue.list(1).await.unwrap().remove(0);
    let history: Vec<_> = letter.history.iter().map(|a| (a.attempt, a.what.as_str())).collect();
    assert_eq!(history, [(1, "first"), (2, "second"), (3, "last")]);
    assert_eq!((letter.attempts, &*letter.reason), (3, "last"));
}

pub async fn a_delayed_job_is_ready_when_its_delay_ends(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let delay = fixture.lease() / 2;
    publish(&queue, fixture.job("later", &[("ebb-delay", &words(delay))])).await;
    fixture.publish(&queue, &["now"]).await;
    fixture.assert_counts(&queue, [1, 0, 1, 0]).await;
    fixture.assert_takes(&queue, 9, &["now"]).await;
    fixture.pass(delay).await;
    fixture.assert_takes(&queue, 9, &["later"]).await;
}
