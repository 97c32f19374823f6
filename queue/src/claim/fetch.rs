//! From a delivery with a reference to one with its body, or to what else becomes of it.

use std::sync::PoisonError;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use tokio::time::Instant;
use tracing::warn;

use super::reference::{self, Reference, parse_receipt};
use super::store::Trouble;
use super::{ABREAST, Claim};
use crate::{
    Delivery, Error, Failure, FailureKind, JobId, JobResult, Outcome, Receipt, Result, RetryPolicy,
    Settled, Settlement, Stored,
};

/// Pauses before a body that is gone is looked for again: a store may be slow to show it.
const TRIES: [Duration; 3] =
    [Duration::ZERO, Duration::from_millis(100), Duration::from_millis(400)];

/// When a body that alone is refused is asked for again: somebody may give the right to it.
const REFUSED: RetryPolicy =
    RetryPolicy { max_attempts: 5, base: Duration::from_secs(10), cap: Duration::from_secs(300) };

/// Jobs with refused bodies that are remembered at most. Of one beyond them all attempts count.
const REMEMBERED: usize = 4096;

/// How often an end is offered under a higher number than that of the pieces that are there.
const RAISED: u32 = 16;

/// What became of a delivery whose body was looked for.
enum Fetched {
    Whole(Delivery),
    Gone(Delivery, Failure),
    Refused(Delivery, Error),
    Away(Delivery, Error),
}

impl Fetched {
    /// Whether its body was read from the store.
    fn is_read(&self) -> bool {
        match self {
            Self::Whole(delivery) => parse_receipt(delivery.receipt()).1.is_some(),
            Self::Gone(..) | Self::Refused(..) | Self::Away(..) => false,
        }
    }
}

impl Claim {
    /// Fetches the bodies of deliveries, whose leases are kept meanwhile.
    pub(super) async fn fetch_all(&self, deliveries: Vec<Delivery>) -> Result<Vec<Delivery>> {
        let receipts: Vec<_> = deliveries.iter().map(|one| one.receipt().clone()).collect();
        let fetches = async {
            let fetches = stream::iter(deliveries).map(|delivery| self.fetch(delivery));
            let fetched: Vec<_> = fetches.buffered(ABREAST).collect().await;
            let is_refused = fetched.iter().any(|one| matches!(one, Fetched::Refused(..)));
            let refuses_some = is_refused
                && (fetched.iter().any(Fetched::is_read) || self.store.lets_others_be_read().await);
            (fetched, refuses_some)
        };
        let mut fetches = std::pin::pin!(fetches);
        let patience = self.queue.lease() / 3;
        let began = Instant::now();
        let (fetched, refuses_some) = loop {
            match tokio::time::timeout(patience, &mut fetches).await {
                Ok(fetched) => break fetched,
                Err(_) => self.keep(&receipts).await,
            }
        };
        if began.elapsed() > patience / 4 {
            // Whoever gets them takes their leases for fresh.
            self.keep(&receipts).await;
        }
        self.sort_out(fetched, refuses_some).await
    }

    async fn keep(&self, receipts: &[Receipt]) {
        if let Err(error) = self.queue.extend(receipts).await {
            warn!(%error, "leases were not extended while bodies are fetched");
        }
    }

    async fn fetch(&self, delivery: Delivery) -> Fetched {
        let Some(key) = delivery.job.headers.body_ref.as_deref() else {
            return Fetched::Whole(delivery);
        };
        let reference = match Reference::of_job(&delivery.job, key) {
            Ok(reference) => reference,
            Err(reason) => return Fetched::Gone(delivery, Failure::invalid(reason)),
        };
        if reference.size > self.largest as u64 {
            let (n, max) = (reference.size, self.largest);
            let reason = format!("body is {n} bytes; send at most {max}, or raise --max-body");
            return Fetched::Gone(delivery, Failure::invalid(reason));
        }
        let mut why = String::new();
        for pause in TRIES {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            match self.store.get(&reference).await {
                Ok(body) => {
                    return Fetched::Whole(reference::deliver(delivery, &reference.key, body));
                }
                Err(Trouble::Gone(reason)) => why = reason,
                Err(Trouble::Refused(error)) => return Fetched::Refused(delivery, error),
                Err(Trouble::Away(error)) => return Fetched::Away(delivery, error),
            }
        }
        Fetched::Gone(delivery, Failure::new(FailureKind::Lost, why))
    }

