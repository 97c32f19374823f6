//! What the worker costs: jobs/s through a whole worker process against a bare client loop.
//!
//! Both sides are processes of their own that work off a full queue. The time starts when a tenth
//! of the jobs is done and ends when a tenth is left, so that neither the start of a process nor
//! publishing is in it, and both ends of it are the steady state.

mod bare;
mod lane;
mod latency;
mod round;

use std::num::NonZeroUsize;

use anyhow::ensure;
use serde::Serialize;

use crate::broker::{Bed, BrokerArgs};
use crate::process::EbbArgs;
use crate::report::{Table, dash, median, print, progress, rounded};
use crate::rounds::order;
pub(crate) use bare::{BareArgs, bare};
use latency::Latency;
use round::{Bench, Round, Side};

/// Jobs/s through the whole worker against a bare client loop on the same broker
///
/// Both are processes that work off a full queue, in turns. Then jobs come at half the worker's
/// rate, and it is measured how long each takes from publishing to its result. Exits with 1 if a
/// job that was acked has no result.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    broker: BrokerArgs,

    #[command(flatten)]
    worker: EbbArgs,

    /// Jobs in each round of each side
    #[arg(long, env = "EBB_BENCH_JOBS", hide_env_values = true, value_name = "N")]
    #[arg(default_value_t = 20_000)]
    jobs: usize,

    /// Bytes in the body of a job
    #[arg(long, env = "EBB_BENCH_BODY", hide_env_values = true, value_name = "BYTES")]
    #[arg(default_value_t = 1024)]
    body: usize,

    /// Rounds of each side, in turn; the figures are their medians
    #[arg(long, env = "EBB_BENCH_ROUNDS", hide_env_values = true, value_name = "N")]
    #[arg(default_value_t = 7)]
    rounds: usize,

    /// Jobs the bare loop takes at once, and the worker's largest batch
    #[arg(long, env = "EBB_BENCH_BATCH", hide_env_values = true, value_name = "N")]
    #[arg(default_value = "64")]
    batch: NonZeroUsize,

    /// Seconds of jobs at half the worker's rate; 0 leaves their latency unmeasured
    #[arg(long, env = "EBB_BENCH_LATENCY_S", hide_env_values = true, value_name = "S")]
    #[arg(default_value_t = 5.0)]
    latency_s: f64,
}

#[derive(Serialize)]
struct Report {
    broker: String,
    jobs: usize,
    body: usize,
    rounds: usize,
    batch: usize,
    worker_jobs_per_s: f64,
    bare_jobs_per_s: f64,
    ratio: f64,
    /// From publishing to the result, as somebody who follows the job sees it.
    latency_p50_ms: Option<f64>,
    latency_p99_ms: Option<f64>,
    latency_jobs_per_s: Option<f64>,
    latency_samples: usize,
    worker_cpu_us_per_job: Option<f64>,
    bare_cpu_us_per_job: Option<f64>,
    broker_cpu_us_per_job_of_worker: Option<f64>,
    broker_cpu_us_per_job_of_bare: Option<f64>,
    worker_rounds: Vec<f64>,
    bare_rounds: Vec<f64>,
}

pub(crate) async fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    ensure!(args.rounds > 0, "--rounds is 1 or more");
    ensure!(args.jobs >= 10 * args.batch.get(), "--jobs is 10 times --batch or more");
    ensure!((0.0..=600.0).contains(&args.latency_s), "--latency-s is 0 to 600");
    let bench = Bench {
        bed: Bed::make(&args.broker).await?,
        ebb: args.worker.find()?,
        logs: tempfile::tempdir()?,
        jobs: args.jobs,
        body: args.body,
        batch: args.batch,
    };
    let mut rounds: [Vec<Round>; 2] = Default::default();
    for n in 0..args.rounds {
        // Who goes first changes, so that neither always finds the warmer disk.
        for side in order(n, 2).map(|n| [Side::Bare, Side::Worker][n]) {
            let round = bench.round(side, n).await?;
            let words = format!("round {} of {}: {}", n + 1, args.rounds, side.name());
            progress(format_args!("{words} {:.0} jobs/s", round.jobs_per_s));
            rounds[side as usize].push(round);
        }
    }
    let half = median(&rates(&rounds[Side::Worker as usize])) / 2.0;
    let latency = match args.latency_s {
        0.0 => None,
        seconds => Some(latency::measure(&bench, half, seconds).await?),
    };
    let report = Report::of(args, bench.bed.words(), &rounds, latency.as_ref());
    print(json, &report.table(), &report)
}

