//! Jobs that somebody cancels: that is stored as their result, and their messages go as soon as they are
//! met.
//!
//! A message that was handed to nobody is deleted at once, where its number is known: from its id, as long
//! as the server remembers that. One that somebody has is left to whoever has it, and what comes back has
//! its result looked at before it is handed out again. Of what is found by neither a mark tells until it is
//! met; a worker that finds something looks once a second, or when it hears of a cancelled job, whether
//! there is a new mark, and reads those that are new. A mark stands while a job is being cancelled, too, so
//! that one whose canceller dies halfway is not run.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::NatsQueue;
use super::back::message_id;
use super::ending::Ending;
use super::entry::Entry;
use super::leases::Claims;
use super::names::Place;
use super::read::Kept;
use super::settle::token_of;
use crate::owed;
use crate::{Cancelled, JobId, JobResult, JobState, Outcome, Result};

/// Stands for the id of a job in the mark that says which was the last.
const LAST: &str = "=last";

/// How often a job may have been stored anew since the server came to know its id.
const HOPS: usize = 64;

/// How often a job is looked for that others move meanwhile.
const TRIES: usize = 16;

/// From one look whether there are new marks to the next.
const PERIOD: Duration = Duration::from_secs(1);

/// The same after one that failed: of what was handed out meanwhile the leases run.
const LONG_PERIOD: Duration = Duration::from_secs(10);

/// So long jobs that are leased already wait for what is known of them as cancelled, all together, and a
/// quarter of their lease where that is less.
const PATIENCE: Duration = Duration::from_secs(5);

/// The same where the last ones waited in vain.
const BLIND_PATIENCE: Duration = Duration::from_secs(1);

/// With less than this left nothing is asked.
const LEAST_PATIENCE: Duration = Duration::from_millis(10);

/// New marks that are read one by one; where there are more, all are listed.
const STEP: usize = 64;

/// Jobs that were cancelled and whose messages nobody has met yet, as far as this handle knows.
#[derive(Debug, Default)]
pub(super) struct Marks(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// The number of the last mark that was read, 0 where there is none.
    last: u64,
    subjects: HashSet<String>,
    /// How many there were when all were listed.
    n_listed: usize,
    /// Until when nobody looks for more.
    fresh_until: Option<Instant>,
    /// Whether it was said that nobody can look.
    is_blind: bool,
}

impl Known {
    fn is_fresh(&self) -> bool {
        self.fresh_until.is_some_and(|until| Instant::now() < until)
    }
}

/// What became of the message of a job.
enum Met {
    /// It is deleted.
    Gone,
    /// Somebody has it, or had it.
    Out(JobState),
    /// It is not where it was.
    Moved,
}

impl NatsQueue {
    pub(super) async fn cancel_job(&self, id: &JobId) -> Result<Cancelled> {
        let before = self.record(id).await?;
        let is_cancelled = is_cancelled(before.result.as_ref());
        if before.is_final() && !is_cancelled {
            return Ok(Cancelled::Ended);
        }
        // The letter first: the message that puts it back is stored before the letter is deleted.
        let (letter, has_ended) = tokio::try_join!(self.dead_letter(id), self.has_ended(id))?;
        let found = self.message_of(id).await?;
        if is_cancelled {
            // Whoever cancelled it may have died before its message was gone.
            let Some(found) = found else { return Ok(Cancelled::Ended) };
            let cancelled = self.drop_message(id, Some(found)).await?;
            if cancelled != Cancelled::Marked {
                self.unmark(id).await?;
            }
            return Ok(cancelled);
        }
        if letter.is_some()
            || has_ended
            || self.is_ending(before.result.as_ref(), found.as_ref()).await?
        {
            return Ok(Cancelled::Ended);
        }
        // Before its result: with that alone nobody would look for it.
        let mark = self.mark(id).await?;
        if !self.put_cancelled(id, before).await? {
            self.shared.api.delete(&self.shared.names.results, mark).await?;
            return Ok(Cancelled::Ended);
        }
        self.hint(id).await;
        let cancelled = self.drop_message(id, found).await?;
        if cancelled != Cancelled::Marked {
            self.shared.api.delete(&self.shared.names.results, mark).await?;
        }
        Ok(cancelled)
    }

    /// Whether a job without a final result comes to its end all the same: it is too late for it, or a
    /// failure is stored and whoever stored it is about to bury it.
    async fn is_ending(
        &self,
        failure: Option<&JobResult>,
        found: Option<&(Kept, Entry)>,
    ) -> Result<bool> {
        let Some((kept, entry)) = found else { return Ok(failure.is_some()) };
        if failure.is_none() && !entry.job.expired(self.now()) {
            // Wherever it is; who holds what takes a look at the note of each handle.
            return Ok(false);
        }
        let state = self.state_at((kept.seq, kept.at), &entry.job).await?;
        let Some(failure) = failure.filter(|_| state != JobState::Dead) else {
            return Ok(state == JobState::Dead);
        };
        if state != JobState::Running {
            return Ok(false);
        }
        let claims = Claims::load(&self.shared.api, &self.shared.names).await?;
        let claim = claims.get((kept.seq, kept.at));
        let attempt = claim.map_or(0, |claim| entry.attempts.saturating_add(claim.delivered));
        Ok(failure.attempt >= attempt)
    }

