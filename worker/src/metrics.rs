//! What a worker counts.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use prometheus::core::Collector;
use prometheus::{
    CounterVec, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry, exponential_buckets,
};

use crate::batcher::Closed;
use crate::codec::{Answer, Spent};
use crate::outcome::{NO_MODEL, OUTCOMES};
use crate::shared::{EXPIRED, TOO_LATE, lock};
use crate::stages::{self, Stages};

/// The counters of a worker; clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// What this worker runs, and on which queue; always 1.
    pub info: IntGaugeVec,
    /// Jobs that left, by what became of them, and by model.
    pub jobs: IntCounterVec,
    /// Jobs that were not run because of their deadlines, by model and by why.
    pub shed: IntCounterVec,
    /// Batches by model and by why they were closed.
    pub batches: IntCounterVec,
    /// Jobs per batch, by model.
    pub batch_items: HistogramVec,
    /// How full a batch is, by model.
    pub batch_fill: HistogramVec,
    /// The most that a batch may cost in tokens, by model.
    pub max_cost: IntGaugeVec,
    /// Share of a batch that is padding, by model.
    pub batch_padding: HistogramVec,
    /// From receipt to the closing of the batch, by model.
    pub batch_wait: HistogramVec,
    /// Time of a batch on the device, by model.
    pub infer: HistogramVec,
    /// Batches that failed as a whole, by model.
    pub batches_failed: IntCounterVec,
    /// Time of the device for jobs that were answered, by model and tenant.
    pub device_seconds: CounterVec,
    /// Time of the device for batches that failed and for jobs without an answer, by model.
    pub failed_seconds: CounterVec,
    /// Tokens of jobs that were answered, by model and tenant.
    pub tokens: IntCounterVec,
    /// Those of them that were not computed, for another job had the same ones, by model and tenant.
    pub tokens_reused: IntCounterVec,
    /// Texts of jobs that were answered whose ends were cut off, by model and tenant.
    pub texts_truncated: IntCounterVec,
    /// From receipt to settlement.
    pub job: Histogram,
    /// From publication to settlement, of completed jobs.
    pub turnaround: Histogram,
    /// Time of jobs by stage.
    pub(crate) stages: Arc<Stages>,
    /// Leases that went to somebody else.
    pub leases_lost: IntCounter,
    /// Dead letters deleted because they were older than `dead_ttl`.
    pub dead_purged: IntCounter,
    /// Looks for such letters, whether or not there is a `dead_ttl`.
    pub dead_looks: IntCounter,
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
    /// Pieces of answers for who follows them, by what became of them.
    pub chunks: IntCounterVec,
    /// Jobs held.
    pub in_flight: IntGauge,
    /// Seconds from the start to readiness, by phase.
    pub cold_start: GaugeVec,
    /// Seconds from the start of the process to its first result; there once it is.
    pub first_result: GaugeVec,
    tenants: Arc<Mutex<Tenants>>,
}

/// The tenants that have a label of their own: a set that is closed once it is full.
#[derive(Debug)]
struct Tenants {
    names: BTreeSet<String>,
    most: usize,
}

