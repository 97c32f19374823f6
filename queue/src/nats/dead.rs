//! The dead letters: one message each, on a subject made of its id.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use async_nats::HeaderMap;
use serde_json::json;

use super::NatsQueue;
use super::api::in_order;
use super::ending::Ending;
use super::entry::{Entry, Origin};
use super::leases::Claims;
use super::names::tick_now;
use super::read::Kept;
use super::settle::token_of;
use crate::owed;
use crate::{
    DeadLetter, Elsewhere, ErrorKind, Job, JobId, Operator, Priority, Purged, Result, Timestamp,
};

/// Letters that are read or put back at the same time.
const AT_ONCE: usize = 64;

/// Letters that are looked at in one go since they are old, and deleted one after the other, each with
/// what it left.
const OLD: usize = 100;

/// Letters that an operator means.
enum Which {
    All { next: u64, last: u64 },
    Named(VecDeque<JobId>),
}

impl NatsQueue {
    /// Makes dead letters of the jobs whose deadline has passed and that nobody holds.
    pub(super) async fn bury_expired(&self) -> Result<()> {
        let shared = &*self.shared;
        let survey = self.survey().await?;
        let now = self.now();
        // Deadlines in subjects are rounded up.
        let subjects = Self::expired_subjects(&survey, tick_now(now) + 1);
        if subjects.is_empty() {
            return Ok(());
        }
        let claims = Claims::load(&shared.api, &shared.names).await?;
        // For all of them together: whoever looks waits for them.
        let told_by = owed::sending_ends(shared.behavior.lease);
        let mut subjects: VecDeque<_> = subjects.into_iter().map(str::to_owned).collect();
        while let Some(subject) = subjects.pop_front() {
            let mut seq = 1;
            while let Some(kept) = shared.api.next(&shared.names.jobs, seq, &subject).await? {
                seq = kept.seq + 1;
                let (mut entry, _) = self.entry_of(&kept);
                let claim = claims.get((kept.seq, kept.at));
                let is_held = claim.is_some_and(|claim| claim.until > survey.server_now);
                if is_held || !entry.job.expired(now) {
                    continue;
                }
                let mut delivered = 1;
                if let Some(claim) = claim {
                    delivered = claim.delivered.saturating_add(1);
                    entry.history.extend(claim.crashes.iter().cloned());
                    entry.charge(claim.delivered);
                    let what = format!("lease expired, held by {}", claim.worker);
                    entry.record(entry.attempts, claim.until.min(now), &what);
                }
                let leaves = claim.is_some_and(|claim| claim.leaves);
                if leaves && self.follow_back(&entry, kept.seq).await? {
                    shared.api.delete(&shared.names.jobs, kept.seq).await?;
                    // Whether it died, its other message tells.
                    let there = shared.names.lane(entry.lane(true), entry.job.headers.deadline);
                    if there != subject && !subjects.contains(&there) {
                        subjects.push_back(there);
                    }
                    continue;
                }
                let ending = Ending { seq: kept.seq, delivered, told_by };
                if self.expire(&entry, ending).await? {
                    shared.api.delete(&shared.names.jobs, kept.seq).await?;
                }
            }
        }
        Ok(())
    }

    pub(super) async fn dead_letter(&self, id: &JobId) -> Result<Option<Kept>> {
        let shared = &*self.shared;
        let subject = shared.names.subject(&format!("dead.{}", token_of(id)));
        shared.api.last(&shared.names.dead, &subject).await
    }

    fn letter(&self, kept: Kept) -> DeadLetter {
        let (created, priority) = (self.shared.created(), Priority::default());
        let origin = Origin { created, seq: kept.seq, at: kept.at, priority };
        Entry::dead_letter(&kept.headers, kept.body, origin)
    }

