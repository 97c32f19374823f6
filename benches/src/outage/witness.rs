//! Polls in KEDA's order and listens to streams, and writes down what is told.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use ebb_proto::keda::external_scaler_client::ExternalScalerClient;
use ebb_proto::keda::{GetMetricsRequest, ScaledObjectRef};
use ebb_queue::{Job, Timestamp};
use futures::future::try_join_all;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Response, Status};

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

/// What KEDA waits for an answer by default.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

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
                let told = ask(client.clone(), 0, pool).await;
                told.iter().all(|answer| is_right(answer.told))
            };
            while !settled().await {
                ensure!(Instant::now() < limit, "there are no good answers after 30 s");
                sleep(Duration::from_millis(50)).await;
            }
        }
        let record = Arc::new(Mutex::new(Record::default()));
        let (stop, mut tasks, n_pools) = (CancellationToken::new(), JoinSet::new(), pools.len());
        for (queue, pool) in pools.iter().enumerate() {
            let (client, object) = (client.clone(), pool.object());
            let (record, stop) = (Arc::clone(&record), stop.clone());
            tasks.spawn(async move {
                stop.run_until_cancelled(listen(client, (queue, object), &record)).await;
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
    for (queue, pool) in pools.iter().enumerate().cycle() {
        pace.tick().await;
        let (client, pool, record) = (client.clone(), pool.clone(), Arc::clone(&record));
        polls.spawn(async move {
            let told = ask(client, queue, &pool).await;
            lock(&record).0.extend(told);
        });
        while polls.try_join_next().is_some() {}
    }
}

/// GetMetricSpec, GetMetrics and IsActive.
async fn ask(mut client: Client, queue: usize, pool: &Pool) -> Vec<Answer> {
    let mut told = Vec::with_capacity(3);
    let asked = Instant::now();
    let mut note = |now: Told| told.push(Answer { queue, asked, at: Instant::now(), told: now });
    let Some(specs) = within(client.get_metric_spec(pool.object())).await else {
        note(Told::Nothing);
        return told;
    };
    let spec = specs.and_then(|mut specs| {
        specs.metric_specs.pop().ok_or_else(|| Status::internal("there is no metric"))
    });
    note(Told::Spec(spec.as_ref().err().map(Status::code)));
    let Ok(spec) = spec else { return told };
    let question =
        GetMetricsRequest { scaled_object_ref: Some(pool.object()), metric_name: spec.metric_name };
    let values = within(client.get_metrics(question)).await;
    note(match values.as_ref().map(|values| values.as_ref().map(|it| it.metric_values.first())) {
        Some(Ok(Some(value))) => {
            let right = pool.n_jobs.map(|n_jobs| n_jobs as f64);
            Told::Value { value: value.metric_value_float, right }
        }
        Some(Ok(None)) => Told::Unknown(tonic::Code::Ok),
        Some(Err(status)) => Told::Unknown(status.code()),
        None => Told::Nothing,
    });
    note(match within(client.is_active(pool.object())).await {
        Some(Ok(answer)) => Told::Activity(answer.result),
        Some(Err(status)) => Told::Unknown(status.code()),
        None => Told::Nothing,
    });
    told
}

/// The answer to a call; `None` where there is none for as long as KEDA waits.
async fn within<T>(
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Option<Result<T, Status>> {
    Some(timeout(PATIENCE, call).await.ok()?.map(Response::into_inner))
}

/// Writes down what a stream says; it must open and must not end.
async fn listen(
    mut client: Client,
    (queue, object): (usize, ScaledObjectRef),
    record: &Mutex<Record>,
) {
    let note = |told| {
        let at = Instant::now();
        lock(record).0.push(Answer { queue, asked: at, at, told });
    };
    let stream = within(client.stream_is_active(object)).await;
    let Some(stream) = stream else { return note(Told::Nothing) };
    if let Ok(mut stream) = stream {
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
        Told::Unknown(_) | Told::Nothing | Told::Broken => false,
    }
}

fn lock(record: &Mutex<Record>) -> std::sync::MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}
