//! What a handle holds and what it settled before: AMQP keeps no leases, so the handle does.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::parcel::Parcel;
use crate::JobId;

/// Names that are remembered at most; older ones go first.
const MAX_NAMES: usize = 100_000;
/// How long an acknowledgement that came too late is remembered at most, to be made up for.
pub(super) const MEND: Duration = Duration::from_secs(3_600);

/// A delivery that is not settled.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) parcel: Parcel,
    /// The session that it came by, and its tag there.
    pub(super) epoch: u64,
    pub(super) tag: u64,
    until: Instant,
    /// Fetched for somebody who did not wait for it.
    pub(super) is_unwanted: bool,
    /// Expired, early, done or unreadable: it is dealt with and handed to nobody.
    pub(super) must_not_run: bool,
}

/// All deliveries of a handle.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    held: HashMap<u64, Held>,
    /// Being settled at this moment.
    n_taken: u64,
    n_leases: u64,
    /// The last settlement of a job that this handle carried out.
    settled: Recent<u64>,
    /// Jobs that are done and may come back, because their acknowledgement was lost.
    finished: Recent<()>,
    /// Fetched ahead, and handed to nobody.
    pub(super) n_ahead: u64,
    /// On their way to who asked for them.
    pub(super) n_coming: u64,
}

impl Ledger {
    /// Starts a lease; returns the number that proves it.
    pub(super) fn lease(
        &mut self,
        parcel: Parcel,
        (epoch, tag): (u64, u64),
        until: Instant,
    ) -> u64 {
        self.n_leases += 1;
        self.settled.forget(&parcel.job.id);
        let held = Held { parcel, epoch, tag, until, is_unwanted: false, must_not_run: false };
        self.held.insert(self.n_leases, held);
        self.n_leases
    }

    pub(super) fn held(&self, lease: u64) -> Option<&Held> {
        self.held.get(&lease)
    }

    pub(super) fn held_mut(&mut self, lease: u64) -> Option<&mut Held> {
        self.held.get_mut(&lease)
    }

    /// Takes a delivery to settle it.
    pub(super) fn take(&mut self, lease: u64) -> Option<Held> {
        let held = self.held.remove(&lease)?;
        self.n_taken += 1;
        Some(held)
    }

    /// It was not settled after all.
    pub(super) fn put_back(&mut self, lease: u64, held: Held) {
        self.n_taken -= 1;
        self.held.insert(lease, held);
    }

    /// It is settled.
    pub(super) fn drop_taken(&mut self) {
        self.n_taken -= 1;
    }

    /// The job was acknowledged for good: it is in no lane, and would be another if it came.
    pub(super) fn end(&mut self, id: &JobId) {
        self.finished.forget(id);
    }

    /// Remembers a settlement, so that it can be sent again.
    pub(super) fn remember(&mut self, lease: u64, id: JobId, until: Instant) {
        self.settled.insert(id, lease, until);
    }

    pub(super) fn was_settled(&self, lease: u64, id: &JobId, now: Instant) -> bool {
        self.settled.get(id, now).is_some_and(|known| *known == lease)
    }

    /// The job was put back or purged: it has another life, or none.
    pub(super) fn forget(&mut self, id: &JobId) {
        self.settled.forget(id);
        self.finished.forget(id);
    }

    /// The job is done, and its acknowledgement did not reach the broker.
    pub(super) fn finish(&mut self, id: JobId, until: Instant) {
        self.finished.insert(id, (), until);
    }

    /// Whether a job that came is done, and needs only to be acknowledged.
    pub(super) fn is_finished(&self, id: &JobId, now: Instant) -> bool {
        self.finished.get(id, now).is_some()
    }

    pub(super) fn extend(&mut self, lease: u64, until: Instant) -> bool {
        let held = self.held.get_mut(&lease);
        held.map(|held| held.until = until).is_some()
    }

    /// Nobody waits for it.
    pub(super) fn disown(&mut self, lease: u64) {
        if let Some(held) = self.held.get_mut(&lease) {
            held.is_unwanted = true;
        }
    }

    /// Leases that have ended, and deliveries that nobody waits for.
    pub(super) fn overdue(&self, now: Instant) -> Vec<u64> {
        let overdue = self.held.iter().filter(|(_, held)| held.is_unwanted || held.until <= now);
        overdue.map(|(lease, _)| *lease).collect()
    }

    /// Whether deliveries are being settled, or about to go back.
    pub(super) fn is_moving(&self, now: Instant) -> bool {
        self.n_taken > 0 || !self.overdue(now).is_empty()
    }

    /// When the next lease ends.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.held.values().map(|held| held.until).min()
    }

    /// Deliveries of earlier sessions are the broker's again.
    pub(super) fn keep_from(&mut self, epoch: u64) {
        self.held.retain(|_, held| held.epoch >= epoch);
    }

    pub(super) fn n_held(&self) -> u64 {
        self.held.len() as u64 + self.n_taken
    }

    /// What is neither held here nor counted by the broker.
    pub(super) fn n_between(&self) -> u64 {
        self.n_ahead + self.n_coming
    }

    /// A producer's mark of the request that is being answered.
    pub(super) fn correlation(&self, id: &JobId) -> Option<lapin::types::ShortString> {
        let held = self.held.values().find(|held| held.parcel.job.id == *id);
        held.and_then(|held| held.parcel.correlation.clone())
    }
}

