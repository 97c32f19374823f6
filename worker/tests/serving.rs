//! One worker with several models and several queues: who answers whom, and what harms nobody else.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use ebb_model::echo::{Echo, EchoInput};
use ebb_model::{InferError, ItemError, Model};
use ebb_queue::memory::MemoryQueue;
use ebb_queue::{Backlog, Broker, Clock, DeadLetters, Job, Phase, WorkerStatus};
use ebb_worker::batcher::Size;
use ebb_worker::{
    Answer, BadJob, Codec, Device, DeviceBuilder, EchoCodec, ModelParts, Parts, Pipeline, Settings,
    Spent,
};
use support::{answer, echo_answer, echo_job, job, parts_of, queue, served, settings, until};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

const LEASE: Duration = Duration::from_secs(30);

/// A model whose input and output are of other types than an echo's: it counts letters.
struct Lengths;

impl Model for Lengths {
    type Input = String;
    type Output = usize;

    fn infer(&mut self, batch: &[String]) -> Result<Vec<Result<usize, ItemError>>, InferError> {
        Ok(batch.iter().map(|text| Ok(text.len())).collect())
    }
}

struct LengthsCodec;

impl Codec for LengthsCodec {
    type Input = String;
    type Output = usize;
    type Asked = usize;

    fn decode(&self, job: &Job) -> Result<(String, usize), BadJob> {
        let (EchoInput { input, .. }, ()) = EchoCodec.decode(job)?;
        let words = input.split(' ').count();
        Ok((input, words))
    }

    fn size(&self, input: &String) -> Size {
        Size::of([input.len().max(1)])
    }

    fn encode(&self, output: usize, words: usize, _: &Job, spent: &Spent) -> Answer {
        let body = format!("{output} letters, {words} words, share {:.2}", spent.share).into();
        Answer {
            content_type: "text/plain",
            body,
            alert: None,
            tokens: output,
            n_cut: 0,
            n_reused: 0,
        }
    }
}

/// An echo and a counter of letters on one device.
fn models() -> (ModelParts, ModelParts) {
    models_with(Echo::new())
}

fn models_with(echo: Echo) -> (ModelParts, ModelParts) {
    let mut builder = DeviceBuilder::default();
    let echo = builder.add(move |_| Ok(echo.clone()));
    let lengths = builder.add(|_| Ok(Lengths));
    builder.start().unwrap();
    (ModelParts::new("echo", EchoCodec, echo), ModelParts::new("lengths", LengthsCodec, lengths))
}

struct Scene {
    echoes: MemoryQueue,
    lengths: MemoryQueue,
    clock: Arc<dyn Clock>,
}

fn scene() -> Scene {
    let (echoes, clock) = queue(LEASE);
    let (lengths, _) = queue(LEASE);
    Scene { echoes, lengths, clock }
}

impl Scene {
    /// A worker with a queue for each of two models.
    fn parts(&self, settings: Settings) -> Parts {
        self.parts_with(Echo::new(), settings)
    }

    fn parts_with(&self, echo: Echo, settings: Settings) -> Parts {
        let (echo, lengths) = models_with(echo);
        let queues = vec![
            served("echoes", &Arc::new(self.echoes.clone()), vec![echo]),
            served("lengths", &Arc::new(self.lengths.clone()), vec![lengths]),
        ];
        parts_of(queues, &self.clock, settings)
    }

    /// A worker with an echo for each queue that runs in simulated time: a device with a thread of
    /// its own would let a paused clock run ahead.
    fn parts_inline(&self, settings: Settings) -> Parts {
        let device = Device::inline(Echo::new(), |_: &[EchoInput]| Duration::ZERO);
        let model = ModelParts::new("echo", EchoCodec, device);
        let queues = vec![
            served("echoes", &Arc::new(self.echoes.clone()), vec![model.clone()]),
            served("lengths", &Arc::new(self.lengths.clone()), vec![model]),
        ];
        parts_of(queues, &self.clock, settings)
    }
}

fn until_empty() -> Settings {
    Settings { exit_when_empty: true, ..settings() }
}

