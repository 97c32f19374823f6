//! Spans, exported over OTLP/gRPC to whoever asked for them, and nothing where nobody did.
//!
//! A process holds [`Traces`] and makes its spans from them where the times are known. Without an
//! endpoint the handle is empty: a span then costs the look at an option, and its fields are never
//! made. Nobody waits for a collector, and none that is gone ends anything.

mod export;
mod sample;
mod target;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{Link, Span as _, Status, TraceContextExt, Tracer, TracerProvider};
use opentelemetry::{Context, trace::SpanBuilder};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span as SdkSpan};
use tracing::{info, warn};

pub use opentelemetry::KeyValue;
pub use opentelemetry::trace::{SpanContext, SpanKind, TraceId};
pub use target::TraceError;

use export::Queue;

/// How long the end of a process waits for its last spans to be exported.
const FLUSH: Duration = Duration::from_secs(2);

/// Where the spans of a process go.
#[derive(Debug, Clone, PartialEq, clap::Args)]
pub struct TraceArgs {
    /// Where finished spans go: the gRPC address of an OTLP collector, such as
    /// http://collector:4317; without it, as OTEL_EXPORTER_OTLP_ENDPOINT says
    #[arg(long, env = "EBB_OTLP_ENDPOINT", hide_env_values = true, value_name = "URL")]
    #[arg(help_heading = "Traces")]
    pub otlp_endpoint: Option<String>,

    /// Share of the traces beginning here that is exported, from 0 to 1; a trace that began
    /// elsewhere is exported if its beginner says so
    #[arg(long, env = "EBB_TRACE_SAMPLE", hide_env_values = true, value_name = "SHARE")]
    #[arg(help_heading = "Traces", default_value = "1", value_parser = share)]
    pub trace_sample: f64,

    /// How long the end of a process waits for its last spans. No flag: a test of what a collector
    /// got may wait longer than an operator wants to.
    #[arg(skip = FLUSH)]
    #[doc(hidden)]
    pub flush: Duration,
}

/// The defaults of the flags.
impl Default for TraceArgs {
    fn default() -> Self {
        Self { otlp_endpoint: None, trace_sample: 1.0, flush: FLUSH }
    }
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "use a share from 0 to 1, such as 0.1".to_owned())
}

/// Who makes spans.
#[derive(Debug, Clone)]
pub struct Service {
    /// What it is: `service.name`, unless OTEL_SERVICE_NAME says otherwise.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// Which of them it is; by default the host and the process.
    pub instance: Option<String>,
}

/// The way of spans out of the process; clones share it. Empty by default: spans then go nowhere.
#[derive(Debug, Clone, Default)]
pub struct Traces(Option<Arc<Exported>>);

#[derive(Debug)]
struct Exported {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    queue: Arc<Queue>,
    flush: Duration,
}

/// A span that is to begin.
#[derive(Debug)]
pub struct NewSpan {
    /// What it is called.
    pub name: &'static str,
    /// What it is to others.
    pub kind: SpanKind,
    /// What it is a part of; without it a trace begins.
    pub parent: Option<SpanContext>,
    /// What else it belongs to.
    pub links: Vec<SpanContext>,
    /// When it began.
    pub since: SystemTime,
    /// What is known of it.
    pub fields: Vec<KeyValue>,
}

/// A span that has begun; dropped, it ends. Empty when traces are off.
#[derive(Debug, Default)]
pub struct Span(Option<SdkSpan>);

impl TraceArgs {
    /// Starts exporting, if there is somewhere to export to; to be called on a tokio runtime.
    ///
    /// Connects in the background, and again for ever: a collector that is down is no error.
    ///
    /// # Errors
    /// When the endpoint is none; names the flag or the variable, and not what it says.
    pub fn start(&self, service: &Service) -> Result<Traces, TraceError> {
        let variable = |name: &str| std::env::var(name).ok();
        let Some(target) = target::of(self.otlp_endpoint.as_deref(), variable)? else {
            return Ok(Traces::default());
        };
        let (processor, queue) = export::processor(&target)?;
        let provider = SdkTracerProvider::builder()
            .with_resource(target::resource(service, variable))
            .with_sampler(sample::Sample::new(self.trace_sample))
            // A batch is linked to each of its jobs.
            .with_max_links_per_span(1024)
            .with_span_processor(processor)
            .build();
        info!(collector = target.host(), "spans are exported");
        let tracer = provider.tracer("ebb");
        Ok(Traces(Some(Arc::new(Exported { provider, tracer, queue, flush: self.flush }))))
    }
}