    pub(super) async fn list_dead(&self, max: usize) -> Result<Vec<DeadLetter>> {
        self.bury_expired().await?;
        let shared = &*self.shared;
        let Some(info) = shared.api.stream(&shared.names.dead).await? else {
            return Err(self.is_gone());
        };
        let mut letters = Vec::new();
        if info.state.messages == 0 {
            return Ok(letters);
        }
        let mut last = info.state.last_seq;
        while letters.len() < max && last >= info.state.first_seq {
            // Newest first; those that were purged or put back left gaps.
            let wanted = (max - letters.len()).min(AT_ONCE) as u64;
            let first = last.saturating_sub(wanted - 1).max(info.state.first_seq).max(1);
            let looks = (first..=last).rev().map(|seq| shared.api.at(&shared.names.dead, seq));
            let n_before = letters.len();
            let kept = in_order(looks.collect()).await?;
            letters.extend(kept.into_iter().flatten().map(|kept| self.letter(kept)));
            last = first - 1;
            if letters.len() == n_before {
                last = self.last_letter(info.state.first_seq, last).await?;
            }
        }
        Ok(letters)
    }

    /// The last number of a letter among these, the first of which is one or was until now: by halves,
    /// since the server tells only which is the next one from a number on.
    async fn last_letter(&self, first: u64, mut last: u64) -> Result<u64> {
        let (shared, mut known) = (&*self.shared, first);
        let all = shared.names.subject("dead.*");
        while known < last {
            let middle = known + (last - known).div_ceil(2);
            let next = shared.api.next(&shared.names.dead, middle, &all).await?;
            match next.filter(|kept| kept.seq <= last) {
                Some(kept) => known = kept.seq,
                None => last = middle - 1,
            }
        }
        Ok(last)
    }

    pub(super) async fn show_dead(&self, id: &JobId) -> Result<Option<DeadLetter>> {
        self.bury_expired().await?;
        Ok(self.dead_letter(id).await?.map(|kept| self.letter(kept)))
    }

    /// The letters that are meant: in the order in which they died, or in which they are named.
    async fn which(&self, ids: Option<&[JobId]>) -> Result<Which> {
        self.bury_expired().await?;
        let shared = &*self.shared;
        if let Some(ids) = ids {
            let mut seen = HashSet::new();
            let once = ids.iter().filter(|id| seen.insert(*id)).cloned();
            return Ok(Which::Named(once.collect()));
        }
        let info = shared.api.stream(&shared.names.dead).await?;
        let last = info.ok_or_else(|| self.is_gone())?.state.last_seq;
        Ok(Which::All { next: 1, last })
    }

    /// The next few of them; none when there are no more.
    async fn page(&self, which: &mut Which) -> Result<Vec<Kept>> {
        let shared = &*self.shared;
        let mut page = Vec::new();
        match which {
            Which::All { next, last } => {
                let all = shared.names.subject("dead.*");
                while page.len() < AT_ONCE && *next <= *last {
                    let kept = shared.api.next(&shared.names.dead, *next, &all).await?;
                    let Some(kept) = kept else {
                        *next = last.saturating_add(1);
                        break;
                    };
                    *next = kept.seq + 1;
                    if kept.seq <= *last {
                        page.push(kept);
                    }
                }
            }
            Which::Named(ids) => {
                while page.is_empty() && !ids.is_empty() {
                    let some = ids.drain(..ids.len().min(AT_ONCE));
                    let looks = some.map(|id| async move { self.dead_letter(&id).await });
                    let looks: Vec<_> = looks.collect();
                    page.extend(in_order(looks).await?.into_iter().flatten());
                }
            }
        }
        Ok(page)
    }

