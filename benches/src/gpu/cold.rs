//! From exec to the first result: a worker process of its own, with kernels to compile and without.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ebb_queue::{Frame, Job, Timestamp};
use futures::StreamExt;
use serde::Serialize;

use super::ways;
use crate::broker::Place;
use crate::process::{command, start, stop, tail};

/// Compiling every kernel takes minutes at worst.
const LIMIT: Duration = Duration::from_secs(600);

/// A cold start.
#[derive(Debug, Serialize)]
pub(super) struct Cold {
    pub(super) model: &'static str,
    /// Whether the kernels were there.
    pub(super) caches: &'static str,
    /// Seconds by phase, as the worker tells them.
    pub(super) phases: Vec<(String, f64)>,
    /// From exec to the result of a job that waited, in seconds.
    pub(super) first_result_s: f64,
}

/// What is started.
pub(super) struct Start<'a> {
    pub(super) ebb: &'a Path,
    pub(super) model: &'static str,
    pub(super) dir: &'a Path,
    pub(super) device: &'a str,
    pub(super) dtype: Option<&'a str>,
    pub(super) kernels: &'a Path,
}

impl Start<'_> {
    /// Starts a worker for one job that waits.
    pub(super) async fn time(
        &self,
        place: &Place,
        caches: &'static str,
        log: &Path,
    ) -> Result<Cold> {
        let queue = place.open("gpu").await?;
        let body = serde_json::json!({"input": ways::WORDS[..3].join(" ")}).to_string();
        let job = Job::new(body, Timestamp::now());
        let id = job.id.clone();
        queue.publish(vec![job]).await?;
        let mut worker = command(self.ebb, place);
        worker.args(["worker", "--device", self.device, "--id", caches, "--stop-with-stdin"]);
        worker.args(self.dtype.iter().flat_map(|dtype| ["--dtype", dtype]));
        worker.arg("--model").arg(self.dir).arg("--kernel-cache").arg(self.kernels);
        let began = Instant::now();
        let mut child = start(worker, log)?;
        // Kept, since who waits for a child closes its input, which would end the worker.
        let input = child.stdin.take();
        let answered = async {
            let mut frames = queue.follow(&id, 0).await?;
            while let Some(frame) = frames.next().await {
                if let Frame::Final(result) = frame? {
                    ensure!(result.outcome.is_completed(), "the first job failed");
                    return Ok(began.elapsed());
                }
            }
            bail!("the first job was forgotten")
        };
        let first = tokio::select! {
            answered = tokio::time::timeout(LIMIT, answered) => answered.context("no result")??,
            ended = child.wait() => {
                bail!("the worker ended before its first result ({}): {}", ended?, tail(log))
            }
        };
        let phases = loop {
            let workers = queue.workers().await?;
            let told = workers.into_iter().map(|worker| worker.cold_start);
            if let Some(phases) = told.into_iter().find(|phases| !phases.is_empty()) {
                break phases;
            }
            ensure!(began.elapsed() < LIMIT, "the worker does not tell of its start");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        stop(child).await?;
        drop(input);
        Ok(Cold { model: self.model, caches, phases, first_result_s: first.as_secs_f64() })
    }
}
