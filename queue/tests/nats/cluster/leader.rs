//! The server that leads all streams of a queue is killed under load: another takes over, nothing is
//! lost, nothing runs twice, and what waits is never counted as nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_nats::jetstream::Context;
use ebb_queue::{Delivery, Queue, Receipt, Settled, Settlement};
use ebb_servers::NatsCluster;
use futures::StreamExt;
use serde_json::json;
use tokio::task::{JoinHandle, JoinSet, LocalSet};
use tokio::time::{Instant, sleep};

use super::{leader, on_cluster, replicated, replicated_at, streams};
use crate::{job, receive, until, until_ok};

/// A lease longer than elections take one after the other, so that what is held stays held.
const LOAD: &str = "load&lease=40s";
/// So often the lease of a job begins anew that is held all the time.
const KEPT: Duration = Duration::from_secs(5);

type Received = BTreeMap<String, (u32, Instant)>;

/// What producers, workers and an observer saw.
#[derive(Default)]
struct Seen {
    is_over: AtomicBool,
    n_producers: AtomicUsize,
    accepted: Mutex<BTreeMap<String, Instant>>,
    /// How often each was handed out, and when last.
    received: Mutex<Received>,
    told: Mutex<Vec<Instant>>,
}

impl Seen {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    fn received(&self) -> MutexGuard<'_, Received> {
        self.received.lock().unwrap()
    }

    /// The first that was accepted, and the first that was handed out, after this moment.
    fn first_since(&self, begin: Instant) -> [Option<Instant>; 2] {
        let accepted = self.accepted.lock().unwrap();
        let received = self.received();
        [
            accepted.values().copied().filter(|at| *at > begin).min(),
            received.values().map(|(_, at)| *at).filter(|at| *at > begin).min(),
        ]
    }
}

/// Publishes one after the other, each until it is accepted.
async fn produce(queue: Queue, seen: Arc<Seen>, name: &str) {
    for nth in 0.. {
        if seen.is_over() {
            seen.n_producers.fetch_sub(1, Ordering::SeqCst);
            return;
        }
        let id = format!("{name}-{nth}");
        until_ok(async || queue.publish(vec![job(&id)]).await).await;
        seen.accepted.lock().unwrap().insert(id, Instant::now());
        sleep(Duration::from_millis(5)).await;
    }
}

/// Receives, extends and settles until all that was accepted was handed out.
async fn work(queue: Queue, seen: Arc<Seen>) {
    let (max, wait) = (NonZeroUsize::new(4).unwrap(), Duration::from_millis(300));
    let is_producing = || seen.n_producers.load(Ordering::SeqCst) > 0;
    while is_producing() || seen.received().len() < seen.accepted.lock().unwrap().len() {
        let deliveries = until_ok(async || queue.receive(max, wait).await).await;
        for one in &deliveries {
            let mut received = seen.received();
            let known = received.entry(one.job.id.to_string()).or_insert((0, Instant::now()));
            *known = (known.0 + 1, Instant::now());
        }
        let receipts: Vec<_> = deliveries.iter().map(|one| one.receipt().clone()).collect();
        until_ok(async || queue.extend(&receipts).await).await;
        sleep(Duration::from_millis(10)).await;
        let acks: Vec<Settlement> = deliveries.into_iter().map(Delivery::ack).collect();
        until_ok(async || Ok(queue.settle(&acks).await?)).await;
    }
}

/// Holds a job for ever.
async fn keep(holder: Queue, receipt: Receipt) {
    loop {
        let held = until_ok(async || holder.extend(std::slice::from_ref(&receipt)).await).await;
        assert_eq!(held, [Settled::Held]);
        sleep(KEPT).await;
    }
}

