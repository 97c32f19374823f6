//! Who asked for a reply gets it where it waits, in the broker's own protocol.

use std::num::NonZeroUsize;
use std::time::Duration;

use ebb_queue::{Failure, JobResult, Outcome, Queue};

use crate::fixture::{Fixture, publish, settle, soon, words};
use crate::mail::{Mail, Mailbox};

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

pub async fn an_answer_is_sent_to_where_its_job_asked_for_it(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let Some(mut mailbox) = fixture.mailbox().await else { return };
    let queue_of_it = Some("jobs-canary".to_owned());
    let result = JobResult { queue: queue_of_it, ..fixture.completed("a", 2, "\u{0}\u{1f600}") };
    queue.reply(&mailbox.to, &result, Some(TRACE)).await.unwrap();
    let mail = assert_comes(fixture, &mut mailbox, &result).await;
    assert_eq!(mail.headers.get("traceparent").map(String::as_str), Some(TRACE), "{mail:?}");
    // Its own queue has nothing of it.
    fixture.assert_counts(&queue, [0, 0, 0, 0]).await;
}

pub async fn a_failure_is_sent_with_its_reason(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let Some(mut mailbox) = fixture.mailbox().await else { return };
    let result = fixture.failed("a", 3, "say \"why\"");
    queue.reply(&mailbox.to, &result, None).await.unwrap();
    assert_comes(fixture, &mut mailbox, &result).await;
}

pub async fn a_job_that_dies_waiting_is_told_of_once(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let Some(mailbox) = fixture.mailbox().await else { return };
    let ttl = words(fixture.short());
    let (delay, to) = (words(fixture.short() * 5 / 4), mailbox.to.clone());
    let asks = [
        ("ebb-ttl", &*ttl),
        ("ebb-reply-to", &*to),
        ("traceparent", TRACE),
        ("ebb-delay", &*delay),
    ];
    publish(&queue, fixture.job("a", &asks[..3])).await;
    publish(&queue, fixture.job("b", &asks)).await;
    // A place of the server's, or of Ebb's own.
    let forbidden = if fixture.kind() == "nats" { "$SYS.x" } else { "ebb:x:dead" };
    let job = fixture.job("c", &[("ebb-ttl", &*ttl), ("ebb-reply-to", forbidden)]);
    publish(&queue, job).await;
    fixture.pass_by(fixture.short() * 5 / 4).await;
    assert_die(fixture, &queue, 3).await;
    let failures = ["a", "b"].map(|id| fixture.failed(id, 0, "expired"));
    for mail in assert_told(fixture, &queue, mailbox, &failures).await {
        assert_eq!(mail.headers.get("traceparent").map(String::as_str), Some(TRACE), "{mail:?}");
    }
    for id in ["a", "b", "c"] {
        stored_failure(&queue, id, "expired").await;
    }
}

pub async fn a_job_whose_worker_was_lost_is_told_of_as_it_is_stored(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let Some(mailbox) = fixture.mailbox().await else { return };
    let ttl = words(fixture.lease() * 3 / 4);
    let asks = [("ebb-ttl", &*ttl), ("ebb-reply-to", &*mailbox.to)];
    // At once, so that all are taken before the first of them expires.
    let jobs = ["a", "b", "c", "d", "e", "f"].map(|id| fixture.job(id, &asks));
    queue.publish(jobs.into()).await.unwrap();
    let mut deliveries = fixture.take(&queue, 6).await;
    // Of these two it told nothing, and nothing at all of `b`; the last one went on to another queue.
    let (failed, completed) =
        (fixture.failed("a", 1, "say \"why\""), fixture.completed("c", 1, "42"));
    let gone_on = JobResult::moved("d".parse().unwrap(), "elsewhere", fixture.now());
    // These two wait once more.
    let (e, f) = (fixture.completed("e", 1, "43"), fixture.failed("f", 1, "untold"));
    for result in [&failed, &completed, &gone_on, &e, &f] {
        queue.put(result).await.unwrap();
    }
    for back in deliveries.drain(4..) {
        settle(&queue, back.retry(Duration::ZERO, "again")).await;
    }
    fixture.pass_by(fixture.lease()).await;
    assert_die(fixture, &queue, 4).await;
    let results = [failed, fixture.failed("b", 1, "expired"), completed, e, f];
    assert_told(fixture, &queue, mailbox, &results).await;
}

pub async fn a_message_that_is_no_job_is_told_to_where_it_asked(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let Some(mailbox) = fixture.mailbox().await else { return };
    let Some(mut plain) = fixture.plain().await else { return };
    plain.send("bad", &[("ebb-priority", "urgent"), ("ebb-reply-to", &mailbox.to)]).await;
    plain.send("worse", &[("ebb-reply-to", "no address")]).await;
    assert_die(fixture, &queue, 2).await;
    let failure = stored_failure(&queue, "bad", "ebb-priority: ").await;
    stored_failure(&queue, "worse", "ebb-reply-to: ").await;
    assert_eq!(failure.attempt, 0);
    assert_told(fixture, &queue, mailbox, &[failure]).await;
}

