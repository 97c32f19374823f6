//! The queues that jobs go to: opened once weights or jobs name them, kept from holding up the others,
//! and closed when nothing names them any more.

use std::mem::take;
use std::sync::Arc;
use std::time::Duration;

use ebb_queue::{Delivery, Error, ErrorKind, Failure, Queue, RetryPolicy, Settlement};
use tokio::time::{Instant, timeout};
use tracing::{debug, error, info, warn};

use super::lane::{Held, Lane};
use super::{Splitter, hangs};
use crate::metrics::QUEUES;
use crate::weights::Weights;

/// Until a job is received again that a queue had no place for because it refuses jobs.
const PAUSES: RetryPolicy = RetryPolicy {
    max_attempts: u32::MAX,
    base: Duration::from_secs(1),
    cap: Duration::from_secs(300),
};

/// The same where jobs may have gone on: within what the brokers remember ids for, 2 min on NATS.
const IN_DOUBT: RetryPolicy = RetryPolicy { cap: Duration::from_secs(30), ..PAUSES };

/// What the opening of a queue may take: the others wait for it.
const OPENING: Duration = Duration::from_secs(5);

/// A queue without a weight is closed when no job was for it for so long.
const IDLE: Duration = Duration::from_secs(60);

/// What the last words to a broker may take.
const FAREWELL: Duration = Duration::from_secs(2);

impl Splitter {
    /// Takes weights once all their queues are open; those before them stay until then.
    pub(super) async fn take_new_weights(&mut self) {
        let weights = Arc::clone(&self.parts.weights.borrow());
        let broken = self.parts.metrics.broken.with_label_values(&[QUEUES]);
        if weights == self.weights {
            self.refused = None;
            broken.set(0);
            return;
        }
        let mut all_open = true;
        for name in weights.queues() {
            all_open &= self.opened(name).await.is_some();
        }
        let reloads = &self.parts.metrics.reloads;
        if all_open {
            reloads.with_label_values(&["ok"]).inc();
            self.parts.metrics.show(Some(&self.weights), &weights);
            broken.set(0);
            (self.weights, self.refused) = (weights, None);
        } else if self.refused.as_ref() != Some(&weights) {
            reloads.with_label_values(&["failed"]).inc();
            error!(%weights, "a queue of new weights cannot be opened; those before them stay");
            broken.set(1);
            self.refused = Some(weights);
        }
    }

    /// The queue of this name; none while it cannot be opened.
    pub(super) async fn opened(&mut self, name: &str) -> Option<Queue> {
        let lane = self.lanes.entry(name.to_owned()).or_default();
        lane.touch();
        if lane.queue.is_some() || !lane.failures.may_try() {
            return lane.queue.clone();
        }
        let opened = timeout(OPENING, (self.parts.open)(name.to_owned())).await;
        match opened.unwrap_or_else(|_| Err(hangs())) {
            Ok(queue) => {
                let lane = self.lanes.entry(name.to_owned()).or_default();
                let waiting = take(&mut lane.waiting);
                *lane = Lane::new(queue);
                lane.waiting = waiting;
                lane.queue.clone()
            }
            Err(error) => {
                // When the broker is away all wait alike.
                let is_away = error.kind() == ErrorKind::Unavailable && !self.answers().await;
                let lane = self.lanes.entry(name.to_owned()).or_default();
                lane.failed();
                lane.refuses |= !is_away;
                self.parts.metrics.broker_errors.with_label_values(&["open"]).inc();
                warn!(queue = name, %error, "the queue cannot be opened; trying again");
                None
            }
        }
    }

    /// Whether the broker answers, asked about the intake.
    pub(super) async fn answers(&self) -> bool {
        timeout(FAREWELL, self.parts.intake.depth()).await.is_ok_and(|depth| depth.is_ok())
    }

