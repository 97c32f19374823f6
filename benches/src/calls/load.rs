//! KEDA's polls at a steady rate, whether the earlier ones are answered or not.

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use ebb_proto::keda::external_scaler_client::ExternalScalerClient;
use ebb_proto::keda::{GetMetricsRequest, MetricSpec, MetricValue, ScaledObjectRef};
use tokio::sync::Semaphore;
use tonic::Status;
use tonic::transport::Channel;

/// A ScaledObject, and what its metric may be.
pub(super) struct Object {
    pub(super) request: ScaledObjectRef,
    pub(super) values: RangeInclusive<f64>,
}

/// Polls of many objects on one connection.
pub(super) struct Load {
    client: ExternalScalerClient<Channel>,
    objects: Arc<[Object]>,
    rate: u32,
}

/// What came of a while.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// From the moment a poll was due to its last answer.
    pub(super) millis: Vec<f64>,
    /// Polls that failed.
    pub(super) errors: u64,
    /// Polls with an answer that is not what is in the queue.
    pub(super) wrong: u64,
    /// The first of these, in words.
    pub(super) words: Option<String>,
}

/// What went wrong with a poll.
enum Mishap {
    Error(Status),
    Wrong(String),
}

/// Polls under way; one that is due beyond that counts as not answered.
const AT_ONCE: usize = 8_192;
/// After the last poll was due.
const LIMIT: Duration = Duration::from_secs(10);

impl Load {
    pub(super) fn new(
        client: ExternalScalerClient<Channel>,
        objects: Vec<Object>,
        rate: u32,
    ) -> Self {
        Self { client, objects: objects.into(), rate }
    }

    /// Polls one object after the other for so long.
    pub(super) async fn run(&self, span: Duration) -> anyhow::Result<Tally> {
        let n_polls = (span.as_secs_f64() * f64::from(self.rate)) as usize;
        let runtime = tokio::runtime::Handle::current();
        let tally = Arc::new(Mutex::new(Tally::default()));
        let room = Arc::new(Semaphore::new(AT_ONCE));
        let (client, objects, rate) = (self.client.clone(), Arc::clone(&self.objects), self.rate);
        let (told, under_way) = (Arc::clone(&tally), Arc::clone(&room));
        // A thread of its own: the runtime's timer is a millisecond wide.
        let clock = move || {
            let began = Instant::now();
            for n in 0..n_polls {
                let due = began + Duration::from_secs_f64(n as f64 / f64::from(rate));
                sleep_until(due);
                let Ok(permit) = Arc::clone(&under_way).try_acquire_owned() else {
                    lock(&told).count(Err(Mishap::Error(Status::aborted("too many wait"))));
                    continue;
                };
                let (client, objects, told) =
                    (client.clone(), Arc::clone(&objects), Arc::clone(&told));
                runtime.spawn(async move {
                    let polled = poll(client, &objects[n % objects.len()]).await;
                    let took = due.elapsed();
                    lock(&told).count(polled.map(|()| took));
                    drop(permit);
                });
            }
        };
        tokio::task::spawn_blocking(clock).await?;
        let all = room.acquire_many(AT_ONCE as u32);
        let all = tokio::time::timeout(LIMIT, all).await;
        drop(all.context("calls are not answered after 10 s")??);
        let tally = std::mem::take(&mut *lock(&tally));
        ensure!(
            !tally.millis.is_empty(),
            "no call was answered: {}",
            tally.words.unwrap_or_default()
        );
        Ok(tally)
    }
}

impl Tally {
    fn count(&mut self, polled: Result<Duration, Mishap>) {
        let words = match polled {
            Ok(took) => return self.millis.push(took.as_secs_f64() * 1e3),
            Err(Mishap::Error(status)) => {
                self.errors += 1;
                status.to_string()
            }
            Err(Mishap::Wrong(words)) => {
                self.wrong += 1;
                words
            }
        };
        self.words.get_or_insert(words);
    }
}

/// One look of KEDA's polling loop: GetMetricSpec, GetMetrics, IsActive.
async fn poll(mut client: ExternalScalerClient<Channel>, object: &Object) -> Result<(), Mishap> {
    let request = || object.request.clone();
    let specs = client.get_metric_spec(request()).await.map_err(Mishap::Error)?.into_inner();
    let [MetricSpec { metric_name, target_size_float, .. }] = &specs.metric_specs[..] else {
        return Err(Mishap::Wrong(format!("{specs:?}")));
    };
    let question =
        GetMetricsRequest { scaled_object_ref: Some(request()), metric_name: metric_name.clone() };
    let values = client.get_metrics(question).await.map_err(Mishap::Error)?.into_inner();
    let active = client.is_active(request()).await.map_err(Mishap::Error)?.into_inner();
    let [MetricValue { metric_value_float: value, .. }] = &values.metric_values[..] else {
        return Err(Mishap::Wrong(format!("{values:?}")));
    };
    let target = &object.request.scaler_metadata["jobsPerReplica"];
    if target.parse() != Ok(*target_size_float)
        || !object.values.contains(value)
        || active.result != (*value > 0.0)
    {
        let words = format!("{specs:?}, {values:?}, {active:?}, but {:?} jobs", object.values);
        return Err(Mishap::Wrong(words));
    }
    Ok(())
}

#[allow(
    clippy::disallowed_methods,
    reason = "on a thread of its own, to the microsecond, which no timer of the runtime can"
)]
fn sleep_until(due: Instant) {
    let left = due.saturating_duration_since(Instant::now());
    if !left.is_zero() {
        std::thread::sleep(left);
    }
}

fn lock(tally: &Mutex<Tally>) -> std::sync::MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}
