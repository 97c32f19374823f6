//! Places that take nothing: stores, queues of alerts. Who needs them waits or fails, and says why;
//! the others go on.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ebb_model::echo::{Echo, EchoInput};
use ebb_queue::faulty::{Faults, Faulty};
use ebb_queue::memory::MemoryQueue;
use ebb_queue::{
    Backlog, Behavior, Broker, Clock, DeadLetters, Error, ErrorKind, Frame, Job, JobId, JobResult,
    OpenOptions, Result, ResultStore, RetryPolicy, Stored,
};
use ebb_telemetry::Health;
use ebb_worker::batcher::Limits;
use ebb_worker::{Device, EchoCodec, Metrics, ModelParts, Pipeline, Settings};
use futures::stream::BoxStream;
use support::{
    Alarmed, answer, echo_answer, echo_job, job, parts_of, queue, served, settings, until,
};
use tokio_util::sync::CancellationToken;

const LEASE: Duration = Duration::from_secs(30);

/// Every second job.
fn is_odd(job: &Job) -> bool {
    job.id.as_str()["job-".len()..].parse::<usize>().unwrap() % 2 == 1
}

fn inline(batch_time: Duration) -> Device<EchoInput, String> {
    Device::inline(Echo::new(), move |_: &[EchoInput]| batch_time)
}

fn one_by_one() -> Settings {
    let limits = Limits { max_items: NonZeroUsize::MIN, ..settings().limits };
    Settings { limits, prefetch: 8, ..settings() }
}

#[tokio::test(start_paused = true)]
async fn alerts_that_nobody_reads_cost_their_own_jobs_alone() {
    let (jobs, clock) = queue(LEASE);
    jobs.publish((0..12).map(echo_job).collect()).await.unwrap();
    let behavior = Behavior { max_ready: Some(1), ..Behavior::default() };
    let options = OpenOptions { clock: Arc::clone(&clock), ..OpenOptions::default() };
    let alerts = MemoryQueue::new(&behavior, options);
    let models =
        vec![ModelParts::new("alarmed", Alarmed { about: is_odd }, inline(Duration::ZERO))];
    let mut served = served("default", &Arc::new(jobs.clone()), models);
    served.alerts = Arc::new(alerts.clone());
    let parts = parts_of(vec![served], &clock, one_by_one());
    let health = parts.health.clone();
    let stop = CancellationToken::new();
    let worker = tokio::spawn(Pipeline::new(parts).run(stop.clone()));

    // Each of them alone in its group, as the alarmed are: these shall not be waited for.
    tokio::time::sleep(Duration::from_secs(5)).await;
    for number in (0..12).step_by(2) {
        assert_eq!(answer(&jobs, number).await, Some(echo_answer(number)), "job {number}");
    }
    assert!(health.ready().is_ok(), "what one queue of alerts takes is not what a worker is for");
    until(&jobs, |depth| depth.ready + depth.in_flight + depth.delayed == 0).await;
    stop.cancel();
    let summary = worker.await.unwrap().unwrap();
    assert_eq!((summary.completed, summary.failed), (7, 5));
    let dead = jobs.list(10).await.unwrap();
    assert_eq!(dead.len(), 5);
    for letter in dead {
        let told = "attempt 5 of 5 failed: the result or its alert could not be stored: ";
        assert!(letter.reason.starts_with(told), "{}", letter.reason);
        // Not told of, and so not done.
        assert!(!jobs.get(&letter.job.id).await.unwrap().unwrap().outcome.is_completed());
    }
}

/// A store that can be read and does not take all results.
struct Shut {
    queue: MemoryQueue,
    kind: ErrorKind,
    refuses: fn(&JobResult) -> bool,
    /// Whether it takes all of them by now.
    is_open: AtomicBool,
}

#[async_trait]
impl ResultStore for Shut {
    async fn put(&self, result: &JobResult) -> Result<Stored> {
        if (self.refuses)(result) && !self.is_open.load(Relaxed) {
            return Err(Error::new(self.kind, "no answer is taken"));
        }
        self.queue.put(result).await
    }
    async fn get(&self, id: &JobId) -> Result<Option<JobResult>> {
        self.queue.get(id).await
    }
    async fn chunk(&self, id: &JobId, attempt: u32, seq: u64, body: Bytes) -> Result<Stored> {
        self.queue.chunk(id, attempt, seq, body).await
    }
    async fn follow(&self, id: &JobId, from: u64) -> Result<BoxStream<'static, Result<Frame>>> {
        self.queue.follow(id, from).await
    }

    fn result_ttl(&self) -> Duration {
        self.queue.result_ttl()
    }
}

