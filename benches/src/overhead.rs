//! What the worker costs: jobs/s through a whole worker process against a bare client loop.
//!
//! Both sides are processes of their own that wait on an empty queue. Then all jobs become visible
//! in one commit, and the same observer waits until the queue is empty: neither the start of a
//! process nor publishing is in the time.

use std::cell::Cell;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use ebb_queue::{
    Delivery, Job, JobId, JobResult, Outcome, Phase, Queue, QueueUrl, Timestamp, WorkerStatus,
};
use futures::{StreamExt, TryStreamExt, future, stream};
use serde::Serialize;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::sleep;

use crate::broker::{Bed, BrokerArgs, open};
use crate::process::{WorkerArgs, ready, start, stop, tail, worker_command};
use crate::report::{Table, median, print, progress, rounded};

/// Jobs/s through the whole worker against a bare client loop on the same broker
///
/// Both are processes that wait on an empty queue when all jobs become visible at once. Exits with
/// 1 if a job that was acked has no result.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    broker: BrokerArgs,

    #[command(flatten)]
    worker: WorkerArgs,

    /// Jobs in each round of each side
    #[arg(long, env = "EBB_BENCH_JOBS", hide_env_values = true, value_name = "N")]
    #[arg(default_value_t = 20_000)]
    jobs: usize,

    /// Rounds of each side, in turn; the figures are their medians
    #[arg(long, env = "EBB_BENCH_ROUNDS", hide_env_values = true, value_name = "N")]
    #[arg(default_value_t = 9)]
    rounds: usize,

    /// Jobs the bare loop receives at once, and the worker's largest batch
    #[arg(long, env = "EBB_BENCH_BATCH", hide_env_values = true, value_name = "N")]
    #[arg(default_value = "64")]
    batch: NonZeroUsize,
}

/// The bare client loop: receive, store, ack. Run by `overhead` as a process of its own.
#[derive(Debug, clap::Args)]
pub(crate) struct BareArgs {
    /// The queue.
    #[arg(long, value_name = "URL")]
    queue: QueueUrl,

    /// Jobs to receive at once.
    #[arg(long, value_name = "N")]
    batch: NonZeroUsize,
}

#[derive(Serialize)]
struct Report {
    broker: &'static str,
    jobs: usize,
    rounds: usize,
    batch: usize,
    worker_jobs_per_s: f64,
    bare_jobs_per_s: f64,
    ratio: f64,
    worker_rounds: Vec<f64>,
    bare_rounds: Vec<f64>,
}

/// Leases that no round outlives: what a lost lease costs is a question for `chaos`.
const LEASE: Duration = Duration::from_secs(30);
/// Between two looks at the queue: often enough to time it well, and hardly any work.
const LOOK: Duration = Duration::from_millis(2);
/// A round that takes longer is stuck.
const LIMIT: Duration = Duration::from_secs(300);
/// Jobs before the time starts, so that both sides have opened what they need.
const WARM_UP: usize = 256;

pub(crate) async fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    ensure!(args.jobs > 0 && args.rounds > 0, "--jobs and --rounds are 1 or more");
    let bench = Bench {
        bed: Bed::make(&args.broker)?,
        ebb: args.worker.find()?,
        logs: tempfile::tempdir()?,
        jobs: args.jobs,
        batch: args.batch,
    };
    let mut rates: [Vec<f64>; 2] = Default::default();
    for round in 0..args.rounds {
        // Who goes first changes, so that neither always finds the warmer disk.
        let order =
            if round % 2 == 0 { [Side::Bare, Side::Worker] } else { [Side::Worker, Side::Bare] };
        for side in order {
            let rate = bench.round(side, round).await?;
            progress(format_args!("round {}: {} {rate:.0} jobs/s", round + 1, side.name()));
            rates[side as usize].push(rate);
        }
    }
    let [worker, bare] = rates;
    let ratio = median(&worker) / median(&bare);
    let mut table = Table::new(["broker", "jobs", "worker jobs/s", "bare jobs/s", "ratio"]);
    table.row([
        bench.bed.words().to_owned(),
        args.jobs.to_string(),
        format!("{:.0}", median(&worker)),
        format!("{:.0}", median(&bare)),
        format!("{ratio:.2}"),
    ]);
    let report = Report {
        broker: bench.bed.words(),
        jobs: args.jobs,
        rounds: args.rounds,
        batch: args.batch.get(),
        worker_jobs_per_s: rounded(median(&worker), 1),
        bare_jobs_per_s: rounded(median(&bare), 1),
        ratio: rounded(ratio, 3),
        worker_rounds: worker.iter().map(|rate| rounded(*rate, 1)).collect(),
        bare_rounds: bare.iter().map(|rate| rounded(*rate, 1)).collect(),
    };
    print(json, &table, &report)
}

#[derive(Debug, Clone, Copy)]
enum Side {
    Worker,
    Bare,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Bare => "bare",
        }
    }
}

struct Bench {
    bed: Bed,
    ebb: PathBuf,
    logs: tempfile::TempDir,
    jobs: usize,
    batch: NonZeroUsize,
}

