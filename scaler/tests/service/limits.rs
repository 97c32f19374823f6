//! What is too much is refused, and harms nobody else.

use std::time::Duration;

use ebb_proto::keda::external_scaler_client::ExternalScalerClient;
use ebb_scaler::ScalerArgs;
use futures::StreamExt;
use tonic::Code;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use crate::kit::{Kit, args, ends_with_ok, object, page_says, publish, said};
use crate::wire::{Frame, HEADERS, Wire};

#[tokio::test]
async fn a_connection_has_room_for_so_many_streams_and_for_calls_beside_them() {
    let kit = Kit::start(ScalerArgs { max_streams: 2, ..args() }).await;
    let mut client = kit.client.clone();
    let mut first = kit.stream(&object(&[])).await;
    let second = client.stream_metric_spec(object(&[])).await.unwrap();
    let told = client.stream_is_active(object(&[])).await.unwrap_err();
    assert_eq!(told.code(), Code::ResourceExhausted);
    assert!(told.message().contains("--max-streams"), "{told}");
    assert!(!kit.is_active(&object(&[])).await.unwrap());

    // Another connection has room of its own.
    let mut other = ExternalScalerClient::connect(format!("http://{}", kit.grpc)).await.unwrap();
    let more = other.stream_is_active(object(&[])).await.unwrap();
    drop((second, more, other));
    page_says(kit.http, "/metrics", "scaler_streams{method=\"StreamMetricSpec\"} 0").await;
    let mut third = kit.stream(&object(&[])).await;
    kit.stop.cancel();
    ends_with_ok(&mut first).await;
    ends_with_ok(&mut third).await;
    drop((first, third, client));
    kit.stop().await;
}

#[tokio::test]
async fn a_client_has_room_for_so_many_streams_however_many_connections_it_opens() {
    let kit = Kit::start(ScalerArgs { max_streams_per_client: 2, ..args() }).await;
    let address = format!("http://{}", kit.grpc);
    let mut client = kit.client.clone();
    let mut other = ExternalScalerClient::connect(address.clone()).await.unwrap();
    let mut first = kit.stream(&object(&[])).await;
    let second = other.stream_metric_spec(object(&[])).await.unwrap();
    let mut third = ExternalScalerClient::connect(address).await.unwrap();
    for client in [&mut client, &mut other, &mut third] {
        let told = client.stream_is_active(object(&[])).await.unwrap_err();
        assert_eq!(told.code(), Code::ResourceExhausted);
        assert!(told.message().contains("--max-streams-per-client"), "{told}");
    }
    // Calls that are no streams have room all the same.
    assert!(!third.is_active(object(&[])).await.unwrap().into_inner().result);
    drop((second, other));
    page_says(kit.http, "/metrics", "scaler_streams{method=\"StreamMetricSpec\"} 0").await;
    let mut stream = third.stream_is_active(object(&[])).await.unwrap().into_inner();
    kit.stop.cancel();
    ends_with_ok(&mut first).await;
    ends_with_ok(&mut stream).await;
    drop((first, stream, client, third));
    kit.stop().await;
}

#[tokio::test]
async fn health_is_told_when_asked_for_and_no_stream_of_it_can_be_held() {
    let kit = Kit::start(ScalerArgs { max_streams: 2, ..args() }).await;
    let mut client = HealthClient::new(kit.channel.clone());
    for _ in 0..3 {
        let told = client.watch(HealthCheckRequest::default()).await.unwrap_err();
        assert_eq!(told.code(), Code::Unimplemented, "{told}");
    }
    let status = client.check(HealthCheckRequest::default()).await.unwrap().into_inner().status();
    assert_eq!(status, ServingStatus::Serving);
    drop(client);
    kit.stop().await;
}

