//! The first poll of a scaler that has just started, where looks take longest.

use std::fmt::Debug;
use std::time::Duration;

use ebb_proto::keda::ScaledObjectRef;
use ebb_queue::{Job, OpenOptions, QueueUrl, Timestamp, open};
use ebb_scaler::ScalerArgs;
use ebb_servers::{NatsCluster, NatsVersion, RabbitMq, RabbitMqOptions};
use tokio::time::{Instant, sleep};
use tonic::Status;

use crate::kit::{Kit, args, object};

/// What a new scaler is told to such a question, and how long it took.
async fn asked<T>(
    url: &QueueUrl,
    ask: impl AsyncFnOnce(&Kit, &ScaledObjectRef) -> Result<T, Status>,
) -> (Result<T, Status>, Duration) {
    let kit = Kit::start_on_brokers(ScalerArgs { queue: Some(url.clone()), ..args() }).await;
    let (object, asked) = (object(&[]), Instant::now());
    let told = ask(&kit, &object).await;
    let took = asked.elapsed();
    kit.stop().await;
    (told, took)
}

/// As KEDA polls.
async fn poll(kit: &Kit, object: &ScaledObjectRef) -> Result<(i64, bool), Status> {
    let value = kit.value_at_once(object).await?.metric_value;
    Ok((value, kit.is_active_at_once(object).await?))
}

/// What it is told within so long; a machine that does much else for a while gets more tries.
async fn is_told<T: PartialEq + Debug>(
    url: &QueueUrl,
    expected: T,
    within: Duration,
    ask: impl AsyncFn(&Kit, &ScaledObjectRef) -> Result<T, Status>,
) {
    let mut told = Vec::new();
    for _ in 0..5 {
        let (answer, took) = asked(url, &ask).await;
        if let Ok(seen) = &answer {
            assert_eq!(*seen, expected, "of {url}");
            if took < within {
                return;
            }
        }
        told.push((answer, took));
        sleep(Duration::from_secs(1)).await;
    }
    panic!("{url}: {told:?}");
}

/// Makes a queue, on which it is seen that there is nothing, and then that there is.
async fn is_seen(url: &str) -> QueueUrl {
    let url: QueueUrl = url.parse().unwrap();
    let queue = open(&url, OpenOptions::default()).await.unwrap();
    is_told(&url, (0, false), Duration::MAX, poll).await;
    let jobs = (0..3).map(|_| Job::new("{}", Timestamp::now())).collect();
    queue.publish(jobs).await.unwrap();
    is_told(&url, (3, true), Duration::MAX, poll).await;
    url
}

#[tokio::test]
async fn the_first_poll_is_answered_on_rabbitmq_and_that_jobs_wait_before_all_have_spoken() {
    let server = RabbitMq::start(RabbitMqOptions::default()).await.unwrap();
    let url = is_seen(&server.url()).await;
    let ask = async |kit: &Kit, object: &ScaledObjectRef| kit.is_active_at_once(object).await;
    // All who hold jobs say so within 1.2 s.
    is_told(&url, true, Duration::from_millis(1200), ask).await;
}

#[tokio::test]
async fn the_first_poll_is_answered_on_a_cluster() {
    let cluster = NatsCluster::start(NatsVersion::Newest).await.unwrap();
    is_seen(&format!("{}?replicas=3", cluster.url())).await;
}
