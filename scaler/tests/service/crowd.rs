//! Thousands of streams on the one connection that KEDA has.

use std::sync::Arc;
use std::time::Duration;

use ebb_proto::keda::IsActiveResponse;
use ebb_scaler::ScalerArgs;
use tokio::sync::{Barrier, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tonic::Streaming;

use crate::kit::{Kit, args, object, publish};

const STREAMS: usize = 2500;

/// What a stream says next, which may take longer among so many.
async fn says(stream: &mut Streaming<IsActiveResponse>) -> Option<bool> {
    let next = timeout(Duration::from_secs(60), stream.message()).await;
    next.expect("the stream speaks").unwrap().map(|response| response.result)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_of_streams_on_one_connection_is_told_and_calls_are_still_answered() {
    // No word but those that are awaited, before the streams are open at once.
    let (repeat, heartbeat) = (Duration::from_secs(1), Duration::from_secs(600));
    let kit = Kit::start(ScalerArgs { repeat, heartbeat, ..args() }).await;
    let open = Arc::new(Barrier::new(STREAMS + 1));
    let (told, mut n_told) = watch::channel(0);
    let mut streams = JoinSet::new();
    for n in 0..STREAMS {
        let (mut client, open, told) = (kit.client.clone(), Arc::clone(&open), told.clone());
        let object = object(&[("jobsPerReplica", &(n + 1).to_string())]);
        streams.spawn(async move {
            let mut stream = client.stream_is_active(object).await.unwrap().into_inner();
            open.wait().await;
            assert_eq!(says(&mut stream).await, Some(true));
            told.send_modify(|n_told| *n_told += 1);
            // Read on: a client that leaves thousands of messages unread ends its own connection.
            while stream.message().await.unwrap().is_some() {}
        });
    }
    timeout(Duration::from_secs(60), open.wait()).await.expect("all streams are open at once");

    // A machine may be slow once; streams that stand in the way are there each time.
    let mut fastest = Duration::MAX;
    for _ in 0..3 {
        let asked = Instant::now();
        assert!(!kit.is_active(&object(&[])).await.unwrap());
        fastest = fastest.min(asked.elapsed());
    }
    assert!(fastest < Duration::from_secs(1), "{fastest:?}");

    publish(&kit.queue(), 7).await;
    let plain = object(&[]);
    let all_told = n_told.wait_for(|n_told| *n_told == STREAMS);
    let all_told = timeout(Duration::from_secs(60), all_told);
    let (all_told, value) = tokio::join!(all_told, kit.value(&plain));
    all_told.expect("all streams are told").unwrap();
    assert!(value.is_ok());
    assert_eq!(kit.value(&plain).await.unwrap().metric_value, 7);
    assert_eq!(*kit.broker.opened.borrow(), 1);

    kit.stop.cancel();
    // Well within the scaler's grace.
    timeout(Duration::from_secs(40), streams.join_all()).await.expect("all streams end");
    kit.stop().await;
}
