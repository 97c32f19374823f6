//! The jobs of a queue and what may become of them. Pure: the time comes in as an argument.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::entry::{Entry, State};
use crate::follow::Standing;
use crate::{
    Behavior, ByPriority, Cancelled, DeadLetter, Delivery, Depth, Elsewhere, Error, ErrorKind,
    Failure, Job, JobId, JobResult, JobState, Priority, Published, Receipt, Result, Settled,
    Settlement, Timestamp, Verdict,
};

/// Where a job stands in line: by priority, then by publication.
type Place = (Reverse<Priority>, u64);

/// All jobs of a queue, whatever became of them.
#[derive(Debug)]
pub(super) struct Jobs {
    behavior: Behavior,
    line: BTreeMap<Place, Entry>,
    places: HashMap<JobId, Place>,
    keys: HashMap<String, JobId>,
    /// Numbers publications, leases and deaths; never twice the same.
    counter: u64,
}

impl Jobs {
    pub(super) fn new(behavior: Behavior) -> Self {
        Self {
            behavior,
            line: BTreeMap::new(),
            places: HashMap::new(),
            keys: HashMap::new(),
            counter: 0,
        }
    }

    pub(super) fn publish(&mut self, jobs: Vec<Job>, now: Timestamp) -> Result<Vec<Published>> {
        let before = self.counter;
        let published: Vec<_> = jobs.into_iter().map(|job| self.publish_one(job, now)).collect();
        let waiting = || self.line.values().filter(|entry| entry.waits(now)).count() as u64;
        let added = published.iter().any(|one| !one.duplicate);
        if let Some(limit) = self.behavior.max_ready
            && added
            && waiting() > limit
        {
            self.remove_if(|place, _| place.1 > before);
            let words = format!("the queue is full: max_ready is {limit} jobs; publish later");
            return Err(Error::new(ErrorKind::Full, words));
        }
        Ok(published)
    }

    fn publish_one(&mut self, job: Job, now: Timestamp) -> Published {
        if let Some(id) = self.known(&job, now) {
            return Published { id, duplicate: true };
        }
        let id = job.id.clone();
        if let Some(key) = &job.headers.key {
            self.keys.insert(key.clone(), id.clone());
        }
        let due = job.headers.not_before.unwrap_or(now);
        let state = State::Waiting { due };
        self.insert(Entry { job, attempts: 0, history: Vec::new(), token: None, state });
        Published { id, duplicate: false }
    }

    /// The id under which the job, or the first one with its key, is known.
    fn known(&mut self, job: &Job, now: Timestamp) -> Option<JobId> {
        if self.entry(&job.id, now).is_some() {
            return Some(job.id.clone());
        }
        let id = self.keys.get(job.headers.key.as_ref()?)?.clone();
        self.entry(&id, now).is_some().then_some(id)
    }

    /// The job under this id, unless it was done so long ago that it is forgotten.
    fn entry(&mut self, id: &JobId, now: Timestamp) -> Option<&mut Entry> {
        let place = *self.places.get(id)?;
        if matches!(self.line.get(&place)?.state, State::Done { forget_at } if forget_at <= now) {
            self.remove(place);
            return None;
        }
        self.line.get_mut(&place)
    }

    fn insert(&mut self, entry: Entry) {
        self.counter += 1;
        let place = (Reverse(entry.job.headers.priority), self.counter);
        self.places.insert(entry.job.id.clone(), place);
        self.line.insert(place, entry);
    }

    fn remove(&mut self, place: Place) -> Option<Entry> {
        let entry = self.line.remove(&place)?;
        self.places.remove(&entry.job.id);
        if let Some(key) = &entry.job.headers.key {
            self.keys.remove(key);
        }
        Some(entry)
    }

    fn remove_if(&mut self, gone: impl Fn(&Place, &Entry) -> bool) {
        let places = self.line.iter().filter(|(place, entry)| gone(place, entry));
        let places: Vec<_> = places.map(|(place, _)| *place).collect();
        for place in places {
            self.remove(place);
        }
    }

    /// Forgets what is long done, makes dead letters of expired jobs, or ends those that have been
    /// answered, and returns both.
    pub(super) fn tidy(
        &mut self,
        now: Timestamp,
        is_answered: impl Fn(&JobId) -> bool,
    ) -> Vec<(Job, u32)> {
        self.remove_if(
            |_, entry| matches!(entry.state, State::Done { forget_at } if forget_at <= now),
        );
        let mut late: Vec<_> =
            self.line.iter_mut().filter(|(_, entry)| entry.is_expired(now)).collect();
        late.sort_by_key(|(place, entry)| (entry.job.headers.deadline, place.1));
        let mut expired = Vec::new();
        for (_, entry) in late {
            if is_answered(&entry.job.id) {
                // Whoever gave the answer died before the ack.
                entry.state = State::Done { forget_at: now + self.behavior.key_ttl };
                expired.push((entry.job.clone(), entry.attempts));
                continue;
            }
            entry.record_crash();
            self.counter += 1;
            let failure = Failure::expired();
            entry.state = State::Dead { failure, died_at: now, rank: self.counter };
            entry.token = None;
            expired.push((entry.job.clone(), entry.attempts));
        }
        expired
    }