fn rates(rounds: &[Round]) -> Vec<f64> {
    rounds.iter().map(|round| round.jobs_per_s).collect()
}

impl Report {
    fn of(
        args: &Args,
        broker: String,
        [worker, bare]: &[Vec<Round>; 2],
        latency: Option<&Latency>,
    ) -> Self {
        let rate = |rounds: &[Round]| median(&rates(rounds));
        let middle = |rounds: &[Round], what: fn(&Round) -> Option<f64>| {
            let all: Option<Vec<f64>> = rounds.iter().map(what).collect();
            all.map(|all| rounded(median(&all), 1))
        };
        let all = |rounds| rates(rounds).into_iter().map(|rate| rounded(rate, 1)).collect();
        let at = |share| latency.map(|latency| rounded(latency.percentile(share), 2));
        Self {
            broker,
            jobs: args.jobs,
            body: args.body,
            rounds: args.rounds,
            batch: args.batch.get(),
            worker_jobs_per_s: rounded(rate(worker), 1),
            bare_jobs_per_s: rounded(rate(bare), 1),
            ratio: rounded(rate(worker) / rate(bare), 3),
            latency_p50_ms: at(0.5),
            latency_p99_ms: at(0.99),
            latency_jobs_per_s: latency.map(|latency| rounded(latency.jobs_per_s, 1)),
            latency_samples: latency.map_or(0, |latency| latency.millis.len()),
            worker_cpu_us_per_job: middle(worker, |round| round.cpu_us),
            bare_cpu_us_per_job: middle(bare, |round| round.cpu_us),
            broker_cpu_us_per_job_of_worker: middle(worker, |round| round.broker_cpu_us),
            broker_cpu_us_per_job_of_bare: middle(bare, |round| round.broker_cpu_us),
            worker_rounds: all(worker),
            bare_rounds: all(bare),
        }
    }

    fn table(&self) -> Table {
        let mut table = Table::new([
            "broker",
            "worker jobs/s",
            "bare jobs/s",
            "ratio",
            "worker µs + broker µs",
            "bare µs + broker µs",
            "latency p50 ms",
            "p99 ms",
        ]);
        let both = |own, broker| format!("{} + {}", dash(own, 0), dash(broker, 0));
        table.row([
            self.broker.clone(),
            format!("{:.0}", self.worker_jobs_per_s),
            format!("{:.0}", self.bare_jobs_per_s),
            format!("{:.2}", self.ratio),
            both(self.worker_cpu_us_per_job, self.broker_cpu_us_per_job_of_worker),
            both(self.bare_cpu_us_per_job, self.broker_cpu_us_per_job_of_bare),
            dash(self.latency_p50_ms, 1),
            dash(self.latency_p99_ms, 1),
        ]);
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn processor_time_that_was_not_measured_is_a_dash_and_not_none_at_all() {
        let cli: Cli = clap::Parser::parse_from(["overhead", "--url", "redis://broker"]);
        let round = Round { jobs_per_s: 100.0, cpu_us: Some(20.0), broker_cpu_us: None };
        let rounds = [vec![round, round], vec![round, Round { cpu_us: None, ..round }]];
        let report = Report::of(&cli.args, "redis of --url".to_owned(), &rounds, None);
        let table = report.table().to_string();
        assert!(table.contains(" 20 + - |") && table.contains(" - + - |"), "{table}");
        let report = serde_json::to_value(&report).unwrap();
        assert_eq!(report["worker_cpu_us_per_job"], 20.0, "{report}");
        for key in ["bare_cpu_us_per_job", "broker_cpu_us_per_job_of_worker", "latency_p50_ms"] {
            assert!(report[key].is_null(), "{key}: {report}");
        }
    }
}
