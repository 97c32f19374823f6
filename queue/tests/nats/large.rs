//! Messages of strangers that leave no room for what is written beside a job.

use std::time::Duration;

use async_nats::{Client, HeaderMap};
use ebb_queue::{Delivery, ErrorKind, Job, JobResult, Outcome, Queue, Settled, Timestamp};
use ebb_servers::{Nats, NatsOptions};

use crate::{VERSIONS, block_on, receive, take, try_open, until};

const MAX_PAYLOAD: usize = 131_072;

/// A server of each version that takes no message above [`MAX_PAYLOAD`].
fn on_each_small(test: impl AsyncFn(Queue, Client)) {
    for version in VERSIONS {
        block_on(async {
            let extra_config = format!("max_payload: {MAX_PAYLOAD}\n");
            let options = NatsOptions { version, extra_config, ..NatsOptions::default() };
            let server = Nats::start(options).await.unwrap();
            let queue = try_open(&server.url()).await.unwrap();
            test(queue, async_nats::connect(server.url()).await.unwrap()).await;
        });
    }
}

/// Fills a message to the last byte but so many; tells the length of its body.
async fn fill(client: &Client, header: Option<(&str, &str)>, n_left: usize) -> usize {
    let mut headers = HeaderMap::new();
    let mut n_bytes = MAX_PAYLOAD - n_left;
    if let Some((name, value)) = header {
        headers.insert(name, value);
        n_bytes -= "NATS/1.0\r\n: \r\n\r\n".len() + name.len() + value.len();
    }
    let body = vec![b'7'; n_bytes].into();
    let answer = if header.is_some() {
        client.request_with_headers("ebb.jobs.jobs", headers, body).await
    } else {
        client.request("ebb.jobs.jobs", body).await
    };
    assert!(answer.unwrap().payload.starts_with(b"{\"stream\""), "it is stored");
    n_bytes
}

async fn small(client: &Client) {
    client.request("ebb.jobs.jobs", "good".into()).await.unwrap();
}

async fn one(queue: &Queue) -> Delivery {
    let mut deliveries = receive(queue, 9).await.unwrap();
    assert_eq!(deliveries.len(), 1);
    deliveries.remove(0)
}

/// In flight, ready and dead.
async fn counts(queue: &Queue) -> [u64; 3] {
    let depth = queue.depth().await.unwrap();
    [depth.in_flight, depth.ready + depth.delayed, depth.dead]
}

#[test]
fn one_that_cannot_be_a_job_does_not_hold_up_the_others() {
    on_each_small(async |queue, client| {
        let n_bytes = fill(&client, Some(("ebb-priority", "urgent")), 0).await;
        for _ in 0..5 {
            small(&client).await;
        }
        let deliveries = take(&queue, 5).await;
        let acks: Vec<_> = deliveries.into_iter().map(Delivery::ack).collect();
        assert_eq!(queue.settle(&acks).await.unwrap(), [Settled::Held; 5]);
        let letter = queue.list(9).await.unwrap().remove(0);
        for part in ["ebb-priority", "cut", &n_bytes.to_string()] {
            assert!(letter.reason.contains(part), "{part} in {}", letter.reason);
        }
        assert!(letter.job.body.len() < n_bytes, "{}", letter.job.body.len());
        assert!(letter.job.body.len() > MAX_PAYLOAD / 2, "{}", letter.job.body.len());
        assert_eq!(counts(&queue).await, [0, 0, 1]);
    });
}

#[test]
fn one_that_is_rejected_dies_with_what_fits_of_its_body() {
    on_each_small(async |queue, client| {
        let n_bytes = fill(&client, None, 36).await;
        small(&client).await;
        let mut deliveries = take(&queue, 2).await;
        let good = deliveries.pop().unwrap();
        let settlements = [deliveries.remove(0).reject("no such thing"), good.ack()];
        assert_eq!(queue.settle(&settlements).await.unwrap(), [Settled::Held; 2]);
        assert_eq!(queue.settle(&settlements).await.unwrap(), [Settled::Held; 2]);
        let letter = queue.list(9).await.unwrap().remove(0);
        assert!(letter.reason.starts_with("no such thing"), "{}", letter.reason);
        assert!(letter.reason.contains(&n_bytes.to_string()), "{}", letter.reason);
        assert_eq!(counts(&queue).await, [0, 0, 1]);
        // Half a body is no job.
        assert_eq!(queue.redrive(None).await.unwrap(), 0);
        assert_eq!(counts(&queue).await, [0, 0, 1]);
        assert_eq!(queue.purge(None).await.unwrap(), 1);
    });
}

