//! The unary calls, in KEDA's order.

use std::num::NonZeroUsize;
use std::time::Duration;

use ebb_proto::keda::{GetMetricsRequest, MetricSpec, ScaledObjectRef};
use ebb_queue::{Broker, Phase};
use ebb_scaler::ScalerArgs;
use tonic::Code;

use crate::kit::{Kit, args, object, publish, report};

#[tokio::test]
async fn keda_is_told_what_waits_and_what_runs() {
    let kit = Kit::start(args()).await;
    let plain = object(&[("scalerAddress", "ebb:6000"), ("jobsPerReplica", "2.5")]);
    assert_eq!(kit.value(&plain).await.unwrap().metric_value_float, 0.0);
    assert!(!kit.is_active(&plain).await.unwrap());

    // Told of the arrival, the snapshot is new before anyone asks again.
    let mut stream = kit.stream(&plain).await;
    publish(&kit.queue(), 12).await;
    while crate::kit::said(&mut stream).await != Some(true) {}
    let spec = kit.client.clone().get_metric_spec(plain.clone()).await.unwrap().into_inner();
    let expected =
        MetricSpec { metric_name: "ebb-jobs-jobs".into(), target_size: 3, target_size_float: 2.5 };
    assert_eq!(spec.metric_specs, [expected]);
    assert_eq!(kit.value(&plain).await.unwrap().metric_value, 12);
    assert!(kit.is_active(&plain).await.unwrap());
    kit.stop().await;
}

#[tokio::test]
async fn jobs_in_flight_keep_the_pool_up_when_nothing_waits() {
    let kit = Kit::start(args()).await;
    publish(&kit.queue(), 3).await;
    let held = kit.queue().receive(NonZeroUsize::new(8).unwrap(), Duration::ZERO).await.unwrap();
    assert_eq!(held.len(), 3);
    let (jobs, waiting) = (object(&[]), object(&[("mode", "waiting")]));
    assert_eq!(kit.value(&jobs).await.unwrap().metric_value, 3);
    assert_eq!(kit.value(&waiting).await.unwrap().metric_value, 0);
    assert!(kit.is_active(&jobs).await.unwrap() && kit.is_active(&waiting).await.unwrap());
    kit.stop().await;
}

#[tokio::test]
async fn a_worker_that_loads_its_model_keeps_the_pool_up() {
    let kit = Kit::start(args()).await;
    report(&kit.queue(), Phase::Starting, 0).await;
    assert!(kit.is_active(&object(&[])).await.unwrap());
    kit.stop().await;
}

#[tokio::test]
async fn two_triggers_of_one_object_are_told_apart_by_their_metadata() {
    let kit = Kit::start(args()).await;
    publish(&kit.broker.queue("day"), 2).await;
    publish(&kit.broker.queue("night"), 5).await;
    let (day, night) = (object(&[("queue", "day")]), object(&[("queueFromEnv", "night")]));
    assert_eq!(kit.value(&day).await.unwrap().metric_value, 2);
    assert_eq!(kit.value(&night).await.unwrap().metric_value, 5);
    let late = object(&[("queue", "night"), ("activationJobs", "5")]);
    assert!(kit.is_active(&night).await.unwrap());
    assert!(!kit.is_active(&late).await.unwrap());
    kit.stop().await;
}

#[tokio::test]
async fn bad_metadata_harms_only_its_own_object() {
    let kit = Kit::start(args()).await;
    let (bad, good) = (object(&[("jobPerReplica", "1")]), object(&[]));
    let mut client = kit.client.clone();
    let told = client.get_metric_spec(bad.clone()).await.unwrap_err();
    assert_eq!(told.code(), Code::InvalidArgument);
    assert!(told.message().contains("use jobsPerReplica"), "{told}");
    assert_eq!(kit.is_active(&bad).await.unwrap_err().code(), Code::InvalidArgument);
    let told = client.stream_is_active(bad.clone()).await.unwrap_err();
    assert_eq!(told.code(), Code::InvalidArgument);
    assert!(!kit.is_active(&good).await.unwrap());

    let mut ask = async |scaled_object_ref, metric_name: &str| {
        let request = GetMetricsRequest { scaled_object_ref, metric_name: metric_name.into() };
        client.get_metrics(request).await.unwrap_err().code()
    };
    assert_eq!(ask(Some(good), "ebb-waiting-jobs").await, Code::NotFound);
    assert_eq!(ask(None, "ebb-jobs-jobs").await, Code::InvalidArgument);
    kit.stop().await;
}

