//! What both batchers are given: the same arrivals, and the same model of the device.

use std::time::Duration;

use ebb_model::Layout;
use ebb_worker::batcher::Size;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;

/// The shortest and the longest job, in tokens.
const LENGTHS: (usize, usize) = (8, 512);

/// A device whose batch takes `base + per_token * tokens`, more or less.
#[derive(Debug, Clone, Copy)]
pub(super) struct Device {
    pub(super) name: &'static str,
    base: f64,
    per_token: f64,
    layout: Layout,
    /// How a worker has texts end to end on it.
    end_to_end: Layout,
}

impl Device {
    pub(super) const ALL: [Self; 2] = [
        // Fitted to the encoder's table in `benches/README.md`: 2 processor cores.
        Self {
            name: "2 ms + 147 us/token",
            base: 0.002,
            per_token: 147e-6,
            layout: Layout::Padded,
            end_to_end: Layout::Alike,
        },
        // Made up: what a batch takes before its first row is as much as 1,500 tokens.
        Self {
            name: "6 ms + 4 us/token",
            base: 0.006,
            per_token: 4e-6,
            layout: Layout::Padded,
            end_to_end: Layout::Packed,
        },
    ];

    /// The same one, with texts that lie end to end as a worker has them there.
    pub(super) fn end_to_end(self) -> Self {
        self.laid(self.end_to_end)
    }

    /// The same one, with texts that lie so.
    pub(super) fn laid(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    /// What texts of these lengths are to it.
    pub(super) fn size(&self, lengths: impl IntoIterator<Item = usize>) -> Size {
        Size::of(lengths).laid(self.layout)
    }

    /// How long a batch takes; `chance` in `[0, 1)` makes it up to 5 % less or more.
    pub(super) fn time(&self, cost: usize, chance: f64) -> Duration {
        let seconds = self.base + self.per_token * cost as f64;
        Duration::from_secs_f64(seconds * (0.95 + 0.1 * chance))
    }
}

/// How lengths are spread over 8 to 512 tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Mix {
    /// As many jobs of 8 to 16 tokens as of 256 to 512.
    LogUniform,
    /// As many jobs of each length.
    Uniform,
}

impl Mix {
    pub(super) const ALL: [Self; 2] = [Self::LogUniform, Self::Uniform];

    fn length(self, chance: f64) -> usize {
        let (low, high) = (LENGTHS.0 as f64, LENGTHS.1 as f64);
        let length = match self {
            Self::LogUniform => low * (high / low).powf(chance),
            Self::Uniform => low + (high - low) * chance,
        };
        (length.round() as usize).clamp(LENGTHS.0, LENGTHS.1)
    }
}

/// A job to come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival {
    /// From the beginning.
    pub(super) at: Duration,
    /// In tokens.
    pub(super) length: usize,
}

/// A Poisson process of so many jobs a second; all at once without a rate.
pub(super) fn arrivals(n: usize, rate: Option<f64>, mix: Mix, seed: u64) -> Vec<Arrival> {
    let mut dice = StdRng::seed_from_u64(seed);
    let mut at = 0.0;
    let next = |_| {
        // In this order, so that lengths are the same at every rate.
        let (gap, length) = (dice.random::<f64>(), dice.random::<f64>());
        at += rate.map_or(0.0, |rate| -(1.0 - gap).ln() / rate);
        Arrival { at: Duration::from_secs_f64(at), length: mix.length(length) }
    };
    (0..n).map(next).collect()
}

/// What came out for each job, in seconds from its arrival to the end of its batch, in the order of
/// arrival.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Outcome {
    pub(super) latencies: Vec<f64>,
    /// When the last batch ended, in seconds.
    pub(super) ended: f64,
    /// Share of all tokens computed that was padding.
    pub(super) padding: f64,
}

/// What a run counts while it goes on.
#[derive(Debug)]
pub(super) struct Tally<'a> {
    arrivals: &'a [Arrival],
    latencies: Vec<f64>,
    ended: Duration,
    real: usize,
    computed: usize,
}

impl<'a> Tally<'a> {
    pub(super) fn new(arrivals: &'a [Arrival]) -> Self {
        let latencies = vec![f64::NAN; arrivals.len()];
        Self { arrivals, latencies, ended: Duration::ZERO, real: 0, computed: 0 }
    }

    /// The batch of these jobs, which costs so much, ended at `at`.
    pub(super) fn batch(&mut self, jobs: &[usize], cost: usize, at: Duration) {
        for job in jobs {
            let Arrival { at: came, length } = self.arrivals[*job];
            self.latencies[*job] = (at - came).as_secs_f64();
            self.real += length;
        }
        self.computed += cost;
        self.ended = self.ended.max(at);
    }

    pub(super) fn outcome(self) -> Outcome {
        Outcome {
            latencies: self.latencies,
            ended: self.ended.as_secs_f64(),
            padding: 1.0 - self.real as f64 / self.computed.max(1) as f64,
        }
    }
}
