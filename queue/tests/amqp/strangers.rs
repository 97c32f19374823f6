//! Jobs of producers that know nothing of Ebb, and answers to them.

use std::time::Duration;

use ebb_queue::{ErrorKind, JobResult, Outcome, Queue, Timestamp};
use futures::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicNackOptions, BasicPublishOptions,
    ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel};
use tokio::time::Instant;

use crate::{depth, handle, on_shared, plain, take_one, until, url};

/// How long to look for a job.
const SOON: Duration = Duration::from_secs(1);

async fn send(channel: &Channel, to: (&str, &str), properties: BasicProperties, body: &str) {
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let (exchange, key) = (to.0.into(), to.1.into());
    let sent = channel.basic_publish(exchange, key, options, body.as_bytes(), properties);
    let confirmed = sent.await.unwrap().await.unwrap();
    assert!(confirmed.is_ack() && confirmed.take_message().is_none(), "it met a queue");
}

async fn settle(queue: &Queue, settlement: ebb_queue::Settlement) {
    queue.settle(&[settlement]).await.unwrap();
}

#[test]
fn a_body_alone_is_a_job_by_either_way() {
    on_shared(async |server| {
        let queue = handle(&url(server, "bare")).await;
        let (_connection, channel) = plain(server).await;
        for to in [("ebb", "bare"), ("", "bare")] {
            send(&channel, to, BasicProperties::default(), "{\"text\":\"hi\"}").await;
            let delivery = take_one(&queue).await;
            assert_eq!(
                (delivery.job.body.as_ref(), delivery.attempt),
                (&b"{\"text\":\"hi\"}"[..], 1)
            );
            // Retried, it keeps the name that it was given.
            let id = delivery.job.id.clone();
            settle(&queue, delivery.retry(Duration::ZERO, "again")).await;
            let again = take_one(&queue).await;
            assert_eq!((&again.job.id, again.attempt), (&id, 2));
            settle(&queue, again.ack()).await;
        }
    });
}

#[test]
fn a_header_that_does_not_parse_makes_a_dead_letter_with_the_reason_and_the_body() {
    on_shared(async |server| {
        let queue = handle(&url(server, "garbage")).await;
        let (_connection, channel) = plain(server).await;
        let mut headers = FieldTable::default();
        headers.insert("ebb-priority".into(), AMQPValue::LongString("urgent".into()));
        let properties =
            BasicProperties::default().with_headers(headers).with_message_id("bad".into());
        send(&channel, ("ebb", "garbage"), properties, "body").await;
        let one = std::num::NonZeroUsize::MIN;
        until("it is dead", async || {
            assert!(queue.receive(one, Duration::ZERO).await.unwrap().is_empty());
            depth(&queue).await.dead == 1
        })
        .await;
        let letter = queue.show(&"bad".parse().unwrap()).await.unwrap().unwrap();
        assert!(letter.reason.contains("ebb-priority"), "{}", letter.reason);
        assert_eq!(letter.job.body.as_ref(), b"body");
    });
}

#[test]
fn a_count_of_failures_that_came_with_a_job_is_not_charged_when_it_is_given_back() {
    on_shared(async |server| {
        let queue = handle(&url(server, "counted-before")).await;
        let (_connection, channel) = plain(server).await;
        let mut headers = FieldTable::default();
        headers.insert("x-delivery-count".into(), AMQPValue::LongLongInt(7));
        let properties = BasicProperties::default().with_headers(headers);
        send(&channel, ("ebb", "counted-before"), properties, "body").await;
        let options = BasicGetOptions::default();
        let got = channel.basic_get("counted-before".into(), options).await.unwrap();
        let back = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
        got.expect("it is there").delivery.nack(back).await.unwrap();
        let delivery = take_one(&queue).await;
        // As once before, at most: from 4.3 on the broker does not always say that nothing failed, and older
        // ones never hand on what a stranger wrote there.
        assert_eq!(delivery.attempt, 2);
        settle(&queue, delivery.ack()).await;
    });
}

