//! Who listens for new jobs has a queue of its own beside the lanes, which gets a copy of each job: a
//! producer hears of the jobs alone.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use ebb_queue::{Queue, QueueUrl};
use ebb_servers::RabbitMq;
use futures::future::join_all;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Connection, ConnectionProperties};

use crate::{handle, on_shared, until, url};

/// Listens for a moment, again and again.
async fn come_and_go(queue: &Queue, is_over: &AtomicBool) {
    while !is_over.load(Relaxed) {
        drop(queue.arrivals().await.unwrap());
        tokio::task::yield_now().await;
    }
}

/// Begins to work and shuts down in order, again and again.
async fn open_and_close(url: &QueueUrl, is_over: &AtomicBool) {
    while !is_over.load(Relaxed) {
        let queue = handle(url).await;
        let arrivals = queue.arrivals().await.unwrap();
        queue.close().await.unwrap();
        drop((arrivals, queue));
    }
}

/// Publishes one job on each of so many channels, as a command does that publishes and ends; how many of
/// them the broker says that it did not take.
async fn publish_on_fresh_channels(server: &RabbitMq, queue: &str, n_jobs: usize) -> usize {
    let options = ConnectionProperties::default();
    let uri = format!("{}/%2f", server.url());
    let connection = Connection::connect(&uri, options).await.unwrap();
    let mut n_refused = 0;
    for _ in 0..n_jobs {
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let (exchange, key) = ("ebb".into(), queue.into());
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        let sent = channel.basic_publish(exchange, key, options, b"body", properties);
        n_refused += usize::from(sent.await.unwrap().await.unwrap().is_nack());
        channel.close(200, "done".into()).await.unwrap();
    }
    n_refused
}

/// How many jobs are refused that are stored, while so many producers publish and others do this.
async fn n_refused(server: &RabbitMq, url: &QueueUrl, others: impl AsyncFn(&AtomicBool)) -> usize {
    const EACH: usize = 150;
    const PRODUCERS: usize = 4;
    // It makes what is published to.
    let queue = handle(url).await;
    let is_over = AtomicBool::new(false);
    let publishing = async {
        let each = (0..PRODUCERS).map(|_| publish_on_fresh_channels(server, &url.queue, EACH));
        let n_refused: usize = join_all(each).await.into_iter().sum();
        is_over.store(true, Relaxed);
        n_refused
    };
    let (n_refused, ()) = tokio::join!(publishing, others(&is_over));
    until("all are stored", async || {
        queue.depth().await.is_ok_and(|depth| depth.ready == (PRODUCERS * EACH) as u64)
    })
    .await;
    n_refused
}

#[test]
fn a_job_that_is_stored_is_not_said_to_be_refused_for_a_listener_that_has_gone() {
    on_shared(async |server| {
        let url = url(server, "bells");
        let listeners: Vec<_> = join_all((0..4).map(|_| handle(&url))).await;
        let listening = async |is_over: &AtomicBool| {
            join_all(listeners.iter().map(|queue| come_and_go(queue, is_over))).await;
        };
        assert_eq!(n_refused(server, &url, listening).await, 0);
    });
}

#[test]
fn a_job_that_is_stored_is_not_said_to_be_refused_for_a_worker_that_shuts_down() {
    on_shared(async |server| {
        let url = url(server, "closing-bells");
        let working = async |is_over: &AtomicBool| {
            join_all((0..8).map(|_| open_and_close(&url, is_over))).await;
        };
        assert_eq!(n_refused(server, &url, working).await, 0);
    });
}
