//! What the split counts.
//!
//! | metric | labels | meaning |
//! |---|---|---|
//! | `split_jobs_total` | `to` | jobs that went to a queue |
//! | `split_spilled_total` | `to` | of those, the ones whose own queue was full |
//! | `split_full_total` | `to` | times that a queue was full |
//! | `split_queue_refuses` | `to` | 1 while jobs are held for a queue that takes none, for a reason other than that it is full |
//! | `split_given_back_total` | `to` | jobs that were given back to be received later, because too many wait for queues that refuse them |
//! | `split_dead_total` | `reason`: expired, refused | jobs that became dead letters of the intake |
//! | `split_dead_letter_looks_total` | - | looks for dead letters of the intake that are older than its `dead_ttl`, whether or not it has one |
//! | `split_dead_letters_purged_total` | - | dead letters of the intake deleted because they were older than its `dead_ttl` |
//! | `split_weight_ratio` | `to` | the share of the jobs that a queue is to get, from 0 to 1 |
//! | `split_jobs_held` | - | jobs that were received and have not gone on |
//! | `split_age_seconds` | - | from the publication of a job until it has gone on |
//! | `split_leases_lost_total` | - | leases lost to others |
//! | `split_weights_reloads_total` | `outcome`: ok, failed | changes of the file of weights: `ok` once all queues are open |
//! | `split_weights_broken` | `what`: file, queues | 1 while the newest weights cannot be used for that, and those before them are |
//! | `split_broker_errors_total` | `call` | calls to the broker that failed |
//! | `split_broker_up` | - | 1 when the broker answered last, and jobs can be received |
//!
//! `to` is a queue that has or had a weight.

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry,
};

use crate::weights::Weights;

/// Why weights cannot be used: their file is broken.
pub(crate) const FILE: &str = "file";
/// A queue of theirs cannot be opened.
pub(crate) const QUEUES: &str = "queues";

/// The figures; clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Jobs that went to a queue.
    pub jobs: IntCounterVec,
    /// Of those, the ones whose own queue was full.
    pub spilled: IntCounterVec,
    /// Times that a queue was full.
    pub full: IntCounterVec,
    /// 1 while jobs are held for a queue that takes none.
    pub refuses: IntGaugeVec,
    /// Jobs that were given back, to be received later.
    pub given_back: IntCounterVec,
    /// Jobs that became dead letters of the intake.
    pub dead: IntCounterVec,
    /// Dead letters of the intake deleted because they were older than its `dead_ttl`.
    pub dead_purged: IntCounter,
    /// Looks for such letters, whether or not there is a `dead_ttl`.
    pub dead_looks: IntCounter,
    /// The share of the jobs that a queue is to get.
    pub weights: GaugeVec,
    /// Jobs that were received and have not gone on.
    pub held: IntGauge,
    /// From publication until a job has gone on.
    pub age: Histogram,
    /// Leases lost to others.
    pub leases_lost: IntCounter,
    /// Changes of the file of weights.
    pub reloads: IntCounterVec,
    /// 1 while the newest weights cannot be used, by why.
    pub broken: IntGaugeVec,
    /// Calls to the broker that failed.
    pub broker_errors: IntCounterVec,
    /// 1 when the broker answered last, and jobs can be received.
    pub broker_up: IntGauge,
}

impl Metrics {
    /// Counters that the registry shows.
    ///
    /// # Errors
    /// When the registry has them already.
    pub fn registered(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self::new()?;
        registry.register(Box::new(metrics.jobs.clone()))?;
        registry.register(Box::new(metrics.spilled.clone()))?;
        registry.register(Box::new(metrics.full.clone()))?;
        registry.register(Box::new(metrics.refuses.clone()))?;
        registry.register(Box::new(metrics.given_back.clone()))?;
        registry.register(Box::new(metrics.dead.clone()))?;
        registry.register(Box::new(metrics.dead_purged.clone()))?;
        registry.register(Box::new(metrics.dead_looks.clone()))?;
        registry.register(Box::new(metrics.weights.clone()))?;
        registry.register(Box::new(metrics.held.clone()))?;
        registry.register(Box::new(metrics.age.clone()))?;
        registry.register(Box::new(metrics.leases_lost.clone()))?;
        registry.register(Box::new(metrics.reloads.clone()))?;
        registry.register(Box::new(metrics.broken.clone()))?;
        registry.register(Box::new(metrics.broker_errors.clone()))?;
        registry.register(Box::new(metrics.broker_up.clone()))?;
        for what in [FILE, QUEUES] {
            metrics.broken.with_label_values(&[what]).set(0);
        }
        Ok(metrics)
    }