    pub(super) async fn redrive_dead(&self, ids: Option<&[JobId]>) -> Result<u64> {
        let mut which = self.which(ids).await?;
        let mut n_redriven = 0;
        loop {
            let mut page = self.page(&mut which).await?;
            if page.is_empty() {
                return Ok(n_redriven);
            }
            page.retain(|kept| self.is_whole(kept) && self.has_room_again(kept));
            let ids: Vec<_> = page.iter().map(|kept| self.letter(kept.clone()).job.id).collect();
            let forgotten: Vec<_> = ids.iter().map(|id| self.forget_failure(id)).collect();
            in_order(forgotten).await?;
            let marked = page.into_iter().map(|kept| self.unless_too_long(self.mark_again(kept)));
            let page = in_order(marked.collect()).await?.into_iter().flatten().flatten();
            // Sent one after the other, answered in any order.
            let revived = page.map(|kept| self.unless_too_long(self.revive(kept)));
            let revived = in_order(revived.collect()).await?.into_iter().flatten();
            n_redriven += revived.filter(|done| *done).count() as u64;
        }
    }

    /// None of a letter that the server takes with no more headers: it leaves the others to be put back.
    async fn unless_too_long<T>(&self, step: impl Future<Output = Result<T>>) -> Result<Option<T>> {
        match step.await {
            Err(error) if error.kind() == ErrorKind::Invalid => {
                tracing::warn!(%error, "a dead letter is not put back; publish its job anew");
                Ok(None)
            }
            done => done.map(Some),
        }
    }

    /// Whether a letter has all of its job.
    fn is_whole(&self, kept: &Kept) -> bool {
        let is_cut = Entry::is_cut(&kept.headers);
        if is_cut {
            let id = self.letter(kept.clone()).job.id;
            tracing::warn!(%id, "not put back, since its body was cut; publish it anew");
        }
        !is_cut
    }

    /// Whether a letter has room for the mark that it is being put back. One of an older version may not:
    /// what is known of its job is to stay.
    fn has_room_again(&self, kept: &Kept) -> bool {
        let max = self.shared.api.client.max_payload();
        let has_room = Entry::fits_again(&kept.headers, &kept.body, kept.seq, max);
        if !has_room {
            let id = self.letter(kept.clone()).job.id;
            tracing::warn!(%id, "not put back, since it leaves no room to say so; publish it anew");
        }
        has_room
    }

    /// Says of a letter that it is being put back, before it is: until it is gone it lies there for good,
    /// however old. None where somebody else deletes it or puts it back at this moment.
    async fn mark_again(&self, kept: Kept) -> Result<Option<Kept>> {
        if Entry::is_again(&kept.headers) {
            return Ok(Some(kept));
        }
        let shared = &*self.shared;
        let headers = Entry::again(&kept.headers, kept.seq);
        let swap = shared.api.swap(&kept.subject, headers.clone(), kept.body.clone(), kept.seq);
        Ok(swap.await?.map(|seq| Kept { seq, headers, ..kept }))
    }

    /// Gives a dead job another life, whose letter says so.
    async fn revive(&self, kept: Kept) -> Result<bool> {
        let shared = &*self.shared;
        let letter = self.letter(kept.clone());
        let mut entry = Entry { history: letter.history, ..Entry::new(letter.job) };
        if entry.job.expired(self.now()) {
            entry.job.headers.deadline = None;
        }
        let id = entry.job.id.clone();
        let lane = entry.lane(false);
        // No job has an id with a space in it.
        let headers = entry.headers(&format!("{id} again {}", kept.seq))?;
        let subject = shared.names.lane(lane, entry.job.headers.deadline);
        let ack = shared.api.publish(&subject, headers, entry.job.body).await?;
        if !ack.duplicate {
            shared.sight.fill(lane, ack.seq);
        }
        shared.api.delete(&shared.names.dead, kept.seq).await
    }

    pub(super) async fn purge_dead(&self, ids: Option<&[JobId]>) -> Result<u64> {
        let mut which = self.which(ids).await?;
        let mut n_purged = 0;
        loop {
            let page = self.page(&mut which).await?;
            if page.is_empty() {
                return Ok(n_purged);
            }
            let purged: Vec<_> = page.into_iter().map(|kept| self.purge_one(kept)).collect();
            n_purged += in_order(purged).await?.into_iter().filter(|done| *done).count() as u64;
        }
    }

