//! A ready job goes to exactly one worker, and to a waiting one at once.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ebb_queue::{Behavior, ErrorKind, Queue};
use tokio::time::Instant;

use crate::fixture::{Fixture, names, publish};

const LONG: Duration = Duration::from_secs(20);

pub async fn no_more_than_asked_for_is_received(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a", "b", "c"]).await;
    fixture.assert_takes(&queue, 2, &["a", "b"]).await;
    fixture.assert_takes(&queue, 2, &["c"]).await;
    fixture.assert_nothing_ready(&queue).await;
}

pub async fn an_empty_queue_answers_when_the_wait_is_over(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let start = Instant::now();
    let wait = Duration::from_millis(150);
    assert!(queue.receive(NonZeroUsize::MIN, wait).await.unwrap().is_empty());
    assert!(start.elapsed() >= wait);
}

pub async fn a_waiting_worker_gets_what_another_process_publishes(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let waiting = wait_in_background(&fixture.again("two").await);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let published = Instant::now();
    fixture.publish(&queue, &["a"]).await;
    assert_eq!(waiting.await.unwrap(), "a");
    // And not with a last look, when its wait is over.
    assert!(published.elapsed() < LONG / 2, "{:?}", published.elapsed());
}

pub async fn a_waiting_worker_gets_a_job_when_its_delay_ends(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let start = Instant::now();
    let waiting = wait_in_background(&queue);
    publish(&queue, fixture.job("a", &[("ebb-delay", "200ms")])).await;
    assert_eq!(waiting.await.unwrap(), "a");
    let in_time = Duration::from_millis(190)..LONG / 2;
    assert!(in_time.contains(&start.elapsed()), "{:?}", start.elapsed());
}

pub async fn a_waiting_worker_gets_a_job_when_its_lease_ends(fixture: &dyn Fixture) {
    let lease = Duration::from_millis(300);
    let queue = fixture.fresh_with(Behavior { lease, ..fixture.behavior() }).await;
    fixture.publish(&queue, &["a"]).await;
    drop(fixture.take_one(&queue).await);
    let start = Instant::now();
    assert_eq!(wait_in_background(&queue).await.unwrap(), "a");
    assert!(start.elapsed() < LONG / 2, "{:?}", start.elapsed());
}

pub async fn a_receive_that_is_dropped_while_it_waits_takes_nothing(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let waiting = queue.receive(NonZeroUsize::MIN, LONG);
    assert!(tokio::time::timeout(Duration::from_millis(50), waiting).await.is_err());
    fixture.publish(&queue, &["a"]).await;
    fixture.assert_counts(&queue, [1, 0, 0, 0]).await;
    fixture.assert_takes(&queue, 2, &["a"]).await;
}

pub async fn many_workers_at_once_receive_each_job_once(fixture: &dyn Fixture) {
    const JOBS: usize = 120;
    const SEVEN: NonZeroUsize = NonZeroUsize::new(7).unwrap();
    let (lag, n_received) = (fixture.lag(), Arc::new(AtomicUsize::new(0)));
    // Waited out by each worker, for what comes a second time.
    let wait = lag.min(Duration::from_secs(2));
    // What the workers hold is not to come back.
    let queue = fixture.fresh_patient().await;
    let jobs = (0..JOBS).map(|n| fixture.job(&format!("job-{n}"), &[])).collect();
    queue.publish(jobs).await.unwrap();
    let mut workers = tokio::task::JoinSet::new();
    for n in 0..4 {
        let queue = fixture.again(&format!("worker-{n}")).await;
        let n_received = n_received.clone();
        workers.spawn(async move {
            let (mut mine, end) = (Vec::new(), Instant::now() + lag);
            loop {
                let received = queue.receive(SEVEN, wait).await;
                if received.as_ref().is_err_and(|error| error.kind() == ErrorKind::Unavailable) {
                    // Servers that have not heard of each other for a moment.
                    assert!(Instant::now() < end, "{received:?}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
                let deliveries = received.unwrap();
                let n_so_far = n_received.fetch_add(deliveries.len(), Ordering::SeqCst);
                // A broker that is slow to hand out is asked again.
                if deliveries.is_empty() && (n_so_far >= JOBS || Instant::now() >= end) {
                    // The handle stays open until all are done: with it goes what it holds.
                    return (mine, queue);
                }
                mine.extend(deliveries.into_iter().map(|delivery| delivery.job.id));
            }
        });
    }
    let (received, _handles): (Vec<_>, Vec<_>) = workers.join_all().await.into_iter().unzip();
    let received = received.concat();
    assert_eq!(received.len(), JOBS);
    assert_eq!(received.into_iter().collect::<HashSet<_>>().len(), JOBS);
}

/// The name of the one job that a worker gets that waits.
fn wait_in_background(queue: &Queue) -> tokio::task::JoinHandle<String> {
    let queue = queue.clone();
    tokio::spawn(async move {
        let deliveries = queue.receive(NonZeroUsize::MIN, LONG).await.unwrap();
        names(&deliveries).concat()
    })
}
