//! Tells the broker once a second, and whenever the phase changes, what this worker is doing.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use ebb_queue::{BatchTime, JobId, JobResult, Phase, Timestamp, WorkerStatus};
use tracing::debug;

use crate::device::State;
use crate::served::{Place, Served, StoreCall};
use crate::shared::lock;

/// From one report to the next; a worker is taken for gone after several.
const PERIOD: Duration = Duration::from_secs(1);

/// A phase that is shorter than this may go untold.
const EDGE: Duration = Duration::from_millis(50);

/// Reports until it is dropped.
pub(crate) async fn report(served: Served) {
    loop {
        let phase = served.phase();
        served.report(phase).await;
        // Whatever happens first; nothing is lost by dropping either.
        tokio::select! { biased;
            () = tokio::time::sleep(PERIOD) => {}
            () = served.leave(phase) => {}
        }
    }
}

/// Asks a store of results that failed whether it is back, since no job may do so soon: those that did
/// may have been lost to others or given up. Until it is dropped.
///
/// Only what failed shows that: a store that is full, or a replica, can be read all the same. So it
/// is given the last answer that it did not take; where there is none, the next result shows it, and
/// where nothing is held no result may come: then it is enough that it can be read.
pub(crate) async fn look_at_store(served: Served) {
    loop {
        tokio::time::sleep(PERIOD).await;
        let failed = |call| served.shared.brokers.is_closed((served.at, Place::Store(call)));
        if failed(StoreCall::Get) {
            let got = served.results.get(&JobId::fresh()).await;
            served.learn_of_store(StoreCall::Get, got.map(drop));
        }
        if failed(StoreCall::Put) {
            let answer = match served.unstored() {
                Some(result) => served.results.put(&result).await.map(drop),
                None if served.leases.n_held().get() > 0 => continue,
                None => served.results.get(&JobId::fresh()).await.map(drop),
            };
            served.learn_of_store(StoreCall::Put, answer);
        }
    }
}

/// The last report: it holds nothing any more, and will soon be forgotten.
pub(crate) async fn say_goodbye(served: &Served) {
    if tokio::time::timeout(PERIOD, served.report(Phase::Draining)).await.is_err() {
        debug!("the broker did not take the last report");
    }
}

impl Served {
    /// The answer to offer again, unless the store would have forgotten it by now.
    fn unstored(&self) -> Option<JobResult> {
        let (ttl, now) = (self.results.result_ttl(), self.shared.clock.now());
        lock(&self.unstored).clone().filter(|result| is_kept(result, ttl, now))
    }

    fn learn_of_store(&self, call: StoreCall, answer: ebb_queue::Result<()>) {
        match answer {
            Ok(()) => self.store_answers(call),
            Err(error) => {
                debug!(queue = %self.name, call = call.word(), %error, "the store is not back");
            }
        }
    }

    fn phase(&self) -> Phase {
        if self.shared.halt.is_cancelled() {
            return Phase::Draining;
        }
        match self.shared.device.state().get() {
            State::Loading => Phase::Starting,
            State::Ready(_) if self.leases.n_held().get() == 0 => Phase::Idle,
            State::Ready(_) => Phase::Busy,
            State::Lost(_) => Phase::Draining,
        }
    }

    /// Waits until the phase is another one.
    async fn leave(&self, phase: Phase) {
        tokio::time::sleep(EDGE).await;
        let (is_idle, state) = (self.leases.is_idle(), self.shared.device.state());
        tokio::select! { biased;
            () = self.shared.halt.cancelled(), if phase != Phase::Draining => {}
            _ = state.until(|_| self.phase() != phase) => {}
            _ = is_idle.until(|_| self.phase() != phase) => {}
        }
    }

    /// The broker answered: the metrics say so before readiness does.
    pub(crate) fn broker_answers(&self) {
        self.look_at_link();
        self.shared.brokers.open((self.at, Place::Broker));
    }

    /// Shows in metrics and readiness whether the broker is there, also while nothing is asked of it.
    pub(crate) fn look_at_link(&self) {
        let (link, metrics) = (self.broker.link(), &self.shared.metrics);
        let all_up = self.shared.queues.iter().all(|queue| queue.broker.link().is_up());
        let is_up = all_up && self.shared.brokers.all_stores_answer();
        metrics.broker_up.set(is_up.into());
        let n_losses = link.n_losses();
        let n_told = self.n_losses_told.fetch_max(n_losses, Relaxed);
        metrics.broker_losses.inc_by(n_losses.saturating_sub(n_told));
        if !link.is_up() {
            let why = link.last_error().unwrap_or_default();
            let broker = (self.at, Place::Broker);
            self.shared.brokers.close(broker, format!("connection: {why}"));
        }
    }

    /// What batches take, where that is what jobs take: of a turn it would be far too little, and the
    /// scaler goes by what gets done.
    fn batch_time(&self) -> Option<BatchTime> {
        let mut lanes = self.shared.lanes[self.lanes.clone()].iter();
        let is_of_jobs = lanes.all(|lane| !lane.codec.takes_turns());
        self.fit().batch_time().filter(|_| is_of_jobs)
    }

    async fn report(&self, phase: Phase) {
        let settings = &self.shared.settings;
        let in_all = self.shared.n_held.get();
        self.shared.metrics.in_flight.set(i64::try_from(in_all).unwrap_or(i64::MAX));
        let status = WorkerStatus {
            id: settings.worker.clone(),
            pod: settings.pod.clone(),
            phase,
            in_flight: self.leases.n_held().get() as u64,
            slots: settings.limits.max_items.get() as u64,
            completed: self.counts.completed.load(Relaxed),
            failed: self.counts.failed.load(Relaxed),
            batch_time: self.batch_time(),
            cold_start: lock(&self.shared.cold_start).clone(),
            first_result: self.shared.first_result.get().copied(),
            model: self.model.clone(),
            at: self.shared.clock.now(),
        };
        self.look_at_link();
        if let Err(error) = self.broker.report(&status).await {
            self.shared.metrics.broker_errors.with_label_values(&["report"]).inc();
            debug!(queue = %self.name, %error, "the status was not reported");
        }
    }
}

/// Whether a store that keeps results for so long would still have this one.
fn is_kept(result: &JobResult, ttl: Duration, now: Timestamp) -> bool {
    now.duration_since(result.finished_at).as_millis()
        < i128::try_from(ttl.as_millis()).unwrap_or(i128::MAX)
}

#[cfg(test)]
mod tests {
    use ebb_queue::Outcome;

    use super::*;

    #[test]
    fn what_a_store_would_have_forgotten_is_not_offered_again() {
        let hour = Duration::from_secs(3600);
        let result = JobResult {
            id: JobId::fresh(),
            attempt: 1,
            outcome: Outcome::Failed("x".into()),
            finished_at: Timestamp::UNIX_EPOCH,
            queue: None,
        };
        for (age, expected) in [(Duration::ZERO, true), (hour / 2, true), (hour, false)] {
            assert_eq!(is_kept(&result, hour, Timestamp::UNIX_EPOCH + age), expected, "{age:?}");
        }
        assert!(is_kept(&result, hour, Timestamp::UNIX_EPOCH - hour), "clocks differ");
    }
}
