//! Producers that know nothing of us: a subject, a body, and headers if they like.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, Context};
use ebb_queue::{ErrorKind, FailureKind, JobResult, Outcome, Priority, Queue, Timestamp};
use ebb_servers::Nats;

use crate::{job, on_each, receive, take, try_open, until};

async fn stranger(server: &Nats) -> Context {
    jetstream::new(async_nats::connect(server.url()).await.unwrap())
}

async fn one(queue: &Queue) -> ebb_queue::Delivery {
    let mut deliveries = receive(queue, 9).await.unwrap();
    assert_eq!(deliveries.len(), 1);
    deliveries.remove(0)
}

#[test]
fn a_bare_message_is_a_job_with_an_id_of_its_own() {
    on_each(async |server| {
        let queue = try_open(&server.url()).await.unwrap();
        let publisher = stranger(&server).await;
        let mut arrivals = queue.arrivals().await.unwrap();
        publisher.publish("ebb.jobs.jobs", "{}".into()).await.unwrap().await.unwrap();
        futures::StreamExt::next(&mut arrivals).await.unwrap();
        let delivery = one(&queue).await;
        assert_eq!((&*delivery.job.body, delivery.attempt), (&b"{}"[..], 1));
        assert!(delivery.job.id.as_str().starts_with("nats-"), "{}", delivery.job.id);
        let id = delivery.job.id.clone();
        // The same message has the same id wherever it goes.
        queue.settle(&[delivery.retry(Duration::ZERO, "again")]).await.unwrap();
        let again = one(&queue).await;
        assert_eq!((&again.job.id, again.attempt), (&id, 2));
        queue.settle(&[again.ack()]).await.unwrap();
        let depth = queue.depth().await.unwrap();
        assert_eq!((depth.ready, depth.in_flight), (0, 0));
    });
}

#[test]
fn headers_of_a_stranger_are_heeded() {
    on_each(async |server| {
        let queue = try_open(&server.url()).await.unwrap();
        let publisher = stranger(&server).await;
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", "order-7");
        headers.insert("Ebb-Ttl", "5m");
        headers.insert("Ebb-Priority", "high");
        headers.insert("Ebb-Delay", "300ms");
        // The delay begins when the server has it, so not before this.
        let begin = tokio::time::Instant::now();
        let sent = publisher.publish_with_headers("ebb.jobs.jobs", headers, "x".into()).await;
        sent.unwrap().await.unwrap();
        let delivery = one(&queue).await;
        assert!(begin.elapsed().as_millis() >= 290, "{:?}", begin.elapsed());
        assert_eq!(delivery.job.id.as_str(), "order-7");
        assert_eq!(delivery.job.headers.priority, Priority::High);
        let ttl = delivery.job.headers.deadline.unwrap().duration_since(delivery.job.enqueued_at);
        assert_eq!(ttl.as_secs(), 300);
    });
}

#[test]
fn headers_that_do_not_parse_make_a_dead_letter_that_keeps_the_body() {
    on_each(async |server| {
        let queue = try_open(&server.url()).await.unwrap();
        let publisher = stranger(&server).await;
        for (name, value) in [("ebb-priority", "urgent"), ("ebb-attempts", "many")] {
            let mut headers = HeaderMap::new();
            headers.insert(name, value);
            headers.insert("ebb-id", name);
            let sent = publisher.publish_with_headers("ebb.jobs.jobs", headers, name.into()).await;
            sent.unwrap().await.unwrap();
        }
        publisher.publish("ebb.jobs.jobs", "good".into()).await.unwrap().await.unwrap();
        assert_eq!(&*one(&queue).await.job.body, b"good");
        let letters = queue.list(9).await.unwrap();
        assert_eq!(letters.len(), 2);
        for (letter, name) in letters.iter().zip(["ebb-attempts", "ebb-priority"]) {
            assert!(letter.reason.contains(name), "{}", letter.reason);
            assert_eq!(&*letter.job.body, name.as_bytes());
        }
    });
}

#[test]
fn what_only_ebb_writes_beside_a_job_makes_no_job_of_a_plain_message() {
    const SAID: [(&str, &str); 3] = [
        ("ebb-attempts", "4294967295"),
        ("ebb-history", "[]"),
        ("ebb-place", "18446744073709551615"),
    ];
    on_each(async |server| {
        let queue = try_open(&server.url()).await.unwrap();
        let publisher = stranger(&server).await;
        for (name, value) in SAID {
            send(&publisher, "ebb.jobs.jobs", &[(name, value), ("ebb-id", name)]).await;
        }
        send(&publisher, "ebb.jobs.jobs", &[("ebb-id", "good")]).await;
        assert_eq!(one(&queue).await.job.id.as_str(), "good");
        let mut letters = queue.list(9).await.unwrap();
        letters.sort_by(|one, other| one.job.id.as_str().cmp(other.job.id.as_str()));
        assert_eq!(letters.len(), SAID.len());
        for (letter, (name, _)) in letters.iter().zip(SAID) {
            assert_eq!((letter.job.id.as_str(), letter.attempts), (name, 0));
            assert_eq!(letter.kind, FailureKind::Invalid);
            let words = format!("{name}: is written by Ebb itself; leave it out");
            assert_eq!(letter.reason, words);
        }
    });
}

