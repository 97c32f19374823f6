//! A worker around a queue in memory, and jobs for it.
#![allow(dead_code, reason = "each test binary uses a part of this")]
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use ebb_model::echo::EchoInput;
use ebb_queue::memory::MemoryQueue;
use ebb_queue::{
    AnyQueue, Backlog, Behavior, Broker, Clock, Depth, Job, OpenOptions, Outcome, ResultStore,
    RetryPolicy, Timestamp, TokioClock,
};
use ebb_telemetry::{Health, Traces};
use ebb_worker::batcher::{Limits, Size};
use ebb_worker::{
    Answer, BadJob, Codec, Device, EchoCodec, Metrics, ModelParts, Parts, Pipeline, QueueParts,
    Settings, Spent,
};

/// When simulated time begins.
pub(crate) const EPOCH: Timestamp = Timestamp::UNIX_EPOCH;

/// A queue that follows tokio's time.
pub(crate) fn queue(lease: Duration) -> (MemoryQueue, Arc<dyn Clock>) {
    let clock: Arc<dyn Clock> = Arc::new(TokioClock::starting_at(EPOCH));
    let options = OpenOptions {
        worker: "test".to_owned(),
        clock: Arc::clone(&clock),
        ..OpenOptions::default()
    };
    (MemoryQueue::new(&Behavior { lease, ..Behavior::default() }, options), clock)
}

/// A job named by its number, with this body.
pub(crate) fn job(number: usize, body: &str) -> Job {
    let mut job = Job::new(body.to_owned(), EPOCH);
    job.id = format!("job-{number:04}").parse().unwrap();
    job
}

/// A job that an echo answers.
pub(crate) fn echo_job(number: usize) -> Job {
    job(number, &format!(r#"{{"input": "text {number}"}}"#))
}

/// What an echo answers to it.
pub(crate) fn echo_answer(number: usize) -> String {
    format!(r#"{{"output":"text {number}"}}"#)
}

pub(crate) fn settings() -> Settings {
    Settings {
        worker: "worker-1".to_owned(),
        pod: "pod-1".to_owned(),
        limits: Limits {
            max_items: NonZeroUsize::new(64).unwrap(),
            max_cost: NonZeroUsize::new(8192).unwrap(),
            max_wait: Duration::from_millis(5),
        },
        prefetch: 64,
        retry: RetryPolicy {
            max_attempts: 5,
            base: Duration::from_millis(100),
            cap: Duration::from_secs(5),
        },
        stall: Duration::from_secs(60),
        grace: Duration::from_secs(25),
        decode_threads: 0,
        max_body: 1 << 20,
        max_job_cost: 1 << 16,
        exit_when_empty: false,
        max_jobs: None,
        deletion_cost: None,
    }
}

/// A queue that is every seam of itself, and its models.
pub(crate) fn served<Q: AnyQueue + 'static>(
    name: &str,
    queue: &Arc<Q>,
    models: Vec<ModelParts>,
) -> QueueParts {
    QueueParts {
        name: name.to_owned(),
        model: "echo on cpu".to_owned(),
        broker: Arc::clone(queue) as Arc<dyn Broker>,
        results: Arc::clone(queue) as Arc<dyn ResultStore>,
        alerts: Arc::clone(queue) as Arc<dyn Broker>,
        models,
    }
}

/// The parts of a worker that serves these queues.
pub(crate) fn parts_of(
    queues: Vec<QueueParts>,
    clock: &Arc<dyn Clock>,
    settings: Settings,
) -> Parts {
    Parts {
        queues,
        settings,
        clock: Arc::clone(clock),
        seed: 7,
        metrics: Metrics::default(),
        health: Health::new(),
        traces: Traces::default(),
    }
}

/// The parts of a worker whose every seam is this queue.
pub(crate) fn parts<Q: AnyQueue + 'static>(
    queue: &Arc<Q>,
    clock: &Arc<dyn Clock>,
    device: Device<EchoInput, String>,
    settings: Settings,
) -> Parts {
    let models = vec![ModelParts::new("echo", EchoCodec, device)];
    parts_of(vec![served("default", queue, models)], clock, settings)
}

pub(crate) fn pipeline<Q: AnyQueue + 'static>(
    queue: &Arc<Q>,
    clock: &Arc<dyn Clock>,
    device: Device<EchoInput, String>,
    settings: Settings,
) -> Pipeline {
    Pipeline::new(parts(queue, clock, device, settings))
}

/// An echo that raises an alert about some jobs.
pub(crate) struct Alarmed {
    pub(crate) about: fn(&Job) -> bool,
}

impl Codec for Alarmed {
    type Input = EchoInput;
    type Output = String;
    type Asked = ();

    fn decode(&self, job: &Job) -> Result<(EchoInput, ()), BadJob> {
        EchoCodec.decode(job)
    }

    fn size(&self, input: &EchoInput) -> Size {
        EchoCodec.size(input)
    }

    fn encode(&self, output: String, (): (), job: &Job, spent: &Spent) -> Answer {
        let alert = (self.about)(job).then(|| "{}".into());
        Answer { alert, ..EchoCodec.encode(output, (), job, spent) }
    }
}

/// Waits until the depth is as wanted.
pub(crate) async fn until(queue: &MemoryQueue, is_so: impl Fn(&Depth) -> bool) {
    // Of the machine's time, since simulated time flies while a model computes.
    let begin = std::time::Instant::now();
    loop {
        let depth = queue.depth().await.unwrap();
        if is_so(&depth) {
            return;
        }
        assert!(begin.elapsed() < Duration::from_secs(120), "it stays as it is: {depth:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The answer to a job, if it has one.
pub(crate) async fn answer(queue: &MemoryQueue, number: usize) -> Option<String> {
    let id = format!("job-{number:04}").parse().unwrap();
    match queue.get(&id).await.unwrap()?.outcome {
        Outcome::Completed { body, .. } => Some(String::from_utf8(body.to_vec()).unwrap()),
        Outcome::Failed { .. } | Outcome::Cancelled => None,
    }
}
