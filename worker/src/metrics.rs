//! What a worker counts.

use prometheus::core::Collector;
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, exponential_buckets,
};

use crate::stages::{self, Stages};

/// The counters of a worker; clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// What this worker runs, and on which queue; always 1.
    pub info: IntGaugeVec,
    /// Jobs that left, by what became of them.
    pub jobs: IntCounterVec,
    /// Batches by why they were closed.
    pub batches: IntCounterVec,
    /// Jobs per batch.
    pub batch_items: Histogram,
    /// Share of a batch that is padding.
    pub batch_padding: Histogram,
    /// From receipt to the closing of the batch.
    pub batch_wait: Histogram,
    /// Time of a batch on the device.
    pub infer: Histogram,
    /// Batches that failed as a whole.
    pub batches_failed: IntCounter,
    /// From receipt to settlement.
    pub job: Histogram,
    /// From publication to settlement, of completed jobs.
    pub turnaround: Histogram,
    /// Time of jobs by stage.
    pub(crate) stages: Stages,
    /// Leases that went to somebody else.
    pub leases_lost: IntCounter,
    /// Calls to the broker or the result store that failed.
    pub broker_errors: IntCounterVec,
    /// Whether the broker answered last.
    pub broker_up: IntGauge,
    /// How often the connection to the broker was lost.
    pub broker_losses: IntCounter,
    /// Settings of the broker that are weaker than our promises.
    pub broker_warnings: IntGaugeVec,
    /// Results sent to where their jobs asked for them.
    pub replies: IntCounterVec,
    /// Jobs held.
    pub in_flight: IntGauge,
    /// Seconds from the start to readiness, by phase.
    pub cold_start: GaugeVec,
}

impl Metrics {
    /// Counters that the registry shows.
    ///
    /// # Errors
    /// When the registry has them already.
    pub fn registered(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self::new()?;
        metrics.collectors().into_iter().try_for_each(|one| registry.register(one))?;
        Ok(metrics)
    }

    fn collectors(&self) -> Vec<Box<dyn Collector>> {
        vec![
            Box::new(self.info.clone()),
            Box::new(self.jobs.clone()),
            Box::new(self.batches.clone()),
            Box::new(self.batch_items.clone()),
            Box::new(self.batch_padding.clone()),
            Box::new(self.batch_wait.clone()),
            Box::new(self.infer.clone()),
            Box::new(self.batches_failed.clone()),
            Box::new(self.job.clone()),
            Box::new(self.turnaround.clone()),
            self.stages.collector(),
            Box::new(self.leases_lost.clone()),
            Box::new(self.broker_errors.clone()),
            Box::new(self.broker_up.clone()),
            Box::new(self.broker_losses.clone()),
            Box::new(self.broker_warnings.clone()),
            Box::new(self.replies.clone()),
            Box::new(self.in_flight.clone()),
            Box::new(self.cold_start.clone()),
        ]
    }

    fn new() -> prometheus::Result<Self> {
        let jobs = Opts::new("worker_jobs_total", "Jobs that left, by what became of them.");
        let info = Opts::new("worker_info", "Always 1; the labels tell what this worker runs.");
        let batches = Opts::new("worker_batches_total", "Batches, by why they were closed.");
        let turnaround = HistogramOpts::new(
            "worker_turnaround_seconds",
            "From publication to settlement, of completed jobs.",
        );
        let errors = Opts::new("worker_broker_errors_total", "Calls to the broker that failed.");
        let replies = Opts::new("worker_replies_total", "Replies, by what became of them.");
        let cold = Opts::new("worker_cold_start_seconds", "From start to readiness, by phase.");
        Ok(Self {
            info: IntGaugeVec::new(info, &["queue", "model"])?,
            batches: IntCounterVec::new(batches, &["closed"])?,
            turnaround: Histogram::with_opts(turnaround.buckets(stages::buckets()?))?,
            stages: Stages::new()?,
            cold_start: GaugeVec::new(cold, &["phase"])?,
            jobs: IntCounterVec::new(jobs, &["outcome"])?,
            batch_items: histogram("worker_batch_items", "Jobs per batch.", 1.0, 12)?,
            batch_padding: Histogram::with_opts(
                HistogramOpts::new(
                    "worker_batch_padding_ratio",
                    "Share of a batch that is padding.",
                )
                .buckets(vec![0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75]),
            )?,
            batch_wait: seconds("worker_batch_wait_seconds", "From receipt to a closed batch.")?,
            infer: seconds("worker_infer_seconds", "Time of a batch on the device.")?,
            batches_failed: IntCounter::new(
                "worker_batches_failed_total",
                "Batches that failed as a whole.",
            )?,
            job: seconds("worker_job_seconds", "From receipt to settlement.")?,
            leases_lost: IntCounter::new("worker_leases_lost_total", "Leases lost to others.")?,
            broker_errors: IntCounterVec::new(errors, &["call"])?,
            broker_up: IntGauge::new("worker_broker_up", "1 when the broker answered last.")?,
            broker_losses: IntCounter::new(
                "worker_broker_losses_total",
                "Times that the connection to the broker was lost.",
            )?,
            broker_warnings: IntGaugeVec::new(
                Opts::new(
                    "worker_broker_warnings",
                    "1 for each setting of the broker that is weaker than the promises.",
                ),
                &["code"],
            )?,
            replies: IntCounterVec::new(replies, &["outcome"])?,
            in_flight: IntGauge::new("worker_jobs_in_flight", "Jobs held.")?,
        })
    }
}

