//! What the gateway does, as spans: requests, and the publication of their jobs, which the workers'
//! spans are parts of.

use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use ebb_queue::Job;
use ebb_telemetry::{
    KeyValue, NewSpan, Span, SpanContext, SpanKind, Traces, read_traceparent, traceparent,
};

use crate::routes::Endpoint;

/// A request, until it is answered.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) endpoint: Endpoint,
    begun: Instant,
    span: Span,
}

impl Call {
    /// A part of the caller's trace, where the caller says so.
    pub(crate) fn begin(traces: &Traces, endpoint: Endpoint, headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let caller = || read_traceparent(text("traceparent")?, text("tracestate"));
        let span = traces.begin(|| NewSpan {
            parent: caller(),
            fields: vec![KeyValue::new("http.route", endpoint.path())],
            ..NewSpan::new("request", SpanKind::Server)
        });
        Self { endpoint, begun: Instant::now(), span }
    }

    /// What its jobs are parts of.
    pub(crate) fn context(&self) -> Option<SpanContext> {
        self.span.context()
    }

    /// How long it has taken so far.
    pub(crate) fn took(&self) -> Duration {
        self.begun.elapsed()
    }

    /// It was answered.
    pub(crate) fn end(mut self, status: u16) {
        self.span.set(KeyValue::new("http.response.status_code", i64::from(status)));
        if status >= 500 {
            self.span.fail();
        }
    }
}

/// Makes a job part of a request's trace; without a collector it has what its client says.
pub(crate) fn hand_on(job: &mut Job, request: Option<&SpanContext>) {
    if let Some(context) = request {
        job.headers.traceparent = Some(traceparent(context));
    }
}