impl Bench {
    /// One round of one side, in jobs/s.
    async fn round(&self, side: Side, round: usize) -> anyhow::Result<f64> {
        let name = format!("{}-{round}", side.name());
        let url = self.bed.queue(&name, LEASE)?;
        let queue = open(&url, "observer").await?;
        let log = self.logs.path().join(format!("{name}.log"));
        let mut child = start(self.command(side, &url)?, &log)?;
        ready(&queue, &mut child, &log).await?;

        work_off(&queue, jobs(WARM_UP), &log).await?;
        let jobs = jobs(self.jobs);
        let ids: Vec<JobId> = jobs.iter().map(|job| job.id.clone()).collect();
        let time = work_off(&queue, jobs, &log).await?;

        stop(child).await?;
        answered(&queue, &ids).await?;
        Ok(self.jobs as f64 / time.as_secs_f64())
    }

    fn command(&self, side: Side, url: &QueueUrl) -> anyhow::Result<Command> {
        let batch = self.batch.to_string();
        Ok(match side {
            Side::Worker => {
                let mut command = worker_command(&self.ebb, url, "overhead");
                command.args(["--max-items", &batch]);
                command
            }
            Side::Bare => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["bare", "--queue", &url.to_string(), "--batch", &batch]);
                command
            }
        })
    }
}

fn jobs(n: usize) -> Vec<Job> {
    let now = Timestamp::now();
    (0..n).map(|n| Job::new(format!(r#"{{"input": "job {n}"}}"#), now)).collect()
}

/// The time from the moment the jobs are visible until none is left.
///
/// A commit is visible before `publish` returns, by much where the broker tidies up behind it; so
/// the time starts with the last look that saw no job yet.
async fn work_off(queue: &Queue, jobs: Vec<Job>, log: &Path) -> anyhow::Result<Duration> {
    let is_published = Cell::new(false);
    let publish = async {
        queue.publish(jobs).await.context("cannot publish")?;
        is_published.set(true);
        Ok(())
    };
    let observe = async {
        let (mut start, mut begun) = (Instant::now(), false);
        loop {
            let (look, published) = (Instant::now(), is_published.get());
            match n_left(queue).await? {
                0 if begun || published => return Ok(start.elapsed()),
                0 => start = look,
                _ => begun = true,
            }
            ensure!(start.elapsed() < LIMIT, "jobs are left after 300 s: {}", tail(log));
            sleep(LOOK).await;
        }
    };
    let ((), time) = tokio::try_join!(publish, observe)?;
    Ok(time)
}

/// Jobs that have not ended; an error when one has failed for good.
async fn n_left(queue: &Queue) -> anyhow::Result<u64> {
    let depth = queue.depth().await?;
    if depth.dead > 0 {
        let letters = queue.list(1).await?;
        let reason = letters.first().map_or("unknown", |letter| letter.reason.as_str());
        bail!("{} jobs failed for good, one because: {reason}", depth.dead);
    }
    Ok(depth.ready + depth.in_flight + depth.delayed)
}

/// The promise: every job that was acked has its result.
async fn answered(queue: &Queue, ids: &[JobId]) -> anyhow::Result<()> {
    let results = stream::iter(ids).map(|id| queue.get(id)).buffer_unordered(32);
    let results: Vec<Option<JobResult>> = results.try_collect().await?;
    let completed = results.iter().flatten().filter(|result| result.outcome.is_completed());
    let missing = ids.len() - completed.count();
    ensure!(missing == 0, "{missing} of {} jobs were acked and have no result", ids.len());
    Ok(())
}

/// Serves a queue until standard input ends.
pub(crate) async fn bare(args: &BareArgs) -> anyhow::Result<()> {
    let queue = open(&args.queue, "bare").await?;
    queue.report(&status(args.batch)).await?;
    let (mut input, mut end) = (tokio::io::stdin(), [0]);
    tokio::select! {
        served = serve(&queue, args.batch) => served,
        read = input.read(&mut end) => Ok(read.map(drop)?),
    }
}

async fn serve(queue: &Queue, batch: NonZeroUsize) -> anyhow::Result<()> {
    loop {
        let deliveries = queue.receive(batch, Duration::from_secs(10)).await?;
        // All at once, as the worker does, so that the broker may make one commit of them.
        let results: Vec<JobResult> = deliveries.iter().map(echo).collect();
        future::try_join_all(results.iter().map(|result| queue.put(result))).await?;
        let acks: Vec<_> = deliveries.into_iter().map(Delivery::ack).collect();
        queue.settle(&acks).await?;
    }
}

fn echo(delivery: &Delivery) -> JobResult {
    JobResult {
        id: delivery.job.id.clone(),
        attempt: delivery.attempt,
        outcome: Outcome::Completed {
            content_type: ebb_queue::JSON.to_owned(),
            body: delivery.job.body.clone(),
        },
        finished_at: Timestamp::now(),
    }
}

fn status(batch: NonZeroUsize) -> WorkerStatus {
    WorkerStatus {
        id: "bare".to_owned(),
        pod: "bench".to_owned(),
        phase: Phase::Idle,
        in_flight: 0,
        slots: batch.get() as u64,
        completed: 0,
        failed: 0,
        batch_time: None,
        cold_start: Vec::new(),
        model: "none".to_owned(),
        at: Timestamp::now(),
    }
}