#[tokio::test]
async fn specs_never_touch_the_broker_and_a_queue_has_one_observer() {
    let kit = Kit::start(args()).await;
    let mut client = kit.client.clone();
    for _ in 0..50 {
        client.get_metric_spec(object(&[])).await.unwrap();
        client.stream_metric_spec(object(&[])).await.unwrap();
    }
    assert_eq!(*kit.broker.opened.borrow(), 0);
    let objects: Vec<_> = (1..=50).map(|n| object(&[("jobsPerReplica", &n.to_string())])).collect();
    let calls = objects.iter().map(|object| kit.is_active(object));
    futures::future::try_join_all(calls).await.unwrap();
    assert_eq!(*kit.broker.opened.borrow(), 1);
    kit.stop().await;
}

#[tokio::test]
async fn a_queue_too_many_is_refused_and_room_is_made_when_one_is_not_asked_for() {
    let keep = Duration::from_millis(20);
    let kit = Kit::start(ScalerArgs { max_queues: 1, keep, ..args() }).await;
    // Held, however long the next call takes.
    let stream = kit.idle_stream(&object(&[("queue", "a")])).await;
    let told = kit.is_active(&object(&[("queue", "b")])).await.unwrap_err();
    assert_eq!(told.code(), Code::ResourceExhausted);
    assert!(told.message().contains("--max-queues"), "{told}");

    drop(stream);
    kit.broker.open.subscribe().wait_for(|n_open| *n_open == 0).await.unwrap();
    assert!(!kit.is_active(&object(&[("queue", "b")])).await.unwrap());
    kit.stop().await;
}

#[tokio::test]
async fn a_queue_that_is_not_looked_at_any_more_is_left_in_order() {
    let keep = Duration::from_millis(20);
    let kit = Kit::start(ScalerArgs { keep, ..args() }).await;
    let retired = kit.stream(&object(&[("queue", "a")])).await;
    let mut closed = kit.broker.closed.subscribe();
    kit.broker.open.subscribe().wait_for(|n_open| *n_open == 1).await.unwrap();
    drop(retired);
    closed.wait_for(|n_closed| *n_closed == 1).await.unwrap();
    let _held = kit.idle_stream(&object(&[("queue", "b")])).await;
    let broker = kit.broker.clone();
    kit.stop().await;
    assert_eq!((*broker.closed.borrow(), *broker.open.borrow()), (2, 0));
}

#[tokio::test]
async fn one_namespace_with_any_number_of_names_leaves_room_to_the_others() {
    let kit = Kit::start(ScalerArgs { max_queues_per_namespace: 1, ..args() }).await;
    let of = |namespace: &str, queue| {
        let namespace = namespace.to_owned();
        ScaledObjectRef { namespace, ..object(&[("queue", queue)]) }
    };
    assert!(!kit.is_active(&of("greedy", "a")).await.unwrap());
    let told = kit.is_active(&of("greedy", "b")).await.unwrap_err();
    assert_eq!(told.code(), Code::ResourceExhausted);
    assert!(told.message().contains("--max-queues-per-namespace"), "{told}");
    // What is watched already is nobody's room.
    assert!(!kit.is_active(&of("greedy", "a")).await.unwrap());
    assert!(!kit.is_active(&of("other", "a")).await.unwrap());
    assert!(!kit.is_active(&of("other", "b")).await.unwrap());
    assert!(!kit.is_active(&of("greedy", "b")).await.unwrap());
    kit.stop().await;
}
