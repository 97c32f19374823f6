//! A worker without command line and probes: the stages of a job's way, joined.
//!
//! receive → decode → batch → infer → store → settle, a task each, with bounded channels between
//! them; from infer a job may go back to batch, for another turn of its model. Every stage ends when
//! the one before it has ended and its channel has run dry.

use std::sync::Arc;
use std::time::Duration;

use ebb_telemetry::GateKind;
use futures::future::{BoxFuture, join_all};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::device::{Door, State};
use crate::infer::Exits;
use crate::lease::Keeper;
use crate::served::Served;
use crate::settle::Exit;
use crate::shared::{Parts, Shared, Summary, sleep_until};
use crate::wedge::Watch;
use crate::{cancel, infer, receive, retention, settle, status, stream};

/// How much longer than its grace period a worker waits for its brokers to hear that it ends, all of them
/// at the same time. It holds the step that a purge is at, half of it at most, and then what
/// `Backlog::close` takes; the last report is made meanwhile.
const FAREWELL: Duration = Duration::from_secs(2);

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

impl Error {
    /// The exit code of a process that ends by this cause, where it is an error of a worker or of its
    /// broker.
    #[must_use]
    pub fn exit_code(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
        ebb_queue::Error::exit_code(cause).or_else(|| cause.is::<Self>().then_some(1))
    }
}

/// A worker that has not begun.
#[derive(Debug)]
pub struct Pipeline(Parts);

impl Pipeline {
    /// Puts the parts together; nothing runs yet.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(parts)
    }

    /// Works until `stop` is cancelled, then drains: no attempt is spent on what had not begun.
    ///
    /// Dropping the future is a crash: all that is held comes back when its lease ends.
    ///
    /// # Errors
    /// When the device is lost for good; what had not begun has been given back.
    ///
    /// # Panics
    /// Without a queue, with a queue without a model, and when the models are on several devices.
    // Boxed for what `crate::run` is boxed for.
    #[inline(never)]
    pub fn run(self, stop: CancellationToken) -> BoxFuture<'static, Result<Summary, Error>> {
        Box::pin(self.drive(stop))
    }

    async fn drive(self, stop: CancellationToken) -> Result<Summary, Error> {
        let gate = self.0.health.gate("model", GateKind::Startup);
        let shared = Arc::new(Shared::new(self.0, &stop));
        let queues = (0..shared.queues.len()).map(|at| Served { shared: Arc::clone(&shared), at });
        let queues: Vec<Served> = queues.collect();
        // Tasks end with their set: when this future is dropped, too.
        let mut company = JoinSet::new();
        let (mut cleaners, stop_cleaning) = (JoinSet::new(), shared.halt.child_token());
        for served in &queues {
            company.spawn(status::report(served.clone()));
            company.spawn(status::look_at_store(served.clone()));
            cleaners.spawn(retention::keep(served.clone(), stop_cleaning.clone()));
        }
        let told = Arc::clone(&shared);
        company.spawn(async move { told.keep_deletion_cost().await });
        let worked = tokio::select! { biased;
            () = shared.halt.cancelled() => Ok((0, Instant::now() + shared.settings.grace)),
            ready = shared.device.ready() => match ready {
                Ok(phases) => {
                    shared.begin(phases);
                    gate.open();
                    work(&shared, &queues, &mut company).await
                }
                Err(why) => Err(Error::Device(why)),
            },
        };
        drop(company);
        let now = Instant::now();
        let end = worked.as_ref().map_or(now, |(_, grace_ends)| now.max(*grace_ends)) + FAREWELL;
        stop_cleaning.cancel();
        end_by(cleaners, end - FAREWELL / 2).await;
        // Also after an error: a worker that is gone must not be taken for one that starts.
        join_all(queues.iter().map(|served| served.leave_queue(end))).await;
        let (n_left, _) = worked?;
        match (shared.device_loss(), shared.broker_loss()) {
            (Some(why), _) => Err(Error::Device(why)),
            (None, Some(why)) => Err(Error::Broker(why)),
            (None, None) => Ok(shared.summary(n_left)),
        }
    }
}

impl Served {
    /// The first receive may wait for a job; readiness need not. Nothing else waits for this.
    async fn try_broker(self) {
        if self.broker.depth().await.is_ok() {
            self.broker_answers();
        }
    }

    async fn leave_queue(&self, end: Instant) {
        // A broker that hangs must not keep the process.
        let left = async { tokio::join!(status::say_goodbye(self), self.broker.close()) };
        match timeout_at(end, left).await {
            Ok(((), Ok(()))) => {}
            Ok(((), Err(error))) => {
                warn!(queue = %self.name, %error, "what was fetched ahead comes back by itself");
            }
            Err(_) => {
                warn!(queue = %self.name, "the broker hangs; what is held comes back by its lease");
            }
        }
    }
}

/// Lets what deletes old dead letters end the step that it is at.
async fn end_by(mut cleaners: JoinSet<()>, end: Instant) {
    let ended = async { while cleaners.join_next().await.is_some() {} };
    if timeout_at(end, ended).await.is_err() {
        warn!("a step that deletes old dead letters was cut off; some of their bodies may stay");
    }
}