#[test]
fn a_reply_goes_to_whoever_listens() {
    on_each(async |server| {
        let queue = try_open(&server.url()).await.unwrap();
        let client = async_nats::connect(server.url()).await.unwrap();
        let mut replies = client.subscribe("answers.here").await.unwrap();
        // The server has read the subscription when it answers this.
        client.request("$JS.API.INFO", "".into()).await.unwrap();
        let outcome = Outcome::Failed("no \"such\" model".into());
        let finished_at = Timestamp::now();
        let id = "a".parse().unwrap();
        let result = JobResult { id, attempt: 2, outcome, finished_at, queue: None };
        queue.reply("answers.here", &result, None).await.unwrap();
        let reply = futures::StreamExt::next(&mut replies).await.unwrap();
        assert_eq!(&*reply.payload, br#"{"error":"no \"such\" model","kind":"other"}"#);
        let headers = reply.headers.unwrap();
        let header = |name: &str| headers.get(name).unwrap().as_str().to_owned();
        assert_eq!((header("ebb-id"), header("ebb-attempt")), ("a".to_owned(), "2".to_owned()));
        assert_eq!(
            (header("ebb-outcome"), header("ebb-kind")),
            ("failed".to_owned(), "other".to_owned())
        );
        assert!(queue.reply("not a subject", &result, None).await.is_err());
    });
}

#[test]
fn a_reply_does_no_harm_to_what_is_ours_or_the_servers() {
    on_each(async |server| {
        let queue = try_open(&server.url()).await.unwrap();
        queue.publish(vec![job("waits")]).await.unwrap();
        let stored = answer("a", "the answer");
        queue.put(&stored).await.unwrap();
        let other = answer("b", "another");
        for to in ["$JS.API.STREAM.PURGE.EBB_JOBS_jobs", "ebb.jobs.results.a"] {
            let error = queue.reply(to, &other, None).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        }
        assert_eq!(queue.depth().await.unwrap().ready, 1);
        assert_eq!(queue.get(&stored.id).await.unwrap(), Some(stored));
    });
}

#[test]
fn a_reply_may_be_a_job_of_another_queue() {
    on_each(async |server| {
        let queue = try_open(&server.url()).await.unwrap();
        let next = try_open(&format!("{}?queue=next", server.url())).await.unwrap();
        queue.reply("ebb.next.jobs", &answer("a", "the answer"), None).await.unwrap();
        let delivery = one(&next).await;
        assert_eq!((delivery.job.id.as_str(), &*delivery.job.body), ("a", &b"the answer"[..]));
    });
}

fn answer(name: &str, text: &str) -> JobResult {
    let (content_type, body) = ("text/plain".to_owned(), text.to_owned().into());
    let outcome = Outcome::Completed { content_type, body };
    // To the millisecond, as it is stored.
    let finished_at = Timestamp::from_millisecond(1_900_000_000_000).unwrap();
    JobResult { id: name.parse().unwrap(), attempt: 1, outcome, finished_at, queue: None }
}

#[test]
fn a_moment_that_does_not_parse_has_come() {
    on_each(async |server| {
        let queue = try_open(&server.url()).await.unwrap();
        let publisher = stranger(&server).await;
        let subject = "ebb.jobs.jobs.later.soon.0";
        publisher.publish(subject, "odd".into()).await.unwrap().await.unwrap();
        assert_eq!(queue.depth().await.unwrap().ready, 1);
        let delivery = one(&queue).await;
        assert_eq!(&*delivery.job.body, b"odd");
        queue.settle(&[delivery.ack()]).await.unwrap();
        let depth = queue.depth().await.unwrap();
        assert_eq!((depth.ready, depth.delayed, depth.in_flight, depth.dead), (0, 0, 0, 0));
    });
}

#[test]
fn the_age_of_a_bare_message_is_seen() {
    on_each(async |server| {
        let queue = try_open(&server.url()).await.unwrap();
        let publisher = stranger(&server).await;
        publisher.publish("ebb.jobs.jobs", "{}".into()).await.unwrap().await.unwrap();
        let depth = queue.depth().await.unwrap();
        assert_eq!((depth.ready, depth.oldest_ready.is_some()), (1, true));
    });
}

async fn send(publisher: &Context, subject: &str, headers: &[(&str, &str)]) {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.insert(*name, *value);
    }
    let sent = publisher.publish_with_headers(subject.to_owned(), map, "{}".into()).await;
    sent.unwrap().await.unwrap();
}