    /// What becomes of jobs that a queue did not take, while its broker answers otherwise or does not.
    pub(super) async fn not_published(
        &mut self,
        name: &str,
        mut batch: Vec<Held>,
        error: &Error,
        answers: bool,
    ) {
        let Some(lane) = self.lanes.get_mut(name) else { return };
        let (n_jobs, in_doubt) = (batch.len(), error.may_be_stored());
        batch.iter_mut().for_each(|held| held.before |= in_doubt);
        if error.is_answer() || error.kind() == ErrorKind::Full {
            lane.answered();
        }
        let may_halve = match error.kind() {
            // Where it is not known what was stored, each that is sent again may leave a copy.
            ErrorKind::Full => !in_doubt && n_jobs > 1,
            ErrorKind::Invalid => n_jobs > 1,
            _ => false,
        };
        if may_halve {
            // Fewer may fit, or the one that cannot go is found.
            lane.chunk = n_jobs / 2;
        } else if error.kind() == ErrorKind::Invalid {
            let reason = format!("queue {name} refuses the job: {error}");
            let Some(held) = batch.into_iter().next() else { return };
            return self.bury(held.delivery, Failure::invalid(reason)).await;
        } else {
            lane.failed();
        }
        lane.put_back(batch);
        match error.kind() {
            ErrorKind::Full => {
                lane.refuses = false;
                if in_doubt {
                    lane.chunk = 1;
                }
                if !may_halve && !lane.is_full {
                    lane.is_full = true;
                    self.parts.metrics.full.with_label_values(&[name]).inc();
                    info!(queue = name, "the queue is full; its jobs wait");
                }
            }
            ErrorKind::Unavailable if !answers => {
                // The broker is away, and all wait alike.
                lane.did_not_answer(false);
                self.away.add();
                self.told_of("publish", error);
            }
            ErrorKind::Invalid => {}
            kind => {
                // Of this queue alone: its jobs wait, and nothing is wrong with them.
                if kind == ErrorKind::Unavailable {
                    lane.did_not_answer(true);
                } else {
                    lane.refuses = true;
                }
                self.parts.metrics.broker_errors.with_label_values(&["publish"]).inc();
                warn!(queue = name, %error, kind = %error.kind(), "not published; trying again");
            }
        }
    }

    /// Gives back what queues that refuse jobs hold of more than half of the window, all of them
    /// together, so that the other half is for the others. The newest go first and come again later.
    pub(super) fn give_back_surplus(&mut self) {
        for (name, lane) in &self.lanes {
            // What was given back comes again within that time, unless it has ended.
            let comes_again = lane.gave_back.is_some_and(|at| at.elapsed() <= 2 * PAUSES.cap);
            let is_held_up = lane.refuses && (comes_again || lane.n_jobs() > 0);
            self.parts.metrics.refuses.with_label_values(&[name]).set(is_held_up.into());
        }
        let refusing = || self.lanes.values().filter(|lane| lane.refuses);
        let mut n_jobs: usize = refusing().map(Lane::n_jobs).sum();
        let mut n_bytes: usize = refusing().map(Lane::n_bytes).sum();
        loop {
            // One stays, to find out when the queue takes jobs again, unless it is too large for that:
            // it finds out when it comes again.
            let by_bytes = self.window.are_half_the_bytes(n_bytes);
            if !by_bytes && !self.window.are_half(n_jobs) {
                return;
            }
            let n_stay = usize::from(!by_bytes);
            let size = |lane: &Lane| if by_bytes { lane.n_bytes() } else { lane.n_jobs() };
            let lanes = self.lanes.iter_mut();
            let lanes = lanes.filter(|(_, lane)| lane.refuses && lane.waiting.len() > n_stay);
            let Some((name, lane)) = lanes.max_by_key(|(_, lane)| size(lane)) else { return };
            let Some(held) = lane.waiting.pop_back() else { return };
            lane.gave_back = Some(Instant::now());
            n_jobs -= 1;
            n_bytes -= held.delivery.job.body.len();
            self.parts.metrics.given_back.with_label_values(&[name]).inc();
            debug!(queue = name, job.id = %held.delivery.job.id, "the job is received again later");
            let pauses = if lane.in_doubt { &IN_DOUBT } else { &PAUSES };
            self.settlements.push(later(held.delivery, name, pauses));
        }
    }

    /// Closes queues that have no weight, once no job has been for them for a while.
    pub(super) async fn close_idle(&mut self) {
        let newest = Arc::clone(&self.parts.weights.borrow());
        let names = |weights: &Weights, name: &str| weights.queues().any(|queue| queue == name);
        let is_idle = |(name, lane): &(&String, &Lane)| {
            let is_named = names(&self.weights, name) || names(&newest, name);
            !is_named && lane.n_jobs() == 0 && lane.is_idle_for(IDLE)
        };
        let idle: Vec<String> =
            self.lanes.iter().filter(is_idle).map(|(name, _)| name.clone()).collect();
        for name in idle {
            let lane = self.lanes.remove(&name);
            // Not there where no round ended since the queue was named.
            drop(self.parts.metrics.refuses.remove_label_values(&[&name]));
            let Some(queue) = lane.and_then(|lane| lane.queue) else { continue };
            match timeout(FAREWELL, queue.close()).await {
                Ok(Ok(())) => debug!(queue = name, "closed: it has no weight and no jobs"),
                Ok(Err(error)) => debug!(queue = name, %error, "not closed in order"),
                Err(_) => debug!(queue = name, "not closed in time"),
            }
        }
    }
}

/// Charged where it is received again, which counts nothing where it goes.
fn later(delivery: Delivery, name: &str, pauses: &RetryPolicy) -> Settlement {
    let pause = pauses.after(delivery.attempt, rand::random()).unwrap_or(pauses.cap);
    delivery.retry(pause, format!("queue {name} refuses jobs, and too many wait for it already"))
}
