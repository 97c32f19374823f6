//! Dead letters that are kept for a while only.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use ebb_model::echo::{Echo, EchoInput};
use ebb_queue::memory::MemoryQueue;
use ebb_queue::{Backlog, Behavior, Broker, Clock, DeadLetters, OpenOptions, TokioClock};
use ebb_worker::{Device, Metrics, Parts, Pipeline};
use support::{EPOCH, job, parts, settings};
use tokio_util::sync::CancellationToken;

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(start_paused = true)]
async fn a_worker_deletes_what_is_too_old_and_counts_it() {
    let clock: Arc<dyn Clock> = Arc::new(TokioClock::starting_at(EPOCH));
    let options = OpenOptions { clock: Arc::clone(&clock), ..OpenOptions::default() };
    let behavior = Behavior { dead_ttl: Some(HOUR), ..Behavior::default() };
    let queue = MemoryQueue::new(&behavior, options);
    die(&queue, &[1, 2]).await;
    tokio::time::sleep(HOUR / 2).await;
    die(&queue, &[3]).await;
    let device = Device::inline(Echo::new(), |_: &[EchoInput]| Duration::ZERO);
    let metrics = Metrics::default();
    let parts = parts(&Arc::new(queue.clone()), &clock, device, settings());
    let worker = Pipeline::new(Parts { metrics: metrics.clone(), ..parts });
    let stop = CancellationToken::new();
    let running = tokio::spawn(worker.run(stop.clone()));
    for (span, expected) in [(HOUR / 4, 0), (HOUR / 4 + HOUR / 30, 2), (HOUR / 2, 3)] {
        tokio::time::sleep(span).await;
        assert_eq!(metrics.dead_purged.get(), expected);
        assert_eq!(queue.depth().await.unwrap().dead, 3 - expected);
    }
    assert!(queue.list(9).await.unwrap().is_empty());
    stop.cancel();
    running.await.unwrap().unwrap();
}

/// Jobs of these numbers that fail for good.
async fn die(queue: &MemoryQueue, numbers: &[usize]) {
    for number in numbers {
        queue.publish(vec![job(*number, "{}")]).await.unwrap();
        let delivery = queue.receive(NonZeroUsize::MIN, Duration::ZERO).await.unwrap().remove(0);
        queue.settle(&[delivery.reject("bad")]).await.unwrap();
    }
}
