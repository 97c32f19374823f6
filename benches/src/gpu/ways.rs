//! The same texts three ways: the model alone, a worker on a queue in memory, a worker on SQLite.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use ebb_model::DeviceChoice;
use ebb_model::bert::{self, Encoder, Tokenizer, Tokens};
use ebb_queue::memory::MemoryQueue;
use ebb_queue::{
    Behavior, Broker, Job, OpenOptions, Queue, ResultStore, RetryPolicy, SystemClock, Timestamp,
};
use ebb_telemetry::{Health, Traces};
use ebb_worker::batcher::Limits;
use ebb_worker::{
    Device, EncoderCodec, Metrics, ModelParts, Parts, Phases, Pipeline, QueueParts, Settings,
};
use tokio_util::sync::CancellationToken;

use crate::broker::Place;
use crate::rounds::steady;

/// A model and how its worker batches.
#[derive(Clone, Copy)]
pub(super) struct Way<'a> {
    pub(super) dir: &'a Path,
    pub(super) device: DeviceChoice,
    pub(super) n_tokens: usize,
    /// Texts of a batch.
    pub(super) batch: usize,
    /// Texts of a job.
    pub(super) texts: usize,
}

/// Most jobs of a measurement: what is written down is written down one by one.
const MOST_JOBS: usize = 20_000;
/// How often the queue is asked how far it is; it counts its jobs for that.
const LOOK: Duration = Duration::from_millis(5);

/// Most of these words are one token in any English vocabulary, and in that of made models.
pub(super) const WORDS: [&str; 23] = [
    "queue", "the", "pump", "turns", "under", "load", "while", "a", "bearing", "warms", "and",
    "pressure", "falls", "slowly", "before", "anyone", "reads", "what", "its", "sensors", "said",
    "last", "night",
];

/// Texts of exactly so many tokens, the special ones counted, no two the same from four tokens on.
pub(super) fn texts(tokenizer: &Tokenizer, n_tokens: usize) -> Result<Vec<String>> {
    let text = |n: usize| {
        let word = |place: usize| WORDS[(place * (1 + n) + n) % WORDS.len()];
        let mut words: Vec<&str> = (0..n_tokens.saturating_sub(2)).map(word).collect();
        loop {
            let text = words.join(" ");
            match tokenizer.tokenize(&text)?.len() {
                found if found == n_tokens => return Ok(text),
                found if found < n_tokens => words.push("a"),
                // A word of several tokens: without the last ones it fits, and "a" fills up.
                _ => {
                    words.pop().context("no text has so few tokens")?;
                }
            }
            let said = "this vocabulary makes no text of so many tokens";
            ensure!(words.len() <= n_tokens, "{said}: {n_tokens}");
        }
    };
    (0..WORDS.len() - 1).map(text).collect()
}

/// A batch of texts of exactly this length, cut.
pub(super) fn batch(
    tokenizer: &Tokenizer,
    n_texts: usize,
    n_tokens: usize,
) -> Result<Vec<Vec<Tokens>>> {
    let texts = texts(tokenizer, n_tokens)?;
    let cut = |text: &String| Ok(vec![tokenizer.tokenize(text)?]);
    texts.iter().cycle().take(n_texts).map(cut).collect()
}

