//! How long jobs are in each stage of their way, as a histogram.

use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, HistogramVec, exponential_buckets};

/// Where a job is; the spans of traces have the same names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Published, and not received yet: by the clocks of both.
    Queue,
    /// Its body becomes an input.
    Decode,
    /// It waits for the device.
    Wait,
    /// On the device, in a batch.
    Infer,
    /// Its answer is encoded and stored.
    Store,
    /// The broker is told.
    Settle,
}

impl Stage {
    const ALL: [Self; 6] =
        [Self::Queue, Self::Decode, Self::Wait, Self::Infer, Self::Store, Self::Settle];

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Decode => "decode",
            Self::Wait => "wait",
            Self::Infer => "infer",
            Self::Store => "store",
            Self::Settle => "settle",
        }
    }
}

/// The times of all jobs by stage.
#[derive(Debug)]
pub(crate) struct Stages {
    all: HistogramVec,
    // Looked up once, since each job passes six.
    each: [Histogram; 6],
}

impl Stages {
    pub(crate) fn new() -> prometheus::Result<Self> {
        let opts = HistogramOpts::new("worker_stage_seconds", "Time of a job in a stage.");
        let all = HistogramVec::new(opts.buckets(buckets()?), &["stage"])?;
        let each = Stage::ALL.map(|stage| all.with_label_values(&[stage.word()]));
        Ok(Self { all, each })
    }

    pub(crate) fn observe(&self, stage: Stage, took: Duration) {
        self.each[stage as usize].observe(took.as_secs_f64());
    }

    /// For the registry.
    pub(crate) fn collector(&self) -> Box<dyn prometheus::core::Collector> {
        Box::new(self.all.clone())
    }
}

/// From a millisecond to 17 minutes: a job may have waited for a GPU to be bought.
pub(crate) fn buckets() -> prometheus::Result<Vec<f64>> {
    exponential_buckets(0.001, 2.0, 21)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stage_has_its_own_times() {
        let stages = Stages::new().unwrap();
        for (n, stage) in Stage::ALL.into_iter().enumerate() {
            stages.observe(stage, Duration::from_secs(n as u64 + 1));
        }
        for (n, stage) in Stage::ALL.into_iter().enumerate() {
            let of_stage = stages.all.with_label_values(&[stage.word()]);
            assert_eq!(
                (of_stage.get_sample_count(), of_stage.get_sample_sum()),
                (1, n as f64 + 1.0)
            );
        }
    }
}
