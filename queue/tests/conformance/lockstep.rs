//! The same operations have the same answers on every broker that can be told the time: SQLite and
//! Redis against the reference.

mod steps;

use std::fmt::Debug;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ebb_queue::memory::MemoryQueue;
use ebb_queue::{
    Address, Behavior, Cancelled, Clock, Delivery, Error, Job, JobId, JobResult, Moved,
    OpenOptions, Outcome, Phase, Purged, Queue, QueueUrl, Settlement, Synchronous, Timestamp,
    WorkerStatus, open,
};
use futures::TryStreamExt;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::brokers::unused_name;
use crate::fixture::soon;
use steps::{Sketch, Step, Way, step};

/// Few names, so that operations meet each other.
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// Time that passes only when it is told to, in milliseconds.
#[derive(Debug)]
struct ManualClock(AtomicI64);

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millisecond(self.0.load(Ordering::SeqCst)).unwrap()
    }
}

/// One of the two brokers, with what its workers hold.
struct Side {
    handles: [Queue; 2],
    held: Vec<Delivery>,
    settled: Vec<Settlement>,
}

impl Side {
    /// Carries out a step and tells all that can be seen of it.
    async fn take(&mut self, step: &Step, clock: &ManualClock) -> String {
        let [queue, other] = &self.handles;
        match step {
            Step::Publish(sketches) => {
                let jobs = sketches.iter().map(|sketch| sketch.job(clock.now())).collect();
                told(queue.publish(jobs).await)
            }
            Step::Receive { worker, max } => {
                let max = NonZeroUsize::new(*max).unwrap();
                let deliveries = self.handles[*worker].receive(max, Duration::ZERO).await.unwrap();
                let seen: Vec<_> = deliveries.iter().map(|one| (&one.job, one.attempt)).collect();
                let seen = format!("{seen:?}");
                self.held.extend(deliveries);
                seen
            }
            Step::Settle(ways) => {
                let mut batch = Vec::new();
                for (nth, way) in ways {
                    if !self.held.is_empty() {
                        batch.push(way.settle(self.held.remove(nth % self.held.len())));
                    }
                }
                let settled = told(other.settle(&batch).await);
                self.settled.extend(batch);
                settled
            }
            Step::SettleAgain(nth) => match self.settled.iter().cycle().nth(*nth) {
                Some(settlement) => told(queue.settle(std::slice::from_ref(settlement)).await),
                None => String::new(),
            },
            Step::Extend(nths) => {
                let receipts = nths.iter().filter_map(|nth| self.held.iter().cycle().nth(*nth));
                let receipts: Vec<_> = receipts.map(|one| one.receipt().clone()).collect();
                told(queue.extend(&receipts).await)
            }
            Step::Pass { .. } => String::new(),
            Step::Redrive(names) => told(other.redrive(ids(names.as_ref()).as_deref()).await),
            Step::Purge(names) => told(queue.purge(ids(names.as_ref()).as_deref()).await),
            Step::PurgeWaiting => {
                let steps = queue.purge_waiting().await.unwrap();
                let all = steps.try_fold(Purged::default(), async |all, step| Ok(sum(all, step)));
                told(all.await.map(purged))
            }
            Step::PurgeOld(elsewhere) => told(queue.purge_old(*elsewhere).await.map(purged)),
            Step::Cancel(name) => told(other.cancel(&id(*name)).await.map(cancelled)),
            Step::GoOn(name) => {
                told(queue.put(&JobResult::moved(id(*name), "other", clock.now())).await)
            }
            Step::Put { name, attempt, completed } => {
                told(queue.put(&result(*name, *attempt, *completed, clock.now())).await)
            }
            Step::Chunk { name, attempt, seq } => {
                let body = Bytes::from(format!("{attempt}/{seq}"));
                told(other.chunk(&id(*name), *attempt, *seq, body).await)
            }
            Step::Report { worker } => told(queue.report(&status(*worker, clock.now())).await),
        }
    }

