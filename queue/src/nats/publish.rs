//! Stores jobs under ids and keys that are known only once.

use std::collections::HashMap;

use async_nats::HeaderMap;
use serde::{Deserialize, Serialize};

use super::NatsQueue;
use super::api::in_order;
use super::entry::{Entry, LONGEST_HEADERS, MSG_ID, ROOM, size};
use super::names::token;
use super::read::Kept;
use super::settle::token_of;
use crate::{Error, ErrorKind, Job, JobId, Published, Result, Timestamp};

/// How often a key is tried that others take and leave at the same time.
const TRIES: usize = 100;

/// What lies under a key, or under the id of a plain message.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Mark {
    pub(super) id: JobId,
    /// Whether the job itself is stored.
    pub(super) is_stored: bool,
    /// The number of the plain message that it came by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) message: Option<u64>,
    /// When that message was stored: a stream that was lost and made anew begins to count again. Versions
    /// before this one did not note it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) stored_at: Option<Timestamp>,
}

impl Mark {
    pub(super) fn write(&self) -> bytes::Bytes {
        // Plain data cannot fail to be written.
        serde_json::to_vec(self).unwrap_or_default().into()
    }

    /// Whether it came by the message of this number, stored at this moment.
    pub(super) fn is_of(&self, seq: u64, at: Timestamp) -> bool {
        self.message == Some(seq) && self.stored_at.is_none_or(|noted| noted == at)
    }
}

/// What was forgotten of a job that waits.
#[derive(Debug, Default)]
pub(super) struct Forgotten {
    /// Whether it has gone on to another queue.
    pub(super) has_gone_on: bool,
    /// The number of the note that its id is as good as new.
    pub(super) note: Option<u64>,
    /// The marks under its id and its key.
    pub(super) marks: Vec<Kept>,
}

pub(super) fn read_mark(subject: &str, kept: &Kept) -> Result<Mark> {
    serde_json::from_slice(&kept.body).map_err(|error| {
        let words = format!("stored key {subject} cannot be read");
        Error::new(ErrorKind::Incompatible, words).caused_by(error)
    })
}

/// Who has a key; the numbers are those of the marks.
enum Key {
    /// This job: nobody had it before.
    New(u64),
    /// A job that may be stored or not. It is this one, sent again; or the producer of another is
    /// about to store it, or is gone, or was not told what became of it.
    Begun(JobId, u64),
    /// A job that is stored.
    Known(JobId),
}

/// One job of a batch, with what it is to become of it.
enum Line {
    Store(Box<(Job, HeaderMap)>),
    /// The same as an earlier one of this batch.
    Repeats(usize),
}

impl NatsQueue {
    pub(super) async fn publish_all(&self, jobs: Vec<Job>) -> Result<Vec<Published>> {
        let lines = self.lines(jobs)?;
        let n_new = lines.iter().filter(|line| matches!(line, Line::Store(_))).count();
        self.make_sure_of_room(n_new).await?;
        // First all keys: a job that has one would be stored behind those that have none.
        let claims = lines.iter().map(|line| async move {
            match line {
                Line::Store(one) => self.claim_key_of(&one.0).await,
                Line::Repeats(_) => Ok(None),
            }
        });
        let keys = in_order(claims.collect()).await?;
        let tasks = lines.iter().zip(keys).map(|(line, key)| async move {
            match line {
                Line::Store(one) => self.publish_one(&one.0, &one.1, key).await.map(Some),
                Line::Repeats(_) => Ok(None),
            }
        });
        let published: Vec<Option<Published>> = in_order(tasks.collect()).await?;
        let id_of = |nth: usize| published[nth].as_ref().map(|one| one.id.clone());
        let all = lines.iter().zip(&published).filter_map(|(line, one)| match line {
            Line::Store(_) => one.clone(),
            Line::Repeats(first) => Some(Published { id: id_of(*first)?, duplicate: true }),
        });
        Ok(all.collect())
    }

    /// Checks all of a batch before any of it is sent.
    fn lines(&self, jobs: Vec<Job>) -> Result<Vec<Line>> {
        let longest = self.longest();
        let (mut ids, mut keys) = (HashMap::new(), HashMap::new());
        let mut lines = Vec::with_capacity(jobs.len());
        for job in jobs {
            let nth = lines.len();
            let known = ids.get(&job.id).or_else(|| keys.get(job.headers.key.as_ref()?));
            if let Some(first) = known {
                lines.push(Line::Repeats(*first));
                continue;
            }
            ids.insert(job.id.clone(), nth);
            keys.extend(job.headers.key.clone().map(|key| (key, nth)));
            let headers = Entry::new(job.clone()).headers(job.id.as_str())?;
            if let Some(words) = excess(&job, size(&headers), longest) {
                return Err(Error::new(ErrorKind::Invalid, words));
            }
            lines.push(Line::Store(Box::new((job, headers))));
        }
        Ok(lines)
    }

    /// The longest body that fits with all that may be written beside it.
    pub(super) fn longest(&self) -> usize {
        self.shared.api.client.server_info().max_payload.saturating_sub(ROOM)
    }

