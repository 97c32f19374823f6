//! Replicas, waiting time and GPU-seconds of each policy on each trace, in virtual time.
//!
//! The loop around a trigger is the model of KEDA and the HorizontalPodAutoscaler that `ebb up`
//! runs, and our scaler is the real one: `Trigger`, `Learner`, `decide` and `Push`, fed with what workers
//! would report. The rest of the world stands in [`world`], the clairvoyant in [`oracle`].

mod keda;
#[cfg(test)]
mod kit;
mod kpa;
mod oracle;
mod ours;
mod outage;
mod outcome;
mod plots;
mod pods;
mod policies;
mod scaledjob;
mod svg;
mod tables;
mod trace;
mod verdict;
mod world;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::Serialize;

use crate::report::{print, progress};
use outage::Away;
use outcome::Outcome;
use policies::Choice;
use tables::Row;
use trace::{Kind, Trace};
use verdict::{Outcomes, Overall, Verdict};
use world::Settings;

/// Replicas, waiting time and GPU-seconds per policy, simulated
///
/// Replays arrivals against a pool of pods under each policy, in virtual time and from a seed: the
/// same command prints the same figures anywhere. Nothing is started, and nothing of it is
/// measured on a clock.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Made-up arrivals to replay [default: all]
    #[arg(long, env = "EBB_BENCH_TRACES", hide_env_values = true, value_name = "NAMES")]
    #[arg(value_enum, value_delimiter = ',')]
    traces: Vec<Kind>,

    /// Replay a CSV with the columns arrival_s, service_s and perhaps priority, instead of those
    #[arg(long, env = "EBB_BENCH_TRACE", hide_env_values = true, value_name = "FILE")]
    trace: Option<PathBuf>,

    /// Policies to compare [default: all]
    #[arg(long, env = "EBB_BENCH_POLICIES", hide_env_values = true, value_name = "NAMES")]
    #[arg(value_enum, value_delimiter = ',')]
    policies: Vec<Choice>,

    /// Where chance comes from
    #[arg(long, env = "EBB_BENCH_SEED", hide_env_values = true, value_name = "N")]
    #[arg(default_value_t = 1)]
    seed: u64,

    /// Time from the arrival of a job to its end that is promised, in seconds
    #[arg(long, env = "EBB_BENCH_OBJECTIVE", hide_env_values = true, value_name = "SECONDS")]
    #[arg(default_value_t = 120)]
    objective: u64,

    /// Share of the jobs for which it is promised, 0 to 1
    #[arg(long, env = "EBB_BENCH_SHARE", hide_env_values = true, value_name = "SHARE")]
    #[arg(default_value_t = 0.95)]
    share: f64,

    /// Time from the start of a pod to its first job, in seconds
    #[arg(long, env = "EBB_BENCH_COLD_START", hide_env_values = true, value_name = "SECONDS")]
    #[arg(default_value_t = 30)]
    cold_start: u64,

    /// Seconds that a batch takes beside the sum of its jobs' seconds
    #[arg(long, env = "EBB_BENCH_OVERHEAD", hide_env_values = true, value_name = "SECONDS")]
    #[arg(default_value_t = 0.5)]
    overhead: f64,

    /// Jobs in a batch at most
    #[arg(long, env = "EBB_BENCH_SLOTS", hide_env_values = true, value_name = "JOBS")]
    #[arg(default_value_t = 8)]
    slots: usize,

    /// Time a pod has to finish what it runs when it is told to end, in seconds
    #[arg(long, env = "EBB_BENCH_GRACE", hide_env_values = true, value_name = "SECONDS")]
    #[arg(default_value_t = 300)]
    grace: u64,

    /// Pods at most
    #[arg(long, env = "EBB_BENCH_MAX_REPLICAS", hide_env_values = true, value_name = "N")]
    #[arg(default_value_t = 20)]
    max_replicas: u32,

    /// The brisk ScaledObject's cooldownPeriod, in seconds
    #[arg(long, env = "EBB_BENCH_COOLDOWN", hide_env_values = true, value_name = "SECONDS")]
    #[arg(default_value_t = 15)]
    cooldown: u64,

    /// The brisk ScaledObject's stabilizationWindowSeconds of scaleDown
    #[arg(long, env = "EBB_BENCH_WINDOW", hide_env_values = true, value_name = "SECONDS")]
    #[arg(default_value_t = 15)]
    window: u64,

    /// Time in which KEDA gets no answer, once in each trace between the first job and the last, in
    /// seconds; 0 is none
    #[arg(
        long,
        env = "EBB_BENCH_SIMULATED_OUTAGE_S",
        hide_env_values = true,
        value_name = "SECONDS"
    )]
    #[arg(default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=86_400))]
    outage_s: u64,

    /// Who is away in that time
    #[arg(long, value_enum, env = "EBB_BENCH_AWAY", hide_env_values = true, value_name = "WHO")]
    #[arg(default_value_t = Away::Broker)]
    away: Away,

    /// Pods that the policies with a fallback have after 3 failures
    #[arg(long, env = "EBB_BENCH_FALLBACK_REPLICAS", hide_env_values = true, value_name = "N")]
    #[arg(default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    fallback_replicas: u32,

    /// Write plots into this directory: pods and queue over time, attainment against GPU-seconds
    #[arg(long, env = "EBB_BENCH_SVG", hide_env_values = true, value_name = "DIR")]
    svg: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report {
    seed: u64,
    objective_s: u64,
    share: f64,
    cold_start_s: u64,
    overhead_s: f64,
    slots: usize,
    grace_s: u64,
    max_replicas: u32,
    cooldown_s: u64,
    window_s: u64,
    outage_s: u64,
    away: Away,
    fallback_replicas: u32,
    rows: Vec<Row>,
    verdicts: Vec<Verdict>,
    overall: Option<Overall>,
}

