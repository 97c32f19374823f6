//! A worker without command line and probes: the stages of a job's way, joined.
//!
//! receive → decode → batch → infer → store → settle, a task each, with bounded channels between
//! them. Every stage ends when the one before it has ended and its channel has run dry.
use std::sync::Arc;

use ebb_telemetry::GateKind;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::codec::Codec;
use crate::device::State;
use crate::lease::Keeper;
use crate::shared::{Parts, Shared, Summary};
use crate::{infer, receive, settle, status};

/// Why a worker ended though nobody asked it to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model could not be loaded, or the device failed for good.
    #[error("device is lost: {0}")]
    Device(String),
    /// The broker refuses, and will refuse again.
    #[error("broker is lost: {0}")]
    Broker(String),
    /// A bug of ours.
    #[error("a stage ended unexpectedly")]
    Stage(#[source] JoinError),
}

/// A worker that has not begun.
pub struct Pipeline<C: Codec>(Parts<C>);

impl<C: Codec> std::fmt::Debug for Pipeline<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Pipeline").field(&self.0).finish()
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
        let told = Arc::clone(&shared);
        company.spawn(async move { told.keep_deletion_cost().await });
        let worked = tokio::select! { biased;
            () = shared.halt.cancelled() => Ok(()),
            ready = shared.parts.device.ready() => match ready {
                Ok(phases) => {
                    shared.begin(phases);
                    gate.open();
                    // The first receive may wait for a job; readiness need not.
                    if shared.parts.broker.depth().await.is_ok() {
                        shared.broker_answers();
                    }
                    shared.work(&mut company).await
                }
                Err(why) => Err(Error::Device(why)),
            },
        };
        drop(company);
        // Also after an error: a worker that is gone must not be taken for one that starts.
        status::say_goodbye(&shared).await;
        if let Err(error) = shared.parts.broker.close().await {
            warn!(%error, "what was fetched ahead comes back by itself");
        }
        worked?;
        match (shared.device_loss(), shared.broker_loss()) {
            (Some(why), _) => Err(Error::Device(why)),
            (None, Some(why)) => Err(Error::Broker(why)),
            (None, None) => Ok(shared.summary()),
        }
    }
}

impl<C: Codec> Shared<C> {
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
