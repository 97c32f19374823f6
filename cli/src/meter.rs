//! From the workers' metrics pages to rates and quantiles of the last seconds.
//! No clock and no task in here: time comes in as an argument.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// What one worker has counted since it started.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Counters {
    /// Jobs that left, however they ended.
    pub(crate) jobs: f64,
    /// Batches that ran.
    pub(crate) batches: f64,
    /// Jobs in these batches.
    pub(crate) batched: f64,
    /// Jobs by the seconds from receipt to settlement: `(at most, so many)`, cumulative.
    pub(crate) seconds: Vec<(f64, f64)>,
}

/// What the workers did of late.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Rates {
    /// Jobs per second.
    pub(crate) jobs_per_s: f64,
    /// Jobs per batch, if one ran.
    pub(crate) batch: Option<f64>,
    /// Seconds from receipt to settlement of the median job, if one was settled.
    pub p50: Option<f64>,
    /// The same, of all but the slowest twentieth.
    pub p95: Option<f64>,
}

/// Adds up what workers count, though they come and go.
#[derive(Debug)]
pub(crate) struct Meter {
    window: Duration,
    last: HashMap<String, Counters>,
    steps: VecDeque<(Duration, Counters)>,
    began: Option<Duration>,
}

impl Meter {
    /// Rates over the last `window`.
    #[must_use]
    pub(crate) fn new(window: Duration) -> Self {
        Self { window, last: HashMap::new(), steps: VecDeque::new(), began: None }
    }

    /// Takes a look at all workers that answer. `now` never goes back.
    pub(crate) fn look(&mut self, now: Duration, workers: Vec<(String, Counters)>) -> Rates {
        let mut step = Counters::default();
        for (id, counters) in workers {
            let before = self.last.insert(id, counters.clone()).unwrap_or_default();
            step.add(&counters, &before);
        }
        let began = *self.began.get_or_insert(now);
        self.steps.push_back((now, step));
        let span = self.window.min(now.saturating_sub(began));
        // The oldest step happened before the window and only bounds it.
        while self.steps.front().is_some_and(|(at, _)| now.saturating_sub(*at) >= self.window) {
            self.steps.pop_front();
        }
        self.rates(span)
    }

    fn rates(&self, span: Duration) -> Rates {
        let mut sum = Counters::default();
        for (_, step) in &self.steps {
            sum.add(step, &Counters::default());
        }
        let seconds = span.as_secs_f64();
        Rates {
            jobs_per_s: if seconds > 0.0 { sum.jobs / seconds } else { 0.0 },
            batch: (sum.batches > 0.0).then(|| sum.batched / sum.batches),
            p50: quantile(&sum.seconds, 0.5),
            p95: quantile(&sum.seconds, 0.95),
        }
    }
}

impl Counters {
    /// Reads a metrics page in Prometheus' text form; what is not known is left out.
    #[must_use]
    pub(crate) fn parse(page: &str) -> Self {
        let mut counters = Self::default();
        for line in page.lines() {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            let Ok(value) = value.parse::<f64>() else { continue };
            let (name, labels) = name.split_once('{').unwrap_or((name, ""));
            match name {
                "worker_jobs_total" => counters.jobs += value,
                "worker_batch_items_count" => counters.batches += value,
                "worker_batch_items_sum" => counters.batched += value,
                "worker_job_seconds_bucket" => {
                    let bound = labels.split('"').nth(1).map(str::parse::<f64>);
                    if let Some(Ok(bound)) = bound {
                        counters.seconds.push((bound, value));
                    }
                }
                _ => {}
            }
        }
        counters
    }

    /// Adds what came since `before`; a worker that began anew has counted from zero.
    fn add(&mut self, now: &Self, before: &Self) {
        let since = |now: f64, before: f64| if now < before { now } else { now - before };
        self.jobs += since(now.jobs, before.jobs);
        self.batches += since(now.batches, before.batches);
        self.batched += since(now.batched, before.batched);
        if self.seconds.len() < now.seconds.len() {
            self.seconds.resize(now.seconds.len(), (f64::INFINITY, 0.0));
        }
        for (at, (bound, count)) in now.seconds.iter().enumerate() {
            let before = before.seconds.get(at).map_or(0.0, |(_, count)| *count);
            self.seconds[at].0 = *bound;
            self.seconds[at].1 += since(*count, before);
        }
    }
}