impl Tenants {
    /// The label of a job of this tenant.
    fn label<'a>(&mut self, tenant: Option<&'a str>) -> &'a str {
        let Some(tenant) = tenant else { return "none" };
        if self.names.contains(tenant) {
            return tenant;
        }
        if self.names.len() >= self.most {
            return "other";
        }
        self.names.insert(tenant.to_owned());
        tenant
    }
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
            Box::new(self.shed.clone()),
            Box::new(self.batches.clone()),
            Box::new(self.batch_items.clone()),
            Box::new(self.batch_fill.clone()),
            Box::new(self.max_cost.clone()),
            Box::new(self.batch_padding.clone()),
            Box::new(self.batch_wait.clone()),
            Box::new(self.infer.clone()),
            Box::new(self.batches_failed.clone()),
            Box::new(self.job.clone()),
            Box::new(self.turnaround.clone()),
            self.stages.collector(),
            Box::new(self.leases_lost.clone()),
            Box::new(self.dead_purged.clone()),
            Box::new(self.dead_looks.clone()),
            Box::new(self.broker_errors.clone()),
            Box::new(self.broker_up.clone()),
            Box::new(self.broker_losses.clone()),
            Box::new(self.broker_warnings.clone()),
            Box::new(self.replies.clone()),
            Box::new(self.chunks.clone()),
            Box::new(self.in_flight.clone()),
            Box::new(self.cold_start.clone()),
            Box::new(self.first_result.clone()),
            Box::new(self.device_seconds.clone()),
            Box::new(self.failed_seconds.clone()),
            Box::new(self.tokens.clone()),
            Box::new(self.tokens_reused.clone()),
            Box::new(self.texts_truncated.clone()),
        ]
    }

    /// Gives so many tenants a label of their own; all others share one.
    #[must_use]
    pub fn with_tenants(self, most: usize) -> Self {
        lock(&self.tenants).most = most;
        self
    }

    /// Shows what counts by this model with 0, so that its first count is seen as one that came, where
    /// somebody has looked before: who asks for a rate knows of nothing before the first look.
    pub(crate) fn show(&self, model: &str) {
        for outcome in OUTCOMES {
            self.jobs.with_label_values(&[outcome, model]);
        }
        for reason in [EXPIRED, TOO_LATE] {
            self.shed.with_label_values(&[model, reason]);
        }
        if model == NO_MODEL {
            return;
        }
        for closed in [Closed::Full, Closed::Free, Closed::Waited] {
            self.batches.with_label_values(&[model, closed.word()]);
        }
        self.batches_failed.with_label_values(&[model]);
        self.failed_seconds.with_label_values(&[model]);
        let of_batches =
            [&self.batch_items, &self.batch_fill, &self.batch_padding, &self.batch_wait];
        for histogram in of_batches.into_iter().chain([&self.infer]) {
            histogram.with_label_values(&[model]);
        }
    }

    /// Counts what the device did for an answer.
    pub(crate) fn spend(&self, model: &str, tenant: Option<&str>, answer: &Answer, spent: &Spent) {
        let labels = [model, lock(&self.tenants).label(tenant)];
        self.device_seconds.with_label_values(&labels).inc_by(spent.seconds);
        self.tokens.with_label_values(&labels).inc_by(answer.tokens as u64);
        self.tokens_reused.with_label_values(&labels).inc_by(answer.n_reused as u64);
        self.texts_truncated.with_label_values(&labels).inc_by(answer.n_cut as u64);
    }

    /// Counts what the device did for no answer.
    pub(crate) fn waste(&self, model: &str, seconds: f64) {
        self.failed_seconds.with_label_values(&[model]).inc_by(seconds);
    }

    #[allow(clippy::too_many_lines, reason = "a list of names, and nothing else")]
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
        let chunks = Opts::new("worker_chunks_total", "Pieces of answers, by what became of them.");
        let cold = Opts::new("worker_cold_start_seconds", "From start to readiness, by phase.");
        let first = Opts::new(
            "worker_first_result_seconds",
            "From the process's start to its first result.",
        );
        Ok(Self {
            info: IntGaugeVec::new(info, &["queue", "model"])?,
            batches: IntCounterVec::new(batches, &["model", "closed"])?,
            turnaround: Histogram::with_opts(turnaround.buckets(stages::buckets()?))?,
            stages: Arc::new(Stages::new()?),
            cold_start: GaugeVec::new(cold, &["phase"])?,
            first_result: GaugeVec::new(first, &[])?,
            jobs: IntCounterVec::new(jobs, &["outcome", "model"])?,
            shed: IntCounterVec::new(
                Opts::new("worker_jobs_shed_total", "Jobs not run because of their deadlines."),
                &["model", "reason"],
            )?,
            batch_items: by_model("worker_batch_items", "Jobs per batch.", doubling(1.0, 12)?)?,
            batch_fill: by_model(
                "worker_batch_fill_ratio",
                "How full a batch is, by rows or tokens.",
                vec![0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0],
            )?,
            max_cost: IntGaugeVec::new(
                Opts::new("worker_batch_max_tokens", "Most that a batch may cost at this time."),
                &["model"],
            )?,
            batch_padding: by_model(
                "worker_batch_padding_ratio",
                "Share of a batch that is padding.",
                vec![0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75],
            )?,
            batch_wait: by_model(
                "worker_batch_wait_seconds",
                "From receipt to a closed batch.",
                times()?,
            )?,
            infer: by_model("worker_infer_seconds", "Time of a batch on the device.", times()?)?,
            batches_failed: IntCounterVec::new(
                Opts::new("worker_batches_failed_total", "Batches that failed as a whole."),
                &["model"],
            )?,
            device_seconds: CounterVec::new(
                Opts::new("worker_device_seconds_total", "Device time of jobs that were answered."),
                &["model", "tenant"],
            )?,
            failed_seconds: CounterVec::new(
                Opts::new("worker_device_failed_seconds_total", "Device time without an answer."),
                &["model"],
            )?,
            tokens: IntCounterVec::new(
                Opts::new("worker_tokens_total", "Tokens of jobs that were answered."),
                &["model", "tenant"],
            )?,
            tokens_reused: IntCounterVec::new(
                Opts::new(
                    "worker_tokens_reused_total",
                    "Tokens of jobs that were answered which another job had computed.",
                ),
                &["model", "tenant"],
            )?,
            texts_truncated: IntCounterVec::new(
                Opts::new(
                    "worker_texts_truncated_total",
                    "Texts that were longer than their model takes, and answered without the end.",
                ),
                &["model", "tenant"],
            )?,
            tenants: Arc::new(Mutex::new(Tenants { names: BTreeSet::new(), most: TENANTS })),
            job: Histogram::with_opts(
                HistogramOpts::new("worker_job_seconds", "From receipt to settlement.")
                    .buckets(times()?),
            )?,
            leases_lost: IntCounter::new("worker_leases_lost_total", "Leases lost to others.")?,
            dead_looks: IntCounter::new(
                "worker_dead_letter_looks_total",
                "Looks for dead letters older than dead_ttl.",
            )?,
            dead_purged: IntCounter::new(
                "worker_dead_letters_purged_total",
                "Dead letters deleted because they were older than dead_ttl.",
            )?,
            broker_errors: IntCounterVec::new(errors, &["call"])?,
            broker_up: IntGauge::new(
                "worker_broker_up",
                "1 when the broker and the store of results answered last.",
            )?,
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
            chunks: IntCounterVec::new(chunks, &["outcome"])?,
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

/// Tenants with a label of their own, when nobody says how many.
pub(crate) const TENANTS: usize = 32;

fn by_model(name: &str, help: &str, buckets: Vec<f64>) -> prometheus::Result<HistogramVec> {
    HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), &["model"])
}

