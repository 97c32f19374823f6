//! Who follows a result sees its pieces as they come, in order, then the whole, then the end.

use bytes::Bytes;
use ebb_queue::{Behavior, Frame, JobId, Outcome, Queue, Result, Stored};
use futures::stream::BoxStream;

use crate::fixture::{Fixture, publish, settle, soon, words};

pub async fn the_pieces_come_in_order_then_the_result_then_the_end(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let mut frames = follow(&fixture.again("two").await, 0).await;
    for (seq, text) in (0..).zip(["one", "two", "three"]) {
        assert_eq!(chunk(&queue, 1, seq, text).await, Stored::Stored);
        assert_eq!(next(&mut frames).await, piece(1, seq, text));
    }
    let result = fixture.completed("a", 1, "one two three");
    queue.put(&result).await.unwrap();
    assert_eq!(next(&mut frames).await, Frame::Final(result));
    assert!(soon(&mut frames).await.is_none());
}

pub async fn who_comes_late_sees_it_all(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    chunk(&queue, 1, 0, "one").await;
    chunk(&queue, 1, 1, "two").await;
    let result = fixture.completed("a", 1, "one two");
    queue.put(&result).await.unwrap();
    let mut frames = follow(&fixture.again("two").await, 0).await;
    assert_eq!(next(&mut frames).await, piece(1, 0, "one"));
    assert_eq!(next(&mut frames).await, piece(1, 1, "two"));
    assert_eq!(next(&mut frames).await, Frame::Final(result));
    assert!(soon(&mut frames).await.is_none());
}

pub async fn who_saw_some_pieces_can_go_on_after_them(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    for (seq, text) in (0..).zip(["one", "two", "three"]) {
        chunk(&queue, 1, seq, text).await;
    }
    let mut frames = follow(&queue, 2).await;
    assert_eq!(next(&mut frames).await, piece(1, 2, "three"));
    chunk(&queue, 1, 3, "four").await;
    assert_eq!(next(&mut frames).await, piece(1, 3, "four"));
}

pub async fn a_result_without_pieces_ends_the_stream(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let mut frames = follow(&fixture.again("two").await, 0).await;
    let failed = fixture.failed("a", 2, "no");
    queue.put(&failed).await.unwrap();
    assert_eq!(next(&mut frames).await, Frame::Final(failed));
    assert!(soon(&mut frames).await.is_none());
}

pub async fn a_later_attempt_voids_what_earlier_ones_sent(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let mut early = follow(&queue, 0).await;
    chunk(&queue, 1, 0, "old").await;
    chunk(&queue, 1, 1, "older").await;
    assert_eq!(next(&mut early).await, piece(1, 0, "old"));
    assert_eq!(next(&mut early).await, piece(1, 1, "older"));
    assert_eq!(chunk(&queue, 2, 0, "new").await, Stored::Stored);
    assert_eq!(next(&mut early).await, piece(2, 0, "new"));
    let mut late = follow(&queue, 0).await;
    assert_eq!(next(&mut late).await, piece(2, 0, "new"));
}

pub async fn an_earlier_attempt_is_stale_once_a_later_one_has_sent(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    chunk(&queue, 2, 0, "new").await;
    assert_eq!(chunk(&queue, 1, 0, "old").await, Stored::Stale);
    assert_eq!(chunk(&queue, 1, 1, "old").await, Stored::Stale);
    assert_eq!(chunk(&queue, 2, 1, "more").await, Stored::Stored);
    let mut frames = follow(&queue, 0).await;
    assert_eq!(next(&mut frames).await, piece(2, 0, "new"));
    assert_eq!(next(&mut frames).await, piece(2, 1, "more"));
}

pub async fn a_piece_sent_again_is_a_duplicate_and_stays_as_it_was(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    chunk(&queue, 1, 0, "first").await;
    assert_eq!(chunk(&queue, 1, 0, "other").await, Stored::Duplicate);
    assert_eq!(next(&mut follow(&queue, 0).await).await, piece(1, 0, "first"));
}