/// A quantile of a cumulative histogram, between the bounds of its bucket by proportion; the last
/// finite bound for what lies beyond it.
fn quantile(buckets: &[(f64, f64)], share: f64) -> Option<f64> {
    let total = buckets.last().map(|(_, count)| *count).filter(|count| *count > 0.0)?;
    let rank = share * total;
    let (mut low, mut below) = (0.0, 0.0);
    for (bound, count) in buckets {
        if *count >= rank && bound.is_finite() {
            let within = if *count > below { (rank - below) / (count - below) } else { 1.0 };
            return Some(low + (bound - low) * within);
        }
        if bound.is_finite() {
            (low, below) = (*bound, *count);
        }
    }
    Some(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
# HELP worker_jobs_total Jobs that left, by what became of them.
# TYPE worker_jobs_total counter
worker_jobs_total{model=\"a\",outcome=\"completed\"} 90
worker_jobs_total{model=\"a\",outcome=\"failed\"} 10
worker_batch_items_sum{model=\"a\"} 60
worker_batch_items_count{model=\"a\"} 3
worker_batch_items_sum{model=\"b\"} 40
worker_batch_items_count{model=\"b\"} 1
worker_job_seconds_bucket{le=\"0.1\"} 50
worker_job_seconds_bucket{le=\"0.2\"} 100
worker_job_seconds_bucket{le=\"+Inf\"} 100
worker_job_seconds_sum 11
worker_jobs_in_flight 7
";

    fn at(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    fn jobs(jobs: f64) -> Counters {
        Counters { jobs, ..Counters::default() }
    }

    #[test]
    fn a_metrics_page_is_read() {
        let counters = Counters::parse(PAGE);
        assert_eq!((counters.jobs, counters.batches, counters.batched), (100.0, 4.0, 100.0));
        assert_eq!(counters.seconds, [(0.1, 50.0), (0.2, 100.0), (f64::INFINITY, 100.0)]);
        assert_eq!(Counters::parse("not a page\n{} 1\n"), Counters::default());
    }

    #[test]
    fn rates_are_those_of_the_window() {
        let mut meter = Meter::new(at(2));
        let worker = |n| vec![("a".to_owned(), jobs(n))];
        assert_eq!(meter.look(at(0), worker(0.0)).jobs_per_s, 0.0);
        assert_eq!(meter.look(at(1), worker(100.0)).jobs_per_s, 100.0);
        assert_eq!(meter.look(at(2), worker(200.0)).jobs_per_s, 100.0);
        assert_eq!(meter.look(at(3), worker(200.0)).jobs_per_s, 50.0);
        assert_eq!(meter.look(at(5), worker(200.0)).jobs_per_s, 0.0);
    }

    #[test]
    fn workers_come_and_go_and_begin_anew() {
        let mut meter = Meter::new(at(10));
        let two = vec![("a".to_owned(), jobs(10.0)), ("b".to_owned(), jobs(20.0))];
        meter.look(at(0), Vec::new());
        meter.look(at(1), two);
        // One left, the other began anew under the same name.
        let rates = meter.look(at(2), vec![("b".to_owned(), jobs(2.0))]);
        assert_eq!(rates.jobs_per_s, 32.0 / 2.0);
    }

    #[test]
    fn batches_and_quantiles_come_from_the_histograms() {
        let mut meter = Meter::new(at(10));
        meter.look(at(0), Vec::new());
        let rates = meter.look(at(1), vec![("a".to_owned(), Counters::parse(PAGE))]);
        assert_eq!(rates.batch, Some(25.0));
        assert_eq!(rates.p50, Some(0.1));
        assert!((rates.p95.unwrap() - 0.19).abs() < 1e-9, "{rates:?}");
    }

    #[test]
    fn a_quantile_lies_within_its_bucket() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[(1.0, 0.0), (f64::INFINITY, 0.0)], 0.5), None);
        assert_eq!(quantile(&[(1.0, 0.0), (f64::INFINITY, 9.0)], 0.5), Some(1.0));
        assert_eq!(quantile(&[(1.0, 2.0), (3.0, 2.0), (f64::INFINITY, 2.0)], 0.5), Some(0.5));
    }
}
