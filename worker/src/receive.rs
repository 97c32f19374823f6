//! The first two stages: take jobs from the broker, and read what they ask.

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ebb_queue::Delivery;
use tokio::sync::mpsc::{Receiver, Sender};
use tracing::debug;

use crate::codec::Codec;
use crate::held::{End, Finished, Held, Item};
use crate::shared::{EXPIRED, PATIENCE, Parts, Pauses, Shared, heals, on_cpu, send, send_all};
use crate::trace::Way;

/// How long one call waits for jobs. A stop waits for the call, since to drop one with jobs on
/// their way would cost them an attempt.
const WAIT: Duration = Duration::from_secs(1);

/// The same for a worker that is to exit when there are none.
const SHORT_WAIT: Duration = Duration::from_millis(50);

/// From this attempt on a job is held by itself, see [`Shared::isolate`].
const SOLITARY: u32 = 3;

/// What decoding made of a job.
enum Decoded<I, O> {
    /// It can run.
    Ready(Item<I>),
    /// It cannot.
    Over(Finished<O>),
}

/// Receives jobs, never more than there is room for, until nothing new may begin.
pub(crate) async fn receive<C: Codec>(
    shared: Arc<Shared<C>>,
    out: Sender<Vec<Held>>,
    finished: Sender<Finished<C::Output>>,
) {
    let settings = &shared.parts.settings;
    let wait = if settings.exit_when_empty { SHORT_WAIT } else { WAIT };
    let mut pauses = Pauses::default();
    let mut n_left = settings.max_jobs.unwrap_or(u64::MAX);
    // After a solitary job the next is likely one too: receiving one at a time releases nobody.
    let mut at_most = usize::MAX;
    while let Some(room) = shared.wait_for_room().await {
        let max = room.get().min(at_most).min(usize::try_from(n_left).unwrap_or(usize::MAX));
        let Some(max) = NonZeroUsize::new(max) else { break };
        match shared.parts.broker.receive(max, wait).await {
            Ok(deliveries) => {
                pauses.reset();
                shared.broker_answers();
                let is_idle = deliveries.is_empty() && shared.leases.n_held().get() == 0;
                if is_idle && settings.exit_when_empty {
                    break;
                }
                let held = shared.hold(deliveries);
                n_left -= held.len() as u64;
                let solitary = shared.pass_on(held, &out, &finished).await;
                at_most = if solitary { 1 } else { usize::MAX };
            }
            Err(error) => {
                shared.trouble("receive", &error);
                let next = pauses.next(shared.chance());
                if !heals(&error) && pauses.n_failures() >= PATIENCE {
                    shared.give_up(&error);
                    break;
                }
                let pause = tokio::time::sleep(next);
                tokio::select! { biased;
                    () = shared.halt.cancelled() => break,
                    () = pause => {}
                }
            }
        }
    }
    debug!("nothing more is received");
}

/// Decodes on CPU threads; a job that can never be answered is rejected alone, here.
pub(crate) async fn decode<C: Codec>(
    shared: Arc<Shared<C>>,
    mut received: Receiver<Vec<Held>>,
    out: Sender<Vec<Item<C::Input>>>,
    finished: Sender<Finished<C::Output>>,
) {
    while let Some(jobs) = received.recv().await {
        let n_jobs = jobs.len();
        let (mut items, mut over) = (Vec::with_capacity(n_jobs), Vec::new());
        for decoded in on_cpu(&shared, jobs, Shared::decode_one).await {
            match decoded {
                Decoded::Ready(item) => items.push(item),
                Decoded::Over(finish) => over.push(finish),
            }
        }
        send_all(&finished, over).await;
        shared.n_decoding.fetch_sub(n_jobs, Ordering::Relaxed);
        // Sent empty as well: the batcher may have waited for these.
        send(&out, items).await;
    }
}

impl<C: Codec> Shared<C> {
    /// How many jobs there is room for; `None` when nothing new may begin.
    async fn wait_for_room(&self) -> Option<NonZeroUsize> {
        let room = async {
            self.wedged.until(|wedged| !wedged).await;
            // Never closed: it lives in here.
            drop(self.room.acquire().await);
        };
        tokio::select! { biased;
            () = self.halt.cancelled() => return None,
            () = room => {}
        }
        // Nobody else takes permits, so there are at least as many when the jobs are here.
        NonZeroUsize::new(self.room.available_permits())
    }

