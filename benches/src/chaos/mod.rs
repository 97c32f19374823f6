//! What survives kill -9: real worker processes and the broker itself die at random moments of a
//! seeded run, and every job must end done or dead, with a result that never changes.

mod fleet;
mod ledger;
mod patience;
mod plan;
mod run;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use ebb_queue::{DeadLetter, JobId, JobResult, Queue};
use futures::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use tokio::time::timeout;

use crate::broker::{Bed, BrokerArgs, BrokerKind};
use crate::process::EbbArgs;
use crate::report::{Table, print, progress, rounded};
use fleet::{Crashes, Fleet, Recipe};
use ledger::{Ledger, Tally};
use patience::patiently;
use plan::{Plan, PlannedJob, Sizes};
use run::Run;

/// What survives kill -9 of workers and restarts of the broker
///
/// Exits with 1 if a job is lost, if a result changes after it was stored, if a job ends both done
/// and dead, if a result is not the answer to its job, if a job that can succeed is given up though
/// its leases did not end, or if a worker ends by itself.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    broker: BrokerArgs,

    #[command(flatten)]
    worker: EbbArgs,

    /// Jobs to enqueue
    #[arg(long, env = "EBB_BENCH_JOBS", hide_env_values = true, value_name = "N")]
    #[arg(default_value_t = 20_000)]
    jobs: usize,

    /// Workers to kill with -9, spread over the run
    #[arg(long, env = "EBB_BENCH_KILLS", hide_env_values = true, value_name = "K")]
    #[arg(default_value_t = 100)]
    kills: usize,

    /// Times that the broker itself is killed with -9 and started again on the same data, spread over
    /// the run; SQLite has no process to kill
    #[arg(long, env = "EBB_BENCH_RESTARTS", hide_env_values = true, value_name = "R")]
    #[arg(default_value_t = 0)]
    restarts: usize,

    /// Where all chance comes from: the jobs, the moments, the victims
    #[arg(long, env = "EBB_BENCH_SEED", hide_env_values = true, value_name = "SEED")]
    #[arg(default_value_t = 1)]
    seed: u64,

    /// Workers that run at any time
    #[arg(long, env = "EBB_BENCH_WORKERS", hide_env_values = true, value_name = "N")]
    #[arg(default_value_t = 4)]
    workers: usize,

    /// The share of jobs that cannot succeed and must become dead letters, 0 to 1
    #[arg(long, env = "EBB_BENCH_POISON", hide_env_values = true, value_name = "SHARE")]
    #[arg(default_value_t = 0.01)]
    poison: f64,

    /// How long a lease is, in milliseconds: how long a job is missing whose worker was killed
    #[arg(long, env = "EBB_BENCH_LEASE_MS", hide_env_values = true, value_name = "MS")]
    #[arg(default_value_t = 1_000)]
    lease_ms: u64,

    /// When to give up, in seconds; what has not ended by then counts as lost
    #[arg(long, env = "EBB_BENCH_LIMIT_S", hide_env_values = true, value_name = "S")]
    #[arg(default_value_t = 600)]
    limit_s: u64,
}

#[derive(Debug, Serialize)]
struct Report {
    broker: String,
    seed: u64,
    enqueued: usize,
    #[serde(flatten)]
    tally: Tally,
    kills: usize,
    restarts: usize,
    /// Workers that ended and were not killed.
    crashed: usize,
    redelivered: usize,
    /// In seconds.
    duration: f64,
}

/// Jobs in the largest batch: small, so that there are many batches to cut in two.
const MAX_ITEMS: usize = 16;
/// The longest job: long enough that workers are mostly at work, short enough for many jobs.
const MAX_JOB_MS: u64 = 4;
/// Jobs that are told of where promises were broken: one may be enough to see why.
const MOST_TOLD: usize = 5;
/// Attempts that a job has.
const MAX_ATTEMPTS: usize = 5;

pub(crate) async fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    ensure!(args.workers > 0, "--workers is 1 or more");
    ensure!((0.0..=1.0).contains(&args.poison), "--poison is a share, 0 to 1");
    let mut bed = Bed::make(&args.broker).await?;
    let plan = Plan::draw(sizes(args, &bed)?, args.seed);
    let limit = Duration::from_secs(args.limit_s);
    let logs = tempfile::tempdir()?;
    let place = bed.place("chaos", Duration::from_millis(args.lease_ms))?;
    let recipe = Recipe {
        ebb: args.worker.find()?,
        place: place.clone(),
        max_items: MAX_ITEMS,
        logs: logs.path().to_owned(),
    };
    let queue = place.open("observer").await?;
    let started = Instant::now();
    let mut fleet = Fleet::start(recipe, args.workers)?;
    let run = Run::new(&plan, queue.clone(), place.open("producer").await?, args.seed);
    let ended = run.drive(&mut fleet, &mut bed, limit).await?;
    let seconds = started.elapsed().as_secs_f64();
    let crashes = fleet.stop().await?;

    let looked = timeout(limit, verdict(&queue, &plan.jobs, ended.ledger)).await;
    let (tally, redelivered) = looked.context("the broker does not tell how the jobs ended")??;
    let report = Report {
        broker: bed.words(),
        seed: args.seed,
        enqueued: ended.enqueued,
        tally,
        kills: ended.kills,
        restarts: ended.restarts,
        crashed: crashes.n,
        redelivered,
        duration: rounded(seconds, 1),
    };
    print(json, &table(&report), &report)?;
    judge(&report, &plan, &crashes)
}