#[test]
fn a_letter_that_just_fits_holds_up_no_other_that_is_put_back() {
    on_each_small(async |queue, client| {
        // Among them are some whose letters have no room for another header.
        let n_left = (300..900).step_by(20);
        let n_jobs = n_left.len();
        for n_left in n_left {
            fill(&client, None, n_left).await;
        }
        small(&client).await;
        let rejects = take(&queue, n_jobs + 1).await.into_iter().map(|one| one.reject("no"));
        queue.settle(&rejects.collect::<Vec<_>>()).await.unwrap();
        let letters = queue.list(99).await.unwrap();
        let n_cut = letters.iter().filter(|letter| letter.reason.contains("cut")).count() as u64;
        let n_whole = letters.len() as u64 - n_cut;
        assert!(n_cut > 0 && n_whole > 1, "{n_cut} are cut, {n_whole} are whole");
        assert_eq!(queue.redrive(None).await.unwrap(), n_whole);
        assert_eq!(counts(&queue).await, [0, n_whole, n_cut]);
    });
}

#[test]
fn a_letter_of_an_older_version_that_cannot_be_put_back_keeps_what_is_known_of_its_job() {
    on_each_small(async |queue, client| {
        let at = Timestamp::now();
        let die = async |name: &str, n_more: usize, n_in_body: usize| {
            let mut headers = HeaderMap::new();
            headers.insert("ebb-id", name);
            headers.insert("ebb-enqueued-at", at.to_string());
            headers.insert("more", "7".repeat(n_more));
            let (to, body) = (format!("ebb.jobs.dead.{name}"), vec![b'7'; n_in_body].into());
            let answer = client.request_with_headers(to, headers, body).await.unwrap();
            assert!(answer.payload.starts_with(b"{\"stream\""), "{answer:?}");
            let outcome = Outcome::Failed("why".into());
            let id = name.parse().unwrap();
            queue.put(&JobResult { id, attempt: 1, outcome, finished_at: at, queue: None }).await
        };
        // One has too long a body, one too long headers.
        for (name, n_more, n_in_body) in
            [("body", 9, MAX_PAYLOAD - 150), ("headers", 65_535 - 150, 9), ("good", 9, 9)]
        {
            die(name, n_more, n_in_body).await.unwrap();
        }
        assert_eq!(queue.redrive(None).await.unwrap(), 1);
        assert_eq!(counts(&queue).await, [0, 1, 2]);
        for (name, is_known) in [("body", true), ("headers", true), ("good", false)] {
            let known = queue.get(&name.parse().unwrap()).await.unwrap();
            assert_eq!(known.is_some(), is_known, "{name}");
        }
    });
}

#[test]
fn all_that_a_worker_holds_is_in_flight_however_small_the_messages_of_its_server_are() {
    const MANY: usize = 4000;
    on_each_small(async |queue, _| {
        // Nobody waits until it is noted.
        let is_counted = async |expected: [u64; 3]| {
            until("each is counted", async || counts(&queue).await == expected).await;
        };
        let jobs = (0..MANY).map(|nth| Job::new(nth.to_string(), Timestamp::now()));
        queue.publish(jobs.collect()).await.unwrap();
        let held = take(&queue, MANY).await;
        is_counted([MANY as u64, 0, 0]).await;
        let acks: Vec<_> = held.into_iter().map(Delivery::ack).collect();
        queue.settle(&acks[1..]).await.unwrap();
        is_counted([1, 0, 0]).await;
        queue.settle(&acks[..1]).await.unwrap();
        is_counted([0, 0, 0]).await;
    });
}

#[test]
fn one_that_is_tried_again_comes_back_whole() {
    on_each_small(async |queue, client| {
        let n_bytes = fill(&client, None, 36).await;
        let first = one(&queue).await;
        let begin = tokio::time::Instant::now();
        let settlement = [first.retry(Duration::from_millis(700), "the first reason")];
        assert_eq!(queue.settle(&settlement).await.unwrap(), [Settled::Held]);
        // Settled again after a broken connection, it is as it was.
        assert_eq!(queue.settle(&settlement).await.unwrap(), [Settled::Held]);
        assert_eq!(counts(&queue).await, [0, 1, 0]);
        let second = one(&queue).await;
        assert!(begin.elapsed().as_millis() >= 650, "{:?}", begin.elapsed());
        assert_eq!((second.attempt, second.job.body.len()), (2, n_bytes));
        assert_eq!(queue.settle(&settlement).await.unwrap(), [Settled::Lost]);
        queue.settle(&[second.release()]).await.unwrap();
        let third = one(&queue).await;
        assert_eq!(third.job.body.len(), n_bytes);
        queue.settle(&[third.reject("the last reason")]).await.unwrap();
        let letter = queue.list(9).await.unwrap().remove(0);
        let whats: Vec<_> = letter.history.iter().map(|attempt| &*attempt.what).collect();
        assert_eq!((whats[0], whats[2]), ("the first reason", "the last reason"), "{whats:?}");
        assert!(whats[1].contains("given back"), "{whats:?}");
        assert_eq!(counts(&queue).await, [0, 0, 1]);
    });
}

