//! Who listens for new jobs has a queue of its own beside the lanes, which gets a copy of each job: a
//! producer hears of the jobs alone.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use ebb_queue::{Queue, QueueUrl};
use ebb_servers::RabbitMq;
use futures::StreamExt;
use futures::future::join_all;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection, ConnectionProperties};
use tokio::time::{Instant, sleep, timeout};

use crate::{LONG, handle, on_shared, plain, until, url};

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

/// Listens and is gone without a word, again and again.
async fn open_and_drop(url: &QueueUrl, is_over: &AtomicBool) {
    while !is_over.load(Relaxed) {
        let queue = handle(url).await;
        let arrivals = queue.arrivals().await.unwrap();
        drop((queue, arrivals));
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

#[test]
fn a_job_that_is_stored_is_not_said_to_be_refused_for_a_handle_that_is_dropped_while_it_listens() {
    on_shared(async |server| {
        let url = url(server, "dropped-bells");
        let leaving = async |is_over: &AtomicBool| {
            join_all((0..8).map(|_| open_and_drop(&url, is_over))).await;
        };
        assert_eq!(n_refused(server, &url, leaving).await, 0);
    });
}

#[test]
fn arrivals_end_when_their_handle_is_closed() {
    on_shared(async |server| {
        let queue = handle(&url(server, "no-more-bells")).await;
        let mut arrivals = queue.arrivals().await.unwrap();
        queue.close().await.unwrap();
        let ended = timeout(LONG, async { while arrivals.next().await.is_some() {} });
        assert!(ended.await.is_ok(), "they go on");
        let late = timeout(LONG, queue.arrivals());
        let mut late = late.await.unwrap().unwrap();
        assert_eq!(timeout(LONG, late.next()).await, Ok(None));
    });
}

#[test]
fn a_handle_that_works_and_listens_closes_within_the_time_that_whoever_ends_has_for_it() {
    // A worker gives it a second at least; a machine that is busy may be slow a few times.
    const BOUND: Duration = Duration::from_secs(1);
    on_shared(async |server| {
        let mut spans = Vec::new();
        while spans.len() < 5 && spans.iter().all(|span| *span >= BOUND) {
            let queue = handle(&url(server, "closing-soon")).await;
            let _arrivals = queue.arrivals().await.unwrap();
            queue.receive(std::num::NonZeroUsize::MIN, Duration::ZERO).await.unwrap();
            let start = Instant::now();
            queue.close().await.unwrap();
            spans.push(start.elapsed());
        }
        assert!(spans.iter().any(|span| *span < BOUND), "{spans:?}");
    });
}

#[test]
fn who_listens_is_told_again_of_a_job_that_the_broker_takes_a_while_to_store() {
    on_shared(async |server| {
        let queue = handle(&url(server, "slow-store")).await;
        let (_connection, channel) = plain(server).await;
        let mut arrivals = queue.arrivals().await.unwrap();
        let lane = "slow-store";
        // Without its lane the exchange passes on the copy alone.
        let none = FieldTable::default();
        channel.queue_unbind(lane.into(), "ebb".into(), lane.into(), none.clone()).await.unwrap();
        let (options, bare) = (BasicPublishOptions::default(), BasicProperties::default());
        let send = async |exchange: &str| {
            let (exchange, key) = (exchange.into(), lane.into());
            channel.basic_publish(exchange, key, options, b"x", bare.clone()).await.unwrap();
        };
        // The last word comes three seconds after the copy, so a machine that is slow has to begin again.
        for n_jobs in 1.. {
            let copied_at = Instant::now();
            send("ebb").await;
            sleep(Duration::from_secs(1)).await;
            send("").await;
            let is_stored = async || queue.depth().await.is_ok_and(|depth| depth.ready == n_jobs);
            until("it is stored", is_stored).await;
            // What was told before is known to be there as well.
            while let Ok(Some(())) = timeout(Duration::ZERO, arrivals.next()).await {}
            if copied_at.elapsed() < Duration::from_millis(2_500) {
                break;
            }
            assert!(n_jobs < 10, "the machine is too slow for this");
        }
        let told = timeout(Duration::from_secs(4), arrivals.next()).await;
        assert_eq!(told, Ok(Some(())), "nobody is told");
        channel
            .queue_bind(lane.into(), "ebb".into(), lane.into(), Default::default(), none)
            .await
            .unwrap();
    });
}
