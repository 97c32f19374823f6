//! The promises of a worker, one test each, on a queue in memory.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ebb_model::echo::{Echo, EchoInput};
use ebb_model::{FirstRuns, InferError, ItemError, Model};
use ebb_queue::memory::MemoryQueue;
use ebb_queue::{
    Backlog, Broker, Clock, DeadLetters, Delivery, Failure, FailureKind, Job, Outcome, Phase,
    Priority, ResultStore,
};
use ebb_telemetry::Health;
use ebb_worker::batcher::Size;
use ebb_worker::{
    Answer, BadJob, Codec, Device, EchoCodec, Error, Metrics, ModelParts, Pipeline, Settings,
    Spent, Summary,
};
use support::{
    Alarmed, answer, echo_answer, echo_job, job, parts, parts_of, pipeline, queue, served,
    settings, until,
};
use tokio::sync::mpsc::{Receiver, Sender};
use tokio_util::sync::CancellationToken;

const LEASE: Duration = Duration::from_secs(30);

fn until_empty() -> Settings {
    Settings { exit_when_empty: true, ..settings() }
}

fn thread() -> Device<EchoInput, String> {
    Device::thread(|_| Ok(Echo::new())).expect("a thread can be started")
}

/// An echo that takes this long for a batch, in simulated time.
fn inline(batch_time: Duration) -> Device<EchoInput, String> {
    Device::inline(Echo::new(), move |_: &[EchoInput]| batch_time)
}

#[tokio::test]
async fn jobs_are_answered_and_gone() {
    let (queue, clock) = queue(LEASE);
    queue.publish((0..200).map(echo_job).collect()).await.unwrap();
    let worker = pipeline(&Arc::new(queue.clone()), &clock, thread(), until_empty());
    let summary = worker.run(CancellationToken::new()).await.unwrap();
    assert_eq!((summary.completed, summary.failed, summary.left), (200, 0, 0));
    for number in 0..200 {
        assert_eq!(answer(&queue, number).await, Some(echo_answer(number)));
    }
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.ready, depth.in_flight, depth.dead), (0, 0, 0));
}

#[tokio::test]
async fn one_poison_among_64_ends_alone_in_the_dead_letters() {
    let (queue, clock) = queue(LEASE);
    let mut jobs: Vec<_> = (0..64).map(echo_job).collect();
    jobs[41] = job(41, r#"{"input": "text 41", "poison": true}"#);
    queue.publish(jobs).await.unwrap();
    let worker = pipeline(&Arc::new(queue.clone()), &clock, thread(), until_empty());
    let summary = worker.run(CancellationToken::new()).await.unwrap();
    assert_eq!((summary.completed, summary.failed, summary.retried), (63, 1, 0));
    for number in (0..64).filter(|number| *number != 41) {
        assert_eq!(answer(&queue, number).await, Some(echo_answer(number)));
    }
    let dead = queue.list(10).await.unwrap();
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].job.id.as_str(), "job-0041");
    assert_eq!(dead[0].reason, "batch failed: an item is poison");
    assert_eq!(dead[0].attempts, 1);
    let told = queue.get(&dead[0].job.id).await.unwrap().unwrap().outcome;
    assert_eq!(told, Outcome::Failed(Failure::new(FailureKind::Model, dead[0].reason.clone())));
}

