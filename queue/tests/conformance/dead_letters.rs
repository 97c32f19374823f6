//! A job that failed for good can be read, with all that happened to it, and deleted.

use std::time::Duration;

use ebb_queue::{Frame, JobId, JobResult, Queue, Stored};
use futures::StreamExt;

use crate::fixture::{Fixture, publish, settle, soon};

pub async fn a_rejected_job_is_kept_with_its_reason(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let job = fixture.job("a", &[("ebb-tenant", "lab"), ("ebb-cost", "3")]);
    publish(&queue, job.clone()).await;
    let before = fixture.now();
    fixture.pass(fixture.short() / 10).await;
    fixture.kill(&queue, "not json: expected value at line 1").await;
    fixture.pass(fixture.lease() * 2).await;
    fixture.assert_nothing_ready(&queue).await;
    let letter = fixture.again("two").await.show(&job.id).await.unwrap().unwrap();
    assert_eq!(letter.job, job);
    assert_eq!(letter.reason, "not json: expected value at line 1");
    assert_eq!(letter.attempts, 1);
    assert!(before < letter.died_at && letter.died_at < fixture.now());
    assert_eq!(letter.history[0].at, letter.died_at);
}

pub async fn only_dead_letters_are_shown(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a", "b", "c"]).await;
    settle(&queue, fixture.take(&queue, 1).await.remove(0).ack()).await;
    let running = fixture.take(&queue, 1).await;
    for name in ["a", "b", "c", "never-seen"] {
        assert!(queue.show(&name.parse().unwrap()).await.unwrap().is_none(), "{name}");
    }
    assert!(queue.list(9).await.unwrap().is_empty());
    assert_eq!(queue.purge(None).await.unwrap() + queue.redrive(None).await.unwrap(), 0);
    assert_eq!(running.len(), 1);
}

pub async fn the_newest_come_first_and_no_more_than_asked_for(fixture: &dyn Fixture) {
    let queue = three_dead(fixture).await;
    assert_eq!(listed(&queue, 9).await, ["c", "b", "a"]);
    assert_eq!(listed(&queue, 2).await, ["c", "b"]);
    assert!(listed(&queue, 0).await.is_empty());
}

pub async fn purge_deletes_the_named_ones_for_good(fixture: &dyn Fixture) {
    let queue = three_dead(fixture).await;
    let ids = ["b", "unknown", "b"].map(|name| name.parse::<JobId>().unwrap());
    assert_eq!(queue.purge(Some(&ids)).await.unwrap(), 1);
    assert_eq!(listed(&queue, 9).await, ["c", "a"]);
    assert_eq!(queue.purge(Some(&[])).await.unwrap(), 0);
    assert_eq!(queue.redrive(Some(&ids)).await.unwrap(), 0);
    fixture.assert_counts(&queue, [0, 0, 0, 2]).await;
}

pub async fn purge_of_all_spares_what_is_not_dead(fixture: &dyn Fixture) {
    let queue = three_dead(fixture).await;
    fixture.publish(&queue, &["d", "e"]).await;
    let running = fixture.take(&queue, 1).await.remove(0);
    assert_eq!(queue.purge(None).await.unwrap(), 3);
    fixture.assert_counts(&queue, [1, 1, 0, 0]).await;
    settle(&queue, running.ack()).await;
    assert_eq!(fixture.take_one(&queue).await.job.id.as_str(), "e");
}

pub async fn a_purged_job_that_comes_again_later_can_be_followed(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a"]).await;
    fixture.kill(&queue, "bad").await;
    assert_eq!(queue.purge(None).await.unwrap(), 1);
    // Whatever is remembered for a while is forgotten.
    fixture.pass_by(fixture.behavior().key_ttl).await;
    fixture.publish(&queue, &["a"]).await;
    let result = fixture.completed("a", 1, "42");
    let mut followed = queue.follow(&result.id, 0).await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(300), followed.next()).await;
    assert!(early.is_err(), "it waits for its worker");
    queue.put(&result).await.unwrap();
    assert_eq!(soon(&mut followed).await.unwrap().unwrap(), Frame::Final(result));
}

pub async fn a_purged_job_that_was_mended_is_not_answered_with_its_old_failure(
    fixture: &dyn Fixture,
) {
    let (queue, client) = (fixture.fresh().await, fixture.again("client").await);
    for meant in [None, Some("a".parse::<JobId>().unwrap())] {
        fixture.publish(&queue, &["a"]).await;
        let delivery = fixture.take_one(&queue).await;
        let id = delivery.job.id.clone();
        queue.chunk(&id, 1, 0, "old".into()).await.unwrap();
        assert_eq!(queue.put(&fixture.failed("a", 1, "bad")).await.unwrap(), Stored::Stored);
        settle(&queue, delivery.reject("bad")).await;
        fixture.assert_counts(&queue, [0, 0, 0, 1]).await;
        assert_eq!(queue.purge(meant.as_ref().map(std::slice::from_ref)).await.unwrap(), 1);
        assert_eq!(client.get(&id).await.unwrap(), None);
    }
    fixture.publish(&queue, &["a"]).await;
    let mended = fixture.take_one(&queue).await;
    let mut followed = client.follow(&mended.job.id, 0).await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(300), followed.next()).await;
    assert!(early.is_err(), "it waits for its worker");
    let failed_again = fixture.failed("a", 1, "worse");
    assert_eq!(queue.put(&failed_again).await.unwrap(), Stored::Stored);
    assert_eq!(soon(&mut followed).await.unwrap().unwrap(), Frame::Final(failed_again));
    settle(&queue, mended.reject("worse")).await;
}

pub async fn a_purge_leaves_the_record_that_a_dead_job_has_gone_on(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let gone_on = JobResult::moved("a".parse().unwrap(), "other", fixture.now());
    fixture.publish(&queue, &["a"]).await;
    assert_eq!(queue.put(&gone_on).await.unwrap(), Stored::Stored);
    fixture.kill(&queue, "lost").await;
    fixture.assert_counts(&queue, [0, 0, 0, 1]).await;
    assert_eq!(queue.purge(None).await.unwrap(), 1);
    assert_eq!(queue.put(&gone_on).await.unwrap(), Stored::Duplicate);
}

async fn three_dead(fixture: &dyn Fixture) -> Queue {
    let queue = fixture.fresh().await;
    for name in ["a", "b", "c"] {
        fixture.publish(&queue, &[name]).await;
        fixture.kill(&queue, "bad").await;
        fixture.pass(Duration::from_millis(10)).await;
    }
    queue
}

async fn listed(queue: &Queue, max: usize) -> Vec<String> {
    let letters = queue.list(max).await.unwrap();
    letters.iter().map(|letter| letter.job.id.to_string()).collect()
}
