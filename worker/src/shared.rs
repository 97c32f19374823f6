//! What the stages of a pipeline are made of and have in common.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use ebb_queue::{Clock, RetryPolicy, WorkerId};
use ebb_telemetry::{GateKind, Health, Traces};
use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use crate::batcher::Limits;
use crate::board::Board;
use crate::deletion::Pod;
use crate::device::{DeviceWay, Door, State};
use crate::intake::Intake;
use crate::lease::Leases;
use crate::metrics::Metrics;
use crate::models::age_of_process;
use crate::outcome::NO_MODEL;
use crate::served::{BrokersGate, Lane, ModelParts, QueueParts, QueueState, Seams};
use crate::sparing::Sparing;
use crate::under_way::UnderWay;

/// Why a job whose deadline has passed is not run; the brokers use the same word.
pub(crate) const EXPIRED: &str = "expired";

/// Why a job is not run whose deadline will have passed before its answer is there.
pub(crate) const TOO_LATE: &str = "too_late";

/// What a worker that drains keeps of its grace period, to settle what was between two turns: so
/// long, or a third of a short one.
const FAREWELL: Duration = Duration::from_secs(2);

/// What a pipeline is made of.
#[derive(Debug)]
pub struct Parts {
    /// The queues that it serves.
    pub queues: Vec<QueueParts>,
    /// How to behave.
    pub settings: Settings,
    /// What it takes the time of day from.
    pub clock: Arc<dyn Clock>,
    /// Where chance comes from: the jitter of retries.
    pub seed: u64,
    /// What it counts.
    pub metrics: Metrics,
    /// What its probes answer.
    pub health: Health,
    /// Where its spans go.
    pub traces: Traces,
}

/// How a worker behaves; [`crate::WorkerArgs`] tells what each means.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Who it is.
    pub worker: WorkerId,
    /// The pod or host it runs on.
    pub pod: String,
    /// What a batch may be at most.
    pub limits: Limits,
    /// Jobs received ahead of the batch that runs; queues share it equally. None where all models of a
    /// queue take turns: who waits for one of their jobs to end may be answered elsewhere.
    pub prefetch: usize,
    /// When a failed job is tried again.
    pub retry: RetryPolicy,
    /// A batch that takes longer means that the device is wedged.
    pub stall: Duration,
    /// From the stop to the exit at most.
    pub grace: Duration,
    /// Threads that decode; with 0 the stage does it itself, as a simulation needs it.
    pub decode_threads: usize,
    /// The largest body, in bytes.
    pub max_body: usize,
    /// The most that one job may cost, in tokens that the device works through.
    pub max_job_cost: usize,
    /// Ends when nothing is ready and nothing is held.
    pub exit_when_empty: bool,
    /// Ends after receiving so many jobs.
    pub max_jobs: Option<u64>,
    /// The pod whose deletion cost is kept.
    pub deletion_cost: Option<Pod>,
}

/// What a worker did in its life.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Jobs completed.
    pub completed: u64,
    /// Jobs that failed for good.
    pub failed: u64,
    /// Jobs given back to be tried again.
    pub retried: u64,
    /// Jobs given back uncharged.
    pub released: u64,
    /// Jobs that somebody cancelled while they were held.
    pub cancelled: u64,
    /// Jobs whose lease went to somebody else.
    pub lost: u64,
    /// Jobs still held when the grace period ended; they come back with their leases.
    pub left: u64,
    /// Seconds of the cold start by phase.
    pub cold_start: Vec<(String, f64)>,
}

/// What the stages of all queues share.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Metrics,
    pub(crate) health: Health,
    pub(crate) traces: Traces,
    pub(crate) queues: Vec<QueueState>,
    pub(crate) lanes: Vec<Lane>,
    /// One way to the device; each lane has its own to its model.
    pub(crate) device: DeviceWay,
    /// Cancelled when nothing new may begin: by the stop, or because the device is lost.
    pub(crate) halt: CancellationToken,
    /// Jobs held, of all queues.
    pub(crate) n_held: Arc<Board<usize>>,
    /// Whether the device is wedged.
    pub(crate) wedged: Board<bool>,
    /// How often a batch was taken over by who waits for it, or was done: there is room for another.
    pub(crate) n_taken: Board<u64>,
    /// How often jobs that are held turned out to be cancelled.
    pub(crate) n_cancelled: Board<u64>,
    /// When a worker that drains gives back what is between two turns.
    pub(crate) turns_end: Board<Option<Instant>>,
    /// The jobs that have had a turn and go on.
    pub(crate) under_way: Arc<UnderWay>,
    pub(crate) intake: Intake,
    pub(crate) counts: Counts,
    pub(crate) brokers: BrokersGate,
    pub(crate) cold_start: Mutex<Vec<(String, f64)>>,
    /// Seconds from the start of the process to its first result.
    pub(crate) first_result: OnceLock<f64>,
    broker_loss: Mutex<Option<String>>,
    /// Of jobs that failed, and were said to have.
    pub(crate) failures_said: Mutex<Sparing>,
    dice: Mutex<StdRng>,
}

