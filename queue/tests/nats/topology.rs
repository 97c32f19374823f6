//! What is on the server already is used as it is, or refused with what differs.

use async_nats::HeaderMap;
use async_nats::jetstream;
use async_nats::jetstream::stream::{Config, RetentionPolicy};
use ebb_queue::{Cancelled, ErrorKind, JobResult, Outcome, Timestamp};
use ebb_servers::{Nats, NatsOptions};

use crate::{block_on, job, on_each, receive, refusal, take, try_open, until};

#[test]
fn a_stream_that_does_not_fit_is_refused_with_what_differs() {
    on_each(async |server| {
        let context = jetstream::new(async_nats::connect(server.url()).await.unwrap());
        let stream = Config {
            name: "EBB_JOBS_jobs".to_owned(),
            subjects: vec!["ebb.jobs.jobs".to_owned()],
            retention: RetentionPolicy::Limits,
            ..Config::default()
        };
        context.create_stream(stream).await.unwrap();
        let error = refusal(&server.url()).await;
        assert_eq!(error.kind(), ErrorKind::Incompatible);
        let words = error.to_string();
        for part in ["EBB_JOBS_jobs", "retention", "\"workqueue\"", "ebb queue init"] {
            assert!(words.contains(part), "{part} in {words}");
        }
    });
}

#[test]
fn a_stream_of_jobs_that_was_lost_and_made_anew_gives_no_number_to_two_jobs() {
    on_each(async |server| {
        let client = async_nats::connect(server.url()).await.unwrap();
        let send = async |headers: HeaderMap| {
            client.request_with_headers("ebb.jobs.jobs", headers, "x".into()).await.unwrap();
        };
        let mut with_key = HeaderMap::new();
        with_key.insert("ebb-key", "k");
        let queue = try_open(&server.url()).await.unwrap();
        send(with_key.clone()).await;
        let done = take(&queue, 1).await.remove(0);
        let before = done.job.id.clone();
        queue.settle(&[done.ack()]).await.unwrap();
        let content_type = "text/plain".to_owned();
        let outcome = Outcome::Completed { content_type, body: "42".into() };
        let finished_at = Timestamp::now();
        let answer =
            JobResult { id: before.clone(), attempt: 1, outcome, finished_at, queue: None };
        queue.put(&answer).await.unwrap();

        jetstream::new(client.clone()).delete_stream("EBB_JOBS_jobs").await.unwrap();
        // It is made by another, and the first one goes on.
        try_open(&server.url()).await.unwrap();
        // The first one has the key of another, which had its number.
        send(with_key).await;
        send(HeaderMap::new()).await;
        let after = take(&queue, 1).await.remove(0).job.id;
        assert!(after.as_str().ends_with("-2"), "{after}");
        let first = after.as_str().strip_suffix("-2").unwrap();
        assert_ne!(format!("{first}-1"), before.as_str());
        // What has the number now is not what was meant.
        client.request("ebb.jobs.jobs.low", "x".into()).await.unwrap();
        let of_old = format!("{}-3", before.as_str().strip_suffix("-1").unwrap()).parse().unwrap();
        assert_eq!(queue.cancel(&of_old).await.unwrap(), Cancelled::Marked);
        until("it is left", async || queue.depth().await.unwrap().ready == 1).await;
        let published = queue.publish(vec![{
            let mut job = job("again");
            job.set("ebb-key", "k").unwrap();
            job
        }]);
        assert_eq!(published.await.unwrap()[0].id, before);
    });
}

#[test]
fn another_lease_than_the_queue_was_made_with_is_refused_by_its_option() {
    on_each(async |server| {
        try_open(&format!("{}?lease=30s", server.url())).await.unwrap();
        let error = refusal(&format!("{}?lease=60s", server.url())).await;
        assert_eq!(error.kind(), ErrorKind::Incompatible);
        assert!(error.to_string().contains("option lease"), "{error}");
    });
}

#[test]
fn a_body_over_the_limit_of_the_server_is_refused_and_stores_nothing() {
    block_on(async {
        let extra_config = "max_payload: 131072\n".to_owned();
        let options = NatsOptions { extra_config, ..NatsOptions::default() };
        let server = Nats::start(options).await.unwrap();
        let queue = try_open(&server.url()).await.unwrap();
        let limit = usize::try_from(queue.info().await.unwrap().max_body.unwrap()).unwrap();
        let sized = |name: &str, size: usize| {
            let mut job = job(name);
            job.body = vec![7; size].into();
            job
        };
        let error = queue.publish(vec![sized("a", 9), sized("b", limit + 1)]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(&limit.to_string()), "{error}");
        assert_eq!(queue.depth().await.unwrap().ready, 0);
        // One that just fits can fail and die with all that is written beside it.
        queue.publish(vec![sized("c", limit)]).await.unwrap();
        for attempt in 1..=9 {
            let mut deliveries = receive(&queue, 1).await.unwrap();
            let delivery = deliveries.remove(0);
            assert_eq!(delivery.attempt, attempt);
            let reason = "why ".repeat(2000);
            let settlement = if attempt < 9 {
                delivery.retry(std::time::Duration::ZERO, reason)
            } else {
                delivery.reject(reason)
            };
            queue.settle(&[settlement]).await.unwrap();
        }
        let letter = queue.list(1).await.unwrap().remove(0);
        assert_eq!((letter.job.body.len(), letter.attempts), (limit, 9));
    });
}

#[test]
fn a_server_without_jetstream_is_refused_with_the_remedy() {
    block_on(async {
        // A server that has JetStream, but not for this account.
        let extra_config = "accounts { plain { users: [{ user: u, password: p }] } }\n".to_owned();
        let options = NatsOptions { extra_config, ..NatsOptions::default() };
        let server = Nats::start(options).await.unwrap();
        let error = refusal(&server.url().replace("nats://", "nats://u:p@")).await;
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(error.to_string().contains("JetStream"), "{error}");
    });
}
