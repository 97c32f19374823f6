//! Takes jobs from the intake and passes each on to the queue that it is for, in one loop.
//!
//! The order is what keeps the promises: write down where the job goes, publish it there under its
//! own id, then acknowledge it here. A crash in between repeats the steps, and each has the effect
//! of one wherever the broker knows ids that it has seen.

mod calls;
mod ends;
mod lane;
mod queues;
mod window;

use std::collections::BTreeMap;
use std::mem::take;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use ebb_queue::{Clock, Delivery, Error, ErrorKind, Failure, Job, Queue, Settlement};
use ebb_telemetry::Gate;
use futures::future::{BoxFuture, join_all};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::leases::Leases;
use crate::metrics::Metrics;
use crate::place::{Place, place};
use crate::weights::{By, Weights};
use calls::Sent;
use lane::{Failures, Held, Lane};
use window::Window;

/// How long one call waits for jobs. A stop waits for the call, since to drop one with jobs on
/// their way would cost them an attempt; so it is no longer than a quarter of the grace period.
const WAIT: Duration = Duration::from_secs(1);

/// The same while jobs are held that wait for room elsewhere.
const SHORT_WAIT: Duration = Duration::from_millis(20);

/// Why a job whose deadline has passed goes nowhere; the brokers use the same word.
const EXPIRED: &str = "expired";

/// What to do with the jobs of a queue that is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum WhenFull {
    /// They wait here, and at the intake behind them, so that the shares stay as they are.
    #[default]
    Wait,
    /// New ones go to the others, by weight, until there is room; those already chosen wait.
    Other,
}

/// Opens a queue of the broker by its name.
pub(crate) type Open =
    Arc<dyn Fn(String) -> BoxFuture<'static, ebb_queue::Result<Queue>> + Send + Sync>;

/// What a split is made of.
pub(crate) struct Parts {
    /// Where jobs come from, opened with [`ebb_queue::Moved::Show`].
    pub(crate) intake: Queue,
    /// Where answers are, when not with the jobs.
    pub(crate) results: Option<Queue>,
    /// Whether the intake keeps records of where its jobs went.
    pub(crate) keeps_records: bool,
    /// Opens the queues that jobs go to.
    pub(crate) open: Open,
    /// The weights, as they change.
    pub(crate) weights: watch::Receiver<Arc<Weights>>,
    /// What jobs are told apart by.
    pub(crate) by: By,
    /// What to do with the jobs of a queue that is full.
    pub(crate) when_full: WhenFull,
    /// Jobs that are held at most.
    pub(crate) window: NonZeroUsize,
    /// Bytes of their bodies at most.
    pub(crate) body_memory: NonZeroUsize,
    /// From the stop to the end at most.
    pub(crate) grace: Duration,
    /// What it takes the time from.
    pub(crate) clock: Arc<dyn Clock>,
    /// What it counts.
    pub(crate) metrics: Metrics,
    /// Whether the broker answers.
    pub(crate) gate: Gate,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { by, when_full, window, .. } = self;
        let mut shown = f.debug_struct("Parts");
        shown.field("by", by).field("when_full", when_full).field("window", window);
        shown.finish_non_exhaustive()
    }
}

/// A split that runs.
pub(crate) struct Splitter {
    parts: Parts,
    leases: Leases,
    weights: Arc<Weights>,
    /// Those that came last, while a queue of theirs cannot be opened.
    refused: Option<Arc<Weights>>,
    /// Jobs of which it is being found where they go.
    arrived: Vec<Delivery>,
    lanes: BTreeMap<String, Lane>,
    /// What is on its way to them.
    calls: JoinSet<Sent>,
    window: Window,
    /// Settlements that the intake has not taken yet.
    settlements: Vec<Settlement>,
    /// Of receiving there, and of settling.
    failures: Failures,
    /// Of publishing while the broker does not answer otherwise either.
    away: Failures,
    /// Of writing down at the intake what becomes of jobs.
    records: Failures,
}

impl Splitter {
    /// Puts the parts together, with the queues of the weights, which are open already.
    pub(crate) fn new(parts: Parts, leases: Leases, queues: Vec<(String, Queue)>) -> Self {
        let weights = Arc::clone(&parts.weights.borrow());
        parts.metrics.show(None, &weights);
        Self {
            weights,
            refused: None,
            leases,
            arrived: Vec::new(),
            lanes: queues.into_iter().map(|(name, queue)| (name, Lane::new(queue))).collect(),
            calls: JoinSet::new(),
            window: Window::new(parts.window, parts.body_memory),
            settlements: Vec::new(),
            failures: Failures::default(),
            away: Failures::default(),
            records: Failures::default(),
            parts,
        }
    }