/// Runs the stages to their end, or to the end of the grace period; how many jobs are still held,
/// and when that period ends.
async fn work(
    shared: &Arc<Shared>,
    queues: &[Served],
    company: &mut JoinSet<()>,
) -> Result<(usize, Instant), Error> {
    for served in queues {
        company.spawn(served.clone().try_broker());
        company.spawn(keep_leases(served.clone()));
        company.spawn(cancel::heed(served.clone()));
    }
    company.spawn(watch_device(Arc::clone(shared)));
    company.spawn(heed_wedges(Arc::clone(shared)));
    company.spawn(end_turns(Arc::clone(shared)));
    let mut stages = stages(shared, queues);
    let state = shared.device.state();
    let intake = shared.health.gate("intake", GateKind::Ready);
    intake.open();
    let mut draining = false;
    let mut grace_ends = Instant::now();
    loop {
        tokio::select! { biased;
            ended = stages.join_next() => match ended {
                None => {
                    let now = Instant::now();
                    let grace_ends = if draining { grace_ends } else { now + shared.settings.grace };
                    return Ok((shared.n_held.get(), grace_ends));
                }
                Some(ended) => ended.map_err(Error::Stage)?,
            },
            Some(ended) = company.join_next() => ended.map_err(Error::Stage)?,
            () = shared.halt.cancelled(), if !draining => {
                info!("draining: nothing new is received");
                intake.close("draining");
                draining = true;
                grace_ends = Instant::now() + shared.settings.grace;
                shared.drain(grace_ends);
            }
            _ = state.until(|state| matches!(state, State::Lost(_))), if !draining => {
                shared.halt.cancel();
            }
            () = tokio::time::sleep_until(grace_ends), if draining => {
                let n_held = shared.n_held.get();
                warn!(n_held, "the grace period ended: what is held comes back by its lease");
                return Ok((n_held, grace_ends));
            }
        }
    }
}

/// Each queue has stages of its own, but for the batcher: the models share a device.
fn stages(shared: &Arc<Shared>, queues: &[Served]) -> JoinSet<()> {
    let mut stages = JoinSet::new();
    // More than one chunk on its way gains nothing; finished jobs come in batches.
    let (to_batch, decoded) = mpsc::channel(1);
    let mut exits = Exits { lanes: Vec::new(), queues: Vec::new() };
    let mut submitted = Vec::new();
    for served in queues {
        let (to_decode, received) = mpsc::channel(1);
        let (exit, finished, concluded, begun) = Exit::new(served.room.available_permits());
        stages.spawn(receive::receive(served.clone(), to_decode, exit.clone()));
        let to_batch = to_batch.clone();
        stages.spawn(receive::decode(served.clone(), received, to_batch, exit.clone()));
        for lane in served.lanes.clone() {
            let (to_infer, bound) = mpsc::channel(2);
            exits.lanes.push(to_infer);
            submitted.push((lane, bound, exit.clone()));
        }
        let to_settle = exit.clone().into_settling();
        exits.queues.push(exit);
        stages.spawn(settle::store(served.clone(), finished, to_settle));
        stages.spawn(settle::settle(served.clone(), concluded));
        stages.spawn(stream::stream(served.clone(), begun));
    }
    // What has another turn before it. The batcher waits for none of those who send here.
    let (again, turned) = mpsc::channel(1);
    stages.spawn(infer::batch(Arc::clone(shared), decoded, turned, exits));
    for (lane, bound, exit) in submitted {
        let out = infer::Out { exit, again: again.clone() };
        stages.spawn(infer::infer(Arc::clone(shared), lane, bound, out));
    }
    stages
}

async fn watch_device(shared: Arc<Shared>) {
    let gate = shared.health.gate("device", GateKind::Live);
    let (load, stall, wedged) = (shared.device.load(), shared.settings.stall, &shared.wedged);
    Watch { load, stall, gate, wedged }.run().await;
    error!("nobody watches the device any more");
}

/// A wedged device keeps nothing that it has not begun.
async fn heed_wedges(shared: Arc<Shared>) {
    loop {
        shared.wedged.until(|wedged| *wedged).await;
        shared.device.close(Door::Wedged);
        shared.wedged.until(|wedged| !wedged).await;
        shared.device.admit();
    }
}

/// When turns end, a batch of them that lies before the device goes back too: it may lie there for long.
async fn end_turns(shared: Arc<Shared>) {
    sleep_until(shared.turns_end.until(Option::is_some).await).await;
    shared.device.close(Door::Leaving);
}

async fn keep_leases(served: Served) {
    let keeper = Keeper {
        leases: &served.leases,
        broker: &*served.broker,
        metrics: &served.shared.metrics,
        wedged: &served.shared.wedged,
        n_cancelled: &served.shared.n_cancelled,
    };
    keeper.run().await;
    error!(queue = %served.name, "the keeper of the leases ended");
}