/// Counters that nobody sees, for tests and benches.
impl Default for Metrics {
    fn default() -> Self {
        Self::new().expect("names and labels are constants, and the tests make one")
    }
}

fn seconds(name: &str, help: &str) -> prometheus::Result<Histogram> {
    histogram(name, help, 0.000_25, 20)
}

fn histogram(name: &str, help: &str, start: f64, n: usize) -> prometheus::Result<Histogram> {
    let buckets = exponential_buckets(start, 2.0, n)?;
    Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::gpu;

    /// Metrics that the page has and the code has not yet: they come with their own change.
    const AWAITED: [&str; 2] = ["worker_device_seconds_total", "worker_tokens_total"];

    #[test]
    fn the_page_of_metrics_tells_all_of_them_as_they_are() {
        let gpus = gpu::Gauges::registered(&Registry::new()).unwrap();
        let all = Metrics::default().collectors().into_iter().chain(gpus.collectors());
        let code: BTreeSet<String> = all.map(|one| row(&*one)).collect();
        let page = include_str!("../../docs/metrics.md");
        let rows = page.lines().filter(|line| line.starts_with("| `worker_"));
        let awaited =
            |row: &String| AWAITED.iter().any(|name| row.contains(name)) && !code.contains(row);
        let told: BTreeSet<String> = rows.map(without_values).filter(|row| !awaited(row)).collect();
        let (missing, stale): (Vec<_>, Vec<_>) =
            (code.difference(&told).collect(), told.difference(&code).collect());
        assert!(
            missing.is_empty(),
            "write into docs/metrics.md: {missing:#?}; and out: {stale:#?}"
        );
        assert!(stale.is_empty(), "docs/metrics.md tells of what is not there: {stale:#?}");
    }

    /// The row of the page for a metric, without the values of its labels.
    fn row(metric: &dyn Collector) -> String {
        let desc = metric.desc()[0];
        let kind = format!("{:?}", metric.collect()[0].get_field_type()).to_lowercase();
        let labels: Vec<String> =
            desc.variable_labels.iter().map(|label| format!("`{label}`")).collect();
        let labels = if labels.is_empty() { "-".to_owned() } else { labels.join(", ") };
        format!("| `{}` | {kind} | {labels} | {} |", desc.fq_name, desc.help)
    }

    fn without_values(row: &str) -> String {
        let cells: Vec<&str> = row.split(" | ").collect();
        let [name, kind, labels, meaning] = cells[..] else { panic!("not four cells: {row}") };
        let labels = labels.split(": ").next().unwrap_or(labels);
        [name, kind, labels, meaning].join(" | ")
    }

    #[test]
    fn a_registry_shows_them_once() {
        let registry = Registry::new();
        let metrics = Metrics::registered(&registry).unwrap();
        metrics.jobs.with_label_values(&["completed"]).inc();
        metrics.cold_start.with_label_values(&["weights"]).set(0.5);
        let names: Vec<String> =
            registry.gather().iter().map(|family| family.name().to_owned()).collect();
        assert!(names.contains(&"worker_jobs_total".to_owned()), "{names:?}");
        assert!(names.contains(&"worker_cold_start_seconds".to_owned()), "{names:?}");
        assert!(names.iter().all(|name| name.starts_with("worker_")), "{names:?}");
        assert!(Metrics::registered(&registry).is_err());
    }
}