/// A worker whose store takes no answers.
fn worker_before(queue: &MemoryQueue, kind: ErrorKind, clock: &Arc<dyn Clock>) -> Pipeline {
    let models = vec![ModelParts::new("echo", EchoCodec, inline(Duration::from_secs(1)))];
    let mut served = served("default", &Arc::new(queue.clone()), models);
    let refuses = |result: &JobResult| result.outcome.is_completed();
    let is_open = AtomicBool::new(false);
    served.results = Arc::new(Shut { queue: queue.clone(), kind, refuses, is_open });
    Pipeline::new(parts_of(vec![served], clock, one_by_one()))
}

#[tokio::test(start_paused = true)]
async fn jobs_that_were_not_begun_go_back_uncharged_though_the_store_is_down() {
    let (jobs, clock) = queue(LEASE);
    jobs.publish((0..40).map(echo_job).collect()).await.unwrap();
    let stop = CancellationToken::new();
    let worker = worker_before(&jobs, ErrorKind::Unavailable, &clock);
    let worker = tokio::spawn(worker.run(stop.clone()));
    // By then some have run that cannot be stored.
    tokio::time::sleep(Duration::from_secs(6)).await;
    stop.cancel();
    // They do not wait for what is being stored, nor for the batch that runs.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let n_waiting = jobs.depth().await.unwrap().ready;
    let summary = worker.await.unwrap().unwrap();
    let begun = summary.left;
    assert!(n_waiting > 40 - begun - 2, "{n_waiting} at once, {summary:?}");
    assert!(summary.released > 0 && begun > 0, "{summary:?}");
    // At once, and without an attempt; those that were begun come back by their lease.
    let back = jobs.receive(NonZeroUsize::new(40).unwrap(), Duration::ZERO).await.unwrap();
    assert_eq!(back.len() as u64, 40 - begun);
    assert!(back.iter().all(|delivery| delivery.attempt == 1));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_long_away_charges_nobody_for_a_stop_but_who_was_begun() {
    let (jobs, clock) = queue(LEASE);
    let n_run = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&n_run);
    let device = Device::inline(Echo::new(), move |batch: &[EchoInput]| {
        count.fetch_add(batch.len(), Relaxed);
        Duration::from_millis(1)
    });
    let mut served = served(
        "default",
        &Arc::new(jobs.clone()),
        vec![ModelParts::new("echo", EchoCodec, device)],
    );
    let away = Faulty::new(Arc::new(queue(LEASE).0), failing_with(ErrorKind::Unavailable), 1);
    served.results = Arc::new(away);
    let stop = CancellationToken::new();
    let limits = Limits { max_items: NonZeroUsize::new(5).unwrap(), ..settings().limits };
    let settings = Settings { limits, ..settings() };
    let worker = Pipeline::new(parts_of(vec![served], &clock, settings));
    let worker = tokio::spawn(worker.run(stop.clone()));
    // More than are begun before one is stored.
    jobs.publish((0..270).map(echo_job).collect()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    // One that can never be answered is to be stored as well, and others come behind it.
    for next in [job(270, "[]"), echo_job(271), echo_job(272)] {
        jobs.publish(vec![next]).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    stop.cancel();
    let summary = worker.await.unwrap().unwrap();

    let back = jobs.receive(NonZeroUsize::new(300).unwrap(), Duration::ZERO).await.unwrap();
    assert!(back.iter().all(|delivery| delivery.attempt == 1));
    let n_back = back.iter().filter(|delivery| delivery.job.body != b"[]"[..]).count();
    assert_eq!(272 - n_back, n_run.load(Relaxed), "{summary:?}");
    assert!(summary.left >= 256, "as many are begun as may be before one is stored: {summary:?}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_no_store_can_take_fails_once_with_its_remedy() {
    let (jobs, clock) = queue(LEASE);
    jobs.publish(vec![echo_job(0)]).await.unwrap();
    let stop = CancellationToken::new();
    let worker = worker_before(&jobs, ErrorKind::Invalid, &clock);
    let worker = tokio::spawn(worker.run(stop.clone()));
    until(&jobs, |depth| depth.dead == 1).await;
    stop.cancel();
    let summary = worker.await.unwrap().unwrap();
    assert_eq!((summary.failed, summary.retried), (1, 0));
    let letter = jobs.list(1).await.unwrap().remove(0);
    assert!(letter.reason.contains("--payloads"), "{}", letter.reason);
    assert_eq!(letter.kind, ebb_queue::FailureKind::Model, "its job was as it should be");
    assert_eq!(letter.job.id.as_str(), "job-0000");
}

/// A worker whose answers go to another store, which things go wrong with; and how it is.
fn worker_and_store(
    jobs: &MemoryQueue,
    faults: Faults,
    clock: &Arc<dyn Clock>,
    settings: Settings,
) -> (Pipeline, Arc<Faulty<MemoryQueue>>, Health, Metrics) {
    let store = Arc::new(Faulty::new(Arc::new(queue(LEASE).0), faults, 1));
    let models = vec![ModelParts::new("echo", EchoCodec, inline(Duration::ZERO))];
    let mut served = served("default", &Arc::new(jobs.clone()), models);
    served.results = Arc::clone(&store) as Arc<dyn ResultStore>;
    let parts = parts_of(vec![served], clock, settings);
    let (health, metrics) = (parts.health.clone(), parts.metrics.clone());
    (Pipeline::new(parts), store, health, metrics)
}

fn failing_with(kind: ErrorKind) -> Faults {
    Faults { fail_before: 1.0, kind, ..Faults::NONE }
}

#[tokio::test(start_paused = true)]
async fn a_worker_is_not_ready_while_its_store_is_away_though_its_broker_answers() {
    let (jobs, clock) = queue(LEASE);
    let away = failing_with(ErrorKind::Unavailable);
    let (worker, store, health, metrics) = worker_and_store(&jobs, away, &clock, settings());
    let stop = CancellationToken::new();
    let worker = tokio::spawn(worker.run(stop.clone()));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(health.ready().is_ok() && metrics.broker_up.get() == 1, "nothing is known of it yet");

    for number in 0..40 {
        // One by one, so that the broker answers again and again.
        jobs.publish(vec![echo_job(number)]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(700)).await;
        let why = health.ready().unwrap_err();
        assert!(why.starts_with("broker: put: "), "{why}");
        assert_eq!(metrics.broker_up.get(), 0);
    }
    store.set(Faults::NONE);
    until(&jobs, |depth| depth.in_flight == 0).await;
    assert!(health.ready().is_ok() && metrics.broker_up.get() == 1, "{:?}", health.ready());
    stop.cancel();
    assert_eq!(worker.await.unwrap().unwrap().completed, 40);
}

/// A worker whose store does not take what became of its one job, and works again then.
async fn assert_is_ready_once_its_store_is_back(first: Job) -> Arc<Faulty<MemoryQueue>> {
    let (jobs, clock) = queue(LEASE);
    jobs.publish(vec![first]).await.unwrap();
    let broken = failing_with(ErrorKind::Internal);
    let (worker, store, health, metrics) = worker_and_store(&jobs, broken, &clock, settings());
    let stop = CancellationToken::new();
    let worker = tokio::spawn(worker.run(stop.clone()));
    until(&jobs, |depth| depth.dead == 1).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(health.ready().is_err(), "the last that was heard of the store is that it failed");
    store.set(Faults::NONE);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(health.ready().is_ok() && metrics.broker_up.get() == 1, "{:?}", health.ready());
    stop.cancel();
    worker.await.unwrap().unwrap();
    store
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_back_makes_a_worker_ready_though_no_job_is_left_to_ask_it() {
    let store = assert_is_ready_once_its_store_is_back(echo_job(0)).await;
    assert!(answer(store.inner(), 0).await.is_some(), "the answer that was paid for is there");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_did_not_take_a_failure_is_back_when_it_can_be_read() {
    assert_is_ready_once_its_store_is_back(job(0, "[]")).await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_can_be_read_is_back_when_it_takes_an_answer_whatever_is_held() {
    const HOUR: Duration = Duration::from_secs(3600);
    let (jobs, clock) = queue(LEASE);
    let store = Arc::new(Shut {
        queue: queue(LEASE).0,
        kind: ErrorKind::Internal,
        refuses: |_| true,
        is_open: AtomicBool::new(false),
    });
    let device =
        Device::inline(
            Echo::new(),
            |batch: &[EchoInput]| {
                if batch[0].input == "text 1" { HOUR } else { Duration::ZERO }
            },
        );
    let models = vec![ModelParts::new("echo", EchoCodec, device)];
    let mut served = served("default", &Arc::new(jobs.clone()), models);
    served.results = Arc::clone(&store) as Arc<dyn ResultStore>;
    let retry = RetryPolicy { max_attempts: 1, ..settings().retry };
    let parts = parts_of(vec![served], &clock, Settings { retry, ..settings() });
    let (health, metrics) = (parts.health.clone(), parts.metrics.clone());
    let stop = CancellationToken::new();
    let worker = tokio::spawn(Pipeline::new(parts).run(stop.clone()));
    jobs.publish(vec![echo_job(0)]).await.unwrap();
    until(&jobs, |depth| depth.dead == 1).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let why = health.ready().expect_err("nothing was seen of it but that it takes no answers");
    assert!(why.starts_with("broker: put: ") && metrics.broker_up.get() == 0, "{why}");

    // The job that is held by now is long in asking.
    jobs.publish(vec![echo_job(1)]).await.unwrap();
    until(&jobs, |depth| depth.in_flight == 1).await;
    store.is_open.store(true, Relaxed);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(health.ready().is_ok() && metrics.broker_up.get() == 1, "{:?}", health.ready());
    assert_eq!(jobs.depth().await.unwrap().in_flight, 1);
    assert_eq!(answer(&store.queue, 0).await, Some(echo_answer(0)));
    assert_eq!(answer(&store.queue, 1).await, None);
    stop.cancel();
    worker.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_too_large_says_nothing_of_the_store() {
    let (jobs, clock) = queue(LEASE);
    // Slow, so that it shows between the two that it refuses: the answer and the failure.
    let delay = Duration::from_millis(300);
    let too_large = Faults { delay, ..failing_with(ErrorKind::Invalid) };
    let (worker, _, health, metrics) = worker_and_store(&jobs, too_large, &clock, settings());
    let stop = CancellationToken::new();
    let worker = tokio::spawn(worker.run(stop.clone()));
    tokio::time::sleep(Duration::from_millis(1500)).await;
    jobs.publish(vec![echo_job(0)]).await.unwrap();
    while jobs.depth().await.unwrap().dead == 0 {
        assert!(health.ready().is_ok(), "{:?}", health.ready());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(health.ready().is_ok() && metrics.broker_up.get() == 1, "{:?}", health.ready());
    assert_eq!(metrics.broker_errors.with_label_values(&["put"]).get(), 2);
    stop.cancel();
    worker.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_job_that_has_run_keeps_its_lease_though_another_wedges_the_device() {
    let (jobs, clock) = queue(LEASE);
    jobs.publish(vec![echo_job(0), echo_job(1)]).await.unwrap();
    let store =
        Arc::new(Faulty::new(Arc::new(queue(LEASE).0), failing_with(ErrorKind::Unavailable), 1));
    let device = Device::inline(Echo::new(), |batch: &[EchoInput]| {
        let is_first = batch[0].input == "text 0";
        Duration::from_secs(if is_first { 1 } else { 3600 })
    });
    let models = vec![ModelParts::new("echo", EchoCodec, device)];
    let mut served = served("default", &Arc::new(jobs.clone()), models);
    served.results = Arc::clone(&store) as Arc<dyn ResultStore>;
    let parts = parts_of(vec![served], &clock, one_by_one());
    let health = parts.health.clone();
    let worker = tokio::spawn(Pipeline::new(parts).run(CancellationToken::new()));
    while health.live().is_ok() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    tokio::time::sleep(3 * LEASE).await;
    let depth = jobs.depth().await.unwrap();
    assert_eq!((depth.in_flight, depth.ready), (1, 1), "the one that wedges it moves on");
    store.set(Faults::NONE);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(store.get(&echo_job(0).id).await.unwrap().unwrap().attempt, 1);
    let depth = jobs.depth().await.unwrap();
    assert_eq!((depth.in_flight, depth.ready), (0, 1));
    worker.abort();
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_store_is_away_soon_takes_no_more_jobs() {
    let (jobs, clock) = queue(LEASE);
    jobs.publish((0..2000).map(echo_job).collect()).await.unwrap();
    let away = failing_with(ErrorKind::Unavailable);
    let limits = Limits { max_items: NonZeroUsize::new(8).unwrap(), ..settings().limits };
    let settings = Settings { limits, prefetch: 8, ..settings() };
    let (worker, store, ..) = worker_and_store(&jobs, away, &clock, settings);
    let stop = CancellationToken::new();
    let worker = tokio::spawn(worker.run(stop.clone()));
    // Those that have run and those that have not, as docs/sizing.md counts them.
    let most = 256 + 8 + 8;
    for _ in 0..1200 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let n_held = jobs.depth().await.unwrap().in_flight;
        assert!(n_held <= most, "{n_held} are held");
    }
    assert!(jobs.depth().await.unwrap().in_flight >= 256, "more than a few are stored together");

    store.set(Faults::NONE);
    until(&jobs, |depth| depth.ready + depth.in_flight == 0).await;
    stop.cancel();
    let summary = worker.await.unwrap().unwrap();
    assert_eq!((summary.completed, summary.retried, summary.lost), (2000, 0, 0));
    for number in 0..2000 {
        let id = format!("job-{number:04}").parse().unwrap();
        assert_eq!(store.get(&id).await.unwrap().unwrap().attempt, 1, "job {number}");
    }
}
