//! A queue that is served, and the models that serve it: what is one per queue, or one per lane.

use std::collections::BTreeMap;
use std::ops::{Deref, Range};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ebb_queue::{Broker, Job, JobResult, ResultStore};
use ebb_telemetry::Gate;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::codec::{AnyCodec, Codec};
use crate::device::{Device, DeviceWay};
use crate::fit::Fit;
use crate::lease::Leases;
use crate::memory::Memory;
use crate::serve::is_called;
use crate::shared::{Counts, Shared, lock};
use crate::sparing::Sparing;

/// No job is refused by what batches took longer ago than this.
const FRESH: Duration = Duration::from_secs(10);

/// A queue to be served.
pub struct QueueParts {
    /// What it is called.
    pub name: String,
    /// Device and models, in words.
    pub model: String,
    /// Where jobs come from.
    pub broker: Arc<dyn Broker>,
    /// Where results go.
    pub results: Arc<dyn ResultStore>,
    /// Where alerts go, as jobs of their own.
    pub alerts: Arc<dyn Broker>,
    /// What answers the jobs; the first those that name no model. All are on one device.
    pub models: Vec<ModelParts>,
}

impl std::fmt::Debug for QueueParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, models, .. } = self;
        f.debug_struct("QueueParts").field("name", name).field("models", models).finish()
    }
}

/// A model, and who speaks for it.
#[derive(Clone)]
pub struct ModelParts {
    pub(crate) name: String,
    pub(crate) codec: Arc<dyn AnyCodec>,
    pub(crate) device: DeviceWay,
}

impl ModelParts {
    /// A model of this name; jobs choose by it, and metrics show it.
    pub fn new<C: Codec>(
        name: impl Into<String>,
        codec: C,
        device: Device<C::Input, C::Output>,
    ) -> Self {
        Self { name: name.into(), codec: Arc::new(codec), device: device.way }
    }
}

impl std::fmt::Debug for ModelParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelParts").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What lies around a queue.
pub(crate) struct Seams {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) results: Arc<dyn ResultStore>,
    pub(crate) alerts: Arc<dyn Broker>,
}

/// A queue that is served.
pub(crate) struct QueueState {
    pub(crate) name: String,
    /// Device and models, in words.
    pub(crate) model: String,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) results: Arc<dyn ResultStore>,
    pub(crate) alerts: Arc<dyn Broker>,
    pub(crate) leases: Arc<Leases>,
    /// One permit per job that may be held before it has run.
    pub(crate) room: Arc<Semaphore>,
    /// Jobs received and not yet decoded.
    pub(crate) n_decoding: AtomicUsize,
    pub(crate) counts: Counts,
    /// Losses of the connection that the metrics count already.
    pub(crate) n_losses_told: AtomicU64,
    /// The lanes of its models.
    pub(crate) lanes: Range<usize>,
    /// Of lines of the log that may come with each job, by their words, those that were said.
    said: Mutex<BTreeMap<&'static str, Sparing>>,
    /// The last answer that was given up because the store did not take it.
    pub(crate) unstored: Mutex<Option<JobResult>>,
    /// The times of its batches, whatever ran them: what its scaler is told.
    fit: Mutex<Fit>,
}

impl QueueState {
    pub(crate) fn new(
        name: String,
        model: String,
        seams: Seams,
        leases: Arc<Leases>,
        lanes: Range<usize>,
        room: usize,
    ) -> Self {
        let Seams { broker, results, alerts } = seams;
        Self {
            name,
            model,
            broker,
            results,
            alerts,
            leases,
            room: Arc::new(Semaphore::new(room)),
            n_decoding: AtomicUsize::new(0),
            counts: Counts::default(),
            n_losses_told: AtomicU64::new(0),
            lanes,
            said: Mutex::default(),
            unstored: Mutex::default(),
            fit: Mutex::default(),
        }
    }

    pub(crate) fn fit(&self) -> MutexGuard<'_, Fit> {
        lock(&self.fit)
    }
}

/// One model as one queue uses it: no batch has jobs of two lanes.
pub(crate) struct Lane {
    /// The queue that it belongs to.
    pub(crate) queue: usize,
    /// What the model is called.
    pub(crate) name: String,
    pub(crate) codec: Arc<dyn AnyCodec>,
    pub(crate) device: DeviceWay,
    /// Batches that are out: their jobs may come back for another turn.
    pub(crate) n_out: AtomicUsize,
    /// Of these, batches with jobs that came back before.
    pub(crate) n_between: AtomicUsize,
    memory: Mutex<Memory>,
    fit: Mutex<Fit>,
    /// When the fit learnt last.
    learnt_at: Mutex<Option<Instant>>,
}

