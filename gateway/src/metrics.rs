//! What the gateway counts.
//!
//! | metric | labels | meaning |
//! |---|---|---|
//! | `gateway_requests_total` | `route`, `status` | requests that were answered |
//! | `gateway_request_seconds` | `route` | until the answer was there, or for a stream until it began |
//! | `gateway_streams_total` | `route`, `outcome` | streams that have ended |
//! | `gateway_first_piece_seconds` | `route` | until the first piece of a stream |
//! | `gateway_requests_in_flight` | - | requests that are being answered |
//! | `gateway_held_bytes` | - | bytes of bodies, of pieces and of answers that requests hold |
//! | `gateway_connections` | - | connections of clients that are open |
//! | `gateway_connections_closed_total` | `reason`: full, late, stalled | connections that the gateway has closed for want of room or of patience |
//! | `gateway_jobs_waiting` | - | jobs whose ends requests wait for |
//! | `gateway_jobs_published_total` | - | jobs that were put on a queue |
//! | `gateway_jobs_cancelled_total` | - | jobs that were cancelled: by a client, or since the one who waited has gone |
//! | `gateway_jobs_uncancelled_total` | - | jobs that nobody waits for and that were not cancelled: there were too many, or their broker failed |
//! | `gateway_broker_errors_total` | `call` | calls to a broker that failed, but for jobs that it refused |
//! | `gateway_brokers_up` | - | queues whose brokers answered last |
//! | `gateway_keys_reloads_total` | `outcome`: ok, failed | changes of the file of keys |
//! | `gateway_keys_broken` | - | 1 while the file of keys cannot be used and those before stay |

use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

use ebb_queue::Error;

use crate::routes::Endpoint;

/// The figures; clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    requests: IntCounterVec,
    seconds: HistogramVec,
    first_piece: HistogramVec,
    streams: IntCounterVec,
    /// Requests that are being answered.
    pub(crate) in_flight: IntGauge,
    /// Bytes of bodies, of pieces and of answers that requests hold.
    pub(crate) held: IntGauge,
    connections: IntGauge,
    closed: IntCounterVec,
    /// Jobs whose ends requests wait for.
    pub(crate) waiting: IntGauge,
    /// Jobs that were put on a queue.
    pub(crate) published: IntCounter,
    /// Jobs that were cancelled.
    pub(crate) cancelled: IntCounter,
    /// Jobs that nobody waits for and that were not cancelled all the same.
    pub(crate) uncancelled: IntCounter,
    broker_errors: IntCounterVec,
    /// Queues whose brokers answered last.
    pub(crate) brokers_up: IntGauge,
    /// Changes of the file of keys.
    pub(crate) reloads: IntCounterVec,
    /// 1 while the newest keys cannot be used.
    pub(crate) broken: IntGauge,
}