/// A trace with what came of it under each policy.
struct Replayed {
    trace: Trace,
    outcomes: Vec<(String, Outcome)>,
}

pub(crate) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    let settings = args.settings()?;
    let mut replayed = Vec::new();
    for trace in args.traces()? {
        let outcomes = policies::replay(&args.policies, settings, &trace, args.share)?;
        progress(format_args!("{}: {} policies", trace.name, outcomes.len()));
        replayed.push(Replayed { trace, outcomes });
    }
    if let Some(dir) = &args.svg {
        plots::write(dir, &replayed, args.share)?;
    }
    let all: Vec<&Outcomes> = replayed.iter().map(|it| &it.outcomes[..]).collect();
    let report = Report {
        seed: args.seed,
        objective_s: args.objective,
        share: args.share,
        cold_start_s: args.cold_start,
        overhead_s: args.overhead,
        slots: args.slots,
        grace_s: args.grace,
        max_replicas: args.max_replicas,
        cooldown_s: args.cooldown,
        window_s: args.window,
        outage_s: args.outage_s,
        away: args.away,
        fallback_replicas: args.fallback_replicas,
        rows: replayed.iter().flat_map(|it| it.rows(&settings)).collect(),
        verdicts: replayed.iter().filter_map(|it| it.verdict(args.share)).collect(),
        overall: Overall::of(&all, args.share),
    };
    print(json, &tables::rows(&report.rows), &report)?;
    if json || report.verdicts.is_empty() {
        return Ok(());
    }
    let overall = report.overall.as_ref();
    progress("");
    print(json, &tables::verdicts(&report.verdicts, overall), &report)?;
    progress("");
    print(json, &tables::defaults(&report.verdicts, overall), &report)
}

impl Args {
    fn settings(&self) -> anyhow::Result<Settings> {
        ensure!(self.slots > 0, "--slots is 1 or more");
        ensure!((1..=1000).contains(&self.max_replicas), "--max-replicas is 1 to 1000");
        ensure!((0.0..=1.0).contains(&self.share), "--share is a number from 0 to 1");
        ensure!((0.0..=3600.0).contains(&self.overhead), "--overhead is 0 to 3600 seconds");
        ensure!(self.objective > 0, "--objective is 1 second or more");
        Ok(Settings {
            cold_start: Duration::from_secs(self.cold_start),
            overhead: self.overhead,
            slots: self.slots,
            grace: Duration::from_secs(self.grace),
            max_replicas: self.max_replicas,
            objective: Duration::from_secs(self.objective),
            cooldown: Duration::from_secs(self.cooldown),
            window: Duration::from_secs(self.window),
            outage_length: Duration::from_secs(self.outage_s),
            away: self.away,
            fallback_replicas: self.fallback_replicas,
            seed: self.seed,
        })
    }

    fn traces(&self) -> anyhow::Result<Vec<Trace>> {
        if let Some(file) = &self.trace {
            return Ok(vec![Trace::read(file).context("--trace")?]);
        }
        let kinds = if self.traces.is_empty() { &Kind::ALL[..] } else { &self.traces };
        Ok(kinds.iter().map(|kind| Trace::make(*kind, self.seed)).collect())
    }
}

impl Replayed {
    fn rows(&self, settings: &Settings) -> Vec<Row> {
        let least = oracle::least_gpu_seconds(&self.trace, settings);
        let row = |(policy, outcome): &(String, Outcome)| {
            Row::new(&self.trace.name, policy, outcome, least)
        };
        self.outcomes.iter().map(row).collect()
    }

    fn verdict(&self, share: f64) -> Option<Verdict> {
        Verdict::of(&self.trace.name, &self.outcomes, share)
    }
}

#[cfg(test)]
mod tests;
