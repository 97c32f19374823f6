//! Jobs that end as dead letters, or without a worker: what is stored of that, and who is told.

use tokio::time::Instant;

use super::NatsQueue;
use super::entry::{Death, Entry};
use super::leases::Done;
use super::settle::token_of;
use crate::owed::{self, Owed};
use crate::{Error, ErrorKind, Failure, JobResult, Outcome, Result, Stored, Timestamp};

/// The message of a job that ends without a worker.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ending {
    pub(super) seq: u64,
    /// How often it was handed out, this time included.
    pub(super) delivered: u32,
    /// Until when a reply may be sent: other jobs wait for that.
    pub(super) told_by: Instant,
}

impl NatsQueue {
    /// Makes a dead letter of a job whose message may be removed then.
    pub(super) async fn make_dead(
        &self,
        entry: &Entry,
        seq: u64,
        failure: &Failure,
        at: Timestamp,
    ) -> Result<u64> {
        let shared = &*self.shared;
        let id = &entry.job.id;
        let death = Death { failure: failure.clone(), at };
        let max = shared.api.client.max_payload();
        let (headers, body) = entry.letter(&format!("{id}/{seq}"), &death, max)?;
        let subject = shared.names.subject(&format!("dead.{}", token_of(id)));
        Ok(shared.api.publish(&subject, headers, body).await?.seq)
    }

    /// Ends a job that cannot be read, or whose deadline has passed by now; none where it lives on. Otherwise
    /// whether its message may be removed then.
    pub(super) async fn ends_waiting(
        &self,
        entry: &Entry,
        wrong: Option<Error>,
        ending: Ending,
    ) -> Result<Option<bool>> {
        if let Some(wrong) = wrong {
            let why = Failure::invalid(wrong.to_string());
            return self.bury(entry, ending, why).await.map(Some);
        }
        if entry.job.expired(self.now()) {
            return self.expire(entry, ending).await.map(Some);
        }
        Ok(None)
    }

    /// A job whose deadline has passed is dead, or done where its answer is there. Whether its message may
    /// be removed then.
    pub(super) async fn expire(&self, entry: &Entry, ending: Ending) -> Result<bool> {
        let answer = self.answer(&entry.job.id).await?;
        let Some(answer) = answer.filter(|result| result.outcome.is_final()) else {
            return self.bury(entry, ending, Failure::expired()).await;
        };
        let shared = &*self.shared;
        // Whoever gave the answer through this handle may still say so.
        if let Some(held) = shared.leases.get(ending.seq) {
            shared.leases.settle(&held.token, Done::Ack(Instant::now()));
        }
        // Whoever gave the answer was lost, perhaps before it told it.
        if was_tried(entry, ending.delivered) {
            self.tell(entry, answer, ending.told_by).await;
        }
        Ok(true)
    }

    /// Makes a dead letter of a job for which no worker has a word to say, and tells whoever waits for
    /// it; the rest as above.
    pub(super) async fn bury(&self, entry: &Entry, ending: Ending, why: Failure) -> Result<bool> {
        let Ending { seq, delivered, told_by } = ending;
        let now = self.now();
        self.make_dead(entry, seq, &why, now).await?;
        let id = &entry.job.id;
        let mut failure = JobResult::buried(id.clone(), entry.attempts, why.clone(), now);
        let stored = match self.put_burial(&mut failure).await {
            Ok(Stored::Stored) => Some(failure),
            // An answer is that of another job, or is told by who gave it just now.
            Ok(Stored::Duplicate) => {
                let there = self.answer(id).await?;
                let failed = there.filter(|stored| matches!(stored.outcome, Outcome::Failed(_)));
                let is_this = |stored: &JobResult| {
                    let Outcome::Failed(known) = &stored.outcome else { return false };
                    known.reason == why.reason && stored.attempt == entry.attempts
                };
                match failed {
                    // The same as above; of those who have the job at the same moment the one tells that
                    // stored its failure.
                    Some(stored) if was_tried(entry, delivered) => {
                        Some(stored).filter(|stored| delivered > 1 || !is_this(stored))
                    }
                    // Whoever stored it removes the message, unless it was lost before it told.
                    Some(stored) if is_this(&stored) => match owed::is_old(&stored, now) {
                        true => Some(stored),
                        false => return Ok(false),
                    },
                    _ => None,
                }
            }
            Ok(Stored::Stale) => None,
            Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
            Err(error) => {
                tracing::warn!(%error, %id, "the failed result is not stored");
                Some(failure)
            }
        };
        if let Some(stored) = stored {
            self.tell(entry, stored, told_by).await;
        }
        Ok(true)
    }

    /// Tells the stored result of a job to where it asked for a reply, by then or not at all.
    pub(super) async fn tell(&self, entry: &Entry, stored: JobResult, by: Instant) {
        let Some(owed) = Owed::new(&entry.job.headers, stored) else { return };
        let Owed { to, result, traceparent } = owed;
        let sent = self.send(&to, &result, traceparent.as_deref());
        owed::note(&result.id, owed::in_time(by, sent).await);
    }
}

/// Whether somebody had the job before, whose message was handed out so often: that begins anew where a
/// job is stored anew.
fn was_tried(entry: &Entry, delivered: u32) -> bool {
    delivered > 1 || entry.attempts > 0
}