/// What the plan is drawn from; an error when restarts are asked for that cannot be made.
fn sizes(args: &Args, bed: &Bed) -> anyhow::Result<Sizes> {
    let n_restarts = match bed.kind() {
        BrokerKind::Sqlite if args.restarts > 0 => {
            let n = args.restarts;
            progress(format_args!("sqlite has no process: --restarts {n} restarts nothing"));
            0
        }
        _ => args.restarts,
    };
    ensure!(
        n_restarts == 0 || bed.can_restart(),
        "--restarts kills the broker, and that of --url is not ours to kill; leave one of them out"
    );
    Ok(Sizes {
        n_jobs: args.jobs,
        n_kills: args.kills,
        n_restarts,
        poison: args.poison,
        max_job_ms: MAX_JOB_MS,
    })
}

/// Looks every job up where it ended.
async fn verdict(
    queue: &Queue,
    jobs: &[PlannedJob],
    mut ledger: Ledger,
) -> anyhow::Result<(Tally, usize)> {
    let letters = patiently(|| queue.list(usize::MAX)).await?;
    // Where ids are not known a job that was sent twice may have died twice.
    let mut dead: HashMap<String, Vec<DeadLetter>> = HashMap::new();
    for letter in letters {
        dead.entry(letter.job.id.as_str().to_owned()).or_default().push(letter);
    }
    let look_up = |job: &PlannedJob| {
        let id: Result<JobId, _> = job.id.parse();
        async move {
            let id = id?;
            patiently(|| queue.get(&id)).await
        }
    };
    let results: Vec<Option<JobResult>> =
        stream::iter(jobs).map(look_up).buffered(32).try_collect().await?;
    let repeated = results.iter().flatten().filter(|result| result.attempt > 1).count();
    let letters = |job: &PlannedJob| dead.get(&job.id).map_or(&[][..], Vec::as_slice);
    let ends = jobs.iter().zip(results).map(|(job, result)| (job, result, letters(job)));
    let tally = ledger.close(ends);
    ledger.broken.iter().take(MOST_TOLD).for_each(progress);
    Ok((tally, repeated))
}

fn table(report: &Report) -> Table {
    let Tally { done, dead, exhausted, wronged, lost, both, overwritten, wrong } = report.tally;
    let mut table = Table::new([
        "broker",
        "enqueued",
        "done",
        "dead",
        "exhausted",
        "wronged",
        "lost",
        "overwritten",
        "both",
        "wrong",
        "kills",
        "restarts",
        "crashed",
        "redelivered",
        "seconds",
    ]);
    table.row([
        report.broker.clone(),
        report.enqueued.to_string(),
        done.to_string(),
        dead.to_string(),
        exhausted.to_string(),
        wronged.to_string(),
        lost.to_string(),
        overwritten.to_string(),
        both.to_string(),
        wrong.to_string(),
        report.kills.to_string(),
        report.restarts.to_string(),
        report.crashed.to_string(),
        report.redelivered.to_string(),
        report.duration.to_string(),
    ]);
    table
}

/// An error when a promise is broken.
fn judge(report: &Report, plan: &Plan, crashes: &Crashes) -> anyhow::Result<()> {
    let Report { enqueued, kills, restarts, tally, seed, .. } = report;
    if !tally.promises_held() {
        bail!("a promise is broken, seed {seed}: {tally:?}");
    }
    let Crashes { n, first } = crashes;
    ensure!(*n == 0, "{n} workers ended by themselves, seed {seed}; the first: {first}");
    for (what, made, planned) in [
        ("jobs enqueued", *enqueued, plan.jobs.len()),
        ("kills made", *kills, plan.kills.len()),
        ("restarts made", *restarts, plan.restarts.len()),
    ] {
        ensure!(made == planned, "{made} of {planned} {what}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(tally: Tally, crashes: &Crashes) -> anyhow::Result<()> {
        let sizes = Sizes { n_jobs: 9, n_kills: 2, n_restarts: 0, poison: 0.0, max_job_ms: 0 };
        let report = Report {
            broker: "sqlite".to_owned(),
            seed: 1,
            enqueued: 9,
            tally,
            kills: 2,
            restarts: 0,
            crashed: crashes.n,
            redelivered: 0,
            duration: 1.0,
        };
        judge(&report, &Plan::draw(sizes, 1), crashes)
    }

    #[test]
    fn a_run_in_which_a_worker_ends_by_itself_does_not_hold_and_its_last_words_are_told() {
        let done = Tally { done: 9, ..Tally::default() };
        judged(done, &Crashes::default()).unwrap();
        let crashes = Crashes { n: 1, first: "chaos-3 ended: no such flag".to_owned() };
        let error = judged(done, &crashes).unwrap_err().to_string();
        assert!(error.contains("1 workers") && error.contains("no such flag"), "{error}");
    }

    #[test]
    fn a_run_in_which_a_job_is_wronged_does_not_hold() {
        let tally = Tally { done: 8, dead: 1, wronged: 1, ..Tally::default() };
        assert!(judged(tally, &Crashes::default()).is_err());
        let tally = Tally { done: 8, dead: 1, exhausted: 1, ..Tally::default() };
        judged(tally, &Crashes::default()).unwrap();
    }
}