#[tokio::test]
async fn a_reflection_answers_one_question_and_is_given_up_where_none_comes() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest,
    };
    let kit = Kit::start(args()).await;
    let mut client = ServerReflectionClient::new(kit.channel.clone());
    let told = client.server_reflection_info(futures::stream::pending());
    let told = tokio::time::timeout(Duration::from_secs(30), told).await;
    let told = told.expect("it is given up").unwrap_err();
    assert!(matches!(told.code(), Code::Cancelled | Code::DeadlineExceeded), "{told}");

    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let questions = futures::stream::iter([list.clone(), list]).chain(futures::stream::pending());
    let mut answers = client.server_reflection_info(questions).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().is_some());
    assert!(answers.message().await.unwrap().is_none(), "the call ends");
    drop((client, answers));
    kit.stop().await;
}

#[tokio::test]
async fn a_call_sends_little_more_than_a_message_before_it_is_read() {
    let kit = Kit::start(args()).await;
    let mut wire = Wire::connect(kit.grpc, 65_535).await;
    let windows = wire.windows().await;
    assert!(windows.stream <= 64 << 10, "{windows:?}");
    assert!(windows.connection <= 4 << 20, "{windows:?}");
    drop(wire);
    kit.stop().await;
}

#[tokio::test]
async fn a_connection_too_many_is_closed_and_the_others_live_on() {
    let kit = Kit::start(ScalerArgs { max_connections: 1, ..args() }).await;
    let other = ExternalScalerClient::connect(format!("http://{}", kit.grpc)).await;
    let refused = match other {
        Ok(mut other) => other.is_active(object(&[])).await.is_err(),
        Err(_) => true,
    };
    assert!(refused);
    page_says(kit.http, "/metrics", "scaler_connections_refused_total{reason=\"full\"}").await;
    assert!(!kit.is_active(&object(&[])).await.unwrap());
    kit.stop().await;
}

#[tokio::test]
async fn metadata_that_are_too_much_are_refused() {
    let kit = Kit::start(args()).await;
    let mut client = kit.client.clone();
    let keys: Vec<_> = (0..65).map(|n| format!("key{n}")).collect();
    let keys: Vec<_> = keys.iter().map(|key| (key.as_str(), "")).collect();
    let told = client.is_active(object(&keys)).await.unwrap_err();
    assert_eq!(told.code(), Code::InvalidArgument);
    assert!(told.message().contains("use 64 at most"), "{told}");
    let told = client.is_active(object(&[("queue", &"x".repeat(20_000))])).await.unwrap_err();
    assert!(told.message().contains("use 16384 at most"), "{told}");
    let told = client.is_active(object(&[("queue", &"x".repeat(33_000))])).await.unwrap_err();
    assert_eq!(told.code(), Code::OutOfRange, "{told}");
    assert!(!kit.is_active(&object(&[])).await.unwrap());
    drop(client);
    kit.stop().await;
}

#[tokio::test]
async fn a_call_that_is_sent_by_halves_is_given_up_and_streams_that_have_begun_live_on() {
    let kit = Kit::start(args()).await;
    let mut stream = kit.stream(&object(&[])).await;
    let mut wire = Wire::connect(kit.grpc, 65_535).await;
    // It says that ten bytes follow.
    wire.call("IsActive", 1, &[0, 0, 0, 0, 10, 1], false).await;
    let ended = async {
        while let Some(frame) = wire.read().await {
            if frame.stream == 1 && frame.is_end() {
                return true;
            }
        }
        false
    };
    let ended = tokio::time::timeout(Duration::from_secs(30), ended).await;
    assert!(ended.expect("it is given up"), "the connection stays");
    publish(&kit.queue(), 1).await;
    assert_eq!(said(&mut stream).await, Some(true));
    drop((stream, wire));
    kit.stop().await;
}

#[tokio::test]
async fn a_client_with_too_many_halves_keeps_nobody_at_another_address_waiting() {
    // Whoever waits for the halves is late in every round; a machine that is busy elsewhere is in some.
    for round in 1..=3 {
        let took = beside_too_many_halves().await;
        if took < Duration::from_secs(4) {
            return;
        }
        assert!(round < 3, "{took:?}");
    }
}

