//! What there is to do about a failure, where another version did not say it, or a client did.

use async_nats::HeaderMap;
use async_nats::jetstream::{self, Context};
use ebb_proto::ebb::v1;
use ebb_queue::{Failure, FailureKind, Queue};
use ebb_servers::Nats;
use prost::Message;

use crate::letters::{failed, letter};
use crate::{job, on_each, take, try_open, until};

async fn stranger(server: &Nats) -> Context {
    jetstream::new(async_nats::connect(server.url()).await.unwrap())
}

/// Stores a message, and waits until it is.
async fn store(client: &Context, subject: &str, headers: HeaderMap, body: Vec<u8>) {
    let subject = subject.to_owned();
    client.publish_with_headers(subject, headers, body.into()).await.unwrap().await.unwrap();
}

/// Takes the only job and has it die of something.
async fn let_die(queue: &Queue, failure: impl Into<Failure>) {
    let delivery = take(queue, 1).await.remove(0);
    queue.settle(&[delivery.reject(failure)]).await.unwrap();
}

#[test]
fn a_failed_result_of_an_older_version_is_of_no_known_kind() {
    on_each(async |server| {
        let queue = try_open(&server.url()).await.unwrap();
        let client = stranger(&server).await;
        for (id, kind) in [("a", ""), ("b", "of tomorrow")] {
            let mut message = v1::JobResult::decode(&*failed(id, FailureKind::Model).encode());
            let outcome = &mut message.as_mut().unwrap().outcome;
            let Some(v1::job_result::Outcome::Failed(failure)) = outcome else { panic!("{id}") };
            assert_eq!(std::mem::replace(&mut failure.kind, kind.to_owned()), "model");
            let body = message.unwrap().encode_to_vec();
            store(&client, &format!("ebb.jobs.results.{id}"), HeaderMap::new(), body).await;
            let result = queue.get(&id.parse().unwrap()).await.unwrap().unwrap();
            assert_eq!(result.outcome, failed(id, FailureKind::Other).outcome);
        }
    });
}

#[test]
fn a_dead_letter_of_an_older_version_is_of_no_known_kind_and_can_be_put_back() {
    on_each(async |server| {
        let queue = try_open(&server.url()).await.unwrap();
        let client = stranger(&server).await;
        queue.publish(vec![job("a")]).await.unwrap();
        let_die(&queue, Failure::invalid("no")).await;
        let letters = client.get_stream("EBB_DEAD_jobs").await.unwrap();
        let stored = letters.get_last_raw_message_by_subject("ebb.jobs.dead.a").await.unwrap();
        let mut headers = HeaderMap::new();
        for (name, values) in stored.headers.iter() {
            let text: &str = name.as_ref();
            if text != "ebb-kind" && text != "Nats-Msg-Id" {
                headers.insert(name.clone(), values[0].clone());
            }
        }
        assert_eq!(headers.len() + 2, stored.headers.len(), "{:?}", stored.headers);
        store(&client, "ebb.jobs.dead.a", headers, stored.payload.to_vec()).await;
        assert_eq!(letter(&queue).await, (FailureKind::Other, "no".to_owned()));
        assert_eq!(queue.redrive(None).await.unwrap(), 1);
        let_die(&queue, Failure::new(FailureKind::Model, "again")).await;
        assert_eq!(letter(&queue).await, (FailureKind::Model, "again".to_owned()));
    });
}

#[test]
fn a_kind_that_a_client_sends_with_its_job_is_not_taken_for_ours() {
    on_each(async |server| {
        let queue = try_open(&server.url()).await.unwrap();
        let client = stranger(&server).await;
        let kind = |kind: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("ebb-kind", kind);
            headers
        };
        store(&client, "ebb.jobs.jobs", kind("model"), b"x".to_vec()).await;
        let_die(&queue, "no").await;
        assert_eq!(letter(&queue).await, (FailureKind::Other, "no".to_owned()));
        queue.purge(None).await.unwrap();
        let mut late = kind("lost");
        late.insert("ebb-ttl", "0");
        late.insert("ebb-id", "late");
        store(&client, "ebb.jobs.jobs", late, b"x".to_vec()).await;
        until("it is dead", async || {
            let wait = std::time::Duration::ZERO;
            assert!(queue.receive(std::num::NonZeroUsize::MIN, wait).await.unwrap().is_empty());
            queue.depth().await.unwrap().dead == 1
        })
        .await;
        assert_eq!(letter(&queue).await.0, FailureKind::Expired);
        let result = queue.get(&"late".parse().unwrap()).await.unwrap().unwrap();
        assert_eq!(result.outcome.failure_kind(), Some(FailureKind::Expired));
    });
}

#[test]
fn the_kind_of_a_reply_is_not_that_of_the_job_it_becomes() {
    on_each(async |server| {
        let queue = try_open(&server.url()).await.unwrap();
        let next = try_open(&format!("{}?queue=next", server.url())).await.unwrap();
        let told = failed("a", FailureKind::Model);
        queue.reply("ebb.next.jobs", &told, None).await.unwrap();
        let_die(&next, "another").await;
        assert_eq!(letter(&next).await, (FailureKind::Other, "another".to_owned()));
        assert_eq!(next.get(&told.id).await.unwrap(), None);
    });
}