    async fn make_sure_of_room(&self, n_new: usize) -> Result<()> {
        let Some(limit) = self.shared.behavior.max_ready.filter(|_| n_new > 0) else {
            return Ok(());
        };
        let (depth, ..) = self.survey_depth().await?;
        if depth.ready + depth.delayed + n_new as u64 <= limit {
            return Ok(());
        }
        let words = format!("the queue is full: max_ready is {limit} jobs; publish later");
        Err(Error::new(ErrorKind::Full, words))
    }

    /// Who has the key of a job, if it has one.
    async fn claim_key_of(&self, job: &Job) -> Result<Option<Key>> {
        let Some(key) = &job.headers.key else { return Ok(None) };
        self.claim_key(&self.subject_of(key), &job.id).await.map(Some)
    }

    pub(super) fn subject_of(&self, key: &str) -> String {
        self.shared.names.subject(&format!("keys.{}", token(key)))
    }

    async fn publish_one(
        &self,
        job: &Job,
        headers: &HeaderMap,
        mut claimed: Option<Key>,
    ) -> Result<Published> {
        let Some(key) = &job.headers.key else { return Ok(self.store(job, headers).await?.0) };
        let (shared, subject) = (&*self.shared, self.subject_of(key));
        for _ in 0..TRIES {
            let claim = match claimed.take() {
                Some(claim) => claim,
                None => self.claim_key(&subject, &job.id).await?,
            };
            match claim {
                Key::Known(id) => return Ok(Published { id, duplicate: true }),
                Key::New(seq) => {
                    let (published, at) = self.store_new(job, headers, seq).await?;
                    // The id was there before the key, unless somebody just did our work.
                    if published.duplicate && self.has_key(at, key).await? != Some(true) {
                        shared.api.delete(&shared.names.keys, seq).await?;
                    } else {
                        self.mark_key(&subject, &job.id, seq).await;
                    }
                    return Ok(published);
                }
                Key::Begun(id, seq) => {
                    // Under the id that the key has: the server stores only one such job, whoever
                    // sends it and how often.
                    let same = Job { id, ..job.clone() };
                    let headers = Entry::new(same.clone()).headers(same.id.as_str())?;
                    let (published, at) = self.store(&same, &headers).await?;
                    let is_other =
                        published.duplicate && self.has_key(at, key).await? == Some(false);
                    if !is_other {
                        self.mark_key(&subject, &same.id, seq).await;
                        return Ok(published);
                    }
                    // The id was there before, without the key.
                    shared.api.delete(&shared.names.keys, seq).await?;
                    if same.id == job.id {
                        return Ok(published);
                    }
                }
            }
        }
        let words = format!("others take and leave the key {key} all the time; publish again");
        Err(Error::new(ErrorKind::Unavailable, words))
    }

    /// Stores a job whose key is new; the key is free again where the job is surely not stored.
    async fn store_new(
        &self,
        job: &Job,
        headers: &HeaderMap,
        seq: u64,
    ) -> Result<(Published, u64)> {
        let stored = self.store(job, headers).await;
        if let Err(error) = &stored
            && !error.may_be_stored()
            && let Err(error) = self.shared.api.delete(&self.shared.names.keys, seq).await
        {
            tracing::debug!(%error, %job.id, "its key is not freed");
        }
        stored
    }

    /// Whether the job of this number has the key; `None` where it is not there any more.
    async fn has_key(&self, seq: u64, key: &str) -> Result<Option<bool>> {
        let kept = self.shared.api.at(&self.shared.names.jobs, seq).await?;
        Ok(kept.map(|kept| self.entry_of(&kept).0.job.headers.key.as_deref() == Some(key)))
    }

    /// Stores one job, and tells its number; an id that was purged a moment ago is as good as new.
    async fn store(&self, job: &Job, headers: &HeaderMap) -> Result<(Published, u64)> {
        let shared = &*self.shared;
        let is_due = job.headers.not_before.is_none_or(|at| at <= self.now());
        let deadline = job.headers.deadline;
        let lane = Entry::new(job.clone()).lane(false);
        let subject = match job.headers.not_before.filter(|_| !is_due) {
            Some(due) => shared.names.later(due, deadline),
            None => shared.names.lane(lane, deadline),
        };
        let mut ack = shared.api.publish(&subject, headers.clone(), job.body.clone()).await?;
        if ack.duplicate {
            let purged = shared.names.subject(&format!("notes.purged.{}", token_of(&job.id)));
            if let Some(mark) = shared.api.last(&shared.names.notes, &purged).await? {
                let mut headers = headers.clone();
                headers.insert(MSG_ID, format!("{} purged {}", job.id, mark.seq));
                ack = shared.api.publish(&subject, headers, job.body.clone()).await?;
            }
        }
        match is_due {
            false => shared.later.disturb(),
            true if ack.duplicate => {}
            true => shared.sight.fill(lane, ack.seq),
        }
        Ok((Published { id: job.id.clone(), duplicate: ack.duplicate }, ack.seq))
    }

