//! Jobs that somebody cancels: that is stored as their result, and their messages go as soon as they are
//! met.
//!
//! A message that was handed to nobody is deleted at once, where its number is known: from its id, as long
//! as the server remembers that. One that somebody has is left to whoever has it, and what comes back has
//! its result looked at before it is handed out again. Of what is found by neither a mark tells until it is
//! met; a worker looks whether there is a new one with each look that finds something, and reads all of
//! them only then.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_nats::HeaderMap;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;

use super::NatsQueue;
use super::entry::Entry;
use super::names::Place;
use super::read::Kept;
use super::settle::{Ending, token_of};
use crate::cancel;
use crate::owed;
use crate::{Cancelled, Error, ErrorKind, JobId, JobState, Outcome, Result};

/// How often a job may have been stored anew since the server came to know its id.
const HOPS: usize = 64;

/// How often a job is looked for that others move meanwhile.
const TRIES: usize = 16;

/// Jobs that were cancelled and whose messages nobody has met yet, as far as this handle knows.
#[derive(Debug, Default)]
pub(super) struct Marks(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// The number of the last mark that was read, 0 where there is none.
    last: u64,
    subjects: HashSet<String>,
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
        if self.dead_letter(id).await?.is_some() || self.has_ended(id).await? {
            return Ok(Cancelled::Ended);
        }
        // A failure without a dead letter is one that is about to be buried.
        if self.answer(id).await?.is_some() {
            return Ok(Cancelled::Ended);
        }
        let mut found = self.message_of(id).await?;
        if let Some((kept, entry)) = &found
            && self.state_at(kept.seq, &entry.job).await? == JobState::Dead
        {
            return Ok(Cancelled::Ended);
        }
        // Before its result: with that alone nobody would look for it.
        let mark = if found.is_none() { Some(self.mark(id).await?) } else { None };
        if !cancel::put(self, id, self.now()).await? {
            if let Some(mark) = mark {
                self.shared.api.delete(&self.shared.names.results, mark).await?;
            }
            return Ok(Cancelled::Ended);
        }
        let told = self.shared.names.subject("cancelled");
        self.shared.api.tell(&told, Bytes::from(id.to_string())).await;
        for _ in 0..TRIES {
            let Some((kept, entry)) = found else { break };
            match self.meet(&kept, &entry).await? {
                Met::Out(JobState::Running) => return Ok(Cancelled::Running),
                Met::Gone | Met::Out(_) => return Ok(Cancelled::Waiting),
                Met::Moved => found = self.message_of(id).await?,
            }
        }
        // What was moved meanwhile is looked at by whoever it is handed to.
        Ok(Cancelled::Marked)
    }

    /// Deletes the message of a cancelled job that nobody was handed, and tells of it.
    async fn meet(&self, kept: &Kept, entry: &Entry) -> Result<Met> {
        let shared = &*self.shared;
        if let Some(Place::Lane(lane, _)) = shared.names.place(&kept.subject) {
            let info = shared.api.consumer(&shared.names.jobs, lane.consumer()).await?;
            if info.is_some_and(|info| info.delivered.stream_seq >= kept.seq) {
                if shared.api.at(&shared.names.jobs, kept.seq).await?.is_none() {
                    return Ok(Met::Moved);
                }
                return self.state_at(kept.seq, &entry.job).await.map(Met::Out);
            }
        }
        if !shared.api.delete(&shared.names.jobs, kept.seq).await? {
            return Ok(Met::Moved);
        }
        if let Some(result) = self.answer(&entry.job.id).await? {
            self.tell(entry, result, owed::sending_ends(shared.behavior.lease)).await;
        }
        // Who counts the jobs is to count anew.
        shared.api.tell(&shared.names.subject("phase"), Bytes::new()).await;
        Ok(Met::Gone)
    }

    /// The message of a job, if it can be found: by the number that is part of its id or that a worker
    /// noted, or as what was stored by its id, and then anew by that of the message before.
    async fn message_of(&self, id: &JobId) -> Result<Option<(Kept, Entry)>> {
        let shared = &*self.shared;
        let mut seq = self.number_of(id).await?;
        for _ in 0..HOPS {
            let by = seq.map_or_else(|| id.to_string(), |seq| format!("{id}/{seq}"));
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
        let api = &self.shared.api;
        let subject = self.mark_subject(&token_of(id));
        let mark = api.publish(&subject, HeaderMap::new(), Bytes::new()).await?;
        // In this order: who finds this one reads the other.
        api.publish(&self.mark_subject("=last"), HeaderMap::new(), Bytes::new()).await?;
        Ok(mark.seq)
    }

    /// Whether a job was cancelled that somebody received, and if so tells of it: its message may be
    /// removed then.
    pub(super) async fn ends_cancelled(
        &self,
        entry: &Entry,
        ending: Ending,
        is_marked: bool,
    ) -> Result<bool> {
        let id = &entry.job.id;
        let there = self.answer(id).await?;
        let Some(there) = there.filter(|there| there.outcome == Outcome::Cancelled) else {
            return Ok(false);
        };
        self.tell(entry, there, ending.told_by).await;
        if is_marked {
            self.unmark(id).await?;
        }
        Ok(true)
    }

    /// Reads the marks, if there is a new one.
    pub(super) async fn read_marks(&self) -> Result<()> {
        let shared = &*self.shared;
        let last = shared.api.last(&shared.names.results, &self.mark_subject("=last")).await?;
        let last = last.map_or(0, |kept| kept.seq);
        if last != self.marks().last {
            let all = self.mark_subject("*");
            let info = shared.api.subjects(&shared.names.results, &all).await?;
            let subjects = info.and_then(|info| info.state.subjects).unwrap_or_default();
            *self.marks() = Known { last, subjects: subjects.into_keys().collect() };
        }
        Ok(())
    }

    /// Whether a job is to be dropped, as far as the marks say that were read last.
    pub(super) fn is_marked(&self, id: &JobId) -> bool {
        let marks = self.marks();
        !marks.subjects.is_empty() && marks.subjects.contains(&self.mark_subject(&token_of(id)))
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

    pub(super) async fn hear_of_cancelled(&self) -> Result<BoxStream<'static, JobId>> {
        let api = &self.shared.api;
        let subscribed = api.client.subscribe(self.shared.names.subject("cancelled")).await;
        let told = subscribed.map_err(|error| {
            Error::new(ErrorKind::Unavailable, format!("cannot subscribe: {error}"))
        })?;
        // The server answers in turn: it has read the subscription when it answers this.
        api.stream(&self.shared.names.status).await?;
        let ids =
            told.filter_map(
                |told| async move { std::str::from_utf8(&told.payload).ok()?.parse().ok() },
            );
        Ok(ids.boxed())
    }
}
