//! A job that somebody cancels is never run, never answered, and told of once.

use std::num::NonZeroUsize;
use std::time::Duration;

use ebb_queue::{
    Cancelled, Delivery, Frame, Job, JobId, JobResult, Outcome, Queue, Settled, Stored,
};
use futures::StreamExt;

use crate::fixture::{Fixture, extend, publish, settle, soon, words};

fn id(name: &str) -> JobId {
    name.parse().unwrap()
}

async fn cancel(queue: &Queue, name: &str) -> Cancelled {
    queue.cancel(&id(name)).await.unwrap()
}

/// RabbitMQ finds no job, and so cannot say where one was.
fn told(fixture: &dyn Fixture, exact: Cancelled) -> Cancelled {
    if fixture.kind() == "amqp" && exact.took_effect() { Cancelled::Marked } else { exact }
}

async fn assert_cancelled(queue: &Queue, name: &str) {
    let result = queue.get(&id(name)).await.unwrap().expect("it is told");
    assert_eq!(result.outcome, Outcome::Cancelled, "{name}");
}

/// Nothing is handed out, and nothing is left.
async fn assert_gone(fixture: &dyn Fixture, queue: &Queue) {
    // Where who receives removes it, one receive may come before it is seen.
    let look = async || {
        fixture.assert_nothing_ready(queue).await;
        fixture.counts(queue).await
    };
    assert_eq!(fixture.when(look, |seen| *seen == [0; 4]).await, [0; 4]);
}

pub async fn a_job_that_waits_never_runs(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a", "b", "c"]).await;
    assert_eq!(cancel(&queue, "b").await, told(fixture, Cancelled::Waiting));
    assert_cancelled(&queue, "b").await;
    // Whoever comes later, in a process that heard nothing of it.
    let late = fixture.again("late").await;
    fixture.assert_takes(&late, 9, &["a", "c"]).await;
    fixture.assert_counts(&late, [0, 2, 0, 0]).await;
}

pub async fn what_waits_falls_at_once(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a", "b"]).await;
    for name in ["a", "b"] {
        assert_eq!(cancel(&queue, name).await, Cancelled::Waiting);
    }
    fixture.assert_counts(&queue, [0, 0, 0, 0]).await;
}

pub async fn a_delayed_or_retried_job_never_runs(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let short = fixture.short();
    fixture.publish(&queue, &["retried"]).await;
    let delivery = fixture.take_one(&queue).await;
    settle(&queue, delivery.retry(short, "again")).await;
    let delay = words(short);
    publish(&queue, fixture.job("delayed", &[("ebb-delay", &delay)])).await;
    for name in ["retried", "delayed"] {
        assert_eq!(cancel(&queue, name).await, told(fixture, Cancelled::Waiting), "{name}");
    }
    fixture.pass_by(short * 2).await;
    assert_gone(fixture, &queue).await;
}

pub async fn a_released_job_never_runs(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a"]).await;
    let delivery = fixture.take_one(&queue).await;
    settle(&queue, delivery.release()).await;
    assert_eq!(cancel(&queue, "a").await, told(fixture, Cancelled::Waiting));
    assert_gone(fixture, &queue).await;
}

/// What a worker does that finds out: where the broker still holds the job for it, it ends it.
async fn let_go(queue: &Queue, delivery: Delivery) {
    let held = extend(queue, &delivery).await;
    assert_ne!(held, Settled::Lost);
    assert_eq!(settle(queue, delivery.ack()).await, held);
}

pub async fn who_runs_it_is_told_and_comes_too_late(fixture: &dyn Fixture) {
    let queue = fixture.fresh_patient().await;
    let worker = fixture.again("two").await;
    fixture.publish(&queue, &["a"]).await;
    let delivery = fixture.take_one(&worker).await;
    let mut told_of = worker.cancellations().await.unwrap();
    assert_eq!(cancel(&queue, "a").await, told(fixture, Cancelled::Running));
    assert_eq!(soon(&mut told_of).await, Some(id("a")));
    for late in [fixture.completed("a", 1, "42"), fixture.failed("a", 1, "no")] {
        assert_eq!(worker.put(&late).await.unwrap(), Stored::Duplicate);
    }
    let piece = worker.chunk(&id("a"), 1, 0, "piece".into()).await.unwrap();
    assert_eq!(piece, Stored::Stale);
    let_go(&worker, delivery).await;
    assert_cancelled(&queue, "a").await;
    assert_gone(fixture, &queue).await;
}

