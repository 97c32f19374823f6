//! What the scaler counts.
//!
//! | metric | labels | meaning |
//! |---|---|---|
//! | `scaler_request_seconds` | `method`, `code` | time to answer a call, or to open a stream |
//! | `scaler_streams` | `method` | streams that are open |
//! | `scaler_pushes_total` | `reason`: open, edge, repeat, heartbeat | activity told on streams |
//! | `scaler_looks_total` | `cause`: open, arrival, due, refresh | looks at a queue |
//! | `scaler_look_errors_total` | `kind` | failed looks |
//! | `scaler_queue_depth` | `queue`, `state`: ready, in_flight, delayed, dead | jobs, as last seen |
//! | `scaler_queue_workers` | `queue`, `phase` | workers that report, as last seen |
//! | `scaler_queue_arrivals_per_second` | `queue`, `over`: seconds, minutes | jobs that arrive |
//! | `scaler_queue_throughput_per_second` | `queue` | jobs that a loaded replica completes, as learned |
//! | `scaler_queue_service_seconds` | `queue` | from receiving a job to settling it, as learned |
//! | `scaler_queue_cold_start_seconds` | `queue` | from a worker's start to readiness, as learned |
//! | `scaler_queue_replica_slots` | `queue` | jobs that a replica runs at once, as learned |
//! | `scaler_snapshot_age_seconds` | `queue` | how long ago a queue was last seen |
//! | `scaler_broker_up` | `queue` | 1 when the last look at a queue was answered |
//! | `scaler_broker_warnings` | `queue`, `code` | settings that are weaker than the promises |
//!
//! What was not learned yet is not there. The label `queue` has at most `--max-queues` values, and only queues that are watched.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ebb_queue::{ErrorKind, Phase};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec};
use prometheus::{Opts, Registry};
use tokio::time::Instant;
use tonic::Code;

use crate::learn::{Arrivals, Learned};
use crate::observe::Cause;
use crate::push::Reason;
use crate::watch::{Observers, words};

/// The figures; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    requests: HistogramVec,
    streams: IntGaugeVec,
    pushes: IntCounterVec,
    looks: IntCounterVec,
    look_errors: IntCounterVec,
}

impl Metrics {
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let opts = HistogramOpts::new("scaler_request_seconds", "Time to answer a call from KEDA.")
            .buckets(vec![0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 2.0, 3.0]);
        let counter = |name: &str, help: &str, label| {
            let vec = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(vec.clone()))?;
            Ok::<_, prometheus::Error>(vec)
        };
        let metrics = Self {
            requests: HistogramVec::new(opts, &["method", "code"])?,
            streams: int_gauge("scaler_streams", "Streams that are open.", &["method"])?,
            pushes: counter("scaler_pushes_total", "Activity told on streams.", "reason")?,
            looks: counter("scaler_looks_total", "Looks at a queue.", "cause")?,
            look_errors: counter("scaler_look_errors_total", "Failed looks at a queue.", "kind")?,
        };
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.streams.clone()))?;
        Ok(metrics)
    }

    pub(crate) fn answered(&self, method: &str, code: Code, took: Duration) {
        let code = format!("{code:?}");
        self.requests.with_label_values(&[method, &code]).observe(took.as_secs_f64());
    }

    pub(crate) fn streams(&self, method: &str) -> IntGauge {
        self.streams.with_label_values(&[method])
    }

    pub(crate) fn pushed(&self, reason: Reason) {
        let reason = match reason {
            Reason::Open => "open",
            Reason::Edge => "edge",
            Reason::Repeat => "repeat",
            Reason::Heartbeat => "heartbeat",
        };
        self.pushes.with_label_values(&[reason]).inc();
    }

    pub(crate) fn looked(&self, cause: Cause) {
        let cause = match cause {
            Cause::Open => "open",
            Cause::Arrival => "arrival",
            Cause::Due => "due",
            Cause::Refresh => "refresh",
        };
        self.looks.with_label_values(&[cause]).inc();
    }

    pub(crate) fn look_failed(&self, kind: ErrorKind) {
        self.look_errors.with_label_values(&[words(kind)]).inc();
    }
}

/// Reads the views of the observers when it is scraped, so that a retired queue leaves no trace.
pub(crate) struct QueueFigures {
    observers: Observers,
    gauges: Mutex<Gauges>,
    descs: Vec<Desc>,
}

struct Gauges {
    depth: IntGaugeVec,
    workers: IntGaugeVec,
    age: GaugeVec,
    up: IntGaugeVec,
    warnings: IntGaugeVec,
    lessons: Lessons,
}

impl Gauges {
    fn each(&self) -> impl Iterator<Item = &dyn Collector> {
        let seen: [&dyn Collector; 5] =
            [&self.depth, &self.workers, &self.age, &self.up, &self.warnings];
        seen.into_iter().chain(self.lessons.each())
    }
}

/// What the learner says.
struct Lessons {
    arrivals: GaugeVec,
    throughput: GaugeVec,
    service: GaugeVec,
    cold_start: GaugeVec,
    slots: GaugeVec,
}

