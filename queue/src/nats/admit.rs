//! What becomes of a message that a lane hands out: a job to run, or nothing of the kind.

use std::cmp::Reverse;
use std::time::Duration;

use async_nats::Message;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::NatsQueue;
use super::ending::Ending;
use super::entry::{Entry, Origin};
use super::leases::{Claim, Held, Token, crashes};
use super::names::{Lane, tick};
use super::noted::Noted;
use super::settle::STILL_COUNTS;
use crate::{Attempt, Error, Priority, Result, Timestamp};

/// A delivery before it is handed out.
pub(super) struct Found {
    pub(super) held: Held,
    pub(super) entry: Entry,
}

impl Found {
    /// Who goes first.
    pub(super) fn rank(&self) -> (Reverse<Priority>, u64) {
        (Reverse(self.entry.job.headers.priority), self.entry.place)
    }
}

/// What a look has read, once it had to.
#[derive(Default)]
pub(super) struct Known {
    noted: Noted,
    marks: OnceCell<()>,
    /// Whether it was asked which stream the jobs are in.
    stream: OnceCell<()>,
}

/// Moments that count for the jobs of one pull.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// When their lease ends.
    pub(super) until: Instant,
    /// Until when replies may be sent: what was found waits for them.
    pub(super) told_by: Instant,
    /// Until when it is waited for what is known of cancelled jobs.
    pub(super) known_by: Instant,
}

/// A message that was handed to us.
struct Met {
    token: Token,
    lane: Lane,
    origin: Origin,
    /// The job, with what became of earlier deliveries in its history.
    entry: Entry,
    /// The same, charged for those.
    attempted: Entry,
    crashes: Vec<Attempt>,
}

impl NatsQueue {
    /// A message as a job to run, unless it is none, or its time is over or has not come.
    pub(super) async fn admit(
        &self,
        message: Message,
        lane: Lane,
        times: Times,
        known: &Known,
    ) -> Result<Option<Found>> {
        let shared = &*self.shared;
        let Some(token) = message.reply.as_deref().and_then(Token::read) else {
            return Ok(None);
        };
        if token.delivered > 1 && shared.leases.finished(&token).is_some() {
            // What became of it is stored; only the acknowledgement was lost.
            shared.api.ack(&token.reply, "+ACK").await?;
            return Ok(None);
        }
        let headers = message.headers.unwrap_or_default();
        if !Entry::is_named(&headers) {
            known.stream.get_or_init(|| self.meet_again()).await;
        }
        let (created, priority) = (shared.created(), lane.priority);
        let origin = Origin { created, seq: token.seq, at: token.stored_at, priority };
        let (mut entry, wrong) = Entry::read(&headers, message.payload, origin);
        let before = self.before(&token, known).await?;
        let crashes = self.crashes(&token, &entry, before);
        entry.history.extend(crashes.iter().cloned());
        let mut attempted = entry.clone();
        attempted.charge(token.delivered - 1);
        let leaves = before.is_some_and(|claim| claim.leaves);
        if leaves && self.follow_back(&attempted, token.seq).await? {
            shared.api.ack(&token.reply, "+ACK").await?;
            return Ok(None);
        }
        let met = Met { token, lane, origin, entry, attempted, crashes };
        match self.ends(&met, wrong, times, known).await? {
            None => self.place(met, times.until).await,
            Some(may_go) => {
                if may_go {
                    shared.api.ack(&met.token.reply, "+ACK").await?;
                }
                Ok(None)
            }
        }
    }

    /// What is noted of the delivery of a message before this one.
    async fn before<'a>(&self, token: &Token, known: &'a Known) -> Result<Option<&'a Claim>> {
        if token.delivered == 1 {
            return Ok(None);
        }
        let claims = known.noted.claims(&self.shared.api, &self.shared.names).await?;
        let claim = claims.get(token.message());
        Ok(claim.filter(|claim| claim.delivered < token.delivered))
    }

    /// A line for each earlier delivery of the message: none of them was settled.
    fn crashes(&self, token: &Token, entry: &Entry, before: Option<&Claim>) -> Vec<Attempt> {
        let shared = &*self.shared;
        let own = shared.leases.get(token.seq).filter(|held| held.until <= Instant::now());
        let own = own.filter(|held| held.token.message() == token.message());
        let own = own.map(|held| (held.token.delivered, &*shared.worker));
        crashes(entry.attempts, token.delivered, before, own, self.now())
    }

    /// Ends a job that was cancelled, is known, cannot be read or has expired; none where it lives on.
    /// Otherwise whether its message may be removed then.
    async fn ends(
        &self,
        Met { token, lane, origin, attempted, .. }: &Met,
        wrong: Option<Error>,
        Times { told_by, known_by, .. }: Times,
        known: &Known,
    ) -> Result<Option<bool>> {
        let id = &attempted.job.id;
        let ending = Ending { seq: token.seq, delivered: token.delivered, told_by };
        let is_back = lane.is_back || token.delivered > 1;
        let is_marked = !is_back && {
            known.marks.get_or_init(|| self.read_marks(known_by)).await;
            self.is_marked(id)
        };
        let may_be_cancelled = is_back || is_marked;
        if may_be_cancelled && self.ends_cancelled(attempted, ending, known_by).await {
            tracing::debug!(job.id = %id, "dropped, since it was cancelled");
            return Ok(Some(true));
        }
        // What cannot be read may bear the id of a job that can.
        if !lane.is_back && self.is_repetition(attempted, *origin, ending).await? {
            tracing::debug!(job.id = %id, "dropped, since its id or its key is known");
            return Ok(Some(true));
        }
        self.ends_waiting(attempted, wrong, ending).await
    }

    /// A job that is to be run, unless it is elsewhere: it came too early, or somebody put it there when
    /// its message came before.
    async fn place(&self, met: Met, until: Instant) -> Result<Option<Found>> {
        let Met { token, lane, entry, attempted, crashes, .. } = met;
        let due = entry.job.headers.not_before;
        let due = due.filter(|due| !lane.is_back && *due > self.now());
        let is_there = match due {
            Some(_) => self.put_back(&attempted, token.seq, due).await?.is_some(),
            None => {
                Self::may_have_moved(&attempted, &token, lane)
                    && self.follow_back(&attempted, token.seq).await?
            }
        };
        if is_there {
            self.shared.api.ack(&token.reply, "+ACK").await?;
            return Ok(None);
        }
        if let Some(due) = due {
            self.put_off(token, attempted, crashes, due).await?;
            return Ok(None);
        }
        let deadline = entry.job.headers.deadline.map(tick);
        let held = Held { token, until, entry: Some(entry), deadline, crashes, leaves: false };
        Ok(Some(Found { held, entry: attempted }))
    }

    /// Leaves a job that came too early where it is.
    async fn put_off(
        &self,
        token: Token,
        entry: Entry,
        crashes: Vec<Attempt>,
        due: Timestamp,
    ) -> Result<()> {
        let now = self.now();
        let (deadline, attempt) = (entry.job.headers.deadline.map(tick), entry.attempts);
        let (until, reply) = (Instant::now(), token.clone());
        let held = Held { token, until, entry: None, deadline, crashes, leaves: false };
        self.shared.leases.take(vec![held]);
        let what = format!("handed out before its time, and {STILL_COUNTS}");
        let attempt = Attempt { attempt: attempt.saturating_add(1), at: now, what };
        let after = Duration::try_from(due.duration_since(now)).unwrap_or_default();
        self.leave(&reply, attempt, after).await.map(drop)
    }
}