#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) completed: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) retried: AtomicU64,
    pub(crate) released: AtomicU64,
    pub(crate) cancelled: AtomicU64,
    pub(crate) lost: AtomicU64,
}

impl Shared {
    /// # Panics
    /// Without a queue, with a queue without a model, and when the models are on several devices.
    pub(crate) fn new(parts: Parts, stop: &CancellationToken) -> Self {
        let Parts { queues, settings, clock, seed, metrics, health, traces } = parts;
        let device = queues.first().and_then(|queue| queue.models.first());
        let device = device.expect("a pipeline serves a queue with a model").device.clone();
        let n_held = Arc::<Board<usize>>::default();
        // A whole batch for each queue, so that none waits for the jobs of another to be done.
        let (batch, ahead) =
            (settings.limits.max_items.get(), settings.prefetch.div_ceil(queues.len()));
        let (mut states, mut lanes) = (Vec::new(), Vec::new());
        metrics.show(NO_MODEL);
        for QueueParts { name, model, broker, results, alerts, models } in queues {
            assert!(!models.is_empty(), "queue {name} has no model");
            let first = lanes.len();
            let take_turns = models.iter().all(|model| model.codec.takes_turns());
            let room = if take_turns { batch } else { batch + ahead };
            for ModelParts { name, codec, device: way } in models {
                assert!(way.is_beside(&device), "model {name} is on another device");
                let max_cost = settings.limits.max_cost.get();
                metrics.max_cost.with_label_values(&[&name]).set(max_cost as i64);
                metrics.show(&name);
                lanes.push(Lane::new(states.len(), name, codec, way, max_cost));
            }
            let (leases, lanes) = (Leases::new(broker.lease(), n_held.clone()), first..lanes.len());
            let seams = Seams { broker, results, alerts };
            states.push(QueueState::new(name, model, seams, leases, lanes, room));
        }
        Self {
            halt: stop.child_token(),
            n_held,
            wedged: Board::default(),
            n_taken: Board::default(),
            n_cancelled: Board::default(),
            turns_end: Board::default(),
            under_way: Arc::default(),
            intake: Intake::new(states.len(), settings.max_jobs),
            counts: Counts::default(),
            brokers: BrokersGate::new(health.gate("broker", GateKind::Ready), states.len()),
            cold_start: Mutex::default(),
            first_result: OnceLock::new(),
            broker_loss: Mutex::default(),
            failures_said: Mutex::default(),
            dice: Mutex::new(StdRng::seed_from_u64(seed)),
            queues: states,
            lanes,
            device,
            settings,
            clock,
            metrics,
            health,
            traces,
        }
    }

    /// Whether jobs that have not begun go back to the broker.
    pub(crate) fn gives_back(&self) -> bool {
        self.halt.is_cancelled() || self.wedged.get()
    }

    /// The same of jobs that have: those that are between two turns.
    pub(crate) fn gives_all_back(&self, now: Instant) -> bool {
        self.wedged.get() || self.turns_end.get().is_some_and(|end| end <= now)
    }

    /// The worker drains, in a grace period that ends then.
    pub(crate) fn drain(&self, grace_ends: Instant) {
        let farewell = FAREWELL.min(self.settings.grace / 3);
        self.turns_end.set(Some(grace_ends.checked_sub(farewell).unwrap_or(grace_ends)));
        self.device.close(Door::Draining);
    }

    /// The model of a lane, as a label.
    pub(crate) fn model_name(&self, lane: Option<usize>) -> &str {
        lane.map_or(NO_MODEL, |lane| &self.lanes[lane].name)
    }

    /// A number in `[0, 1)`.
    pub(crate) fn chance(&self) -> f64 {
        lock(&self.dice).random()
    }

    /// The models are ready, after a cold start of these phases.
    pub(crate) fn begin(&self, phases: Vec<(String, f64)>) {
        let gauges = &self.metrics.cold_start;
        for (phase, seconds) in &phases {
            gauges.with_label_values(&[phase]).set(*seconds);
        }
        *lock(&self.cold_start) = phases;
    }

    /// A result is stored: the first one ends what the start of this process is for.
    pub(crate) fn answered(&self) {
        if self.first_result.get().is_some() {
            return;
        }
        let Some(age) = age_of_process() else { return };
        let seconds = age.as_secs_f64();
        if self.first_result.set(seconds).is_ok() {
            let none: [&str; 0] = [];
            self.metrics.first_result.with_label_values(&none).set(seconds);
            info!(seconds, "the first result is stored");
        }
    }

