//! Thousands of streams on the one connection that KEDA has.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::kit::{Kit, args, ends_with_ok, object, publish, said};

const STREAMS: usize = 2500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_of_streams_on_one_connection_is_told_and_calls_are_still_answered() {
    let kit = Kit::start(args()).await;
    let open = Arc::new(Barrier::new(STREAMS + 1));
    let mut streams = JoinSet::new();
    for n in 0..STREAMS {
        let (mut client, open) = (kit.client.clone(), Arc::clone(&open));
        let object = object(&[("jobsPerReplica", &(n + 1).to_string())]);
        streams.spawn(async move {
            let mut stream = client.stream_is_active(object).await.unwrap().into_inner();
            assert_eq!(said(&mut stream).await, Some(false));
            open.wait().await;
            while said(&mut stream).await != Some(true) {}
            stream
        });
    }
    timeout(Duration::from_secs(30), open.wait()).await.expect("all streams are open at once");

    let asked = Instant::now();
    assert!(!kit.is_active(&object(&[])).await.unwrap());
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());

    let published = Instant::now();
    publish(&kit.queue(), 7).await;
    let plain = object(&[]);
    let (told, value) = tokio::join!(streams.join_all(), kit.value(&plain));
    assert_eq!(told.len(), STREAMS);
    assert!(value.is_ok());
    assert!(published.elapsed() < Duration::from_secs(10), "{:?}", published.elapsed());
    assert_eq!(kit.value(&object(&[])).await.unwrap().metric_value, 7);
    assert_eq!(*kit.broker.opened.borrow(), 1);

    kit.stop.cancel();
    for mut stream in told {
        ends_with_ok(&mut stream).await;
    }
    kit.stop().await;
}
