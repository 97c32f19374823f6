//! Carries out verdicts: first what is new is stored, then the old message is acknowledged.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::NatsQueue;
use super::api::in_order;
use super::entry::{Entry, cut};
use super::leases::{Done, Held, Token};
use super::names::token;
use super::noted::Noted;
use super::read::Kept;
use crate::delivery::{all_settled, note};
use crate::{
    Attempt, ErrorKind, JobId, Receipt, Result, Settled, Settlement, Timestamp, Unsettled, Verdict,
};

/// The longest reason, in bytes, that stands in a holder's note: there it is kept beside many others.
const LONGEST_NOTE: usize = 256;

/// Why an attempt counts that was none.
pub(super) const STILL_COUNTS: &str =
    "counted, since the message leaves no room to write beside it that it was not tried";

impl NatsQueue {
    pub(super) async fn settle_all(
        &self,
        settlements: &[Settlement],
    ) -> Result<Vec<Settled>, Unsettled> {
        if settlements.is_empty() {
            return Ok(Vec::new());
        }
        let shared = &*self.shared;
        // What goes back goes in its old order.
        let mut order: Vec<_> = settlements.iter().enumerate().collect();
        order.sort_by_cached_key(|(_, one)| Token::read(&one.receipt().token).map(|one| one.seq));
        let parting = self.note_leaving(settlements).await;
        let (parting, noted) = (&parting, &Noted::default());
        // One that fails leaves the others to their end.
        let tasks: Vec<_> = order
            .into_iter()
            .map(|(nth, one)| async move {
                let settled = self.settle_one(one, noted).await;
                if let Ok(Settled::Lost) = settled {
                    let is_it = |token: &&Token| *token.reply == *one.receipt().token;
                    parting.iter().filter(is_it).for_each(|token| shared.leases.stay(token));
                }
                let settled = settled.or_else(|error| match error.kind() {
                    // It is the job that is wrong, and no later try will help.
                    ErrorKind::Invalid | ErrorKind::Incompatible => {
                        tracing::warn!(%error, id = %one.receipt().job, "not settled");
                        Ok(Settled::Lost)
                    }
                    _ => Err(error),
                });
                Ok((nth, settled))
            })
            .collect();
        let settled = in_order(tasks).await?;
        shared.leases.tell(&shared.api, shared.behavior.lease).await;
        let (mut failed, mut answers) = (None, vec![None; settlements.len()]);
        for (nth, settled) in settled {
            answers[nth] = settled.map_err(|error| note(&mut failed, error)).ok();
        }
        all_settled(answers, failed)
    }

    async fn settle_one(&self, settlement: &Settlement, noted: &Noted) -> Result<Settled> {
        let shared = &*self.shared;
        let Some(token) = Token::read(&settlement.receipt().token) else {
            return Ok(Settled::Lost);
        };
        if let Some(done) = shared.leases.settled(&token) {
            return self.again(&settlement.receipt().job, &token, done, noted).await;
        }
        let held = shared.leases.get(token.seq).filter(|held| held.token == token);
        let is_fresh = held.as_ref().is_some_and(|held| held.until > Instant::now());
        if !is_fresh && !self.is_latest(&token, noted).await? {
            return Ok(Settled::Lost);
        }
        let id = &settlement.receipt().job;
        let done = match (shared.leases.finished(&token), settlement.verdict()) {
            // Stored again it would be there twice, once the server has forgotten the first time.
            (Some(done), _) => done,
            (None, Verdict::Ack) => {
                if !shared.answered.take(id) {
                    // Who follows the job must not wait for ever.
                    let subject = shared.names.subject(&format!("notes.end.{}", token_of(id)));
                    shared.api.tell(&subject, bytes::Bytes::new()).await;
                }
                Done::Ack(Instant::now())
            }
            (None, verdict) => {
                let Some(entry) = self.held_entry(&token, held, noted).await? else {
                    return Ok(Settled::Lost);
                };
                let is_reject = matches!(verdict, Verdict::Reject(_));
                if is_reject && self.left_as(&entry, &token, noted).await?.is_some() {
                    // It lives on, by another message.
                    shared.api.ack(&token.reply, "+ACK").await?;
                    return Ok(Settled::Lost);
                }
                self.pass_on(entry, settlement.attempt(), &token, verdict).await?
            }
        };
        if let Done::Left = done {
            shared.leases.settle(&token, done);
            return Ok(Settled::Held);
        }
        if let Err(error) = shared.api.ack(&token.reply, "+ACK").await {
            if !self.is_forgotten(&token).await.unwrap_or(false) {
                shared.leases.finish(&token, done);
                return Err(error);
            }
            // It does not answer to what it does not know, and nobody else was handed the job.
            if self.kept_of(&token).await?.is_some() {
                shared.api.delete(&shared.names.jobs, token.seq).await?;
            }
        }
        shared.leases.settle(&token, done);
        Ok(Settled::Held)
    }

