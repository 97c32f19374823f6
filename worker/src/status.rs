//! Tells the broker once a second, and whenever the phase changes, what this worker is doing.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use ebb_queue::{Phase, WorkerStatus};
use tracing::debug;

use crate::codec::Codec;
use crate::device::State;
use crate::shared::{Shared, lock};

/// From one report to the next; a worker is taken for gone after several.
const PERIOD: Duration = Duration::from_secs(1);

/// A phase that is shorter than this may go untold.
const EDGE: Duration = Duration::from_millis(50);

/// Reports until it is dropped.
pub(crate) async fn report<C: Codec>(shared: Arc<Shared<C>>) {
    loop {
        let phase = shared.phase();
        shared.report(phase).await;
        // Whatever happens first; nothing is lost by dropping either.
        tokio::select! { biased;
            () = tokio::time::sleep(PERIOD) => {}
            () = shared.leave(phase) => {}
        }
    }
}

/// The last report: it holds nothing any more, and will soon be forgotten.
pub(crate) async fn say_goodbye<C: Codec>(shared: &Shared<C>) {
    if tokio::time::timeout(PERIOD, shared.report(Phase::Draining)).await.is_err() {
        debug!("the broker did not take the last report");
    }
}

impl<C: Codec> Shared<C> {
    fn phase(&self) -> Phase {
        if self.halt.is_cancelled() {
            return Phase::Draining;
        }
        match self.parts.device.state().get() {
            State::Loading => Phase::Starting,
            State::Ready(_) if self.leases.n_held().get() == 0 => Phase::Idle,
            State::Ready(_) => Phase::Busy,
            State::Lost(_) => Phase::Draining,
        }
    }

    /// Waits until the phase is another one.
    async fn leave(&self, phase: Phase) {
        tokio::time::sleep(EDGE).await;
        let (is_idle, state) = (self.leases.is_idle(), self.parts.device.state());
        tokio::select! { biased;
            () = self.halt.cancelled(), if phase != Phase::Draining => {}
            _ = state.until(|_| self.phase() != phase) => {}
            _ = is_idle.until(|_| self.phase() != phase) => {}
        }
    }

    /// The broker answered: the metrics say so before readiness does.
    pub(crate) fn broker_answers(&self) {
        self.look_at_link();
        self.broker_gate.open();
    }

    /// Shows in metrics and readiness whether the broker is there, also while nothing is asked of it.
    fn look_at_link(&self) {
        let (link, metrics) = (self.parts.broker.link(), &self.parts.metrics);
        metrics.broker_up.set(link.is_up().into());
        let n_losses = link.n_losses();
        let n_told = self.n_losses_told.fetch_max(n_losses, Relaxed);
        metrics.broker_losses.inc_by(n_losses.saturating_sub(n_told));
        if !link.is_up() {
            let why = link.last_error().unwrap_or_default();
            self.broker_gate.close(format!("connection: {why}"));
        }
    }

    async fn report(&self, phase: Phase) {
        let settings = &self.parts.settings;
        let in_flight = self.leases.n_held().get();
        self.parts.metrics.in_flight.set(i64::try_from(in_flight).unwrap_or(i64::MAX));
        let status = WorkerStatus {
            id: settings.worker.clone(),
            pod: settings.pod.clone(),
            phase,
            in_flight: in_flight as u64,
            slots: settings.limits.max_items.get() as u64,
            completed: self.counts.completed.load(Relaxed),
            failed: self.counts.failed.load(Relaxed),
            batch_time: self.fit().batch_time(),
            cold_start: lock(&self.cold_start).clone(),
            model: settings.model.clone(),
            at: self.parts.clock.now(),
        };
        self.look_at_link();
        if let Err(error) = self.parts.broker.report(&status).await {
            self.parts.metrics.broker_errors.with_label_values(&["report"]).inc();
            debug!(%error, "the status was not reported");
        }
    }
}
