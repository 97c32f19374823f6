//! A broker that fails is never taken for an empty queue.

use std::time::Duration;

use ebb_proto::keda::ScaledObjectRef;
use ebb_scaler::ScalerArgs;
use tokio::time::Instant;
use tonic::Code;

use crate::kit::{Kit, Mood, args, object, page_says, publish, said};

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
    assert_eq!(kit.known_value(&object).await, 3);
    let mut answers = 0;
    // A machine that stalls for as long as the last look counts gets another outage.
    for _ in 0..3 {
        if answers == 0 {
            kit.broker.feel(Mood::Broken);
            noticed(&kit).await;
            answers = answers_from_memory(&kit, &object).await;
            kit.broker.feel(Mood::Well);
            assert_eq!(kit.known_value(&object).await, 3);
        }
    }
    assert!(answers > 0, "the last known good was not used");
    kit.stop().await;
}

#[tokio::test]
async fn a_call_that_is_given_up_before_it_is_answered_is_measured() {
    let kit = Kit::start(args()).await;
    kit.broker.feel(Mood::Hung);
    let mut request = tonic::Request::new(object(&[]));
    request.set_timeout(Duration::from_millis(300));
    let given_up = kit.client.clone().is_active(request).await.unwrap_err();
    assert_ne!(given_up.code(), Code::Unavailable, "it was not answered: {given_up}");
    let line = "scaler_request_seconds_count{code=\"Cancelled\",method=\"IsActive\"} 1";
    page_says(kit.http, "/metrics", line).await;
    kit.stop().await;
}

/// How many polls are answered until it is said that nothing is known.
async fn answers_from_memory(kit: &Kit, object: &ScaledObjectRef) -> usize {
    let broken = Instant::now();
    let mut answers = 0;
    let told = loop {
        assert!(broken.elapsed() < Duration::from_secs(30), "the snapshot counts for ever");
        // Zero or inactive would be a lie that kills the pool.
        match kit.value(object).await {
            Ok(value) => assert_eq!(value.metric_value, 3),
            Err(status) => break status,
        }
        match kit.is_active(object).await {
            Ok(active) => assert!(active),
            Err(status) => break status,
        }
        answers += 1;
    };
    assert_eq!(told.code(), Code::Unavailable);
    assert!(told.message().contains("last seen"), "{told}");
    assert!(!told.message().contains("broken by the test"), "{told}");
    answers
}

#[tokio::test]
async fn a_broker_that_was_never_there_is_told_in_time_for_keda() {
    // KEDA's own limit for all three calls.
    let limit = Duration::from_secs(3);
    for mood in [Mood::Broken, Mood::Hung] {
        let mut fastest = Duration::MAX;
        // The calls wait for most of it, so a slow machine gets more tries.
        for _ in 0..3 {
            if fastest >= limit {
                fastest = fastest.min(refused(mood).await);
            }
        }
        assert!(fastest < limit, "{mood:?}: {fastest:?}");
    }
}

/// How long it takes to be told that a broker was never there.
async fn refused(mood: Mood) -> Duration {
    let kit = Kit::start(args()).await;
    kit.broker.feel(mood);
    let asked = Instant::now();
    let value = kit.value_at_once(&object(&[])).await.unwrap_err();
    let active = kit.is_active_at_once(&object(&[])).await.unwrap_err();
    let took = asked.elapsed();
    assert_eq!((value.code(), active.code()), (Code::Unavailable, Code::Unavailable));
    kit.stop().await;
    took
}

#[tokio::test]
async fn a_stream_outlives_an_outage_and_tells_what_came_after() {
    let max_age = Duration::from_millis(200);
    let kit = Kit::start(ScalerArgs { max_age, ..args() }).await;
    let mut stream = kit.stream(&object(&[])).await;
    assert_eq!(kit.known_value(&object(&[])).await, 0);
    kit.broker.feel(Mood::Broken);
    noticed(&kit).await;
    let broken = Instant::now();
    let told = loop {
        assert!(broken.elapsed() < Duration::from_secs(30), "the snapshot counts for ever");
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
