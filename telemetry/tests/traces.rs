//! Spans on their way to a real collector, and to one that is not there.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::time::{Duration, Instant, SystemTime};

use ebb_servers::{Collector, Port, Seen};
use ebb_telemetry::{
    KeyValue, NewSpan, Service, Span, SpanKind, TraceArgs, Traces, read_traceparent, traceparent,
};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// No wait for a collector that is gone may take as long; an export alone may take 10 s.
const GONE: Duration = Duration::from_secs(8);

fn started(args: &TraceArgs) -> Traces {
    let instance = Some("me-1".to_owned());
    args.start(&Service { name: "ebb-test", version: "1.2.3", instance }).unwrap()
}

fn traces(url: &str) -> Traces {
    started(&TraceArgs { otlp_endpoint: Some(url.to_owned()), ..TraceArgs::default() })
}

/// The same for a collector that gets all, however slow the machine is.
fn patient_traces(url: &str) -> Traces {
    let otlp_endpoint = Some(url.to_owned());
    started(&TraceArgs { otlp_endpoint, flush: Duration::from_secs(30), ..TraceArgs::default() })
}

fn span(traces: &Traces, name: &'static str) -> Span {
    traces.begin(|| NewSpan::new(name, SpanKind::Internal))
}

/// A port of the loopback at which nobody listens while it is held, and its address.
fn nobody() -> (Port, std::net::SocketAddr) {
    let port = Port::draw().unwrap();
    let address = ([127, 0, 0, 1], port.number()).into();
    (port, address)
}

fn named<'a>(spans: &'a [Seen], name: &str) -> &'a Seen {
    spans.iter().find(|span| span.name == name).unwrap()
}

#[tokio::test]
async fn spans_arrive_as_they_were_told_when_the_process_ends() {
    let collector = Collector::start().unwrap();
    let traces = patient_traces(&collector.url());
    let since = SystemTime::now() - Duration::from_secs(3);
    let mut parent = traces.begin(|| NewSpan {
        parent: read_traceparent(PARENT, None),
        since,
        fields: vec![KeyValue::new("attempt", 2)],
        ..NewSpan::new("job", SpanKind::Consumer)
    });
    let mut child = traces.begin(|| NewSpan {
        parent: parent.context(),
        ..NewSpan::new("infer", SpanKind::Internal)
    });
    child.fail();
    let links = vec![parent.context().unwrap()];
    let batch = traces.begin(|| NewSpan { links, ..NewSpan::new("batch", SpanKind::Internal) });
    parent.set(KeyValue::new("outcome", "completed"));
    child.end(since + Duration::from_secs(2));
    drop(batch);
    parent.end(since + Duration::from_secs(1));
    traces.flush().await;

    let spans = collector.spans();
    let (job, infer, batch) =
        (named(&spans, "job"), named(&spans, "infer"), named(&spans, "batch"));
    assert_eq!(format!("00-{}-{}-01", job.trace, job.parent), PARENT);
    assert_eq!((job.kind.as_str(), job.fields["attempt"].as_str()), ("consumer", "2"));
    assert_eq!((job.fields["outcome"].as_str(), job.failed), ("completed", false));
    assert_eq!(job.time.1 - job.time.0, 1_000_000_000);
    assert_eq!((&infer.trace, &infer.parent, infer.failed), (&job.trace, &job.id, true));
    assert_ne!(batch.trace, job.trace);
    assert_eq!((&batch.parent, &batch.links), (&String::new(), &vec![job.id.clone()]));
    let resource = |name: &str| job.resource[name].as_str();
    assert_eq!(resource("service.name"), "ebb-test");
    assert_eq!(resource("service.version"), "1.2.3");
    assert_eq!(resource("service.instance.id"), "me-1");
}

#[tokio::test]
async fn what_a_parent_does_not_sample_goes_nowhere_but_names_its_trace_all_the_same() {
    let collector = Collector::start().unwrap();
    let traces = patient_traces(&collector.url());
    let unsampled = PARENT.replace("-01", "-00");
    let span = traces.begin(|| NewSpan {
        parent: read_traceparent(&unsampled, None),
        ..NewSpan::new("job", SpanKind::Consumer)
    });
    assert!(!span.is_recorded());
    let passed_on = traceparent(&span.context().unwrap());
    assert!(passed_on.starts_with(&PARENT[..35]) && passed_on.ends_with("-00"), "{passed_on}");
    drop(span);
    traces.flush().await;
    assert_eq!(collector.spans(), []);
}

#[tokio::test]
async fn a_collector_that_is_down_delays_nothing_and_loses_only_spans() {
    let (_port, address) = nobody();
    let traces = traces(&format!("http://{address}"));
    let (limit, mut fastest) = (Duration::from_secs(2), Duration::MAX);
    // A machine that stalls gets more tries.
    for _ in 0..3 {
        if fastest >= limit {
            let begun = Instant::now();
            // More than there is room for.
            for _ in 0..20_000 {
                span(&traces, "lost");
            }
            fastest = begun.elapsed();
        }
    }
    assert!(fastest < limit, "{fastest:?}");
    let begun = Instant::now();
    traces.flush().await;
    assert!(begun.elapsed() < GONE, "{:?}", begun.elapsed());
    assert!(!span(&traces, "late").is_recorded());
}

#[tokio::test]
async fn a_collector_that_hangs_holds_the_end_of_the_process_for_two_seconds() {
    // It takes connections, by the backlog of the system, and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let traces = traces(&format!("http://{}", silent.local_addr().unwrap()));
    span(&traces, "lost");
    let begun = Instant::now();
    traces.flush().await;
    assert!(begun.elapsed() < GONE, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_collector_that_comes_back_gets_what_is_finished_then() {
    let (_port, address) = nobody();
    let traces = patient_traces(&format!("http://{address}"));
    // Enough to be sent at once, which fails.
    for _ in 0..600 {
        span(&traces, "early");
    }
    let collector = Collector::start_on(address).unwrap();
    span(&traces, "late");
    traces.flush().await;
    assert!(collector.spans().iter().any(|span| span.name == "late"));
}

#[tokio::test]
async fn an_endpoint_that_is_none_is_refused_by_the_name_of_its_flag() {
    let args = TraceArgs { otlp_endpoint: Some("collector".to_owned()), ..TraceArgs::default() };
    let service = Service { name: "ebb-test", version: "1", instance: None };
    let error = args.start(&service).unwrap_err().to_string();
    assert!(error.contains("--otlp-endpoint"), "{error}");
}
