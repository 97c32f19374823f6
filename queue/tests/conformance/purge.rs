//! What waits can be deleted as a whole, and a job says where it is.

use std::time::Duration;

use ebb_queue::{Frame, JobId, JobResult, JobState, Queue, Result, Settled, Stored};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};

use crate::fixture::{Fixture, publish, settle, soon, words};

pub async fn what_waits_is_deleted_and_all_else_stays(fixture: &dyn Fixture) {
    let (queue, operator) = (fixture.fresh_patient().await, fixture.again("operator").await);
    fixture.publish(&queue, &["running", "dead", "retried", "released"]).await;
    let mut deliveries = fixture.take(&queue, 4).await.into_iter();
    let mut next = || deliveries.next().unwrap();
    let running = next();
    let settlements =
        [next().reject("bad"), next().retry(fixture.lease() * 9, "later"), next().release()];
    queue.settle(&settlements).await.unwrap();
    for priority in ["high", "normal", "low"] {
        publish(&queue, fixture.job(priority, &[("ebb-priority", priority)])).await;
    }
    publish(&queue, fixture.job("delayed", &[("ebb-delay", &words(fixture.far()))])).await;
    // It would die before its time comes.
    let short_lived =
        [("ebb-delay", &*words(fixture.far())), ("ebb-ttl", &words(fixture.far() / 2))];
    publish(&queue, fixture.job("doomed", &short_lived)).await;
    fixture.assert_counts(&queue, [4, 1, 3, 1]).await;
    assert_eq!(purge(&operator).await, 7);
    fixture.assert_counts(&queue, [0, 1, 0, 1]).await;
    fixture.assert_nothing_ready(&queue).await;
    assert_eq!(settle(&queue, running.ack()).await, Settled::Held);
    assert_eq!(queue.list(9).await.unwrap()[0].job.id.as_str(), "dead");
    assert_eq!(purge(&queue).await, 0);
}

pub async fn a_job_that_was_deleted_may_come_again_and_run(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let job = fixture.job("a", &[("ebb-key", "k")]);
    publish(&queue, job.clone()).await;
    let first = fixture.take_one(&queue).await;
    queue.chunk(&job.id, 1, 0, "old".into()).await.unwrap();
    settle(&queue, first.retry(Duration::ZERO, "again")).await;
    let second = fixture.take_one(&queue).await;
    queue.chunk(&job.id, 2, 0, "old".into()).await.unwrap();
    settle(&queue, second.retry(fixture.lease() * 9, "again")).await;
    fixture.assert_counts(&queue, [0, 0, 1, 0]).await;
    assert_eq!(purge(&queue).await, 1);
    for again in [job.clone(), fixture.job("b", &[("ebb-key", "k")])] {
        assert!(!publish(&queue, again.clone()).await.duplicate, "{} is new", again.id);
        let delivery = fixture.take_one(&queue).await;
        assert_eq!((delivery.attempt, &delivery.job), (1, &again));
        if again.id == job.id {
            settle(&queue, delivery.release()).await;
            fixture.assert_counts(&queue, [1, 0, 0, 0]).await;
            assert_eq!(purge(&queue).await, 1);
        } else {
            let result = fixture.completed("b", 1, "42");
            assert_eq!(queue.put(&result).await.unwrap(), Stored::Stored);
            assert_eq!(settle(&queue, delivery.ack()).await, Settled::Held);
        }
    }
}

pub async fn an_answer_of_a_later_life_is_taken_and_followed(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let id: JobId = "a".parse().unwrap();
    fixture.publish(&queue, &["a"]).await;
    settle(&queue, fixture.take_one(&queue).await.retry(Duration::ZERO, "again")).await;
    let second = fixture.take_one(&queue).await;
    queue.chunk(&id, 2, 0, "old".into()).await.unwrap();
    settle(&queue, second.retry(fixture.lease() * 9, "again")).await;
    fixture.assert_counts(&queue, [0, 0, 1, 0]).await;
    let mut followed = follow(&queue, "a", 1).await;
    assert_eq!(purge(&queue).await, 1);
    assert!(soon(&mut followed).await.is_none(), "nothing can come");
    fixture.publish(&queue, &["a"]).await;
    let mut followed = queue.follow(&id, 0).await.unwrap();
    let delivery = fixture.take_one(&queue).await;
    assert_eq!(queue.chunk(&id, 1, 0, "new".into()).await.unwrap(), Stored::Stored);
    let result = fixture.completed("a", 1, "new");
    assert_eq!(queue.put(&result).await.unwrap(), Stored::Stored);
    settle(&queue, delivery.ack()).await;
    let pieces: Vec<_> = followed.by_ref().try_collect().await.unwrap();
    assert_eq!(pieces.last(), Some(&Frame::Final(result)));
}

