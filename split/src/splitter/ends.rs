//! The ends of deliveries: acknowledged, buried, or given back.

use std::mem::take;
use std::sync::Arc;
use std::time::Duration;

use ebb_queue::{
    Delivery, Error, ErrorKind, Failure, FailureKind, JobResult, Outcome, Settled, Stored,
    answer_at,
};
use tokio::time::{Instant, timeout_at};
use tracing::field::display;
use tracing::{debug, warn};

use super::{EXPIRED, SHORT_WAIT, Splitter};
use crate::place::trace_id;

/// How much longer than its grace period a split waits for its broker to hear that it ends. It holds what
/// `Backlog::close` takes.
const FAREWELL: Duration = Duration::from_secs(2);

/// What whoever waits for a job finds.
enum Told {
    /// That it failed, as it is told now.
    Failure,
    /// That it failed, as it was told before.
    Before(JobResult),
    /// An answer that was there before.
    Answer,
}

impl Splitter {
    /// Makes a dead letter of a job, unless it was answered before.
    pub(super) async fn bury(&mut self, delivery: Delivery, failure: Failure) {
        let job = &delivery.job;
        let failure = failure.shortened();
        let outcome = Outcome::Failed(failure.clone());
        let (id, attempt) = (job.id.clone(), delivery.attempt);
        let mut result =
            JobResult { id, attempt, outcome, finished_at: self.parts.clock.now(), queue: None };
        match self.tell(&result).await {
            Ok(Told::Failure) => {}
            Ok(Told::Before(stored)) => result = stored,
            Ok(Told::Answer) => return self.settlements.push(delivery.ack()),
            Err(error) => return self.give_back(delivery, &error),
        }
        let traceparent = job.headers.traceparent.as_deref();
        if let Some(to) = &job.headers.reply_to
            && let Err(error) = self.parts.intake.reply(to, &result, traceparent).await
        {
            let trace_id = trace_id(job).map(display);
            warn!(
                job.id = %job.id, trace_id, %error,
                "the reply was not sent; the result is in the store"
            );
        }
        let failure = result.why_dead(attempt, failure);
        let why = if failure.kind == FailureKind::Expired { EXPIRED } else { "refused" };
        let reason = &failure.reason;
        self.parts.metrics.dead.with_label_values(&[why]).inc();
        debug!(job.id = %job.id, trace_id = trace_id(job).map(display), reason, "the job goes nowhere");
        self.settlements.push(delivery.reject(failure));
    }

    /// Gives a job back of which nothing could be written down, and takes longer each time before
    /// more are received: it comes again at once.
    pub(super) fn give_back(&mut self, delivery: Delivery, error: &Error) {
        self.records.add();
        self.told_of("put", error);
        self.settlements.push(delivery.release());
    }

    /// Puts a failure where whoever waits for the job will find it: where all answers are, else with
    /// the job, or where that was led to.
    async fn tell(&mut self, result: &JobResult) -> ebb_queue::Result<Told> {
        let store = self.parts.results.as_ref().unwrap_or(&self.parts.intake);
        let mut store = Arc::clone(store);
        for _ in 0..=1 {
            if store.put(result).await? == Stored::Stored {
                return Ok(Told::Failure);
            }
            let Some(found) = store.get(&result.id).await? else { break };
            if found.outcome.is_final() {
                return Ok(Told::Answer);
            }
            let Some(to) = found.moved_to() else { return Ok(Told::Before(found)) };
            let closed = || Error::new(ErrorKind::Unavailable, format!("{to} cannot be opened"));
            store = self.opened(to).await.ok_or_else(closed)?;
        }
        Ok(Told::Failure)
    }

    pub(super) async fn settle(&mut self) {
        if self.settlements.is_empty() || !self.failures.may_try() || !self.away.may_try() {
            return;
        }
        let answers = self.parts.intake.settle(&self.settlements).await;
        let mut left = Vec::new();
        for (nth, settlement) in self.settlements.drain(..).enumerate() {
            let Some(answer) = answer_at(&answers, nth) else {
                left.push(settlement);
                continue;
            };
            self.leases.let_go(settlement.receipt());
            if answer == Settled::Lost {
                self.parts.metrics.leases_lost.inc();
            }
        }
        // Sent again, they have the effect of one.
        self.settlements = left;
        match answers {
            Ok(_) => {
                self.failures.reset();
                self.answered();
            }
            Err(unsettled) => self.trouble("settle", &unsettled.error),
        }
    }

    /// Gives back what has not gone on, and says so until the broker has heard it.
    pub(super) async fn drain(mut self, end: Instant) {
        while let Some(ended) = self.calls.try_join_next() {
            // Nobody has heard it yet: the round that would was cut off, waiting for something else.
            let Ok(sent) = ended else { continue };
            self.sort(&sent);
        }
        self.calls.abort_all();
        let lanes = take(&mut self.lanes);
        let arrived = take(&mut self.arrived).into_iter().map(Delivery::release);
        self.settlements.extend(arrived);
        // What is on its way may arrive all the same: the record at the intake says so to who sends it
        // again.
        let held = lanes.into_values().flat_map(|lane| lane.out.into_iter().chain(lane.waiting));
        self.settlements.extend(held.map(|held| held.delivery.release()));
        let told = timeout_at(end, async {
            while !self.settlements.is_empty() {
                self.settle().await;
                if !self.settlements.is_empty() {
                    tokio::time::sleep(SHORT_WAIT).await;
                }
            }
        });
        drop(told.await);
        let n_left = self.settlements.len();
        if n_left > 0 {
            warn!(n_left, "not settled: they come back by their lease");
        }
        // A broker that hangs must not keep the process.
        match timeout_at(end.max(Instant::now()) + FAREWELL, self.parts.intake.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "what was fetched ahead comes back by itself"),
            Err(_) => warn!("the broker hangs; what was fetched ahead comes back by its lease"),
        }
    }

    /// The broker has answered, whatever it was asked; that counts for little while the intake gives no
    /// jobs or takes no ends of them, or nothing can be written down there.
    pub(super) fn answered(&mut self) {
        self.away.reset();
        if self.failures.are_none() && self.records.may_try() {
            self.parts.metrics.broker_up.set(1);
            self.parts.gate.open();
        }
    }

    pub(super) fn trouble(&mut self, call: &'static str, error: &Error) {
        self.failures.add();
        self.told_of(call, error);
    }

    pub(super) fn told_of(&self, call: &'static str, error: &Error) {
        self.parts.metrics.broker_errors.with_label_values(&[call]).inc();
        self.parts.metrics.broker_up.set(0);
        self.parts.gate.close(format!("{call}: {error}"));
        warn!(call, %error, kind = %error.kind(), "the broker failed; trying again");
    }
}
