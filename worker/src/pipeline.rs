//! A worker without command line and probes: the stages of a job's way, joined.
//!
//! receive → decode → batch → infer → store → settle, a task each, with bounded channels between
//! them. Every stage ends when the one before it has ended and its channel has run dry.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ebb_queue::{Broker, Clock, ResultStore, RetryPolicy, WorkerId};
use ebb_telemetry::{Gate, GateKind, Health};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::batcher::Limits;
use crate::board::Board;
use crate::codec::Codec;
use crate::device::{Device, State};
use crate::fit::Fit;
use crate::lease::{Keeper, Leases};
use crate::metrics::Metrics;
use crate::{infer, receive, settle, status};

/// What a pipeline is made of.
pub struct Parts<C: Codec> {
    /// Speaks for the model.
    pub codec: C,
    /// Runs the model.
    pub device: Device<C::Input, C::Output>,
    /// Where jobs come from.
    pub broker: Arc<dyn Broker>,
    /// Where results go.
    pub results: Arc<dyn ResultStore>,
    /// Where alerts go, as jobs of their own.
    pub alerts: Arc<dyn Broker>,
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
}

/// How a worker behaves; [`crate::WorkerArgs`] tells what each means.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Who it is.
    pub worker: WorkerId,
    /// The pod or host it runs on.
    pub pod: String,
    /// Device and model, in words.
    pub model: String,
    /// What a batch may be at most.
    pub limits: Limits,
    /// Jobs received ahead of the batch that runs.
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
    /// Ends when nothing is ready and nothing is held.
    pub exit_when_empty: bool,
    /// Ends after receiving so many jobs.
    pub max_jobs: Option<u64>,
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
    /// Jobs given back unbegun.
    pub released: u64,
    /// Jobs whose lease went to somebody else.
    pub lost: u64,
    /// Jobs still held when the grace period ended; they come back with their leases.
    pub left: u64,
    /// Seconds of the cold start by phase.
    pub cold_start: Vec<(String, f64)>,
}

/// Why a worker ended though nobody asked it to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model could not be loaded, or the device failed for good.
    #[error("device is lost: {0}")]
    Device(String),
    /// A bug of ours.
    #[error("a stage ended unexpectedly")]
    Stage(#[source] JoinError),
}

/// A worker that has not begun.
pub struct Pipeline<C: Codec>(Parts<C>);

/// What the stages share.
pub(crate) struct Shared<C: Codec> {
    pub(crate) parts: Parts<C>,
    /// Cancelled when nothing new may begin: by the stop, or because the device is lost.
    pub(crate) halt: CancellationToken,
    pub(crate) leases: Arc<Leases>,
    /// One permit per job that may be held before it has run.
    pub(crate) room: Arc<Semaphore>,
    /// Jobs received and not yet decoded.
    pub(crate) n_decoding: AtomicUsize,
    /// The largest cost of a batch for which the device had the memory.
    pub(crate) memory: AtomicUsize,
    pub(crate) wedged: Board<bool>,
    pub(crate) counts: Counts,
    pub(crate) broker_gate: Gate,
    pub(crate) cold_start: Mutex<Vec<(String, f64)>>,
    fit: Mutex<Fit>,
    dice: Mutex<StdRng>,
}

#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) completed: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) retried: AtomicU64,
    pub(crate) released: AtomicU64,
    pub(crate) lost: AtomicU64,
}

impl<C: Codec> std::fmt::Debug for Pipeline<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Pipeline").field(&self.0).finish()
    }
}

impl<C: Codec> std::fmt::Debug for Parts<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let device = &self.device;
        f.debug_struct("Parts")
            .field("device", device)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl<C: Codec> Pipeline<C> {
    /// Puts the parts together; nothing runs yet.
    #[must_use]
    pub fn new(parts: Parts<C>) -> Self {
        Self(parts)
    }

    /// Works until `stop` is cancelled, then drains: no attempt is spent on what had not begun.
    ///
    /// Dropping the future is a crash: all that is held comes back when its lease ends.
    ///
    /// # Errors
    /// When the device is lost for good; what had not begun has been given back.
    pub async fn run(self, stop: CancellationToken) -> Result<Summary, Error> {
        let gate = self.0.health.gate("model", GateKind::Startup);
        let shared = Arc::new(Shared::new(self.0, &stop));
        // Tasks end with their set: when this future is dropped, too.
        let mut company = JoinSet::new();
        company.spawn(status::report(Arc::clone(&shared)));
        tokio::select! { biased;
            () = shared.halt.cancelled() => {}
            ready = shared.parts.device.ready() => {
                let phases = ready.map_err(Error::Device)?;
                let gauges = &shared.parts.metrics.cold_start;
                for (phase, seconds) in &phases {
                    gauges.with_label_values(&[phase]).set(*seconds);
                }
                *lock(&shared.cold_start) = phases;
                gate.open();
                // The first receive may wait for a job; readiness need not.
                if shared.parts.broker.depth().await.is_ok() {
                    shared.broker_gate.open();
                }
                shared.work(&mut company).await?;
            }
        }
        drop(company);
        status::say_goodbye(&shared).await;
        match shared.device_loss() {
            Some(why) => Err(Error::Device(why)),
            None => Ok(shared.summary()),
        }
    }
}

impl<C: Codec> Shared<C> {
    fn new(parts: Parts<C>, stop: &CancellationToken) -> Self {
        let room = parts.settings.limits.max_items.get() + parts.settings.prefetch;
        Self {
            halt: stop.child_token(),
            leases: Leases::new(parts.broker.lease()),
            room: Arc::new(Semaphore::new(room)),
            n_decoding: AtomicUsize::new(0),
            memory: AtomicUsize::new(usize::MAX),
            wedged: Board::default(),
            counts: Counts::default(),
            broker_gate: parts.health.gate("broker", GateKind::Ready),
            cold_start: Mutex::default(),
            fit: Mutex::default(),
            dice: Mutex::new(StdRng::seed_from_u64(parts.seed)),
            parts,
        }
    }