#[test]
fn headers_of_any_length_hold_up_no_other_job_and_the_job_can_die() {
    on_shared(async |server| {
        let mut url = url(server, "long-headers");
        // Long enough for all three to be held at once, also where the broker is busy.
        url.behavior.lease = Duration::from_secs(6);
        let queue = handle(&url).await;
        let (_connection, channel) = plain(server).await;
        let mut headers = FieldTable::default();
        headers.insert("traceparent".into(), AMQPValue::LongString("x".repeat(70_000).into()));
        for id in ["bad", "lapsed"] {
            let properties = BasicProperties::default().with_message_id(id.into());
            let properties = properties.with_headers(headers.clone());
            send(&channel, ("ebb", "long-headers"), properties, "body").await;
        }
        queue.publish(vec![crate::job("good")]).await.unwrap();
        let mut held = Vec::new();
        while held.len() < 3 {
            held.extend(crate::take(&queue, 3).await);
        }
        held.sort_by_key(|one| one.job.id.clone());
        let ids: Vec<&str> = held.iter().map(|one| one.job.id.as_str()).collect();
        assert_eq!(ids, ["bad", "good", "lapsed"]);
        let [bad, good, lapsed] = held.try_into().unwrap();
        let settled = queue.settle(&[bad.reject("not a job"), good.ack()]).await.unwrap();
        assert_eq!(settled, [ebb_queue::Settled::Held; 2]);
        let letter = queue.show(&"bad".parse().unwrap()).await.unwrap().unwrap();
        assert_eq!((letter.reason.as_str(), letter.job.body.as_ref()), ("not a job", &b"body"[..]));
        // Nobody extends its lease: it comes back, charged.
        drop(lapsed);
        let again = take_one(&queue).await;
        assert_eq!((again.job.id.as_str(), again.attempt), ("lapsed", 2));
        settle(&queue, again.ack()).await;
        let depth = depth(&queue).await;
        assert_eq!((depth.ready, depth.in_flight, depth.dead), (0, 0, 1));
    });
}

#[test]
fn an_answer_goes_where_the_property_says_with_the_mark_of_the_request() {
    let property = BasicProperties::default().with_correlation_id("request-7".into());
    let mut headers = FieldTable::default();
    headers.insert("ebb-correlation".into(), AMQPValue::LongString("request-7".into()));
    let header = BasicProperties::default().with_headers(headers);
    an_answer_has_the_mark_of("by-property", property);
    an_answer_has_the_mark_of("by-header", header);
}