/// A bounded memory of jobs.
#[derive(Debug)]
struct Recent<T> {
    known: HashMap<JobId, (T, Instant)>,
    /// In the order of insertion; names that were forgotten since stand here still.
    order: VecDeque<JobId>,
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self { known: HashMap::new(), order: VecDeque::new() }
    }
}

impl<T> Recent<T> {
    fn insert(&mut self, id: JobId, value: T, until: Instant) {
        self.known.insert(id.clone(), (value, until));
        self.order.push_back(id);
        while self.order.len() > MAX_NAMES {
            let oldest = self.order.pop_front();
            oldest.and_then(|id| self.known.remove(&id));
        }
    }

    fn get(&self, id: &JobId, now: Instant) -> Option<&T> {
        self.known.get(id).filter(|(_, until)| *until > now).map(|(value, _)| value)
    }

    fn forget(&mut self, id: &JobId) {
        self.known.remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Job, Timestamp};

    fn parcel(name: &str) -> Parcel {
        let now = Timestamp::UNIX_EPOCH;
        let mut job = Job::new("x", now);
        job.id = name.parse().unwrap();
        Parcel::new(job, 1)
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_ends_unless_it_is_extended() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        let second = Duration::from_secs(1);
        let lease = ledger.lease(parcel("a"), (1, 1), now + second);
        assert!(ledger.overdue(now).is_empty());
        assert!(ledger.extend(lease, now + second * 3));
        assert!(ledger.overdue(now + second * 2).is_empty());
        assert_eq!(ledger.overdue(now + second * 3), [lease]);
        assert_eq!(ledger.n_held(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_moves_until_it_is_settled_and_what_is_held_does_not() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        let lease = ledger.lease(parcel("a"), (1, 1), now + MEND);
        assert!(!ledger.is_moving(now));
        ledger.disown(lease);
        assert!(ledger.is_moving(now));
        assert!(ledger.take(lease).is_some() && ledger.is_moving(now));
        ledger.drop_taken();
        assert!(!ledger.is_moving(now));
    }

    #[tokio::test(start_paused = true)]
    async fn what_came_by_a_session_before_is_gone_and_by_a_later_one_is_not() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        let [old, new, next] = [1, 2, 3].map(|epoch| ledger.lease(parcel("a"), (epoch, 1), now));
        // Who found the second session may be slower than who found the third.
        ledger.keep_from(2);
        let held = [old, new, next].map(|lease| ledger.held(lease).is_some());
        assert_eq!(held, [false, true, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_being_settled_still_counts_as_held() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        let lease = ledger.lease(parcel("a"), (1, 1), now);
        let held = ledger.take(lease).unwrap();
        assert!(ledger.take(lease).is_none());
        assert_eq!((ledger.n_held(), ledger.overdue(now).len()), (1, 0));
        assert!(ledger.is_moving(now));
        ledger.put_back(lease, held);
        assert_eq!(ledger.overdue(now), [lease]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_that_is_done_is_known_to_be_until_it_is_acknowledged() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        let id: JobId = "a".parse().unwrap();
        ledger.finish(id.clone(), now + MEND);
        // The session ends before its acknowledgement is sent, and it comes again by the next.
        for epoch in 1..=2 {
            ledger.keep_from(epoch);
            assert!(ledger.is_finished(&id, now), "{epoch}");
            ledger.lease(parcel("a"), (epoch, 1), now);
        }
        let lease = ledger.n_leases;
        assert!(ledger.take(lease).is_some());
        ledger.drop_taken();
        // Given back it comes again.
        assert!(ledger.is_finished(&id, now));
        ledger.end(&id);
        assert!(!ledger.is_finished(&id, now));
    }

    #[tokio::test(start_paused = true)]
    async fn a_settlement_is_known_until_the_job_goes_on_or_its_time_is_over() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        let second = Duration::from_secs(1);
        let id = || "a".parse::<JobId>().unwrap();
        ledger.remember(7, id(), now + second);
        assert!(ledger.was_settled(7, &id(), now));
        assert!(!ledger.was_settled(8, &id(), now));
        assert!(!ledger.was_settled(7, &id(), now + second));
        ledger.lease(parcel("a"), (1, 1), now);
        assert!(!ledger.was_settled(7, &id(), now));
    }

    #[tokio::test(start_paused = true)]
    async fn the_memory_of_jobs_is_bounded() {
        let (mut recent, now) = (Recent::default(), Instant::now() + MEND);
        for n in 0..MAX_NAMES + 5 {
            recent.insert(n.to_string().parse().unwrap(), (), now);
        }
        assert_eq!((recent.known.len(), recent.order.len()), (MAX_NAMES, MAX_NAMES));
        assert!(recent.get(&"4".parse().unwrap(), Instant::now()).is_none());
        assert!(recent.get(&"5".parse().unwrap(), Instant::now()).is_some());
    }
}
