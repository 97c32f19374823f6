//! From a delivery with a reference to one with its body, or to what else becomes of it.

use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use tokio::time::Instant;
use tracing::warn;

use super::reference::{self, Reference};
use super::store::Trouble;
use super::{ABREAST, Claim};
use crate::{
    Delivery, Error, ErrorKind, Failure, FailureKind, JobResult, Outcome, Receipt, Result, Stored,
};

/// Pauses before a body that is gone is looked for again: a store may be slow to show it.
const TRIES: [Duration; 3] =
    [Duration::ZERO, Duration::from_millis(100), Duration::from_millis(400)];

/// What became of a delivery whose body was looked for.
enum Fetched {
    Whole(Delivery),
    Gone(Delivery, Failure),
    Away(Delivery, Error),
}

impl Claim {
    /// Fetches the bodies of deliveries, whose leases are kept meanwhile.
    pub(super) async fn fetch_all(&self, deliveries: Vec<Delivery>) -> Result<Vec<Delivery>> {
        let receipts: Vec<_> = deliveries.iter().map(|one| one.receipt().clone()).collect();
        let fetches = stream::iter(deliveries).map(|delivery| self.fetch(delivery));
        let mut fetches = std::pin::pin!(fetches.buffered(ABREAST).collect::<Vec<_>>());
        let patience = self.queue.lease() / 3;
        let began = Instant::now();
        let fetched = loop {
            match tokio::time::timeout(patience, &mut fetches).await {
                Ok(fetched) => break fetched,
                Err(_) => self.keep(&receipts).await,
            }
        };
        if began.elapsed() > patience / 4 {
            // Whoever gets them takes their leases for fresh.
            self.keep(&receipts).await;
        }
        self.sort_out(fetched).await
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
                Err(Trouble::Away(error)) => return Fetched::Away(delivery, error),
            }
        }
        Fetched::Gone(delivery, Failure::new(FailureKind::Lost, why))
    }

    /// Buries what can never be whole, and gives back what may be later.
    ///
    /// Given back, not tried again: a store that is away costs no job an attempt. When there is
    /// nothing else to hand out the error is told, so that the caller takes its time.
    async fn sort_out(&self, fetched: Vec<Fetched>) -> Result<Vec<Delivery>> {
        let (mut whole, mut releases, mut away) = (Vec::new(), Vec::new(), None);
        for one in fetched {
            match one {
                Fetched::Whole(delivery) => whole.push(delivery),
                Fetched::Gone(delivery, failure) => self.bury(delivery, failure).await,
                Fetched::Away(delivery, error) => {
                    releases.push(delivery.release());
                    away = Some(error);
                }
            }
        }
        let Some(error) = away else { return Ok(whole) };
        if let Err(error) = self.queue.settle(&releases).await {
            warn!(%error, n_jobs = releases.len(), "not given back: they come back by their lease");
        }
        if whole.is_empty() {
            return Err(error);
        }
        warn!(%error, n_jobs = releases.len(), "bodies were not fetched; their jobs were given back");
        Ok(whole)
    }

    /// Makes a dead letter of a job that has no body to be handed out, unless it was answered before that.
    ///
    /// What fails here is left to the lease: the job comes back, and is buried then.
    async fn bury(&self, delivery: Delivery, failure: Failure) {
        let id = delivery.job.id.clone();
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
        match self.queue.put(&result).await? {
            Stored::Stored => {}
            Stored::Stale => return Ok(()),
            Stored::Duplicate => result = self.queue.get(&result.id).await?.unwrap_or(result),
        }
        warn!(job.id = %result.id, reason = %failure.reason, "a job is rejected: its body is not handed out");
        if let Some(to) = &delivery.job.headers.reply_to {
            match self.queue.reply(to, &result, delivery.job.headers.traceparent.as_deref()).await {
                Err(error) if !matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Denied) => {
                    return Err(error);
                }
                _ => {}
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
}