pub async fn a_plain_job_whose_worker_was_lost_before_it_replied_is_told_of_or_runs_again(
    fixture: &dyn Fixture,
) {
    let queue = fixture.fresh().await;
    let Some(mut mailbox) = fixture.mailbox().await else { return };
    let Some(mut plain) = fixture.plain().await else { return };
    plain.send("a", &[("ebb-reply-to", &mailbox.to)]).await;
    drop(fixture.take_one(&queue).await);
    let answer = fixture.completed("a", 1, "42");
    queue.put(&answer).await.unwrap();
    fixture.pass_by(fixture.lease()).await;
    let look = async || {
        for again in fixture.receive(&queue, NonZeroUsize::MIN, Duration::ZERO).await {
            // Who runs it tells what is stored.
            assert_eq!((again.job.id.as_str(), again.attempt), ("a", 2));
            queue.reply(&mailbox.to, &answer, None).await.unwrap();
            settle(&queue, again.ack()).await;
        }
        fixture.counts(&queue).await
    };
    assert_eq!(fixture.when(look, |seen| *seen == [0, 0, 0, 0]).await, [0, 0, 0, 0]);
    assert_comes(fixture, &mut mailbox, &answer).await;
}

/// The failure that is stored; its reason begins so.
async fn stored_failure(queue: &Queue, id: &str, begin: &str) -> JobResult {
    let result = queue.get(&id.parse().unwrap()).await.unwrap().expect("a result says why");
    let Outcome::Failed(failure) = &result.outcome else { panic!("{result:?}") };
    assert!(failure.reason.starts_with(begin), "{failure:?}");
    result
}

/// All of so many jobs die when workers look, two at the same moment.
async fn assert_die(fixture: &dyn Fixture, queue: &Queue, n_jobs: u64) {
    let (other, nine) = (fixture.again("two").await, NonZeroUsize::new(9).unwrap());
    let look = async || {
        let look = async |queue: &Queue| fixture.receive(queue, nine, Duration::ZERO).await;
        let (one, two) = tokio::join!(look(queue), look(&other));
        assert_eq!((one.len(), two.len()), (0, 0), "nothing is ready");
        fixture.counts(queue).await
    };
    let expected = [0, 0, 0, n_jobs];
    assert_eq!(fixture.when(look, |seen| *seen == expected).await, expected);
    assert_eq!(queue.list(9).await.unwrap().len() as u64, n_jobs);
}

/// These results are told, in any order, and nothing else is.
async fn assert_told(
    fixture: &dyn Fixture,
    queue: &Queue,
    mut mailbox: Mailbox,
    results: &[JobResult],
) -> Vec<Mail> {
    let mut mails = Vec::new();
    for _ in results {
        mails.push(soon(&mut mailbox.mails).await.expect("somebody writes"));
    }
    mails.sort_by_key(|mail| mail.headers.get("ebb-id").cloned());
    for (mail, result) in mails.iter().zip(results) {
        assert_is(fixture, mail, result);
    }
    let last = fixture.failed("last", 1, "no more");
    queue.reply(&mailbox.to, &last, None).await.unwrap();
    assert_comes(fixture, &mut mailbox, &last).await;
    mails
}

async fn assert_comes(fixture: &dyn Fixture, mailbox: &mut Mailbox, result: &JobResult) -> Mail {
    let mail = soon(&mut mailbox.mails).await.expect("somebody writes");
    assert_is(fixture, &mail, result);
    mail
}

fn assert_is(fixture: &dyn Fixture, mail: &Mail, result: &JobResult) {
    let (outcome, content_type, body) = match &result.outcome {
        Outcome::Completed { content_type, body } => ("completed", &**content_type, body.clone()),
        Outcome::Failed(Failure { kind, reason }) => {
            let body = serde_json::json!({ "error": reason, "kind": kind.word() });
            ("failed", "application/json", body.to_string().into())
        }
        Outcome::Cancelled => panic!("{result:?} is no end of a job that a worker had"),
    };
    assert_eq!(mail.body, body);
    let attempt = result.attempt.to_string();
    let (id, kind) = (result.id.as_str(), fixture.kind());
    let expected = [("ebb-id", id), ("content-type", content_type)];
    // On the embedded queue a reply is a job, which has no attempt yet.
    let of_a_message = [("ebb-attempt", &*attempt), ("ebb-outcome", outcome)];
    let of_a_worker = result.queue.as_deref().map(|queue| ("ebb-queue", queue));
    let of_a_message = of_a_message.into_iter().chain(of_a_worker);
    let of_a_message = of_a_message.filter(|_| kind != "sqlite");
    for (name, value) in expected.into_iter().chain(of_a_message) {
        assert_eq!(mail.headers.get(name).map(String::as_str), Some(value), "{name}: {mail:?}");
    }
}
