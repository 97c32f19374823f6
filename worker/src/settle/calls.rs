//! The calls that a job's end needs, made again until there is an answer.

use std::future::Future;

use ebb_queue::{
    ErrorKind, Failure, FailureKind, Job, JobId, JobResult, Outcome, Receipt, Settled, Stored,
};
use ebb_telemetry::trace_of;
use tracing::field::display;
use tracing::{debug, warn};

use crate::alert::alert_job;
use crate::lease::Loan;
use crate::pauses::{Failed, Pauses};
use crate::served::{Served, StoreCall};

/// How often a result is offered under a higher number than that of the pieces that are there.
const RAISED: u32 = 16;

/// What is called, and whose a place is that does not take what it is given.
#[derive(Debug, Clone, Copy)]
enum Whose {
    /// The store of results. All jobs depend on it, so all wait until it takes more.
    Everyones(StoreCall),
    /// A few jobs depend on it, and the others shall not wait until somebody makes room there.
    ItsOwn(&'static str),
}

/// Whether a failure for good may be the job's as well as everyone's, so that a look at another tells.
fn is_probed(whose: Whose, kind: ErrorKind) -> bool {
    use ErrorKind::{Incompatible, Missing};
    matches!((whose, kind), (Whose::Everyones(_), Missing | Incompatible))
}

/// Whether another try may end otherwise.
fn can_be_mended(error: &ebb_queue::Error) -> bool {
    use ErrorKind::{Denied, Incompatible, Invalid};
    !matches!(error.kind(), Denied | Incompatible | Invalid)
}

/// Why a call to the broker got no answer.
pub(super) enum Unanswered {
    /// The job belongs to somebody else by now.
    Lost,
    /// Somebody cancelled the job, and that is stored.
    Cancelled,
    /// The broker refuses, and will refuse again.
    Refused(ebb_queue::Error),
    /// This worker can have no answer for any job: it lacks a right, or what keeps the answers is broken
    /// for good. Nothing is wrong with the job.
    Denied(ebb_queue::Error),
}

impl Served {
    pub(super) async fn put(&self, loan: &Loan, result: &JobResult) -> Result<Stored, Unanswered> {
        let results = &self.results;
        let put = Whose::Everyones(StoreCall::Put);
        let stored = self.insist(put, loan, || results.put(result)).await;
        if !result.outcome.is_completed() {
            return stored;
        }
        match &stored {
            Ok(Stored::Stored) => self.shared.answered(),
            Ok(Stored::Duplicate | Stored::Stale) => {}
            Err(Unanswered::Refused(error)) if error.kind() == ErrorKind::Invalid => {}
            // A failure is not kept: the job may be on its way to an answer elsewhere.
            Err(_) => self.keep_unstored(result),
        }
        stored
    }

    /// Stores a result under a number that what is there does not keep it from, as long as the job is
    /// ours: pieces of somebody who gave it back midway may bear a later number than this delivery.
    pub(super) async fn put_ours(
        &self,
        (loan, receipt): (&Loan, &Receipt),
        result: &mut JobResult,
    ) -> Result<Stored, Unanswered> {
        for tries in 0..RAISED {
            match self.put(loan, result).await? {
                Stored::Stale => {}
                stored => return Ok(stored),
            }
            let is_held = self.is_held(loan, receipt).await?;
            let there = if is_held { self.stored(loan, &result.id).await? } else { None };
            if !is_held || there.is_some_and(|there| there.outcome.is_final()) {
                break;
            }
            result.attempt = result.attempt.saturating_add(1 << tries);
        }
        Ok(Stored::Stale)
    }

    /// Whether the broker says that the job is still ours.
    pub(super) async fn is_held(&self, loan: &Loan, receipt: &Receipt) -> Result<bool, Unanswered> {
        let receipts = std::slice::from_ref(receipt);
        let extend = || self.broker.extend(receipts);
        let held = self.insist(Whose::ItsOwn("extend"), loan, extend).await?;
        Ok(held.first() == Some(&Settled::Held))
    }

    /// The result that stays; none when its time is over.
    pub(super) async fn stored(
        &self,
        loan: &Loan,
        id: &JobId,
    ) -> Result<Option<JobResult>, Unanswered> {
        let results = &self.results;
        self.insist(Whose::Everyones(StoreCall::Get), loan, || results.get(id)).await
    }

    /// Sends a result to where its job asked for it. The result is in the store by then, so an
    /// address that takes nothing keeps nobody.
    pub(super) async fn reply(
        &self,
        loan: &Loan,
        to: &str,
        result: &JobResult,
        traceparent: Option<&str>,
    ) -> Result<(), Unanswered> {
        let broker = &self.broker;
        let send = || async {
            match broker.reply(to, result, traceparent).await {
                Err(error) if can_be_mended(&error) => Err(error),
                answer => Ok(answer),
            }
        };
        let sent = match self.insist(Whose::ItsOwn("reply"), loan, send).await {
            Ok(sent) => sent,
            Err(given_up @ (Unanswered::Lost | Unanswered::Cancelled)) => return Err(given_up),
            Err(Unanswered::Refused(error) | Unanswered::Denied(error)) => Err(error),
        };
        let replies = &self.shared.metrics.replies;
        match sent {
            Ok(()) => replies.with_label_values(&["sent"]).inc(),
            Err(error) => {
                replies.with_label_values(&["refused"]).inc();
                const WORDS: &str = "the reply was not sent; the result is in the store";
                self.tell_unsent(WORDS, (&result.id, traceparent), &error);
            }
        }
        Ok(())
    }

