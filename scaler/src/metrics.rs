//! What the scaler counts.
//!
//! | metric | labels | meaning |
//! |---|---|---|
//! | `scaler_request_seconds` | `method`, `code` | time to answer a call, or to open a stream |
//! | `scaler_streams` | `method` | streams that are open |
//! | `scaler_pushes_total` | `reason`: open, edge, repeat, heartbeat | activity told on streams |
//! | `scaler_looks_total` | `cause`: open, arrival, due, refresh | looks at a queue |
//! | `scaler_look_errors_total` | `kind` | failed looks |
//! | `scaler_profile_up` | `profile` | 1 while a queue of the profile is known, 0 when none is |
//! | `scaler_queue_depth` | `profile`, `queue`, `state`: ready, in_flight, delayed, dead | jobs, as last seen |
//! | `scaler_queue_workers` | `profile`, `queue`, `phase` | workers that report, as last seen |
//! | `scaler_queue_arrivals_per_second` | `profile`, `queue`, `over`: seconds, minutes | jobs that arrive |
//! | `scaler_queue_throughput_per_second` | `profile`, `queue` | jobs that a loaded replica completes, as learned |
//! | `scaler_queue_service_seconds` | `profile`, `queue` | from receiving a job to settling it, as learned |
//! | `scaler_queue_cold_start_seconds` | `profile`, `queue` | from a worker's start to readiness, as learned |
//! | `scaler_queue_replica_slots` | `profile`, `queue` | jobs that a replica runs at once, as learned |
//! | `scaler_snapshot_age_seconds` | `profile`, `queue` | how long ago a queue was last seen |
//! | `scaler_broker_up` | `profile`, `queue` | 1 when the last look at a queue was answered |
//! | `scaler_broker_warnings` | `profile`, `queue`, `code` | settings that are weaker than the promises |
//! | `scaler_config_reloads_total` | `outcome`: ok, failed | changes of the configuration |
//! | `scaler_tls_reloads_total` | `outcome`: ok, failed | changes of the certificates |
//! | `scaler_tls_expiry_timestamp_seconds` | - | when the certificate expires, since 1970 |
//! | `scaler_connections` | - | connections that are open |
//! | `scaler_connections_refused_total` | `reason`: full, handshake, timeout | connections not taken |
//!
//! What was not learned yet is not there. The labels `profile` and `queue` have at most
//! `--max-queues` pairs, and only of queues that are watched; `scaler_profile_up` has the profiles
//! of the configuration. Those of queues come from `figures`.

use std::time::Duration;

use ebb_queue::{ErrorKind, Timestamp};
use prometheus::Registry;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts};
use tonic::Code;

use crate::observe::Cause;
use crate::push::Reason;
use crate::watch::words;

/// The figures; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    requests: HistogramVec,
    streams: IntGaugeVec,
    pushes: IntCounterVec,
    looks: IntCounterVec,
    look_errors: IntCounterVec,
    config_reloads: IntCounterVec,
    tls_reloads: IntCounterVec,
    tls_expiry: IntGaugeVec,
    connections: IntGaugeVec,
    refused: IntCounterVec,
}

/// How a change of files ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// What they hold now is in use.
    Ok,
    /// They are broken, and what they held before stays in use.
    Failed,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
        }
    }
}

/// Why a connection was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// There are as many as there may be.
    Full,
    /// The two ends did not agree on TLS.
    Handshake,
    /// The other end did not come to terms in time.
    Timeout,
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
            config_reloads: counter(
                "scaler_config_reloads_total",
                "Changes of the configuration.",
                "outcome",
            )?,
            tls_reloads: counter(
                "scaler_tls_reloads_total",
                "Changes of certificates.",
                "outcome",
            )?,
            // Without a label, and absent where there is no certificate.
            tls_expiry: int_gauge(
                "scaler_tls_expiry_timestamp_seconds",
                "When the certificate expires, in seconds since 1970.",
                &[],
            )?,
            connections: int_gauge("scaler_connections", "Connections that are open.", &[])?,
            refused: counter(
                "scaler_connections_refused_total",
                "Connections that were not taken.",
                "reason",
            )?,
        };
        for gauge in [&metrics.tls_expiry, &metrics.connections] {
            registry.register(Box::new(gauge.clone()))?;
        }
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
        self.looks.with_label_values(&[cause.word()]).inc();
    }

    pub(crate) fn config_reloaded(&self, outcome: Outcome) {
        self.config_reloads.with_label_values(&[outcome.word()]).inc();
    }

    pub(crate) fn tls_reloaded(&self, outcome: Outcome) {
        self.tls_reloads.with_label_values(&[outcome.word()]).inc();
    }

    pub(crate) fn tls_expires(&self, at: Timestamp) {
        self.tls_expiry.with_label_values::<&str>(&[]).set(at.as_second());
    }

    pub(crate) fn connections(&self) -> IntGauge {
        self.connections.with_label_values::<&str>(&[])
    }

    pub(crate) fn refused(&self, why: Refused) {
        let reason = match why {
            Refused::Full => "full",
            Refused::Handshake => "handshake",
            Refused::Timeout => "timeout",
        };
        self.refused.with_label_values(&[reason]).inc();
    }

    pub(crate) fn look_failed(&self, kind: ErrorKind) {
        self.look_errors.with_label_values(&[words(kind)]).inc();
    }
}

pub(crate) fn int_gauge(
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntGaugeVec> {
    IntGaugeVec::new(Opts::new(name, help), labels)
}
