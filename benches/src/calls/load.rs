//! KEDA's polls at a steady rate, whether the earlier ones are answered or not.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use ebb_proto::keda::external_scaler_client::ExternalScalerClient;
use ebb_proto::keda::{GetMetricsRequest, MetricSpec, MetricValue, ScaledObjectRef};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tonic::Status;
use tonic::transport::Channel;

use super::clock::Clock;
use crate::scaler::client;

/// A ScaledObject, and what its metric may be.
pub(super) struct Object {
    pub(super) request: ScaledObjectRef,
    pub(super) values: RangeInclusive<f64>,
}

/// Polls of many objects on one connection, from a thread of their own: the fewer threads wake each
/// other, the less of what is measured is the machine's.
pub(super) struct Load {
    orders: mpsc::Sender<Order>,
}

/// A while of polls, and who is told what came of it.
type Order = (Duration, oneshot::Sender<anyhow::Result<Tally>>);

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
    /// Polls of the scaler there; so many objects are polled in a second.
    pub(super) fn start(address: &str, objects: Vec<Object>, rate: u32) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (orders, mut taken) = mpsc::channel::<Order>(1);
        let (address, objects) = (address.to_owned(), Arc::from(objects));
        let serve = async move {
            let mut connection = None;
            while let Some((span, reply)) = taken.recv().await {
                let tally = async {
                    let client = match &connection {
                        Some(client) => client,
                        None => connection.insert(client(&address).await?),
                    };
                    run(client, &objects, rate, span).await
                };
                drop(reply.send(tally.await));
            }
        };
        std::thread::Builder::new().name("load".into()).spawn(move || runtime.block_on(serve))?;
        Ok(Self { orders })
    }

    /// Polls one object after the other for so long.
    pub(super) async fn run(&self, span: Duration) -> anyhow::Result<Tally> {
        let (reply, told) = oneshot::channel();
        let order = self.orders.send((span, reply)).await;
        order.ok().context("the thread that polls has ended")?;
        told.await.context("the thread that polls has ended")?
    }
}

async fn run(
    client: &ExternalScalerClient<Channel>,
    objects: &Arc<[Object]>,
    rate: u32,
    span: Duration,
) -> anyhow::Result<Tally> {
    let n_polls = (span.as_secs_f64() * f64::from(rate)) as usize;
    let (mut polls, mut tally) = (JoinSet::new(), Tally::default());
    let mut clock = Clock::start(rate)?;
    for n in 0..n_polls {
        let due = clock.tick().await?;
        while let Some(polled) = polls.try_join_next() {
            tally.count(polled?);
        }
        if polls.len() >= AT_ONCE {
            tally.count(Err(Mishap::Error(Status::aborted("too many wait"))));
            tokio::task::yield_now().await;
            continue;
        }
        let (client, objects) = (client.clone(), Arc::clone(objects));
        polls.spawn(async move {
            poll(client, &objects[n % objects.len()]).await.map(|()| due.elapsed())
        });
    }
    let rest = async {
        while let Some(polled) = polls.join_next().await {
            tally.count(polled?);
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(LIMIT, rest).await.context("calls are not answered after 10 s")??;
    let words = tally.words.as_deref().unwrap_or_default();
    ensure!(!tally.millis.is_empty(), "no call was answered: {words}");
    Ok(tally)
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