/// Bounds from a quarter of a millisecond to two minutes.
fn times() -> prometheus::Result<Vec<f64>> {
    doubling(0.000_25, 20)
}

fn doubling(start: f64, n: usize) -> prometheus::Result<Vec<f64>> {
    exponential_buckets(start, 2.0, n)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::gpu;

    #[test]
    fn the_page_of_metrics_tells_all_of_them_as_they_are() {
        let gpus = gpu::Gauges::registered(&Registry::new()).unwrap();
        let (own, gpus) = (Metrics::default().collectors(), gpus.collectors());
        let all = own.iter().chain(&gpus).map(|one| &**one as &dyn Collector);
        ebb_servers::assert_page_tells(include_str!("../../docs/metrics.md"), "worker_", all);
    }

    #[test]
    fn a_registry_shows_them_once() {
        let registry = Registry::new();
        let metrics = Metrics::registered(&registry).unwrap();
        metrics.jobs.with_label_values(&["completed", "echo"]).inc();
        metrics.cold_start.with_label_values(&["weights"]).set(0.5);
        let names: Vec<String> =
            registry.gather().iter().map(|family| family.name().to_owned()).collect();
        assert!(names.contains(&"worker_jobs_total".to_owned()), "{names:?}");
        assert!(names.contains(&"worker_cold_start_seconds".to_owned()), "{names:?}");
        assert!(names.iter().all(|name| name.starts_with("worker_")), "{names:?}");
        assert!(Metrics::registered(&registry).is_err());
    }

    #[test]
    fn the_first_job_of_a_model_is_seen_to_rise_from_zero() {
        let registry = Registry::new();
        let metrics = Metrics::registered(&registry).unwrap();
        metrics.show("mini");
        metrics.show(NO_MODEL);
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        let has = |line: String| text.lines().any(|told| told == line);
        for outcome in ["completed", "rejected", "retried", "released", "cancelled", "lost"] {
            for model in ["mini", "none"] {
                let labels = format!("{{model=\"{model}\",outcome=\"{outcome}\"}}");
                assert!(has(format!("worker_jobs_total{labels} 0")), "{labels}: {text}");
            }
        }
        for of_model in [
            "jobs_shed_total{model=\"mini\",reason=\"too_late\"}",
            "jobs_shed_total{model=\"none\",reason=\"expired\"}",
            "batches_total{closed=\"waited\",model=\"mini\"}",
            "batches_failed_total{model=\"mini\"}",
            "device_failed_seconds_total{model=\"mini\"}",
            "infer_seconds_sum{model=\"mini\"}",
            "batch_items_count{model=\"mini\"}",
        ] {
            assert!(has(format!("worker_{of_model} 0")), "{of_model}: {text}");
        }
        assert!(!text.contains("worker_batches_failed_total{model=\"none\"}"), "{text}");
    }

    #[test]
    fn the_first_tenants_are_told_apart_and_the_rest_are_one() {
        let metrics = Metrics::default().with_tenants(2);
        let spent = Spent { seconds: 0.5, share: 1.0 };
        let (content_type, body) = ("text/plain", Bytes::new());
        let answer = Answer { content_type, body, alert: None, tokens: 3, n_cut: 2, n_reused: 1 };
        for tenant in [Some("a"), Some("b"), Some("c"), Some("d"), Some("a"), None] {
            metrics.spend("mini", tenant, &answer, &spent);
        }
        let told = ["a", "b", "c", "other", "none"]
            .map(|tenant| metrics.tokens.with_label_values(&["mini", tenant]).get());
        assert_eq!(told, [6, 3, 0, 6, 3]);
        let n_cut = metrics.texts_truncated.with_label_values(&["mini", "a"]).get();
        assert_eq!(n_cut, 4);
        assert_eq!(metrics.tokens_reused.with_label_values(&["mini", "a"]).get(), 2);
        let seconds = metrics.device_seconds.with_label_values(&["mini", "other"]).get();
        assert!((seconds - 1.0).abs() < 1e-9, "{seconds}");
    }
}