    fn new() -> prometheus::Result<Self> {
        let counters =
            |name, help, label: &str| IntCounterVec::new(Opts::new(name, help), &[label]);
        let weights = Opts::new("split_weight_ratio", "Share of the jobs that a queue is to get.");
        let age = "From the publication of a job until it has gone on.";
        let age = HistogramOpts::new("split_age_seconds", age);
        let gauges = |name, help, label: &str| IntGaugeVec::new(Opts::new(name, help), &[label]);
        let buckets = prometheus::exponential_buckets(0.001, 4.0, 12)?;
        Ok(Self {
            jobs: counters("split_jobs_total", "Jobs that went to a queue.", "to")?,
            spilled: counters("split_spilled_total", "Jobs whose own queue was full.", "to")?,
            full: counters("split_full_total", "Times that a queue was full.", "to")?,
            refuses: gauges(
                "split_queue_refuses",
                "1 while jobs are held for a queue that takes none, though it is not full.",
                "to",
            )?,
            given_back: counters(
                "split_given_back_total",
                "Jobs given back to be received later: too many wait for queues that refuse.",
                "to",
            )?,
            dead: counters("split_dead_total", "Dead letters of the intake.", "reason")?,
            dead_looks: IntCounter::new(
                "split_dead_letter_looks_total",
                "Looks for dead letters of the intake older than dead_ttl.",
            )?,
            dead_purged: IntCounter::new(
                "split_dead_letters_purged_total",
                "Dead letters of the intake deleted because they were older than dead_ttl.",
            )?,
            weights: GaugeVec::new(weights, &["to"])?,
            held: IntGauge::new("split_jobs_held", "Jobs that have not gone on.")?,
            age: Histogram::with_opts(age.buckets(buckets))?,
            leases_lost: IntCounter::new("split_leases_lost_total", "Leases lost to others.")?,
            reloads: counters(
                "split_weights_reloads_total",
                "Changes of the file of weights: ok once all their queues are open.",
                "outcome",
            )?,
            broken: gauges(
                "split_weights_broken",
                "1 while the newest weights cannot be used and those before them are.",
                "what",
            )?,
            broker_errors: counters("split_broker_errors_total", "Calls that failed.", "call")?,
            broker_up: IntGauge::new(
                "split_broker_up",
                "1 when the broker answered last, and jobs can be received.",
            )?,
        })
    }

    /// Shows the weights, and 0 for queues that have none any more.
    pub(crate) fn show(&self, before: Option<&Weights>, now: &Weights) {
        for queue in before.into_iter().flat_map(Weights::queues).chain(now.queues()) {
            let gauge: Gauge = self.weights.with_label_values(&[queue]);
            gauge.set(now.share(queue));
            // Shown from the start, so that a rate begins at 0.
            self.jobs.with_label_values(&[queue]).inc_by(0);
            self.given_back.with_label_values(&[queue]).inc_by(0);
        }
    }
}

/// Counters that nobody sees, for tests.
impl Default for Metrics {
    fn default() -> Self {
        Self::new().expect("names and labels are constants, and the tests make one")
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_table_at_the_top_has_every_metric() {
        let (table, code) = include_str!("metrics.rs").split_once("use prometheus").unwrap();
        let code = code.split("#[cfg(test)]").next().unwrap();
        let names: Vec<_> = code.split('"').filter(|text| text.starts_with("split_")).collect();
        assert!(names.len() > 15, "{names:?}");
        let missing: Vec<_> =
            names.into_iter().filter(|name| !table.contains(&format!("| `{name}` |"))).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