pub async fn however_it_is_settled_it_stays_cancelled(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    for (name, nth) in [("retry", 0), ("later", 1), ("release", 2)] {
        fixture.publish(&queue, &[name]).await;
        let delivery = fixture.take_one(&queue).await;
        assert_eq!(cancel(&queue, name).await, told(fixture, Cancelled::Running));
        let settlement = match nth {
            0 => delivery.retry(Duration::ZERO, "again"),
            1 => delivery.retry(fixture.short() / 2, "later"),
            _ => delivery.release(),
        };
        queue.settle(&[settlement]).await.unwrap();
        fixture.pass_by(fixture.short() / 2).await;
        assert_gone(fixture, &queue).await;
        assert_cancelled(&queue, name).await;
    }
}

pub async fn a_worker_that_is_lost_does_not_bring_it_back(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a"]).await;
    let delivery = fixture.take_one(&queue).await;
    assert_eq!(cancel(&queue, "a").await, told(fixture, Cancelled::Running));
    drop(delivery);
    fixture.pass_by(fixture.lease()).await;
    let none = fixture.when(
        async || {
            let nine = NonZeroUsize::new(9).unwrap();
            assert!(fixture.receive(&queue, nine, Duration::ZERO).await.is_empty());
            fixture.depth(&queue).await
        },
        |depth| depth.in_flight + depth.ready == 0,
    );
    let depth = none.await;
    assert_eq!((depth.ready, depth.in_flight, depth.dead), (0, 0, 0));
}

pub async fn what_has_ended_stays_as_it_is(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["done"]).await;
    let delivery = fixture.take_one(&queue).await;
    let answer = fixture.completed("done", 1, "42");
    queue.put(&answer).await.unwrap();
    // Also before it is acknowledged.
    assert_eq!(cancel(&queue, "done").await, Cancelled::Ended);
    settle(&queue, delivery.ack()).await;
    assert_eq!(cancel(&queue, "done").await, Cancelled::Ended);
    assert_eq!(queue.get(&id("done")).await.unwrap(), Some(answer));

    fixture.publish(&queue, &["dead"]).await;
    let failure = fixture.failed("dead", 1, "no");
    queue.put(&failure).await.unwrap();
    fixture.kill(&queue, "no").await;
    assert_eq!(cancel(&queue, "dead").await, Cancelled::Ended);
    assert_eq!(queue.get(&id("dead")).await.unwrap(), Some(failure));
    fixture.assert_counts(&queue, [0, 0, 0, 1]).await;
    // One that was put back is as any other.
    queue.redrive(None).await.unwrap();
    if fixture.kind() != "amqp" {
        assert!(cancel(&queue, "dead").await.took_effect());
        assert_gone(fixture, &queue).await;
    }
}

pub async fn a_failure_of_an_attempt_before_does_not_keep_it(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a"]).await;
    let lost = fixture.take_one(&queue).await;
    queue.put(&fixture.failed("a", 1, "no")).await.unwrap();
    assert_eq!(cancel(&queue, "a").await, Cancelled::Ended, "it is about to be buried");
    drop(lost);
    fixture.pass_by(fixture.lease()).await;
    let delivery = fixture.take_one(&queue).await;
    assert_eq!(delivery.attempt, 2);
    assert_eq!(cancel(&queue, "a").await, Cancelled::Running);
    let late = fixture.completed("a", 2, "42");
    assert_eq!(queue.put(&late).await.unwrap(), Stored::Duplicate);
    let_go(&queue, delivery).await;
    assert_cancelled(&queue, "a").await;
    assert_gone(fixture, &queue).await;
}

pub async fn to_cancel_twice_is_to_cancel_once(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a"]).await;
    let (name, again) = (id("a"), fixture.again("two").await);
    let (one, two) = tokio::join!(queue.cancel(&name), again.cancel(&name));
    let both = [one.unwrap(), two.unwrap()];
    let n_effects = both.iter().filter(|one| one.took_effect()).count();
    // On NATS the second may help the first to its end, and says so.
    let most = if fixture.kind() == "nats" { 2 } else { 1 };
    assert!((1..=most).contains(&n_effects), "{both:?}");
    assert_eq!(cancel(&queue, "a").await, Cancelled::Ended);
    assert_gone(fixture, &queue).await;
}

pub async fn a_job_that_is_not_known_is_not_cancelled(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    assert_eq!(cancel(&queue, "never").await, Cancelled::Unknown);
    assert_eq!(queue.get(&id("never")).await.unwrap(), None);
    fixture.publish(&queue, &["never"]).await;
    fixture.assert_takes(&queue, 9, &["never"]).await;
}