impl Way<'_> {
    /// Sentences a second of a worker without a queue that writes anything down.
    pub(super) async fn in_memory(&self, seconds: f64, rate: f64) -> Result<f64> {
        let queue = MemoryQueue::new(&Behavior::default(), OpenOptions::default());
        self.work_off(Arc::new(queue), seconds, rate).await
    }

    /// Sentences a second of a worker on a queue in a file.
    pub(super) async fn on_sqlite(&self, place: &Place, seconds: f64, rate: f64) -> Result<f64> {
        self.work_off(place.open("gpu").await?, seconds, rate).await
    }

    /// Fills the queue with work for so long at this rate, and lets a worker empty it. The steady part
    /// of that counts.
    async fn work_off(&self, queue: Queue, seconds: f64, rate: f64) -> Result<f64> {
        const CHUNK: usize = 500;
        let n_texts = ((seconds * rate) as usize).max(20 * self.batch);
        let n_jobs = (n_texts / self.texts).clamp(1, MOST_JOBS);
        let texts = texts(&Tokenizer::load(self.dir)?, self.n_tokens)?;
        let body = |n: usize| {
            let own = texts.iter().cycle().skip(n % texts.len()).take(self.texts);
            Bytes::from(serde_json::json!({"input": own.collect::<Vec<_>>()}).to_string())
        };
        for start in (0..n_jobs).step_by(CHUNK) {
            let now = Timestamp::now();
            let some = start..n_jobs.min(start + CHUNK);
            queue.publish(some.map(|n| Job::new(body(n), now)).collect()).await?;
        }
        let stop = CancellationToken::new();
        let worker = Pipeline::new(self.parts(&queue)?).run(stop);
        let mut looks = vec![(Instant::now(), 0)];
        let worker = tokio::spawn(worker);
        let rate = loop {
            let depth = queue.depth().await?;
            ensure!(depth.dead == 0, "{} jobs failed for good", depth.dead);
            let n_done = n_jobs - (depth.ready + depth.in_flight + depth.delayed) as usize;
            looks.push((Instant::now(), n_done));
            if let Some(((since, before), (now, done))) = steady(n_jobs, &looks, |look| look.1) {
                break (done - before) as f64 / (*now - *since).as_secs_f64();
            }
            ensure!(!worker.is_finished() || n_done == n_jobs, "the worker ended before its work");
            tokio::time::sleep(LOOK).await;
        };
        let summary = worker.await??;
        ensure!(summary.completed == n_jobs as u64, "{summary:?} of {n_jobs} jobs");
        Ok(rate * self.texts as f64)
    }

    fn parts(&self, queue: &Queue) -> Result<Parts> {
        let settings = bert::Settings::read(self.dir)?;
        let codec = EncoderCodec::new(Tokenizer::load(self.dir)?, &settings, "bench".to_owned());
        let (dir, device): (PathBuf, DeviceChoice) = (self.dir.to_owned(), self.device);
        let device = Device::thread(move |phases: &mut Phases| {
            let mut model = phases.time("weights", || Encoder::load(&dir, device))?;
            phases.time("warm-up", || model.warm_up())?;
            Ok(model)
        })?;
        let max_items = NonZeroUsize::new(self.batch).context("a batch of 0")?;
        let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let served = QueueParts {
            name: "bench".to_owned(),
            model: "bench".to_owned(),
            alerts: Arc::clone(queue) as Arc<dyn Broker>,
            broker: Arc::clone(queue) as Arc<dyn Broker>,
            results: Arc::clone(queue) as Arc<dyn ResultStore>,
            models: vec![ModelParts::new("bench", codec, device)],
        };
        Ok(Parts {
            queues: vec![served],
            settings: Settings {
                worker: "bench".to_owned(),
                pod: "bench".to_owned(),
                limits: Limits {
                    max_items,
                    max_cost: max_items.saturating_mul(
                        NonZeroUsize::new(self.n_tokens).context("a text of 0 tokens")?,
                    ),
                    max_wait: Duration::from_millis(5),
                },
                prefetch: (2 * self.batch).div_ceil(self.texts),
                retry: RetryPolicy {
                    max_attempts: 1,
                    base: Duration::from_secs(1),
                    cap: Duration::from_secs(1),
                },
                stall: Duration::from_secs(600),
                grace: Duration::from_secs(60),
                decode_threads: threads,
                max_body: 1 << 20,
                max_job_cost: 1 << 16,
                exit_when_empty: true,
                max_jobs: None,
                deletion_cost: None,
            },
            clock: Arc::new(SystemClock),
            seed: 1,
            metrics: Metrics::default(),
            health: Health::new(),
            traces: Traces::default(),
        })
    }
}