    /// Sparingly: producers choose their addresses, and one may be wrong in all its jobs; so may alerts.
    fn tell_unsent(
        &self,
        words: &'static str,
        (id, traceparent): (&JobId, Option<&str>),
        error: &ebb_queue::Error,
    ) {
        let trace_id = traceparent.and_then(trace_of).map(display);
        match self.pass(words) {
            Some(n_unsaid) => warn!(job.id = %id, trace_id, %error, n_unsaid, "{words}"),
            None => debug!(job.id = %id, trace_id, %error, "{words}"),
        }
    }

    pub(super) async fn alert(
        &self,
        job: &Job,
        loan: &Loan,
        body: bytes::Bytes,
    ) -> Result<(), Unanswered> {
        let alerts = &self.alerts;
        let published = match alert_job(job, body, self.shared.clock.now()) {
            Ok(alert) => {
                let publish = || alerts.publish(vec![alert.clone()]);
                self.insist(Whose::ItsOwn("publish"), loan, publish).await
            }
            Err(error) => Err(Unanswered::Refused(error)),
        };
        match published {
            Ok(_) => Ok(()),
            // No other attempt would do better, and the answer is good all the same.
            Err(Unanswered::Refused(error)) if error.kind() == ErrorKind::Invalid => {
                const WORDS: &str = "the alert was not published; the result is stored";
                let traceparent = job.headers.traceparent.as_deref();
                self.tell_unsent(WORDS, (&job.id, traceparent), &error);
                Ok(())
            }
            Err(unanswered) => Err(unanswered),
        }
    }

    /// Calls until there is an answer, as long as the job is ours.
    async fn insist<T, F: Future<Output = ebb_queue::Result<T>>>(
        &self,
        whose: Whose,
        loan: &Loan,
        call: impl Fn() -> F,
    ) -> Result<T, Unanswered> {
        let (mut pauses, mut is_ours) = (Pauses::default(), false);
        loop {
            let error = match call().await {
                Ok(value) => {
                    if let Whose::Everyones(call) = whose {
                        self.store_answers(call);
                    }
                    return Ok(value);
                }
                Err(error) => error,
            };
            let may_heal = match whose {
                Whose::Everyones(_) => error.kind().heals(),
                Whose::ItsOwn(_) => error.kind() == ErrorKind::Unavailable,
            };
            match whose {
                // The job's own fault: others may be stored all the same.
                Whose::Everyones(call) if error.kind() == ErrorKind::Invalid => {
                    self.complain(call.word(), &error);
                }
                Whose::Everyones(call) => self.store_trouble(call, &error),
                Whose::ItsOwn(name) if may_heal => self.trouble(name, &error),
                Whose::ItsOwn(name) => self.complain(name, &error),
            }
            let failed = if may_heal { Failed::ForNow } else { Failed::ForGood };
            let pause = pauses.next(failed, self.shared.chance());
            if loan.is_lost() {
                return Err(Unanswered::Lost);
            }
            if pauses.are_over() || error.kind() == ErrorKind::Invalid {
                match self.is_everyones(whose, error.kind()).await {
                    Some(true) => return Err(Unanswered::Denied(error)),
                    Some(false) if is_ours || !is_probed(whose, error.kind()) => {
                        return Err(Unanswered::Refused(error));
                    }
                    // The store may have become whole since the call.
                    Some(false) => {
                        is_ours = true;
                        continue;
                    }
                    None => {}
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Whether no other job would fare better with a call that failed for good like this; none where
    /// that cannot be told for now.
    async fn is_everyones(&self, whose: Whose, kind: ErrorKind) -> Option<bool> {
        match (whose, kind) {
            (_, ErrorKind::Denied) => Some(true),
            // It may be what is stored of this one job.
            (Whose::Everyones(call), kind) if is_probed(whose, kind) => {
                match self.probe(call).await {
                    Ok(()) => Some(false),
                    Err(error) => (!error.kind().heals()).then_some(true),
                }
            }
            _ => Some(false),
        }
    }

    /// Makes the same call for a job that nobody has: nothing that is stored of it can be wrong. What is
    /// put goes with its time, as all results do.
    async fn probe(&self, call: StoreCall) -> ebb_queue::Result<()> {
        let id = JobId::fresh();
        match call {
            StoreCall::Get => self.results.get(&id).await.map(drop),
            StoreCall::Put => {
                let reason = "no job: a worker looked whether results can be stored";
                let outcome = Outcome::Failed(Failure::new(FailureKind::Model, reason));
                let (finished_at, queue) = (self.shared.clock.now(), Some(self.name.clone()));
                let probe = JobResult { id, attempt: 1, outcome, finished_at, queue };
                self.results.put(&probe).await.map(drop)
            }
        }
    }
}
