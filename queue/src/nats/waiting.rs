//! Jobs that wait: where one is, and the purge of all.
//!
//! What is in a lane is taken as a worker takes it, since only JetStream knows what it has handed out:
//! whatever somebody holds is never touched.

use std::time::Duration;

use async_nats::{HeaderMap, Message};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use jiff::SignedDuration;
use tokio::time::Instant;

use super::NatsQueue;
use super::api::in_order;
use super::ending::Ending;
use super::entry::{Entry, MSG_ID, Origin};
use super::later::{Pace, gravest};
use super::leases::{Claims, Token};
use super::names::{LANES, Place, moment_of};
use super::publish::{Forgotten, Mark, read_mark};
use super::read::Kept;
use super::settle::token_of;
use super::topology::window;
use crate::delivery::note;
use crate::owed;
use crate::{Cancelled, Job, JobId, JobState, Operator, Priority, Purged, Result, Timestamp};

/// Jobs that are read at the same time: their bodies may be large.
const AT_ONCE: usize = 128;
/// Jobs of one moment that a step takes.
const OF_A_MOMENT: usize = 16;
/// What is due so soon a worker may be moving into its lane already.
const SOON: SignedDuration = SignedDuration::from_secs(1);
/// A server confirms a job a moment before it hands it out. So often, and after so long, a lane is
/// looked at again that has more than it shows.
const LOOKS: usize = 20;
const BLINK: Duration = Duration::from_millis(1);

/// How a purge goes on with a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// It has no more of what is meant.
    Over,
    /// It has shown something, and may have more.
    More,
    /// It has shown nothing, and has something.
    Blink,
}

/// Jobs that are ready later, all on one subject.
struct Moment {
    /// When a worker moves or buries them.
    until: Timestamp,
    subject: String,
    next: u64,
}

