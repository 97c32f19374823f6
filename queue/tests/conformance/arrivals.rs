//! Who listens is told when there is something new to see, from any process.

use std::time::Duration;

use ebb_queue::{Phase, Queue};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};

use crate::fixture::{Fixture, publish, settle, soon, words};
use crate::status::status;

pub async fn a_publish_is_told_to_every_listener(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let mut listeners = Vec::new();
    for _ in 0..3 {
        listeners.push(listen(&fixture.again("scaler").await).await);
    }
    for name in ["a", "b"] {
        fixture.publish(&queue, &[name]).await;
        for told in &mut listeners {
            soon(told).await.expect("the stream goes on");
        }
    }
    fixture.assert_counts(&queue, [2, 0, 0, 0]).await;
}

pub async fn what_was_published_before_it_is_heard_is_not_forgotten(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let mut told = listen(&fixture.again("scaler").await).await;
    fixture.publish(&queue, &["a", "b", "c"]).await;
    drop(fixture.take(&queue, 3).await);
    soon(&mut told).await.expect("the stream goes on");
}

pub async fn whatever_makes_a_job_ready_or_delayed_is_told(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let mut told = listen(&fixture.again("scaler").await).await;
    publish(&queue, fixture.job("a", &[("ebb-delay", &words(fixture.short()))])).await;
    soon(&mut told).await.expect("told of a delayed job");
    fixture.pass_by(fixture.short()).await;

    let delivery = fixture.take_one(&queue).await;
    quiet(&mut told).await;
    settle(&queue, delivery.release()).await;
    soon(&mut told).await.expect("told of a release");

    let delivery = fixture.take_one(&queue).await;
    quiet(&mut told).await;
    settle(&queue, delivery.retry(Duration::ZERO, "again")).await;
    soon(&mut told).await.expect("told of a retry");

    let delivery = fixture.take_one(&queue).await;
    quiet(&mut told).await;
    settle(&queue, delivery.retry(fixture.short(), "later")).await;
    soon(&mut told).await.expect("told of a retry with a delay");

    fixture.pass_by(fixture.short()).await;
    fixture.kill(&queue, "bad").await;
    quiet(&mut told).await;
    queue.redrive(None).await.unwrap();
    soon(&mut told).await.expect("told of a redrive");
}

pub async fn a_new_phase_of_a_worker_is_told(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let mut told = listen(&fixture.again("scaler").await).await;
    for phase in [Phase::Starting, Phase::Idle, Phase::Busy, Phase::Idle, Phase::Draining] {
        queue.report(&status(fixture, "one", phase)).await.unwrap();
        soon(&mut told).await.expect("told of a phase");
        quiet(&mut told).await;
    }
}

async fn listen(queue: &Queue) -> BoxStream<'static, ()> {
    queue.arrivals().await.unwrap()
}

/// Hears out what is told without cause or late.
async fn quiet(told: &mut BoxStream<'static, ()>) {
    tokio::time::sleep(Duration::from_millis(40)).await;
    while let Some(Some(())) = told.next().now_or_never() {}
}
