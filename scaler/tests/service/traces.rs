//! Spans of the scaler, at a collector.

use std::time::{Duration, Instant};

use ebb_scaler::ScalerArgs;
use ebb_servers::{Collector, Seen};
use ebb_telemetry::TraceArgs;
use tonic::Request;

use crate::kit::{Kit, Mood, args, object, publish, said};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// A scaler whose broker needs a password, and whose spans go there.
fn traced(url: &str) -> ScalerArgs {
    // The collector is to have all spans at the end, however slow the machine is.
    let (otlp_endpoint, flush) = (Some(url.to_owned()), Duration::from_secs(30));
    let trace = TraceArgs { otlp_endpoint, flush, ..TraceArgs::default() };
    let queue = Some("nats://me:hunter2@broker.example".parse().unwrap());
    ScalerArgs { queue, trace, ..args() }
}

fn named<'a>(spans: &'a [Seen], name: &str) -> Vec<&'a Seen> {
    spans.iter().filter(|span| span.name == name).collect()
}

fn field<'a>(span: &'a Seen, name: &str) -> &'a str {
    span.fields.get(name).map_or("", String::as_str)
}

#[tokio::test]
async fn a_call_belongs_to_the_trace_of_its_caller_and_tells_its_code() {
    let collector = Collector::start().unwrap();
    let kit = Kit::start(traced(&collector.url())).await;
    // The call is told at once what the stream has waited for.
    publish(&kit.queue(), 1).await;
    said(&mut kit.stream(&object(&[])).await).await;
    let mut request = Request::new(object(&[]));
    let traceparent = format!("00-{TRACE}-{CALLER}-01");
    request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
    kit.client.clone().is_active(request).await.unwrap();
    let mut request = Request::new(object(&[("mode", "maybe")]));
    request.metadata_mut().insert("traceparent", "nonsense".parse().unwrap());
    kit.client.clone().get_metric_spec(request).await.unwrap_err();
    kit.stop().await;

    let spans = collector.spans();
    let [call] = named(&spans, "IsActive")[..] else { panic!("{spans:#?}") };
    assert_eq!((call.trace.as_str(), call.parent.as_str()), (TRACE, CALLER));
    assert_eq!((call.kind.as_str(), call.failed), ("server", false));
    assert_eq!(field(call, "rpc.system"), "grpc");
    assert_eq!(field(call, "rpc.service"), "externalscaler.ExternalScaler");
    assert_eq!((field(call, "rpc.method"), field(call, "rpc.grpc.status_code")), ("IsActive", "0"));
    assert_eq!(call.resource["service.name"], "ebb-scaler");

    let [refused] = named(&spans, "GetMetricSpec")[..] else { panic!("{spans:#?}") };
    assert_eq!((refused.parent.as_str(), refused.failed), ("", true));
    assert_eq!(field(refused, "rpc.grpc.status_code"), "3");
}

#[tokio::test]
async fn an_edge_is_part_of_the_look_that_brought_it_and_no_span_holds_a_secret() {
    let collector = Collector::start().unwrap();
    let kit = Kit::start(traced(&collector.url())).await;
    let mut stream = kit.idle_stream(&object(&[])).await;
    publish(&kit.queue(), 2).await;
    assert_eq!(said(&mut stream).await, Some(true));
    drop(stream);
    kit.stop().await;

    let spans = collector.spans();
    let [edge] = named(&spans, "edge")[..] else { panic!("{spans:#?}") };
    let looks = named(&spans, "look");
    let look = looks.iter().find(|look| look.id == edge.parent).unwrap();
    assert_eq!((look.trace.as_str(), look.kind.as_str()), (edge.trace.as_str(), "client"));
    assert_eq!((field(look, "profile"), field(look, "queue")), ("default", "jobs"));
    assert_eq!((field(look, "broker"), field(look, "ready")), ("nats", "2"));
    assert_eq!(look.time.0, edge.time.0, "{look:?} {edge:?}");
    assert!(look.time.1 <= edge.time.1, "{look:?} {edge:?}");
    assert_eq!(field(looks[0], "cause"), "open");
    let all = format!("{spans:?}");
    assert!(!all.contains("hunter2") && !all.contains("broker.example"), "{all}");
}

#[tokio::test]
async fn a_look_that_fails_says_how() {
    let collector = Collector::start().unwrap();
    let kit = Kit::start(traced(&collector.url())).await;
    kit.broker.feel(Mood::Broken);
    kit.is_active(&object(&[])).await.unwrap_err();
    kit.stop().await;
    let spans = collector.spans();
    let looks = named(&spans, "look");
    assert!(!looks.is_empty(), "{spans:#?}");
    assert!(looks.iter().all(|look| look.failed && field(look, "error.type") == "unavailable"));
}

#[tokio::test]
async fn a_collector_that_is_down_changes_no_answer_and_holds_the_end_for_two_seconds() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut args = traced(&format!("http://{nobody}"));
    args.trace.flush = TraceArgs::default().flush;
    let kit = Kit::start(args).await;
    publish(&kit.queue(), 3).await;
    for _ in 0..200 {
        assert_eq!(kit.value(&object(&[])).await.unwrap().metric_value, 3);
    }
    let begun = Instant::now();
    kit.stop().await;
    // An export alone may take 10 s.
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn an_endpoint_that_is_none_is_told_at_the_start() {
    let error = ebb_scaler::Scaler::bind(traced("collector")).await.unwrap_err().to_string();
    assert!(error.contains("--otlp-endpoint is no URL"), "{error}");
}