    /// Buries what can never be whole, and gives back what may be later.
    ///
    /// Given back, not tried again: a store that is away, or refuses all, costs no job an attempt. When
    /// there is nothing else to hand out the error is told, so that the caller takes its time. One that
    /// is refused where others are not would keep its place, and in the end the others from theirs: it
    /// waits, is charged, and is buried at last.
    async fn sort_out(&self, fetched: Vec<Fetched>, refuses_some: bool) -> Result<Vec<Delivery>> {
        let (mut whole, mut back, mut away) = (Vec::new(), Vec::new(), None);
        for one in fetched {
            match one {
                Fetched::Whole(delivery) => {
                    self.forget_refusal(&delivery.job.id);
                    whole.push(delivery);
                }
                Fetched::Gone(delivery, failure) => self.bury(delivery, failure).await,
                Fetched::Refused(delivery, error) if refuses_some => {
                    back.extend(self.try_later(delivery, &error).await);
                }
                Fetched::Refused(delivery, error) | Fetched::Away(delivery, error) => {
                    back.push(delivery.release());
                    away = Some(error);
                }
            }
        }
        if !back.is_empty()
            && let Err(error) = self.queue.settle(&back).await
        {
            warn!(%error, n_jobs = back.len(), "not given back: they come back by their lease");
        }
        let Some(error) = away else { return Ok(whole) };
        if whole.is_empty() {
            return Err(error);
        }
        warn!(%error, n_jobs = back.len(), "bodies were not fetched; their jobs were given back");
        Ok(whole)
    }

    /// Another try for a job whose body alone is refused; none where it had its share, and was buried.
    async fn try_later(&self, delivery: Delivery, error: &Error) -> Option<Settlement> {
        let reason = format!("{error}; then put the job back: ebb dlq redrive");
        let is_first = self.is_first_refusal(&delivery.job.id);
        // Attempts that failed otherwise are not its share of these.
        let attempt =
            delivery.attempt.min(if is_first { REFUSED.max_attempts - 1 } else { u32::MAX });
        let Some(pause) = REFUSED.after(attempt, rand::random()) else {
            self.bury(delivery, Failure::new(FailureKind::Lost, reason)).await;
            return None;
        };
        let (id, attempt) = (&delivery.job.id, delivery.attempt);
        warn!(job.id = %id, attempt, reason, "a body alone is refused; its job is tried again later");
        Some(delivery.retry(pause, reason))
    }

    /// Whether this handle has not met the job with its body refused, as far as it remembers.
    fn is_first_refusal(&self, id: &JobId) -> bool {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.len() < REMEMBERED && refused.insert(id.clone())
    }

    fn forget_refusal(&self, id: &JobId) {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// Makes a dead letter of a job that has no body to be handed out, unless it was answered before that.
    ///
    /// What fails here is left to the lease: the job comes back, and is buried then.
    async fn bury(&self, delivery: Delivery, failure: Failure) {
        let id = delivery.job.id.clone();
        self.forget_refusal(&id);
        if let Err(error) = self.try_bury(delivery, failure).await {
            warn!(job.id = %id, %error, "a job whose body is not handed out is no dead letter yet");
        }
    }

    async fn try_bury(&self, delivery: Delivery, failure: Failure) -> Result<()> {
        let id = delivery.job.id.clone();
        let outcome = Outcome::Failed(failure.clone());
        let finished_at = self.clock.now();
        let mut result =
            JobResult { id, attempt: delivery.attempt, outcome, finished_at, queue: None };
        match self.put_ours(&mut result, delivery.receipt()).await? {
            Stored::Stored => {}
            Stored::Stale => return Ok(()),
            Stored::Duplicate => result = self.queue.get(&result.id).await?.unwrap_or(result),
        }
        warn!(job.id = %result.id, reason = %failure.reason, "a job is rejected: its body is not handed out");
        if let Some(to) = &delivery.job.headers.reply_to {
            let traceparent = delivery.job.headers.traceparent.as_deref();
            match self.queue.reply(to, &result, traceparent).await {
                Ok(()) => {}
                Err(error) if error.kind().heals() => return Err(error),
                Err(error) => {
                    warn!(job.id = %result.id, to, %error, "a reply is given up: its address takes nothing");
                }
            }
        }
        let settlement = match result.outcome {
            // A body goes when its job is done, and another delivery of it may be on its way.
            Outcome::Completed { .. } | Outcome::Cancelled => delivery.ack(),
            Outcome::Failed(_) => {
                let why = result.why_dead(delivery.attempt, failure);
                delivery.reject(why)
            }
        };
        self.queue.settle(&[settlement]).await?;
        Ok(())
    }

    /// Stores how a job ended under a number that pieces do not keep it from, as long as the job is ours:
    /// those of somebody who gave it back may bear a later one.
    async fn put_ours(&self, result: &mut JobResult, receipt: &Receipt) -> Result<Stored> {
        let own = parse_receipt(receipt).0;
        for tries in 0..RAISED {
            match self.queue.put(result).await? {
                Stored::Stale => {}
                stored => return Ok(stored),
            }
            let held = self.queue.extend(std::slice::from_ref(&*own)).await?;
            if held.first() != Some(&Settled::Held) {
                break;
            }
            result.attempt = result.attempt.saturating_add(1 << tries);
        }
        Ok(Stored::Stale)
    }
}
