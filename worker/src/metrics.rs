//! What a worker counts.

use prometheus::{
    GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, exponential_buckets,
};

/// The counters of a worker; clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Jobs that left, by what became of them.
    pub jobs: IntCounterVec,
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
        registry.register(Box::new(metrics.jobs.clone()))?;
        registry.register(Box::new(metrics.batch_items.clone()))?;
        registry.register(Box::new(metrics.batch_padding.clone()))?;
        registry.register(Box::new(metrics.batch_wait.clone()))?;
        registry.register(Box::new(metrics.infer.clone()))?;
        registry.register(Box::new(metrics.batches_failed.clone()))?;
        registry.register(Box::new(metrics.job.clone()))?;
        registry.register(Box::new(metrics.leases_lost.clone()))?;
        registry.register(Box::new(metrics.broker_errors.clone()))?;
        registry.register(Box::new(metrics.broker_up.clone()))?;
        registry.register(Box::new(metrics.broker_losses.clone()))?;
        registry.register(Box::new(metrics.broker_warnings.clone()))?;
        registry.register(Box::new(metrics.replies.clone()))?;
        registry.register(Box::new(metrics.in_flight.clone()))?;
        registry.register(Box::new(metrics.cold_start.clone()))?;
        Ok(metrics)
    }

    fn new() -> prometheus::Result<Self> {
        let jobs = Opts::new("worker_jobs_total", "Jobs that left, by what became of them.");
        let errors = Opts::new("worker_broker_errors_total", "Calls to the broker that failed.");
        let replies = Opts::new("worker_replies_total", "Replies, by what became of them.");
        let cold = Opts::new("worker_cold_start_seconds", "From start to readiness, by phase.");
        Ok(Self {
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
    use super::*;

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