impl Lane {
    pub(crate) fn new(
        queue: usize,
        name: String,
        codec: Arc<dyn AnyCodec>,
        device: DeviceWay,
        max_cost: usize,
    ) -> Self {
        let memory = Mutex::new(Memory::new(max_cost));
        let (fit, learnt_at) = (Mutex::default(), Mutex::default());
        let (n_out, n_between) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { queue, name, codec, device, n_out, n_between, memory, fit, learnt_at }
    }

    pub(crate) fn fit(&self) -> MutexGuard<'_, Fit> {
        lock(&self.fit)
    }

    pub(crate) fn learn(&self, n_jobs: usize, cost: usize, took: Duration) {
        self.fit().learn(n_jobs, cost, took);
        *lock(&self.learnt_at) = Some(Instant::now());
    }

    /// Whether its fit is of now: who sheds by an old one never hears that the device is quicker by
    /// now, so from time to time a batch runs whatever the fit says.
    pub(crate) fn is_fresh(&self) -> bool {
        lock(&self.learnt_at).is_some_and(|at| at.elapsed() < FRESH)
    }

    /// What batches may cost for the memory of the device.
    pub(crate) fn memory(&self) -> MutexGuard<'_, Memory> {
        lock(&self.memory)
    }
}

/// One queue, for the stages that work for it.
#[derive(Clone)]
pub(crate) struct Served {
    pub(crate) shared: Arc<Shared>,
    pub(crate) at: usize,
}

impl Deref for Served {
    type Target = QueueState;

    fn deref(&self) -> &QueueState {
        &self.shared.queues[self.at]
    }
}

impl Served {
    /// The lane of a job: of the model that it names, else of the queue's first.
    pub(crate) fn lane_for(&self, job: &Job) -> Option<usize> {
        let Some(asked) = &job.headers.model else { return Some(self.lanes.start) };
        self.lanes.clone().find(|lane| is_called(asked, &self.shared.lanes[*lane].name))
    }

    /// Why a job without a lane is refused.
    pub(crate) fn no_such_model(&self, job: &Job) -> String {
        let asked = job.headers.model.as_deref().unwrap_or_default();
        let names = self.lanes.clone().map(|lane| self.shared.lanes[lane].name.as_str());
        let names = names.collect::<Vec<_>>().join(", ");
        format!(
            "ebb-model is {asked}; the models of queue {} here are {names}: name one of them, or \
             none for the first",
            self.name
        )
    }

    /// The broker failed: counted, logged, and readiness ends until it answers.
    pub(crate) fn trouble(&self, call: &'static str, error: &ebb_queue::Error) {
        self.shared.brokers.close((self.at, Place::Broker), format!("{call}: {error}"));
        self.shared.metrics.broker_errors.with_label_values(&[call]).inc();
        warn!(
            call, queue = %self.name, %error, kind = %error.kind(),
            "the broker failed; trying again"
        );
    }

    /// The same of the store of results. It may be another server than the broker, so that what the
    /// broker answers says nothing about it.
    pub(crate) fn store_trouble(&self, of: StoreCall, error: &ebb_queue::Error) {
        let call = of.word();
        self.shared.brokers.close((self.at, Place::Store(of)), format!("{call}: {error}"));
        self.look_at_link();
        self.shared.metrics.broker_errors.with_label_values(&[call]).inc();
        warn!(
            call, queue = %self.name, %error, kind = %error.kind(),
            "the store of results failed; trying again"
        );
    }

    /// Keeps an answer that was given up, to be offered again: only as long as the store takes nothing,
    /// else that may be the next time that it fails.
    pub(crate) fn keep_unstored(&self, answer: &JobResult) {
        let mut unstored = lock(&self.unstored);
        if self.shared.brokers.is_closed((self.at, Place::Store(StoreCall::Put))) {
            *unstored = Some(answer.clone());
        }
    }

    /// The store of results answered such a call.
    pub(crate) fn store_answers(&self, call: StoreCall) {
        let place = (self.at, Place::Store(call));
        if self.shared.brokers.is_closed(place) {
            let mut unstored = lock(&self.unstored);
            if call == StoreCall::Put {
                *unstored = None;
            }
            self.shared.brokers.open(place);
            drop(unstored);
            self.look_at_link();
        }
    }