pub async fn nothing_is_added_to_a_complete_result(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    chunk(&queue, 1, 0, "one").await;
    let result = fixture.completed("a", 1, "one");
    queue.put(&result).await.unwrap();
    assert_eq!(chunk(&queue, 1, 1, "more").await, Stored::Stale);
    assert_eq!(chunk(&queue, 2, 0, "again").await, Stored::Stale);
    let mut frames = follow(&queue, 1).await;
    assert_eq!(next(&mut frames).await, Frame::Final(result));
}

pub async fn a_result_voids_the_pieces_of_earlier_attempts(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    chunk(&queue, 1, 0, "old").await;
    let result = fixture.completed("a", 2, "new");
    queue.put(&result).await.unwrap();
    assert_eq!(next(&mut follow(&queue, 0).await).await, Frame::Final(result));
}

pub async fn a_job_given_back_midway_that_expires_has_a_failed_result(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let ttl = words(fixture.short());
    publish(&queue, fixture.job("a", &[("ebb-ttl", &ttl)])).await;
    let delivery = fixture.take_one(&queue).await;
    chunk(&queue, 1, 0, "one").await;
    chunk(&queue, 2, 0, "and on").await;
    let mut frames = follow(&fixture.again("two").await, 0).await;
    assert_eq!(next(&mut frames).await, piece(2, 0, "and on"));
    settle(&queue, delivery.release()).await;
    fixture.pass_by(fixture.short()).await;
    fixture.assert_nothing_ready(&queue).await;
    let Frame::Final(result) = next(&mut frames).await else { panic!("its pieces are void") };
    assert_eq!(result.outcome, Outcome::Failed(ebb_queue::Failure::expired()));
    assert_eq!(queue.get(&id()).await.unwrap(), Some(result.clone()));
    assert_eq!(next(&mut follow(&queue, 0).await).await, Frame::Final(result));
}

pub async fn a_result_that_was_forgotten_ends_the_stream(fixture: &dyn Fixture) {
    let behavior = fixture.behavior();
    let key_ttl = behavior.result_ttl * 2;
    let queue = fixture.fresh_with(Behavior { key_ttl, ..behavior.clone() }).await;
    fixture.publish(&queue, &["a"]).await;
    let delivery = fixture.take_one(&queue).await;
    queue.put(&fixture.completed("a", 1, "42")).await.unwrap();
    settle(&queue, delivery.ack()).await;
    fixture.pass(behavior.result_ttl + fixture.lag()).await;
    assert!(soon(&mut follow(&queue, 0).await).await.is_none());
}

pub async fn a_job_that_is_done_without_a_result_ends_the_stream(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a"]).await;
    let delivery = fixture.take_one(&queue).await;
    chunk(&queue, 1, 0, "one").await;
    let mut frames = follow(&queue, 0).await;
    assert_eq!(next(&mut frames).await, piece(1, 0, "one"));
    settle(&queue, delivery.ack()).await;
    assert!(soon(&mut frames).await.is_none());
}

pub async fn a_purge_ends_the_stream_of_a_dead_letter(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a"]).await;
    chunk(&queue, 1, 0, "one").await;
    let mut frames = follow(&queue, 0).await;
    assert_eq!(next(&mut frames).await, piece(1, 0, "one"));
    fixture.kill(&queue, "no").await;
    // It is still followed: the letter may be put back.
    chunk(&queue, 1, 1, "two").await;
    assert_eq!(next(&mut frames).await, piece(1, 1, "two"));
    assert_eq!(queue.purge(None).await.unwrap(), 1);
    assert!(soon(&mut frames).await.is_none());
}

async fn follow(queue: &Queue, from_seq: u64) -> BoxStream<'static, Result<Frame>> {
    queue.follow(&id(), from_seq).await.unwrap()
}

async fn next(frames: &mut BoxStream<'static, Result<Frame>>) -> Frame {
    soon(frames).await.expect("the stream goes on").unwrap()
}

async fn chunk(queue: &Queue, attempt: u32, seq: u64, text: &'static str) -> Stored {
    queue.chunk(&id(), attempt, seq, Bytes::from_static(text.as_bytes())).await.unwrap()
}

fn piece(attempt: u32, seq: u64, text: &'static str) -> Frame {
    Frame::Chunk { attempt, seq, body: Bytes::from_static(text.as_bytes()) }
}

fn id() -> JobId {
    "a".parse().unwrap()
}