    /// Takes a key for a job that is about to be stored.
    async fn claim_key(&self, subject: &str, id: &JobId) -> Result<Key> {
        let shared = &*self.shared;
        loop {
            let mark = mark(id, false);
            if let Some(seq) = shared.api.swap(subject, HeaderMap::new(), mark, 0).await? {
                return Ok(Key::New(seq));
            }
            let Some(kept) = shared.api.last(&shared.names.keys, subject).await? else {
                continue;
            };
            let known = read_mark(subject, &kept)?;
            return Ok(match known.is_stored {
                true => Key::Known(known.id),
                false => Key::Begun(known.id, kept.seq),
            });
        }
    }

    /// The job is stored, whatever becomes of this: whoever meets the key again stores it under the
    /// same id.
    async fn mark_key(&self, subject: &str, id: &JobId, seq: u64) {
        if let Err(error) = self.try_mark_key(subject, id, seq).await {
            tracing::debug!(%error, job.id = %id, "its key is not marked as stored");
        }
    }

    async fn try_mark_key(&self, subject: &str, id: &JobId, seq: u64) -> Result<()> {
        let api = &self.shared.api;
        let mark = || mark(id, true);
        if api.swap(subject, HeaderMap::new(), mark(), seq).await?.is_none()
            && api.last(&self.shared.names.keys, subject).await?.is_none()
        {
            // Another who had begun with the same job failed, and took the mark away.
            api.swap(subject, HeaderMap::new(), mark(), 0).await?;
        }
        // Where it is another by now, somebody has stored the same job and said so.
        Ok(())
    }

    /// Forgets what lies under the key of a job that was purged.
    pub(super) async fn forget_key(&self, subject: &str, id: &JobId) -> Result<()> {
        self.forget_mark(subject, |mark| mark.id == *id).await.map(drop)
    }

    /// The same where the mark is the right one; what it was.
    pub(super) async fn forget_mark(
        &self,
        subject: &str,
        is_it: impl Fn(&Mark) -> bool,
    ) -> Result<Option<Kept>> {
        let shared = &*self.shared;
        let Some(kept) = shared.api.last(&shared.names.keys, subject).await? else {
            return Ok(None);
        };
        if !serde_json::from_slice::<Mark>(&kept.body).is_ok_and(|mark| is_it(&mark)) {
            return Ok(None);
        }
        let is_ours = shared.api.delete(&shared.names.keys, kept.seq).await?;
        Ok(Some(kept).filter(|_| is_ours))
    }

    /// Remembers again what was forgotten of a job that lives on, unless somebody has its place by now.
    pub(super) async fn remember(&self, forgotten: Forgotten) -> Result<()> {
        let shared = &*self.shared;
        for Kept { subject, body, .. } in forgotten.marks {
            shared.api.swap(&subject, HeaderMap::new(), body, 0).await?;
        }
        if let Some(seq) = forgotten.note {
            shared.api.delete(&shared.names.notes, seq).await?;
        }
        Ok(())
    }
}

/// What of a job is too long, where bodies of so many bytes fit, and what to do about it.
fn excess(job: &Job, n_headers: usize, longest: usize) -> Option<String> {
    let (id, n_body, most) = (&job.id, job.body.len(), LONGEST_HEADERS - ROOM);
    if n_body > longest {
        return Some(format!(
            "the body of job {id} has {n_body} bytes where {longest} is the limit of this NATS \
             server (max_payload, less {ROOM} for headers); send less, or raise max_payload"
        ));
    }
    if n_headers > most {
        return Some(format!(
            "the headers of job {id} have {n_headers} bytes where {most} is the limit of NATS (64 \
             KiB, less {ROOM} for what is written beside a job); send less"
        ));
    }
    let left = longest + ROOM / 2 - n_body;
    (n_headers > left).then(|| {
        format!(
            "the headers of job {id} have {n_headers} bytes where {left} is the limit of this NATS \
             server beside a body of {n_body} (max_payload, less {} for what is written beside a \
             job); send less, or raise max_payload",
            ROOM / 2
        )
    })
}

fn mark(id: &JobId, is_stored: bool) -> bytes::Bytes {
    Mark { id: id.clone(), is_stored, message: None, stored_at: None }.write()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_of_one_message_and_no_other_of_its_number() {
        let at: Timestamp = "2030-01-31T12:00:00.123456789Z".parse().unwrap();
        let id: JobId = "a".parse().unwrap();
        let mark = Mark { id, is_stored: true, message: Some(7), stored_at: Some(at) };
        let read = |bytes: &[u8]| serde_json::from_slice::<Mark>(bytes).unwrap();
        let again = read(&mark.write());
        let later = at + std::time::Duration::from_nanos(1);
        assert_eq!(
            [again.is_of(7, at), again.is_of(8, at), again.is_of(7, later)],
            [true, false, false]
        );
        // As an older version wrote it.
        let old = read(br#"{"id":"a","is_stored":true,"message":7}"#);
        assert_eq!([old.is_of(7, at), old.is_of(8, at), old.is_of(7, later)], [true, false, true]);
    }
}