    pub(super) fn lease(&mut self, max: usize, worker: &str, now: Timestamp) -> Vec<Delivery> {
        let until = now + self.behavior.lease;
        let ready = self.line.values_mut().filter(|entry| entry.is_ready(now));
        let deliveries = ready.take(max).map(|entry| {
            entry.record_crash();
            entry.attempts += 1;
            entry.state = State::Leased { until, worker: worker.to_owned() };
            self.counter += 1;
            let token: Arc<str> = self.counter.to_string().into();
            entry.token = Some(token.clone());
            let receipt = Receipt { job: entry.job.id.clone(), token };
            Delivery::new(entry.job.clone(), entry.attempts, receipt)
        });
        deliveries.collect()
    }

    /// The job on this very lease, or the one that this lease settled.
    fn leased(&mut self, receipt: &Receipt, now: Timestamp) -> Option<&mut Entry> {
        self.entry(&receipt.job, now).filter(|entry| entry.token.as_ref() == Some(&receipt.token))
    }

    pub(super) fn extend(&mut self, receipt: &Receipt, now: Timestamp) -> Settled {
        let ends = now + self.behavior.lease;
        match self.leased(receipt, now).map(|entry| &mut entry.state) {
            Some(State::Leased { until, .. }) => {
                *until = ends;
                Settled::Held
            }
            _ => Settled::Lost,
        }
    }

    pub(super) fn settle(&mut self, settlement: &Settlement, now: Timestamp) -> Settled {
        let forget_at = now + self.behavior.key_ttl;
        let rank = self.counter + 1;
        let Some(entry) = self.leased(settlement.receipt(), now) else {
            return Settled::Lost;
        };
        if !matches!(entry.state, State::Leased { .. }) {
            return Settled::Held; // Sent again: it was carried out the first time.
        }
        match settlement.verdict() {
            Verdict::Ack => entry.state = State::Done { forget_at },
            Verdict::Retry { after, reason } => {
                entry.record(now, reason);
                entry.state = State::Waiting { due: now + *after };
            }
            Verdict::Release => {
                entry.attempts -= 1;
                entry.state = State::Waiting { due: now };
            }
            Verdict::Reject(failure) => {
                entry.record(now, &failure.reason);
                entry.state = State::Dead { failure: failure.clone(), died_at: now, rank };
            }
        }
        self.counter = rank;
        Settled::Held
    }

    pub(super) fn depth(&self, now: Timestamp, is_answered: impl Fn(&JobId) -> bool) -> Depth {
        let mut depth = Depth::empty(now);
        let (mut cost, mut ready) = (0.0, ByPriority::default());
        for entry in self.line.values() {
            let free_at = entry.free_at();
            if matches!(entry.state, State::Dead { .. }) {
                depth.dead += 1;
            } else if entry.is_expired(now) {
                depth.dead += u64::from(!is_answered(&entry.job.id));
            } else if entry.is_ready(now) {
                depth.ready += 1;
                let published = entry.job.enqueued_at;
                depth.oldest_ready =
                    Some(depth.oldest_ready.map_or(published, |t| t.min(published)));
                *ready.of_mut(entry.job.headers.priority) += 1;
                let deadlines = depth.first_deadline.into_iter().chain(entry.job.headers.deadline);
                depth.first_deadline = deadlines.min();
            } else if entry.is_held(now) {
                depth.in_flight += 1;
            } else if free_at.is_some() {
                depth.delayed += 1;
            }
            if entry.is_ready(now) || entry.is_held(now) {
                cost += entry.job.headers.cost.unwrap_or(0.0);
            }
        }
        depth.next_due = self.next_due(now);
        depth.next_delayed = self.next_of(now, |entry| !entry.is_held(now));
        depth.cost = Some(cost);
        depth.ready_by_priority = Some(ready);
        depth
    }

    /// The next moment at which time alone makes a job ready.
    pub(super) fn next_due(&self, now: Timestamp) -> Option<Timestamp> {
        self.next_of(now, |_| true)
    }

    fn next_of(&self, now: Timestamp, counts: impl Fn(&Entry) -> bool) -> Option<Timestamp> {
        let due = |entry: &Entry| entry.free_at().filter(|at| *at > now && !entry.job.expired(*at));
        self.line.values().filter(|entry| counts(entry)).filter_map(due).min()
    }

    /// What is known of the job under this id.
    pub(super) fn standing(&self, id: &JobId, now: Timestamp) -> Standing {
        let entry = self.places.get(id).and_then(|place| self.line.get(place));
        match entry.map(|entry| &entry.state) {
            None => Standing::Unknown,
            Some(State::Done { forget_at }) if *forget_at <= now => Standing::Unknown,
            Some(State::Done { .. }) => Standing::Done,
            Some(_) => Standing::Open,
        }
    }

