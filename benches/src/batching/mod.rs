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
/// gets the size and window that are best for it on these arrivals, takes what is there at its best
/// size, and takes one at a time. Texts lie end to end on our
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
    /// The worst ratios of all rows.
    p50_ratio: f64,
    p99_ratio: f64,
    /// By device and by how texts lie: the worst ratios.
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

    /// The device as our side has it, and as the other one does.
    fn lay(self, device: Device) -> [Device; 2] {
        let padded = device.laid(Layout::Padded);
        match self {
            Self::TheirsPadded => [device.end_to_end(), padded],
            // In the order of arrival it makes no difference which way.
            Self::Packed => [device.end_to_end(); 2],
            Self::Padded => [padded; 2],
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

/// The worst ratios of a device with texts that lie so, over what the other side does; none where it
/// never keeps up.
#[derive(Debug, Serialize)]
struct Worst {
    device: &'static str,
    texts: Texts,
    window_p50_ratio: Option<f64>,
    window_p99_ratio: Option<f64>,
    greedy_p50_ratio: Option<f64>,
    greedy_p99_ratio: Option<f64>,
    single_p50_ratio: Option<f64>,
    single_p99_ratio: Option<f64>,
}

impl Worst {
    fn of(rows: &[Row], device: &'static str, texts: Texts) -> Self {
        let worst = |ratio: fn(&Row) -> f64, is_so: fn(&Row) -> bool| {
            let those = rows.iter().filter(|row| (row.device, row.texts) == (device, texts));
            those.filter(|row| row.keeps_up && is_so(row)).map(ratio).reduce(f64::max)
        };
        let p50 = |is_so| worst(|row| row.p50_ratio, is_so);
        let p99 = |is_so| worst(|row| row.p99_ratio, is_so);
        Self {
            device,
            texts,
            window_p50_ratio: p50(Row::has_window),
            window_p99_ratio: p99(Row::has_window),
            greedy_p50_ratio: p50(Row::is_greedy),
            greedy_p99_ratio: p99(Row::is_greedy),
            single_p50_ratio: p50(Row::is_single),
            single_p99_ratio: p99(Row::is_single),
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
    /// Whether the other side can do so many jobs/s; else its latency is that of a queue which grows
    /// as long as the round lasts.
    keeps_up: bool,
    p50_ratio: f64,
    p99_ratio: f64,
}

impl Row {
    fn has_window(&self) -> bool {
        self.window_ms > 0
    }

    fn is_greedy(&self) -> bool {
        !self.has_window() && !self.is_single()
    }

    fn is_single(&self) -> bool {
        self.size == 1
    }
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
    let of_all = |ratio: fn(&Row) -> f64| rows.iter().map(ratio).fold(0.0, f64::max);
    let worst = Texts::ALL.iter().flat_map(|texts| {
        let devices = Device::ALL.iter();
        devices.map(|device| Worst::of(&rows, device.name, *texts)).collect::<Vec<_>>()
    });
    let report = Report {
        seed: args.seed,
        jobs: args.jobs,
        rounds: args.rounds,
        load: args.load,
        p50_ratio: of_all(|row| row.p50_ratio),
        p99_ratio: of_all(|row| row.p99_ratio),
        worst: worst.collect(),
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
    /// What the other side may be set to, with the jobs/s that it can do so.
    settings: [Vec<(Fixed, f64)>; 3],
    rounds: Vec<(u64, Vec<Arrival>)>,
}

impl Case {
    fn new(args: &Args, texts: Texts, device: Device, mix: Mix) -> Self {
        let [us, them] = texts.lay(device);
        let full = arrivals(args.jobs, None, mix, args.seed);
        let per_second = |outcome: &Outcome| args.jobs as f64 / outcome.ended;
        let ours = per_second(&ours::run(&us, &full, args.seed));
        let capacity = |fixed: Fixed| (fixed, per_second(&fixed.run(&them, &full, args.seed)));
        let settings = Fixed::all().map(|kind| kind.into_iter().map(capacity).collect::<Vec<_>>());
        let fixed = settings.iter().flatten().map(|(_, per_second)| *per_second);
        let fixed = fixed.fold(0.0, f64::max);
        let rate = args.load * ours.min(fixed);
        let round = |seed| (seed, arrivals(args.jobs, Some(rate), mix, seed));
        let rounds = (args.seed..args.seed + args.rounds).map(round).collect();
        let capacity_ratio = ours / fixed;
        Self { texts, ours: us, theirs: them, mix, rate, capacity_ratio, settings, rounds }
    }

    /// Us against the best setting with a window, the best without, and one at a time.
    fn rows(&self) -> anyhow::Result<Vec<Row>> {
        let ours = self.sides(|arrivals, seed| ours::run(&self.ours, arrivals, seed))?;
        let row = |settings: &Vec<(Fixed, f64)>| {
            let (best, theirs) = self.best(settings)?;
            Ok(self.row(&ours, best, &theirs))
        };
        self.settings.iter().map(row).collect()
    }

    fn sides(&self, run: impl Fn(&[Arrival], u64) -> Outcome) -> anyhow::Result<Vec<Side>> {
        self.rounds.iter().map(|(seed, arrivals)| Side::of(&run(arrivals, *seed))).collect()
    }

    fn best(&self, settings: &[(Fixed, f64)]) -> anyhow::Result<((Fixed, f64), Vec<Side>)> {
        let mut best: Option<((Fixed, f64), Vec<Side>)> = None;
        for setting in settings {
            let run = |arrivals: &[_], seed| setting.0.run(&self.theirs, arrivals, seed);
            let sides = self.sides(run)?;
            if best.as_ref().is_none_or(|(_, best)| p99(&sides) < p99(best)) {
                best = Some((*setting, sides));
            }
        }
        best.context("there is a setting to choose")
    }

    fn row(&self, ours: &[Side], (fixed, per_second): (Fixed, f64), theirs: &[Side]) -> Row {
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
            keeps_up: per_second > self.rate,
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
        let other = match (row.size, row.window_ms) {
            (1, _) => "one at a time".to_owned(),
            (size, 0) => format!("up to {size}, greedy"),
            (size, window_ms) => format!("up to {size} in {window_ms} ms"),
        };
        let (ours, fixed) = (&row.ours, &row.fixed);
        let theirs = |cell: String| if row.keeps_up { cell } else { "-".to_owned() };
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
            theirs(format!("{:.0}", fixed.p50_ms)),
            theirs(format!("{:.0}", fixed.p99_ms)),
            format!("{:.0} %", 100.0 * fixed.padding),
            theirs(format!("{:.2}", row.p50_ratio)),
            theirs(format!("{:.2}", row.p99_ratio)),
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
    fn a_window_counts_from_the_oldest_job_and_not_from_when_the_device_is_free() {
        let device = &Device::ALL[0];
        let fixed = Fixed { size: 2, window: Duration::from_millis(50) };
        // While the first two run, for 77 ms at most, the third waits for longer than the window.
        let at = |at_ms, length| Arrival { at: Duration::from_millis(at_ms), length };
        let jobs = [at(0, 256), at(0, 256), at(1, 8)];
        let outcome = fixed.run(device, &jobs, 1);
        let [first, _, third] = outcome.latencies[..] else { panic!("{outcome:?}") };
        assert!(third < first + device.time(8, 1.0).as_secs_f64(), "{outcome:?}");
    }

    #[test]
    fn the_best_size_of_a_row_is_no_end_of_the_grid_that_could_go_on() {
        let args = Args { jobs: 2000, rounds: 1, load: 0.8, seed: 1 };
        let [smallest, .., largest] = fixed::SIZES;
        for texts in Texts::ALL {
            for (device, mix) in
                Device::ALL.into_iter().flat_map(|it| Mix::ALL.map(|mix| (it, mix)))
            {
                let rows = Case::new(&args, texts, device, mix).rows().unwrap();
                assert!(rows.iter().any(Row::is_single), "{rows:?}");
                for row in rows {
                    assert!(row.size > smallest || smallest == 1, "{row:?}");
                    assert!(row.size < largest || largest == ours::MAX_ITEMS, "{row:?}");
                }
            }
        }
    }

    #[test]
    fn a_job_alone_runs_at_once_on_our_side() {
        let device = &Device::ALL[0];
        let alone = ours::run(device, &same_time(1), 1);
        assert!(alone.latencies[0] <= device.time(8, 1.0).as_secs_f64(), "{alone:?}");
    }
}