pub async fn its_id_and_its_key_are_known_as_those_of_a_job_that_is_done(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let job = |name| fixture.job(name, &[("ebb-key", "key")]);
    publish(&queue, job("a")).await;
    assert_eq!(cancel(&queue, "a").await, Cancelled::Waiting);
    for again in [job("a"), job("b")] {
        let published = publish(&queue, again).await;
        assert_eq!((published.id, published.duplicate), (id("a"), true));
    }
    assert_gone(fixture, &queue).await;
}

pub async fn who_follows_it_is_told(fixture: &dyn Fixture) {
    let queue = fixture.fresh_patient().await;
    fixture.publish(&queue, &["a"]).await;
    let delivery = fixture.take_one(&queue).await;
    let other = fixture.again("two").await;
    let mut frames = other.follow(&id("a"), 0).await.unwrap();
    queue.chunk(&id("a"), 1, 0, "piece".into()).await.unwrap();
    let first = soon(&mut frames).await.unwrap().unwrap();
    assert!(matches!(first, Frame::Chunk { .. }), "{first:?}");
    assert_eq!(cancel(&queue, "a").await, told(fixture, Cancelled::Running));
    let last = soon(&mut frames).await.unwrap().unwrap();
    let Frame::Final(JobResult { outcome, .. }) = last else { panic!("{last:?}") };
    assert_eq!(outcome, Outcome::Cancelled);
    assert!(frames.next().await.is_none());
    let_go(&queue, delivery).await;
}

pub async fn who_asked_for_a_reply_gets_one(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let Some(mut mailbox) = fixture.mailbox().await else { return };
    let job = |name| -> Job { fixture.job(name, &[("ebb-reply-to", &mailbox.to)]) };
    publish(&queue, job("a")).await;
    publish(&queue, job("b")).await;
    for name in ["a", "b"] {
        assert!(cancel(&queue, name).await.took_effect());
    }
    fixture.assert_nothing_ready(&queue).await;
    let mut told = Vec::new();
    for _ in 0..2 {
        let mail = soon(&mut mailbox.mails).await.unwrap();
        assert_eq!(mail.body, r#"{"error":"cancelled"}"#);
        if fixture.kind() != "sqlite" {
            assert_eq!(mail.headers["ebb-outcome"], "cancelled");
        }
        told.push(mail.headers["ebb-id"].clone());
    }
    told.sort();
    assert_eq!(told, ["a", "b"]);
}

/// Of one who cancels and one who answers at the same moment, one has said how the job ended.
pub async fn who_comes_first_says_how_it_ended(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let other = fixture.again("two").await;
    for nth in 0..20 {
        let name = format!("a-{nth}");
        fixture.publish(&queue, &[&name]).await;
        let delivery = fixture.take_one(&queue).await;
        let answer = fixture.completed(&name, 1, "42");
        let name_of_it = id(&name);
        let (cancelled, stored) = tokio::join!(other.cancel(&name_of_it), queue.put(&answer));
        let there = queue.get(&id(&name)).await.unwrap().unwrap().outcome;
        let is_cancelled = there == Outcome::Cancelled;
        assert_eq!(cancelled.unwrap().took_effect(), is_cancelled, "{name}");
        assert_eq!(stored.unwrap() == Stored::Stored, !is_cancelled, "{name}");
        let_go(&queue, delivery).await;
    }
    assert_gone(fixture, &queue).await;
}

/// Of one who cancels and one who receives at the same moment, either gets the job or nobody does.
pub async fn it_is_handed_out_before_it_is_cancelled_or_not_at_all(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let other = fixture.again("two").await;
    let one = NonZeroUsize::MIN;
    for nth in 0..20 {
        let name = format!("a-{nth}");
        fixture.publish(&queue, &[&name]).await;
        let name_of_it = id(&name);
        let (cancelled, taken) =
            tokio::join!(other.cancel(&name_of_it), queue.receive(one, Duration::ZERO));
        assert!(cancelled.unwrap().took_effect());
        for delivery in taken.unwrap() {
            let late = fixture.completed(&name, 1, "42");
            assert_eq!(queue.put(&late).await.unwrap(), Stored::Duplicate);
            let_go(&queue, delivery).await;
        }
        assert_cancelled(&queue, &name).await;
    }
    assert_gone(fixture, &queue).await;
}
