//! Acknowledgements that come when the lease has ended.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use ebb_queue::faulty::{Faults, Faulty};
use ebb_queue::memory::MemoryQueue;
use ebb_queue::{
    Behavior, Delivery, JobResult, OpenOptions, Outcome, Queue, Results, Settled, Timestamp, open,
};
use ebb_servers::RabbitMq;
use tokio::time::{Instant, sleep_until, timeout};

use crate::{LONG, brief, handle, job, on_shared, take_one, until, url};

/// A handle with this store of results, whose leases are short.
async fn with_results(server: &RabbitMq, name: &str, results: Queue) -> Queue {
    let results = Some(Results(results));
    let options = OpenOptions { connect_timeout: LONG, results, ..OpenOptions::default() };
    open(&brief(server, name), options).await.unwrap()
}

fn store(ttl: Duration) -> MemoryQueue {
    let behavior = Behavior { result_ttl: ttl, ..Behavior::default() };
    MemoryQueue::new(&behavior, OpenOptions::default())
}

/// Has another take the job as soon as its lease has ended, and end it.
async fn ended_by_another(server: &RabbitMq, name: &str) -> Queue {
    let other = handle(&url(server, name)).await;
    let again = take_one(&other).await;
    assert_eq!(again.attempt, 2);
    other.settle(&[again.ack()]).await.unwrap();
    other
}

/// Stores the result of a job that is held for the first time.
async fn complete(results: &Queue, held: &Delivery) {
    let (content_type, body) = ("text/plain".to_owned(), "done".into());
    let outcome = Outcome::Completed { content_type, body };
    let (id, finished_at) = (held.job.id.clone(), Timestamp::now());
    let result = JobResult { id, attempt: 1, outcome, finished_at, queue: None };
    results.put(&result).await.unwrap();
}

async fn until_gone(results: &Queue) {
    let id = "a".parse().unwrap();
    until("its result is gone", async || results.get(&id).await.unwrap().is_none()).await;
}

#[test]
fn a_job_with_the_name_of_one_whose_result_is_gone_is_run_however_late_that_was_acknowledged() {
    on_shared(async |server| {
        let ttl = Duration::from_secs(6);
        let results: Queue = Arc::new(store(ttl));
        let first = with_results(server, "late-namesakes", results.clone()).await;
        first.publish(vec![job("a")]).await.unwrap();
        let late = take_one(&first).await;
        complete(&results, &late).await;
        let stored_at = Instant::now();
        // It stands still, its lease ends, and another is as quick.
        let other = ended_by_another(server, "late-namesakes").await;
        sleep_until(stored_at + ttl - Duration::from_secs(2)).await;
        assert_eq!(first.settle(&[late.ack()]).await.unwrap(), [Settled::Lost]);
        sleep_until(stored_at + ttl).await;
        until_gone(&results).await;
        other.publish(vec![job("a")]).await.unwrap();
        let next = first.receive(NonZeroUsize::MIN, Duration::from_secs(1)).await.unwrap();
        assert_eq!(next.len(), 1, "it is taken for the one before");
        let acks: Vec<_> = next.into_iter().map(Delivery::ack).collect();
        first.settle(&acks).await.unwrap();
    });
}

#[test]
fn a_job_with_the_name_of_one_that_is_acknowledged_once_its_result_is_gone_is_run() {
    on_shared(async |server| {
        let ttl = Duration::from_secs(5);
        let results: Queue = Arc::new(store(ttl));
        let first = with_results(server, "result-gone", results.clone()).await;
        first.publish(vec![job("a")]).await.unwrap();
        let late = take_one(&first).await;
        complete(&results, &late).await;
        // It stands still until that is gone.
        let other = ended_by_another(server, "result-gone").await;
        until_gone(&results).await;
        assert_eq!(first.settle(&[late.ack()]).await.unwrap(), [Settled::Lost]);
        other.publish(vec![job("a")]).await.unwrap();
        let next = first.receive(NonZeroUsize::MIN, Duration::from_secs(2)).await.unwrap();
        assert_eq!(next.len(), 1, "it is taken for the one before");
        let acks: Vec<_> = next.into_iter().map(Delivery::ack).collect();
        first.settle(&acks).await.unwrap();
    });
}

#[test]
fn a_job_that_was_passed_on_and_acknowledged_too_late_is_not_passed_on_again() {
    on_shared(async |server| {
        let first = with_results(server, "passed-on", Arc::new(store(LONG))).await;
        let other = handle(&url(server, "passed-on")).await;
        first.publish(vec![job("a")]).await.unwrap();
        let late = take_one(&first).await;
        let again = take_one(&other).await;
        assert_eq!(again.attempt, 2);
        assert_eq!(first.settle(&[late.ack()]).await.unwrap(), [Settled::Lost]);
        other.settle(&[again.release()]).await.unwrap();
        let next = first.receive(NonZeroUsize::MIN, Duration::from_secs(2)).await.unwrap();
        assert!(next.is_empty(), "{next:?}");
        until("it is gone", async || crate::depth(&other).await.in_flight == 0).await;
    });
}

#[test]
fn who_settles_does_not_wait_for_a_store_that_does_not_answer() {
    on_shared(async |server| {
        let results = Faulty::new(Arc::new(store(LONG)), Faults::NONE, 1);
        let first = with_results(server, "store-away", Arc::new(results.clone())).await;
        first.publish(vec![job("a")]).await.unwrap();
        let late = take_one(&first).await;
        ended_by_another(server, "store-away").await;
        first.publish(vec![job("b")]).await.unwrap();
        let held = take_one(&first).await;
        results.set(Faults { lag: LONG, ..Faults::NONE });
        let start = Instant::now();
        let settled = timeout(LONG / 2, first.settle(&[late.ack(), held.ack()])).await;
        let settled = settled.expect("it waits for the store").unwrap();
        assert_eq!(settled, [Settled::Lost, Settled::Held]);
        assert!(start.elapsed() < LONG / 3, "{:?}", start.elapsed());
    });
}
