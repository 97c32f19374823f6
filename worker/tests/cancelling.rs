//! Jobs that somebody cancels while a worker has them.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ebb_model::echo::{Echo, EchoInput};
use ebb_queue::faulty::{Faults, Faulty};
use ebb_queue::memory::MemoryQueue;
use ebb_queue::{
    AnyQueue, Backlog, Broker, Cancelled, ErrorKind, Frame, Job, JobId, Operator, Outcome,
    ResultStore,
};
use ebb_worker::{Device, Metrics, ModelParts, Pipeline, Settings, Summary};
use futures::StreamExt;
use support::{Alarmed, echo_job, job, parts, parts_of, queue, served, settings};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

const LEASE: Duration = Duration::from_secs(30);
const TURN: Duration = Duration::from_millis(50);

/// A worker that takes one job at a time to its device, and what ran there.
struct Working {
    worker: JoinHandle<Summary>,
    metrics: Metrics,
    ran: Arc<Mutex<Vec<String>>>,
}

impl Working {
    fn start<B: AnyQueue + 'static>(
        broker: &Arc<B>,
        clock: &Arc<dyn ebb_queue::Clock>,
        takes: Duration,
    ) -> Self {
        let ran = Arc::<Mutex<Vec<String>>>::default();
        let inputs = Arc::clone(&ran);
        let device = Device::inline(Echo::new(), move |batch: &[EchoInput]| {
            inputs.lock().unwrap().extend(batch.iter().map(|item| item.input.clone()));
            takes
        });
        let mut settings = Settings { exit_when_empty: true, prefetch: 4, ..settings() };
        settings.limits.max_items = NonZeroUsize::MIN;
        let parts = parts(broker, clock, device, settings);
        let metrics = parts.metrics.clone();
        let work = Pipeline::new(parts).run(CancellationToken::new());
        let worker = tokio::spawn(async move { work.await.unwrap() });
        Self { worker, metrics, ran }
    }

    fn n_cancelled(&self) -> u64 {
        self.metrics.jobs.with_label_values(&["cancelled", "echo"]).get()
    }
}