impl Metrics {
    /// Figures that the registry shows.
    ///
    /// # Errors
    /// When the registry has them already.
    pub fn registered(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self::new()?;
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.seconds.clone()))?;
        registry.register(Box::new(metrics.first_piece.clone()))?;
        registry.register(Box::new(metrics.streams.clone()))?;
        registry.register(Box::new(metrics.in_flight.clone()))?;
        registry.register(Box::new(metrics.held.clone()))?;
        registry.register(Box::new(metrics.connections.clone()))?;
        registry.register(Box::new(metrics.closed.clone()))?;
        registry.register(Box::new(metrics.waiting.clone()))?;
        registry.register(Box::new(metrics.published.clone()))?;
        registry.register(Box::new(metrics.cancelled.clone()))?;
        registry.register(Box::new(metrics.uncancelled.clone()))?;
        registry.register(Box::new(metrics.broker_errors.clone()))?;
        registry.register(Box::new(metrics.brokers_up.clone()))?;
        registry.register(Box::new(metrics.reloads.clone()))?;
        registry.register(Box::new(metrics.broken.clone()))?;
        Ok(metrics)
    }

    fn new() -> prometheus::Result<Self> {
        // From a request that is refused to a pool that starts on a fresh node.
        let buckets = prometheus::exponential_buckets(0.001, 2.5, 15)?;
        let seconds = HistogramOpts::new(
            "gateway_request_seconds",
            "Until the answer was there, or for a stream until it began.",
        );
        let first_piece =
            HistogramOpts::new("gateway_first_piece_seconds", "Until the first piece of a stream.");
        Ok(Self {
            closed: closed()?,
            connections: IntGauge::new(
                "gateway_connections",
                "Connections of clients that are open.",
            )?,
            requests: IntCounterVec::new(
                Opts::new("gateway_requests_total", "Requests that were answered."),
                &["route", "status"],
            )?,
            seconds: HistogramVec::new(seconds.buckets(buckets.clone()), &["route"])?,
            first_piece: HistogramVec::new(first_piece.buckets(buckets), &["route"])?,
            streams: IntCounterVec::new(
                Opts::new("gateway_streams_total", "Streams that have ended."),
                &["route", "outcome"],
            )?,
            in_flight: IntGauge::new(
                "gateway_requests_in_flight",
                "Requests that are being answered.",
            )?,
            held: IntGauge::new(
                "gateway_held_bytes",
                "Bytes of bodies, of pieces and of answers that requests hold.",
            )?,
            waiting: IntGauge::new("gateway_jobs_waiting", "Jobs whose ends requests wait for.")?,
            published: IntCounter::new(
                "gateway_jobs_published_total",
                "Jobs that were put on a queue.",
            )?,
            cancelled: IntCounter::new(
                "gateway_jobs_cancelled_total",
                "Jobs that were cancelled: by a client, or since the one who waited has gone.",
            )?,
            uncancelled: IntCounter::new(
                "gateway_jobs_uncancelled_total",
                "Jobs that nobody waits for and that were not cancelled: there were too many, or their \
                 broker failed.",
            )?,
            broker_errors: IntCounterVec::new(
                Opts::new("gateway_broker_errors_total", "Calls to a broker that failed."),
                &["call"],
            )?,
            brokers_up: IntGauge::new("gateway_brokers_up", "Queues whose brokers answered last.")?,
            reloads: IntCounterVec::new(
                Opts::new("gateway_keys_reloads_total", "Changes of the file of keys."),
                &["outcome"],
            )?,
            broken: IntGauge::new(
                "gateway_keys_broken",
                "1 while the file of keys cannot be used and those before stay.",
            )?,
        })
    }

    /// A request was answered.
    pub(crate) fn answered(&self, endpoint: Endpoint, status: &str, took: Duration) {
        self.requests.with_label_values(&[endpoint.word(), status]).inc();
        self.seconds.with_label_values(&[endpoint.word()]).observe(took.as_secs_f64());
    }

    /// A client hung up before its request was answered.
    pub(crate) fn left(&self, endpoint: Endpoint) {
        self.requests.with_label_values(&[endpoint.word(), "499"]).inc();
    }

    /// A connection is open, until this is dropped.
    pub(crate) fn connection(&self) -> Open {
        self.connections.inc();
        Open(self.connections.clone())
    }

    /// The gateway has closed a connection.
    pub(crate) fn closed(&self, reason: Closed) {
        self.closed.with_label_values(&[reason.word()]).inc();
    }

    /// A call to a broker failed. That a queue is full, or a job wrong, is an answer, unless the broker
    /// says no more of what it has stored.
    pub(crate) fn failed(&self, call: &'static str, error: &Error) {
        if !error.is_answer() {
            self.broker_errors.with_label_values(&[call]).inc();
        }
    }

    /// A stream begins; how it ends is counted when this is dropped.
    pub(crate) fn stream(&self, endpoint: Endpoint) -> Streaming {
        Streaming { streams: self.streams.clone(), endpoint, ending: Ending::Left }
    }

    /// The first piece of a stream for a route, when it comes.
    pub(crate) fn first_piece(&self, endpoint: Endpoint) -> Histogram {
        self.first_piece.with_label_values(&[endpoint.word()])
    }
}

