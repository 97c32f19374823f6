//! What the scaler counts.
//!
//! `docs/metrics.md` tells of all of them, and a test compares. Those of queues come from `figures`.

use std::time::Duration;

use ebb_queue::{ErrorKind, Timestamp};
use ebb_telemetry::Condition;
use prometheus::core::Collector;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};
use tonic::Code;

use crate::cause::Cause;
use crate::push::Reason;

/// How a change of files ended: what they hold is in use, or is broken.
const OK: &str = "ok";
const FAILED: &str = "failed";

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
    reload_broken: IntGaugeVec,
    tls_expiry: IntGaugeVec,
    connections: IntGaugeVec,
    refused: IntCounterVec,
}

/// Files that are read again while the scaler runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Files {
    /// The configuration, and the secrets that it names.
    Config,
    /// The certificates of the gRPC port.
    Tls,
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
        let metrics = Self::new()?;
        metrics.collectors().into_iter().try_for_each(|one| registry.register(one))?;
        // A counter that is there only from its first failure on never rose, for `increase`.
        for files in [Files::Config, Files::Tls] {
            for outcome in [OK, FAILED] {
                metrics.reloads(files).with_label_values(&[outcome]).inc_by(0);
            }
            metrics.found(files, Condition::Mended);
        }
        // Nothing may be said for hours.
        for reason in [Reason::Open, Reason::Edge, Reason::Repeat, Reason::Heartbeat] {
            metrics.pushes(reason).inc_by(0);
        }
        Ok(metrics)
    }

    pub(crate) fn collectors(&self) -> Vec<Box<dyn Collector>> {
        vec![
            Box::new(self.requests.clone()),
            Box::new(self.streams.clone()),
            Box::new(self.pushes.clone()),
            Box::new(self.looks.clone()),
            Box::new(self.look_errors.clone()),
            Box::new(self.config_reloads.clone()),
            Box::new(self.tls_reloads.clone()),
            Box::new(self.reload_broken.clone()),
            Box::new(self.tls_expiry.clone()),
            Box::new(self.connections.clone()),
            Box::new(self.refused.clone()),
        ]
    }

    fn new() -> prometheus::Result<Self> {
        let opts = HistogramOpts::new("scaler_request_seconds", "Time to answer a call from KEDA.")
            .buckets(vec![0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 2.0, 3.0]);
        let counter =
            |name: &str, help: &str, label| IntCounterVec::new(Opts::new(name, help), &[label]);
        Ok(Self {
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
            reload_broken: int_gauge(
                "scaler_reload_broken",
                "1 while what is on disk is broken and what was before it is in use.",
                &["what"],
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
        })
    }

    pub(crate) fn answered(&self, method: &str, code: Code, took: Duration) {
        let code = format!("{code:?}");
        self.requests.with_label_values(&[method, &code]).observe(took.as_secs_f64());
    }

    pub(crate) fn streams(&self, method: &str) -> IntGauge {
        self.streams.with_label_values(&[method])
    }

    pub(crate) fn pushed(&self, reason: Reason) {
        self.pushes(reason).inc();
    }

    fn pushes(&self, reason: Reason) -> IntCounter {
        let reason = match reason {
            Reason::Open => "open",
            Reason::Edge => "edge",
            Reason::Repeat => "repeat",
            Reason::Heartbeat => "heartbeat",
        };
        self.pushes.with_label_values(&[reason])
    }

    pub(crate) fn looked(&self, cause: Cause) {
        self.looks.with_label_values(&[cause.word()]).inc();
    }

    /// What has changed is in use.
    pub(crate) fn reloaded(&self, files: Files) {
        self.reloads(files).with_label_values(&[OK]).inc();
    }

    /// What is on disk is broken, or is no longer.
    pub(crate) fn found(&self, files: Files, condition: Condition<'_>) {
        let what = match files {
            Files::Config => "config",
            Files::Tls => "tls",
        };
        let is_broken = matches!(condition, Condition::Broken(_));
        self.reload_broken.with_label_values(&[what]).set(is_broken.into());
        self.reloads(files).with_label_values(&[FAILED]).inc_by(is_broken.into());
    }

    fn reloads(&self, files: Files) -> &IntCounterVec {
        match files {
            Files::Config => &self.config_reloads,
            Files::Tls => &self.tls_reloads,
        }
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
        self.look_errors.with_label_values(&[&*kind.to_string()]).inc();
    }
}

pub(crate) fn int_gauge(
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntGaugeVec> {
    IntGaugeVec::new(Opts::new(name, help), labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Gauges;

    #[test]
    fn a_reload_that_fails_is_seen_to_rise_from_zero() {
        let registry = Registry::new();
        drop(Metrics::register(&registry).unwrap());
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        for name in ["config", "tls"] {
            for outcome in ["ok", "failed"] {
                let line = format!("scaler_{name}_reloads_total{{outcome=\"{outcome}\"}} 0");
                assert!(text.lines().any(|told| told == line), "{line} is not in:\n{text}");
            }
            let line = format!("scaler_reload_broken{{what=\"{name}\"}} 0");
            assert!(text.lines().any(|told| told == line), "{line} is not in:\n{text}");
        }
    }

    #[test]
    fn the_page_of_metrics_tells_all_of_them_as_they_are() {
        let own = Metrics::new().unwrap().collectors();
        let queues = Gauges::new().unwrap();
        let all = own.iter().map(|one| &**one as &dyn Collector).chain(queues.each());
        let page = include_str!("../../docs/metrics.md");
        ebb_servers::assert_page_tells(page, "scaler_", all);
    }
}
