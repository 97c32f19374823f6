//! What late binding and lengths bring: our batcher against one with a fixed size and window, in
//! virtual time, on the same arrivals and the same model of the device.

mod fixed;
mod ours;
mod world;

use anyhow::{Context, ensure};
use ebb_model::Layout;
use serde::Serialize;

use crate::report::{Table, median, percentile, print, progress, rounded};
use fixed::Fixed;
use world::{Arrival, Device, Mix, Outcome, arrivals};

/// Share of the jobs of a run that come before the device is known and the load is steady.
const WARM_UP: f64 = 0.1;

/// Latency of our batcher against a fixed size and window, simulated
///
/// Jobs of 8 to 512 tokens come by chance, at a share of what both sides can do. The other side
/// gets the size and window that are best for it on these arrivals. Texts lie end to end on our
/// side, as our kernels have them on a GPU, or padded, as batches are counted elsewhere; on the
/// other side too, or padded alone. In virtual time and from a seed: the same command prints the
/// same figures anywhere.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Jobs per round
    #[arg(long, env = "EBB_BENCH_JOBS", hide_env_values = true, value_name = "N")]
    #[arg(default_value_t = 20_000)]
    jobs: usize,

    /// Rounds, each with arrivals of its own; the ratios are their medians
    #[arg(long, env = "EBB_BENCH_ROUNDS", hide_env_values = true, value_name = "N")]
    #[arg(default_value_t = 3)]
    rounds: u64,

    /// Load, as a share of the jobs/s that the slower side can do with a full queue
    #[arg(long, env = "EBB_BENCH_LOAD", hide_env_values = true, value_name = "SHARE")]
    #[arg(default_value_t = 0.8)]
    load: f64,

    /// Where chance comes from
    #[arg(long, env = "EBB_BENCH_SEED", hide_env_values = true, value_name = "N")]
    #[arg(default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Serialize)]
struct Report {
    seed: u64,
    jobs: usize,
    rounds: u64,
    load: f64,
    /// The worst ratios of all rows with a window, however texts lie.
    p50_ratio: f64,
    p99_ratio: f64,
    /// By how texts lie: the worst ratios.
    worst: Vec<Worst>,
    rows: Vec<Row>,
}

/// How the texts of a batch lie, on our side and on the other one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Texts {
    /// Ours end to end, the other's side by side and padded.
    TheirsPadded,
    /// End to end on both.
    Packed,
    /// Padded on both.
    Padded,
}

impl Texts {
    const ALL: [Self; 3] = [Self::TheirsPadded, Self::Packed, Self::Padded];

    fn layouts(self) -> [Layout; 2] {
        match self {
            Self::TheirsPadded => [Layout::Packed, Layout::Padded],
            Self::Packed => [Layout::Packed; 2],
            Self::Padded => [Layout::Padded; 2],
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::TheirsPadded => "theirs padded",
            Self::Packed => "end to end",
            Self::Padded => "padded",
        }
    }
}

/// The worst ratios of the rows with a window, and of those without.
#[derive(Debug, Serialize)]
struct Worst {
    texts: Texts,
    p50_ratio: f64,
    p99_ratio: f64,
    greedy_p50_ratio: f64,
    greedy_p99_ratio: f64,
}

impl Worst {
    fn of(rows: &[Row], texts: Texts) -> Self {
        let worst = |ratio: fn(&Row) -> f64, greedy: bool| {
            let those = rows.iter().filter(|row| row.texts == texts);
            let those = those.filter(|row| (row.window_ms == 0) == greedy);
            those.map(ratio).fold(0.0, f64::max)
        };
        Self {
            texts,
            p50_ratio: worst(|row| row.p50_ratio, false),
            p99_ratio: worst(|row| row.p99_ratio, false),
            greedy_p50_ratio: worst(|row| row.p50_ratio, true),
            greedy_p99_ratio: worst(|row| row.p99_ratio, true),
        }
    }
}

#[derive(Debug, Serialize)]
struct Row {
    device: &'static str,
    texts: Texts,
    lengths: Mix,
    jobs_per_s: f64,
    /// Jobs/s with a full queue, ours over the best of the other side.
    capacity_ratio: f64,
    ours: Side,
    fixed: Side,
    /// The setting that is best for it here.
    size: usize,
    window_ms: u64,
    p50_ratio: f64,
    p99_ratio: f64,
}