    /// All that can be seen without touching anything but what has expired, which a broker may bury at any
    /// moment, and does before it lists its dead letters.
    async fn look(&self) -> Vec<String> {
        let queue = &self.handles[1];
        queue.list(1).await.unwrap();
        let mut seen = vec![told(queue.depth().await), told(queue.workers().await)];
        for name in 0..NAMES.len() {
            seen.push(told(queue.get(&id(name)).await));
            seen.push(told(queue.state(&id(name)).await));
            seen.push(told(queue.has_gone_on(&id(name)).await));
        }
        seen
    }

    /// What an operator and a follower see in the end; it touches things.
    async fn look_closely(&self, now: Timestamp) -> Vec<String> {
        let queue = &self.handles[1];
        // Those that died at the same moment may come in any order.
        let mut dead = queue.list(99).await.unwrap();
        dead.sort_by_key(|letter| (letter.died_at, letter.job.id.clone()));
        let mut seen = vec![format!("{dead:?}")];
        for name in 0..NAMES.len() {
            // The latest attempt completes what it has begun, so that every stream has an end.
            for attempt in 1..4 {
                seen.push(told(queue.put(&result(name, attempt, true, now)).await));
            }
            let mut frames = queue.follow(&id(name), 0).await.unwrap();
            while let Some(frame) = soon(&mut frames).await {
                seen.push(told(frame));
            }
        }
        seen
    }
}

impl Sketch {
    fn job(&self, now: Timestamp) -> Job {
        let seconds = |span: u64| format!("{span}s");
        let headers = [
            ("ebb-key", self.key.map(|key| format!("key-{key}"))),
            ("ebb-priority", Some(["low", "normal", "high"][self.priority].to_owned())),
            ("ebb-delay", self.delay.map(seconds)),
            ("ebb-ttl", self.ttl.map(seconds)),
            ("ebb-cost", self.cost.map(|cost| cost.to_string())),
            ("ebb-reply-to", self.wants_reply.then(|| "replies".to_owned())),
            ("ebb-body-ref", self.is_elsewhere.then(|| "bodies/x".to_owned())),
        ];
        let given = headers.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?)));
        let mut job = Job::from_message(given, "body", now).unwrap();
        job.id = id(self.name);
        job
    }
}

impl Way {
    fn settle(self, delivery: Delivery) -> Settlement {
        match self {
            Self::Ack => delivery.ack(),
            Self::Retry(seconds) => delivery.retry(Duration::from_secs(seconds), "again"),
            Self::Release => delivery.release(),
            Self::Reject => delivery.reject("never"),
        }
    }
}

/// An answer, or the kind of the error: the words are each broker's own.
fn told<T: Debug, E: Into<Error>>(answer: Result<T, E>) -> String {
    format!("{:?}", answer.map_err(|error| error.into().kind()))
}

fn id(name: usize) -> JobId {
    NAMES[name].parse().unwrap()
}

fn ids(names: Option<&Vec<usize>>) -> Option<Vec<JobId>> {
    names.map(|names| names.iter().map(|name| id(*name)).collect())
}

fn result(name: usize, attempt: u32, completed: bool, finished_at: Timestamp) -> JobResult {
    let outcome = if completed {
        Outcome::Completed { content_type: "text/plain".to_owned(), body: "whole".into() }
    } else {
        Outcome::Failed("no".into())
    };
    JobResult { id: id(name), attempt, outcome, finished_at, queue: None }
}

fn sum(one: Purged, other: Purged) -> Purged {
    Purged {
        n_jobs: one.n_jobs + other.n_jobs,
        referring: [one.referring, other.referring].concat(),
        n_left: one.n_left + other.n_left,
    }
}

/// What a cancellation tells. An answer without a job has ended for one queue, and is unknown to another.
fn cancelled(cancelled: Cancelled) -> Cancelled {
    if cancelled == Cancelled::Unknown { Cancelled::Ended } else { cancelled }
}

