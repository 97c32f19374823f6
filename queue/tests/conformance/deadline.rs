//! A job whose answer is worthless by now is not run: it is a dead letter that says so.

use ebb_queue::{Outcome, Queue, Settled};

use crate::fixture::{Fixture, publish, settle, words};

pub async fn an_expired_job_is_never_delivered(fixture: &dyn Fixture) {
    let queue = with_ttl(fixture, &[]).await;
    fixture.publish(&queue, &["b"]).await;
    fixture.pass_by(fixture.short()).await;
    fixture.assert_takes(&queue, 9, &["b"]).await;
    assert_died_of_its_deadline(&queue, 0).await;
}

pub async fn a_job_is_delivered_before_its_deadline(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    // Much longer than what passes: who looks a little late is not too late.
    let ttl = words(fixture.lease() * 2);
    publish(&queue, fixture.job("a", &[("ebb-ttl", &ttl)])).await;
    fixture.pass(fixture.short()).await;
    fixture.assert_takes(&queue, 9, &["a"]).await;
}

pub async fn an_expired_job_counts_as_dead_even_before_a_worker_meets_it(fixture: &dyn Fixture) {
    let queue = with_ttl(fixture, &[]).await;
    fixture.assert_counts(&queue, [1, 0, 0, 0]).await;
    fixture.pass_by(fixture.short()).await;
    fixture.assert_counts(&queue, [0, 0, 0, 1]).await;
    let depth = fixture.depth_when(&queue, |depth| depth.oldest_ready.is_none()).await;
    assert_eq!(depth.oldest_ready, None);
    assert_died_of_its_deadline(&queue, 0).await;
}

pub async fn an_operator_sees_an_expired_job_among_the_dead_letters(fixture: &dyn Fixture) {
    let queue = with_ttl(fixture, &[]).await;
    fixture.pass_by(fixture.short()).await;
    let id = "a".parse().unwrap();
    assert_eq!(queue.show(&id).await.unwrap().unwrap().reason, "expired");
    assert_eq!(queue.purge(Some(&[id])).await.unwrap(), 1);
    fixture.assert_counts(&queue, [0, 0, 0, 0]).await;
}

pub async fn a_job_that_expires_before_its_delay_ends_is_dead_from_then_on(fixture: &dyn Fixture) {
    let queue = with_ttl(fixture, &[("ebb-delay", &words(fixture.short() * 3 / 2))]).await;
    fixture.assert_counts(&queue, [0, 0, 1, 0]).await;
    fixture.assert_next_due(&queue, None).await;
    fixture.pass_by(fixture.short()).await;
    fixture.assert_counts(&queue, [0, 0, 0, 1]).await;
    fixture.assert_nothing_ready(&queue).await;
    assert_died_of_its_deadline(&queue, 0).await;
}

pub async fn a_job_that_runs_past_its_deadline_may_still_be_done(fixture: &dyn Fixture) {
    let queue = fixture.fresh_patient().await;
    publish_with_ttl(fixture, &queue, &[]).await;
    let delivery = fixture.take_one(&queue).await;
    fixture.pass_by(fixture.short()).await;
    fixture.assert_counts(&queue, [0, 1, 0, 0]).await;
    fixture.assert_nothing_ready(&queue).await;
    assert!(queue.list(9).await.unwrap().is_empty());
    assert_eq!(settle(&queue, delivery.ack()).await, Settled::Held);
    fixture.assert_counts(&queue, [0, 0, 0, 0]).await;
}

pub async fn a_job_that_is_retried_past_its_deadline_dies(fixture: &dyn Fixture) {
    let queue = with_ttl(fixture, &[]).await;
    let delivery = fixture.take_one(&queue).await;
    settle(&queue, delivery.retry(fixture.short() / 2, "again")).await;
    fixture.pass_by(fixture.short()).await;
    fixture.assert_nothing_ready(&queue).await;
    let history = assert_died_of_its_deadline(&queue, 1).await;
    assert_eq!(history, ["again"]);
}

pub async fn a_job_left_by_a_crash_past_its_deadline_dies_and_its_lease_is_lost(
    fixture: &dyn Fixture,
) {
    let queue = with_ttl(fixture, &[]).await;
    let delivery = fixture.take_one(&queue).await;
    fixture.pass(fixture.lease() * 2).await;
    fixture.assert_nothing_ready(&queue).await;
    let history = assert_died_of_its_deadline(&queue, 1).await;
    assert_eq!(history, ["lease expired, held by one"]);
    assert_eq!(settle(&queue, delivery.ack()).await, Settled::Lost);
    fixture.assert_counts(&queue, [0, 0, 0, 1]).await;
}

pub async fn an_answer_that_is_there_outlives_the_deadline(fixture: &dyn Fixture) {
    let queue = with_ttl(fixture, &[]).await;
    let delivery = fixture.take_one(&queue).await;
    let result = fixture.completed("a", 1, "42");
    queue.put(&result).await.unwrap();
    drop(delivery);
    fixture.pass_by(fixture.lease()).await;
    fixture.assert_nothing_ready(&queue).await;
    assert_eq!(queue.get(&result.id).await.unwrap(), Some(result));
}

pub async fn an_answered_job_left_by_a_crash_past_its_deadline_is_done(fixture: &dyn Fixture) {
    let queue = with_ttl(fixture, &[("ebb-key", "k"), ("ebb-cost", "2")]).await;
    let delivery = fixture.take_one(&queue).await;
    queue.put(&fixture.completed("a", 1, "42")).await.unwrap();
    fixture.pass_by(fixture.lease()).await;
    for _ in 0..2 {
        fixture.assert_counts(&queue, [0, 0, 0, 0]).await;
        fixture.assert_next_due(&queue, None).await;
        assert_eq!(fixture.depth(&queue).await.cost.unwrap_or_default(), 0.0);
        fixture.assert_nothing_ready(&queue).await;
        assert!(queue.list(9).await.unwrap().is_empty());
    }
    // Known for a while, like any job that is done.
    assert_eq!(settle(&queue, delivery.ack()).await, Settled::Held);
    assert!(publish(&queue, fixture.job("a", &[])).await.duplicate);
    assert!(publish(&queue, fixture.job("b", &[("ebb-key", "k")])).await.duplicate);
    fixture.pass(fixture.behavior().key_ttl).await;
    assert!(!publish(&queue, fixture.job("a", &[])).await.duplicate);
}

/// A queue with the job `a`, whose answer is worthless after a short while.
async fn with_ttl(fixture: &dyn Fixture, headers: &[(&str, &str)]) -> Queue {
    let queue = fixture.fresh().await;
    publish_with_ttl(fixture, &queue, headers).await;
    queue
}

async fn publish_with_ttl(fixture: &dyn Fixture, queue: &Queue, headers: &[(&str, &str)]) {
    let ttl = words(fixture.short());
    let headers = [headers, &[("ebb-ttl", &*ttl)]].concat();
    publish(queue, fixture.job("a", &headers)).await;
}

/// Returns what happened to it before.
async fn assert_died_of_its_deadline(queue: &Queue, attempts: u32) -> Vec<String> {
    let letters = queue.list(9).await.unwrap();
    let [letter] = &letters[..] else { panic!("one dead letter: {letters:?}") };
    assert_eq!((letter.job.id.as_str(), &*letter.reason), ("a", "expired"));
    assert_eq!(letter.attempts, attempts);
    let result = queue.get(&letter.job.id).await.unwrap().expect("a result says why");
    assert_eq!(result.outcome, Outcome::Failed(ebb_queue::Failure::expired()));
    letter.history.iter().map(|attempt| attempt.what.clone()).collect()
}