    /// Tells who may be running a job that it was cancelled.
    async fn hint(&self, id: &JobId) {
        let told = self.shared.names.subject("cancelled");
        self.shared.api.tell(&told, Bytes::from(id.to_string())).await;
    }

    /// Does away with the message of a cancelled job, unless somebody else has to.
    async fn drop_message(
        &self,
        id: &JobId,
        mut found: Option<(Kept, Entry)>,
    ) -> Result<Cancelled> {
        let mut is_told = false;
        for _ in 0..TRIES {
            let Some((kept, entry)) = found else { break };
            match self.meet(&kept, &entry, &mut is_told).await? {
                Met::Out(JobState::Running) => {
                    // Whoever was just handed it may not have known the first time that it is theirs.
                    self.hint(id).await;
                    return Ok(Cancelled::Running);
                }
                Met::Gone | Met::Out(_) => return Ok(Cancelled::Waiting),
                Met::Moved => found = self.message_of(id).await?,
            }
        }
        // What was moved meanwhile is looked at by whoever it is handed to.
        Ok(Cancelled::Marked)
    }

    /// Tells of a cancelled job that nobody was handed, unless it is told, and only then deletes its message.
    async fn meet(&self, kept: &Kept, entry: &Entry, is_told: &mut bool) -> Result<Met> {
        let shared = &*self.shared;
        if let Some(met) = self.meets_handed_out(kept, entry).await? {
            return Ok(met);
        }
        if !*is_told
            && entry.job.headers.reply_to.is_some()
            && let Some(result) = self.answer(&entry.job.id).await?
        {
            *is_told = true;
            self.tell(entry, result, owed::sending_ends(shared.behavior.lease)).await;
            // That may take long.
            if let Some(met) = self.meets_handed_out(kept, entry).await? {
                return Ok(met);
            }
        }
        if !shared.api.delete(&shared.names.jobs, kept.seq).await? {
            return Ok(Met::Moved);
        }
        // Who counts the jobs is to count anew.
        shared.api.tell(&shared.names.subject("phase"), Bytes::new()).await;
        Ok(Met::Gone)
    }

    /// What became of a message that somebody was handed.
    async fn meets_handed_out(&self, kept: &Kept, entry: &Entry) -> Result<Option<Met>> {
        let shared = &*self.shared;
        let Some(Place::Lane(lane, _)) = shared.names.place(&kept.subject) else { return Ok(None) };
        let info = shared.api.consumer(&shared.names.jobs, lane.consumer()).await?;
        if info.is_none_or(|info| info.delivered.stream_seq < kept.seq) {
            return Ok(None);
        }
        if shared.api.at(&shared.names.jobs, kept.seq).await?.is_none() {
            return Ok(Some(Met::Moved));
        }
        self.state_at((kept.seq, kept.at), &entry.job).await.map(|state| Some(Met::Out(state)))
    }

    /// The message of a job, if it can be found: by the number that is part of its id or that a worker
    /// noted, or as what was stored by its id, and then anew by that of the message before.
    async fn message_of(&self, id: &JobId) -> Result<Option<(Kept, Entry)>> {
        let shared = &*self.shared;
        let mut seq = self.number_of(id).await?;
        for _ in 0..HOPS {
            let by = seq.map_or_else(|| id.to_string(), |seq| message_id(id, seq));
            if let Some(seq) = seq
                && let Some(kept) = shared.api.at(&shared.names.jobs, seq).await?
            {
                let entry = self.entry_of(&kept).0;
                return Ok((entry.job.id == *id).then_some((kept, entry)));
            }
            let next = shared.api.known(&shared.names.plain(), &by).await?;
            if next.is_none() || next == seq {
                return Ok(None);
            }
            seq = next;
        }
        Ok(None)
    }

    fn mark_subject(&self, id: &str) -> String {
        self.shared.names.subject(&format!("chunks.=cancelled.{id}.0"))
    }

    /// Notes that a job is to be dropped by who meets it; the number of the note.
    async fn mark(&self, id: &JobId) -> Result<u64> {
        let (api, subject) = (&self.shared.api, self.mark_subject(&token_of(id)));
        let mark = api.publish(&subject, HeaderMap::new(), Bytes::new()).await?;
        // In this order: who finds this one reads the other.
        api.publish(&self.mark_subject(LAST), HeaderMap::new(), Bytes::new()).await?;
        self.look_anew();
        Ok(mark.seq)
    }

