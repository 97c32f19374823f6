//! Servers that crash and connections that break lose nothing that was accepted.

use std::collections::HashSet;
use std::time::Duration;

use ebb_queue::{Delivery, ErrorKind, Queue};
use ebb_servers::{Persistence, Redis, RedisOptions};
use futures::StreamExt;

use crate::{answer, brief, eventually, handle, hush, job, plain, server, take, tell, url};

const JOBS: usize = 300;

/// Whatever the broker says meanwhile, works until the queue is empty.
async fn work(queue: Queue) {
    loop {
        let received = queue.receive(8.try_into().unwrap(), Duration::from_millis(200)).await;
        let Ok(deliveries) = received else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        for delivery in &deliveries {
            while queue.put(&answer(delivery)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        let acks: Vec<_> = deliveries.into_iter().map(Delivery::ack).collect();
        while queue.settle(&acks).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_and_comes_back_loses_nothing() {
    let options = RedisOptions { persistence: Persistence::Always, ..RedisOptions::default() };
    let mut server = Redis::start(options).await.unwrap();
    let url = brief(&server);
    let queue = handle(&url).await;
    queue.publish((0..JOBS).map(|nth| job(&nth.to_string())).collect()).await.unwrap();
    let worker = handle(&url).await;
    let working = tokio::spawn(work(worker.clone()));
    eventually("some are done", async || {
        queue.depth().await.is_ok_and(|depth| depth.ready < JOBS as u64 - 20)
    })
    .await;
    server.kill();
    eventually("the loss is noticed", async || !worker.link().is_up()).await;
    assert!(worker.link().n_losses() > 0 && worker.link().last_error().is_some());
    server.restart().await.unwrap();
    eventually("the link is back", async || worker.link().is_up()).await;
    eventually("all are done", async || {
        let depth = queue.depth().await;
        depth.is_ok_and(|depth| (depth.ready, depth.in_flight, depth.delayed) == (0, 0, 0))
    })
    .await;
    working.abort();
    let mut answered = HashSet::new();
    for nth in 0..JOBS {
        let id = nth.to_string().parse().unwrap();
        answered.insert(queue.get(&id).await.unwrap().map(|result| result.id));
    }
    assert!(!answered.contains(&None));
    assert_eq!((answered.len(), queue.depth().await.unwrap().dead), (JOBS, 0));
}

#[tokio::test]
async fn connections_that_are_cut_are_made_anew_and_listeners_told() {
    let server = server("").await;
    let queue = handle(&url(&server)).await;
    let mut told = queue.arrivals().await.unwrap();
    let mut admin = plain(&server).await;
    queue.publish(vec![job("a")]).await.unwrap();
    for kind in ["normal", "pubsub"] {
        let words = ["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"];
        assert!(tell::<u64>(&mut admin, &words).await.unwrap() > 0);
    }
    // Sent again by itself, since it has the effect of one.
    assert_eq!(queue.depth().await.unwrap().ready, 1);
    assert_eq!(queue.link().n_losses(), 1);
    assert!(queue.link().is_up());
    eventually("who listens is back", async || {
        tell::<String>(&mut admin, &["CLIENT", "LIST", "TYPE", "pubsub"])
            .await
            .unwrap()
            .contains("sub=1")
    })
    .await;
    hush(&mut told, Duration::from_millis(300)).await;
    handle(&url(&server)).await.publish(vec![job("b")]).await.unwrap();
    tokio::time::timeout(Duration::from_secs(30), told.next()).await.unwrap().unwrap();
    assert_eq!(take(&queue, 9, Duration::ZERO).await.len(), 2);
}

#[tokio::test]
async fn a_server_that_forgot_its_scripts_gets_them_again() {
    let server = server("").await;
    let queue = handle(&url(&server)).await;
    queue.publish(vec![job("a")]).await.unwrap();
    let mut admin = plain(&server).await;
    tell::<()>(&mut admin, &["SCRIPT", "FLUSH"]).await.unwrap();
    queue.publish(vec![job("b")]).await.unwrap();
    assert_eq!(queue.depth().await.unwrap().ready, 2);
}

#[tokio::test]
async fn a_server_that_is_gone_is_an_error_and_no_hang() {
    let mut server = server("").await;
    let queue = handle(&url(&server)).await;
    server.kill();
    let start = tokio::time::Instant::now();
    let error = queue.publish(vec![job("a")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let error = queue.depth().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    assert!(!queue.link().is_up());
}

#[tokio::test]
async fn a_server_that_stands_still_is_noticed_though_nobody_asks() {
    let server = server("").await;
    let queue = handle(&url(&server)).await;
    server.pause().unwrap();
    eventually("the silence is noticed", async || !queue.link().is_up()).await;
    server.resume().unwrap();
    eventually("the link is back", async || queue.link().is_up()).await;
    queue.publish(vec![job("a")]).await.unwrap();
}

#[tokio::test]
async fn a_step_of_a_purge_that_is_cut_off_is_told_and_not_sent_again() {
    let server = server("").await;
    let queue = handle(&url(&server)).await;
    let mut admin = plain(&server).await;
    queue.publish(vec![job("a")]).await.unwrap();
    let words = ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"];
    assert!(tell::<u64>(&mut admin, &words).await.unwrap() > 0);
    let cut: Vec<_> = queue.purge_waiting().await.unwrap().collect().await;
    let kinds: Vec<_> =
        cut.into_iter().map(|step| step.map_err(|error| error.kind()).err()).collect();
    assert_eq!(kinds, [Some(ErrorKind::Unavailable)], "what it deleted is not known");
    assert_eq!(queue.depth().await.unwrap().ready, 1, "the connection is made anew");
    let steps: Vec<_> = queue.purge_waiting().await.unwrap().collect().await;
    assert_eq!(steps.into_iter().map(|step| step.unwrap().n_jobs).sum::<u64>(), 1);
}
