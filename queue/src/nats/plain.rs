//! What plain clients published: which of it is known already, and which lies above its priority.

use std::mem;

use async_nats::HeaderMap;
use bytes::Bytes;
use futures::future::join_all;
use tokio::task::unconstrained;
use tokio::time::Instant;

use super::NatsQueue;
use super::admit::Found;
use super::api::ConsumerInfo;
use super::ending::Ending;
use super::entry::{Entry, Origin};
use super::later::Survey;
use super::names::Lane;
use super::publish::{Mark, read_mark};
use super::receive::Look;
use super::settle::token_of;
use crate::aside::FAR;
use crate::unread::READ;
use crate::{ErrorKind, Job, JobId, Priority, Result};

/// The lane of plain messages.
const PLAIN: Lane = Lane { priority: Priority::Normal, is_back: false };
/// How often a message asks for its id and its key while another gives them up.
const TRIES: usize = 10;

/// Whose an id or a key is, where a message asks for it.
enum Claim {
    /// Its own as of now, by the mark of this number.
    New(u64),
    /// Its own from an earlier delivery.
    Own(u64),
    /// Not asked for; or of a producer that did not say that it stored its job.
    Nobodys,
    Others,
}

impl NatsQueue {
    /// Whether the job of a plain message is another's, or done or dead: the message may be dropped.
    /// Otherwise its id and its key are its own from now on.
    ///
    /// What has both may lose one after it got the other, and whoever asks for that meanwhile is
    /// dropped as well: it is the same job as this one, and so as the one that is known.
    ///
    /// Where it is the one that is known, whoever ended it was lost, perhaps before that was told.
    pub(super) async fn is_repetition(
        &self,
        entry: &Entry,
        origin: Origin,
        ending: Ending,
    ) -> Result<bool> {
        let job = &entry.job;
        let id = (job.id != origin.id()).then(|| self.id_subject(&job.id));
        let key = job.headers.key.as_deref().map(|key| self.subject_of(key));
        if !entry.is_plain || (id.is_none() && key.is_none()) {
            return Ok(false);
        }
        for _ in 0..TRIES {
            let has_ended =
                async { if id.is_some() { self.is_remembered(&job.id).await } else { Ok(false) } };
            let (of_id, of_key) = (
                self.claim(id.as_deref(), &job.id, origin),
                self.claim(key.as_deref(), &job.id, origin),
            );
            // Asked for at once, so that those of a batch are asked for in the order of its messages.
            let (of_id, of_key, has_ended) = match tokio::try_join!(of_id, of_key, has_ended) {
                Ok(known) => known,
                Err(error) if error.kind() == ErrorKind::Denied => {
                    tracing::debug!(%error, %job.id, "taken for new, since it cannot be looked up");
                    return Ok(false);
                }
                Err(error) => return Err(error),
            };
            let claims = [(&id, of_id), (&key, of_key)];
            if !has_ended && !claims.iter().any(|(_, claim)| matches!(claim, Claim::Others)) {
                return Ok(false);
            }
            if has_ended && ending.delivered > 1 && matches!(claims[0].1, Claim::Own(_)) {
                if let Some(answer) = self.answer(&job.id).await? {
                    self.tell(entry, answer, ending.told_by).await;
                }
                return Ok(true);
            }
            if self.give_up(&claims, has_ended).await? {
                return Ok(true);
            }
        }
        // Rather twice than never.
        Ok(false)
    }

