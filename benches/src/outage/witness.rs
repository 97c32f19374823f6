//! Polls in KEDA's order and listens to streams, and writes down what is told.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use ebb_proto::keda::external_scaler_client::ExternalScalerClient;
use ebb_proto::keda::{GetMetricsRequest, ScaledObjectRef};
use ebb_queue::{Job, Timestamp};
use futures::future::try_join_all;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Channel;

use super::judge::{Answer, Record, Told};
use super::load::Load;
use crate::broker::{Bed, Place};

/// A queue that is asked about.
#[derive(Clone)]
pub(super) struct Pool {
    place: Place,
    /// None where work goes on, and only that there is some is certain.
    n_jobs: Option<usize>,
}

/// Somebody who asks and listens all the time.
pub(super) struct Witness {
    record: Arc<Mutex<Record>>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    n_pools: usize,
}

type Client = ExternalScalerClient<Channel>;

/// How long the first good answers may take.
const FIRST: Duration = Duration::from_secs(30);

impl Pool {
    /// Opens queues, puts jobs that nobody takes into each, and lets go of them: there nothing but
    /// the scaler notices that the broker is away.
    pub(super) async fn fill(
        bed: &Bed,
        n_queues: usize,
        lease: Duration,
    ) -> anyhow::Result<Vec<Self>> {
        let fill = async |n: usize| -> anyhow::Result<Self> {
            let place = bed.place(&format!("outage-{n}"), lease)?;
            let n_jobs = 3 + n;
            let jobs = (0..n_jobs).map(|_| Job::new("{}", Timestamp::now())).collect();
            place.open("producer").await?.publish(jobs).await?;
            Ok(Self { place, n_jobs: Some(n_jobs) })
        };
        try_join_all((0..n_queues).map(fill)).await
    }

    /// A queue on which work goes on.
    pub(super) fn loaded(load: &Load) -> Self {
        Self { place: load.place().clone(), n_jobs: None }
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    fn object(&self) -> ScaledObjectRef {
        let metadata = [("queue".to_owned(), self.place.queue.queue.clone())];
        ScaledObjectRef {
            name: self.place.queue.queue.clone(),
            namespace: "default".to_owned(),
            scaler_metadata: metadata.into(),
        }
    }
}

impl Witness {
    /// Begins once every queue has been answered for.
    pub(super) async fn begin(
        client: &Client,
        pools: Vec<Pool>,
        rate: u32,
    ) -> anyhow::Result<Self> {
        let limit = Instant::now() + FIRST;
        for pool in &pools {
            let settled = async || {
                let told = ask(client.clone(), pool).await;
                told.iter().all(|answer| is_right(answer.told))
            };
            while !settled().await {
                ensure!(Instant::now() < limit, "there are no good answers after 30 s");
                sleep(Duration::from_millis(50)).await;
            }
        }
        let record = Arc::new(Mutex::new(Record::default()));
        let (stop, mut tasks, n_pools) = (CancellationToken::new(), JoinSet::new(), pools.len());
        for pool in &pools {
            let (client, object) = (client.clone(), pool.object());
            let (record, stop) = (Arc::clone(&record), stop.clone());
            tasks.spawn(async move {
                stop.run_until_cancelled(listen(client, object, &record)).await;
            });
        }
        let (client, told, stopped) = (client.clone(), Arc::clone(&record), stop.clone());
        tasks.spawn(async move {
            stopped.run_until_cancelled(poll(client, pools, rate, told)).await;
        });
        Ok(Self { record, stop, tasks, n_pools })
    }

    /// Waits until every queue is answered for again.
    pub(super) async fn wait_for_good_answers(
        &mut self,
        since: Instant,
        limit: Duration,
    ) -> anyhow::Result<()> {
        while since.elapsed() < limit {
            sleep(Duration::from_millis(100)).await;
            let record = lock(&self.record);
            let values = record.0.iter().rev().filter(|answer| answer.asked >= since);
            // One queue after the other is asked about, so these are of all.
            let mut last = values.filter(|answer| !matches!(answer.told, Told::Spec(_)));
            let n = 4 * self.n_pools;
            if last.by_ref().take(n).filter(|answer| is_right(answer.told)).count() == n {
                return Ok(());
            }
        }
        anyhow::bail!("not within {limit:?} of the broker's return")
    }

    /// Ends it, and hands over what was told.
    pub(super) async fn end(mut self) -> anyhow::Result<Record> {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.context("a witness failed")?;
        }
        Ok(std::mem::take(&mut *lock(&self.record)))
    }
}

/// One queue after the other, at a steady rate, whether earlier calls are answered or not.
async fn poll(client: Client, pools: Vec<Pool>, rate: u32, record: Arc<Mutex<Record>>) {
    let mut pace = interval(Duration::from_secs(1) / rate);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut polls = JoinSet::new();
    for pool in pools.iter().cycle() {
        pace.tick().await;
        let (client, pool, record) = (client.clone(), pool.clone(), Arc::clone(&record));
        polls.spawn(async move {
            let told = ask(client, &pool).await;
            lock(&record).0.extend(told);
        });
        while polls.try_join_next().is_some() {}
    }
}

/// GetMetricSpec, GetMetrics and IsActive.
async fn ask(mut client: Client, pool: &Pool) -> Vec<Answer> {
    let mut told = Vec::with_capacity(3);
    let asked = Instant::now();
    let mut note = |told_now| told.push(Answer { asked, at: Instant::now(), told: told_now });
    let specs = client.get_metric_spec(pool.object()).await.map(tonic::Response::into_inner);
    let spec = specs.and_then(|mut specs| {
        specs.metric_specs.pop().ok_or_else(|| Status::internal("there is no metric"))
    });
    note(Told::Spec(spec.as_ref().err().map(Status::code)));
    let Ok(spec) = spec else { return told };
    let question =
        GetMetricsRequest { scaled_object_ref: Some(pool.object()), metric_name: spec.metric_name };
    let values = client.get_metrics(question).await.map(tonic::Response::into_inner);
    note(match values.as_ref().map(|values| values.metric_values.first()) {
        Ok(Some(value)) => {
            let right = pool.n_jobs.map(|n_jobs| n_jobs as f64);
            Told::Value { value: value.metric_value_float, right }
        }
        Ok(None) => Told::Unknown(tonic::Code::Ok),
        Err(status) => Told::Unknown(status.code()),
    });
    note(match client.is_active(pool.object()).await {
        Ok(answer) => Told::Activity(answer.into_inner().result),
        Err(status) => Told::Unknown(status.code()),
    });
    told
}

/// Writes down what a stream says; it must not end.
async fn listen(mut client: Client, object: ScaledObjectRef, record: &Mutex<Record>) {
    let note = |told| {
        let at = Instant::now();
        lock(record).0.push(Answer { asked: at, at, told });
    };
    if let Ok(stream) = client.stream_is_active(object).await {
        let mut stream = stream.into_inner();
        while let Ok(Some(push)) = stream.message().await {
            note(Told::Activity(push.result));
        }
    }
    note(Told::Broken);
}

fn is_right(told: Told) -> bool {
    match told {
        Told::Spec(code) => code.is_none(),
        Told::Value { value, right } => value > 0.0 && right.is_none_or(|right| value == right),
        Told::Activity(active) => active,
        Told::Unknown(_) | Told::Broken => false,
    }
}

fn lock(record: &Mutex<Record>) -> std::sync::MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}