    /// Where the job under this id is.
    pub(super) fn state(
        &self,
        id: &JobId,
        now: Timestamp,
        is_answered: impl Fn(&JobId) -> bool,
    ) -> JobState {
        let Some(entry) = self.places.get(id).and_then(|place| self.line.get(place)) else {
            return JobState::Unknown;
        };
        match entry.state {
            State::Done { forget_at } if forget_at <= now => JobState::Unknown,
            State::Done { .. } => JobState::Done,
            State::Dead { .. } => JobState::Dead,
            _ if entry.is_held(now) => JobState::Running,
            _ if entry.is_expired(now) && is_answered(id) => JobState::Done,
            _ if entry.is_expired(now) => JobState::Dead,
            _ if entry.is_ready(now) => JobState::Waiting,
            _ => JobState::Delayed,
        }
    }

    /// Ends a job that nobody wants any more, as if acked; with the job and its attempts, if it has not
    /// ended before. What is stored of its end is given.
    pub(super) fn cancel(
        &mut self,
        id: &JobId,
        now: Timestamp,
        end: Option<&JobResult>,
    ) -> (Cancelled, Option<(Job, u32)>) {
        let forget_at = now + self.behavior.key_ttl;
        let Some(entry) = self.entry(id, now) else { return (Cancelled::Unknown, None) };
        let is_held = entry.is_held(now);
        // A failure that is stored while somebody holds the job is about to bury it, unless it is of an
        // attempt before.
        let is_ending =
            |end: &JobResult| end.outcome.is_final() || (is_held && end.attempt >= entry.attempts);
        if entry.free_at().is_none() || end.is_some_and(is_ending) {
            return (Cancelled::Ended, None);
        }
        entry.state = State::Done { forget_at };
        // Nobody has ended it by a settlement.
        entry.token = None;
        let told = if is_held { Cancelled::Running } else { Cancelled::Waiting };
        (told, Some((entry.job.clone(), entry.attempts)))
    }

    /// Deletes what waits, and returns it.
    pub(super) fn purge_waiting(&mut self, now: Timestamp) -> Vec<Job> {
        let waiting = self.line.iter().filter(|(_, entry)| entry.waits(now));
        let places: Vec<_> = waiting.map(|(place, _)| *place).collect();
        places.into_iter().filter_map(|place| Some(self.remove(place)?.job)).collect()
    }

    /// Deletes dead letters that are too old, and returns their jobs; with how many it left.
    pub(super) fn purge_old(&mut self, now: Timestamp, elsewhere: Elsewhere) -> (Vec<Job>, usize) {
        let Some(ttl) = self.behavior.dead_ttl else { return (Vec::new(), 0) };
        let letters = self.dead().into_iter().rev();
        let old = letters.take_while(|one| one.died_at + ttl <= now).map(|letter| letter.job);
        let (old, left): (Vec<_>, Vec<_>) = old.partition(|job| elsewhere.lets_go(job));
        let old: Vec<_> =
            old.into_iter().take(elsewhere.step(usize::MAX)).map(|job| job.id).collect();
        let jobs = self.remove_dead(Some(&old)).into_iter().map(|entry| entry.job);
        (jobs.collect(), left.len())
    }

    /// The newest first.
    pub(super) fn dead(&self) -> Vec<DeadLetter> {
        let mut dead: Vec<_> = self.line.values().filter_map(Entry::dead_letter).collect();
        dead.sort_by_key(|(rank, _)| Reverse(*rank));
        dead.into_iter().map(|(_, letter)| letter).collect()
    }

    /// Deletes dead letters, for good or to put them back; in the order they died or are named.
    fn remove_dead(&mut self, ids: Option<&[JobId]>) -> Vec<Entry> {
        let all: Vec<_> = self.dead().into_iter().rev().map(|letter| letter.job.id).collect();
        let named = ids.unwrap_or(&all).iter().filter(|id| all.contains(id));
        named.filter_map(|id| self.remove(*self.places.get(id)?)).collect()
    }

    /// Returns whose they were.
    pub(super) fn purge(&mut self, ids: Option<&[JobId]>) -> Vec<JobId> {
        self.remove_dead(ids).into_iter().map(|entry| entry.job.id).collect()
    }

    /// Returns whose attempts count from 1 again.
    pub(super) fn redrive(&mut self, ids: Option<&[JobId]>, now: Timestamp) -> Vec<JobId> {
        let mut again = Vec::new();
        for mut entry in self.remove_dead(ids) {
            if entry.job.expired(now) {
                entry.job.headers.deadline = None;
            }
            if let Some(key) = &entry.job.headers.key {
                self.keys.insert(key.clone(), entry.job.id.clone());
            }
            again.push(entry.job.id.clone());
            let state = State::Waiting { due: now };
            self.insert(Entry { attempts: 0, token: None, state, ..entry });
        }
        again
    }
}