    /// Deletes the oldest of those that died longer ago than this, by the clock of the server as well.
    pub(super) async fn purge_old_dead(
        &self,
        ttl: Duration,
        elsewhere: Elsewhere,
    ) -> Result<Purged> {
        let shared = &*self.shared;
        let info = shared.api.stream(&shared.names.dead).await?.ok_or_else(|| self.is_gone())?;
        let last = info.ts.unwrap_or_else(|| self.now()) - ttl;
        let (all, mut next) = (shared.names.subject("dead.*"), info.state.first_seq.max(1));
        let (mut purged, mut n_looks) = (Purged::default(), 0);
        let most = elsewhere.step(OLD) as u64;
        let failed = loop {
            if purged.n_jobs == most || n_looks == OLD {
                break None;
            }
            n_looks += 1;
            match self.purge_next_old((&all, next), (last, elsewhere), &mut purged).await {
                Ok(Some(seq)) => next = seq + 1,
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        match failed {
            Some(error) if purged.n_jobs == 0 => Err(error),
            failed => {
                if let Some(error) = failed {
                    tracing::debug!(%error, "a step of a purge was cut off");
                }
                Ok(purged)
            }
        }
    }

    /// Deletes the next letter of these from this number on; its number, unless it is young, or the last.
    async fn purge_next_old(
        &self,
        (all, next): (&str, u64),
        (last, elsewhere): (Timestamp, Elsewhere),
        purged: &mut Purged,
    ) -> Result<Option<u64>> {
        let shared = &*self.shared;
        let Some(kept) = shared.api.next(&shared.names.dead, next, all).await? else {
            return Ok(None);
        };
        let (seq, is_again) = (kept.seq, Entry::is_again(&kept.headers));
        // The clock of who buried it may be behind.
        let at = kept.at;
        let DeadLetter { job, died_at, .. } = self.letter(kept);
        if died_at.max(at) > last {
            return Ok(None);
        }
        if is_again {
            // What is known under its id, and its body, may be a job's that waits.
            return Ok(Some(seq));
        }
        if !elsewhere.lets_go(&job) {
            purged.n_left += 1;
            return Ok(Some(seq));
        }
        let has_gone_on = self.has_gone_on(&job.id).await?;
        // First of all: one that was put back meanwhile is known for good reason.
        if shared.api.delete(&shared.names.dead, seq).await? {
            purged.add(job.clone(), has_gone_on);
            self.forget_failure(&job.id).await?;
            self.forget(&job).await?;
        }
        Ok(Some(seq))
    }

    /// Deletes a dead letter. What is known of it is forgotten before: where this is cut short, the next
    /// purge meets it again.
    async fn purge_one(&self, kept: Kept) -> Result<bool> {
        let (seq, is_again) = (kept.seq, Entry::is_again(&kept.headers));
        let job = self.letter(kept).job;
        if !is_again {
            // Of one that is being put back the redrive has, and what is there now is of its next life.
            self.forget_failure(&job.id).await?;
        }
        self.forget(&job).await?;
        self.shared.api.delete(&self.shared.names.dead, seq).await
    }

    /// Forgets a dead job, its id and its key at once.
    async fn forget(&self, job: &Job) -> Result<()> {
        let shared = &*self.shared;
        let name = token_of(&job.id);
        let subject = shared.names.subject(&format!("notes.purged.{name}"));
        shared.api.publish(&subject, HeaderMap::new(), bytes::Bytes::new()).await?;
        shared.api.tell(&self.purged_subject(&job.id), bytes::Bytes::new()).await;
        if let Some(key) = &job.headers.key {
            let subject = self.subject_of(key);
            self.forget_key(&subject, &job.id).await?;
        }
        self.forget_key(&self.id_subject(&job.id), &job.id).await?;
        let which = json!({ "filter": shared.names.subject(&format!("chunks.{name}.>")) });
        shared.api.purge(&shared.names.results, &which).await.map(drop)
    }
}
