//! The spans of jobs that are published here.

use ebb_queue::Job;
use ebb_telemetry::{KeyValue, NewSpan, Span, SpanKind, Traces, read_traceparent, traceparent};

/// Begins the span of a job's publication, which the job then carries on.
pub(crate) fn publication(traces: &Traces, job: &mut Job) -> Span {
    let headers = &mut job.headers;
    let parent = headers.traceparent.as_deref();
    let span = traces.begin(|| NewSpan {
        parent: parent.and_then(|parent| read_traceparent(parent, None)),
        fields: vec![KeyValue::new("job.id", job.id.to_string())],
        ..NewSpan::new("enqueue", SpanKind::Producer)
    });
    if let Some(context) = span.context() {
        headers.traceparent = Some(traceparent(&context));
    }
    span
}

#[cfg(test)]
mod tests {
    use ebb_queue::Timestamp;

    use super::*;

    #[test]
    fn without_a_collector_a_job_keeps_what_it_has() {
        let mut job = Job::new("", Timestamp::UNIX_EPOCH);
        job.headers.traceparent = Some("as it came".to_owned());
        assert!(!publication(&Traces::default(), &mut job).is_recorded());
        assert_eq!(job.headers.traceparent.as_deref(), Some("as it came"));
    }
}
