//! Arrivals: when each job comes, how long the device is busy with it, and who goes first.
//! No clock in here, and chance is an argument.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// One job that will come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Arrival {
    /// When, in seconds.
    pub(crate) at: f64,
    /// Seconds that it adds to the batch it is in.
    pub(crate) service: f64,
    /// Whether it goes before others.
    pub(crate) priority: Priority,
}

/// Who is served first; among equals the one that came first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Priority {
    High,
    Normal,
    Low,
}

/// A name and its arrivals, in order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Trace {
    pub(crate) name: String,
    pub(crate) arrivals: Vec<Arrival>,
}

/// The traces that are made here, each from the seed.
///
/// Jobs take 1 s on average (uniform from 0.5 to 1.5 s) unless it is said; the first comes a
/// minute after the start, so that one who knows it can be ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// A Poisson process of 3 jobs/s for an hour
    Steady,
    /// Poisson at 0.05 or 6 jobs/s in turns (MMPP; 4 and 1 minutes on average) for two hours
    Bursty,
    /// Poisson with a rate that swings as a cosine from 0 to 5 jobs/s in a day of 4 hours
    Diurnal,
    /// Nothing but 400 jobs within 5 s after 10 minutes, and 100 within 5 s after 40
    Spike,
    /// Poisson at 0.6 jobs/s for an hour; sizes of a Pareto distribution (shape 1.5, 0.8 to 120 s)
    Heavy,
    /// Poisson at 0.5 jobs/s, and between 20 and 40 minutes at 6, for an hour
    Flash,
}

/// A trace is replayed second by second.
const LONGEST_DAYS: f64 = 31.0;

const LEAD: f64 = 60.0;
const MINUTE: f64 = 60.0;
const HOUR: f64 = 3600.0;

impl Trace {
    /// Makes one.
    pub(crate) fn make(kind: Kind, seed: u64) -> Self {
        let mut chance = Chance(StdRng::seed_from_u64(seed ^ ((kind as u64) << 32)));
        let times = match kind {
            Kind::Steady => chance.poisson(HOUR, 3.0, |_| 3.0),
            Kind::Bursty => chance.bursts(2.0 * HOUR),
            Kind::Diurnal => chance.poisson(4.0 * HOUR, 5.0, |at| {
                2.5 * (1.0 - (at / (4.0 * HOUR) * std::f64::consts::TAU).cos())
            }),
            Kind::Spike => chance.spikes(),
            Kind::Heavy => chance.poisson(HOUR, 0.6, |_| 0.6),
            Kind::Flash => chance.poisson(HOUR, 6.0, |at| {
                if (20.0 * MINUTE..40.0 * MINUTE).contains(&at) { 6.0 } else { 0.5 }
            }),
        };
        let arrivals = times.into_iter().map(|at| Arrival {
            at: LEAD + at,
            service: match kind {
                Kind::Heavy => chance.pareto(1.5, 0.8, 120.0),
                _ => chance.uniform(0.5, 1.5),
            },
            priority: Priority::Normal,
        });
        Self { name: kind.name(), arrivals: arrivals.collect() }
    }

    /// Reads a CSV with the columns `arrival_s`, `service_s` and, if there is one, `priority`
    /// (`high`, `normal` or `low`), in any order and with a head.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the trace {}", path.display()))?;
        let name = path.file_stem().map_or("trace".into(), |stem| stem.to_string_lossy());
        Self::parse(&name, &text).with_context(|| format!("trace {}", path.display()))
    }

    fn parse(name: &str, text: &str) -> anyhow::Result<Self> {
        let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let (_, head) = lines.next().context("there is no head; write arrival_s,service_s")?;
        let head: Vec<&str> = head.split(',').map(str::trim).collect();
        let column = |name: &str| head.iter().position(|column| *column == name);
        let at = column("arrival_s").context("there is no column arrival_s")?;
        let service = column("service_s").context("there is no column service_s")?;
        let priority = column("priority");
        let mut arrivals = Vec::new();
        for (n, line) in lines {
            let cells: Vec<&str> = line.split(',').map(str::trim).collect();
            let number = |column: usize| {
                let number = cells.get(column).and_then(|cell| cell.parse::<f64>().ok());
                number.filter(|number| number.is_finite() && *number >= 0.0).with_context(|| {
                    format!("line {}: {} is no number of seconds", n + 1, head[column])
                })
            };
            let (at, service) = (number(at)?, number(service)?);
            ensure!(service <= 86_400.0, "line {}: service_s is more than a day", n + 1);
            let priority = priority.and_then(|column| cells.get(column)).copied();
            let priority = Priority::parse(priority).with_context(|| format!("line {}", n + 1))?;
            arrivals.push(Arrival { at, service, priority });
        }
        arrivals.sort_by(|a, b| a.at.total_cmp(&b.at));
        let first = arrivals.first().context("there is no job in it")?.at;
        // A log may count from 1970.
        arrivals.iter_mut().for_each(|arrival| arrival.at += LEAD - first);
        let trace = Self { name: name.to_owned(), arrivals };
        let days = trace.end() / 86_400.0;
        ensure!(days <= LONGEST_DAYS, "it is {days:.0} days long; use {LONGEST_DAYS} at most");
        Ok(trace)
    }

    /// When the last job comes, in seconds.
    pub(crate) fn end(&self) -> f64 {
        self.arrivals.last().map_or(0.0, |arrival| arrival.at)
    }
}

