//! Keeps the leases of all jobs that are held, of those that are with the device, or before it, only while
//! it makes progress.
//!
//! Where it is wedged their leases end, and the jobs move on. Who finds that out (`wedge.rs`) waits for
//! no broker. What has run is past that: its answer is there, and only to be stored.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ebb_queue::{Broker, JobId, Receipt, Settled};
use ebb_telemetry::TraceId;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tracing::field::display;
use tracing::{debug, warn};

use crate::board::Board;
use crate::cancel::Hints;
use crate::metrics::Metrics;

/// Receipts per call to the broker.
const CHUNK: usize = 512;

/// The leases of a worker.
#[derive(Debug)]
pub(crate) struct Leases {
    // Ordered, so that a simulation does the same thing twice.
    held: Mutex<BTreeMap<u64, Lease>>,
    n_begun: AtomicU64,
    n_held: Board<usize>,
    /// Whether none is held. Apart, for who has nothing to do with each single one.
    is_idle: Board<bool>,
    /// How many the worker holds in all its queues.
    n_in_all: Arc<Board<usize>>,
    length: Duration,
    hints: Mutex<Hints>,
    /// There may be one among those that were hinted at before they came.
    suspected: Notify,
}

#[derive(Debug)]
struct Lease {
    receipt: Receipt,
    /// What log lines about it name.
    trace: Option<TraceId>,
    state: LeaseState,
    /// Whether its job has run, or never will.
    is_past_device: bool,
    // When it ends, as far as is known here: counted from when its job came, which was a little after it
    // began, or from when its extension was asked for, which was a little before.
    until: Instant,
}

/// The life of a lease here; it ends with its [`Loan`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LeaseState {
    /// Extended in time; leads to all others.
    Held,
    /// With the broker at this moment: an extension would come too late; leads back to `Held`.
    Settling,
    /// Somebody cancelled the job; extended as long as the broker takes it for held.
    Cancelled,
    /// The broker gave the job to somebody else.
    Lost,
}

impl Lease {
    fn is_of(&self, id: &JobId) -> bool {
        self.state == LeaseState::Held && self.receipt.job == *id
    }

    /// Whether the keeper takes care of it.
    fn is_kept(&self) -> bool {
        matches!(self.state, LeaseState::Held | LeaseState::Cancelled)
    }

    fn cancel(&mut self) {
        if self.state == LeaseState::Held {
            self.state = LeaseState::Cancelled;
            debug!(job.id = %self.receipt.job, "job cancelled");
        }
    }

    /// Told once, however many answers say so.
    fn lose(&mut self, metrics: &Metrics) {
        if self.state != LeaseState::Lost {
            self.state = LeaseState::Lost;
            metrics.leases_lost.inc();
            let trace_id = self.trace.map(display);
            warn!(job.id = %self.receipt.job, trace_id, "lease lost");
        }
    }
}

/// One lease; dropped, it is no longer extended.
#[derive(Debug)]
pub(crate) struct Loan {
    key: u64,
    leases: Arc<Leases>,
}

impl Leases {
    /// The leases of one queue, counted together with those of the others.
    pub(crate) fn new(length: Duration, n_in_all: Arc<Board<usize>>) -> Arc<Self> {
        let (held, n_held, is_idle) = (Mutex::default(), Board::default(), Board::new(true));
        let n_begun = AtomicU64::default();
        let (hints, suspected) = (Mutex::default(), Notify::new());
        Arc::new(Self { held, n_begun, n_held, is_idle, n_in_all, length, hints, suspected })
    }

    /// The lease of a job in that trace, which came at `since`. It began before, when the broker handed
    /// the job out: by less than what a call for jobs may take, which may be more than a short lease.
    pub(crate) fn hold(
        self: &Arc<Self>,
        receipt: Receipt,
        since: Instant,
        trace: Option<TraceId>,
    ) -> Loan {
        let (state, until) = (LeaseState::Held, since + self.length);
        let id = receipt.job.clone();
        let lease = Lease { receipt, trace, state, is_past_device: false, until };
        // No key comes twice: an answer about a lease that is gone must not be taken for another's.
        let key = self.n_begun.fetch_add(1, Ordering::Relaxed);
        let mut held = self.lock();
        held.insert(key, lease);
        self.n_in_all.update(|n| *n += 1);
        self.count(&held);
        drop(held);
        // Once it is held: of a hint that comes at this moment one of the two knows.
        if self.hints().suspect(&id) {
            self.suspected.notify_one();
        }
        Loan { key, leases: Arc::clone(self) }
    }