#[tokio::test]
async fn each_queue_is_answered_by_its_model_and_no_batch_has_both() {
    let scene = scene();
    scene.echoes.publish((0..150).map(echo_job).collect()).await.unwrap();
    let body = r#"{"input": "four four"}"#;
    scene.lengths.publish((0..90).map(|number| job(number, body)).collect()).await.unwrap();
    let parts = scene.parts(until_empty());
    let metrics = parts.metrics.clone();
    let summary = Pipeline::new(parts).run(CancellationToken::new()).await.unwrap();
    assert_eq!((summary.completed, summary.failed, summary.left), (240, 0, 0));
    for number in 0..150 {
        assert_eq!(answer(&scene.echoes, number).await, Some(echo_answer(number)));
    }
    for number in 0..90 {
        let told = answer(&scene.lengths, number).await.unwrap();
        assert!(told.starts_with("9 letters, 2 words, share 0."), "{told}");
    }
    // A batch with both would be a panic of a cast; the sums say that all ran as what they are.
    let batched = |model| metrics.batch_items.with_label_values(&[model]).get_sample_sum() as u64;
    assert_eq!((batched("echo"), batched("lengths")), (150, 90));
    let done = |model| metrics.jobs.with_label_values(&["completed", model]).get();
    assert_eq!((done("echo"), done("lengths")), (150, 90));
    assert_eq!(metrics.tokens.with_label_values(&["lengths", "none"]).get(), 90 * 9);
}

