//! The first two stages: take jobs from the broker, and read what they ask.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ebb_queue::{Delivery, Failure, FailureKind};
use tokio::sync::mpsc::{Receiver, Sender};
use tracing::debug;

use crate::batcher::Size;
use crate::codec::{Asked, BadJob};
use crate::device::Cargo;
use crate::held::{End, Held, Item, Output, Turns};
use crate::intake::{Brought, Solitude};
use crate::pauses::{Failed, Pauses};
use crate::served::Served;
use crate::settle::Exit;
use crate::shared::{EXPIRED, on_cpu, send};
use crate::trace::Way;

/// How long one call waits for jobs. A stop waits for the call, since to drop one with jobs on
/// their way would cost them an attempt.
const WAIT: Duration = Duration::from_secs(1);

/// The same for a worker that is to exit when there are none, and where a job of another queue must
/// be alone: it waits for this call.
const SHORT_WAIT: Duration = Duration::from_millis(50);

/// From this attempt on a job is held by itself, see [`Served::isolate`].
const SOLITARY: u32 = 3;

/// What decoding made of a job.
enum Decoded {
    /// It can run, there.
    Ready(usize, (Cargo, Asked, Size)),
    /// It cannot.
    Over(End<Output>),
    /// Nothing is to be begun any more.
    Unbegun,
}

/// What is kept of the jobs that a call brought.
#[derive(Default)]
struct Kept<'a> {
    /// To be decoded.
    jobs: Vec<Held>,
    /// How many came that have to be held by themselves.
    solitary: usize,
    /// One of them, and the right to be alone.
    alone: Option<(Held, Solitude<'a>)>,
}

impl Kept<'_> {
    fn n_jobs(&self) -> usize {
        self.jobs.len() + usize::from(self.alone.is_some())
    }
}

/// Receives jobs, never more than there is room for, until nothing new may begin.
pub(crate) async fn receive(served: Served, out: Sender<Vec<Held>>, exit: Exit) {
    let intake = &served.shared.intake;
    let exit_when_empty = served.shared.settings.exit_when_empty;
    let (mut pauses, mut looks) = (Pauses::default(), Pauses::default());
    // After a solitary job the next is likely one too: receiving one at a time releases nobody.
    let mut at_most = usize::MAX;
    while let Some(room) = served.wait_for_room().await {
        let among_others = intake.among_others().await;
        // It may have waited for long, and the stop lets nobody be alone any more.
        if served.shared.halt.is_cancelled() {
            break;
        }
        let aside = intake.set_aside(room.get().min(at_most));
        let Some(max) = NonZeroUsize::new(aside) else {
            // The calls of other queues may bring less than they may.
            drop(among_others);
            served.rest(SHORT_WAIT).await;
            continue;
        };
        let is_short = exit_when_empty || intake.is_lonely();
        match served.broker.receive(max, if is_short { SHORT_WAIT } else { WAIT }).await {
            Ok(deliveries) => {
                pauses.reset();
                served.broker_answers();
                let is_idle = deliveries.is_empty() && served.shared.n_held.get() == 0;
                let held = served.hold(deliveries);
                let n_came = held.len();
                let kept = served.keep(held, &exit).await;
                intake.brought(Brought { n_came, n_kept: kept.n_jobs(), aside });
                if is_idle && exit_when_empty && served.nothing_is_ready(&mut looks).await {
                    intake.found_empty(served.at);
                }
                let is_vain = n_came == 0;
                let Kept { jobs, solitary, alone } = kept;
                served.decode_later(jobs, &out).await;
                drop(among_others);
                if is_vain && intake.is_scarce() {
                    // Long enough for another queue to take what was set aside in vain.
                    served.rest(2 * SHORT_WAIT).await;
                }
                at_most = if solitary == 0 { usize::MAX } else { 1 };
                if let Some((job, solitude)) = alone {
                    served.isolate(job, &solitude, &out, &exit).await;
                }
            }
            Err(error) => {
                drop(among_others);
                intake.brought(Brought { n_came: 0, n_kept: 0, aside });
                served.trouble("receive", &error);
                let next = pauses.next(Failed::with(error.kind()), served.shared.chance());
                if pauses.are_over() {
                    served.shared.give_up(&error);
                    break;
                }
                served.rest(next).await;
            }
        }
    }
    debug!(queue = %served.name, "nothing more is received");
}