    /// Whether a job was cancelled that somebody received, and if so tells of it: its message may be
    /// removed then. Where that cannot be known it was not: whoever runs it finds out when the answer
    /// is stored. Other jobs wait for it, so it is to be known by then.
    pub(super) async fn ends_cancelled(&self, entry: &Entry, ending: Ending, by: Instant) -> bool {
        let id = &entry.job.id;
        let there = self.seen(by, self.answer(id)).await.flatten();
        let Some(there) = there.filter(|there| is_cancelled(Some(there))) else { return false };
        self.tell(entry, there, ending.told_by).await;
        if !matches!(timeout_at(by, self.unmark(id)).await, Ok(Ok(()))) {
            tracing::debug!(job.id = %id, "the mark of a cancelled job stays");
        }
        true
    }

    /// What was looked for of cancelled jobs, unless that takes longer or fails: that is said once, until
    /// it is seen again. What came too late to look at all says nothing of the results.
    async fn seen<T>(&self, by: Instant, look: impl Future<Output = Result<T>>) -> Option<T> {
        if is_too_late(by) {
            return None;
        }
        let error = match timeout_at(by, look).await {
            Ok(Ok(seen)) => {
                self.marks().is_blind = false;
                return Some(seen);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the results do not answer in time".to_owned(),
        };
        let was_blind = std::mem::replace(&mut self.marks().is_blind, true);
        if !was_blind {
            tracing::warn!(error, "it is not known whether jobs were cancelled; they run");
        }
        None
    }

    /// How long jobs may wait from now on for what is known of them as cancelled.
    pub(super) fn patience(&self) -> Duration {
        let longest = if self.marks().is_blind { BLIND_PATIENCE } else { PATIENCE };
        longest.min(self.shared.behavior.lease / 4)
    }

    /// Reads the marks that are new, if it is time to; they are to be known by then.
    pub(super) async fn read_marks(&self, by: Instant) {
        // The next look reads them where it is too late for this one.
        if self.marks().is_fresh() || is_too_late(by) {
            return;
        }
        // First: what is cancelled from now on asks for another look.
        self.marks().fresh_until = Some(Instant::now() + PERIOD);
        if self.seen(by, self.read_new_marks()).await.is_none() {
            self.marks().fresh_until = Some(Instant::now() + LONG_PERIOD);
        }
    }

    async fn read_new_marks(&self) -> Result<()> {
        let shared = &*self.shared;
        let last = shared.api.last(&shared.names.results, &self.mark_subject(LAST)).await?;
        let last = last.map_or(0, |kept| kept.seq);
        let (before, n_known, n_listed) = {
            let marks = self.marks();
            (marks.last, marks.subjects.len(), marks.n_listed)
        };
        if last == before {
            return Ok(());
        }
        // Others met some of those that are known.
        let is_stale = last < before || n_known > 2 * n_listed + STEP;
        if before == 0 || is_stale || !self.read_marks_between(before, last).await? {
            let info = shared.api.subjects(&shared.names.results, &self.mark_subject("*")).await?;
            let subjects = info.and_then(|info| info.state.subjects).unwrap_or_default();
            let mut marks = self.marks();
            marks.subjects = subjects.into_keys().collect();
            marks.n_listed = marks.subjects.len();
        }
        self.marks().last = last;
        Ok(())
    }

    /// Reads the marks after one number and before another, unless they are many; whether it did.
    async fn read_marks_between(&self, after: u64, before: u64) -> Result<bool> {
        let (shared, all) = (&*self.shared, self.mark_subject("*"));
        let mut from = after + 1;
        for _ in 0..STEP {
            let next = shared.api.next(&shared.names.results, from, &all).await?;
            let Some(mark) = next.filter(|mark| mark.seq < before) else { return Ok(true) };
            from = mark.seq + 1;
            self.marks().subjects.insert(mark.subject);
        }
        Ok(false)
    }

    /// Whether a job is to be dropped, as far as the marks say that were read last.
    pub(super) fn is_marked(&self, id: &JobId) -> bool {
        let marks = self.marks();
        !marks.subjects.is_empty() && marks.subjects.contains(&self.mark_subject(&token_of(id)))
    }

    /// A job was cancelled, or may have been: the next look at what is new is not put off.
    pub(super) fn look_anew(&self) {
        self.marks().fresh_until = None;
    }

    fn marks(&self) -> MutexGuard<'_, Known> {
        self.shared.marks.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn unmark(&self, id: &JobId) -> Result<()> {
        let (shared, subject) = (&*self.shared, self.mark_subject(&token_of(id)));
        if let Some(mark) = shared.api.last(&shared.names.results, &subject).await? {
            shared.api.delete(&shared.names.results, mark.seq).await?;
        }
        self.marks().subjects.remove(&subject);
        Ok(())
    }
}

/// Whether what is to be known by then is not worth asking for any more.
fn is_too_late(by: Instant) -> bool {
    Instant::now() + LEAST_PATIENCE > by
}

fn is_cancelled(there: Option<&JobResult>) -> bool {
    there.is_some_and(|there| there.outcome == Outcome::Cancelled)
}