pub async fn who_follows_what_is_deleted_elsewhere_is_told(fixture: &dyn Fixture) {
    let (queue, other) = (fixture.fresh().await, fixture.again("client").await);
    publish(&queue, fixture.job("a", &[("ebb-delay", &words(fixture.far()))])).await;
    fixture.publish(&queue, &["b"]).await;
    let followed = [follow(&other, "a", 0).await, follow(&other, "b", 0).await];
    assert_eq!(purge(&queue).await, 2);
    for mut followed in followed {
        assert!(soon(&mut followed).await.is_none());
    }
}

pub async fn it_is_told_whose_bodies_lie_elsewhere(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let mut expected = Vec::new();
    for (name, headers) in
        [("ready", &[][..]), ("delayed", &[("ebb-delay", &*words(fixture.far()))])]
    {
        let key = format!("bodies/{name}");
        let headers: Vec<_> = headers.iter().copied().chain([("ebb-body-ref", &*key)]).collect();
        publish(&queue, fixture.job(name, &headers)).await;
        expected.push((key.clone(), name.to_owned()));
    }
    fixture.publish(&queue, &["whole"]).await;
    if let Some(mut plain) = fixture.plain().await {
        plain.send("plain", &[("Ebb-Body-Ref", "bodies/plain")]).await;
        expected.push(("bodies/plain".to_owned(), "plain".to_owned()));
    }
    let steps: Vec<_> = queue.purge_waiting().await.unwrap().try_collect().await.unwrap();
    let referring = steps.into_iter().flat_map(|step| step.referring);
    let mut told: Vec<_> = referring
        .map(|job| (job.headers.body_ref.unwrap(), String::from_utf8_lossy(&job.body).into_owned()))
        .collect();
    told.sort();
    expected.sort();
    assert_eq!(told, expected);
}

pub async fn what_is_known_of_a_job_that_has_gone_on_stays(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let gone_on = |name: &str| JobResult::moved(name.parse().unwrap(), "other", fixture.now());
    // Whoever passed them on was lost before it could say so; the other queue has need of the bodies.
    let names = ["fresh", "tried", "dead"];
    for name in names {
        publish(&queue, fixture.job(name, &[("ebb-body-ref", "bodies/it")])).await;
        assert_eq!(queue.put(&gone_on(name)).await.unwrap(), Stored::Stored);
    }
    let mut deliveries = fixture.take(&queue, 3).await.into_iter();
    let mut next = || deliveries.next().unwrap();
    let settlements = [next().release(), next().retry(Duration::ZERO, "lost"), next().reject("no")];
    queue.settle(&settlements).await.unwrap();
    fixture.assert_counts(&queue, [2, 0, 0, 1]).await;
    assert_eq!(queue.redrive(None).await.unwrap(), 1);
    fixture.assert_counts(&queue, [3, 0, 0, 0]).await;
    assert_eq!(purge(&queue).await, 3);
    for name in names {
        assert_eq!(queue.put(&gone_on(name)).await.unwrap(), Stored::Duplicate, "{name}");
    }
}

pub async fn more_than_a_step_is_deleted(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let delay = words(fixture.far());
    let headers = [("ebb-delay", &*delay)];
    let jobs = (0..1200).map(|nth| {
        let headers = if nth % 2 == 0 { &headers[..] } else { &[] };
        fixture.job(&format!("job-{nth}"), headers)
    });
    queue.publish(jobs.collect()).await.unwrap();
    fixture.assert_counts(&queue, [600, 0, 600, 0]).await;
    assert_eq!(purge(&queue).await, 1200);
    fixture.assert_counts(&queue, [0, 0, 0, 0]).await;
}

