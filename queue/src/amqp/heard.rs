//! What was heard of other handles, and what follows while nothing is heard.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::{STATUS_TTL, WorkerId, WorkerStatus};

/// What a handle holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Holding {
    pub(super) handle: String,
    pub(super) held: u64,
    pub(super) ahead: u64,
}

/// What was heard of all handles.
#[derive(Debug, Default)]
pub(super) struct Heard {
    said: Mutex<Said>,
    /// Where we are heard by ourselves, and from when on all others have been.
    pub(super) ear: watch::Sender<Option<Ear>>,
    /// Told of each word of others on what they hold.
    pub(super) words: watch::Sender<()>,
    pub(super) n_echoes: AtomicU64,
    pub(super) echo: watch::Sender<u64>,
}

#[derive(Debug, Clone)]
pub(super) struct Ear {
    pub(super) epoch: u64,
    pub(super) queue: String,
    pub(super) complete_at: Instant,
    /// From then on whoever holds anything has said so without being asked.
    pub(super) beat_at: Instant,
}

#[derive(Debug, Default)]
struct Said {
    holdings: HashMap<String, (Holding, Instant)>,
    workers: HashMap<WorkerId, (WorkerStatus, Instant)>,
    /// What the worker of this handle said last.
    own: Option<(WorkerStatus, Instant)>,
    /// When nobody could say anything, the last time.
    silent_at: Option<Instant>,
    total: Total,
}

/// Jobs that wait or are held, the most that there can be.
#[derive(Debug, Default)]
struct Total {
    n_jobs: u64,
    /// The session in which all was heard last.
    heard_in: Option<u64>,
}

impl Said {
    fn forget_old(&mut self, now: Instant) {
        let silent_at = self.silent_at;
        let counts = |at: Instant| now - silent_at.map_or(at, |silent| silent.max(at)) < STATUS_TTL;
        self.holdings.retain(|_, (_, at)| counts(*at));
        self.workers.retain(|_, (_, at)| counts(*at));
    }
}

impl Heard {
    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What other handles hold, and what they fetched and handed to nobody.
    pub(super) fn holdings(&self) -> (u64, u64) {
        let mut said = self.said();
        said.forget_old(Instant::now());
        let holdings = said.holdings.values();
        holdings.fold((0, 0), |(held, ahead), (one, _)| (held + one.held, ahead + one.ahead))
    }

    pub(super) fn workers(&self) -> Vec<WorkerStatus> {
        let mut said = self.said();
        said.forget_old(Instant::now());
        said.workers.values().map(|(status, _)| status.clone()).collect()
    }

    /// Whether others hold a job, or have fetched one ahead.
    pub(super) fn has_holders(&self) -> bool {
        self.holdings() != (0, 0)
    }

    /// Forgets who has not spoken for a while.
    pub(super) fn forget_old(&self) {
        self.said().forget_old(Instant::now());
    }

    pub(super) fn note_holding(&self, holding: Holding) {
        self.said().holdings.insert(holding.handle.clone(), (holding, Instant::now()));
        self.words.send_replace(());
    }

    /// Notes what a worker said then; true when it is in another phase than before. What it says to one
    /// who asks may come later than what it has said since.
    pub(super) fn note_worker(&self, status: WorkerStatus, at: Instant) -> bool {
        let mut said = self.said();
        let before = said.workers.get(&status.id);
        if before.is_some_and(|(_, before)| *before > at) {
            return false;
        }
        let before = before.filter(|(_, before)| at - *before < STATUS_TTL);
        let is_new = before.is_none_or(|(before, _)| before.phase != status.phase);
        said.workers.insert(status.id.clone(), (status, at));
        is_new
    }

    pub(super) fn note_own(&self, status: WorkerStatus, at: Instant) {
        self.said().own = Some((status, at));
    }

    pub(super) fn own(&self) -> Option<(WorkerStatus, Instant)> {
        self.said().own.clone().filter(|(_, at)| at.elapsed() < STATUS_TTL)
    }

    /// Nobody can say anything at this moment.
    pub(super) fn note_silence(&self) {
        self.said().silent_at = Some(Instant::now());
    }

