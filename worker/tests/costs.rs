//! What a job is charged: what the device works through for it, and nothing else.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use ebb_model::echo::{Echo, EchoInput};
use ebb_model::{InferError, ItemError, Layout, Model};
use ebb_queue::memory::MemoryQueue;
use ebb_queue::{Broker, DeadLetters, Job, JobResult, Outcome, ResultStore};
use ebb_worker::batcher::Size;
use ebb_worker::{Answer, BadJob, Codec, Device, Metrics, ModelParts, Pipeline, Settings, Spent};
use support::{Alarmed, answer, echo_job, job, parts, parts_of, queue, served, settings};
use tokio_util::sync::CancellationToken;

const LEASE: Duration = Duration::from_secs(30);

/// Texts that are nothing but long, on a device where they lie like this.
#[derive(Debug, Clone)]
struct Texts(Layout);

impl Model for Texts {
    type Input = Vec<usize>;
    type Output = ();

    fn layout(&self) -> Layout {
        self.0
    }

    fn infer(&mut self, batch: &[Vec<usize>]) -> Result<Vec<Result<(), ItemError>>, InferError> {
        Ok(batch.iter().map(|_| Ok(())).collect())
    }
}

struct TextsCodec;

impl Codec for TextsCodec {
    type Input = Vec<usize>;
    type Output = ();
    type Asked = ();

    fn decode(&self, job: &Job) -> Result<(Vec<usize>, ()), BadJob> {
        let lengths = serde_json::from_slice(&job.body);
        Ok((lengths.map_err(|error| BadJob::new(error.to_string()))?, ()))
    }

    fn size(&self, lengths: &Vec<usize>) -> Size {
        Size::of(lengths.iter().copied())
    }

    fn encode(&self, (): (), (): (), _: &Job, spent: &Spent) -> Answer {
        let body = format!("{:.3}", spent.share).into();
        Answer { content_type: "text/plain", body, alert: None, tokens: 0, n_cut: 0, n_reused: 0 }
    }
}

/// Two hundred texts of ten tokens and one of 512, by this layout, in the batch with a text of 512.
async fn mixed(layout: Layout) -> (MemoryQueue, Metrics) {
    let (queue, clock) = queue(LEASE);
    let mixed = [vec![10; 200], vec![512]].concat();
    let jobs = vec![job(0, &serde_json::to_string(&mixed).unwrap()), job(1, "[512]")];
    queue.publish(jobs).await.unwrap();
    let per_token = |batch: &[Vec<usize>]| {
        let tokens: usize = batch.iter().flatten().sum();
        Duration::from_millis(tokens as u64)
    };
    let models =
        vec![ModelParts::new("texts", TextsCodec, Device::inline(Texts(layout), per_token))];
    let served = served("default", &Arc::new(queue.clone()), models);
    let mut settings = Settings { exit_when_empty: true, ..settings() };
    settings.limits.max_items = std::num::NonZeroUsize::new(1000).unwrap();
    let parts = parts_of(vec![served], &clock, settings);
    let metrics = parts.metrics.clone();
    Pipeline::new(parts).run(CancellationToken::new()).await.unwrap();
    (queue, metrics)
}

#[tokio::test(start_paused = true)]
async fn all_time_of_the_device_is_somebodys_or_for_no_answer() {
    let (queue, clock) = queue(LEASE);
    let mut jobs: Vec<_> = (0..40).map(echo_job).collect();
    jobs[3] = job(3, r#"{"input": "", "fail": true}"#);
    jobs[17] = job(17, r#"{"input": "", "poison": true}"#);
    jobs[29] = job(29, r#"{"input": "", "panic": true}"#);
    jobs[31] = job(31, r#"{"input": "unspeakable"}"#);
    queue.publish(jobs).await.unwrap();
    let device = Device::inline(Echo::new(), |batch: &[EchoInput]| {
        Duration::from_millis(100 + 10 * batch.len() as u64)
    });
    // One answer cannot be written down.
    let about = |job: &Job| {
        assert!(!job.body.windows(11).any(|words| words == b"unspeakable"));
        false
    };
    let models = vec![ModelParts::new("echo", Alarmed { about }, device)];
    let served = served("default", &Arc::new(queue.clone()), models);
    let settings = Settings { exit_when_empty: true, ..settings() };
    let parts = parts_of(vec![served], &clock, settings);
    let metrics = parts.metrics.clone();
    let summary = Pipeline::new(parts).run(CancellationToken::new()).await.unwrap();
    assert_eq!((summary.completed, summary.failed), (36, 4));
    let all = metrics.infer.with_label_values(&["echo"]).get_sample_sum();
    let answered = metrics.device_seconds.with_label_values(&["echo", "none"]).get();
    let failed = metrics.failed_seconds.with_label_values(&["echo"]).get();
    assert!(answered > 0.0 && failed > 0.0 && (all - answered - failed).abs() < 1e-6);
}

#[tokio::test(start_paused = true)]
async fn what_another_attempt_has_answered_is_charged_once() {
    let (queue, clock) = queue(LEASE);
    queue.publish((0..2).map(echo_job).collect()).await.unwrap();
    let outcome = Outcome::Completed { content_type: "text/plain".to_owned(), body: "42".into() };
    let (id, finished_at) = (echo_job(0).id, clock.now());
    queue.put(&JobResult { id, attempt: 1, outcome, finished_at, queue: None }).await.unwrap();
    let device = Device::inline(Echo::new(), |_: &[EchoInput]| Duration::from_secs(1));
    let settings = Settings { exit_when_empty: true, ..settings() };
    let parts = parts(&Arc::new(queue.clone()), &clock, device, settings);
    let metrics = parts.metrics.clone();
    Pipeline::new(parts).run(CancellationToken::new()).await.unwrap();
    let answered = metrics.device_seconds.with_label_values(&["echo", "none"]).get();
    let failed = metrics.failed_seconds.with_label_values(&["echo"]).get();
    assert!((answered - 0.5).abs() < 1e-6 && (failed - 0.5).abs() < 1e-6, "{answered}, {failed}");
}

#[tokio::test(start_paused = true)]
async fn padding_that_nothing_computes_is_charged_to_nobody() {
    for layout in [Layout::Alike, Layout::Packed] {
        let (queue, metrics) = mixed(layout).await;
        assert!(queue.list(1).await.unwrap().is_empty(), "{layout:?}: 2,512 tokens are no 65,536");
        let shares = [answer(&queue, 0).await.unwrap(), answer(&queue, 1).await.unwrap()];
        assert_eq!(shares, ["0.831", "0.169"], "{layout:?}: of 3,024 tokens");
        let fill = metrics.batch_fill.with_label_values(&["texts"]);
        let filled = (fill.get_sample_count(), fill.get_sample_sum());
        assert_eq!(filled, (1, 3024.0 / 8192.0), "{layout:?}: 202 of 1,000 rows are less");
        let padding = metrics.batch_padding.with_label_values(&["texts"]);
        assert_eq!((padding.get_sample_count(), padding.get_sample_sum()), (1, 0.0), "{layout:?}");
    }
    // Where it is computed it counts.
    let (queue, _) = mixed(Layout::Padded).await;
    let dead = queue.list(2).await.unwrap();
    assert_eq!(dead.len(), 1);
    let reason = &dead[0].reason;
    assert!(reason.starts_with("input costs 102912 tokens, padding counted"), "{reason}");
}
