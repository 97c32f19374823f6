//! What time alone makes ready or kills: the subjects of such jobs tell when.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::HeaderMap;
use tokio::time::Instant;

use super::NatsQueue;
use super::api::in_order;
use super::awake::Glance;
use super::entry::{Entry, Origin, fits};
use super::names::{Place, tick_now};
use super::read::Kept;
use super::settle::Ending;
use crate::owed;
use crate::{Error, ErrorKind, Failure, Priority, Result, Timestamp};

/// Looks are this far apart at the least, where nothing is known to have changed.
const PAUSE: Duration = Duration::from_secs(1);
/// A longer list of subjects is read less often: so many a second.
const SUBJECTS_PER_SECOND: usize = 5000;
/// Subjects whose jobs are moved in one go.
const IN_ONE_GO: usize = 512;

/// All jobs that wait or run, by the subjects that they lie on.
#[derive(Debug, Clone)]
pub(super) struct Survey {
    /// When it was true, by the server's clock.
    pub(super) server_now: Timestamp,
    /// Who says so, and how the stream stood.
    pub(super) glance: Glance,
    /// All of these.
    pub(super) total: u64,
    pub(super) places: Vec<(Place, String, u64)>,
}

/// What a handle knows of the jobs that wait for their moment.
#[derive(Debug, Default)]
pub(super) struct Later {
    is_stale: AtomicBool,
    known: Mutex<Option<Known>>,
}

#[derive(Debug, Clone)]
struct Known {
    looked: Instant,
    n_subjects: usize,
    /// Due moment, and the subject.
    due: Vec<(i64, String)>,
    /// Deadline, and the subject, of those that will be dead before they are due.
    deadlines: Vec<(u64, String)>,
}

impl Later {
    fn known(&self) -> MutexGuard<'_, Option<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something was put there: the next look is not put off.
    pub(super) fn disturb(&self) {
        self.is_stale.store(true, Ordering::Release);
    }

    /// How long until the next known moment.
    pub(super) fn until_due(&self, now: Timestamp) -> Option<Duration> {
        let known = self.known();
        let next = known.as_ref()?.due.iter().map(|(due, _)| *due).min()?;
        let millis = next.saturating_sub(now.as_millisecond()).max(1);
        Some(Duration::from_millis(millis.cast_unsigned()))
    }

    fn is_fresh(&self) -> bool {
        if self.is_stale.swap(false, Ordering::AcqRel) {
            return false;
        }
        self.known().as_ref().is_some_and(|known| {
            let seconds = known.n_subjects / SUBJECTS_PER_SECOND;
            known.looked.elapsed() < PAUSE * u32::try_from(seconds.max(1)).unwrap_or(u32::MAX)
        })
    }
}

impl NatsQueue {
    /// Counts the jobs by subject.
    pub(super) async fn survey(&self) -> Result<Survey> {
        let shared = &*self.shared;
        let names = &shared.names;
        // All subjects: bare messages lie on the one that the others begin with.
        let info = shared.api.subjects(&names.jobs, ">").await?;
        let info = info.ok_or_else(|| self.is_gone())?;
        let (server_now, glance) = (info.ts.unwrap_or_else(|| self.now()), info.glance());
        let mut places = Vec::new();
        for (subject, n_jobs) in info.state.subjects.unwrap_or_default() {
            if let Some(place) = names.place(&subject) {
                places.push((place, subject, n_jobs));
            }
        }
        // What has no place is seen by no worker.
        let total = places.iter().map(|(_, _, n_jobs)| n_jobs).sum();
        Ok(Survey { server_now, glance, total, places })
    }

    /// The stream was deleted under us.
    pub(super) fn is_gone(&self) -> Error {
        let words = format!(
            "the stream {} is gone from its NATS server; make it anew by `ebb queue init`",
            self.shared.names.jobs
        );
        Error::new(ErrorKind::Unavailable, words)
    }

