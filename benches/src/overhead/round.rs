//! One round of one side: a full queue, a process that works it off, and the time in between.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use tokio::process::{Child, Command};
use tokio::time::sleep;

use super::bare;
use super::lane::{LEASE, Lane, Ours};
use crate::broker::{Bed, Place};
use crate::process::{cpu_time, start, stop, tail, worker_command};
use crate::rounds::steady;

/// What all rounds have in common.
pub(super) struct Bench {
    pub(super) bed: Bed,
    pub(super) ebb: PathBuf,
    pub(super) logs: tempfile::TempDir,
    pub(super) jobs: usize,
    pub(super) body: usize,
    pub(super) batch: NonZeroUsize,
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Side {
    Worker,
    Bare,
}

/// What came of a round.
#[derive(Debug, Clone, Copy)]
pub(super) struct Round {
    pub(super) jobs_per_s: f64,
    /// Processor time of the process for each job, and of the brokers; `None` where the system does not
    /// tell, or a broker is not ours.
    pub(super) cpu_us: Option<f64>,
    pub(super) broker_cpu_us: Option<f64>,
}

/// A look at a round under way.
struct Look {
    at: Instant,
    n_left: u64,
    cpu: Option<Duration>,
    broker_cpu: Option<Duration>,
}

/// Between two looks at the queue. The time is taken at each look, so that it need not be shorter,
/// and some brokers answer with the work of a few jobs.
const LOOK: Duration = Duration::from_millis(20);
/// A round that takes longer is stuck.
const LIMIT: Duration = Duration::from_secs(300);

impl Side {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Bare => "bare",
        }
    }
}

impl Bench {
    /// One round of one side.
    pub(super) async fn round(&self, side: Side, n: usize) -> anyhow::Result<Round> {
        let name = format!("{}-{n}", side.name());
        let place = self.bed.place(&name, LEASE)?;
        let lane: Box<dyn Lane> = match side {
            Side::Worker => Box::new(Ours(place.open("observer").await?)),
            Side::Bare => bare::lane(self.bed.kind(), &place).await?,
        };
        let ids: Vec<String> = (0..self.jobs).map(|n| format!("{name}-{n}")).collect();
        lane.fill(&ids, &self.request()).await?;
        // A handle's first look takes longest on some brokers, and is over before the process begins.
        let n_left = lane.n_left().await?;
        ensure!(n_left == self.jobs as u64, "{n_left} of {} jobs are on the queue", self.jobs);

        let log = self.logs.path().join(format!("{name}.log"));
        let mut child = start(self.command(side, &place)?, &log)?;
        let round = self.time(&*lane, &mut child, &log).await;
        let round = round.with_context(|| format!("the {} side: {}", side.name(), tail(&log)))?;
        answered(&*lane, &ids).await?;
        stop(child).await?;
        Ok(round)
    }

    /// A request of the size that was asked for.
    pub(super) fn request(&self) -> Bytes {
        let frame = r#"{"input": ""}"#.len();
        let text = "x".repeat(self.body.saturating_sub(frame));
        format!(r#"{{"input": "{text}"}}"#).into()
    }

    /// The process of a side.
    pub(super) fn command(&self, side: Side, place: &Place) -> anyhow::Result<Command> {
        let batch = self.batch.to_string();
        Ok(match side {
            Side::Worker => {
                let mut command = worker_command(&self.ebb, place, "overhead");
                command.args(["--max-items", &batch]);
                command
            }
            Side::Bare => {
                let mut command = Command::new(std::env::current_exe()?);
                place.name_to(&mut command);
                command.args(["bare", "--batch", &batch]);
                command
            }
        })
    }

    /// The rate of the steady part.
    async fn time(&self, lane: &dyn Lane, child: &mut Child, log: &Path) -> anyhow::Result<Round> {
        let began = Instant::now();
        let mut looks = vec![self.look(self.jobs as u64, child)];
        loop {
            let n_left = lane.n_left().await?;
            looks.push(self.look(n_left, child));
            let n_done = |look: &Look| self.jobs.saturating_sub(look.n_left as usize);
            if let Some((first, last)) = steady(self.jobs, &looks, n_done) {
                return Ok(Round::between(first, last));
            }
            if let Some(status) = child.try_wait()? {
                anyhow::bail!("it ended with {status}: {}", tail(log));
            }
            ensure!(began.elapsed() < LIMIT, "{n_left} jobs are left after 300 s");
            sleep(LOOK).await;
        }
    }

    fn look(&self, n_left: u64, child: &Child) -> Look {
        let at = Instant::now();
        let cpu = child.id().and_then(cpu_time);
        let broker_cpu = self.bed.cpu_time();
        Look { at, n_left, cpu, broker_cpu }
    }
}

impl Round {
    fn between(first: &Look, last: &Look) -> Self {
        let n_jobs = first.n_left.saturating_sub(last.n_left) as f64;
        let each = |from: Option<Duration>, to: Option<Duration>| match (from, to) {
            (Some(from), Some(to)) => Some(to.saturating_sub(from).as_secs_f64() * 1e6 / n_jobs),
            _ => None,
        };
        Self {
            jobs_per_s: n_jobs / last.at.duration_since(first.at).as_secs_f64(),
            cpu_us: each(first.cpu, last.cpu),
            broker_cpu_us: each(first.broker_cpu, last.broker_cpu),
        }
    }
}

/// The promise: every job that was acked has its result.
async fn answered(lane: &dyn Lane, ids: &[String]) -> anyhow::Result<()> {
    let limit = Instant::now() + Duration::from_secs(30);
    loop {
        let (n_left, missing) = (lane.n_left().await?, lane.n_unanswered(ids).await?);
        if n_left == 0 && missing == 0 {
            return Ok(());
        }
        ensure!(Instant::now() < limit, "{missing} of {} jobs have no result", ids.len());
        sleep(Duration::from_millis(100)).await;
    }
}
