//! What there is to do about a failure, where another version did not say it, or a client did.

use std::num::NonZeroUsize;
use std::time::Duration;

use ebb_queue::{Failure, FailureKind, Queue, Settled};
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel};

use crate::letters::{failed, letter};
use crate::{depth, handle, job, on_shared, plain, take_one, until, url};

/// Publishes a message, and waits until the broker has it.
async fn send(channel: &Channel, to: &str, properties: BasicProperties, body: &[u8]) {
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let sent = channel.basic_publish("".into(), to.into(), options, body, properties);
    let confirmed = sent.await.unwrap().await.unwrap();
    assert!(confirmed.is_ack() && confirmed.take_message().is_none(), "it met a queue");
}

fn headers(fields: &[(&str, &str)]) -> BasicProperties {
    let mut table = FieldTable::default();
    for (name, value) in fields {
        table.insert((*name).into(), AMQPValue::LongString((*value).into()));
    }
    BasicProperties::default().with_headers(table)
}

/// Takes the only job and has it die of something.
async fn let_die(queue: &Queue, failure: impl Into<Failure>) {
    let delivery = take_one(queue).await;
    assert_eq!(queue.settle(&[delivery.reject(failure)]).await.unwrap(), [Settled::Held]);
    one_is_dead(queue).await;
}

async fn one_is_dead(queue: &Queue) {
    until("it is dead", async || {
        assert!(queue.receive(NonZeroUsize::MIN, Duration::ZERO).await.unwrap().is_empty());
        depth(queue).await.dead == 1
    })
    .await;
}

#[test]
fn a_dead_letter_of_an_older_version_is_of_no_known_kind_and_can_be_put_back() {
    on_shared(async |server| {
        let queue = handle(&url(server, "old-letters")).await;
        let (_connection, channel) = plain(server).await;
        queue.publish(vec![job("a")]).await.unwrap();
        let_die(&queue, Failure::invalid("no")).await;
        let options = BasicGetOptions::default();
        let stored = channel.basic_get("ebb:old-letters:dead".into(), options).await.unwrap();
        let stored = stored.expect("it lies there").delivery;
        let mut older = FieldTable::default();
        for (name, value) in stored.properties.headers().as_ref().unwrap().inner() {
            if name.as_str() != "ebb-kind" {
                older.insert(name.clone(), value.clone());
            }
        }
        assert_eq!(
            older.inner().len() + 1,
            stored.properties.headers().as_ref().unwrap().inner().len()
        );
        let properties = stored.properties.clone().with_headers(older);
        send(&channel, "ebb:old-letters:dead", properties, &stored.data).await;
        stored.ack(BasicAckOptions::default()).await.unwrap();
        until("one is left", async || depth(&queue).await.dead == 1).await;
        assert_eq!(letter(&queue).await, (FailureKind::Other, "no".to_owned()));
        assert_eq!(queue.redrive(None).await.unwrap(), 1);
        let_die(&queue, Failure::new(FailureKind::Model, "again")).await;
        assert_eq!(letter(&queue).await, (FailureKind::Model, "again".to_owned()));
    });
}

#[test]
fn a_kind_that_a_client_sends_with_its_job_is_not_taken_for_ours() {
    on_shared(async |server| {
        let queue = handle(&url(server, "foreign-kinds")).await;
        let (_connection, channel) = plain(server).await;
        send(&channel, "foreign-kinds", headers(&[("ebb-kind", "model")]), b"x").await;
        let_die(&queue, "no").await;
        assert_eq!(letter(&queue).await, (FailureKind::Other, "no".to_owned()));
        queue.purge(None).await.unwrap();
        let late = headers(&[("ebb-kind", "lost"), ("ebb-ttl", "0")]);
        send(&channel, "foreign-kinds", late, b"x").await;
        one_is_dead(&queue).await;
        assert_eq!(letter(&queue).await.0, FailureKind::Expired);
    });
}

#[test]
fn the_kind_of_a_reply_is_not_that_of_the_job_it_becomes() {
    on_shared(async |server| {
        let queue = handle(&url(server, "tells-kinds")).await;
        let next = handle(&url(server, "hears-kinds")).await;
        let told = failed("a", FailureKind::Model);
        queue.reply("hears-kinds", &told, None).await.unwrap();
        let_die(&next, "another").await;
        assert_eq!(letter(&next).await, (FailureKind::Other, "another".to_owned()));
    });
}