/// Counts connections that are closed.
fn closed() -> prometheus::Result<IntCounterVec> {
    let closed = IntCounterVec::new(
        Opts::new(
            "gateway_connections_closed_total",
            "Connections that the gateway has closed for want of room or of patience.",
        ),
        &["reason"],
    )?;
    for reason in [Closed::Full, Closed::Late, Closed::Stalled] {
        // Shown as 0 before the first, so that its rate is seen.
        closed.with_label_values(&[reason.word()]);
    }
    Ok(closed)
}

/// Why the gateway has closed a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closed {
    /// There are as many as there may be.
    Full,
    /// The headers of its first request were not there in time.
    Late,
    /// Its client did not take what it had asked for.
    Stalled,
}

impl Closed {
    fn word(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Late => "late",
            Self::Stalled => "stalled",
        }
    }
}

/// A connection that is open, until this is dropped.
pub(crate) struct Open(IntGauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// How a stream has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// With the answer.
    Completed,
    /// With an error of the request: it is wrong, or its job was cancelled.
    Refused,
    /// With an error of ours.
    Failed,
    /// Nothing came in time.
    Late,
    /// Nothing came in the time that the client has set.
    LateOwn,
    /// The gateway ended.
    Closing,
    /// The client hung up.
    Left,
}

impl Ending {
    fn word(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Late => "late",
            Self::LateOwn => "late_own",
            Self::Closing => "closing",
            Self::Left => "left",
        }
    }

    /// Of an error with this status.
    pub(crate) fn of(status: u16) -> Self {
        if status < 500 { Self::Refused } else { Self::Failed }
    }
}

/// A stream, until it is dropped.
#[derive(Debug)]
pub(crate) struct Streaming {
    streams: IntCounterVec,
    endpoint: Endpoint,
    ending: Ending,
}

impl Streaming {
    /// How it ends; its client has hung up where nobody says otherwise.
    pub(crate) fn ends(&mut self, ending: Ending) {
        self.ending = ending;
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.streams.with_label_values(&[self.endpoint.word(), self.ending.word()]).inc();
    }
}

/// Figures that nobody sees, for tests.
impl Default for Metrics {
    fn default() -> Self {
        Self::new().expect("names and labels are constants, and the tests make one")
    }
}

#[cfg(test)]
mod tests {
    use ebb_queue::ErrorKind;

    use super::*;

    #[test]
    fn a_request_is_counted_by_its_route_and_its_status() {
        let registry = Registry::new();
        let metrics = Metrics::registered(&registry).unwrap();
        metrics.answered(Endpoint::Jobs, "202", Duration::from_millis(5));
        assert_eq!(metrics.requests.with_label_values(&["jobs", "202"]).get(), 1);
        metrics.left(Endpoint::Jobs);
        assert_eq!(metrics.requests.with_label_values(&["jobs", "499"]).get(), 1);
        assert!(Metrics::registered(&registry).is_err());
    }

    #[test]
    fn a_stream_is_counted_by_its_end_and_a_full_queue_is_no_failure() {
        let metrics = Metrics::default();
        let mut first = metrics.stream(Endpoint::Events);
        first.ends(Ending::Late);
        drop(first);
        drop(metrics.stream(Endpoint::Events));
        for outcome in ["late", "left"] {
            assert_eq!(metrics.streams.with_label_values(&["events", outcome]).get(), 1);
        }
        metrics.failed("publish", &Error::new(ErrorKind::Full, "x"));
        metrics.failed("publish", &Error::new(ErrorKind::Unavailable, "x"));
        assert_eq!(metrics.broker_errors.with_label_values(&["publish"]).get(), 1);
    }
}