    /// Puts into their lanes the delayed jobs whose moment has come, and buries those that died
    /// waiting for it. Any worker may: doing so twice has the effect of one.
    pub(super) async fn move_due(&self) -> Result<()> {
        let later = &self.shared.later;
        if !later.is_fresh() {
            self.look_later().await?;
        }
        let now = self.now();
        let (millis, tick) = (now.as_millisecond(), tick_now(now));
        let ripe: Vec<String> = {
            let mut known = later.known();
            let Some(known) = known.as_mut() else { return Ok(()) };
            known.due.sort_unstable();
            let n_due = known.due.partition_point(|(due, _)| *due <= millis).min(IN_ONE_GO);
            let due = known.due.drain(..n_due).map(|(_, subject)| subject);
            let mut ripe: Vec<_> = due.collect();
            let (dead, alive) = std::mem::take(&mut known.deadlines)
                .into_iter()
                .partition(|(deadline, _)| *deadline <= tick);
            known.deadlines = alive;
            let dead: Vec<(u64, String)> = dead;
            ripe.extend(dead.into_iter().map(|(_, subject)| subject));
            ripe
        };
        if ripe.is_empty() {
            return Ok(());
        }
        let told_by = owed::sending_ends(self.shared.behavior.lease);
        let moves = ripe.iter().map(|subject| self.move_subject(subject, told_by)).collect();
        let moved = in_order(moves).await.map(drop);
        if moved.is_err() {
            later.disturb();
        }
        moved
    }

    async fn look_later(&self) -> Result<()> {
        let survey = self.survey().await?;
        let mut known = Known {
            looked: Instant::now(),
            n_subjects: survey.places.len(),
            due: Vec::new(),
            deadlines: Vec::new(),
        };
        for (place, subject, _) in survey.places {
            if let Place::Later(due, deadline) = place {
                known.deadlines.extend(deadline.map(|deadline| (deadline, subject.clone())));
                known.due.push((due, subject));
            }
        }
        *self.shared.later.known() = Some(known);
        Ok(())
    }

    /// The same for the jobs of one subject; the replies of those that died are told by then.
    pub(super) async fn move_subject(&self, subject: &str, told_by: Instant) -> Result<()> {
        let shared = &*self.shared;
        let (mut seq, mut failed) = (1, None);
        while let Some(kept) = shared.api.next(&shared.names.jobs, seq, subject).await? {
            seq = kept.seq + 1;
            match self.move_one(kept, told_by).await {
                Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
                Err(error) => failed = Some(error),
                Ok(()) => {}
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn move_one(&self, kept: Kept, told_by: Instant) -> Result<()> {
        let shared = &*self.shared;
        let ending = Ending { seq: kept.seq, delivered: 1, told_by };
        let (entry, wrong) = self.entry_of(&kept);
        if let Some(wrong) = wrong {
            self.bury(&entry, ending, Failure::invalid(wrong.to_string())).await?;
        } else if entry.job.expired(self.now()) {
            self.expire(&entry, ending).await?;
        } else if self.put_back(&entry, kept.seq, None).await?.is_none() {
            let why = Failure::invalid("it cannot be put where workers look");
            self.bury(&entry, ending, why).await?;
        }
        shared.api.delete(&shared.names.jobs, kept.seq).await.map(drop)
    }

    pub(super) fn entry_of(&self, kept: &Kept) -> (Entry, Option<Error>) {
        let priority = match self.shared.names.place(&kept.subject) {
            Some(Place::Lane(lane, _)) => lane.priority,
            _ => Priority::default(),
        };
        let origin = Origin { created: self.shared.created, seq: kept.seq, at: kept.at, priority };
        Entry::read(&kept.headers, kept.body.clone(), origin)
    }

    /// Stores a job anew, to be ready at once or later, ahead of what was published since; the old
    /// message may be removed then. Doing so twice has the effect of one. `None` where the message
    /// would be too large: a stranger may leave no room for what we write beside a job.
    pub(super) async fn put_back(
        &self,
        entry: &Entry,
        seq: u64,
        due: Option<Timestamp>,
    ) -> Result<Option<u64>> {
        let shared = &*self.shared;
        let deadline = entry.job.headers.deadline;
        let subject = match due {
            Some(due) => shared.names.later(due, deadline),
            None => shared.names.lane(entry.lane(true), deadline),
        };
        let Some(headers) = self.headers_beside(entry, seq)? else { return Ok(None) };
        let ack = shared.api.publish(&subject, headers, entry.job.body.clone()).await?;
        match due {
            Some(_) => shared.later.disturb(),
            None => shared.sight.fill(entry.lane(true), ack.seq),
        }
        Ok(Some(ack.seq))
    }

    /// Whether a job can be stored anew, with what we write beside it.
    pub(super) fn has_room_beside(&self, entry: &Entry, seq: u64) -> bool {
        self.headers_beside(entry, seq).is_ok_and(|headers| headers.is_some())
    }

    fn headers_beside(&self, entry: &Entry, seq: u64) -> Result<Option<HeaderMap>> {
        let headers = entry.headers(&format!("{}/{seq}", entry.job.id))?;
        let max = self.shared.api.client.max_payload();
        Ok(Some(headers).filter(|headers| fits(headers, &entry.job.body, max)))
    }
}