    /// Passes jobs on until the stop, then gives back what has not gone on.
    ///
    /// A call that hangs at the stop has half of the grace period; what it was about is given back, or
    /// comes back by its lease, and the other half is for the rest.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let grace = self.parts.grace;
        let mut stopped = None;
        tokio::select! {
            () = async {
                while !stop.is_cancelled() {
                    self.round(&stop).await;
                }
                self.hear_out().await;
            } => {}
            () = async {
                stop.cancelled().await;
                let at = *stopped.insert(Instant::now());
                sleep_until(at + grace / 2).await;
            } => warn!("a broker hangs; what was on its way there comes again"),
        }
        self.drain(stopped.unwrap_or_else(Instant::now) + grace).await;
    }

    async fn round(&mut self, stop: &CancellationToken) {
        self.take_new_weights().await;
        let received = self.receive(stop).await;
        self.route(received).await;
        self.publish().await;
        self.give_back_surplus();
        self.settle().await;
        self.close_idle().await;
        self.parts.metrics.held.set(i64::try_from(self.leases.n_held()).unwrap_or(i64::MAX));
    }

    async fn receive(&mut self, stop: &CancellationToken) -> Vec<Delivery> {
        let n_held = self.leases.n_held();
        let room = self.window.room(n_held, self.leases.n_bytes());
        let wait = WAIT.min(self.parts.grace / 4).max(SHORT_WAIT);
        let wait = if n_held > 0 { SHORT_WAIT } else { wait };
        let all = [&self.failures, &self.away, &self.records];
        let may_try = all.into_iter().all(Failures::may_try);
        let (Some(room), true) = (room, may_try) else {
            tokio::select! { biased;
                () = stop.cancelled() => {}
                () = tokio::time::sleep(SHORT_WAIT) => {}
            }
            return Vec::new();
        };
        match self.parts.intake.receive(room, wait).await {
            Ok(deliveries) => {
                self.failures.reset();
                self.answered();
                deliveries.iter().for_each(|delivery| self.leases.hold(delivery));
                self.window.saw(deliveries.iter().map(|delivery| delivery.job.body.len()));
                deliveries
            }
            Err(error) => {
                self.trouble("receive", &error);
                Vec::new()
            }
        }
    }

    /// Finds for each job where it goes.
    async fn route(&mut self, deliveries: Vec<Delivery>) {
        let now = self.parts.clock.now();
        let (late, timely): (Vec<_>, Vec<_>) =
            deliveries.into_iter().partition(|delivery| delivery.job.expired(now));
        // Not lost with this round when a stop cuts it off.
        self.arrived = timely;
        for delivery in late {
            self.bury(delivery, Failure::expired()).await;
        }
        let choices: Vec<(String, bool)> =
            self.arrived.iter().map(|delivery| self.choose(&delivery.job)).collect();
        let (intake, keeps_records) = (&self.parts.intake, self.parts.keeps_records);
        let places = self.arrived.iter().zip(&choices).map(|(delivery, (name, _))| async move {
            if !keeps_records {
                return Ok(Place::Queue { name: name.clone(), before: false });
            }
            place(intake, &delivery.job, name, now).await
        });
        let places = join_all(places).await;
        let timely = take(&mut self.arrived);
        if places.iter().any(Result::is_ok) {
            self.records.reset();
        }
        let mut n_astray: BTreeMap<String, usize> = BTreeMap::new();
        for ((delivery, (chosen, spilled)), place) in timely.into_iter().zip(choices).zip(places) {
            match place {
                Ok(Place::Queue { name, before }) => {
                    if before && self.weights.share(&name) <= 0.0 {
                        *n_astray.entry(name.clone()).or_default() += 1;
                    }
                    let held = Held { spilled: spilled && name == chosen, before, delivery };
                    let lane = self.lanes.entry(name).or_default();
                    lane.touch();
                    lane.waiting.push_back(held);
                }
                Ok(Place::Answered) => self.settlements.push(delivery.ack()),
                Err(error) => self.give_back(delivery, &error),
            }
        }
        for (queue, n_jobs) in n_astray {
            warn!(queue, n_jobs, "jobs go where they went before, to a queue that has no weight");
        }
    }

    /// The queue of a job by its key, and whether that is another because its own is full.
    fn choose(&self, job: &Job) -> (String, bool) {
        let key = self.parts.by.of(job);
        let own = self.weights.choose(key);
        let has_room = |name: &str| self.lanes.get(name).is_none_or(|lane| !lane.is_full);
        if self.parts.when_full == WhenFull::Wait || has_room(own) {
            return (own.to_owned(), false);
        }
        // Where all are full the job waits for its own.
        let other = self.weights.choose_among(key, has_room);
        (other.unwrap_or(own).to_owned(), other.is_some())
    }
}

/// That nothing was said for too long.
fn hangs() -> Error {
    Error::new(ErrorKind::Unavailable, "no answer in time")
}

#[cfg(test)]
mod tests;