    /// How many are held, as it changes.
    pub(crate) fn n_held(&self) -> &Board<usize> {
        &self.n_held
    }

    /// Whether none is held, as it changes.
    pub(crate) fn is_idle(&self) -> &Board<bool> {
        &self.is_idle
    }

    fn count(&self, held: &BTreeMap<u64, Lease>) {
        self.n_held.set(held.len());
        if self.is_idle.get() != held.is_empty() {
            self.is_idle.set(held.is_empty());
        }
    }

    /// Whether a job of this id is held here, and nobody is known to have cancelled it.
    pub(crate) fn holds(&self, id: &JobId) -> bool {
        self.lock().values().any(|lease| lease.is_of(id))
    }

    /// The jobs that are held.
    pub(crate) fn ids(&self) -> Vec<JobId> {
        self.lock().values().map(|lease| lease.receipt.job.clone()).collect()
    }

    /// Somebody says that a job was cancelled, which may come later.
    pub(crate) fn hint(&self, id: &JobId) {
        self.hints().tell(id);
    }

    /// Waits for a job that came after its hint.
    pub(crate) async fn suspect(&self) -> JobId {
        loop {
            let next = self.hints().next_suspect();
            if let Some(id) = next {
                return id;
            }
            self.suspected.notified().await;
        }
    }

    fn hints(&self) -> MutexGuard<'_, Hints> {
        self.hints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody cancelled the job, as its result says.
    pub(crate) fn cancel(&self, id: &JobId) {
        self.lock().values_mut().filter(|lease| lease.is_of(id)).for_each(Lease::cancel);
    }

    /// Extends leases once; whether jobs were cancelled.
    async fn extend(
        &self,
        broker: &dyn Broker,
        metrics: &Metrics,
        is_due: impl Fn(&Lease) -> bool,
    ) -> bool {
        let mut are_cancelled = false;
        for (keys, receipts) in self.chunks(is_due) {
            let asked = Instant::now();
            let answers = match broker.extend(&receipts).await {
                Ok(answers) => answers,
                Err(error) => {
                    metrics.broker_errors.with_label_values(&["extend"]).inc();
                    warn!(%error, "leases were not extended");
                    continue;
                }
            };
            let mut held = self.lock();
            for (key, answer) in keys.iter().zip(answers) {
                // What was settled in the meantime was not lost.
                let Some(lease) = held.get_mut(key).filter(|lease| lease.is_kept()) else {
                    continue;
                };
                match answer {
                    Settled::Held => lease.until = asked + self.length,
                    Settled::Cancelled => {
                        are_cancelled |= lease.state == LeaseState::Held;
                        lease.cancel();
                    }
                    Settled::Lost => lease.lose(metrics),
                }
            }
        }
        are_cancelled
    }

