//! A broker that fails is never taken for an empty queue.

use std::time::Duration;

use ebb_scaler::ScalerArgs;
use tokio::time::Instant;
use tonic::Code;

use crate::kit::{Kit, Mood, args, object, publish, said};

/// Waits until the observer has let go of the broken queue.
async fn noticed(kit: &Kit) {
    kit.broker.open.subscribe().wait_for(|n_open| *n_open == 0).await.unwrap();
}

#[tokio::test]
async fn the_last_known_good_counts_for_a_while_then_the_truth_is_unavailable() {
    let max_age = Duration::from_secs(2);
    let kit = Kit::start(ScalerArgs { max_age, ..args() }).await;
    let object = object(&[]);
    publish(&kit.queue(), 3).await;
    assert_eq!(kit.value(&object).await.unwrap().metric_value, 3);

    kit.broker.feel(Mood::Broken);
    noticed(&kit).await;
    let broken = Instant::now();
    let mut answers = 0;
    let told = loop {
        assert!(broken.elapsed() < Duration::from_secs(10), "the snapshot counts for ever");
        // Zero or inactive would be a lie that kills the pool.
        match kit.value(&object).await {
            Ok(value) => assert_eq!(value.metric_value, 3),
            Err(status) => break status,
        }
        match kit.is_active(&object).await {
            Ok(active) => assert!(active),
            Err(status) => break status,
        }
        answers += 1;
    };
    assert_eq!(told.code(), Code::Unavailable);
    assert!(told.message().contains("last seen"), "{told}");
    assert!(!told.message().contains("broken by the test"), "{told}");
    assert!(answers > 0, "the last known good was not used");

    kit.broker.feel(Mood::Well);
    let mended = Instant::now();
    loop {
        assert!(mended.elapsed() < Duration::from_secs(20), "the scaler does not come back");
        match kit.value(&object).await {
            Ok(value) => break assert_eq!(value.metric_value, 3),
            Err(status) => assert_eq!(status.code(), Code::Unavailable),
        }
    }
    kit.stop().await;
}

#[tokio::test]
async fn a_broker_that_was_never_there_is_told_in_time_for_keda() {
    for mood in [Mood::Broken, Mood::Hung] {
        let kit = Kit::start(args()).await;
        kit.broker.feel(mood);
        let asked = Instant::now();
        let value = kit.value(&object(&[])).await.unwrap_err();
        let active = kit.is_active(&object(&[])).await.unwrap_err();
        assert_eq!((value.code(), active.code()), (Code::Unavailable, Code::Unavailable));
        // KEDA's own limit for all three calls is 3 s.
        assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
        kit.stop().await;
    }
}

#[tokio::test]
async fn a_stream_outlives_an_outage_and_tells_what_came_after() {
    let max_age = Duration::from_millis(200);
    let kit = Kit::start(ScalerArgs { max_age, ..args() }).await;
    let mut stream = kit.stream(&object(&[])).await;
    assert_eq!(said(&mut stream).await, Some(false));
    kit.broker.feel(Mood::Broken);
    noticed(&kit).await;
    let broken = Instant::now();
    let told = loop {
        assert!(broken.elapsed() < Duration::from_secs(10), "the snapshot counts for ever");
        match kit.is_active(&object(&[])).await {
            Ok(active) => assert!(!active),
            Err(status) => break status,
        }
    };
    assert_eq!(told.code(), Code::Unavailable);
    publish(&kit.queue(), 1).await;
    kit.broker.feel(Mood::Well);
    assert_eq!(said(&mut stream).await, Some(true));
    assert!(*kit.broker.opened.borrow() >= 2);
    kit.stop().await;
}

#[tokio::test]
async fn a_stream_that_knows_nothing_says_nothing_until_it_does() {
    let kit = Kit::start(args()).await;
    kit.broker.feel(Mood::Broken);
    publish(&kit.queue(), 1).await;
    let mut stream = kit.stream(&object(&[])).await;
    // Told of a failed look, it still must not say that there is nothing.
    assert!(kit.is_active(&object(&[])).await.is_err());
    kit.broker.feel(Mood::Well);
    assert_eq!(said(&mut stream).await, Some(true));
    kit.stop().await;
}