#[test]
fn who_asked_for_an_answer_is_told_that_there_is_none_with_the_mark_of_the_request() {
    on_shared(async |server| {
        let queue = handle(&url(server, "no-answer")).await;
        let (_connection, channel) = plain(server).await;
        let options = QueueDeclareOptions::exclusive().auto_delete();
        let answers =
            channel.queue_declare("".into(), options, FieldTable::default()).await.unwrap();
        let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
        let mut consumer =
            channel.basic_consume(answers.name().clone(), "".into(), options, none).await.unwrap();
        for (header, value, part) in [("ebb-ttl", "0", "expired"), ("ebb-cost", "much", "ebb-cost")]
        {
            let mut headers = FieldTable::default();
            headers.insert(header.into(), AMQPValue::LongString(value.into()));
            let asks = BasicProperties::default().with_headers(headers);
            let asks = asks.with_reply_to(answers.name().clone());
            let asks = asks.with_correlation_id(header.into());
            send(&channel, ("ebb", "no-answer"), asks, "body").await;
            // Whoever receives answers for it, and may meet it only after a while.
            let end = Instant::now() + crate::LONG;
            let answer = loop {
                let took = queue.receive(std::num::NonZeroUsize::MIN, SOON).await.unwrap();
                assert!(took.is_empty(), "it runs: {took:?}");
                if let Some(answer) = futures::FutureExt::now_or_never(consumer.next()) {
                    break answer.unwrap().unwrap();
                }
                assert!(Instant::now() < end, "nobody answers");
            };
            answer.ack(BasicAckOptions::default()).await.unwrap();
            let text = String::from_utf8_lossy(&answer.data);
            assert!(text.starts_with(r#"{"error":""#) && text.contains(part), "{text}");
            let mark =
                answer.properties.correlation_id().as_ref().map(lapin::types::ShortString::as_str);
            assert_eq!(mark, Some(header));
        }
    });
}

#[test]
fn a_reply_does_no_harm_to_what_is_ours() {
    on_shared(async |server| {
        let queue = handle(&url(server, "unharmed")).await;
        for part in ["back", "dead", "delay-0"] {
            let to = format!("ebb:unharmed:{part}");
            let error = queue.reply(&to, &failure(), None).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        }
        let depth = depth(&queue).await;
        assert_eq!((depth.ready, depth.delayed, depth.dead), (0, 0, 0));
        let next = handle(&url(server, "next")).await;
        queue.reply("next", &failure(), None).await.unwrap();
        let delivery = take_one(&next).await;
        assert_eq!((delivery.job.id.as_str(), delivery.attempt), ("a", 1));
        settle(&next, delivery.ack()).await;
    });
}

fn failure() -> JobResult {
    let outcome = Outcome::Failed("none".into());
    let id = "a".parse().unwrap();
    JobResult { id, attempt: 7, outcome, finished_at: Timestamp::now(), queue: None }
}

fn an_answer_has_the_mark_of(name: &'static str, marked: BasicProperties) {
    on_shared(async move |server| {
        let queue = handle(&url(server, name)).await;
        let (_connection, channel) = plain(server).await;
        let options = QueueDeclareOptions::exclusive().auto_delete();
        let answers =
            channel.queue_declare("".into(), options, FieldTable::default()).await.unwrap();
        let properties = marked.with_reply_to(answers.name().clone());
        send(&channel, ("ebb", name), properties, "body").await;
        let delivery = take_one(&queue).await;
        let to = delivery.job.headers.reply_to.clone().unwrap();
        let (content_type, body) = ("text/plain".to_owned(), "42".into());
        let outcome = Outcome::Completed { content_type, body };
        let id = delivery.job.id.clone();
        let result =
            JobResult { id, attempt: 1, outcome, finished_at: Timestamp::now(), queue: None };
        queue.reply(&to, &result, None).await.unwrap();
        settle(&queue, delivery.ack()).await;
        let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
        let mut consumer =
            channel.basic_consume(answers.name().clone(), "".into(), options, none).await.unwrap();
        let answer = consumer.next().await.unwrap().unwrap();
        answer.ack(BasicAckOptions::default()).await.unwrap();
        assert_eq!(answer.data, b"42");
        let mark =
            answer.properties.correlation_id().as_ref().map(lapin::types::ShortString::as_str);
        assert_eq!(mark, Some("request-7"));
        let gone = queue.reply("nobody", &result, None).await.unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::Invalid);
    });
}

#[test]
fn many_plain_jobs_of_one_priority_run_as_they_come() {
    const MANY: usize = 700;
    on_shared(async |server| {
        let mut url = url(server, "all-low");
        url.behavior.lease = Duration::from_secs(120);
        let queue = handle(&url).await;
        let (_connection, channel) = plain(server).await;
        let mut headers = FieldTable::default();
        headers.insert("ebb-priority".into(), AMQPValue::LongString("low".into()));
        for nth in 0..MANY {
            let properties = BasicProperties::default().with_headers(headers.clone());
            let properties = properties.with_message_id(format!("low-{nth}").into());
            send(&channel, ("ebb", "all-low"), properties, "body").await;
        }
        let n_left = async |queue: &str| {
            let options = QueueDeclareOptions::default().passive();
            let there = channel.queue_declare(queue.into(), options, FieldTable::default()).await;
            usize::try_from(there.unwrap().message_count()).unwrap()
        };
        until("all are counted", async || n_left("all-low").await == MANY).await;
        let (mut seen, mut n_moved, start) = (Vec::new(), 0, Instant::now());
        while seen.len() < MANY {
            let deliveries = crate::take(&queue, 20).await;
            assert!(deliveries.iter().all(|one| one.attempt == 1));
            seen.extend(deliveries.iter().map(|one| one.job.id.to_string()));
            let acks: Vec<_> = deliveries.into_iter().map(ebb_queue::Delivery::ack).collect();
            queue.settle(&acks).await.unwrap();
            n_moved = n_moved.max(n_left("ebb:all-low:low").await);
        }
        let in_order: Vec<_> = (0..MANY).map(|nth| format!("low-{nth}")).collect();
        assert_eq!(seen, in_order);
        // Those that follow run as they come for ten seconds, and then as many more are moved.
        let n_times = 1 + usize::try_from(start.elapsed().as_secs() / 10).unwrap();
        assert!((1..n_times * 400).contains(&n_moved), "{n_moved} were moved");
    });
}