    /// A call failed that says nothing about what this worker is good for.
    pub(crate) fn complain(&self, call: &'static str, error: &ebb_queue::Error) {
        self.shared.metrics.broker_errors.with_label_values(&[call]).inc();
        let (queue, kind) = (&self.name, error.kind());
        match self.pass(call) {
            Some(n_unsaid) => warn!(call, %queue, %error, %kind, n_unsaid, "not taken"),
            None => debug!(call, %queue, %error, %kind, "not taken"),
        }
    }

    /// How many lines with these words were left out of the log before this one; none when this one is
    /// to be left out as well.
    pub(crate) fn pass(&self, words: &'static str) -> Option<u64> {
        lock(&self.said).entry(words).or_default().pass(Instant::now())
    }
}

/// What of a queue has to answer, for a worker to be ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// Where its jobs come from.
    Broker,
    /// Where their results go, as far as it answers such calls: one that can be read may be full.
    Store(StoreCall),
}

/// What is asked of a store of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum StoreCall {
    /// To take a result.
    Put,
    /// To give one.
    Get,
}

impl StoreCall {
    /// For logs and metrics.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
        }
    }
}

/// Readiness as far as the brokers and stores of all queues matter to it: each has to have answered
/// last. A store counts as answering until it fails, since nothing is asked of it before a job ran.
#[derive(Debug)]
pub(crate) struct BrokersGate {
    gate: Gate,
    closed: Mutex<BTreeMap<(usize, Place), String>>,
}

impl BrokersGate {
    /// Closed for each of so many queues.
    pub(crate) fn new(gate: Gate, n_queues: usize) -> Self {
        let closed = (0..n_queues).map(|at| ((at, Place::Broker), "not yet".to_owned()));
        Self { gate, closed: Mutex::new(closed.collect()) }
    }

    pub(crate) fn open(&self, of: (usize, Place)) {
        self.change(|closed| closed.remove(&of));
    }

    pub(crate) fn close(&self, of: (usize, Place), why: String) {
        self.change(|closed| closed.insert(of, why));
    }

    pub(crate) fn is_closed(&self, of: (usize, Place)) -> bool {
        lock(&self.closed).contains_key(&of)
    }

    /// Whether the stores of all queues answered last.
    pub(crate) fn all_stores_answer(&self) -> bool {
        lock(&self.closed).keys().all(|(_, place)| *place == Place::Broker)
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<(usize, Place), String>) -> Option<String>) {
        let mut closed = lock(&self.closed);
        change(&mut closed);
        match closed.values().next() {
            None => self.gate.open(),
            Some(why) => self.gate.close(why.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use ebb_telemetry::{GateKind, Health};

    use super::*;

    #[test]
    fn readiness_needs_the_broker_of_each_queue() {
        let health = Health::new();
        let brokers = BrokersGate::new(health.gate("broker", GateKind::Ready), 2);
        brokers.open((0, Place::Broker));
        assert_eq!(health.ready(), Err("broker: not yet".to_owned()));
        brokers.open((1, Place::Broker));
        assert_eq!(health.ready(), Ok(()));
        brokers.close((0, Place::Broker), "gone".to_owned());
        brokers.close((1, Place::Broker), "gone too".to_owned());
        brokers.open((0, Place::Broker));
        assert_eq!(health.ready(), Err("broker: gone too".to_owned()));
    }

    #[test]
    fn a_broker_that_answers_says_nothing_of_the_store() {
        let health = Health::new();
        let brokers = BrokersGate::new(health.gate("broker", GateKind::Ready), 1);
        brokers.open((0, Place::Broker));
        let [put, get] = [StoreCall::Put, StoreCall::Get].map(|call| (0, Place::Store(call)));
        brokers.close(put, "put: gone".to_owned());
        for other in [(0, Place::Broker), get] {
            brokers.open(other);
            assert_eq!(health.ready(), Err("broker: put: gone".to_owned()));
            assert!(!brokers.all_stores_answer());
        }
        brokers.open(put);
        assert!(health.ready().is_ok() && brokers.all_stores_answer());
    }

    #[test]
    fn a_model_is_called_by_its_name_with_or_without_an_owner() {
        assert!(is_called("minilm", "minilm") && is_called("acme/minilm", "minilm"));
        assert!(!is_called("minilm", "mini") && !is_called("minilm/acme", "minilm"));
    }
}