/// Looks all the time: an error is an answer, and nothing is not.
async fn observe(queue: Queue, seen: Arc<Seen>) {
    while !seen.is_over() {
        if let Ok(depth) = queue.depth().await {
            assert!(depth.ready + depth.in_flight > 0, "{depth:?}");
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Notes when something is told, as the scaler would hear it.
async fn listen(queue: &Queue, seen: Arc<Seen>) -> JoinHandle<()> {
    let mut arrivals = queue.arrivals().await.unwrap();
    tokio::spawn(async move {
        while arrivals.next().await.is_some() {
            seen.told.lock().unwrap().push(Instant::now());
        }
    })
}

/// Has one server lead all streams of a queue, and returns its place.
async fn gather(streams: &Context, queue: &str) -> usize {
    let place = leader(streams, &format!("EBB_JOBS_{queue}")).await;
    for kind in ["STATUS", "NOTES", "RESULTS"] {
        let stream = format!("EBB_{kind}_{queue}");
        let request = json!({ "placement": { "preferred": format!("n{place}") } });
        until("it leads all", async || {
            if leader(streams, &stream).await == place {
                return true;
            }
            let what = format!("STREAM.LEADER.STEPDOWN.{stream}");
            streams.request::<_, _, serde_json::Value>(what, &request).await.ok();
            false
        })
        .await;
    }
    place
}

/// All that was accepted was handed out, and once.
fn assert_nothing_is_missing(seen: &Seen) {
    let received = seen.received();
    let accepted: BTreeSet<_> = seen.accepted.lock().unwrap().keys().cloned().collect();
    assert_eq!(received.keys().cloned().collect::<BTreeSet<_>>(), accepted);
    let twice: Vec<_> = received.iter().filter(|(_, (times, _))| *times > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
}

/// Who listened before the election hears what is published after it.
async fn assert_is_told(queue: &Queue, seen: &Seen) {
    let last = || seen.told.lock().unwrap().last().copied().unwrap();
    until("it is quiet", async || last().elapsed() > Duration::from_secs(1)).await;
    let begin = Instant::now();
    until_ok(async || queue.publish(vec![job("told")]).await).await;
    until("it is told", async || last() > begin).await;
}

#[test]
fn a_leader_that_is_killed_under_load_costs_no_job_and_hides_none() {
    on_cluster(async |cluster| LocalSet::new().run_until(kill_the_leader(cluster)).await);
}

async fn kill_the_leader(cluster: &mut NatsCluster) {
    let (seen, streams) = (Arc::new(Seen::default()), streams(cluster).await);
    let holder = replicated(cluster, LOAD).await;
    // One is held all the time, so that there is never nothing.
    holder.publish(vec![job("held")]).await.unwrap();
    let held = receive(&holder, 1).await.unwrap().remove(0);
    let keeper = tokio::task::spawn_local(keep(holder.clone(), held.receipt().clone()));
    let place = gather(&streams, "load").await;
    let survivor = (place + 1) % 3;
    let ear = listen(&replicated_at(cluster, survivor, LOAD).await, seen.clone()).await;
    let mut tasks = JoinSet::new();
    seen.n_producers.store(2, Ordering::SeqCst);
    for name in ["a", "b"] {
        tasks.spawn_local(produce(replicated(cluster, LOAD).await, seen.clone(), name));
        tasks.spawn_local(work(replicated(cluster, LOAD).await, seen.clone()));
    }
    tasks.spawn_local(observe(replicated(cluster, LOAD).await, seen.clone()));
    until("the load is on", async || seen.received().len() > 50).await;

    cluster.nodes_mut()[place].kill();
    // Who comes now waits for the election.
    replicated_at(cluster, survivor, LOAD).await;
    leader(&streams, "EBB_JOBS_load").await;
    let elected = Instant::now();
    // The consumers of the lanes elect their leaders by themselves.
    let goes_on = async || seen.first_since(elected).iter().all(Option::is_some);
    until("work goes on", goes_on).await;
    seen.is_over.store(true, Ordering::SeqCst);
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    assert_nothing_is_missing(&seen);
    assert_is_told(&holder, &seen).await;
    ear.abort();
    keeper.abort();
    assert!(keeper.await.unwrap_err().is_cancelled(), "it was held all the time");
    let ack = [held.ack()];
    assert_eq!(until_ok(async || Ok(holder.settle(&ack).await?)).await, [Settled::Held]);
}