    /// Whether the server lost the delivery when it crashed: it writes down what it hands out a
    /// moment later.
    async fn is_forgotten(&self, token: &Token) -> Result<bool> {
        let shared = &*self.shared;
        let info = shared.api.consumer(&shared.names.jobs, &token.consumer).await?;
        Ok(info.is_some_and(|info| info.delivered.stream_seq < token.seq))
    }

    /// Stores what becomes of a job that is not done.
    async fn pass_on(
        &self,
        mut entry: Entry,
        attempt: u32,
        token: &Token,
        verdict: &Verdict,
    ) -> Result<Done> {
        let now = self.now();
        entry.attempts = attempt;
        match verdict {
            Verdict::Retry { after, reason } => {
                entry.record(attempt, now, reason);
                let due = now.checked_add(*after).unwrap_or(Timestamp::MAX);
                let due = (!after.is_zero()).then_some(due);
                if let Some(seq) = self.put_back(&entry, token.seq, due).await? {
                    return Ok(Done::Back(seq));
                }
                let what = cut(reason, LONGEST_NOTE).to_owned();
                self.leave(token, Attempt { attempt, at: now, what }, *after).await
            }
            Verdict::Reject(failure) => {
                entry.record(attempt, now, &failure.reason);
                Ok(Done::Dead(self.make_dead(&entry, token.seq, failure, now).await?))
            }
            Verdict::Release | Verdict::Ack => {
                entry.attempts = attempt.saturating_sub(1);
                if let Some(seq) = self.put_back(&entry, token.seq, None).await? {
                    return Ok(Done::Back(seq));
                }
                let what = format!("given back, and {STILL_COUNTS}");
                self.leave(token, Attempt { attempt, at: now, what }, Duration::ZERO).await
            }
        }
    }

    /// Leaves a message where it is, since there is no room to write beside its job what happened to
    /// it; the server hands it out again then. What happened stands in our note.
    pub(super) async fn leave(
        &self,
        token: &Token,
        attempt: Attempt,
        after: Duration,
    ) -> Result<Done> {
        let shared = &*self.shared;
        if shared.leases.get(token.seq).is_none_or(|held| held.token != *token) {
            self.adopt(token.clone(), Instant::now(), &Noted::default()).await?;
        }
        shared.leases.leave(token, attempt);
        shared.leases.write(&shared.api, shared.behavior.lease).await?;
        let nanos =
            u64::try_from(after.as_nanos()).unwrap_or(u64::MAX).min(i64::MAX.cast_unsigned());
        let way = serde_json::json!({ "delay": nanos });
        shared.api.ack(&token.reply, format!("-NAK {way}")).await?;
        Ok(Done::Left)
    }

    /// The job of this delivery with its history, from memory or from its stream.
    async fn held_entry(
        &self,
        token: &Token,
        held: Option<Held>,
        noted: &Noted,
    ) -> Result<Option<Entry>> {
        if let Some(entry) = held.and_then(|held| held.entry) {
            return Ok(Some(entry));
        }
        let shared = &*self.shared;
        let Some(kept) = self.kept_of(token).await? else { return Ok(None) };
        let mut entry = self.entry_of(&kept).0;
        if token.delivered > 1 {
            let claim = noted.claims(&shared.api, &shared.names).await?.get(token.message());
            let claim = claim.filter(|claim| claim.delivered == token.delivered);
            entry.history.extend(claim.into_iter().flat_map(|claim| claim.crashes.clone()));
        }
        Ok(Some(entry))
    }

    /// The message of this delivery, and no other of its number, if it is still there.
    async fn kept_of(&self, token: &Token) -> Result<Option<Kept>> {
        let shared = &*self.shared;
        let kept = shared.api.at(&shared.names.jobs, token.seq).await?;
        Ok(kept.filter(|kept| (kept.seq, kept.at) == token.message()))
    }