    /// Runs the stages to their end, or to the end of the grace period.
    async fn work(self: &Arc<Self>, company: &mut JoinSet<()>) -> Result<(), Error> {
        company.spawn(keep_leases(Arc::clone(self)));
        let mut stages = self.stages();
        let state = self.parts.device.state();
        let intake = self.parts.health.gate("intake", GateKind::Ready);
        intake.open();
        let mut draining = false;
        let mut grace_ends = Instant::now();
        loop {
            tokio::select! { biased;
                ended = stages.join_next() => match ended {
                    None => return Ok(()),
                    Some(ended) => ended.map_err(Error::Stage)?,
                },
                Some(ended) = company.join_next() => ended.map_err(Error::Stage)?,
                () = self.halt.cancelled(), if !draining => {
                    info!("draining: nothing new is received");
                    intake.close("draining");
                    draining = true;
                    grace_ends = Instant::now() + self.parts.settings.grace;
                    self.parts.device.drain();
                }
                _ = state.until(|state| matches!(state, State::Lost(_))), if !draining => {
                    self.halt.cancel();
                }
                () = tokio::time::sleep_until(grace_ends), if draining => {
                    let n_held = self.leases.n_held().get();
                    warn!(n_held, "the grace period ended: what is held comes back by its lease");
                    return Ok(());
                }
            }
        }
    }

    fn stages(self: &Arc<Self>) -> JoinSet<()> {
        // More than one chunk on its way gains nothing; finished jobs come in batches.
        let (to_decode, received) = mpsc::channel(1);
        let (to_batch, decoded) = mpsc::channel(1);
        let (to_infer, submitted) = mpsc::channel(2);
        let (finished, to_store) = mpsc::channel(2 * self.room.available_permits());
        let (to_settle, stored) = mpsc::channel(2 * self.room.available_permits());
        let mut stages = JoinSet::new();
        stages.spawn(receive::receive(Arc::clone(self), to_decode, finished.clone()));
        stages.spawn(receive::decode(Arc::clone(self), received, to_batch, finished.clone()));
        stages.spawn(infer::batch(Arc::clone(self), decoded, to_infer, finished.clone()));
        stages.spawn(infer::infer(Arc::clone(self), submitted, finished));
        stages.spawn(settle::store(Arc::clone(self), to_store, to_settle));
        stages.spawn(settle::settle(Arc::clone(self), stored));
        stages
    }

    /// Whether jobs that have not begun go back to the broker.
    pub(crate) fn gives_back(&self) -> bool {
        self.halt.is_cancelled() || self.wedged.get()
    }

    pub(crate) fn fit(&self) -> MutexGuard<'_, Fit> {
        lock(&self.fit)
    }

    /// A number in `[0, 1)`.
    pub(crate) fn chance(&self) -> f64 {
        lock(&self.dice).random()
    }

    /// The broker or the result store failed: counted, logged, and readiness ends.
    pub(crate) fn trouble(&self, call: &'static str, error: &ebb_queue::Error) {
        self.parts.metrics.broker_errors.with_label_values(&[call]).inc();
        self.broker_gate.close(format!("{call}: {error}"));
        warn!(call, %error, kind = ?error.kind(), "the broker failed; trying again");
    }

    fn device_loss(&self) -> Option<String> {
        match self.parts.device.state().get() {
            State::Lost(why) => Some(why),
            State::Loading | State::Ready(_) => None,
        }
    }

    fn summary(&self) -> Summary {
        use std::sync::atomic::Ordering::Relaxed;
        Summary {
            completed: self.counts.completed.load(Relaxed),
            failed: self.counts.failed.load(Relaxed),
            retried: self.counts.retried.load(Relaxed),
            released: self.counts.released.load(Relaxed),
            lost: self.counts.lost.load(Relaxed),
            left: self.leases.n_held().get() as u64,
            cold_start: lock(&self.cold_start).clone(),
        }
    }
}

async fn keep_leases<C: Codec>(shared: Arc<Shared<C>>) {
    let keeper = Keeper {
        leases: &shared.leases,
        broker: &*shared.parts.broker,
        metrics: &shared.parts.metrics,
        load: shared.parts.device.load(),
        stall: shared.parts.settings.stall,
        gate: shared.parts.health.gate("device", GateKind::Live),
        wedged: &shared.wedged,
    };
    keeper.run().await;
    error!("the keeper of the leases ended");
}

/// Pauses between tries while the broker does not answer, longer each time.
#[derive(Debug, Default)]
pub(crate) struct Pauses {
    n_failures: u32,
}

impl Pauses {
    const POLICY: RetryPolicy = RetryPolicy {
        max_attempts: u32::MAX,
        base: Duration::from_millis(100),
        cap: Duration::from_secs(5),
    };

    /// How long to wait before the next try.
    pub(crate) fn next(&mut self, chance: f64) -> Duration {
        self.n_failures = self.n_failures.saturating_add(1);
        Self::POLICY.after(self.n_failures, chance).unwrap_or(Self::POLICY.cap)
    }

    pub(crate) fn reset(&mut self) {
        self.n_failures = 0;
    }

    /// Failures since the last success.
    pub(crate) fn n_failures(&self) -> u32 {
        self.n_failures
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What we keep behind locks is whole whatever its holder was doing.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