#[tokio::test]
async fn poison_a_panic_and_a_lack_of_memory_in_one_queue_cost_the_other_nothing() {
    let scene = scene();
    let mut jobs: Vec<_> = (0..64).map(echo_job).collect();
    jobs[5] = job(5, r#"{"input": "", "poison": true}"#);
    jobs[6] = job(6, r#"{"input": "", "panic": true}"#);
    scene.echoes.publish(jobs).await.unwrap();
    let body = r#"{"input": "four"}"#;
    scene.lengths.publish((0..64).map(|number| job(number, body)).collect()).await.unwrap();
    let parts = scene.parts_with(Echo::new().with_memory_for(20), until_empty());
    let metrics = parts.metrics.clone();
    let summary = Pipeline::new(parts).run(CancellationToken::new()).await.unwrap();
    assert_eq!((summary.completed, summary.failed, summary.retried), (126, 2, 0));
    let failed = |model| metrics.batches_failed.with_label_values(&[model]).get();
    assert!(failed("echo") > 2);
    assert_eq!(failed("lengths"), 0);
    // The 64 of the first batch were too many, and then 32.
    let limit = |model| metrics.max_cost.with_label_values(&[model]).get();
    assert_eq!((limit("echo"), limit("lengths")), (16, 8192));
    let mut dead = scene.echoes.list(10).await.unwrap();
    dead.sort_by(|a, b| a.job.id.cmp(&b.job.id));
    let reasons: Vec<_> = dead.iter().map(|letter| letter.reason.as_str()).collect();
    assert_eq!(
        reasons,
        ["batch failed: an item is poison", "batch failed: panic: an item asked for a panic"]
    );
    assert!(scene.lengths.list(10).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_job_chooses_among_the_models_of_its_queue() {
    let (queue, clock) = queue(LEASE);
    let asking = |number, model: Option<&str>| {
        let mut job = job(number, r#"{"input": "four"}"#);
        job.headers.model = model.map(str::to_owned);
        job
    };
    let jobs = vec![
        asking(0, None),
        asking(1, Some("lengths")),
        asking(2, Some("acme/lengths")),
        asking(3, Some("echo")),
        asking(4, Some("minilm")),
    ];
    queue.publish(jobs).await.unwrap();
    let (echo, lengths) = models();
    let queues = vec![served("mixed", &Arc::new(queue.clone()), vec![echo, lengths])];
    let parts = parts_of(queues, &clock, until_empty());
    let metrics = parts.metrics.clone();
    let summary = Pipeline::new(parts).run(CancellationToken::new()).await.unwrap();
    assert_eq!((summary.completed, summary.failed), (4, 1));
    let echoed = Some(r#"{"output":"four"}"#.to_owned());
    assert_eq!((answer(&queue, 0).await, answer(&queue, 3).await), (echoed.clone(), echoed));
    for number in [1, 2] {
        assert!(answer(&queue, number).await.unwrap().starts_with("4 letters"));
    }
    let dead = queue.list(10).await.unwrap();
    assert_eq!(
        dead[0].reason,
        "ebb-model is minilm; the models of queue mixed here are echo, lengths: name one of them, \
         or none for the first"
    );
    assert_eq!(dead[0].kind, ebb_queue::FailureKind::Model, "who serves models has to know");
    assert_eq!(metrics.jobs.with_label_values(&["rejected", "none"]).get(), 1);
}

#[tokio::test]
async fn a_worker_counts_its_jobs_over_all_queues() {
    let scene = scene();
    scene.echoes.publish((0..50).map(echo_job).collect()).await.unwrap();
    scene.lengths.publish((0..50).map(echo_job).collect()).await.unwrap();
    let parts = scene.parts(Settings { max_jobs: Some(70), ..settings() });
    let summary = Pipeline::new(parts).run(CancellationToken::new()).await.unwrap();
    assert_eq!(summary.completed, 70);
    let left =
        scene.echoes.depth().await.unwrap().ready + scene.lengths.depth().await.unwrap().ready;
    assert_eq!(left, 30);
}

#[tokio::test]
async fn each_queue_sees_the_worker_as_it_is_for_this_queue() {
    let scene = scene();
    // Longer than anybody looks; the worker ends with the test and not with the job.
    let slow = r#"{"input": "", "sleep_ms": 60000}"#;
    scene.echoes.publish(vec![job(0, slow)]).await.unwrap();
    let worker = Pipeline::new(scene.parts(settings())).run(CancellationToken::new());
    let worker = AbortOnDropHandle::new(tokio::spawn(worker));
    let busy = told(&scene.echoes, |status| status.phase == Phase::Busy).await;
    // What was told of the other queue before does not count.
    let other = told(&scene.lengths, |status| status.at > busy.at).await;
    assert_eq!((busy.in_flight, other.phase, other.in_flight), (1, Phase::Idle, 0));
    drop(worker);
}

/// The first status of this kind that the worker tells of itself at a queue.
async fn told(queue: &MemoryQueue, is_it: impl Fn(&WorkerStatus) -> bool) -> WorkerStatus {
    let begun = Instant::now();
    loop {
        let seen = queue.workers().await.unwrap();
        if let Some(status) = seen.iter().find(|status| is_it(status)) {
            return status.clone();
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{seen:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_stop_gives_back_what_had_not_begun_to_each_queue() {
    let scene = scene();
    let slow = r#"{"input": "text", "sleep_ms": 300}"#;
    scene.echoes.publish((0..40).map(|number| job(number, slow)).collect()).await.unwrap();
    scene.lengths.publish((0..40).map(echo_job).collect()).await.unwrap();
    let mut small = settings();
    small.limits.max_items = NonZeroUsize::new(2).unwrap();
    small.prefetch = 20;
    let stop = CancellationToken::new();
    let worker = tokio::spawn(Pipeline::new(scene.parts(small)).run(stop.clone()));
    // A queue holds a batch and its share of what is received ahead.
    until(&scene.echoes, |depth| depth.in_flight == 12).await;
    stop.cancel();
    let summary = worker.await.unwrap().unwrap();
    assert_eq!(summary.left, 0, "{summary:?}");
    let mut n_left = 0;
    for queue in [&scene.echoes, &scene.lengths] {
        let depth = queue.depth().await.unwrap();
        assert_eq!((depth.in_flight, depth.delayed, depth.dead), (0, 0, 0));
        n_left += depth.ready;
        let all = NonZeroUsize::new(64).unwrap();
        let back = queue.receive(all, Duration::ZERO).await.unwrap();
        assert!(back.iter().all(|delivery| delivery.attempt == 1), "no attempt was spent");
    }
    assert_eq!(n_left + summary.completed, 80);
}

#[tokio::test(start_paused = true)]
async fn jobs_that_must_be_alone_do_not_wait_long_for_a_queue_that_is_empty() {
    let scene = scene();
    scene.echoes.publish((0..30).map(echo_job).collect()).await.unwrap();
    for _ in 0..2 {
        drop(scene.echoes.receive(NonZeroUsize::new(30).unwrap(), LEASE).await.unwrap());
        tokio::time::sleep(2 * LEASE).await;
    }
    let parts = scene.parts_inline(settings());
    let (stop, start) = (CancellationToken::new(), Instant::now());
    let worker = tokio::spawn(Pipeline::new(parts).run(stop.clone()));
    until(&scene.echoes, |depth| depth.ready + depth.in_flight == 0).await;
    let took = start.elapsed();
    stop.cancel();
    assert_eq!(worker.await.unwrap().unwrap().completed, 30);
    assert!(took < Duration::from_secs(5), "30 jobs took {took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_job_that_may_crash_its_worker_is_held_while_no_other_queue_holds_any() {
    let scene = scene();
    scene.echoes.publish(vec![echo_job(0)]).await.unwrap();
    for _ in 0..2 {
        let crashed = scene.echoes.receive(NonZeroUsize::MIN, 2 * LEASE).await.unwrap();
        drop(crashed);
        tokio::time::sleep(2 * LEASE).await;
    }
    scene.lengths.publish((0..20).map(echo_job).collect()).await.unwrap();
    let worker = Pipeline::new(scene.parts_inline(until_empty()));
    let summary = worker.run(CancellationToken::new()).await.unwrap();
    assert_eq!((summary.completed, summary.failed), (21, 0));
    assert_eq!(answer(&scene.echoes, 0).await, Some(echo_answer(0)));
}