/// Decodes on CPU threads; a job that can never be answered is rejected alone, here.
pub(crate) async fn decode(
    served: Served,
    mut received: Receiver<Vec<Held>>,
    out: Sender<Vec<Item>>,
    exit: Exit,
) {
    while let Some(jobs) = received.recv().await {
        let n_jobs = jobs.len();
        let mut items = Vec::with_capacity(n_jobs);
        let (mut over, mut unbegun) = (Vec::new(), Vec::new());
        let own = served.clone();
        let decode = move |held: &mut Held| own.decode_one(held);
        for (held, decoded) in on_cpu(served.shared.settings.decode_threads, jobs, decode).await {
            match decoded.unwrap_or_else(Decoded::panicked) {
                Decoded::Ready(lane, (input, asked, size)) => {
                    items.push(Item { held, lane, input, asked, size });
                }
                Decoded::Over(end) => over.push(held.finish(end)),
                Decoded::Unbegun => unbegun.push(held),
            }
        }
        exit.give_back(unbegun).await;
        served.n_decoding.fetch_sub(n_jobs, Ordering::Relaxed);
        // Sent empty as well: the batcher may have waited for these.
        send(&out, items).await;
        exit.finish(over).await;
    }
}

impl Decoded {
    fn panicked() -> Self {
        let reason = "body made the decoder panic; this is a bug of ours";
        Self::Over(End::Reject(Failure::new(FailureKind::Model, reason)))
    }
}

impl Served {
    /// How many jobs there is room for; `None` when nothing new may begin.
    async fn wait_for_room(&self) -> Option<NonZeroUsize> {
        let room = async {
            self.shared.wedged.until(|wedged| !wedged).await;
            // Never closed: it lives in here.
            drop(self.room.acquire().await);
        };
        tokio::select! { biased;
            () = self.shared.halt.cancelled() => return None,
            () = self.shared.intake.enough().cancelled() => return None,
            () = room => {}
        }
        // Nobody else takes permits, so there are at least as many when the jobs are here.
        NonZeroUsize::new(self.room.available_permits())
    }

    /// Whether nothing is left, after a call that brought nothing: it may have ended with its wait
    /// while jobs that died waiting still lay before others.
    async fn nothing_is_ready(&self, looks: &mut Pauses) -> bool {
        let depth = tokio::select! { biased;
            () = self.shared.halt.cancelled() => return false,
            depth = self.broker.depth() => depth,
        };
        match depth {
            Ok(depth) => {
                looks.reset();
                depth.ready == 0
            }
            // For who may not look, the call says it; a few refusals may be of a broker that comes back.
            Err(error) => {
                looks.next(Failed::with(error.kind()), self.shared.chance());
                looks.are_over()
            }
        }
    }

    /// Waits so long, unless nothing new may begin.
    async fn rest(&self, pause: Duration) {
        tokio::select! { biased;
            () = self.shared.halt.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }

    fn hold(&self, deliveries: Vec<Delivery>) -> Vec<Held> {
        let hold = |delivery: Delivery| {
            let shared = &self.shared;
            let stages = &shared.metrics.stages;
            let way = Way::begin(&shared.traces, stages, &shared.clock, &delivery);
            let trace = way.trace_id(&delivery.job);
            let loan = self.leases.hold(delivery.receipt().clone(), way.since, trace);
            let room = Arc::clone(&self.room).try_acquire_owned();
            let room = room.expect("no more was received than there was room for");
            let lane = self.lane_for(&delivery.job);
            Held { delivery, lane, loan, way, room, turns: Turns::default() }
        };
        deliveries.into_iter().map(hold).collect()
    }

    /// Keeps what can be begun: of the jobs that have to be held by themselves one at most, and none
    /// while a job of another queue is alone. Gives the others back uncharged.
    async fn keep(&self, jobs: Vec<Held>, exit: &Exit) -> Kept<'_> {
        if self.shared.gives_back() {
            exit.give_back(jobs).await;
            return Kept::default();
        }
        let max_attempts = self.shared.settings.retry.max_attempts;
        let from = SOLITARY.min(max_attempts).max(2);
        let is_solitary = |held: &Held| (from..=max_attempts).contains(&held.delivery.attempt);
        let (alone, jobs): (Vec<_>, Vec<_>) = jobs.into_iter().partition(is_solitary);
        let (solitary, mut surplus) = (alone.len(), alone.into_iter());
        // Two that wait for each other's jobs to be gone would wait for ever.
        let solitude = if solitary > 0 { self.shared.intake.solitude() } else { None };
        let alone = solitude.and_then(|solitude| Some((surplus.next()?, solitude)));
        exit.give_back(surplus).await;
        Kept { jobs, solitary, alone }
    }