    /// How many jobs are held, where so many wait and so many are said to be held.
    ///
    /// A broker that lets nobody say anything takes no jobs either, so what waited or was held
    /// before and waits no more is held, or done since: the most that it can be is told until all
    /// have had the time to speak again. None where nothing waits and nothing was heard before.
    pub(super) fn n_held(&self, epoch: u64, n_waiting: u64, n_told: u64) -> Option<u64> {
        let mut said = self.said();
        let n_seen = n_waiting + n_told;
        let is_silent = said.silent_at.is_some_and(|at| at.elapsed() < STATUS_TTL);
        if !is_silent {
            said.total = Total { n_jobs: n_seen, heard_in: Some(epoch) };
            return Some(n_told);
        }
        let total = &mut said.total;
        total.n_jobs = total.n_jobs.max(n_seen);
        let is_known = total.n_jobs > 0 || total.heard_in == Some(epoch);
        is_known.then(|| total.n_jobs - n_waiting)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::time::advance;

    use super::super::kit::worker;
    use super::*;
    use crate::Phase;

    /// What happens to the jobs of a queue that takes no more.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        Take,
        Done,
        GiveBack,
        Look,
    }

    fn holding(n: usize, held: u64) -> Holding {
        Holding { handle: n.to_string(), held, ahead: 0 }
    }

    #[tokio::test(start_paused = true)]
    async fn who_speaks_no_more_is_forgotten_also_where_nobody_asks() {
        let heard = Heard::default();
        for n in 0..100 {
            heard.note_holding(holding(n, 1));
            advance(Duration::from_secs(1)).await;
            heard.forget_old();
            assert!(heard.said().holdings.len() <= 5);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_worker_said_before_does_not_take_the_place_of_what_it_says_now() {
        let (heard, before) = (Heard::default(), Instant::now());
        advance(Duration::from_millis(100)).await;
        assert!(heard.note_worker(worker("w", Phase::Draining, 1), Instant::now()));
        // An answer to who is new, which overtook nothing.
        assert!(!heard.note_worker(worker("w", Phase::Busy, 1), before));
        assert_eq!(heard.workers()[0].phase, Phase::Draining);
        assert!(!heard.note_worker(worker("w", Phase::Draining, 0), Instant::now()));
        assert_eq!(heard.workers()[0].in_flight, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_heard_counts_through_a_silence_and_until_all_can_have_spoken() {
        let heard = Heard::default();
        heard.note_holding(holding(1, 3));
        assert_eq!(heard.n_held(0, 2, heard.holdings().0), Some(3));
        for _ in 0..60 {
            heard.note_silence();
            advance(Duration::from_secs(1)).await;
            assert_eq!(heard.n_held(0, 2, heard.holdings().0), Some(3));
        }
        // Another session that heard nothing yet knows it as well.
        assert_eq!(heard.n_held(1, 0, heard.holdings().0), Some(5));
        advance(STATUS_TTL).await;
        assert_eq!(heard.n_held(1, 0, heard.holdings().0), Some(0));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_nothing_only_where_there_was_nothing() {
        let heard = Heard::default();
        heard.note_silence();
        assert_eq!(heard.n_held(0, 0, 0), None);
        assert_eq!(heard.n_held(0, 1, 0), Some(0));
        assert_eq!(heard.n_held(0, 0, 0), Some(1));
        let heard = Heard::default();
        assert_eq!(heard.n_held(0, 0, 0), Some(0));
        heard.note_silence();
        assert_eq!(heard.n_held(0, 0, 0), Some(0));
        assert_eq!(heard.n_held(1, 0, 0), None);
    }

    proptest! {
        #[test]
        fn in_a_silence_no_job_that_is_held_goes_uncounted(
            (waiting, held) in (0..5u64, 0..5u64),
            steps in prop::collection::vec(
                prop_oneof![Just(Step::Take), Just(Step::Done), Just(Step::GiveBack), Just(Step::Look)],
                0..40,
            ),
        ) {
            let (heard, mut waiting, mut held, all) = (Heard::default(), waiting, held, waiting + held);
            heard.n_held(0, waiting, held);
            heard.note_silence();
            for step in steps {
                match step {
                    Step::Take if waiting > 0 => (waiting, held) = (waiting - 1, held + 1),
                    Step::Done => held = held.saturating_sub(1),
                    Step::GiveBack if held > 0 => (waiting, held) = (waiting + 1, held - 1),
                    _ => {}
                }
                // Nothing is heard of others.
                let told = heard.n_held(0, waiting, 0).unwrap();
                prop_assert!(told >= held, "{} of {}", told, held);
                prop_assert!(told + waiting == all);
            }
        }
    }
}