#[tokio::test]
async fn a_job_that_can_never_be_answered_is_rejected_alone() {
    let (queue, clock) = queue(LEASE);
    let long = format!(r#"{{"input": "{}"}}"#, "x".repeat(2000));
    queue
        .publish(vec![
            echo_job(0),
            job(1, "not JSON"),
            job(2, r#"{"input": "a", "fail": true}"#),
            job(3, &long),
        ])
        .await
        .unwrap();
    let settings = Settings { max_body: 1000, exit_when_empty: true, ..settings() };
    let worker = pipeline(&Arc::new(queue.clone()), &clock, thread(), settings);
    let summary = worker.run(CancellationToken::new()).await.unwrap();
    assert_eq!((summary.completed, summary.failed), (1, 3));
    let mut dead = queue.list(10).await.unwrap();
    dead.sort_by(|a, b| a.job.id.cmp(&b.job.id));
    let reasons: Vec<_> = dead.iter().map(|letter| letter.reason.as_str()).collect();
    assert!(reasons[0].starts_with("body: not JSON"), "{reasons:?}");
    assert_eq!(reasons[1], "the item asked to fail; set fail to false");
    assert!(reasons[2].contains("send at most 1000, or raise --max-body"), "{reasons:?}");
    assert!(dead.iter().all(|letter| letter.kind == FailureKind::Invalid), "{dead:?}");
    assert_eq!(answer(&queue, 0).await, Some(echo_answer(0)));
}

#[tokio::test(start_paused = true)]
async fn a_job_that_expires_in_the_worker_is_not_run() {
    let (queue, clock) = queue(LEASE);
    let mut late = echo_job(1);
    late.headers.deadline = Some(clock.now() + Duration::from_secs(3));
    queue.publish(vec![echo_job(0), late]).await.unwrap();
    let mut one_by_one = until_empty();
    one_by_one.limits.max_items = std::num::NonZeroUsize::MIN;
    let device = inline(Duration::from_secs(4));
    let worker = pipeline(&Arc::new(queue.clone()), &clock, device, one_by_one);
    let summary = worker.run(CancellationToken::new()).await.unwrap();
    assert_eq!((summary.completed, summary.failed), (1, 1));
    let dead = queue.list(10).await.unwrap();
    assert_eq!((dead[0].kind, &*dead[0].reason), (FailureKind::Expired, "expired"));
}

/// Jobs that come so long after the last one and have so long to go, behind some that took a second
/// each; with what was run, and what the worker counts.
async fn behind(n: usize, jobs: &[(Duration, Duration)]) -> (MemoryQueue, Vec<String>, Metrics) {
    let (queue, clock) = queue(LEASE);
    let ran = Arc::<Mutex<Vec<String>>>::default();
    let seen = Arc::clone(&ran);
    let device = Device::inline(Echo::new(), move |batch: &[EchoInput]| {
        seen.lock().unwrap().extend(batch.iter().map(|item| item.input.clone()));
        Duration::from_secs(1)
    });
    let mut one_by_one = settings();
    one_by_one.limits.max_items = std::num::NonZeroUsize::MIN;
    let parts = parts(&Arc::new(queue.clone()), &clock, device, one_by_one);
    let metrics = parts.metrics.clone();
    let stop = CancellationToken::new();
    let worker = tokio::spawn(Pipeline::new(parts).run(stop.clone()));
    let is_over = |depth: &ebb_queue::Depth| depth.ready + depth.in_flight == 0;
    queue.publish((0..n).map(echo_job).collect()).await.unwrap();
    until(&queue, is_over).await;
    for (place, (pause, left)) in jobs.iter().enumerate() {
        tokio::time::sleep(*pause).await;
        let mut job = echo_job(100 + place);
        job.headers.deadline = Some(clock.now() + *left);
        queue.publish(vec![job]).await.unwrap();
        until(&queue, is_over).await;
    }
    stop.cancel();
    worker.await.unwrap().unwrap();
    let ran = ran.lock().unwrap().clone();
    (queue, ran, metrics)
}

#[tokio::test(start_paused = true)]
async fn a_job_that_cannot_meet_its_deadline_is_not_run_once_it_is_known_what_a_batch_takes() {
    let [none, half, two] = [0, 500, 2000].map(Duration::from_millis);
    let (queue, ran, metrics) = behind(6, &[(none, half), (none, two)]).await;
    assert!(!ran.contains(&"text 100".to_owned()), "{ran:?}");
    assert_eq!(answer(&queue, 101).await, Some(echo_answer(101)));
    let dead = queue.list(10).await.unwrap();
    assert_eq!(dead.len(), 1);
    let told = "too late: the deadline is in 0.500 s, an answer is not to be had within 0.800 s";
    assert_eq!((dead[0].kind, &*dead[0].reason), (FailureKind::Expired, told));
    assert_eq!(metrics.shed.with_label_values(&["echo", "too_late"]).get(), 1);

    // While nothing is known, nobody is refused: whoever runs a job may finish it.
    let (queue, ran, _) = behind(2, &[(none, half)]).await;
    assert!(ran.contains(&"text 100".to_owned()), "{ran:?}");
    assert_eq!(answer(&queue, 100).await, Some(echo_answer(100)));
}

#[tokio::test(start_paused = true)]
async fn a_device_that_looks_too_slow_for_every_job_is_tried_again() {
    let [none, half, long] = [0, 500, 11_000].map(Duration::from_millis);
    let (queue, ran, metrics) = behind(6, &[(none, half), (long, half), (none, half)]).await;
    assert_eq!((ran.len(), queue.list(10).await.unwrap().len()), (7, 2));
    assert_eq!(answer(&queue, 101).await, Some(echo_answer(101)));
    assert_eq!(metrics.shed.with_label_values(&["echo", "too_late"]).get(), 2);
}

#[tokio::test]
async fn a_panic_is_the_fault_of_one_job() {
    let (queue, clock) = queue(LEASE);
    let mut jobs: Vec<_> = (0..64).map(echo_job).collect();
    jobs[41] = job(41, r#"{"input": "", "panic": true}"#);
    queue.publish(jobs).await.unwrap();
    let worker = pipeline(&Arc::new(queue.clone()), &clock, thread(), until_empty());
    let summary = worker.run(CancellationToken::new()).await.unwrap();
    assert_eq!((summary.completed, summary.failed, summary.retried), (63, 1, 0));
    for number in (0..64).filter(|number| *number != 41) {
        assert_eq!(answer(&queue, number).await, Some(echo_answer(number)));
    }
    let dead = queue.list(10).await.unwrap();
    assert_eq!((dead.len(), dead[0].job.id.as_str()), (1, "job-0041"));
    assert_eq!(dead[0].reason, "batch failed: panic: an item asked for a panic");
}

#[tokio::test]
async fn a_batch_that_does_not_fit_the_memory_is_halved_and_that_is_remembered() {
    let (queue, clock) = queue(LEASE);
    queue.publish((0..256).map(echo_job).collect()).await.unwrap();
    let device = Device::thread(|_| Ok(Echo::new().with_memory_for(20))).unwrap();
    let parts = parts(&Arc::new(queue.clone()), &clock, device, until_empty());
    let metrics = parts.metrics.clone();
    let summary = Pipeline::new(parts).run(CancellationToken::new()).await.unwrap();
    assert_eq!((summary.completed, summary.failed, summary.retried), (256, 0, 0));
    // 64 and its two halves fail; the batch that was bound by then may fail too.
    let n_failed = metrics.batches_failed.with_label_values(&["echo"]).get();
    assert!((3..=6).contains(&n_failed), "{n_failed}");
}

/// An echo that has room for three jobs while others have the memory, for so many batches.
#[derive(Clone)]
struct Crowded(Arc<AtomicU32>);

impl Model for Crowded {
    type Input = EchoInput;
    type Output = String;

    fn infer(&mut self, batch: &[EchoInput]) -> Result<Vec<Result<String, ItemError>>, InferError> {
        let is_crowded = self.0.load(Relaxed) > 0;
        self.0.store(self.0.load(Relaxed).saturating_sub(1), Relaxed);
        let room = if is_crowded { 3 } else { usize::MAX };
        Echo::new().with_memory_for(room).infer(batch)
    }
}

#[tokio::test(start_paused = true)]
async fn a_lack_of_memory_that_passes_is_forgotten() {
    let (queue, clock) = queue(LEASE);
    let device = Device::inline(Crowded(Arc::new(AtomicU32::new(20))), |_: &[EchoInput]| {
        Duration::from_millis(10)
    });
    let mut small = until_empty();
    small.limits.max_items = std::num::NonZeroUsize::new(16).unwrap();
    small.limits.max_cost = small.limits.max_items;
    let parts = parts(&Arc::new(queue.clone()), &clock, device, small);
    let metrics = parts.metrics.clone();
    let limit = metrics.max_cost.with_label_values(&["echo"]);
    // Enough for the crowd, and not for a hundred batches after it.
    queue.publish((0..300).map(echo_job).collect()).await.unwrap();
    let worker = tokio::spawn(Pipeline::new(parts).run(CancellationToken::new()));
    until(&queue, |depth| depth.ready < 100).await;
    assert_eq!(limit.get(), 2);
    queue.publish((300..2000).map(echo_job).collect()).await.unwrap();
    assert_eq!(worker.await.unwrap().unwrap().completed, 2000);
    assert_eq!(limit.get(), 16);
    let n_failed = metrics.batches_failed.with_label_values(&["echo"]).get();
    assert!((3..=20).contains(&n_failed), "{n_failed}");
    let items = metrics.batch_items.with_label_values(&["echo"]);
    assert!(items.get_sample_count() < 600, "{} batches", items.get_sample_count());
}

/// An echo that never has memory for a long text, and whose jobs cost as much as they are long.
#[derive(Clone)]
struct Narrow;

impl Model for Narrow {
    type Input = EchoInput;
    type Output = String;

    fn infer(&mut self, batch: &[EchoInput]) -> Result<Vec<Result<String, ItemError>>, InferError> {
        let has_room = batch.iter().all(|item| item.input.len() < 100);
        Echo::new().with_memory_for(if has_room { usize::MAX } else { 0 }).infer(batch)
    }
}

impl Codec for Narrow {
    type Input = EchoInput;
    type Output = String;
    type Asked = ();

    fn decode(&self, job: &Job) -> Result<(EchoInput, ()), BadJob> {
        EchoCodec.decode(job)
    }

    fn size(&self, input: &EchoInput) -> Size {
        Size::of([input.input.len()])
    }

    fn encode(&self, output: String, (): (), job: &Job, spent: &Spent) -> Answer {
        EchoCodec.encode(output, (), job, spent)
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_has_no_memory_alone_makes_the_batches_of_others_no_smaller() {
    let (queue, clock) = queue(LEASE);
    let device = Device::inline(Narrow, |_: &[EchoInput]| Duration::from_millis(10));
    let models = vec![ModelParts::new("narrow", Narrow, device)];
    let served = served("default", &Arc::new(queue.clone()), models);
    let parts = parts_of(vec![served], &clock, settings());
    let (metrics, stop) = (parts.metrics.clone(), CancellationToken::new());
    let worker = tokio::spawn(Pipeline::new(parts).run(stop.clone()));
    let long = format!(r#"{{"input": "{}"}}"#, "x".repeat(100));
    queue.publish(vec![job(0, &long)]).await.unwrap();
    until(&queue, |depth| depth.dead == 1).await;
    stop.cancel();
    let summary = worker.await.unwrap().unwrap();
    assert_eq!((summary.failed, summary.retried), (1, 4));
    let limit = metrics.max_cost.with_label_values(&["narrow"]).get();
    assert_eq!(limit as usize, settings().limits.max_cost.get());
}

#[tokio::test(start_paused = true)]
async fn a_failing_device_costs_retries_and_no_job() {
    let (queue, clock) = queue(LEASE);
    queue
        .publish(vec![echo_job(0), job(1, r#"{"input": "", "lose_device": true}"#)])
        .await
        .unwrap();
    let queue = Arc::new(queue);
    // Three failures in a row end a worker; its successor carries on.
    let mut n_workers = 0;
    let is_over = |depth: &ebb_queue::Depth| depth.ready + depth.in_flight + depth.delayed == 0;
    while !is_over(&queue.depth().await.unwrap()) {
        n_workers += 1;
        assert!(n_workers < 20);
        let device = inline(Duration::from_millis(10));
        let stop = CancellationToken::new();
        let work = pipeline(&queue, &clock, device, settings()).run(stop.clone());
        let idle = async {
            until(&queue, is_over).await;
            stop.cancel();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = work => assert!(matches!(ended, Ok(_) | Err(Error::Device(_))), "{ended:?}"),
            () = idle => {}
        }
    }
    assert_eq!(answer(&queue, 0).await, Some(echo_answer(0)));
    let dead = queue.list(10).await.unwrap();
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].reason, "attempt 5 of 5 failed: device failed: an item asked for it");
    assert_eq!((dead[0].kind, dead[0].attempts), (FailureKind::Attempts, 5));
}

#[tokio::test(start_paused = true)]
async fn a_drain_finishes_what_runs_and_gives_the_rest_back_uncharged() {
    let (queue, clock) = queue(LEASE);
    queue.publish((0..100).map(echo_job).collect()).await.unwrap();
    let mut small = settings();
    small.limits.max_items = std::num::NonZeroUsize::new(4).unwrap();
    small.prefetch = 20;
    let stop = CancellationToken::new();
    let device = inline(Duration::from_secs(5));
    let worker = pipeline(&Arc::new(queue.clone()), &clock, device, small);
    let worker = tokio::spawn(worker.run(stop.clone()));
    until(&queue, |depth| depth.in_flight == 24).await;
    stop.cancel();
    let summary = worker.await.unwrap().unwrap();
    assert_eq!((summary.completed, summary.left), (4, 0), "{summary:?}");
    assert!(summary.released >= 20, "{summary:?}");
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.ready, depth.in_flight, depth.delayed), (96, 0, 0));
    let next = queue.receive(std::num::NonZeroUsize::new(96).unwrap(), Duration::ZERO).await;
    assert!(next.unwrap().iter().all(|delivery| delivery.attempt == 1), "no attempt was spent");
    let status = queue.workers().await.unwrap();
    assert_eq!((status[0].phase, status[0].in_flight), (Phase::Draining, 0));
}

/// A worker of batches of four whose batch takes this long, though none before it took more than a
/// second: so the next one lies before the device, and others wait to be batched.
async fn surprised(queue: &MemoryQueue, clock: &Arc<dyn Clock>, takes: Duration) -> Surprised {
    let is_first = AtomicBool::new(true);
    let device = Device::inline(Echo::new(), move |batch: &[EchoInput]| {
        let is_long = batch.iter().any(|item| item.input.len() > "text 99".len());
        if is_long && is_first.swap(false, Relaxed) { takes } else { Duration::from_secs(1) }
    });
    let mut small = settings();
    small.limits.max_items = std::num::NonZeroUsize::new(4).unwrap();
    small.prefetch = 20;
    let parts = parts(&Arc::new(queue.clone()), clock, device, small);
    let (health, stop) = (parts.health.clone(), CancellationToken::new());
    let worker = tokio::spawn(Pipeline::new(parts).run(stop.clone()));
    queue.publish((0..40).map(echo_job).collect()).await.unwrap();
    until(queue, |depth| depth.ready + depth.in_flight == 0).await;
    queue.publish((100..124).map(echo_job).collect()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(queue.depth().await.unwrap().in_flight, 24);
    Surprised { worker, health, stop }
}

struct Surprised {
    worker: tokio::task::JoinHandle<Result<Summary, Error>>,
    health: Health,
    stop: CancellationToken,
}

/// That so many jobs are ready, and none of them is charged for what became of it.
async fn assert_uncharged(queue: &MemoryQueue, n_jobs: usize) {
    let all = std::num::NonZeroUsize::new(2 * n_jobs).unwrap();
    let ready = queue.receive(all, Duration::ZERO).await.unwrap();
    assert_eq!(ready.len(), n_jobs);
    assert!(ready.iter().all(|delivery| delivery.attempt == 1), "no attempt was spent");
    let back: Vec<_> = ready.into_iter().map(Delivery::release).collect();
    queue.settle(&back).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_drain_gives_back_at_once_what_lies_before_the_device() {
    let (queue, clock) = queue(LEASE);
    let Surprised { worker, stop, .. } = surprised(&queue, &clock, Duration::from_secs(20)).await;
    stop.cancel();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(queue.depth().await.unwrap().in_flight, 4, "those that run, and no others");
    assert_uncharged(&queue, 20).await;
    let summary = worker.await.unwrap().unwrap();
    assert_eq!((summary.completed, summary.released, summary.left), (44, 20, 0));
}

#[tokio::test(start_paused = true)]
async fn what_lies_before_a_wedged_device_is_given_back_and_a_wedge_that_ends_is_forgotten() {
    let (queue, clock) = queue(LEASE);
    let takes = Duration::from_secs(400);
    let Surprised { worker, health, stop } = surprised(&queue, &clock, takes).await;
    while health.live().is_ok() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(queue.depth().await.unwrap().in_flight, 4, "those that run, and no others");
    assert_uncharged(&queue, 20).await;

    until(&queue, |depth| depth.ready + depth.in_flight == 0).await;
    assert!(health.live().is_ok());
    for number in 100..124 {
        assert_eq!(answer(&queue, number).await, Some(echo_answer(number)));
    }
    stop.cancel();
    assert_eq!(worker.await.unwrap().unwrap().left, 0);
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_with_the_grace_period() {
    let (queue, clock) = queue(LEASE);
    queue.publish((0..3).map(echo_job).collect()).await.unwrap();
    let stop = CancellationToken::new();
    let settings = Settings { grace: Duration::from_secs(10), ..settings() };
    let device = inline(Duration::from_secs(500));
    let worker = pipeline(&Arc::new(queue.clone()), &clock, device, settings);
    let worker = tokio::spawn(worker.run(stop.clone()));
    until(&queue, |depth| depth.in_flight == 3).await;
    let start = tokio::time::Instant::now();
    stop.cancel();
    assert_eq!(worker.await.unwrap().unwrap().left, 3);
    assert!(start.elapsed() <= Duration::from_secs(12), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_wedged_device_loses_its_lease_and_the_job_moves_on() {
    let (queue, clock) = queue(LEASE);
    queue.publish(vec![echo_job(0)]).await.unwrap();
    let shared = Arc::new(queue.clone());
    let device = inline(Duration::from_secs(400));
    let parts = parts(&shared, &clock, device, settings());
    let health = parts.health.clone();
    let wedged = tokio::spawn(Pipeline::new(parts).run(CancellationToken::new()));
    until(&queue, |depth| depth.in_flight == 1).await;
    // What it receives behind the wedge is given back, and nothing more is received.
    queue.publish(vec![echo_job(1)]).await.unwrap();
    until(&queue, |depth| depth.ready == 2).await;
    assert!(health.live().is_err());

    let sound = Settings { worker: "sound".to_owned(), ..until_empty() };
    let device = inline(Duration::from_millis(5));
    let summary = pipeline(&shared, &clock, device, sound).run(CancellationToken::new()).await;
    assert_eq!(summary.unwrap().completed, 2);
    assert_eq!(answer(&queue, 0).await, Some(echo_answer(0)));
    wedged.abort();
}

#[tokio::test(start_paused = true)]
async fn a_wedged_device_gives_back_a_job_that_waits_to_be_alone() {
    let (queue, clock) = queue(LEASE);
    queue.publish(vec![echo_job(0)]).await.unwrap();
    for _ in 0..2 {
        let crashed = queue.receive(std::num::NonZeroUsize::MIN, Duration::ZERO).await.unwrap();
        assert_eq!(crashed.len(), 1);
        drop(crashed);
        tokio::time::sleep(2 * LEASE).await;
    }
    queue.publish(vec![echo_job(1)]).await.unwrap();
    let worker =
        pipeline(&Arc::new(queue.clone()), &clock, inline(Duration::from_secs(400)), settings());
    let worker = tokio::spawn(worker.run(CancellationToken::new()));
    until(&queue, |depth| depth.in_flight == 2).await;
    // The other one is on the device until it is found to be wedged, and longer.
    tokio::time::sleep(settings().stall + Duration::from_secs(5)).await;
    let both = std::num::NonZeroUsize::new(2).unwrap();
    let again = queue.receive(both, Duration::ZERO).await.unwrap();
    let again: Vec<_> = again.iter().map(|one| (one.job.id.as_str(), one.attempt)).collect();
    assert_eq!(again, [("job-0000", 3)], "charged for nothing");
    worker.abort();
}

#[tokio::test(start_paused = true)]
async fn a_job_that_wedges_its_device_takes_nobody_with_it() {
    let (queue, clock) = queue(LEASE);
    let shared = Arc::new(queue.clone());
    let mut jobs: Vec<_> = (0..64).map(echo_job).collect();
    jobs[41] = job(41, r#"{"input": "wedge"}"#);
    queue.publish(jobs).await.unwrap();
    let (mut n_lives, mut n_wedged) = (0, 0);
    loop {
        n_lives += 1;
        let device = Device::inline(Echo::new(), |batch: &[EchoInput]| {
            let is_wedged = batch.iter().any(|item| item.input == "wedge");
            if is_wedged { Duration::from_secs(400) } else { Duration::from_millis(50) }
        });
        let parts = parts(&shared, &clock, device, until_empty());
        let health = parts.health.clone();
        // A worker that is not alive any more is started anew, as a kubelet does.
        let restarted = async {
            while health.live().is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let work = Pipeline::new(parts).run(CancellationToken::new());
        let is_wedged = tokio::select! { biased;
            () = restarted => true,
            ended = work => ended.is_err(),
        };
        let depth = queue.depth().await.unwrap();
        if !is_wedged && depth.ready + depth.in_flight + depth.delayed == 0 {
            break;
        }
        n_wedged += u32::from(is_wedged);
        assert!(n_lives < 20, "{depth:?}");
        tokio::time::sleep(LEASE).await;
    }
    assert_eq!(n_wedged, 5, "as often as a job may be tried");
    let dead = queue.list(10).await.unwrap();
    assert_eq!((dead.len(), dead[0].job.id.as_str()), (1, "job-0041"));
    assert!(dead[0].reason.starts_with("all 5 attempts are spent"), "{}", dead[0].reason);
    assert_eq!(dead[0].kind, FailureKind::Attempts);
    for number in (0..64).filter(|number| *number != 41) {
        assert_eq!(answer(&queue, number).await, Some(echo_answer(number)));
        let result = queue.get(&echo_job(number).id).await.unwrap().unwrap();
        assert!(result.attempt < 5, "job {number} was answered by attempt {}", result.attempt);
    }
}

/// A device whose model is loaded at once at first, and later only when the sender is dropped; and how
/// often that has begun.
fn slow_to_load_again() -> (Device<EchoInput, String>, Sender<()>, Arc<AtomicU32>) {
    let (go, mut word) = tokio::sync::mpsc::channel(1);
    let n_loads = Arc::new(AtomicU32::new(0));
    let loads = Arc::clone(&n_loads);
    let device = Device::thread(move |_| {
        if loads.fetch_add(1, Relaxed) > 0 {
            word.blocking_recv();
        }
        Ok(Echo::new())
    });
    (device.unwrap(), go, n_loads)
}

/// For longer than a batch may take otherwise, and than the lease of these tests lasts, it lives and loses no job.
async fn assert_lives_on(health: &Health, queue: &MemoryQueue) {
    let begin = tokio::time::Instant::now();
    while begin.elapsed() < Duration::from_secs(7) {
        assert_eq!((health.live(), queue.depth().await.unwrap().ready), (Ok(()), 0));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_model_that_is_long_in_loading_again_is_no_wedge_and_costs_no_lease() {
    let (queue, clock) = queue(Duration::from_secs(6));
    let (device, go, n_loads) = slow_to_load_again();
    let settings = Settings { stall: Duration::from_secs(3), ..until_empty() };
    let parts = parts(&Arc::new(queue.clone()), &clock, device, settings);
    let health = parts.health.clone();
    queue.publish(vec![job(0, r#"{"input": "", "panic": true}"#), echo_job(1)]).await.unwrap();
    let worker = tokio::spawn(Pipeline::new(parts).run(CancellationToken::new()));
    until(&queue, |_| n_loads.load(Relaxed) == 2).await;
    assert_lives_on(&health, &queue).await;
    drop(go);
    let summary = worker.await.unwrap().unwrap();
    assert_eq!((summary.completed, summary.failed, summary.lost), (1, 1, 0));
    assert_eq!(queue.get(&echo_job(1).id).await.unwrap().unwrap().attempt, 1);
}

/// An echo that tunes kernels for its first batch, until the sender is dropped where there is one.
#[derive(Default)]
struct Tuner {
    is_tuned: bool,
    first_runs: FirstRuns,
    word: Option<Receiver<()>>,
}

impl Model for Tuner {
    type Input = EchoInput;
    type Output = String;

    fn tell_first_runs(&mut self, first_runs: FirstRuns) {
        self.first_runs = first_runs;
    }

    fn infer(&mut self, batch: &[EchoInput]) -> Result<Vec<Result<String, ItemError>>, InferError> {
        if !std::mem::replace(&mut self.is_tuned, true) {
            self.first_runs.begin();
        }
        if let Some(mut word) = self.word.take() {
            word.blocking_recv();
        }
        Echo::new().infer(batch)
    }
}

/// One that has nobody to wait for.
impl Clone for Tuner {
    fn clone(&self) -> Self {
        Self { is_tuned: self.is_tuned, first_runs: self.first_runs.clone(), word: None }
    }
}

#[tokio::test]
async fn a_batch_whose_kernels_are_tuned_is_no_wedge_and_costs_no_lease() {
    let (queue, clock) = queue(Duration::from_secs(6));
    let (go, word) = tokio::sync::mpsc::channel(1);
    let mut word = Some(word);
    let load = move |_: &mut _| Ok(Tuner { word: word.take(), ..Tuner::default() });
    let settings = Settings { stall: Duration::from_millis(500), ..until_empty() };
    let parts = parts(&Arc::new(queue.clone()), &clock, Device::thread(load).unwrap(), settings);
    let health = parts.health.clone();
    queue.publish((0..2).map(echo_job).collect()).await.unwrap();
    let worker = tokio::spawn(Pipeline::new(parts).run(CancellationToken::new()));
    until(&queue, |depth| depth.in_flight == 2).await;
    assert_lives_on(&health, &queue).await;
    drop(go);
    let summary = worker.await.unwrap().unwrap();
    assert_eq!((summary.completed, summary.lost), (2, 0));
    for number in 0..2 {
        assert_eq!(queue.get(&echo_job(number).id).await.unwrap().unwrap().attempt, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_tuning_of_kernels_took_is_not_learnt_as_the_time_of_a_batch() {
    let (queue, clock) = queue(LEASE);
    let device = Device::inline(Tuner::default(), |batch: &[EchoInput]| {
        Duration::from_secs(if batch[0].input == "text 0" { 30 } else { 1 })
    });
    let worker = pipeline(&Arc::new(queue.clone()), &clock, device, settings());
    let stop = CancellationToken::new();
    let worker = tokio::spawn(worker.run(stop.clone()));
    for number in 0..20 {
        queue.publish(vec![echo_job(number)]).await.unwrap();
        until(&queue, |depth| depth.ready + depth.in_flight == 0).await;
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    let told = queue.workers().await.unwrap();
    let time = told[0].batch_time.expect("enough batches ran");
    assert!((time.per_job - 1.0).abs() < 0.1, "{time:?}");
    stop.cancel();
    assert_eq!(worker.await.unwrap().unwrap().completed, 20);
}

#[tokio::test]
async fn a_stop_while_a_model_is_loaded_again_gives_back_what_waits_for_it() {
    let (queue, clock) = queue(LEASE);
    let (device, go, n_loads) = slow_to_load_again();
    let mut one_by_one = settings();
    one_by_one.limits.max_items = std::num::NonZeroUsize::MIN;
    let worker = pipeline(&Arc::new(queue.clone()), &clock, device, one_by_one);
    queue.publish(vec![job(0, r#"{"input": "", "panic": true}"#), echo_job(1)]).await.unwrap();
    let stop = CancellationToken::new();
    let worker = tokio::spawn(worker.run(stop.clone()));
    until(&queue, |_| n_loads.load(Relaxed) == 2).await;
    stop.cancel();
    // Also the one that was begun: who is told to stop loads no model for it.
    let summary = tokio::time::timeout(Duration::from_secs(10), worker).await;
    let summary = summary.unwrap().unwrap().unwrap();
    assert_eq!((summary.failed, summary.left), (0, 0), "{summary:?}");
    assert_uncharged(&queue, 2).await;
    drop(go);
}

#[tokio::test]
async fn a_job_that_costs_a_worker_its_device_is_charged_for_it() {
    let (queue, clock) = queue(LEASE);
    let body = r#"{"input": "", "panic": true}"#;
    queue.publish(vec![job(0, body), job(1, body)]).await.unwrap();
    let mut models = vec![Echo::new()];
    let device = Device::thread(move |_| models.pop().ok_or_else(|| "no memory left".into()));
    let mut patient = settings();
    (patient.retry.base, patient.retry.cap) = (Duration::from_secs(600), Duration::from_secs(600));
    let worker = pipeline(&Arc::new(queue.clone()), &clock, device.unwrap(), patient);
    let error = worker.run(CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.to_string(), "device is lost: no memory left");
    // Both were in the batch that failed; they are tried again, after a while.
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.ready, depth.delayed, depth.in_flight), (0, 2, 0));
}

#[tokio::test]
async fn a_device_that_is_lost_to_one_job_charges_none_that_is_known_to_be_another() {
    let (queue, clock) = queue(LEASE);
    let mut jobs: Vec<_> = (0..4).map(echo_job).collect();
    jobs[3] = job(3, r#"{"input": "", "panic": true}"#);
    queue.publish(jobs).await.unwrap();
    // The last of them is found by the third batch, after which there is no model for the others.
    let mut models = vec![Echo::new(); 3];
    let device = Device::thread(move |_| models.pop().ok_or_else(|| "no memory left".into()));
    let worker = pipeline(&Arc::new(queue.clone()), &clock, device.unwrap(), settings());
    let error = worker.run(CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.to_string(), "device is lost: no memory left");
    let dead = queue.list(9).await.unwrap();
    assert_eq!((dead.len(), dead[0].job.id.as_str()), (1, "job-0003"));
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.ready, depth.delayed, depth.in_flight), (3, 0, 0));
    assert_uncharged(&queue, 3).await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_job_keeps_its_lease() {
    let (queue, clock) = queue(LEASE);
    queue.publish(vec![echo_job(0)]).await.unwrap();
    let settings = Settings { stall: Duration::from_secs(1000), ..until_empty() };
    let device = inline(Duration::from_secs(300));
    let worker = pipeline(&Arc::new(queue.clone()), &clock, device, settings);
    let summary = worker.run(CancellationToken::new()).await.unwrap();
    assert_eq!((summary.completed, summary.lost), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_was_stored_before_a_crash_is_not_turned_into_a_failure() {
    let (queue, clock) = queue(LEASE);
    queue.publish(vec![echo_job(0)]).await.unwrap();
    let one = std::num::NonZeroUsize::MIN;
    for attempt in 1..=5 {
        let delivery = queue.receive(one, 2 * LEASE).await.unwrap().pop().unwrap();
        if attempt == 5 {
            let body = bytes::Bytes::from("{}");
            let outcome = Outcome::Completed { content_type: "application/json".into(), body };
            let id = delivery.job.id.clone();
            let finished_at = clock.now();
            let result = ebb_queue::JobResult { id, attempt, outcome, finished_at, queue: None };
            queue.put(&result).await.unwrap();
        }
        drop(delivery);
        tokio::time::sleep(2 * LEASE).await;
    }
    let device = inline(Duration::from_millis(5));
    let worker = pipeline(&Arc::new(queue.clone()), &clock, device, until_empty());
    let summary = worker.run(CancellationToken::new()).await.unwrap();
    assert_eq!((summary.completed, summary.failed), (1, 0));
    assert!(queue.list(10).await.unwrap().is_empty());
    assert_eq!(answer(&queue, 0).await.as_deref(), Some("{}"));
}

#[tokio::test(start_paused = true)]
async fn spent_attempts_end_in_the_dead_letters_on_receipt() {
    let (queue, clock) = queue(LEASE);
    queue.publish(vec![echo_job(0)]).await.unwrap();
    for _ in 0..5 {
        let crashed = queue.receive(std::num::NonZeroUsize::MIN, 2 * LEASE).await.unwrap();
        drop(crashed);
        tokio::time::sleep(2 * LEASE).await;
    }
    let device = inline(Duration::from_millis(5));
    let worker = pipeline(&Arc::new(queue.clone()), &clock, device, until_empty());
    worker.run(CancellationToken::new()).await.unwrap();
    let dead = queue.list(10).await.unwrap();
    assert!(dead[0].reason.starts_with("all 5 attempts are spent"), "{}", dead[0].reason);
    assert_eq!(dead[0].kind, FailureKind::Attempts);
    assert!(dead[0].history.len() >= 5, "{:?}", dead[0].history);
    assert_eq!(answer(&queue, 0).await, None);
}

#[tokio::test(start_paused = true)]
async fn jobs_that_are_given_back_at_once_do_not_count_as_received() {
    let (queue, clock) = queue(LEASE);
    queue.publish((0..12).map(echo_job).collect()).await.unwrap();
    for _ in 0..2 {
        let all = std::num::NonZeroUsize::new(12).unwrap();
        let crashed = queue.receive(all, Duration::ZERO).await.unwrap();
        assert_eq!(crashed.len(), 12);
        drop(crashed);
        tokio::time::sleep(2 * LEASE).await;
    }
    // Each is on its third attempt, and so is held by itself.
    let settings = Settings { max_jobs: Some(10), ..settings() };
    let device = inline(Duration::from_millis(5));
    let worker = pipeline(&Arc::new(queue.clone()), &clock, device, settings);
    let summary = worker.run(CancellationToken::new()).await.unwrap();
    assert_eq!((summary.completed, summary.failed, summary.left), (10, 0, 0));
    assert_eq!(queue.depth().await.unwrap().ready, 2);
}

#[tokio::test(start_paused = true)]
async fn high_priority_runs_first() {
    let (queue, clock) = queue(LEASE);
    let mut jobs: Vec<_> = (0..12).map(echo_job).collect();
    for job in &mut jobs[8..] {
        job.headers.priority = Priority::High;
    }
    queue.publish(jobs).await.unwrap();
    let mut small = settings();
    small.limits.max_items = std::num::NonZeroUsize::new(4).unwrap();
    let device = inline(Duration::from_secs(1));
    let worker = pipeline(&Arc::new(queue.clone()), &clock, device, small);
    let worker = tokio::spawn(worker.run(CancellationToken::new()));
    until(&queue, |depth| depth.in_flight == 8).await;
    for number in 8..12 {
        assert_eq!(answer(&queue, number).await, Some(echo_answer(number)));
    }
    worker.abort();
}

#[tokio::test]
async fn a_device_without_a_model_ends_the_worker_before_it_takes_a_job() {
    let (queue, clock) = queue(LEASE);
    queue.publish(vec![echo_job(0)]).await.unwrap();
    let device = Device::thread::<Echo, _>(|_| Err("no weights".into())).unwrap();
    let worker = pipeline(&Arc::new(queue.clone()), &clock, device, settings());
    let error = worker.run(CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.to_string(), "device is lost: no weights");
    assert_eq!(queue.depth().await.unwrap().ready, 1);
}

#[tokio::test(start_paused = true)]
async fn a_job_alerts_once_though_it_runs_twice() {
    let (jobs, clock) = queue(LEASE);
    let (alerts, _) = queue(LEASE);
    jobs.publish(vec![echo_job(0), echo_job(1)]).await.unwrap();
    // An earlier attempt at the first job got as far as its alert.
    let mut earlier = job(0, "{}");
    earlier.id = "job-0000-alert".parse().unwrap();
    alerts.publish(vec![earlier]).await.unwrap();
    let models =
        vec![ModelParts::new("alarmed", Alarmed { about: |_| true }, inline(Duration::ZERO))];
    let mut served = served("default", &Arc::new(jobs.clone()), models);
    served.alerts = Arc::new(alerts.clone());
    let alarmed = parts_of(vec![served], &clock, until_empty());
    let summary = Pipeline::new(alarmed).run(CancellationToken::new()).await.unwrap();
    assert_eq!(summary.completed, 2);
    let told =
        alerts.receive(std::num::NonZeroUsize::new(9).unwrap(), Duration::ZERO).await.unwrap();
    let ids: Vec<_> = told.iter().map(|alert| alert.job.id.to_string()).collect();
    assert_eq!(ids, ["job-0000-alert", "job-0001-alert"]);
}
