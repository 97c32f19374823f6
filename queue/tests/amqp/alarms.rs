//! A broker that takes no messages because it is short of memory.

use std::time::Duration;

use ebb_queue::{Address, Depth, ErrorKind, Queue, QueueUrl};
use ebb_servers::{RabbitMq, RabbitMqOptions};
use tokio::time::{sleep, timeout};

use crate::{LONG, depth, handle, job, take_one, until, url};

/// A share of the memory that is always in use, and the one of the default.
const NONE: &str = "0.00001";
const DEFAULT: &str = "0.4";

/// Sets how much memory may be in use before the broker takes no messages, as its operator would.
fn set_watermark(server: &RabbitMq, share: &str) {
    server.control(&["set_vm_memory_high_watermark", share]).unwrap();
}

/// Brings an alarm about, and waits until somebody else's queue is refused a job for it.
async fn alarm(server: &RabbitMq) {
    let other = handle(&url(server, "other")).await;
    set_watermark(server, NONE);
    until("the broker takes no messages", async || {
        let published = timeout(Duration::from_secs(3), other.publish(vec![job("refused")]));
        matches!(published.await, Ok(Err(error)) if error.to_string().contains("alarms"))
    })
    .await;
}

/// A queue on which no lease ends while a test runs.
fn patient(server: &RabbitMq) -> QueueUrl {
    let mut url = url(server, "alarm");
    url.behavior.lease = Duration::from_secs(120);
    url
}

fn figures(depth: &Depth) -> (u64, u64) {
    (depth.ready, depth.in_flight)
}

/// Looks as a scaler does, for longer than what is heard of others counts.
async fn looks(queue: &Queue, expected: (u64, u64)) {
    for _ in 0..8 {
        let (depth, workers) = tokio::join!(queue.depth(), queue.workers());
        assert_eq!(figures(&depth.unwrap()), expected);
        workers.unwrap();
        sleep(Duration::from_secs(1)).await;
    }
}

// What an operator does keeps its thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_an_alarm_what_waits_is_known_and_what_is_held_is_not_forgotten() {
    let server = RabbitMq::start(RabbitMqOptions::default()).await.unwrap();
    let url = patient(&server);
    let (scaler, worker, producer) = (handle(&url).await, handle(&url).await, handle(&url).await);
    producer.publish(["a", "b", "c"].map(job).to_vec()).await.unwrap();
    let held = take_one(&worker).await;
    until("it is heard", async || figures(&depth(&scaler).await) == (2, 1)).await;

    alarm(&server).await;
    looks(&scaler, (2, 1)).await;
    // A pool that wakes under the alarm can tell nobody what it takes.
    let late = handle(&url).await;
    let more = take_one(&late).await;
    looks(&scaler, (1, 2)).await;
    let last = take_one(&late).await;
    assert_eq!(figures(&depth(&scaler).await), (0, 3));
    // Who has heard nothing knows of what waits, and does not take silence for nothing.
    let deaf = handle(&url).await;
    assert_eq!(deaf.depth().await.unwrap_err().kind(), ErrorKind::Unavailable);
    worker.settle(&[held.ack()]).await.unwrap();
    assert!(depth(&scaler).await.in_flight >= 2);

    set_watermark(&server, DEFAULT);
    for _ in 0..40 {
        assert!(depth(&scaler).await.in_flight >= 2, "what is held is forgotten");
        sleep(Duration::from_millis(250)).await;
    }
    until("all is heard again", async || figures(&depth(&scaler).await) == (0, 2)).await;
    late.settle(&[more.ack(), last.ack()]).await.unwrap();
    until("nothing is left", async || figures(&depth(&scaler).await) == (0, 0)).await;
}

// What an operator does keeps its thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handle_that_is_opened_under_an_alarm_sees_what_waits_and_hears_once_it_is_over() {
    let server = RabbitMq::start(RabbitMqOptions::default()).await.unwrap();
    let url = patient(&server);
    let producer = handle(&url).await;
    producer.publish(vec![job("a")]).await.unwrap();
    alarm(&server).await;
    let scaler = handle(&url).await;
    looks(&scaler, (1, 0)).await;
    let held = take_one(&producer).await;
    looks(&scaler, (0, 1)).await;
    producer.settle(&[held.ack()]).await.unwrap();
    set_watermark(&server, DEFAULT);
    until("nothing is left", async || {
        scaler.depth().await.is_ok_and(|depth| figures(&depth) == (0, 0))
    })
    .await;
}

// What an operator does keeps its thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_answers_nothing_under_an_alarm_is_called_anew() {
    let server = RabbitMq::start(RabbitMqOptions::default()).await.unwrap();
    let mut url = patient(&server);
    if let Address::Amqp(address) = &mut url.address {
        // Not this is to end the connection.
        address.heartbeat = Duration::from_secs(300);
    }
    let queue = handle(&url).await;
    queue.publish(vec![job("a")]).await.unwrap();
    until("it is counted", async || depth(&queue).await.ready == 1).await;
    alarm(&server).await;
    // Only who publishes is told.
    let refused = timeout(Duration::from_secs(1), queue.publish(vec![job("b")])).await;
    assert!(!matches!(refused, Ok(Ok(_))), "it is stored");
    server.pause().unwrap();
    // On a busy machine it stands still a moment later.
    let silent = async {
        loop {
            if let Err(error) = queue.depth().await {
                return error;
            }
        }
    };
    let error = timeout(2 * LONG, silent).await.unwrap();
    server.resume().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    // What was asked for and not answered, as jobs that were to be handed over, goes with the connection.
    until("it is called anew", async || queue.link().n_losses() > 0 && queue.link().is_up()).await;
    set_watermark(&server, DEFAULT);
    until("what waits is counted", async || queue.depth().await.is_ok_and(|depth| depth.ready > 0))
        .await;
}

// What an operator does keeps its thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_ends_under_an_alarm_is_charged() {
    let server = RabbitMq::start(RabbitMqOptions::default()).await.unwrap();
    let (wedged, other) =
        (handle(&crate::brief(&server, "alarm")).await, handle(&patient(&server)).await);
    wedged.publish(vec![job("a")]).await.unwrap();
    until("it is counted", async || depth(&wedged).await.ready == 1).await;
    alarm(&server).await;
    let held = take_one(&wedged).await;
    // Nobody extends it, and it cannot be published again. How it is given back matters from 4.3 on only:
    // before, the broker charges whatever comes back.
    let again = take_one(&other).await;
    assert_eq!((again.job.id.as_str(), again.attempt), ("a", 2));
    drop(held);
    other.settle(&[again.ack()]).await.unwrap();
    set_watermark(&server, DEFAULT);
}