/// What a purge tells, in any order.
fn purged(purged: Purged) -> (u64, Vec<JobId>, u64) {
    let mut referring: Vec<_> = purged.referring.into_iter().map(|job| job.id).collect();
    referring.sort();
    (purged.n_jobs, referring, purged.n_left)
}

fn status(worker: usize, at: Timestamp) -> WorkerStatus {
    WorkerStatus {
        id: format!("worker-{worker}"),
        pod: "pod".to_owned(),
        phase: Phase::Busy,
        in_flight: 1,
        slots: 8,
        completed: 5,
        failed: 0,
        batch_time: None,
        cold_start: Vec::new(),
        first_result: None,
        model: "echo".to_owned(),
        at,
    }
}

/// The two brokers, the reference first.
async fn sides(url: QueueUrl, clock: &Arc<ManualClock>) -> [Side; 2] {
    let options = |worker: &str| OpenOptions {
        worker: worker.to_owned(),
        clock: clock.clone(),
        // Each side is looked at by itself.
        moved: Moved::Show,
        ..OpenOptions::default()
    };
    let memory = MemoryQueue::new(&url.behavior, options("one"));
    let two = memory.as_worker("two");
    let other =
        [open(&url, options("one")).await.unwrap(), open(&url, options("two")).await.unwrap()];
    [[Arc::new(memory) as Queue, Arc::new(two)], other].map(|handles| Side {
        handles,
        held: Vec::new(),
        settled: Vec::new(),
    })
}

async fn walk(url: QueueUrl, steps: &[Step]) -> Result<(), TestCaseError> {
    let clock = Arc::new(ManualClock(AtomicI64::new(1_900_000_000_000)));
    let [mut memory, mut other] = sides(url, &clock).await;
    for (nth, step) in steps.iter().enumerate() {
        if let Step::Pass { millis } = step {
            clock.0.fetch_add(*millis, Ordering::SeqCst);
        }
        let expected = memory.take(step, &clock).await;
        prop_assert_eq!(other.take(step, &clock).await, expected, "step {}: {:?}", nth, step);
        let expected = memory.look().await;
        prop_assert_eq!(other.look().await, expected, "after step {}: {:?}", nth, step);
    }
    let expected = memory.look_closely(clock.now()).await;
    prop_assert_eq!(other.look_closely(clock.now()).await, expected, "at the end");
    Ok(())
}

/// Leases end and names are forgotten within a walk, and letters get old. So do results in a brief one; else
/// they stay, to be compared with their pieces.
fn behavior(max_ready: Option<u64>, is_brief: bool) -> Behavior {
    let seconds = Duration::from_secs;
    let (lease, key_ttl, dead_ttl) = (seconds(4), seconds(15), Some(seconds(20)));
    let result_ttl = seconds(if is_brief { 15 } else { 3600 });
    Behavior { lease, result_ttl, key_ttl, dead_ttl, max_ready }
}

#[test]
fn sqlite_answers_as_the_reference_does_whatever_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("queue.db");
    walk_at_random(&QueueUrl {
        address: Address::Sqlite { path, synchronous: Synchronous::Normal },
        ..QueueUrl::sqlite("")
    });
}

#[test]
fn redis_answers_as_the_reference_does_whatever_is_asked() {
    if let Some(url) = crate::on::redis_url("lockstep") {
        walk_at_random(&url);
    }
}

fn walk_at_random(url: &QueueUrl) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let steps = prop::collection::vec(step(), 1..60);
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let cases = asked.unwrap_or(64);
    let mut runner = TestRunner::new(ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let max_ready = prop::option::weighted(0.3, 2..6u64);
    let outcome =
        runner.run(&(steps, max_ready, any::<bool>()), |(mut steps, max_ready, is_brief)| {
            if is_brief {
                // The reference forgets a failure together with the pieces that come after it, and not before.
                steps.retain(|step| !matches!(step, Step::Chunk { .. }));
            }
            let url = url.with_queue(&unused_name()).unwrap();
            let url = QueueUrl { behavior: behavior(max_ready, is_brief), ..url };
            runtime.block_on(walk(url, &steps))
        });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}
