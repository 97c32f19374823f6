//! What the scaler does, as spans: calls of KEDA, looks at queues, and edges told on streams.
//!
//! An edge is a part of the look that brought it, so that one trace leads from the broker's answer
//! to every stream that was told. No span names more than a metric does: no URL, no metadata.

use std::time::SystemTime;

use ebb_queue::{Error, QueueUrl, Source};
use ebb_telemetry::{KeyValue, NewSpan, Span, SpanContext, SpanKind, Traces, read_traceparent};
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request};

use crate::cause::Cause;
use crate::metrics::Metrics;
use crate::place::Place;
use crate::push::Reason;
use crate::snapshot::Snapshot;

/// One of KEDA's calls, until it is answered; dropped before, it was cut by its deadline or by ours, or
/// its client has gone. Its time is measured however it ends.
#[derive(Debug)]
pub(crate) struct Call {
    method: &'static str,
    begun: Instant,
    span: Span,
    metrics: Metrics,
    is_over: bool,
}

impl Call {
    /// A part of the caller's trace, where the caller says so.
    pub(crate) fn begin<T>(
        (traces, metrics): (&Traces, &Metrics),
        method: &'static str,
        request: &Request<T>,
    ) -> Self {
        let span = traces.begin(|| NewSpan {
            parent: caller(request.metadata()),
            fields: vec![
                KeyValue::new("rpc.system", "grpc"),
                KeyValue::new("rpc.service", "externalscaler.ExternalScaler"),
                KeyValue::new("rpc.method", method),
            ],
            ..NewSpan::new(method, SpanKind::Server)
        });
        Self { method, begun: Instant::now(), span, metrics: metrics.clone(), is_over: false }
    }

    /// It was answered; a stream was opened, or was not.
    pub(crate) fn end(mut self, code: Code) {
        self.note(code);
    }

    fn note(&mut self, code: Code) {
        self.is_over = true;
        self.metrics.answered(self.method, code, self.begun.elapsed());
        self.span.set(KeyValue::new("rpc.grpc.status_code", i64::from(code as i32)));
        if code != Code::Ok {
            self.span.fail();
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.is_over {
            self.note(Code::Cancelled);
        }
    }
}

fn caller(metadata: &MetadataMap) -> Option<SpanContext> {
    let text = |name: &str| metadata.get(name).and_then(|value| value.to_str().ok());
    read_traceparent(text("traceparent")?, text("tracestate"))
}

/// A look's span, as its edges need it.
#[derive(Debug, Clone)]
pub(crate) struct LookSpan {
    context: SpanContext,
    /// Kept, since the time of day worked out again would be another.
    since: SystemTime,
}

/// Notes a look at a queue, and says what its edges are part of.
pub(crate) fn looked(
    traces: &Traces,
    place: &Place,
    url: &QueueUrl,
    (cause, begun): (Cause, Instant),
    seen: Result<&Snapshot, &Error>,
) -> Option<LookSpan> {
    let mut since = None;
    let mut span = traces.begin(|| NewSpan {
        since: *since.insert(SystemTime::now() - begun.elapsed()),
        fields: vec![
            KeyValue::new("profile", place.profile.to_string()),
            KeyValue::new("queue", place.source.to_string()),
            KeyValue::new("broker", url.address.broker()),
            KeyValue::new("cause", cause.word()),
        ],
        ..NewSpan::new("look", SpanKind::Client)
    });
    match seen {
        Ok(Snapshot { depth, .. }) => {
            for (name, n_jobs) in [("ready", depth.ready), ("in_flight", depth.in_flight)] {
                span.set(KeyValue::new(name, i64::try_from(n_jobs).unwrap_or(i64::MAX)));
            }
        }
        Err(error) => {
            span.set(KeyValue::new("error.type", error.kind().to_string()));
            span.fail();
        }
    }
    Some(LookSpan { context: span.context()?, since: since? })
}

/// Notes that a stream told an edge: from the look that brought it to the telling.
pub(crate) fn told(traces: &Traces, reason: Reason, look: Option<&LookSpan>, source: &Source) {
    let Some(look) = look.filter(|_| reason == Reason::Edge) else { return };
    drop(traces.begin(|| NewSpan {
        parent: Some(look.context.clone()),
        since: look.since,
        fields: vec![KeyValue::new("queue", source.to_string())],
        ..NewSpan::new("edge", SpanKind::Producer)
    }));
}