    /// Runs one job while no other is held, of any queue.
    ///
    /// A crash of the process charges an attempt to every job it holds. A job that may have crashed
    /// its worker twice must not take others with it to the dead letters, so nobody is near when it
    /// runs for the third time: whoever reaches that many attempts gets the chance to prove itself.
    async fn isolate(
        &self,
        job: Held,
        solitude: &Solitude<'_>,
        out: &Sender<Vec<Held>>,
        exit: &Exit,
    ) {
        let begin = async {
            let alone = solitude.begin().await;
            self.wait_until_held(1).await;
            alone
        };
        let alone = tokio::select! { biased;
            () = self.shared.halt.cancelled() => None,
            // Those whose end it waits for may have none.
            _ = self.shared.wedged.until(|wedged| *wedged) => None,
            alone = begin => Some(alone),
        };
        // The device may have come back since: the job is not alone even so.
        let Some(_alone) = alone else { return exit.give_back([job]).await };
        if self.shared.gives_back() {
            return exit.give_back([job]).await;
        }
        self.decode_later(vec![job], out).await;
        self.wait_until_held(0).await;
    }

    async fn decode_later(&self, jobs: Vec<Held>, out: &Sender<Vec<Held>>) {
        if !jobs.is_empty() {
            self.n_decoding.fetch_add(jobs.len(), Ordering::Relaxed);
            send(out, jobs).await;
        }
    }

    async fn wait_until_held(&self, at_most: usize) {
        tokio::select! { biased;
            () = self.shared.halt.cancelled() => {}
            _ = self.shared.n_held.until(|n_held| *n_held <= at_most) => {}
        }
    }

    fn decode_one(&self, held: &mut Held) -> Decoded {
        if self.shared.gives_back() {
            return Decoded::Unbegun;
        }
        if held.loan.is_cancelled() {
            return Decoded::Over(End::Cancelled);
        }
        match self.read(held) {
            Ok((lane, read)) => {
                held.way.decoded();
                Decoded::Ready(lane, read)
            }
            Err(failure) => Decoded::Over(End::Reject(failure)),
        }
    }

    /// What a job asks, and of which model; or why it can never be answered.
    fn read(&self, held: &Held) -> Result<(usize, (Cargo, Asked, Size)), Failure> {
        let settings = &self.shared.settings;
        let job = &held.delivery.job;
        if settings.retry.exhausted(held.delivery.attempt) {
            let n = settings.retry.max_attempts;
            let reason = format!(
                "all {n} attempts are spent; the last one ended with its worker or its lease"
            );
            return Err(Failure::new(FailureKind::Attempts, reason));
        }
        if let Some(key) = &job.headers.body_ref {
            let reason = format!(
                "body lies in a payload store, as {key}; give this worker the store with --payloads"
            );
            return Err(Failure::new(FailureKind::Model, reason));
        }
        if job.body.len() > settings.max_body {
            let (n, max) = (job.body.len(), settings.max_body);
            let reason = format!("body is {n} bytes; send at most {max}, or raise --max-body");
            return Err(Failure::invalid(reason));
        }
        if job.expired(self.shared.clock.now()) {
            let model = self.shared.model_name(held.lane);
            self.shared.metrics.shed.with_label_values(&[model, EXPIRED]).inc();
            return Err(Failure::expired());
        }
        // Perhaps a slip of who sent it, perhaps of who serves models here: an operator tells.
        let no_model = || Failure::new(FailureKind::Model, self.no_such_model(job));
        let lane = held.lane.ok_or_else(no_model)?;
        let own = &self.shared.lanes[lane];
        let (input, asked, size) = own.codec.decode(job).map_err(BadJob::failure)?;
        let size = size.laid(own.device.layout());
        // It would hold the device for longer than a device may be silent.
        if size.cost() > settings.max_job_cost {
            let (n, max) = (size.cost(), settings.max_job_cost);
            let padding = if n == size.tokens { "" } else { ", padding counted" };
            return Err(Failure::invalid(format!(
                "input costs {n} tokens{padding}; send at most {max} in one job, \
                 or raise --max-job-cost"
            )));
        }
        Ok((lane, (input, asked, size)))
    }
}