/// Medians of the rounds.
#[derive(Debug, Clone, Serialize)]
struct Side {
    p50_ms: f64,
    p99_ms: f64,
    padding: f64,
}

pub(crate) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    ensure!(args.jobs >= 100, "--jobs is 100 or more");
    ensure!(args.rounds > 0, "--rounds is 1 or more");
    ensure!(args.load > 0.0 && args.load < 1.0, "--load is between 0 and 1");
    let mut rows = Vec::new();
    for texts in Texts::ALL {
        for device in Device::ALL {
            for mix in Mix::ALL {
                rows.extend(Case::new(args, texts, device, mix).rows()?);
                let (words, n) = (texts.words(), args.rounds);
                progress(format_args!("{}, {words}, {mix:?}: {n} rounds", device.name));
            }
        }
    }
    let worst = Texts::ALL.map(|texts| Worst::of(&rows, texts));
    let of_all = |ratio: fn(&Worst) -> f64| worst.iter().map(ratio).fold(0.0, f64::max);
    let report = Report {
        seed: args.seed,
        jobs: args.jobs,
        rounds: args.rounds,
        load: args.load,
        p50_ratio: of_all(|worst| worst.p50_ratio),
        p99_ratio: of_all(|worst| worst.p99_ratio),
        worst: worst.into(),
        rows,
    };
    print(json, &table(&report.rows), &report)
}

/// A device and a mix of lengths, with the arrivals of each round and their seeds.
struct Case {
    texts: Texts,
    ours: Device,
    theirs: Device,
    mix: Mix,
    rate: f64,
    capacity_ratio: f64,
    rounds: Vec<(u64, Vec<Arrival>)>,
}

impl Case {
    fn new(args: &Args, texts: Texts, device: Device, mix: Mix) -> Self {
        let [us, them] = texts.layouts().map(|layout| device.laid(layout));
        let full = arrivals(args.jobs, None, mix, args.seed);
        let per_second = |outcome: &Outcome| args.jobs as f64 / outcome.ended;
        let ours = per_second(&ours::run(&us, &full, args.seed));
        let fixed = Fixed::all().into_iter().flatten();
        let fixed = fixed.map(|fixed| per_second(&fixed.run(&them, &full, args.seed)));
        let fixed = fixed.fold(0.0, f64::max);
        let rate = args.load * ours.min(fixed);
        let round = |seed| (seed, arrivals(args.jobs, Some(rate), mix, seed));
        let rounds = (args.seed..args.seed + args.rounds).map(round).collect();
        Self { texts, ours: us, theirs: them, mix, rate, capacity_ratio: ours / fixed, rounds }
    }

    /// Us against the best setting with a window, and against the best without.
    fn rows(&self) -> anyhow::Result<Vec<Row>> {
        let ours = self.sides(|arrivals, seed| ours::run(&self.ours, arrivals, seed))?;
        let row = |settings: Vec<Fixed>| {
            let (fixed, theirs) = self.best(settings)?;
            Ok(self.row(&ours, fixed, &theirs))
        };
        Fixed::all().into_iter().map(row).collect()
    }

    fn sides(&self, run: impl Fn(&[Arrival], u64) -> Outcome) -> anyhow::Result<Vec<Side>> {
        self.rounds.iter().map(|(seed, arrivals)| Side::of(&run(arrivals, *seed))).collect()
    }

    fn best(&self, settings: Vec<Fixed>) -> anyhow::Result<(Fixed, Vec<Side>)> {
        let mut best: Option<(Fixed, Vec<Side>)> = None;
        for fixed in settings {
            let sides = self.sides(|arrivals, seed| fixed.run(&self.theirs, arrivals, seed))?;
            if best.as_ref().is_none_or(|(_, best)| p99(&sides) < p99(best)) {
                best = Some((fixed, sides));
            }
        }
        best.context("there is a setting to choose")
    }

    fn row(&self, ours: &[Side], fixed: Fixed, theirs: &[Side]) -> Row {
        let ratio = |of: fn(&Side) -> f64| {
            let ratios = ours.iter().zip(theirs).map(|(ours, fixed)| of(ours) / of(fixed));
            rounded(median(&ratios.collect::<Vec<f64>>()), 3)
        };
        Row {
            device: self.ours.name,
            texts: self.texts,
            lengths: self.mix,
            jobs_per_s: rounded(self.rate, 1),
            capacity_ratio: rounded(self.capacity_ratio, 3),
            ours: Side::median(ours),
            fixed: Side::median(theirs),
            size: fixed.size,
            window_ms: u64::try_from(fixed.window.as_millis()).unwrap_or(u64::MAX),
            p50_ratio: ratio(|side| side.p50_ms),
            p99_ratio: ratio(|side| side.p99_ms),
        }
    }
}