impl NatsQueue {
    fn purge_all(&self) -> BoxStream<'static, Result<Purged>> {
        let queue = self.clone();
        let steps = async_stream::try_stream! {
            // What has expired is a dead letter.
            queue.bury_expired().await?;
            let (mut moments, last) = queue.moments().await?;
            while let Some(last) = moments.last() {
                if last.until < queue.now() + SOON {
                    queue.move_moments(std::mem::take(&mut moments)).await?;
                } else {
                    let (purged, done) = queue.purge_moments(&mut moments).await;
                    yield purged;
                    done?;
                }
            }
            for nth in 0..LANES.len() {
                let mut looks = LOOKS;
                while looks > 0 {
                    let (purged, next) = queue.purge_lane(nth, last).await;
                    yield purged;
                    let next = next?;
                    looks = match next {
                        Next::Over => 0,
                        Next::More => LOOKS,
                        Next::Blink => looks - 1,
                    };
                    if next == Next::Blink {
                        tokio::time::sleep(BLINK).await;
                    }
                }
            }
        };
        steps.boxed()
    }

    /// Where jobs lie that are ready later, the soonest first, and the last number that was given to a job.
    async fn moments(&self) -> Result<(Vec<Moment>, u64)> {
        let (shared, survey) = (&*self.shared, self.survey().await?);
        let info = shared.api.stream(&shared.names.jobs).await?;
        let last = info.ok_or_else(|| self.is_gone())?.state.last_seq;
        let moments = survey.places.into_iter().filter_map(|(place, subject, _)| {
            let Place::Later(due, deadline) = place else { return None };
            let due = Timestamp::from_millisecond(due).unwrap_or(Timestamp::MAX);
            let until = deadline.map_or(due, |deadline| due.min(moment_of(deadline)));
            Some(Moment { until, subject, next: 1 })
        });
        let mut moments: Vec<_> = moments.collect();
        moments.sort_by_key(|moment| moment.until);
        Ok((moments, last))
    }

    /// Moves jobs whose moment has come, once it has, as a worker does: both together move them once.
    async fn move_moments(&self, moments: Vec<Moment>) -> Result<()> {
        let last = moments.last().map_or(Timestamp::MIN, |moment| moment.until);
        let left = last.duration_since(self.now());
        tokio::time::sleep(Duration::try_from(left).unwrap_or_default()).await;
        let pace = Pace::new(moments.len(), self.shared.behavior.lease, None);
        let subjects: Vec<_> = moments.into_iter().map(|moment| moment.subject).collect();
        let moved = self.move_subjects(&subjects, pace).await?;
        gravest(moved)
    }

    /// Deletes some of the jobs that are ready latest; nobody holds or moves one of them. What was
    /// deleted is told, whatever became of the rest.
    async fn purge_moments(&self, moments: &mut Vec<Moment>) -> (Purged, Result<()>) {
        let soon = self.now() + SOON;
        let n_soon = moments.partition_point(|moment| moment.until < soon);
        let some = moments.split_off(n_soon.max(moments.len().saturating_sub(AT_ONCE)));
        let purges = some.into_iter().map(|moment| async move {
            let mut purged = Purged::default();
            let rest = self.purge_moment(moment, &mut purged).await;
            Ok((purged, rest))
        });
        let (mut all, mut failed) = (Purged::default(), None);
        let purges = match in_order(purges.collect()).await {
            Ok(purges) => purges,
            Err(error) => return (all, Err(error)),
        };
        for (purged, rest) in purges {
            all.n_jobs += purged.n_jobs;
            all.referring.extend(purged.referring);
            match rest {
                Ok(rest) => moments.extend(rest),
                Err(error) => note(&mut failed, error),
            }
        }
        moments.sort_by_key(|moment| moment.until);
        (all, failed.map_or(Ok(()), Err))
    }

    async fn purge_moment(&self, moment: Moment, purged: &mut Purged) -> Result<Option<Moment>> {
        let shared = &*self.shared;
        let Moment { until, subject, mut next } = moment;
        for _ in 0..OF_A_MOMENT {
            let Some(kept) = shared.api.next(&shared.names.jobs, next, &subject).await? else {
                return Ok(None);
            };
            next = kept.seq + 1;
            let (entry, _) = self.entry_of(&kept);
            if entry.job.expired(self.now()) {
                continue;
            }
            let Kept { seq, at, headers, .. } = kept;
            // In this order, see `forget_waiting`.
            let forgotten = self.forget_waiting(&entry, &headers, (seq, at)).await?;
            if shared.api.delete(&shared.names.jobs, seq).await? {
                shared.api.tell(&self.purged_subject(&entry.job.id), Bytes::new()).await;
                purged.add(entry.job, forgotten.has_gone_on);
            } else {
                // Somebody moved it, so that it lives on.
                self.remember(forgotten).await?;
            }
        }
        Ok(Some(Moment { until, subject, next }))
    }

    /// Deletes some of the jobs of a lane that nobody holds. What was deleted is told, whatever became of
    /// the rest.
    async fn purge_lane(&self, nth: usize, last: u64) -> (Purged, Result<Next>) {
        let mut purged = Purged::default();
        let next = self.try_purge_lane(nth, last, &mut purged).await;
        (purged, next)
    }

    async fn try_purge_lane(&self, nth: usize, last: u64, purged: &mut Purged) -> Result<Next> {
        let (shared, lane) = (&*self.shared, LANES[nth]);
        let messages = shared.api.pull(&shared.names.jobs, lane.consumer(), AT_ONCE).await?;
        let seqs = messages.iter().filter_map(|one| Some(Token::read(one.reply.as_deref()?)?.seq));
        let seqs: Vec<_> = seqs.collect();
        let (is_short, is_given) = (messages.len() < AT_ONCE, !messages.is_empty());
        let replies: Vec<_> = messages.iter().filter_map(|one| one.reply.clone()).collect();
        let told_by = owed::sending_ends(shared.behavior.lease);
        let purges = messages.into_iter().map(|one| async move {
            // One that fails leaves the others to their end: what is deleted is told.
            Ok(self.purge_message(one, lane.priority, told_by).await)
        });
        let (mut is_over, mut failed) = (false, None);
        for one in in_order(purges.collect()).await? {
            match one {
                Ok(Some((entry, has_gone_on))) => {
                    // What was published while this went on is not meant; what was put back is.
                    is_over |= entry.place > last;
                    purged.add(entry.job, has_gone_on);
                }
                Ok(None) => {}
                Err(error) => note(&mut failed, error),
            }
        }
        if let Some(error) = failed {
            // Those that are not deleted need not wait until their lease ends.
            for reply in &replies {
                shared.api.tell(reply, Bytes::from_static(b"-NAK")).await;
            }
            return Err(error);
        }
        if is_short && shared.sight.empty(nth, seqs.into_iter()) {
            let info = shared.api.consumer(&shared.names.jobs, lane.consumer()).await?;
            is_over |= info.is_none_or(|info| info.num_pending == 0);
        }
        Ok(match (is_over, is_given) {
            (true, _) => Next::Over,
            (false, true) => Next::More,
            (false, false) => Next::Blink,
        })
    }

    /// Deletes a job that was handed to us, unless it is a dead letter by now; with whether it has
    /// gone on to another queue, or is another's.
    async fn purge_message(
        &self,
        message: Message,
        priority: Priority,
        told_by: Instant,
    ) -> Result<Option<(Entry, bool)>> {
        let shared = &*self.shared;
        let Some(token) = message.reply.as_deref().and_then(Token::read) else {
            return Ok(None);
        };
        let origin =
            Origin { created: shared.created(), seq: token.seq, at: token.stored_at, priority };
        let headers = message.headers.unwrap_or_default();
        let (mut entry, _) = Entry::read(&headers, message.payload, origin);
        entry.charge(token.delivered - 1);
        let ending = Ending { seq: token.seq, delivered: token.delivered, told_by };
        let is_dead = entry.job.expired(self.now());
        let ack = shared.api.ack(&token.reply, "+ACK");
        if !is_dead && self.is_repetition(&entry, origin, ending).await? {
            // What is known under its id, and perhaps its body, is another's.
            return ack.await.map(|()| Some((entry, true)));
        }
        if is_dead {
            if self.expire(&entry, ending).await? {
                ack.await?;
            }
            return Ok(None);
        }
        // In this order, see `forget_waiting`.
        let forgotten = self.forget_waiting(&entry, &headers, (token.seq, token.stored_at)).await?;
        ack.await?;
        shared.api.tell(&self.purged_subject(&entry.job.id), Bytes::new()).await;
        Ok(Some((entry, forgotten.has_gone_on)))
    }

    /// Forgets the id and the key of a job that waits and is to be deleted then, and what its attempts
    /// left behind; what it was.
    ///
    /// Where this is cut short, the next purge meets the job again. The other way round nobody would
    /// ever forget what is known of it.
    async fn forget_waiting(
        &self,
        entry: &Entry,
        headers: &HeaderMap,
        (seq, at): (u64, Timestamp),
    ) -> Result<Forgotten> {
        let (shared, id) = (&*self.shared, &entry.job.id);
        let mut forgotten = Forgotten::default();
        // The server remembers the id no longer than that, by whosever clock.
        let is_remembered =
            headers.get(MSG_ID).is_some() && at + 2 * window(&shared.behavior) > self.now();
        if is_remembered {
            let subject = shared.names.subject(&format!("notes.purged.{}", token_of(id)));
            let ack = shared.api.publish(&subject, HeaderMap::new(), Bytes::new()).await?;
            forgotten.note = Some(ack.seq);
        }
        // The key of a message of a plain client may be another's.
        let is_own = |mark: &Mark| match entry.is_plain {
            true => mark.is_of(seq, at),
            false => mark.id == *id,
        };
        if let Some(key) = &entry.job.headers.key {
            forgotten.marks.extend(self.forget_mark(&self.subject_of(key), is_own).await?);
        }
        if entry.is_plain || entry.place != seq {
            forgotten.marks.extend(self.forget_mark(&self.id_subject(id), is_own).await?);
        }
        let is_tried = entry.attempts > 0 || entry.job.headers.body_ref.is_some();
        forgotten.has_gone_on = is_tried && self.forget_failure(id).await?;
        Ok(forgotten)
    }

    /// Where who follows a job hears that it was purged. Nothing of it is kept: it is of no use to who
    /// begins later.
    pub(super) fn purged_subject(&self, id: &JobId) -> String {
        self.shared.names.subject(&format!("purged.{}", token_of(id)))
    }

    /// Where a job is that is among the dead letters, or that a plain client published; of others only
    /// their messages tell the id.
    async fn state_of(&self, id: &JobId) -> Result<Option<JobState>> {
        let shared = &*self.shared;
        if self.dead_letter(id).await?.is_some() {
            return Ok(Some(JobState::Dead));
        }
        let Some(seq) = self.number_of(id).await? else { return Ok(None) };
        let Some(kept) = shared.api.at(&shared.names.jobs, seq).await? else { return Ok(None) };
        let job = self.entry_of(&kept).0.job;
        if job.id != *id {
            return Ok(None);
        }
        self.state_at((kept.seq, kept.at), &job).await.map(Some)
    }

    /// Where a job is that lies here as the message of this number, stored at this moment.
    pub(super) async fn state_at(&self, message: (u64, Timestamp), job: &Job) -> Result<JobState> {
        let shared = &*self.shared;
        let (info, claims) = tokio::try_join!(
            shared.api.stream(&shared.names.jobs),
            Claims::load(&shared.api, &shared.names)
        )?;
        let server_now = info.and_then(|info| info.ts).unwrap_or_else(|| self.now());
        let now = self.now();
        Ok(match claims.get(message) {
            Some(claim) if claim.until > server_now => JobState::Running,
            _ if job.expired(now) => JobState::Dead,
            _ if job.headers.not_before.is_some_and(|due| due > now) => JobState::Delayed,
            _ => JobState::Waiting,
        })
    }

    /// The number of the message that a plain client published a job by: it is part of the id, or
    /// noted since a worker met it.
    pub(super) async fn number_of(&self, id: &JobId) -> Result<Option<u64>> {
        let shared = &*self.shared;
        if id.as_str().starts_with("nats-") {
            // The stream may have been made anew since it was seen last.
            self.glance().await?;
        }
        let prefix = format!("nats-{}-", shared.created().as_millisecond());
        if let Some(seq) = id.as_str().strip_prefix(&prefix).and_then(|seq| seq.parse().ok()) {
            return Ok(Some(seq));
        }
        let subject = self.id_subject(id);
        let Some(kept) = shared.api.last(&shared.names.keys, &subject).await? else {
            return Ok(None);
        };
        let mark = read_mark(&subject, &kept)?;
        // The stream may have been lost since, and count anew.
        let is_of_it = mark.stored_at.is_none_or(|at| at >= shared.created());
        Ok(mark.message.filter(|_| is_of_it))
    }
}

impl Purged {
    pub(super) fn add(&mut self, job: Job, has_gone_on: bool) {
        self.n_jobs += 1;
        let is_referring = job.headers.body_ref.is_some() && !has_gone_on;
        self.referring.extend(is_referring.then_some(job));
    }
}

#[async_trait]
impl Operator for NatsQueue {
    async fn state(&self, id: &JobId) -> Result<Option<JobState>> {
        self.state_of(id).await
    }

    async fn has_gone_on(&self, id: &JobId) -> Result<bool> {
        Ok(self.answer(id).await?.is_some_and(|found| found.moved_to().is_some()))
    }

    async fn cancel(&self, id: &JobId) -> Result<Cancelled> {
        self.cancel_job(id).await
    }

    async fn purge_waiting(&self) -> Result<BoxStream<'static, Result<Purged>>> {
        Ok(self.purge_all())
    }
}
