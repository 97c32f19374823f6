//! Who is lost, or late, between two steps of what belongs together.

use std::num::NonZeroUsize;
use std::time::Duration;

use async_nats::{HeaderMap, Subscriber};
use ebb_queue::{
    Cancelled, Failure, JobId, JobResult, OpenOptions, Outcome, Queue, QueueUrl, Settled,
    Timestamp, open,
};
use ebb_servers::Nats;
use futures::StreamExt;
use tokio::time::{Instant, timeout};

use crate::way::Way;
use crate::{LONG, job, on_each, receive, try_open, until};

const INBOX: &str = "answers.here";

fn id(name: &str) -> JobId {
    name.parse().unwrap()
}

/// Hears the replies that are sent from now on.
async fn listen(server: &Nats) -> Subscriber {
    let client = async_nats::connect(server.url()).await.unwrap();
    let replies = client.subscribe(INBOX).await.unwrap();
    client.flush().await.unwrap();
    replies
}

async fn assert_told(replies: &mut Subscriber, name: &str) {
    let reply = timeout(LONG, replies.next()).await.expect("it is told").unwrap();
    assert_eq!(reply.headers.unwrap().get("ebb-id").unwrap().as_str(), name);
}

async fn assert_silent(replies: &mut Subscriber) {
    let told = timeout(Duration::from_millis(300), replies.next()).await;
    assert!(told.is_err(), "{told:?}");
}

async fn assert_nothing_ready(queue: &Queue) {
    let found = queue.receive(NonZeroUsize::MIN, Duration::ZERO).await.unwrap();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn a_settlement_whose_end_was_lost_stores_nothing_twice_however_late_it_is_sent_again() {
    on_each(async |server| {
        let way = Way::to(server.port()).await;
        let at = |port: u16| {
            let mut url: QueueUrl = format!("nats://127.0.0.1:{port}?queue=old").parse().unwrap();
            // Sooner than a URL may ask for, so that the server soon forgets what was stored.
            url.behavior.key_ttl = Duration::from_secs(1);
            url
        };
        let options = || OpenOptions { worker: "w".to_owned(), ..OpenOptions::default() };
        let worker = open(&at(way.port), options()).await.unwrap();
        let other = open(&at(server.port()), options()).await.unwrap();
        other.publish(vec![job("a")]).await.unwrap();
        let back = [receive(&worker, 1).await.unwrap().remove(0).retry(Duration::ZERO, "again")];
        way.change("$JS.ACK.EBB", "$JS.NAY.EBB");
        worker.settle(&back).await.unwrap_err();
        way.change("$JS.NAY.EBB", "$JS.ACK.EBB");
        // A server forgets when it next looks.
        let client = async_nats::connect(server.url()).await.unwrap();
        let forgets = async || {
            let mut headers = HeaderMap::new();
            headers.insert("Nats-Msg-Id", "a 1");
            // It is not so, and nothing is stored.
            headers.insert("Nats-Expected-Last-Msg-Id", "none");
            let asked = client.request_with_headers("ebb.old.jobs", headers, "x".into());
            let told = String::from_utf8(asked.await.unwrap().payload.to_vec()).unwrap();
            assert!(told.contains("duplicate") || told.contains("10070"), "{told}");
            !told.contains("duplicate")
        };
        until("what was stored is forgotten", forgets).await;
        assert_eq!(worker.settle(&back).await.unwrap(), [Settled::Held]);
        let depth = other.depth().await.unwrap();
        assert_eq!((depth.ready, depth.in_flight), (1, 0));
        let again = receive(&worker, 9).await.unwrap();
        assert_eq!((again.len(), again[0].attempt), (1, 2));
    });
}

#[test]
fn the_end_of_a_job_that_nobody_had_is_told_though_who_stored_it_was_lost() {
    const LATE: Duration = Duration::from_secs(5);
    on_each(async |server| {
        let queue = try_open(&server.url()).await.unwrap();
        let mut replies = listen(&server).await;
        let failed = |name: &str, finished_at: Timestamp| {
            let outcome = Outcome::Failed(Failure::expired());
            JobResult { id: id(name), attempt: 0, outcome, finished_at, queue: None }
        };
        let (begin, now) = (Instant::now(), Timestamp::now());
        queue.put(&failed("long-ago", now - 2 * LATE)).await.unwrap();
        // So that it is not long ago for a while.
        queue.put(&failed("just-now", now + LATE * 4 / 5)).await.unwrap();
        for name in ["long-ago", "just-now"] {
            let mut job = job(name);
            job.headers.not_before = Some(now + Duration::from_secs(60));
            job.headers.deadline = Some(now + Duration::from_millis(200));
            job.headers.reply_to = Some(INBOX.to_owned());
            queue.publish(vec![job]).await.unwrap();
        }
        until("they have died", async || {
            assert_nothing_ready(&queue).await;
            queue.depth().await.unwrap().delayed == 0
        })
        .await;
        assert_nothing_ready(&queue).await;
        assert_told(&mut replies, "long-ago").await;
        // Whoever stored the other one may be about to tell it, unless this took so long.
        let early = timeout(Duration::from_millis(300), replies.next()).await;
        assert!(early.is_err() || begin.elapsed() >= LATE, "{early:?}");
        until("it is buried", async || {
            assert_nothing_ready(&queue).await;
            let depth = queue.depth().await.unwrap();
            (depth.ready, depth.delayed, depth.dead) == (0, 0, 2)
        })
        .await;
        if early.is_err() {
            assert_told(&mut replies, "just-now").await;
        }
        assert_silent(&mut replies).await;
    });
}

#[test]
fn the_reply_of_a_cancelled_job_is_sent_though_its_canceller_was_lost() {
    on_each(async |server| {
        let way = Way::to(server.port()).await;
        let lost = try_open(&format!("nats://127.0.0.1:{}", way.port)).await.unwrap();
        let queue = try_open(&server.url()).await.unwrap();
        let mut replies = listen(&server).await;
        let mut job = job("a");
        job.headers.reply_to = Some(INBOX.to_owned());
        queue.publish(vec![job]).await.unwrap();
        way.hold(INBOX, LONG);
        let name = id("a");
        tokio::select! {
            cancelled = lost.cancel(&name) => panic!("it was replied to: {cancelled:?}"),
            () = until("it is being replied to", async || !way.holds()) => {}
        }
        way.cut();
        assert_eq!(queue.cancel(&id("a")).await.unwrap(), Cancelled::Waiting);
        assert_told(&mut replies, "a").await;
        assert_eq!(queue.depth().await.unwrap().ready, 0);
        assert_silent(&mut replies).await;
    });
}

#[test]
fn a_job_that_dies_while_its_id_is_looked_up_is_not_handed_out() {
    const TTL: Duration = Duration::from_secs(1);
    on_each(async |server| {
        let way = Way::to(server.port()).await;
        let worker = try_open(&format!("nats://127.0.0.1:{}", way.port)).await.unwrap();
        let client = async_nats::connect(server.url()).await.unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("ebb-id", "a");
        headers.insert("ebb-ttl", "1s");
        client.request_with_headers("ebb.jobs.jobs", headers, "x".into()).await.unwrap();
        way.hold("ebb.jobs.keys.", 2 * TTL);
        assert_nothing_ready(&worker).await;
        assert!(!way.holds(), "it was looked up");
        let letters = worker.list(9).await.unwrap();
        assert_eq!((letters.len(), &*letters[0].reason), (1, "expired"));
        let result = worker.get(&id("a")).await.unwrap().unwrap();
        assert!(matches!(result.outcome, Outcome::Failed(_)), "{result:?}");
    });
}