fn p99(sides: &[Side]) -> f64 {
    median(&sides.iter().map(|side| side.p99_ms).collect::<Vec<f64>>())
}

impl Side {
    fn of(outcome: &Outcome) -> anyhow::Result<Self> {
        ensure!(outcome.latencies.iter().all(|latency| latency.is_finite()), "a job was lost");
        let n_warm = (outcome.latencies.len() as f64 * WARM_UP) as usize;
        let steady = &outcome.latencies[n_warm..];
        let ms = |share| 1e3 * percentile(steady, share);
        Ok(Self { p50_ms: ms(0.5), p99_ms: ms(0.99), padding: outcome.padding })
    }

    fn median(sides: &[Self]) -> Self {
        let of = |get: fn(&Self) -> f64, digits| {
            rounded(median(&sides.iter().map(get).collect::<Vec<f64>>()), digits)
        };
        Self {
            p50_ms: of(|side| side.p50_ms, 1),
            p99_ms: of(|side| side.p99_ms, 1),
            padding: of(|side| side.padding, 3),
        }
    }
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new([
        "a batch takes",
        "texts lie",
        "lengths",
        "jobs/s",
        "capacity ratio",
        "p50 ms",
        "p99 ms",
        "padding",
        "the other",
        "its p50",
        "its p99",
        "its padding",
        "p50 ratio",
        "p99 ratio",
    ]);
    for row in rows {
        let lengths = match row.lengths {
            Mix::LogUniform => "log-uniform",
            Mix::Uniform => "uniform",
        };
        let other = match row.window_ms {
            0 => format!("up to {}, greedy", row.size),
            window_ms => format!("up to {} in {window_ms} ms", row.size),
        };
        let (ours, fixed) = (&row.ours, &row.fixed);
        table.row([
            row.device.to_owned(),
            row.texts.words().to_owned(),
            lengths.to_owned(),
            format!("{:.1}", row.jobs_per_s),
            format!("{:.2}", row.capacity_ratio),
            format!("{:.0}", ours.p50_ms),
            format!("{:.0}", ours.p99_ms),
            format!("{:.0} %", 100.0 * ours.padding),
            other,
            format!("{:.0}", fixed.p50_ms),
            format!("{:.0}", fixed.p99_ms),
            format!("{:.0} %", 100.0 * fixed.padding),
            format!("{:.2}", row.p50_ratio),
            format!("{:.2}", row.p99_ratio),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn same_time(n: usize) -> Vec<Arrival> {
        vec![Arrival { at: Duration::ZERO, length: 8 }; n]
    }

    #[test]
    fn the_same_seed_makes_the_same_figures_and_no_side_loses_a_job() {
        let device = &Device::ALL[0];
        for mix in Mix::ALL {
            let jobs = arrivals(2000, Some(30.0), mix, 7);
            let once = ours::run(device, &jobs, 7);
            assert_eq!(once, ours::run(device, &jobs, 7));
            assert!(once.latencies.iter().all(|latency| *latency > 0.0));
            for fixed in Fixed::all().into_iter().flatten() {
                let outcome = fixed.run(device, &jobs, 7);
                assert!(outcome.latencies.iter().all(|latency| *latency > 0.0), "{fixed:?}");
            }
        }
    }

    #[test]
    fn a_fixed_batcher_waits_for_its_window_unless_it_is_full() {
        let device = &Device::ALL[0];
        let fixed = Fixed { size: 4, window: Duration::from_millis(50) };
        let alone = fixed.run(device, &same_time(1), 1);
        assert!(alone.latencies[0] > 0.05, "{alone:?}");
        let full = fixed.run(device, &same_time(4), 1);
        assert!(full.latencies[0] < 0.05, "{full:?}");
        assert_eq!(full.padding, 0.0);
    }

    #[test]
    fn a_job_alone_runs_at_once_on_our_side() {
        let device = &Device::ALL[0];
        let alone = ours::run(device, &same_time(1), 1);
        assert!(alone.latencies[0] <= device.time(8, 1.0).as_secs_f64(), "{alone:?}");
    }
}