    /// Whether nobody else took the job since this delivery, and it is still there.
    async fn is_latest(&self, token: &Token, noted: &Noted) -> Result<bool> {
        let shared = &*self.shared;
        let is_newer = |delivered| delivered > token.delivered;
        let own = shared.leases.get(token.seq).map(|held| held.token);
        let own = own.filter(|own| own.message() == token.message());
        if own.is_some_and(|own| is_newer(own.delivered)) || self.kept_of(token).await?.is_none() {
            return Ok(false);
        }
        let claims = noted.claims(&shared.api, &shared.names).await?;
        Ok(!claims.get(token.message()).is_some_and(|claim| is_newer(claim.delivered)))
    }

    /// Whether a settlement that was carried out before is still the last that happened to its job.
    async fn again(&self, id: &JobId, token: &Token, done: Done, noted: &Noted) -> Result<Settled> {
        let shared = &*self.shared;
        let is_last = match done {
            Done::Left => self.is_latest(token, noted).await?,
            Done::Ack(at) => at.elapsed() < shared.behavior.key_ttl,
            Done::Back(seq) => {
                let kept = shared.api.at(&shared.names.jobs, seq).await?;
                match kept.filter(|_| shared.leases.get(seq).is_none()) {
                    Some(Kept { seq, at, .. }) => {
                        let claims = noted.claims(&shared.api, &shared.names).await?;
                        claims.get((seq, at)).is_none()
                    }
                    None => false,
                }
            }
            Done::Dead(seq) => {
                let letter = self.dead_letter(id).await?;
                letter.is_some_and(|kept| kept.seq == seq)
            }
        };
        Ok(if is_last { Settled::Held } else { Settled::Lost })
    }

    pub(super) async fn extend_all(&self, receipts: &[Receipt]) -> Result<Vec<Settled>> {
        let shared = &*self.shared;
        if receipts.is_empty() {
            return Ok(Vec::new());
        }
        let (n_held, noted) = (shared.leases.n_held(), Noted::default());
        let tasks = receipts.iter().map(|receipt| self.extend_one(receipt, &noted)).collect();
        // Who has no room for more jobs looks at the stream at no other time. No lease waits long for that.
        let look = timeout(shared.behavior.lease / 8, self.meet_again());
        let (extended, _) = tokio::join!(in_order(tasks), look);
        let extended = extended?;
        if shared.leases.n_held() > n_held {
            // Nobody else will say that these are held.
            shared.leases.write(&shared.api, shared.behavior.lease).await?;
        } else {
            shared.leases.tell(&shared.api, shared.behavior.lease).await;
        }
        Ok(extended)
    }

    async fn extend_one(&self, receipt: &Receipt, noted: &Noted) -> Result<Settled> {
        let shared = &*self.shared;
        let Some(token) = Token::read(&receipt.token) else { return Ok(Settled::Lost) };
        if shared.leases.settled(&token).is_some() {
            return Ok(Settled::Lost);
        }
        let begin = Instant::now();
        let held = shared.leases.get(token.seq).filter(|held| held.token == token);
        let is_fresh = held.as_ref().is_some_and(|held| held.until > begin);
        if !is_fresh && !self.is_latest(&token, noted).await? {
            return Ok(Settled::Lost);
        }
        shared.api.ack(&token.reply, "+WPI").await?;
        let until = begin + shared.behavior.lease;
        match held {
            Some(_) => shared.leases.extend(&token, until),
            // From now on this handle answers for the delivery.
            None => self.adopt(token, until, noted).await?,
        }
        Ok(Settled::Held)
    }

    async fn adopt(&self, token: Token, until: Instant, noted: &Noted) -> Result<()> {
        let Some(entry) = self.held_entry(&token, None, noted).await? else { return Ok(()) };
        let deadline = entry.job.headers.deadline.map(super::names::tick);
        let claims = noted.claims(&self.shared.api, &self.shared.names).await?;
        let claim = claims.get(token.message());
        let claim = claim.filter(|claim| claim.delivered == token.delivered);
        let crashes = claim.map(|claim| claim.crashes.clone()).unwrap_or_default();
        let held = Held { token, until, entry: Some(entry), deadline, crashes, leaves: false };
        self.shared.leases.take(vec![held]);
        Ok(())
    }
}

/// An id as one token of a subject.
pub(super) fn token_of(id: &JobId) -> String {
    token(id.as_str())
}