/// How long a client at another address takes to be answered meanwhile.
async fn beside_too_many_halves() -> Duration {
    let kit = Kit::start(args()).await;
    let mut wire = Wire::connect(kit.grpc, 65_535).await;
    for nth in 0..1100 {
        wire.call("IsActive", 2 * nth + 1, &[0, 0, 0, 0, 10, 1], false).await;
    }
    let begun = tokio::time::Instant::now();
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", kit.grpc)).unwrap();
    let endpoint = endpoint.local_address(Some([127, 0, 0, 2].into()));
    let mut other = ExternalScalerClient::new(endpoint.connect().await.unwrap());
    assert!(!other.is_active(object(&[])).await.unwrap().into_inner().result);
    let took = begun.elapsed();
    drop((other, wire));
    kit.stop().await;
    took
}

#[tokio::test]
async fn answers_that_a_client_does_not_read_are_so_many_and_others_are_answered() {
    let kit = Kit::start(args()).await;
    // Nothing may be sent to it but that a call is refused.
    let mut wire = Wire::connect(kit.grpc, 0).await;
    let mut refused = 0;
    for nth in 0..17_000 {
        wire.call("GetMetricSpec", 2 * nth + 1, &[0, 0, 0, 0, 0], true).await;
        // Some of the answers are read, so that they do not stand in the way of calls.
        if nth % 100 == 99 {
            for _ in 0..100 {
                refused += usize::from(answer_to_a_call(&mut wire).await.is_end());
            }
        }
    }
    assert_eq!(refused, 17_000 - 16_384, "calls that are refused");
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", kit.grpc)).unwrap();
    let endpoint = endpoint.local_address(Some([127, 0, 0, 2].into()));
    let mut other = ExternalScalerClient::new(endpoint.connect().await.unwrap());
    other.get_metric_spec(object(&[])).await.unwrap();
    let told = kit.client.clone().get_metric_spec(object(&[])).await.unwrap_err();
    assert_eq!(told.code(), Code::ResourceExhausted);
    assert!(told.message().contains("answers"), "{told}");
    // KEDA's streams have room of their own.
    let stream = kit.stream(&object(&[])).await;
    // Who is gone leaves room.
    drop((wire, stream));
    page_says(kit.http, "/metrics", "scaler_connections 2").await;
    kit.client.clone().get_metric_spec(object(&[])).await.unwrap();
    drop(other);
    kit.stop().await;
}

/// The next frame that says something of a call.
async fn answer_to_a_call(wire: &mut Wire) -> Frame {
    loop {
        let frame = wire.read().await.expect("the connection goes on");
        if frame.kind == HEADERS {
            return frame;
        }
    }
}

#[tokio::test]
async fn reflections_whose_answers_nobody_reads_keep_no_call_waiting() {
    let kit = Kit::start(args()).await;
    let mut wire = Wire::connect(kit.grpc, 0).await;
    let list_services = [0, 0, 0, 0, 2, 0x3a, 0].repeat(4);
    let method = "grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    for nth in 0..1100 {
        wire.ask(method, 2 * nth + 1, &list_services, false).await;
    }
    let begun = tokio::time::Instant::now();
    while kit.client.clone().get_metric_spec(object(&[])).await.is_err() {
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "calls of the same client wait for ever"
        );
    }
    drop(wire);
    kit.stop().await;
}

#[tokio::test]
async fn a_connection_that_is_old_is_left_and_its_streams_are_not_cut() {
    let connection_max_age = Duration::from_millis(100);
    let kit = Kit::start(ScalerArgs { connection_max_age, ..args() }).await;
    let mut stream = kit.idle_stream(&object(&[])).await;
    // The client is told to go elsewhere, and the stream holds the old connection.
    let begun = tokio::time::Instant::now();
    loop {
        // A call may meet the end of its connection.
        assert_ne!(kit.is_active(&object(&[])).await.ok(), Some(true));
        let page = crate::kit::page(kit.http, "/metrics").await;
        if page.contains("scaler_connections 2") {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{page}");
    }
    publish(&kit.queue(), 1).await;
    assert_eq!(said(&mut stream).await, Some(true));
    drop(stream);
    kit.stop().await;
}
