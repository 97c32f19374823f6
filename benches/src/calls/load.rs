//! KEDA's polls at a steady rate, whether the earlier ones are answered or not.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use ebb_proto::keda::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec,
    MetricValue, ScaledObjectRef,
};
use prost::Message;
use tokio::sync::{mpsc, oneshot};

use super::clock::Clock;
use super::wire::{Answer, Wire};
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
    /// Who was asked for in the first call that failed.
    pub(super) failed: Option<ScaledObjectRef>,
}

/// What went wrong with a poll.
enum Mishap {
    /// A call failed, or was too late to be begun.
    Error(&'static str),
    Wrong(String),
}

/// One look of KEDA's polling loop: GetMetricSpec, GetMetrics, IsActive.
struct Poll {
    due: Instant,
    object: usize,
    /// The call that is to be answered.
    asked: Asked,
}

enum Asked {
    Spec,
    Value,
    Active { value: f64 },
}

/// Polls under way; one that is due beyond that counts as not answered.
const AT_ONCE: usize = 8_192;
const SPEC: &str = "/externalscaler.ExternalScaler/GetMetricSpec";
const VALUE: &str = "/externalscaler.ExternalScaler/GetMetrics";
const ACTIVE: &str = "/externalscaler.ExternalScaler/IsActive";
/// After the last poll was due.
const LIMIT: Duration = Duration::from_secs(10);

impl Load {
    /// Polls of the scaler there; so many objects are polled in a second.
    pub(super) fn start(address: &str, objects: Vec<Object>, rate: u32) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (orders, mut taken) = mpsc::channel::<Order>(1);
        let address = address.to_owned();
        let serve = async move {
            let mut connection = None;
            while let Some((span, reply)) = taken.recv().await {
                let tally = async {
                    let wire = match &mut connection {
                        Some(wire) => wire,
                        None => connection.insert(Wire::connect(&address).await?),
                    };
                    run(wire, &objects, rate, span).await
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
    wire: &mut Wire,
    objects: &[Object],
    rate: u32,
    span: Duration,
) -> anyhow::Result<Tally> {
    let n_polls = (span.as_secs_f64() * f64::from(rate)) as usize;
    let (mut polls, mut tally) = (HashMap::new(), Tally::default());
    let mut clock = Clock::start(rate)?;
    let mut begun = 0;
    while begun < n_polls {
        tokio::select! {
            due = clock.tick() => {
                let (due, object) = (due?, begun % objects.len());
                begun += 1;
                if polls.len() >= AT_ONCE {
                    tally.count(Err(Mishap::Error("too many wait")));
                    // A clock that is behind ticks without a wait, and answers must come in.
                    tokio::task::yield_now().await;
                    continue;
                }
                let call = wire.call(SPEC, &objects[object].request);
                polls.insert(call, Poll { due, object, asked: Asked::Spec });
            }
            answers = wire.exchange() => go_on(answers?, wire, objects, &mut polls, &mut tally)?,
        }
    }
    let rest = async {
        while !polls.is_empty() {
            go_on(wire.exchange().await?, wire, objects, &mut polls, &mut tally)?;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(LIMIT, rest).await.context("calls are not answered after 10 s")??;
    Ok(tally)
}

/// Makes the next call of each poll that has an answer.
fn go_on(
    answers: Vec<Answer>,
    wire: &mut Wire,
    objects: &[Object],
    polls: &mut HashMap<u32, Poll>,
    tally: &mut Tally,
) -> anyhow::Result<()> {
    for Answer { call, message } in answers {
        let Some(poll) = polls.remove(&call) else { bail!("a call was answered twice") };
        let Poll { due, object, ref asked } = poll;
        let next = match message {
            Some(message) => asked.next(&message, &objects[object], wire),
            None => {
                tally.failed.get_or_insert_with(|| objects[object].request.clone());
                Err(Mishap::Error("a call failed"))
            }
        };
        match next {
            Ok(Some((call, asked))) => drop(polls.insert(call, Poll { due, object, asked })),
            Ok(None) => tally.count(Ok(due.elapsed())),
            Err(mishap) => tally.count(Err(mishap)),
        }
    }
    Ok(())
}

impl Tally {
    fn count(&mut self, polled: Result<Duration, Mishap>) {
        let words = match polled {
            Ok(took) => return self.millis.push(took.as_secs_f64() * 1e3),
            Err(Mishap::Error(words)) => {
                self.errors += 1;
                words.to_owned()
            }
            Err(Mishap::Wrong(words)) => {
                self.wrong += 1;
                words
            }
        };
        self.words.get_or_insert(words);
    }
}

/// Asks once more with a client that reads why a call fails.
pub(super) async fn why(address: &str, object: ScaledObjectRef) -> Option<String> {
    let mut client = client(address).await.ok()?;
    let failed = match client.get_metric_spec(object.clone()).await {
        Ok(_) => client.is_active(object).await.err(),
        Err(status) => Some(status),
    };
    Some(failed?.to_string())
}

impl Asked {
    /// Judges an answer, and makes the next call of the poll, if there is one.
    fn next(
        &self,
        message: &[u8],
        object: &Object,
        wire: &mut Wire,
    ) -> Result<Option<(u32, Self)>, Mishap> {
        match self {
            Self::Spec => {
                let answer: GetMetricSpecResponse = read(message)?;
                let [MetricSpec { metric_name, target_size_float, .. }] = &answer.metric_specs[..]
                else {
                    return Err(Mishap::Wrong(format!("{answer:?}")));
                };
                let target = &object.request.scaler_metadata["jobsPerReplica"];
                if target.parse() != Ok(*target_size_float) {
                    return Err(Mishap::Wrong(format!("{answer:?}, but {target} was asked for")));
                }
                let (scaled_object_ref, metric_name) =
                    (Some(object.request.clone()), metric_name.clone());
                let question = GetMetricsRequest { scaled_object_ref, metric_name };
                Ok(Some((wire.call(VALUE, &question), Self::Value)))
            }
            Self::Value => {
                let answer: GetMetricsResponse = read(message)?;
                let [MetricValue { metric_value_float: value, .. }] = answer.metric_values[..]
                else {
                    return Err(Mishap::Wrong(format!("{answer:?}")));
                };
                if !object.values.contains(&value) {
                    let words = format!("{answer:?}, but {:?} jobs", object.values);
                    return Err(Mishap::Wrong(words));
                }
                Ok(Some((wire.call(ACTIVE, &object.request), Self::Active { value })))
            }
            Self::Active { value } => {
                let answer: IsActiveResponse = read(message)?;
                if answer.result != (*value > 0.0) {
                    let words = format!("{answer:?}, but a value of {value}");
                    return Err(Mishap::Wrong(words));
                }
                Ok(None)
            }
        }
    }
}

fn read<M: Message + Default>(message: &[u8]) -> Result<M, Mishap> {
    M::decode(message).map_err(|error| Mishap::Wrong(error.to_string()))
}