impl Kind {
    /// All of them, in the order in which they are shown.
    pub(crate) const ALL: [Self; 6] =
        [Self::Steady, Self::Bursty, Self::Diurnal, Self::Spike, Self::Heavy, Self::Flash];

    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

impl Priority {
    fn parse(word: Option<&str>) -> anyhow::Result<Self> {
        match word {
            Some("high") => Ok(Self::High),
            None | Some("normal" | "") => Ok(Self::Normal),
            Some("low") => Ok(Self::Low),
            Some(other) => bail!("priority {other:?} is not known; use high, normal or low"),
        }
    }
}

/// Draws.
struct Chance(StdRng);

impl Chance {
    fn uniform(&mut self, low: f64, high: f64) -> f64 {
        self.0.random_range(low..high)
    }

    /// By inversion.
    fn exponential(&mut self, rate: f64) -> f64 {
        -(1.0 - self.0.random::<f64>()).ln() / rate
    }

    /// By inversion, cut at `most`.
    fn pareto(&mut self, shape: f64, least: f64, most: f64) -> f64 {
        (least / (1.0 - self.0.random::<f64>()).powf(1.0 / shape)).min(most)
    }

    /// An inhomogeneous Poisson process, by thinning one of the rate `most` (Lewis and Shedler).
    fn poisson(&mut self, length: f64, most: f64, rate: impl Fn(f64) -> f64) -> Vec<f64> {
        let mut times = Vec::new();
        let mut at = self.exponential(most);
        while at < length {
            if self.0.random::<f64>() * most < rate(at) {
                times.push(at);
            }
            at += self.exponential(most);
        }
        times
    }

    /// A Markov-modulated Poisson process of two states, quiet first.
    fn bursts(&mut self, length: f64) -> Vec<f64> {
        let (mut times, mut at, mut busy) = (Vec::new(), 0.0, false);
        while at < length {
            let (rate, stay) = if busy { (6.0, MINUTE) } else { (0.05, 4.0 * MINUTE) };
            let end = (at + self.exponential(1.0 / stay)).min(length);
            times.extend(self.poisson(end - at, rate, |_| rate).iter().map(|time| at + time));
            (at, busy) = (end, !busy);
        }
        times
    }

    fn spikes(&mut self) -> Vec<f64> {
        let mut times = Vec::new();
        for (minute, n) in [(10.0, 400), (40.0, 100)] {
            let spike = (0..n).map(|_| minute * MINUTE + self.uniform(0.0, 5.0));
            let mut spike: Vec<f64> = spike.collect();
            spike.sort_by(f64::total_cmp);
            times.extend(spike);
        }
        times
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_makes_the_same_trace_again_and_another_one_another() {
        for kind in Kind::ALL {
            let trace = Trace::make(kind, 7);
            assert_eq!(trace, Trace::make(kind, 7));
            assert_ne!(trace.arrivals, Trace::make(kind, 8).arrivals, "{kind:?}");
            assert!(trace.arrivals.is_sorted_by_key(|arrival| arrival.at), "{kind:?}");
            assert!(trace.arrivals[0].at >= LEAD && trace.arrivals[0].service > 0.0);
        }
    }

    #[test]
    fn each_trace_has_about_as_many_jobs_as_it_says() {
        for (kind, expected) in [
            (Kind::Steady, 10_800.0),
            (Kind::Diurnal, 36_000.0),
            (Kind::Spike, 500.0),
            (Kind::Heavy, 2160.0),
            (Kind::Flash, 8400.0),
        ] {
            let n = Trace::make(kind, 1).arrivals.len() as f64;
            assert!((n / expected - 1.0).abs() < 0.1, "{kind:?}: {n}");
        }
        let sizes: f64 = Trace::make(Kind::Heavy, 1).arrivals.iter().map(|a| a.service).sum();
        let mean = sizes / Trace::make(Kind::Heavy, 1).arrivals.len() as f64;
        assert!((1.8..2.8).contains(&mean), "{mean}");
    }

    #[test]
    fn a_csv_is_read_by_its_head_and_sorted() {
        let text = "service_s, priority, arrival_s\n2.5,low,1010\n\n0.5,,1000\n1,high,1003.5\n";
        let trace = Trace::parse("mine", text).unwrap();
        let arrival = |at, service, priority| Arrival { at: LEAD + at, service, priority };
        let expected = [
            arrival(0.0, 0.5, Priority::Normal),
            arrival(3.5, 1.0, Priority::High),
            arrival(10.0, 2.5, Priority::Low),
        ];
        assert_eq!(trace.arrivals, expected);
    }

    #[test]
    fn a_csv_that_cannot_be_read_says_where() {
        for (text, told) in [
            ("", "no head"),
            ("arrival_s\n1", "service_s"),
            ("arrival_s,service_s\n", "no job"),
            ("arrival_s,service_s\n1,2\nx,2\n", "line 3: arrival_s"),
            ("arrival_s,service_s\n1,-2\n", "line 2: service_s"),
            ("arrival_s,service_s\n1,1e300\n", "line 2: service_s is more than a day"),
            ("arrival_s,service_s\n0,1\n1e8,1\n", "use 31 at most"),
            ("arrival_s,service_s,priority\n1,2,urgent\n", "line 2"),
        ] {
            let error = format!("{:#}", Trace::parse("mine", text).unwrap_err());
            assert!(error.contains(told), "{error}");
        }
    }
}