#[test]
fn one_whose_time_has_not_come_waits_for_it_whole() {
    on_each_small(async |queue, client| {
        let begin = tokio::time::Instant::now();
        let n_bytes = fill(&client, Some(("ebb-delay", "900ms")), 36).await;
        let delivery = one(&queue).await;
        assert!(begin.elapsed().as_millis() >= 800, "{:?}", begin.elapsed());
        assert_eq!(delivery.job.body.len(), n_bytes);
        queue.settle(&[delivery.ack()]).await.unwrap();
        assert_eq!(counts(&queue).await, [0, 0, 0]);
    });
}

#[test]
fn headers_as_long_as_the_server_takes_leave_a_job_that_can_be_retried_and_die() {
    on_each_small(async |queue, client| {
        for n_left in [0, 30] {
            // JetStream takes 65535 bytes of headers, whatever max_payload is.
            let name = "traceparent";
            let frame = "NATS/1.0\r\n: \r\n\r\n".len() + name.len();
            let value = "x".repeat(usize::from(u16::MAX) - frame - n_left);
            let mut headers = HeaderMap::new();
            headers.insert(name, value.as_str());
            let sent = client.request_with_headers("ebb.jobs.jobs", headers, "body".into()).await;
            assert!(sent.unwrap().payload.starts_with(b"{\"stream\""), "it is stored");
            small(&client).await;
            let mut deliveries = take(&queue, 2).await;
            let (good, first) = (deliveries.pop().unwrap(), deliveries.pop().unwrap());
            let settlements = [first.retry(Duration::ZERO, "once more"), good.ack()];
            assert_eq!(queue.settle(&settlements).await.unwrap(), [Settled::Held; 2]);
            let second = one(&queue).await;
            assert_eq!(second.attempt, 2);
            let rejected = queue.settle(&[second.reject("no such thing")]).await.unwrap();
            assert_eq!(rejected, [Settled::Held]);
            let letter = queue.list(9).await.unwrap().remove(0);
            assert!(letter.reason.starts_with("no such thing"), "{}", letter.reason);
            assert_eq!(letter.job.body.as_ref(), b"body");
            assert_eq!(counts(&queue).await, [0, 0, 1]);
            queue.purge(None).await.unwrap();
        }
    });
}

#[test]
fn a_new_job_with_headers_that_leave_no_room_is_refused_with_their_length() {
    on_each_small(async |queue, _| {
        let with_body = |n_bytes: usize, body: String| {
            let correlation = "a".repeat(n_bytes);
            Job::from_message([("ebb-correlation", &*correlation)], body, Timestamp::now()).unwrap()
        };
        let job = |n_bytes| with_body(n_bytes, "body".to_owned());
        let long = "b".repeat(MAX_PAYLOAD - 32_768);
        for (job_too_long, says) in [
            (job(60_000), ["the headers of job", "49151 is the limit of NATS"]),
            // Each would fit with less beside it.
            (with_body(40_000, long), ["the headers of job", "beside a body of 98304"]),
            (with_body(9, "b".repeat(MAX_PAYLOAD)), ["the body of job", "has 131072 bytes"]),
        ] {
            let error = queue.publish(vec![job(9), job_too_long]).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
            let words = error.to_string();
            assert!(says.iter().all(|part| words.contains(part)), "{words}");
        }
        assert_eq!(counts(&queue).await, [0, 0, 0], "none of the batch is stored");
        queue.publish(vec![job(48_000)]).await.unwrap();
        let delivery = one(&queue).await;
        assert_eq!(queue.settle(&[delivery.reject("no")]).await.unwrap(), [Settled::Held]);
        assert_eq!(
            queue.list(9).await.unwrap()[0].job.headers.correlation,
            job(48_000).headers.correlation
        );
    });
}