impl Traces {
    /// Whether spans go anywhere.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Begins a span; what it is is asked only when spans go anywhere.
    #[must_use]
    pub fn begin(&self, span: impl FnOnce() -> NewSpan) -> Span {
        Span(self.0.as_ref().map(|exported| span().begin(&exported.tracer)))
    }

    /// Exports what is left, for at most two seconds; no span goes anywhere afterwards.
    pub async fn flush(&self) {
        let Some(exported) = self.0.clone() else { return };
        let (provider, limit) = (exported.provider.clone(), exported.flush);
        // Waits for a thread, which waits for this runtime.
        let flushed = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(limit));
        if !matches!(flushed.await, Ok(Ok(()))) {
            warn!("the last spans were not exported in time");
        }
        let n_lost = exported.queue.n_lost();
        if n_lost > 0 {
            warn!(n_lost, "spans were lost: the collector did not take them");
        }
    }
}

impl NewSpan {
    /// A span of this name that begins now.
    #[must_use]
    pub fn new(name: &'static str, kind: SpanKind) -> Self {
        let since = SystemTime::now();
        Self { name, kind, parent: None, links: Vec::new(), since, fields: Vec::new() }
    }

    fn begin(self, tracer: &SdkTracer) -> SdkSpan {
        let links = self.links.into_iter().map(Link::with_context).collect();
        let builder = SpanBuilder::from_name(self.name)
            .with_kind(self.kind)
            .with_start_time(self.since)
            .with_attributes(self.fields)
            .with_links(links);
        let mut context = Context::new();
        if let Some(parent) = self.parent {
            context = context.with_remote_span_context(parent);
        }
        tracer.build_with_context(builder, &context)
    }
}

impl Span {
    /// Whether it will be exported.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        self.0.as_ref().is_some_and(SdkSpan::is_recording)
    }

    /// What others name as their parent, or link to.
    #[must_use]
    pub fn context(&self) -> Option<SpanContext> {
        self.0.as_ref().map(|span| span.span_context().clone())
    }

    /// Adds what has become known of it.
    pub fn set(&mut self, field: KeyValue) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(field);
        }
    }

    /// Marks what it stands for as failed.
    pub fn fail(&mut self) {
        if let Some(span) = &mut self.0 {
            span.set_status(Status::error(""));
        }
    }

    /// Ends it.
    pub fn end(self, at: SystemTime) {
        if let Some(mut span) = self.0 {
            span.end_with_timestamp(at);
        }
    }
}

/// W3C trace context as a message carries it.
struct Carrier<'a> {
    traceparent: &'a str,
    tracestate: Option<&'a str>,
}

impl Extractor for Carrier<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => Some(self.traceparent),
            "tracestate" => self.tracestate,
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

/// Reads the headers `traceparent` and `tracestate`; none where the former is not as W3C has it.
#[must_use]
pub fn read_traceparent(traceparent: &str, tracestate: Option<&str>) -> Option<SpanContext> {
    let carrier = Carrier { traceparent, tracestate };
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier);
    let read = context.span().span_context().clone();
    read.is_valid().then_some(read)
}

/// The header `traceparent` of what a span causes.
#[must_use]
pub fn traceparent(of: &SpanContext) -> String {
    format!("00-{}-{}-{:02x}", of.trace_id(), of.span_id(), of.trace_flags().to_u8())
}

/// The trace that a header `traceparent` names, as log lines have it; none where it is not as W3C
/// has it.
#[must_use]
pub fn trace_of(traceparent: &str) -> Option<TraceId> {
    read_traceparent(traceparent, None).map(|read| read.trace_id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_read_as_it_is_written_and_a_bad_one_is_none() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let read = read_traceparent(good, Some("a=b")).unwrap();
        assert!(read.is_sampled() && read.is_remote());
        assert_eq!(read.trace_state().get("a"), Some("b"));
        assert_eq!(traceparent(&read), good);
        for bad in [
            "",
            "nonsense",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(read_traceparent(bad, None), None, "{bad:?}");
        }
    }

    #[test]
    fn without_an_endpoint_a_span_is_nothing_and_is_not_even_described() {
        let traces = Traces::default();
        let mut span = traces.begin(|| unreachable!("nobody exports it"));
        span.set(KeyValue::new("a", 1));
        span.fail();
        assert!(!traces.is_on() && !span.is_recorded() && span.context().is_none());
        span.end(SystemTime::now());
    }

    #[test]
    fn a_share_is_a_number_from_0_to_1() {
        assert_eq!(share("0.25"), Ok(0.25));
        for wrong in ["", "2", "-0.1", "NaN", "half"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }
}
