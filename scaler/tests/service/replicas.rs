//! Several scalers behind one address: KEDA's calls go to one after the other, and must agree.

use std::cell::Cell;
use std::num::NonZeroUsize;
use std::time::Duration;

use ebb_proto::keda::external_scaler_client::ExternalScalerClient;
use ebb_proto::keda::{GetMetricsRequest, ScaledObjectRef};
use ebb_queue::{
    BatchTime, Delivery, Job, OpenOptions, Phase, Queue, QueueUrl, Timestamp, WorkerStatus, open,
};
use ebb_scaler::{Scaler, ScalerArgs};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Channel;

use crate::kit::{args, object, patiently};

/// Two scalers on one queue, and a client that takes one after the other.
struct Pair {
    clients: [ExternalScalerClient<Channel>; 2],
    turn: Cell<usize>,
}

impl Pair {
    fn next(&self) -> ExternalScalerClient<Channel> {
        self.turn.set(self.turn.get() + 1);
        self.clients[self.turn.get() % 2].clone()
    }

    /// One poll of KEDA's, each call to the other scaler.
    async fn look(&self, object: &ScaledObjectRef) -> Result<(i64, bool), Status> {
        let spec = self.next().get_metric_spec(object.clone()).await?.into_inner();
        let request = GetMetricsRequest {
            scaled_object_ref: Some(object.clone()),
            metric_name: spec.metric_specs[0].metric_name.clone(),
        };
        let values = self.next().get_metrics(request).await?.into_inner();
        let active = self.next().is_active(object.clone()).await?.into_inner().result;
        Ok((values.metric_values[0].metric_value, active))
    }

    /// Looks until the answers are these four times in a row, so from both scalers for both calls.
    async fn agree(&self, expected: (i64, bool)) -> Duration {
        self.agree_about(&object(&[]), expected, async || {}).await
    }

    /// The same about any object, while something else goes on.
    async fn agree_about(
        &self,
        object: &ScaledObjectRef,
        expected: (i64, bool),
        meanwhile: impl AsyncFn(),
    ) -> Duration {
        let begun = Instant::now();
        let mut n_right = 0;
        while n_right < 4 {
            meanwhile().await;
            let seen = patiently(async || self.look(object).await).await.unwrap();
            n_right = if seen == expected { n_right + 1 } else { 0 };
            assert!(begun.elapsed() < Duration::from_secs(20), "{seen:?} is not {expected:?}");
        }
        begun.elapsed()
    }
}

/// Jobs come, are held, and end in two parts; how long the scalers took to agree on it at most.
async fn come_and_go(queue: &Queue, pair: &Pair) -> Duration {
    let jobs = (0..7).map(|_| Job::new("{}", Timestamp::now())).collect();
    queue.publish(jobs).await.unwrap();
    let mut slowest = pair.agree((7, true)).await;
    let held = take(queue, 7).await;
    // In flight now, and as many: no answer may have been less.
    slowest = slowest.max(pair.agree((7, true)).await);
    let done: Vec<_> = held.into_iter().map(Delivery::ack).collect();
    queue.settle(&done[..5]).await.unwrap();
    slowest = slowest.max(pair.agree((2, true)).await);
    queue.settle(&done[5..]).await.unwrap();
    slowest.max(pair.agree((0, false)).await)
}

async fn take(queue: &Queue, n_jobs: usize) -> Vec<Delivery> {
    queue.receive(NonZeroUsize::new(n_jobs).unwrap(), Duration::ZERO).await.unwrap()
}

/// A scaler of its own on the queues of this place.
async fn start(
    url: &QueueUrl,
    stop: &CancellationToken,
) -> (ExternalScalerClient<Channel>, JoinHandle<anyhow::Result<()>>) {
    let refresh = ScalerArgs::default().refresh;
    let args = ScalerArgs { queue: Some(url.clone()), refresh, ..args() };
    let scaler = Scaler::bind(args).await.unwrap();
    let address = scaler.local_addr().unwrap();
    let server = tokio::spawn(scaler.serve(stop.clone()));
    (ExternalScalerClient::connect(format!("http://{address}")).await.unwrap(), server)
}

/// A worker that has nothing to do and says what it learned: four jobs a second.
async fn report(queue: &Queue) {
    let status = WorkerStatus {
        id: "w1".into(),
        pod: "pod-1".into(),
        phase: Phase::Idle,
        in_flight: 0,
        slots: 8,
        completed: 100,
        failed: 0,
        batch_time: Some(BatchTime { base: 0.0, per_cost: 0.0, per_job: 0.25 }),
        cold_start: vec![("weights".into(), 25.0)],
        first_result: None,
        model: "echo".into(),
        at: Timestamp::now(),
    };
    queue.report(&status).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scaler_that_is_started_later_takes_up_what_workers_say_of_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let url = QueueUrl::sqlite(folder.path().join("queue.db"));
    let quiet = url.with_queue("quiet").unwrap();
    let open_at = async |url: &QueueUrl| open(url, OpenOptions::default()).await.unwrap();
    let (busy, quiet) = (open_at(&url).await, open_at(&quiet).await);
    let jobs = (0..4000).map(|_| Job::new("{}", Timestamp::now())).collect();
    busy.publish(jobs).await.unwrap();
    let reports = async || {
        report(&busy).await;
        report(&quiet).await;
    };
    let drain = object(&[("mode", "drain")]);
    // 1000 s of work; one replica is there and does 540 s of it, the second begins 36.25 s later.
    let slo = object(&[("mode", "slo"), ("sloSeconds", "600")]);
    let linger = object(&[("queue", "quiet"), ("linger", "1h")]);

    let stop = CancellationToken::new();
    let (first, one) = start(&url, &stop).await;
    let alone = Pair { clients: [first.clone(), first.clone()], turn: Cell::new(0) };
    alone.agree_about(&drain, (1000, true), reports).await;
    alone.agree_about(&slo, (2, true), reports).await;
    alone.agree_about(&linger, (0, true), reports).await;
    drop(alone);

    let (later, other) = start(&url, &stop).await;
    let pair = Pair { clients: [first, later], turn: Cell::new(0) };
    pair.agree_about(&drain, (1000, true), reports).await;
    pair.agree_about(&slo, (2, true), reports).await;
    pair.agree_about(&linger, (0, true), reports).await;

    stop.cancel();
    drop(pair);
    for server in [one, other] {
        server.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_scalers_agree_within_the_interval_of_a_workers_status() {
    let folder = tempfile::tempdir().unwrap();
    let url = QueueUrl::sqlite(folder.path().join("queue.db"));
    let queue = open(&url, OpenOptions::default()).await.unwrap();
    let stop = CancellationToken::new();
    let clients = [start(&url, &stop).await, start(&url, &stop).await];
    let (clients, servers): (Vec<_>, Vec<_>) = clients.into_iter().unzip();
    let clients = clients.try_into().unwrap();
    let pair = Pair { clients, turn: Cell::new(0) };
    pair.agree((0, false)).await;

    // Workers report once a second, and a look at a busy queue is as old at most; twice that is
    // left for a slow machine, which may be slower for a while.
    let limit = Duration::from_secs(2);
    let mut slowest = come_and_go(&queue, &pair).await;
    for _ in 1..5 {
        if slowest >= limit {
            sleep(Duration::from_secs(1)).await;
            slowest = come_and_go(&queue, &pair).await;
        }
    }
    assert!(slowest < limit, "{slowest:?}");

    stop.cancel();
    drop(pair);
    for server in servers {
        server.await.unwrap().unwrap();
    }
}
