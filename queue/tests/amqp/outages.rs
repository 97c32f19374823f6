//! A broker that goes away and comes back.

use std::collections::BTreeSet;

use ebb_queue::{ErrorKind, OpenOptions, Settled, Settlement, open};
use ebb_servers::{RabbitMq, RabbitMqOptions};

use crate::{LONG, answered, depth, handle, job, take, until, url};

#[tokio::test]
async fn no_job_is_lost_and_none_that_is_done_runs_again_when_the_broker_is_killed() {
    let mut server = RabbitMq::start(RabbitMqOptions::default()).await.unwrap();
    let queue = handle(&url(&server, "jobs")).await;
    let all: BTreeSet<String> = (0..40).map(|n| format!("job-{n}")).collect();
    queue.publish(all.iter().map(|name| job(name)).collect()).await.unwrap();
    let running = take(&queue, 10).await;
    let mut seen: BTreeSet<String> = running.iter().map(|one| one.job.id.to_string()).collect();
    let done = seen.clone();

    server.kill();
    until("the link is down", async || !queue.link().is_up()).await;
    let refused = queue.publish(vec![job("late")]).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    server.restart().await.unwrap();
    until("the link is up again", async || queue.link().is_up()).await;
    assert_eq!(queue.link().n_losses(), 1);

    // Their results are stored, but the broker has not heard of it.
    let acks: Vec<_> = running.into_iter().map(ebb_queue::Delivery::ack).collect();
    let settle = async || queue.settle(&acks).await.map_err(|unsettled| unsettled.error);
    let settled = answered(settle).await;
    assert!(settled.iter().all(|one| *one == Settled::Lost), "{settled:?}");
    while seen.len() < all.len() {
        let deliveries = take(&queue, 8).await;
        assert!(!deliveries.is_empty(), "of {} jobs came {}", all.len(), seen.len());
        for delivery in &deliveries {
            assert!(!done.contains(delivery.job.id.as_str()), "{} ran again", delivery.job.id);
        }
        seen.extend(deliveries.iter().map(|one| one.job.id.to_string()));
        let acks: Vec<_> = deliveries.into_iter().map(ebb_queue::Delivery::ack).collect();
        answered(async || queue.settle(&acks).await.map_err(|unsettled| unsettled.error)).await;
    }
    assert_eq!(seen, all);
    until("nothing is left", async || {
        // Those that were done are met by a receive, and acknowledged then.
        let eight = 8.try_into().unwrap();
        let none = answered(async || queue.receive(eight, std::time::Duration::ZERO).await).await;
        let depth = depth(&queue).await;
        none.is_empty() && (depth.ready, depth.in_flight) == (0, 0)
    })
    .await;
}

#[tokio::test]
async fn a_job_whose_holder_loses_the_broker_twice_is_charged_for_each_and_settled_once() {
    let mut server = RabbitMq::start(RabbitMqOptions::default()).await.unwrap();
    let queue = handle(&url(&server, "jobs")).await;
    queue.publish(vec![job("a")]).await.unwrap();
    let mut lost = Vec::new();
    for n_losses in 1..=2 {
        let held = take(&queue, 1).await.pop().unwrap();
        assert_eq!(held.attempt, n_losses);
        lost.push(held.release());
        server.kill();
        until("the link is down", async || !queue.link().is_up()).await;
        server.restart().await.unwrap();
        until("the link is up again", async || queue.link().is_up()).await;
        assert_eq!(queue.link().n_losses(), u64::from(n_losses));
    }
    let again = take(&queue, 1).await.pop().unwrap();
    assert_eq!(again.attempt, 3);
    let settle = async |settlements: &[Settlement]| {
        answered(async || queue.settle(settlements).await.map_err(|unsettled| unsettled.error))
            .await
    };
    // Neither session's words count in the third.
    assert_eq!(settle(&lost).await, [Settled::Lost; 2]);
    assert_eq!(depth(&queue).await.in_flight, 1);
    assert_eq!(settle(&[again.ack()]).await, [Settled::Held]);
    until("nothing is left", async || {
        let depth = depth(&queue).await;
        (depth.ready, depth.in_flight, depth.dead) == (0, 0, 0)
    })
    .await;
}

#[tokio::test]
async fn a_delay_ends_though_the_broker_was_down_in_between() {
    let mut server = RabbitMq::start(RabbitMqOptions::default()).await.unwrap();
    let queue = handle(&url(&server, "jobs")).await;
    let mut later = job("later");
    later.set("ebb-delay", "2s").unwrap();
    queue.publish(vec![later]).await.unwrap();
    server.restart().await.unwrap();
    until("the link is up again", async || queue.link().n_losses() > 0 && queue.link().is_up())
        .await;
    // On its way from one queue of the broker to another it is in neither, or seen in both.
    until("it is there, once", async || {
        queue.depth().await.is_ok_and(|depth| depth.ready + depth.delayed == 1)
    })
    .await;
    assert_eq!(take(&queue, 9).await[0].job.id.as_str(), "later");
}

#[tokio::test]
async fn a_broker_that_is_not_there_is_named_within_the_time_that_was_given() {
    let mut server = RabbitMq::start(RabbitMqOptions::default()).await.unwrap();
    server.kill();
    let connect_timeout = std::time::Duration::from_secs(2);
    let options = OpenOptions { connect_timeout, ..OpenOptions::default() };
    let start = tokio::time::Instant::now();
    let Err(error) = open(&url(&server, "jobs"), options).await else { panic!("nobody is there") };
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains(&server.port().to_string()), "{error}");
    assert!(start.elapsed() < LONG / 3, "{:?}", start.elapsed());
}
