//! What KEDA is told while the broker is down: the last state that is known, then that nothing is,
//! and never zero or inactive.

mod judge;
mod load;
mod witness;

use std::time::Duration;

use anyhow::{Context, ensure};
use futures::future::try_join_all;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::broker::{Bed, BrokerArgs, Victim};
use crate::process::EbbArgs;
use crate::report::{Table, print, progress};
use crate::scaler::ScalerProcess;
use judge::{Findings, Outage};
use load::Load;
use witness::{Pool, Witness};

/// What the scaler tells while the broker is down
///
/// Starts a broker and `ebb scaler`, which is polled all the time in KEDA's order; streams of
/// activity are open too. Some queues have jobs that nobody takes, so that each answer is known;
/// on the others a producer publishes and a worker process holds jobs. Then the broker is killed
/// with -9, stays dead for a while, and comes back. Exits with 1 if an answer is 0, inactive or
/// otherwise wrong, if a state counts for longer than --max-age-s, if anything but UNAVAILABLE is
/// told after that, if nothing is told of a queue or its state is forgotten sooner, if a call has no
/// answer within 3 s, if GetMetricSpec fails, if a stream breaks, if good answers are not back within
/// --recovery-s, or if producers and workers do not go on.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    broker: BrokerArgs,

    #[command(flatten)]
    ebb: EbbArgs,

    /// How long the broker is dead, in seconds; 600 are ten minutes of answers
    #[arg(long, env = "EBB_BENCH_DOWN_S", hide_env_values = true, value_name = "S")]
    #[arg(default_value_t = 60)]
    down_s: u64,

    /// How long the scaler lets the last look count, in seconds
    #[arg(long, env = "EBB_BENCH_MAX_AGE_S", hide_env_values = true, value_name = "S")]
    #[arg(default_value_t = 15, value_parser = clap::value_parser!(u64).range(3..))]
    max_age_s: u64,

    /// How soon after the broker good answers must be back, in seconds
    #[arg(long, env = "EBB_BENCH_RECOVERY_S", hide_env_values = true, value_name = "S")]
    #[arg(default_value_t = 5)]
    recovery_s: u64,

    /// Queues with jobs that nobody takes, each with one ScaledObject and one stream
    #[arg(long, env = "EBB_BENCH_OUTAGE_QUEUES", hide_env_values = true, value_name = "Q")]
    #[arg(default_value_t = 5)]
    queues: usize,

    /// Queues beside those with a producer and a worker process each
    #[arg(long, env = "EBB_BENCH_OUTAGE_LOADED", hide_env_values = true, value_name = "Q")]
    #[arg(default_value_t = 2)]
    loaded: usize,

    /// Triples of calls per second, over all queues
    #[arg(long, env = "EBB_BENCH_OUTAGE_RATE", hide_env_values = true, value_name = "R")]
    #[arg(default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,
}

#[derive(Debug, Serialize)]
struct Report {
    broker: String,
    queues: usize,
    loaded: usize,
    down_s: u64,
    max_age_s: u64,
    /// Jobs that workers held when the broker was killed.
    held: u64,
    #[serde(flatten)]
    findings: Findings,
}

const LEASE: Duration = Duration::from_secs(30);
/// Before the broker dies, and after all is well again.
const PEACE: Duration = Duration::from_secs(3);
/// Good answers that do not come back by then do not come back.
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) async fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    ensure!(args.queues > 0, "--queues is 1 or more");
    let ebb = args.ebb.find()?;
    let mut bed = Bed::make(&args.broker).await?;
    ensure!(bed.can_restart(), "there is no broker to kill; use nats, amqp or redis without --url");
    let logs = tempfile::tempdir()?;
    let mut pools = Pool::fill(&bed, args.queues, LEASE).await?;
    let start = |n| Load::begin(&bed, &ebb, (n, logs.path()), LEASE);
    let mut loads = try_join_all((0..args.loaded).map(start)).await?;
    pools.extend(loads.iter().map(Pool::loaded));
    let max_age = format!("{}s", args.max_age_s);
    let flags = ["--max-age", &max_age, "--stream-max-age", "24h"];
    let log = logs.path().join("scaler.log");
    let scaler = ScalerProcess::start(&ebb, pools[0].place(), &flags, log).await?;
    let mut witness = Witness::begin(&scaler.client().await?, pools, args.rate).await?;
    sleep(PEACE).await;
    try_join_all(loads.iter().map(|load| load.wait_until_held(LIMIT))).await?;
    let held = try_join_all(loads.iter().map(Load::held)).await?.iter().sum();

    progress(format_args!("the broker is dead for {} s", args.down_s));
    let dying = Instant::now();
    bed.kill(Victim::Jobs)?;
    let died = Instant::now();
    bed.restart(Victim::Jobs, Duration::from_secs(args.down_s)).await?;
    let back = Instant::now();
    progress(format_args!("the broker is back after {:.1} s", (back - died).as_secs_f64()));
    let accepted: Vec<usize> = loads.iter().map(Load::n_accepted).collect();
    let recovered = witness.wait_for_good_answers(back, LIMIT).await;
    sleep(PEACE).await;
    let loads_too = loads.iter_mut().zip(accepted);
    let loads_too = loads_too.map(|(load, before)| load.wait_until_it_goes_on(before, LIMIT));
    let go_on = try_join_all(loads_too).await;

    let max_age = Duration::from_secs(args.max_age_s);
    let n_queues = args.queues + args.loaded;
    let turn = Duration::from_secs(1) * u32::try_from(n_queues)? / args.rate;
    let outage = Outage { dying, died, back, max_age, n_queues, turn };
    let findings = witness.end().await?.judge(outage);
    let ended = try_join_all(loads.into_iter().map(Load::end)).await;
    scaler.stop().await?;
    let report = Report {
        broker: bed.words(),
        queues: args.queues,
        loaded: args.loaded,
        held,
        down_s: args.down_s,
        max_age_s: args.max_age_s,
        findings,
    };
    print(json, &report.table(), &report)?;
    recovered.context("good answers did not come back")?;
    go_on?;
    ended?;
    report.findings.check(Duration::from_secs(args.recovery_s))
}

impl Report {
    fn table(&self) -> Table {
        let mut table = Table::new([
            "down s",
            "held",
            "answers",
            "zero",
            "inactive",
            "wrong",
            "known for s",
            "all known for s",
            "unavailable after s",
            "too late",
            "other errors",
            "well again after s",
            "broken streams",
            "unanswered",
        ]);
        let seconds = |seconds: Option<f64>| seconds.map_or("-".to_owned(), |s| format!("{s:.1}"));
        let found = &self.findings;
        table.row([
            self.down_s.to_string(),
            self.held.to_string(),
            found.answers.to_string(),
            found.zeros.to_string(),
            found.inactive.to_string(),
            found.wrong.to_string(),
            seconds(found.known_s),
            seconds(found.all_known_s),
            seconds(found.unavailable_s),
            found.too_late.to_string(),
            (found.other_errors + found.spec_errors).to_string(),
            seconds(found.recovered_s),
            found.broken_streams.to_string(),
            found.unanswered.to_string(),
        ]);
        table
    }
}
