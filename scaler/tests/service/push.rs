//! The streams: told by the broker's own event, and ended with OK.

use std::num::NonZeroUsize;
use std::time::Duration;

use ebb_proto::keda::IsActiveResponse;
use ebb_queue::memory::MemoryQueue;
use ebb_queue::{Broker, Phase};
use ebb_scaler::ScalerArgs;
use tokio::time::{Instant, timeout};
use tonic::Streaming;

use crate::kit::{Kit, Mood, args, ends_with_ok, falls_silent, object, pauses, publish};
use crate::kit::{publish_delayed, report, said};

/// Looks only when told to, or when something falls due: the first look by itself is after a tenth
/// of this at the earliest, and no test waits that long for a word.
fn unhurried() -> ScalerArgs {
    let refresh = Duration::from_secs(600);
    ScalerArgs { refresh, max_age: 3 * refresh, heartbeat: refresh, ..args() }
}

/// Asserts that half of the streams say `true` within this time of their queue's first job.
async fn assert_told_within(kit: &Kit, limit: Duration, n_queues: usize) {
    // Whoever waits for a look is late in every round; a machine that is busy elsewhere is in some.
    for round in 1..=3 {
        let times = times_to_true(kit, round, n_queues).await;
        if times[n_queues / 2] < limit {
            return;
        }
        assert!(round < 3, "{times:?}");
    }
}

/// From the first job of each of so many queues to `true` on its stream, the shortest first.
async fn times_to_true(kit: &Kit, round: usize, n_queues: usize) -> Vec<Duration> {
    let mut times = Vec::new();
    for n in 0..n_queues {
        let name = format!("q{round}-{n}");
        let queue = kit.broker.queue(&name);
        let mut stream = kit.idle_stream(&object(&[("queue", &name)])).await;
        let published = Instant::now();
        publish(&queue, 1).await;
        assert_eq!(said(&mut stream).await, Some(true));
        times.push(published.elapsed());
    }
    times.sort();
    times
}

#[tokio::test]
async fn an_arrival_is_told_within_50_ms_at_the_median() {
    let kit = Kit::start(ScalerArgs { repeat: Duration::from_secs(60), ..unhurried() }).await;
    assert_told_within(&kit, Duration::from_millis(50), 9).await;
    kit.stop().await;
}

#[tokio::test]
async fn an_arrival_just_after_a_look_that_waited_is_told_soon() {
    let kit = Kit::start(ScalerArgs { repeat: Duration::from_secs(60), ..unhurried() }).await;
    kit.broker.feel(Mood::Unsure);
    assert_told_within(&kit, Duration::from_millis(150), 5).await;
    kit.stop().await;
}

#[tokio::test]
async fn an_edge_is_repeated_until_a_worker_reports() {
    let kit = Kit::start(unhurried()).await;
    let mut stream = kit.idle_stream(&object(&[])).await;
    publish(&kit.queue(), 1).await;
    let pauses = pauses(&mut stream, 5).await;
    report(&kit.queue(), Phase::Starting, 0).await;
    falls_silent(&mut stream, pauses).await;
    kit.stop().await;
}

/// A stream of a queue whose one job is put off, found inactive; the delay, and since when it runs.
async fn asleep(
    kit: &Kit,
    put_off: impl AsyncFn(&MemoryQueue, Duration),
) -> (Streaming<IsActiveResponse>, Duration, Instant) {
    // A slow machine may open the stream when the job is due already: then with more time.
    for (name, millis) in [("q0", 300), ("q1", 3_000), ("q2", 10_000)] {
        let (queue, delay) = (kit.broker.queue(name), Duration::from_millis(millis));
        let since = Instant::now();
        put_off(&queue, delay).await;
        let object = object(&[("queue", name)]);
        let stream = kit.stream(&object).await;
        if !kit.is_active(&object).await.unwrap() {
            return (stream, delay, since);
        }
    }
    panic!("a job that is put off counts as if it were due");
}

#[tokio::test]
async fn a_delayed_job_wakes_the_pool_when_it_is_due_with_nobody_else_to_notice() {
    let kit = Kit::start(unhurried()).await;
    let (mut stream, delay, since) = asleep(&kit, publish_delayed).await;
    assert_eq!(said(&mut stream).await, Some(true));
    let took = since.elapsed();
    assert!(took >= delay.saturating_sub(Duration::from_millis(20)), "{took:?}");
    kit.stop().await;
}

#[tokio::test]
async fn a_retry_wakes_the_pool_that_went_to_sleep() {
    let kit = Kit::start(unhurried()).await;
    let (mut stream, ..) = asleep(&kit, async |queue, delay| {
        publish(queue, 1).await;
        let mut held = queue.receive(NonZeroUsize::MIN, Duration::ZERO).await.unwrap();
        let retry = held.remove(0).retry(delay, "the device was lost");
        queue.settle(&[retry]).await.unwrap();
    })
    .await;
    assert_eq!(said(&mut stream).await, Some(true));
    kit.stop().await;
}

#[tokio::test]
async fn activation_holds_a_stream_back_until_enough_is_ready() {
    let kit = Kit::start(unhurried()).await;
    let (patient, eager) = (object(&[("activationJobs", "3")]), object(&[]));
    let mut patient = kit.idle_stream(&patient).await;
    let mut eager = kit.idle_stream(&eager).await;
    publish(&kit.queue(), 3).await;
    assert_eq!(said(&mut eager).await, Some(true));
    assert!(timeout(Duration::from_millis(200), patient.message()).await.is_err());
    publish(&kit.queue(), 1).await;
    assert_eq!(said(&mut patient).await, Some(true));
    kit.stop().await;
}

#[tokio::test]
async fn specs_are_streamed_at_once_and_agree_with_those_that_are_asked_for() {
    let kit = Kit::start(args()).await;
    let object = object(&[("mode", "waiting"), ("jobsPerReplica", "6.111")]);
    let asked = kit.client.clone().get_metric_spec(object.clone()).await.unwrap().into_inner();
    let mut stream = kit.client.clone().stream_metric_spec(object).await.unwrap().into_inner();
    let first = timeout(Duration::from_secs(20), stream.message()).await.unwrap().unwrap();
    assert_eq!(first, Some(asked));
    assert!(timeout(Duration::from_millis(200), stream.message()).await.is_err());
    kit.stop.cancel();
    assert_eq!(stream.message().await.unwrap(), None);
    kit.stop().await;
}

#[tokio::test]
async fn shutdown_ends_every_stream_with_ok() {
    let kit = Kit::start(args()).await;
    publish(&kit.broker.queue("busy"), 1).await;
    let mut streams = Vec::new();
    for queue in ["busy", "idle"] {
        let mut stream = kit.stream(&object(&[("queue", queue)])).await;
        if queue == "busy" {
            assert_eq!(said(&mut stream).await, Some(true));
        }
        streams.push(stream);
    }
    kit.stop.cancel();
    for mut stream in streams {
        ends_with_ok(&mut stream).await;
        assert!(stream.trailers().await.is_ok());
    }
    kit.stop().await;
}

#[tokio::test]
async fn an_old_stream_ends_with_ok() {
    let stream_max_age = Duration::from_millis(100);
    let kit = Kit::start(ScalerArgs { stream_max_age, ..args() }).await;
    let mut stream = kit.stream(&object(&[])).await;
    assert_eq!(said(&mut stream).await, None);
    kit.stop().await;
}