/// A job that is told word by word.
fn long_job(number: usize, n_words: usize) -> Job {
    let words = "word ".repeat(n_words);
    job(number, &format!(r#"{{"input": "{words}", "stream": true}}"#))
}

fn asking(mut job: Job) -> Job {
    job.headers.reply_to = Some("replies".to_owned());
    job
}

fn id(number: usize) -> JobId {
    format!("job-{number:04}").parse().unwrap()
}

async fn outcome(queue: &MemoryQueue, number: usize) -> Option<Outcome> {
    queue.get(&id(number)).await.unwrap().map(|result| result.outcome)
}

/// What was told of a job, in order.
fn told(queue: &MemoryQueue, number: usize) -> Vec<Outcome> {
    let replies = queue.replies().into_iter().map(|(_, reply)| reply);
    replies.filter(|reply| reply.id == id(number)).map(|reply| reply.outcome).collect()
}

#[tokio::test(start_paused = true)]
async fn a_job_that_takes_turns_stops_soon_and_makes_room() {
    let (queue, clock) = queue(LEASE);
    queue.publish(vec![asking(long_job(0, 10_000))]).await.unwrap();
    let begin = Instant::now();
    let working = Working::start(&Arc::new(queue.clone()), &clock, TURN);
    sleep(Duration::from_secs(2)).await;
    let mut frames = queue.follow(&id(0), 0).await.unwrap();
    assert!(matches!(frames.next().await, Some(Ok(Frame::Chunk { .. }))));
    queue.publish(vec![echo_job(1)]).await.unwrap();
    assert_eq!(queue.cancel(&id(0)).await.unwrap(), Cancelled::Running);
    let n_cancelled = working.n_cancelled();
    let (metrics, ran) = (working.metrics.clone(), Arc::clone(&working.ran));
    let summary = working.worker.await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    assert_eq!((n_cancelled, summary.cancelled, summary.completed, summary.lost), (0, 1, 1, 0));
    assert_eq!(metrics.jobs.with_label_values(&["cancelled", "echo"]).get(), 1);
    assert_eq!(metrics.leases_lost.get(), 0);
    assert_eq!(outcome(&queue, 0).await, Some(Outcome::Cancelled));
    assert_eq!(told(&queue, 0), [Outcome::Cancelled]);
    assert_eq!(ran.lock().unwrap().last().map(String::as_str), Some("text 1"));
    let last = frames.collect::<Vec<_>>().await.pop().unwrap().unwrap();
    assert!(matches!(last, Frame::Final(result) if result.outcome == Outcome::Cancelled));
    assert!(metrics.failed_seconds.with_label_values(&["echo"]).get() > 1.0, "it is counted");
}

#[tokio::test(start_paused = true)]
async fn one_that_waits_in_the_worker_never_comes_to_the_device() {
    let (queue, clock) = queue(LEASE);
    queue.publish((0..4).map(|n| asking(echo_job(n))).collect()).await.unwrap();
    let working = Working::start(&Arc::new(queue.clone()), &clock, Duration::from_secs(5));
    support::until(&queue, |depth| depth.in_flight == 4).await;
    sleep(Duration::from_secs(1)).await;
    for number in [2, 3] {
        assert_eq!(queue.cancel(&id(number)).await.unwrap(), Cancelled::Running);
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!(working.n_cancelled(), 2, "nobody waits for the device to let them go");
    let ran = Arc::clone(&working.ran);
    let summary = working.worker.await.unwrap();
    assert_eq!((summary.completed, summary.cancelled), (2, 2));
    assert_eq!(*ran.lock().unwrap(), ["text 0", "text 1"]);
    for number in [2, 3] {
        assert_eq!(told(&queue, number), [Outcome::Cancelled]);
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_is_in_a_batch_runs_to_its_end_and_what_came_of_it_is_dropped() {
    let (queue, clock) = queue(LEASE);
    let failing = job(1, r#"{"input": "", "fail": true}"#);
    for (number, job) in [(0, echo_job(0)), (1, failing)] {
        queue.publish(vec![asking(job)]).await.unwrap();
        let working = Working::start(&Arc::new(queue.clone()), &clock, Duration::from_secs(5));
        sleep(Duration::from_secs(1)).await;
        assert_eq!(queue.cancel(&id(number)).await.unwrap(), Cancelled::Running);
        let metrics = working.metrics.clone();
        let summary = working.worker.await.unwrap();
        let answered = metrics.device_seconds.with_label_values(&["echo", "none"]).get();
        let failed = metrics.failed_seconds.with_label_values(&["echo"]).get();
        assert_eq!(answered, 0.0, "job {number}");
        assert!(failed > 0.0, "job {number}");
        assert_eq!((summary.completed, summary.failed, summary.cancelled), (0, 0, 1));
        assert_eq!(outcome(&queue, number).await, Some(Outcome::Cancelled));
        assert_eq!(told(&queue, number), [Outcome::Cancelled]);
    }
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.ready, depth.in_flight, depth.dead), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn one_that_is_known_to_be_cancelled_alerts_nobody() {
    let ((queue, clock), (alerts, _)) = (queue(LEASE), queue(LEASE));
    queue.publish(vec![echo_job(0)]).await.unwrap();
    let device = Device::inline(Echo::new(), |_: &[EchoInput]| LEASE / 2);
    let models = vec![ModelParts::new("alarmed", Alarmed { about: |_| true }, device)];
    let mut served = served("default", &Arc::new(queue.clone()), models);
    served.alerts = Arc::new(alerts.clone());
    let settings = Settings { exit_when_empty: true, ..settings() };
    let parts = parts_of(vec![served], &clock, settings);
    let worker = tokio::spawn(Pipeline::new(parts).run(CancellationToken::new()));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(queue.cancel(&id(0)).await.unwrap(), Cancelled::Running);
    let summary = worker.await.unwrap().unwrap();
    assert_eq!((summary.completed, summary.cancelled), (0, 1));
    assert_eq!(alerts.depth().await.unwrap().ready, 0);
}

#[tokio::test(start_paused = true)]
async fn who_hears_nothing_finds_out_with_the_next_extension_of_its_lease() {
    let (queue, clock) = queue(LEASE);
    // A worker that cannot hear, and cannot look either until later.
    let deaf = Faults { fail_before: 1.0, kind: ErrorKind::Denied, ..Faults::NONE };
    let faulty = Faulty::new(Arc::new(queue.clone()), deaf, 1);
    let mut quiet = job(0, &format!(r#"{{"input": "{}"}}"#, "word ".repeat(10)));
    quiet.headers.reply_to = Some("replies".to_owned());
    queue.publish(vec![quiet]).await.unwrap();
    let device = Device::inline(Echo::new(), |_: &[EchoInput]| LEASE * 2);
    let settings = Settings { exit_when_empty: true, ..settings() };
    let mut parts = parts(&Arc::new(queue.clone()), &clock, device, settings);
    parts.queues[0].results = Arc::new(faulty.clone());
    let worker = tokio::spawn(Pipeline::new(parts).run(CancellationToken::new()));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(queue.cancel(&id(0)).await.unwrap(), Cancelled::Running);
    sleep(LEASE).await;
    faulty.set(Faults::NONE);
    let summary = worker.await.unwrap().unwrap();
    assert_eq!((summary.completed, summary.cancelled, summary.lost), (0, 1, 0));
    assert_eq!(told(&queue, 0), [Outcome::Cancelled]);
}

#[tokio::test(start_paused = true)]
async fn who_cancels_is_charged_nothing_though_it_is_found_out_only_where_the_answer_is_stored() {
    let (queue, clock) = queue(LEASE);
    // Hints cannot be looked into, and the batch ends before the lease is extended.
    let deaf = Faults { fail_before: 1.0, kind: ErrorKind::Denied, ..Faults::NONE };
    let faulty = Faulty::new(Arc::new(queue.clone()), deaf, 1);
    queue.publish(vec![asking(echo_job(0))]).await.unwrap();
    let device = Device::inline(Echo::new(), |_: &[EchoInput]| Duration::from_secs(8));
    let settings = Settings { exit_when_empty: true, ..settings() };
    let mut parts = parts(&Arc::new(queue.clone()), &clock, device, settings);
    parts.queues[0].results = Arc::new(faulty.clone());
    let metrics = parts.metrics.clone();
    let worker = tokio::spawn(Pipeline::new(parts).run(CancellationToken::new()));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(queue.cancel(&id(0)).await.unwrap(), Cancelled::Running);
    sleep(Duration::from_secs(6)).await;
    assert_eq!(metrics.jobs.with_label_values(&["cancelled", "echo"]).get(), 0);
    faulty.set(Faults::NONE);
    let summary = worker.await.unwrap().unwrap();
    assert_eq!((summary.completed, summary.cancelled), (0, 1));
    assert_eq!(metrics.device_seconds.with_label_values(&["echo", "none"]).get(), 0.0);
    assert_eq!(metrics.failed_seconds.with_label_values(&["echo"]).get(), 8.0);
    assert_eq!(told(&queue, 0), [Outcome::Cancelled]);
}