impl Lessons {
    fn new() -> prometheus::Result<Self> {
        let gauge = |what: &str, help: &str, labels: &[&str]| {
            GaugeVec::new(Opts::new(format!("scaler_queue_{what}"), help), labels)
        };
        Ok(Self {
            arrivals: gauge("arrivals_per_second", "Jobs that arrive.", &["queue", "over"])?,
            throughput: gauge(
                "throughput_per_second",
                "Jobs that a loaded replica completes, as learned.",
                &["queue"],
            )?,
            service: gauge(
                "service_seconds",
                "From receiving a job to settling it, as learned.",
                &["queue"],
            )?,
            cold_start: gauge(
                "cold_start_seconds",
                "From the start of a worker to its readiness, as learned.",
                &["queue"],
            )?,
            slots: gauge(
                "replica_slots",
                "Jobs that a replica runs at once, as learned.",
                &["queue"],
            )?,
        })
    }

    fn each(&self) -> [&dyn Collector; 5] {
        [&self.arrivals, &self.throughput, &self.service, &self.cold_start, &self.slots]
    }

    fn reset(&self) {
        for gauge in [&self.throughput, &self.service, &self.cold_start, &self.slots] {
            gauge.reset();
        }
        self.arrivals.reset();
    }

    fn set(&self, queue: &str, learned: &Learned) {
        let Arrivals { fast, slow } = learned.arrivals;
        self.arrivals.with_label_values(&[queue, "seconds"]).set(fast);
        self.arrivals.with_label_values(&[queue, "minutes"]).set(slow);
        let loaded = learned.throughput.seen().filter(|seconds| *seconds > 0.0);
        let throughput = loaded.or(learned.fitted).map(f64::recip);
        let figures = [
            (&self.throughput, throughput.filter(|rate| rate.is_finite())),
            (&self.service, learned.service.seen()),
            (&self.cold_start, learned.cold_start),
            (&self.slots, learned.slots),
        ];
        for (gauge, figure) in figures {
            if let Some(figure) = figure {
                gauge.with_label_values(&[queue]).set(figure);
            }
        }
    }
}

impl QueueFigures {
    pub(crate) fn new(observers: Observers) -> prometheus::Result<Self> {
        let (depth, age) = ("scaler_queue_depth", "scaler_snapshot_age_seconds");
        let phase = &["queue", "phase"];
        let gauges = Gauges {
            depth: int_gauge(depth, "Jobs, as last seen.", &["queue", "state"])?,
            workers: int_gauge("scaler_queue_workers", "Workers that report.", phase)?,
            age: GaugeVec::new(Opts::new(age, "Age of the last look at a queue."), &["queue"])?,
            up: int_gauge("scaler_broker_up", "1 when the last look was answered.", &["queue"])?,
            warnings: int_gauge(
                "scaler_broker_warnings",
                "Settings of the broker that are weaker than the promises.",
                &["queue", "code"],
            )?,
            lessons: Lessons::new()?,
        };
        let descs = gauges.each().flat_map(Collector::desc).cloned().collect();
        Ok(Self { observers, gauges: Mutex::new(gauges), descs })
    }
}

impl Collector for QueueFigures {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let gauges = self.gauges.lock().unwrap_or_else(PoisonError::into_inner);
        gauges.depth.reset();
        gauges.workers.reset();
        gauges.age.reset();
        gauges.up.reset();
        gauges.warnings.reset();
        gauges.lessons.reset();
        let now = Instant::now();
        for (queue, view) in self.observers.views() {
            gauges.up.with_label_values(&[&queue]).set(view.answers().into());
            for warning in view.warnings.iter() {
                gauges.warnings.with_label_values(&[queue.as_str(), warning.code]).set(1);
            }
            let Some(look) = view.look else { continue };
            let age = now.saturating_duration_since(look.at).as_secs_f64();
            gauges.age.with_label_values(&[&queue]).set(age);
            gauges.lessons.set(&queue, &look.snapshot.learned);
            let depth = &look.snapshot.depth;
            let states = [
                ("ready", depth.ready),
                ("in_flight", depth.in_flight),
                ("delayed", depth.delayed),
                ("dead", depth.dead),
            ];
            for (state, n_jobs) in states {
                let n_jobs = i64::try_from(n_jobs).unwrap_or(i64::MAX);
                gauges.depth.with_label_values(&[queue.as_str(), state]).set(n_jobs);
            }
            for phase in ["starting", "idle", "busy", "draining"] {
                gauges.workers.with_label_values(&[queue.as_str(), phase]).set(0);
            }
            for worker in &look.snapshot.workers {
                let phase = match worker.phase {
                    Phase::Starting => "starting",
                    Phase::Idle => "idle",
                    Phase::Busy => "busy",
                    Phase::Draining => "draining",
                };
                gauges.workers.with_label_values(&[queue.as_str(), phase]).inc();
            }
        }
        gauges.each().flat_map(Collector::collect).collect()
    }
}

fn int_gauge(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
    IntGaugeVec::new(Opts::new(name, help), labels)
}