#[test]
fn the_subject_of_a_priority_gives_it_to_a_message_that_names_none() {
    on_each(async |server| {
        let queue = try_open(&server.url()).await.unwrap();
        let publisher = stranger(&server).await;
        for lane in ["low", "high"] {
            send(&publisher, &format!("ebb.jobs.jobs.{lane}"), &[("ebb-id", lane)]).await;
        }
        send(&publisher, "ebb.jobs.jobs", &[("ebb-id", "normal")]).await;
        until("each is in its lane", async || {
            let by = queue.depth().await.unwrap().ready_by_priority.unwrap();
            (by.high, by.normal, by.low) == (1, 1, 1)
        })
        .await;
        let deliveries = take(&queue, 3).await;
        let seen: Vec<_> = deliveries.iter().map(|one| one.job.id.to_string()).collect();
        assert_eq!(seen, ["high", "normal", "low"]);
        // It keeps it when it is tried again.
        let again = deliveries.into_iter().map(|one| one.retry(Duration::ZERO, "again"));
        queue.settle(&again.collect::<Vec<_>>()).await.unwrap();
        let again = take(&queue, 3).await;
        let priorities: Vec<_> = again.iter().map(|one| one.job.headers.priority).collect();
        assert_eq!(priorities, [Priority::High, Priority::Normal, Priority::Low]);
    });
}

#[test]
fn many_plain_jobs_of_one_priority_run_as_they_come() {
    const MANY: usize = 700;
    on_each(async |server| {
        let queue = try_open(&server.url()).await.unwrap();
        let publisher = stranger(&server).await;
        for nth in 0..MANY {
            let id = format!("low-{nth}");
            send(&publisher, "ebb.jobs.jobs", &[("ebb-id", &id), ("ebb-priority", "low")]).await;
        }
        let (mut seen, begin) = (Vec::new(), tokio::time::Instant::now());
        while seen.len() < MANY {
            let deliveries = receive(&queue, 20).await.unwrap();
            assert!(deliveries.iter().all(|one| one.attempt == 1));
            seen.extend(deliveries.iter().map(|one| one.job.id.to_string()));
            let acks: Vec<_> = deliveries.into_iter().map(ebb_queue::Delivery::ack).collect();
            queue.settle(&acks).await.unwrap();
        }
        let in_order: Vec<_> = (0..MANY).map(|nth| format!("low-{nth}")).collect();
        assert_eq!(seen, in_order);
        let stream = publisher.get_stream("EBB_JOBS_jobs").await.unwrap();
        // Each that is moved is stored anew.
        let n_stored = stream.get_info().await.unwrap().state.last_sequence;
        let n_moved = n_stored - MANY as u64;
        // They run as they come for ten seconds, and then some are moved again.
        let most = 400 + 256 * (begin.elapsed().as_secs() / 10);
        assert!((1..most).contains(&n_moved), "{n_moved} were moved");
    });
}

#[test]
fn a_plain_job_whose_worker_is_lost_is_no_repetition_of_itself() {
    on_each(async |server| {
        let queue = try_open(&format!("{}?lease=1s", server.url())).await.unwrap();
        let publisher = stranger(&server).await;
        for id in ["a", "b"] {
            send(&publisher, "ebb.jobs.jobs", &[("ebb-id", id), ("ebb-key", "k")]).await;
        }
        drop(one(&queue).await);
        let again = one(&queue).await;
        assert_eq!((again.job.id.as_str(), again.attempt), ("a", 2));
        queue.settle(&[again.ack()]).await.unwrap();
        let depth = queue.depth().await.unwrap();
        assert_eq!((depth.ready, depth.in_flight, depth.dead), (0, 0, 0));
    });
}

#[test]
fn plain_jobs_and_published_ones_share_their_keys() {
    on_each(async |server| {
        let queue = try_open(&server.url()).await.unwrap();
        let publisher = stranger(&server).await;
        let with_key = |id: &str, key: &str| {
            let mut job = job(id);
            job.headers.key = Some(key.to_owned());
            job
        };
        queue.publish(vec![with_key("ours", "k")]).await.unwrap();
        send(&publisher, "ebb.jobs.jobs", &[("ebb-key", "k")]).await;
        send(&publisher, "ebb.jobs.jobs", &[("ebb-id", "theirs"), ("ebb-key", "l")]).await;
        let deliveries = take(&queue, 2).await;
        let seen: Vec<_> = deliveries.iter().map(|one| one.job.id.as_str()).collect();
        assert_eq!(seen, ["ours", "theirs"]);
        let published = queue.publish(vec![with_key("again", "l")]).await.unwrap();
        assert_eq!((published[0].id.as_str(), published[0].duplicate), ("theirs", true));
    });
}
