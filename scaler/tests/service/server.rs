//! What stands around the service: health, reflection, probes, metrics, and the real broker.

use std::time::Duration;

use ebb_proto::keda::external_scaler_client::ExternalScalerClient;
use ebb_queue::{Job, OpenOptions, QueueUrl, Timestamp};
use ebb_scaler::{Scaler, ScalerArgs};
use tokio_util::sync::CancellationToken;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use crate::kit::{Kit, args, ends_with_ok, object, page, page_says, patiently, publish, said};
use crate::wire::{GOAWAY, Wire};

#[tokio::test]
async fn both_reflections_list_the_service() {
    const SERVICE: &str = "externalscaler.ExternalScaler";
    let kit = Kit::start(args()).await;
    {
        use tonic_reflection::pb::v1::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let list = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut client = ServerReflectionClient::new(kit.channel.clone());
        let answers = client.server_reflection_info(futures::stream::iter([list])).await.unwrap();
        let answer = answers.into_inner().message().await.unwrap().unwrap();
        let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
            panic!("{answer:?}");
        };
        assert!(list.service.iter().any(|service| service.name == SERVICE), "{list:?}");
    }
    {
        use tonic_reflection::pb::v1alpha::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let find = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::FileContainingSymbol(SERVICE.into())),
        };
        let mut client = ServerReflectionClient::new(kit.channel.clone());
        let answers = client.server_reflection_info(futures::stream::iter([find])).await.unwrap();
        let answer = answers.into_inner().message().await.unwrap().unwrap();
        let Some(MessageResponse::FileDescriptorResponse(files)) = answer.message_response else {
            panic!("{answer:?}");
        };
        assert!(!files.file_descriptor_proto.is_empty());
    }
    kit.stop().await;
}

#[tokio::test]
async fn health_is_told_whatever_the_broker_does() {
    let kit = Kit::start(args()).await;
    kit.broker.feel(crate::kit::Mood::Broken);
    let mut client = HealthClient::new(kit.channel.clone());
    for service in ["", "externalscaler.ExternalScaler"] {
        let request = HealthCheckRequest { service: service.into() };
        let status = client.check(request).await.unwrap().into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{service}");
    }
    drop(client);
    for path in ["/livez", "/readyz", "/startupz"] {
        let page = page(kit.http, path).await;
        assert!(page.starts_with("HTTP/1.1 200"), "{path}: {page}");
    }
    kit.stop().await;
}

#[tokio::test]
async fn the_metrics_page_shows_the_queue_as_it_was_last_seen() {
    let kit = Kit::start(args()).await;
    publish(&kit.queue(), 3).await;
    let mut stream = kit.stream(&object(&[])).await;
    assert_eq!(said(&mut stream).await, Some(true));
    assert_eq!(kit.value(&object(&[])).await.unwrap().metric_value, 3);
    assert!(kit.is_active(&object(&[("mode", "maybe")])).await.is_err());
    let page = page(kit.http, "/metrics").await;
    let expected = [
        "build_info{version=",
        "scaler_queue_depth{profile=\"default\",queue=\"jobs\",state=\"ready\"} 3",
        "scaler_queue_workers{phase=\"starting\",profile=\"default\",queue=\"jobs\"} 0",
        "scaler_profile_up{profile=\"default\"} 1",
        "scaler_connections 1",
        "scaler_streams{method=\"StreamIsActive\"} 1",
        "scaler_pushes_total{reason=\"open\"} 1",
        "scaler_pushes_total{reason=\"heartbeat\"} 0",
        "scaler_looks_total{cause=\"open\"} 1",
        "scaler_request_seconds_count{code=\"Ok\",method=\"GetMetrics\"} 1",
        "scaler_request_seconds_count{code=\"InvalidArgument\",method=\"IsActive\"} 1",
    ];
    for line in expected {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
    let age = "scaler_snapshot_age_seconds{profile=\"default\",queue=\"jobs\"} ";
    let age = page.lines().find_map(|line| line.strip_prefix(age)).unwrap();
    // A look that is older counts no more.
    assert!(age.parse::<f64>().unwrap() <= 15.0, "{page}");
    kit.stop().await;
}

#[tokio::test]
async fn who_comes_while_a_service_still_sends_here_is_answered() {
    // A port that is closed at once is so in every round; a slow machine comes too late in some.
    for round in 1..=3 {
        match comes_late().await {
            Ok(()) => return,
            Err(error) => assert!(round < 3, "who comes late is not answered: {error}"),
        }
    }
}

/// Connects to a scaler that is not ready any more, and has its calls answered.
async fn comes_late() -> Result<(), Box<dyn std::error::Error>> {
    let kit = Kit::start(args()).await;
    assert!(!kit.is_active(&object(&[])).await.unwrap());
    kit.stop.cancel();
    page_says(kit.http, "/readyz", "shutting down").await;
    let mut late = ExternalScalerClient::connect(format!("http://{}", kit.grpc)).await?;
    assert!(!late.is_active(object(&[])).await?.into_inner().result);
    let mut stream = late.stream_is_active(object(&[])).await?.into_inner();
    ends_with_ok(&mut stream).await;
    drop((late, stream));
    kit.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_client_that_reads_nothing_takes_the_farewell_of_no_other() {
    let grace = Duration::from_secs(10);
    let kit = Kit::start(ScalerArgs { grace, ..args() }).await;
    // Nothing may be sent on its streams, so they never end.
    let mut stalled = Wire::connect(kit.grpc, 0).await;
    stalled.call("StreamIsActive", 1, &[0, 0, 0, 0, 0], true).await;
    page_says(kit.http, "/metrics", "scaler_streams{method=\"StreamIsActive\"} 1").await;
    let mut idle = Wire::connect(kit.grpc, 65_535).await;
    page_says(kit.http, "/metrics", "scaler_connections 3").await;
    let Kit { client, channel, stop, server, .. } = kit;
    drop((client, channel));
    stop.cancel();
    let begun = tokio::time::Instant::now();
    let told = async {
        while let Some(frame) = idle.read().await {
            if frame.kind == GOAWAY {
                return true;
            }
        }
        false
    };
    let told = tokio::time::timeout(Duration::from_secs(30), told).await;
    assert!(told.expect("the connection ends"), "it is cut without a word");
    assert!(begun.elapsed() < grace, "it is told when all are cut");
    drop((stalled, idle));
    server.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_embedded_queue_is_watched_across_handles() {
    let folder = tempfile::tempdir().unwrap();
    let url = QueueUrl::sqlite(folder.path().join("queue.db"));
    let scaler = Scaler::bind(ScalerArgs { queue: Some(url.clone()), ..args() }).await.unwrap();
    let address = scaler.local_addr().unwrap();
    let stop = CancellationToken::new();
    let server = tokio::spawn(scaler.serve(stop.clone()));
    let client = ExternalScalerClient::connect(format!("http://{address}")).await;
    let mut client = client.unwrap();
    let mut stream = client.stream_is_active(object(&[])).await.unwrap().into_inner();
    let idle =
        patiently(async || Ok(client.clone().is_active(object(&[])).await?.into_inner().result));
    assert!(!idle.await.unwrap());

    let producer = ebb_queue::open(&url, OpenOptions::default()).await.unwrap();
    producer.publish(vec![Job::new("{}", Timestamp::now())]).await.unwrap();
    assert_eq!(said(&mut stream).await, Some(true));
    assert!(client.is_active(object(&[])).await.unwrap().into_inner().result);
    stop.cancel();
    ends_with_ok(&mut stream).await;
    drop((stream, client));
    server.await.unwrap().unwrap();
}