pub async fn what_plain_clients_published_is_deleted_too(fixture: &dyn Fixture) {
    let queue = fixture.fresh_patient().await;
    let Some(mut plain) = fixture.plain().await else { return };
    plain.send("a", &[("ebb-key", "k")]).await;
    plain.send("b", &[("ebb-priority", "low")]).await;
    // What repeats a job that runs leaves that one known.
    let running = fixture.take_one_of(&queue).await;
    assert_eq!(running.job.id.as_str(), "a");
    plain.send("a", &[("ebb-key", "k")]).await;
    fixture.assert_counts(&queue, [2, 1, 0, 0]).await;
    let mut followed = follow(&queue, "a", 0).await;
    assert_eq!(purge(&queue).await, 2);
    fixture.assert_counts(&queue, [0, 1, 0, 0]).await;
    let told = tokio::time::timeout(Duration::from_millis(300), followed.next()).await;
    assert!(told.is_err(), "it runs");
    assert_eq!(settle(&queue, running.ack()).await, Settled::Held);
    plain.send("b", &[]).await;
    assert_eq!(fixture.take_one(&queue).await.job.id.as_str(), "b");
}

pub async fn an_expired_job_is_a_dead_letter_and_not_deleted(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let (ttl, mailbox) = (words(fixture.short()), fixture.mailbox().await);
    let to = mailbox.iter().map(|mailbox| ("ebb-reply-to", &*mailbox.to));
    let headers: Vec<_> = to.chain([("ebb-ttl", &*ttl)]).collect();
    publish(&queue, fixture.job("late", &headers)).await;
    fixture.publish(&queue, &["patient"]).await;
    fixture.pass_by(fixture.short()).await;
    assert_eq!(purge(&queue).await, 1);
    fixture.assert_counts(&queue, [0, 0, 0, 1]).await;
    assert_eq!(queue.list(9).await.unwrap()[0].job.id.as_str(), "late");
    if let Some(mut mailbox) = mailbox {
        let mail = soon(&mut mailbox.mails).await.expect("somebody writes");
        assert_eq!(mail.headers.get("ebb-id").map(String::as_str), Some("late"), "{mail:?}");
    }
}

pub async fn a_job_says_where_it_is_as_far_as_its_broker_can_tell(fixture: &dyn Fixture) {
    let (queue, other) = (fixture.fresh().await, fixture.again("client").await);
    fixture.publish(&queue, &["done", "dead", "running", "left", "retried", "ready"]).await;
    publish(&queue, fixture.job("delayed", &[("ebb-delay", &words(fixture.far()))])).await;
    let mut deliveries = fixture.take(&queue, 5).await.into_iter();
    let mut next = || deliveries.next().unwrap();
    let settlements = [next().ack(), next().reject("bad")];
    let (running, left, retried) = (next(), next(), next());
    queue.settle(&settlements).await.unwrap();
    assert_eq!(left.attempt, 1);
    fixture.pass(fixture.short()).await;
    queue.extend(&[running.receipt().clone(), retried.receipt().clone()]).await.unwrap();
    fixture.pass_by(fixture.short()).await;
    queue.settle(&[retried.retry(fixture.lease() * 9, "later")]).await.unwrap();
    // Of a busy machine all that may have taken longer than its lease has left.
    queue.extend(&[running.receipt().clone()]).await.unwrap();
    use JobState::{Dead, Delayed, Done, Running, Unknown, Waiting};
    for (name, expected) in [
        ("done", Done),
        ("dead", Dead),
        ("running", Running),
        ("left", Waiting),
        ("retried", Delayed),
        ("ready", Waiting),
        ("delayed", Delayed),
        ("nobody", Unknown),
    ] {
        let state = other.state(&name.parse().unwrap()).await.unwrap();
        // A broker that cannot tell says so.
        assert_eq!(state.unwrap_or(expected), expected, "{name}");
    }
}

/// Follows a job that has nothing to tell, and has looked at it once.
async fn follow(queue: &Queue, name: &str, from_seq: u64) -> BoxStream<'static, Result<Frame>> {
    let mut followed = queue.follow(&name.parse().unwrap(), from_seq).await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(300), followed.next()).await;
    assert!(early.is_err(), "nothing is known yet");
    followed
}

async fn purge(queue: &Queue) -> u64 {
    let steps: Vec<_> = queue.purge_waiting().await.unwrap().try_collect().await.unwrap();
    assert!(steps.iter().all(|step| step.referring.is_empty()));
    steps.iter().map(|step| step.n_jobs).sum()
}