    /// Gives up what a repetition has claimed, and says whether it is one all the same.
    ///
    /// Of two messages with one id and one key, each may have got one of the two. Both give theirs up
    /// and look again; who looks later finds that what it lost to is gone.
    async fn give_up(
        &self,
        claims: &[(&Option<String>, Claim); 2],
        has_ended: bool,
    ) -> Result<bool> {
        let (api, keys) = (&self.shared.api, &self.shared.names.keys);
        let mut was_new = false;
        for (_, claim) in claims {
            let mark = match *claim {
                Claim::New(mark) => Some(mark),
                // What has ended may be this very message, and stays known.
                Claim::Own(mark) => Some(mark).filter(|_| !has_ended),
                Claim::Nobodys | Claim::Others => None,
            };
            was_new |= mark.is_some();
            if let Some(mark) = mark {
                api.delete(keys, mark).await?;
            }
        }
        if has_ended || !was_new {
            return Ok(true);
        }
        for (subject, claim) in claims {
            if let (Some(subject), Claim::Others) = (subject, claim)
                && api.last(keys, subject).await?.is_none()
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn claim(&self, subject: Option<&str>, id: &JobId, origin: Origin) -> Result<Claim> {
        let shared = &*self.shared;
        let Some(subject) = subject else { return Ok(Claim::Nobodys) };
        let Origin { seq, at, .. } = origin;
        let (message, stored_at) = (Some(seq), Some(at));
        let mark = Mark { id: id.clone(), is_stored: true, message, stored_at };
        loop {
            let taken = shared.api.swap(subject, HeaderMap::new(), mark.write(), 0).await?;
            if let Some(mark) = taken {
                return Ok(Claim::New(mark));
            }
            let Some(kept) = shared.api.last(&shared.names.keys, subject).await? else {
                continue;
            };
            let known = read_mark(subject, &kept)?;
            return Ok(match known.is_stored {
                _ if known.is_of(seq, at) => Claim::Own(kept.seq),
                true => Claim::Others,
                false => Claim::Nobodys,
            });
        }
    }

    /// Whether a job of this id is dead, or was done no longer ago than it is remembered.
    async fn is_remembered(&self, id: &JobId) -> Result<bool> {
        let (dead, answer) = tokio::try_join!(self.dead_letter(id), self.answer(id))?;
        let is_done = answer.is_some_and(|result| {
            let forgotten = result.finished_at.checked_add(self.shared.behavior.key_ttl);
            result.outcome.is_final() && forgotten.is_ok_and(|at| at > self.now())
        });
        Ok(dead.is_some() || is_done)
    }

    /// Where the id of a plain message is noted; no key is called so.
    pub(super) fn id_subject(&self, id: &JobId) -> String {
        self.shared.names.subject(&format!("keys.=id={}", token_of(id)))
    }

    /// The first of those that nobody was given yet, and how many more there may be.
    pub(super) async fn read_plain(
        &self,
        survey: &Survey,
        consumers: &[(Lane, ConsumerInfo)],
    ) -> Result<(Vec<Job>, u64)> {
        let (shared, subject) = (&*self.shared, self.shared.names.plain());
        let there = survey.places.iter().find(|(_, at, _)| *at == subject);
        let n_there = there.map_or(0, |(_, _, n_jobs)| *n_jobs);
        let info = consumers.iter().find(|(lane, _)| *lane == PLAIN).map(|(_, info)| info);
        let begin = info.map_or(1, |info| info.delivered.stream_seq + 1);
        // The server has no shorter answer than the message, so each is read once.
        let mut read = mem::take(&mut *shared.unread());
        read.retain(|(seq, _)| n_there > 0 && *seq >= begin);
        while read.len() < READ && (read.len() as u64) < n_there {
            let from = read.last().map_or(begin, |(seq, _)| seq + 1);
            let Some(kept) = shared.api.next(&shared.names.jobs, from, &subject).await? else {
                break;
            };
            let job = self.entry_of(&kept).0.job;
            read.push((kept.seq, Job { body: Bytes::new(), ..job }));
        }
        let jobs = read.iter().map(|(_, job)| job.clone()).collect();
        let pending = info.map_or(n_there, |info| info.num_pending.min(n_there));
        let n_more = pending.saturating_sub(read.len() as u64);
        *shared.unread() = read;
        Ok((jobs, n_more))
    }

    /// Whether a job lies above its priority and waits for what may lie behind it.
    pub(super) fn waits_aside(&self, found: &Found, lane: Lane, look: &Look) -> bool {
        if lane != PLAIN {
            return false;
        }
        let now = Instant::now();
        let mut aside = self.shared.aside();
        if found.entry.job.headers.priority >= lane.priority {
            aside.meet_better();
            return false;
        }
        aside.meet_lower(now);
        !look.rests && self.has_room_beside(&found.entry, found.held.token.seq)
    }

    /// Whether enough of this lane lies aside for one look.
    pub(super) fn is_far(&self, lane: Lane, look: &Look) -> bool {
        let is_much = || look.aside.len() >= FAR || self.shared.aside().rests(Instant::now());
        lane == PLAIN && !look.aside.is_empty() && is_much()
    }

    /// Hands out what lies aside as far as there is room for it, and puts the rest where it belongs;
    /// no attempt is charged for that.
    pub(super) async fn end_aside(&self, look: &mut Look, max: usize) {
        look.aside.sort_by_key(Found::rank);
        let room = max.saturating_sub(look.found.len()).min(look.aside.len());
        look.found.extend(look.aside.drain(..room));
        let moves = look.aside.drain(..).map(async |one| {
            if self.put_back(&one.entry, one.held.token.seq, None).await?.is_none() {
                return Ok(());
            }
            self.shared.api.ack(&one.held.token.reply, "+ACK").await
        });
        // A pause of the runtime in the middle would change their order.
        for moved in unconstrained(join_all(moves)).await {
            look.failed = moved.err().or(look.failed.take());
        }
    }
}