    fn chunks(&self, is_due: impl Fn(&Lease) -> bool) -> Vec<(Vec<u64>, Vec<Receipt>)> {
        let held = self.lock();
        let held = held.iter().filter(|(_, lease)| lease.is_kept() && is_due(lease));
        let due: Vec<_> = held.map(|(key, lease)| (*key, lease.receipt.clone())).collect();
        due.chunks(CHUNK).map(|chunk| chunk.iter().cloned().unzip()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Lease>> {
        // Every change to the map is one call: it is whole whatever its holder was doing.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Loan {
    /// Whether the broker gave the job to somebody else.
    pub(crate) fn is_lost(&self) -> bool {
        self.leases.lock().get(&self.key).is_none_or(|lease| lease.state == LeaseState::Lost)
    }

    /// Whether somebody cancelled the job, as far as that is known.
    pub(crate) fn is_cancelled(&self) -> bool {
        let held = self.leases.lock();
        held.get(&self.key).is_some_and(|lease| lease.state == LeaseState::Cancelled)
    }

    /// Somebody cancelled the job, as its result says.
    pub(crate) fn cancel(&self) {
        if let Some(lease) = self.leases.lock().get_mut(&self.key) {
            lease.cancel();
        }
    }

    /// Somebody else has the job, as another answer of the broker's says.
    pub(crate) fn lose(&self, metrics: &Metrics) {
        if let Some(lease) = self.leases.lock().get_mut(&self.key) {
            lease.lose(metrics);
        }
    }

    /// Whether the lease may still be held, as far as the clock can tell.
    pub(crate) fn may_live(&self, now: Instant) -> bool {
        let held = self.leases.lock();
        let lease = held.get(&self.key);
        lease.is_some_and(|lease| lease.state != LeaseState::Lost && now < lease.until)
    }

    /// The job has run, or never will: its lease is kept whatever becomes of the device.
    pub(crate) fn leave_device(&self) {
        if let Some(lease) = self.leases.lock().get_mut(&self.key) {
            lease.is_past_device = true;
        }
    }

    /// A settlement is on its way: the keeper leaves the lease alone.
    pub(crate) fn begin_settling(&self) {
        self.change(LeaseState::Held, LeaseState::Settling);
    }

    /// It did not arrive: the keeper takes care again.
    pub(crate) fn end_settling(&self) {
        self.change(LeaseState::Settling, LeaseState::Held);
    }

    fn change(&self, from: LeaseState, to: LeaseState) {
        let mut held = self.leases.lock();
        if let Some(lease) = held.get_mut(&self.key).filter(|lease| lease.state == from) {
            lease.state = to;
        }
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let mut held = self.leases.lock();
        held.remove(&self.key);
        self.leases.n_in_all.update(|n| *n -= 1);
        self.leases.count(&held);
    }
}

/// Who keeps the leases of one queue.
pub(crate) struct Keeper<'a> {
    pub(crate) leases: &'a Leases,
    pub(crate) broker: &'a dyn Broker,
    pub(crate) metrics: &'a Metrics,
    /// Whether the device is wedged.
    pub(crate) wedged: &'a Board<bool>,
    /// How often jobs that are held turned out to be cancelled.
    pub(crate) n_cancelled: &'a Board<u64>,
}

impl Keeper<'_> {
    /// Extends leases until it is dropped.
    pub(crate) async fn run(self) {
        // Early enough for two more tries, however long a call takes.
        let period = (self.leases.length / 3).max(Duration::from_millis(1));
        let mut next = Instant::now() + period;
        loop {
            sleep_until(next).await;
            next = Instant::now() + period;
            let is_wedged = self.wedged.get();
            let is_due = |lease: &Lease| !is_wedged || lease.is_past_device;
            if self.leases.extend(self.broker, self.metrics, is_due).await {
                self.n_cancelled.update(|n| *n += 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ebb_queue::faulty::{Faults, Faulty};
    use ebb_queue::memory::MemoryQueue;
    use ebb_queue::{
        Behavior, Cancelled, Delivery, Job, OpenOptions, Operator, Timestamp, TokioClock,
    };
    use ebb_telemetry::{GateKind, Health};

    use super::*;
    use crate::batcher::Size;
    use crate::device::{Load, Running};
    use crate::wedge::Watch;

    const LEASE: Duration = Duration::from_secs(30);

    /// A batch that begins now.
    fn running() -> Running {
        Running { since: Instant::now(), size: Size::ONE, lane: 0, is_first: false }
    }

    async fn one_delivery() -> (MemoryQueue, Delivery) {
        let clock = Arc::new(TokioClock::starting_at(Timestamp::UNIX_EPOCH));
        let worker = "worker".to_owned();
        let behavior = Behavior { lease: LEASE, ..Behavior::default() };
        let queue =
            MemoryQueue::new(&behavior, OpenOptions { worker, clock, ..OpenOptions::default() });
        queue.publish(vec![Job::new("{}", Timestamp::UNIX_EPOCH)]).await.unwrap();
        let one = std::num::NonZeroUsize::MIN;
        let delivery = queue.receive(one, Duration::ZERO).await.unwrap().pop().unwrap();
        (queue, delivery)
    }

    async fn keep(
        broker: &dyn Broker,
        leases: &Leases,
        load: &Board<Load>,
        health: &Health,
        for_how_long: Duration,
    ) {
        let (metrics, wedged, n_cancelled) =
            (Metrics::default(), Board::default(), Board::default());
        let (metrics, wedged, n_cancelled) = (&metrics, &wedged, &n_cancelled);
        let (stall, gate) = (Duration::from_secs(60), health.gate("device", GateKind::Live));
        let keeper = Keeper { leases, broker, metrics, wedged, n_cancelled };
        let both = async { tokio::join!(Watch { load, stall, gate, wedged }.run(), keeper.run()) };
        tokio::time::timeout(for_how_long, both).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_job_keeps_its_lease() {
        let (queue, delivery) = one_delivery().await;
        let leases = Leases::new(LEASE, Arc::default());
        let loan = leases.hold(delivery.receipt().clone(), Instant::now(), None);
        let load = Board::default();
        keep(&queue, &leases, &load, &Health::new(), 20 * LEASE).await;
        assert!(!loan.is_lost() && loan.may_live(Instant::now()));
        assert_eq!(queue.settle(&[delivery.ack()]).await.unwrap(), [Settled::Held]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wedged_device_loses_its_leases_and_its_liveness() {
        let (queue, delivery) = one_delivery().await;
        let leases = Leases::new(LEASE, Arc::default());
        let loan = leases.hold(delivery.receipt().clone(), Instant::now(), None);
        let batch = running();
        let load = Board::new(Load { running: Some(batch), ..Load::default() });
        let health = Health::new();
        keep(&queue, &leases, &load, &health, Duration::from_secs(59)).await;
        assert!(health.live().is_ok() && loan.may_live(Instant::now()));
        keep(&queue, &leases, &load, &health, Duration::from_secs(60)).await;
        assert!(health.live().unwrap_err().contains("no batch has ended for 60 s"));
        assert!(!loan.may_live(Instant::now()));
        let again = queue.receive(std::num::NonZeroUsize::MIN, Duration::ZERO).await.unwrap();
        assert_eq!(again[0].attempt, 2, "the job moved on");

        // A wedge that ends is seen, and what was lost is known to be lost.
        load.set(Load::default());
        keep(&queue, &leases, &load, &health, Duration::from_secs(20)).await;
        assert!(loan.is_lost());
        assert_eq!(queue.settle(&[delivery.ack()]).await.unwrap(), [Settled::Lost]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_of_a_new_shape_may_take_as_long_as_a_first_start_and_no_longer() {
        let (queue, delivery) = one_delivery().await;
        let leases = Leases::new(LEASE, Arc::default());
        let loan = leases.hold(delivery.receipt().clone(), Instant::now(), None);
        let batch = Running { is_first: true, ..running() };
        let load = Board::new(Load { running: Some(batch), ..Load::default() });
        let health = Health::new();
        keep(&queue, &leases, &load, &health, Duration::from_secs(590)).await;
        assert!(health.live().is_ok() && loan.may_live(Instant::now()));
        keep(&queue, &leases, &load, &health, Duration::from_secs(60)).await;
        let why = health.live().unwrap_err();
        assert!(why.contains("no batch has ended for 600 s"), "{why}");
        assert!(!loan.may_live(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_that_is_past_a_wedged_device_keeps_its_lease() {
        let (queue, delivery) = one_delivery().await;
        let leases = Leases::new(LEASE, Arc::default());
        let loan = leases.hold(delivery.receipt().clone(), Instant::now(), None);
        loan.leave_device();
        let batch = running();
        let load = Board::new(Load { running: Some(batch), ..Load::default() });
        let health = Health::new();
        keep(&queue, &leases, &load, &health, 10 * LEASE).await;
        assert!(health.live().is_err() && loan.may_live(Instant::now()));
        assert_eq!(queue.settle(&[delivery.ack()]).await.unwrap(), [Settled::Held]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_is_found_to_be_wedged_though_the_broker_hangs() {
        let (queue, delivery) = one_delivery().await;
        // Of up to a year each call takes so much that none ends in here.
        let delay = Duration::from_secs(365 * 86_400);
        let hanging = Faulty::new(Arc::new(queue), Faults { delay, ..Faults::NONE }, 7);
        let leases = Leases::new(LEASE, Arc::default());
        let _loan = leases.hold(delivery.receipt().clone(), Instant::now(), None);
        let batch = running();
        let load = Board::new(Load { running: Some(batch), ..Load::default() });
        let health = Health::new();
        keep(&hanging, &leases, &load, &health, Duration::from_secs(65)).await;
        assert!(health.live().unwrap_err().contains("no batch has ended for 60 s"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_takes_long_does_not_put_off_the_next_one() {
        let (queue, delivery) = one_delivery().await;
        let slow = Faulty::new(Arc::new(queue), Faults { delay: LEASE / 2, ..Faults::NONE }, 7);
        let leases = Leases::new(LEASE, Arc::default());
        let loan = leases.hold(delivery.receipt().clone(), Instant::now(), None);
        let look = async {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                assert!(loan.may_live(Instant::now()));
            }
        };
        let (load, health) = (Board::default(), Health::new());
        tokio::select! {
            () = keep(&slow, &leases, &load, &health, 40 * LEASE) => {}
            () = look => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_model_that_is_loaded_again_may_take_as_long_as_a_first_start() {
        let (queue, delivery) = one_delivery().await;
        let leases = Leases::new(LEASE, Arc::default());
        let loan = leases.hold(delivery.receipt().clone(), Instant::now(), None);
        let load = Board::new(Load { loading: Some(Instant::now()), ..Load::default() });
        let health = Health::new();
        keep(&queue, &leases, &load, &health, Duration::from_secs(590)).await;
        assert!(health.live().is_ok() && loan.may_live(Instant::now()));
        keep(&queue, &leases, &load, &health, Duration::from_secs(60)).await;
        let why = health.live().unwrap_err();
        assert!(why.contains("a model is being loaded again and not ready for 600 s"), "{why}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_lost_once_and_is_never_taken_for_a_later_one() {
        let (_queue, delivery) = one_delivery().await;
        let leases = Leases::new(LEASE, Arc::default());
        let (metrics, receipt) = (Metrics::default(), || delivery.receipt().clone());
        let first = leases.hold(receipt(), Instant::now(), None);
        let (of_first, _) = leases.chunks(|_| true).remove(0);
        drop(first);
        // What is answered late about the first.
        let second = leases.hold(receipt(), Instant::now(), None);
        assert!(!of_first.contains(&second.key));
        second.lose(&metrics);
        second.lose(&metrics);
        assert!(second.is_lost());
        assert_eq!(metrics.leases_lost.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_that_was_cancelled_is_neither_held_nor_lost() {
        let (queue, delivery) = one_delivery().await;
        let leases = Leases::new(LEASE, Arc::default());
        let loan = leases.hold(delivery.receipt().clone(), Instant::now(), None);
        let id = delivery.job.id.clone();
        assert!(leases.holds(&id) && !loan.is_cancelled());
        assert_eq!(queue.cancel(&id).await.unwrap(), Cancelled::Running);
        keep(&queue, &leases, &Board::default(), &Health::new(), LEASE).await;
        assert!(loan.is_cancelled() && !loan.is_lost() && !leases.holds(&id));
        assert_eq!(queue.settle(&[delivery.ack()]).await.unwrap(), [Settled::Cancelled]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_that_comes_after_its_hint_is_looked_at() {
        let (_, delivery) = one_delivery().await;
        let leases = Leases::new(LEASE, Arc::default());
        leases.hint(&delivery.job.id);
        let none = tokio::time::timeout(LEASE, leases.suspect()).await;
        assert!(none.is_err(), "it is not here yet");
        let _loan = leases.hold(delivery.receipt().clone(), Instant::now(), None);
        assert_eq!(leases.suspect().await, delivery.job.id);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_is_being_settled_is_left_alone() {
        let (queue, delivery) = one_delivery().await;
        let leases = Leases::new(LEASE, Arc::default());
        let loan = leases.hold(delivery.receipt().clone(), Instant::now(), None);
        loan.begin_settling();
        assert!(leases.chunks(|_| true).is_empty());
        loan.end_settling();
        assert_eq!(leases.chunks(|_| true).len(), 1);
        drop((loan, delivery));
        assert_eq!((leases.chunks(|_| true).len(), leases.n_held().get()), (0, 0));
        drop(queue);
    }
}