    /// The broker refuses for good: a new process may do better, this one only looks busy.
    pub(crate) fn give_up(&self, error: &ebb_queue::Error) {
        error!(%error, "the broker refuses; this worker ends");
        *lock(&self.broker_loss) = Some(error.to_string());
        self.halt.cancel();
    }

    pub(crate) fn broker_loss(&self) -> Option<String> {
        lock(&self.broker_loss).clone()
    }

    pub(crate) fn device_loss(&self) -> Option<String> {
        match self.device.state().get() {
            State::Lost(why) => Some(why),
            State::Loading | State::Ready(_) => None,
        }
    }

    /// What became of all jobs, of which so many were still held at the end.
    pub(crate) fn summary(&self, n_left: usize) -> Summary {
        use std::sync::atomic::Ordering::Relaxed;
        Summary {
            completed: self.counts.completed.load(Relaxed),
            failed: self.counts.failed.load(Relaxed),
            retried: self.counts.retried.load(Relaxed),
            released: self.counts.released.load(Relaxed),
            cancelled: self.counts.cancelled.load(Relaxed),
            lost: self.counts.lost.load(Relaxed),
            left: n_left as u64,
            cold_start: lock(&self.cold_start).clone(),
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What we keep behind locks is whole whatever its holder was doing.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Works on items with so many threads, in order: each comes back with what was made of it, or with
/// nothing where that panicked, which costs nobody beside it anything. With no thread it is done here,
/// as a simulation needs it.
pub(crate) async fn on_cpu<T: Send + 'static, U: Send + 'static>(
    n_threads: usize,
    mut items: Vec<T>,
    work: impl Fn(&mut T) -> U + Clone + Send + 'static,
) -> Vec<(T, Option<U>)> {
    let work = move |mut item| {
        let made = catch_unwind(AssertUnwindSafe(|| work(&mut item))).ok();
        (item, made)
    };
    if n_threads == 0 {
        return items.into_iter().map(work).collect();
    }
    let share = items.len().div_ceil(n_threads).max(1);
    let mut shares = Vec::new();
    while !items.is_empty() {
        let rest = items.split_off(share.min(items.len()));
        let part = std::mem::replace(&mut items, rest);
        let work = work.clone();
        shares.push(tokio::task::spawn_blocking(move || {
            part.into_iter().map(work).collect::<Vec<_>>()
        }));
    }
    let mut done = Vec::new();
    for share in join_all(shares).await {
        match share {
            Ok(share) => done.extend(share),
            // Only at the end of the process; the jobs come back with their leases.
            Err(error) => error!(%error, "a CPU thread ended early"),
        }
    }
    done
}

/// Sends to the next stage, which ends only after this one unless the process ends.
pub(crate) async fn send<T>(out: &Sender<T>, value: T) {
    if out.send(value).await.is_err() {
        debug!("the next stage has ended");
    }
}

/// Waits until then; for ever where there is no such moment.
pub(crate) async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Sends what goes on together in one go, so that the next stage finds it together: each job that
/// it takes alone costs it, and the broker, about as much as a batch.
pub(crate) async fn send_all<T>(out: &Sender<T>, values: Vec<T>) {
    let mut values = values.into_iter();
    while values.len() > 0 {
        let n_sent = values.len().min(out.max_capacity());
        match out.reserve_many(n_sent).await {
            Ok(room) => room.zip(values.by_ref()).for_each(|(room, value)| room.send(value)),
            Err(_) => return debug!("the next stage has ended"),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn an_item_that_makes_its_thread_panic_comes_back_and_so_do_all_others() {
        let work = |item: &mut u32| {
            assert!(!item.is_multiple_of(5), "on purpose");
            *item * 10
        };
        let wanted = |n| if n % 5 == 0 { (n, None) } else { (n, Some(10 * n)) };
        for n_threads in [0, 1, 3, 64] {
            let done = on_cpu(n_threads, (1..=20).collect(), work).await;
            assert_eq!(done, (1..=20).map(wanted).collect::<Vec<_>>(), "{n_threads} threads");
        }
    }

    #[tokio::test]
    async fn what_is_sent_together_arrives_together_and_in_order() {
        let (out, mut next) = mpsc::channel(2);
        let all: Vec<u32> = (0..5).collect();
        let receive = async {
            let mut groups = Vec::new();
            let mut seen = 0;
            while seen < all.len() {
                let mut group = Vec::new();
                seen += next.recv_many(&mut group, 9).await;
                groups.push(group);
            }
            groups
        };
        let ((), groups) = tokio::join!(send_all(&out, all.clone()), receive);
        assert_eq!(groups, [vec![0, 1], vec![2, 3], vec![4]]);
        drop(next);
        send_all(&out, all).await;
    }
}