    fn hold(&self, deliveries: Vec<Delivery>) -> Vec<Held> {
        let hold = |delivery: Delivery| {
            let stages = &self.parts.metrics.stages;
            let way = Way::begin(&self.parts.traces, stages, &self.parts.clock, &delivery);
            let loan = self.leases.hold(delivery.receipt().clone(), way.since);
            let room = Arc::clone(&self.room).try_acquire_owned();
            let room = room.expect("no more was received than there was room for");
            Held { delivery, loan, way, room }
        };
        deliveries.into_iter().map(hold).collect()
    }

    /// Passes jobs on to be decoded; true if one of them had to be held by itself.
    async fn pass_on(
        &self,
        jobs: Vec<Held>,
        out: &Sender<Vec<Held>>,
        finished: &Sender<Finished<C::Output>>,
    ) -> bool {
        if self.gives_back() {
            self.release(jobs, finished).await;
            return false;
        }
        let max_attempts = self.parts.settings.retry.max_attempts;
        let from = SOLITARY.min(max_attempts).max(2);
        let is_solitary = |held: &Held| (from..=max_attempts).contains(&held.delivery.attempt);
        let (solitary, jobs): (Vec<_>, Vec<_>) = jobs.into_iter().partition(is_solitary);
        self.decode_later(jobs, out).await;
        if solitary.is_empty() {
            return false;
        }
        self.isolate(solitary, out, finished).await;
        true
    }

    /// Runs one job while no other is held, and gives the others back uncharged.
    ///
    /// A crash of the process charges an attempt to every job it holds. A job that may have crashed
    /// its worker twice must not take others with it to the dead letters, so nobody is near when it
    /// runs for the third time: whoever reaches that many attempts gets the chance to prove itself.
    async fn isolate(
        &self,
        solitary: Vec<Held>,
        out: &Sender<Vec<Held>>,
        finished: &Sender<Finished<C::Output>>,
    ) {
        let mut solitary = solitary.into_iter();
        let first = solitary.next().into_iter().collect();
        self.release(solitary.collect(), finished).await;
        self.wait_until_held(1).await;
        if self.gives_back() {
            return self.release(first, finished).await;
        }
        self.decode_later(first, out).await;
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
            () = self.halt.cancelled() => {}
            _ = self.leases.n_held().until(|n_held| *n_held <= at_most) => {}
        }
    }

    /// Gives jobs back that were not begun.
    pub(crate) async fn release(&self, jobs: Vec<Held>, finished: &Sender<Finished<C::Output>>) {
        let jobs = jobs.into_iter().map(|held| held.finish(End::Release));
        send_all(finished, jobs.collect()).await;
    }

    fn decode_one(&self, mut held: Held) -> Decoded<C::Input, C::Output> {
        if self.gives_back() {
            return Decoded::Over(held.finish(End::Release));
        }
        let Parts { codec, settings, clock, .. } = &self.parts;
        let job = &held.delivery.job;
        let refusal = if settings.retry.exhausted(held.delivery.attempt) {
            let n = settings.retry.max_attempts;
            format!("all {n} attempts are spent; the last one ended with its worker or its lease")
        } else if let Some(key) = &job.headers.body_ref {
            format!(
                "body lies in a payload store, as {key}; give this worker the store with --payloads"
            )
        } else if job.body.len() > settings.max_body {
            let (n, max) = (job.body.len(), settings.max_body);
            format!("body is {n} bytes; send at most {max}, or raise --max-body")
        } else if job.expired(clock.now()) {
            EXPIRED.to_owned()
        } else {
            match catch_unwind(AssertUnwindSafe(|| {
                let input = codec.decode(job)?;
                Ok::<_, crate::codec::BadJob>((codec.size(&input), input))
            })) {
                // It would hold the device for longer than a device may be silent.
                Ok(Ok((size, _))) if size.cost() > settings.max_job_cost => {
                    let (n, max) = (size.cost(), settings.max_job_cost);
                    format!(
                        "input costs {n} tokens, padding counted; send at most {max} in one job, \
                         or raise --max-job-cost"
                    )
                }
                Ok(Ok((size, input))) => {
                    held.way.decoded();
                    return Decoded::Ready(Item { held, input, size });
                }
                Ok(Err(bad)) => bad.to_string(),
                Err(_) => "body made the decoder panic; this is a bug of ours".to_owned(),
            }
        };
        Decoded::Over(held.finish(End::Reject(refusal)))
    }
}
