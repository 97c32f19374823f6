//! A dead letter that is put back gets another life, and its past is not forgotten.

use std::time::Duration;

use ebb_queue::{Frame, JobId, Settled, Stored};
use futures::StreamExt;

use crate::fixture::{Fixture, publish, settle, words};

pub async fn a_job_put_back_starts_at_its_first_attempt_with_its_history(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let job = fixture.job("a", &[("ebb-key", "k"), ("ebb-cost", "2")]);
    publish(&queue, job.clone()).await;
    settle(&queue, fixture.take_one(&queue).await.retry(Duration::ZERO, "flaky")).await;
    fixture.kill(&queue, "broken").await;
    assert_eq!(fixture.again("two").await.redrive(None).await.unwrap(), 1);
    fixture.assert_counts(&queue, [1, 0, 0, 0]).await;
    let delivery = fixture.take_one(&queue).await;
    assert_eq!((delivery.attempt, &delivery.job), (1, &job));
    settle(&queue, delivery.reject("still broken")).await;
    let letter = queue.show(&job.id).await.unwrap().unwrap();
    let history: Vec<_> = letter.history.iter().map(|a| (a.attempt, a.what.as_str())).collect();
    assert_eq!(history, [(1, "flaky"), (2, "broken"), (1, "still broken")]);
    assert_eq!(letter.attempts, 1);
}

pub async fn jobs_are_put_back_behind_what_was_published_in_the_order_they_died(
    fixture: &dyn Fixture,
) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a", "b", "c"]).await;
    for delivery in fixture.take(&queue, 3).await.into_iter().rev() {
        settle(&queue, delivery.reject("bad")).await;
        fixture.pass(Duration::from_millis(10)).await;
    }
    fixture.publish(&queue, &["d"]).await;
    assert_eq!(queue.redrive(None).await.unwrap(), 3);
    fixture.publish(&queue, &["e"]).await;
    fixture.assert_takes(&queue, 9, &["d", "c", "b", "a", "e"]).await;
}

pub async fn named_jobs_are_put_back_in_the_order_of_their_names(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a", "b", "c"]).await;
    let settlements: Vec<_> =
        fixture.take(&queue, 3).await.into_iter().map(|one| one.reject("bad")).collect();
    queue.settle(&settlements).await.unwrap();
    let ids = ["b", "a"].map(|name| name.parse::<JobId>().unwrap());
    assert_eq!(queue.redrive(Some(&ids)).await.unwrap(), 2);
    assert_eq!(queue.redrive(None).await.unwrap(), 1);
    fixture.assert_takes(&queue, 9, &["b", "a", "c"]).await;
}

pub async fn only_the_named_are_put_back(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a", "b", "c"]).await;
    let mut deliveries = fixture.take(&queue, 3).await.into_iter();
    let mut next = || deliveries.next().unwrap();
    let settlements = [next().reject("bad"), next().reject("bad"), next().ack()];
    queue.settle(&settlements).await.unwrap();
    let ids = ["b", "c", "unknown", "b"].map(|name| name.parse::<JobId>().unwrap());
    assert_eq!(queue.redrive(Some(&ids)).await.unwrap(), 1);
    assert_eq!(queue.redrive(Some(&[])).await.unwrap(), 0);
    fixture.assert_takes(&queue, 9, &["b"]).await;
    fixture.assert_counts(&queue, [0, 1, 0, 1]).await;
}

pub async fn a_deadline_that_passed_is_cleared_and_another_is_kept(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    publish(&queue, fixture.job("short", &[("ebb-ttl", &words(fixture.short()))])).await;
    publish(&queue, fixture.job("long", &[("ebb-ttl", &words(fixture.far()))])).await;
    fixture.pass_by(fixture.short()).await;
    fixture.kill(&queue, "bad").await;
    assert_eq!(queue.redrive(None).await.unwrap(), 2);
    let deadlines: Vec<_> = fixture
        .take(&queue, 2)
        .await
        .iter()
        .map(|delivery| (delivery.job.id.to_string(), delivery.job.headers.deadline.is_some()))
        .collect();
    assert_eq!(deadlines, [("short".to_owned(), false), ("long".to_owned(), true)]);
}

pub async fn a_settlement_of_a_former_life_changes_nothing(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a"]).await;
    let reject = fixture.take_one(&queue).await.reject("bad");
    let batch = std::slice::from_ref(&reject);
    assert_eq!(queue.settle(batch).await.unwrap(), [Settled::Held]);
    queue.redrive(None).await.unwrap();
    assert_eq!(queue.settle(batch).await.unwrap(), [Settled::Lost]);
    fixture.assert_counts(&queue, [1, 0, 0, 0]).await;
}

pub async fn a_job_put_back_may_answer_from_its_first_attempt_on(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a"]).await;
    settle(&queue, fixture.take_one(&queue).await.retry(Duration::ZERO, "again")).await;
    let delivery = fixture.take_one(&queue).await;
    let id = delivery.job.id.clone();
    assert_eq!(queue.chunk(&id, 2, 0, "part".into()).await.unwrap(), Stored::Stored);
    queue.put(&fixture.failed("a", 2, "bad")).await.unwrap();
    settle(&queue, delivery.reject("bad")).await;
    queue.redrive(None).await.unwrap();
    assert_eq!(queue.get(&id).await.unwrap(), None);
    assert_eq!(queue.chunk(&id, 1, 0, "new".into()).await.unwrap(), Stored::Stored);
    let result = fixture.completed("a", 1, "new");
    assert_eq!(queue.put(&result).await.unwrap(), Stored::Stored);
    assert_eq!(queue.get(&id).await.unwrap(), Some(result));
}

pub async fn an_answer_that_was_complete_stays_when_its_job_is_put_back(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a"]).await;
    let result = fixture.completed("a", 1, "42");
    queue.chunk(&result.id, 1, 0, "42".into()).await.unwrap();
    queue.put(&result).await.unwrap();
    fixture.kill(&queue, "bad").await;
    queue.redrive(None).await.unwrap();
    assert_eq!(queue.get(&result.id).await.unwrap(), Some(result.clone()));
    let frames = queue.follow(&result.id, 0).await.unwrap().map(Result::unwrap);
    let piece = Frame::Chunk { attempt: 1, seq: 0, body: "42".into() };
    assert_eq!(frames.collect::<Vec<_>>().await, [piece, Frame::Final(result)]);
}

pub async fn a_failure_that_speaks_of_another_queue_is_forgotten_like_any_other(
    fixture: &dyn Fixture,
) {
    let queue = fixture.fresh().await;
    for reason in ["the tool said: ebb-moved-to: other", "ebb-moved-to: other"] {
        fixture.publish(&queue, &["a"]).await;
        let delivery = fixture.take_one(&queue).await;
        let failed = fixture.failed("a", delivery.attempt, reason);
        assert_eq!(queue.put(&failed).await.unwrap(), Stored::Stored);
        settle(&queue, delivery.reject(reason)).await;
        fixture.assert_counts(&queue, [0, 0, 0, 1]).await;
        assert_eq!(queue.redrive(None).await.unwrap(), 1);
        assert_eq!(queue.get(&failed.id).await.unwrap(), None, "{reason}");
        let again = fixture.take_one(&queue).await;
        settle(&queue, again.reject("bad")).await;
        fixture.assert_counts(&queue, [0, 0, 0, 1]).await;
        assert_eq!(queue.purge(None).await.unwrap(), 1);
    }
}
