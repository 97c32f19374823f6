//! What the gateway does, as spans: requests, and the publication of their jobs, which the workers'
//! spans are parts of.

use std::time::Instant;

use axum::http::HeaderMap;
use ebb_queue::Job;
use ebb_telemetry::{
    KeyValue, NewSpan, Span, SpanContext, SpanKind, Traces, read_traceparent, traceparent,
};

use crate::metrics::Metrics;
use crate::routes::Endpoint;

/// A request, until it is answered.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) endpoint: Endpoint,
    begun: Instant,
    span: Span,
    metrics: Metrics,
    is_answered: bool,
}

impl Call {
    /// A part of the caller's trace, where the caller says so.
    pub(crate) fn begin(
        (traces, metrics): (&Traces, &Metrics),
        endpoint: Endpoint,
        headers: &HeaderMap,
    ) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let caller = || read_traceparent(text("traceparent")?, text("tracestate"));
        let span = traces.begin(|| NewSpan {
            parent: caller(),
            fields: vec![KeyValue::new("http.route", endpoint.path())],
            ..NewSpan::new("request", SpanKind::Server)
        });
        let (begun, metrics) = (Instant::now(), metrics.clone());
        Self { endpoint, begun, span, metrics, is_answered: false }
    }

    /// What its jobs are parts of.
    pub(crate) fn context(&self) -> Option<SpanContext> {
        self.span.context()
    }

    /// It was answered; `own` where its own limit has passed, which is no fault of ours.
    pub(crate) fn end(mut self, status: u16, own: bool) {
        self.is_answered = true;
        let word = if own { format!("{status}_own") } else { status.to_string() };
        self.metrics.answered(self.endpoint, &word, self.begun.elapsed());
        self.span.set(KeyValue::new("http.response.status_code", i64::from(status)));
        if status >= 500 {
            self.span.fail();
        }
    }
}

impl Drop for Call {
    /// A client that has hung up is answered by nobody.
    fn drop(&mut self) {
        if !self.is_answered {
            self.metrics.left(self.endpoint);
        }
    }
}

/// Makes a job part of a request's trace; without a collector it has what its client says.
pub(crate) fn hand_on(job: &mut Job, request: Option<&SpanContext>) {
    if let Some(context) = request {
        job.headers.traceparent = Some(traceparent(context));
    }
}
