//! What the receivers of several queues agree upon: who may take how many jobs, when all of them
//! are idle, and that a job which may crash its worker is alone in it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::shared::lock;

/// Where one job had to be alone others are likely to follow, for so long.
const AFTERMATH: Duration = Duration::from_secs(1);

/// The agreement of the receivers.
#[derive(Debug)]
pub(crate) struct Intake {
    /// Jobs that may still be received, less those that a call to a broker may bring.
    left: AtomicU64,
    /// Jobs received; compared with the most that may be.
    received: AtomicU64,
    most: u64,
    /// The queues that were found empty with nothing held, since a job came last.
    idle: std::sync::Mutex<BTreeSet<usize>>,
    n_queues: usize,
    /// Held for reading by who receives, for writing by who must be alone.
    alone: RwLock<()>,
    /// Held by the one who is, or is about to be.
    solitude: Mutex<()>,
    /// Whether there is such a one, or when the last one ended.
    lonely: std::sync::Mutex<Lonely>,
    /// Cancelled when nothing more is to be received, by any of them.
    enough: CancellationToken,
}

/// What became of the jobs that were set aside for a call to a broker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Brought {
    /// That came.
    pub(crate) n_came: usize,
    /// That were kept of these; the others were given back.
    pub(crate) n_kept: usize,
    /// That were set aside.
    pub(crate) aside: usize,
}

#[derive(Debug, Clone, Copy)]
enum Lonely {
    Now,
    /// Not any more since this moment; never so far, where it is missing.
    NotSince(Option<Instant>),
}

impl Intake {
    pub(crate) fn new(n_queues: usize, max_jobs: Option<u64>) -> Self {
        let most = max_jobs.unwrap_or(u64::MAX);
        let enough = CancellationToken::new();
        if most == 0 {
            enough.cancel();
        }
        Self {
            left: AtomicU64::new(most),
            received: AtomicU64::new(0),
            most,
            idle: std::sync::Mutex::default(),
            n_queues,
            alone: RwLock::new(()),
            solitude: Mutex::new(()),
            lonely: std::sync::Mutex::new(Lonely::NotSince(None)),
            enough,
        }
    }

    /// Cancelled when nothing more is to be received.
    pub(crate) fn enough(&self) -> &CancellationToken {
        &self.enough
    }

    /// Sets aside up to so many jobs for one call to a broker.
    pub(crate) fn set_aside(&self, at_most: usize) -> usize {
        let mut taken = 0;
        let take = |left: u64| {
            taken = left.min(at_most as u64);
            Some(left - taken)
        };
        // It always changes.
        self.left.fetch_update(SeqCst, SeqCst, take).ok();
        usize::try_from(taken).unwrap_or(at_most)
    }

    /// Whether what one queue sets aside may be missing in another.
    pub(crate) fn is_scarce(&self) -> bool {
        self.most < u64::MAX && self.n_queues > 1
    }

    /// A call has ended. A job that went back at once was not received: somebody else will have it,
    /// or this worker later.
    pub(crate) fn brought(&self, Brought { n_came, n_kept, aside }: Brought) {
        self.left.fetch_add((aside - n_kept) as u64, SeqCst);
        if n_came > 0 {
            lock(&self.idle).clear();
        }
        let n_kept = n_kept as u64;
        if self.received.fetch_add(n_kept, SeqCst) + n_kept >= self.most {
            self.enough.cancel();
        }
    }

    /// A queue was found empty, and nothing is held: when all were, since a job came last, that is
    /// the end of a worker that exits when empty.
    pub(crate) fn found_empty(&self, at: usize) {
        let mut idle = lock(&self.idle);
        idle.insert(at);
        if idle.len() == self.n_queues {
            self.enough.cancel();
        }
    }

    /// Waits until nobody is alone; nobody becomes so while this is held.
    pub(crate) async fn among_others(&self) -> RwLockReadGuard<'_, ()> {
        self.alone.read().await
    }

    /// The right to be alone; none while somebody else has it.
    pub(crate) fn solitude(&self) -> Option<Solitude<'_>> {
        let first = self.solitude.try_lock().ok()?;
        *lock(&self.lonely) = Lonely::Now;
        Some(Solitude { intake: self, _first: first })
    }

    /// Whether somebody wants to be alone, or was so a moment ago: who waits long for jobs now keeps
    /// the next one waiting.
    pub(crate) fn is_lonely(&self) -> bool {
        match *lock(&self.lonely) {
            Lonely::Now => true,
            Lonely::NotSince(end) => end.is_some_and(|end| end.elapsed() < AFTERMATH),
        }
    }
}

/// The right to be alone.
pub(crate) struct Solitude<'a> {
    intake: &'a Intake,
    _first: MutexGuard<'a, ()>,
}

impl Solitude<'_> {
    /// Waits for the calls of the others to end; they make no other until this is dropped.
    pub(crate) async fn begin(&self) -> impl Drop + use<'_> {
        self.intake.alone.write().await
    }
}

impl Drop for Solitude<'_> {
    fn drop(&mut self) {
        *lock(&self.intake.lonely) = Lonely::NotSince(Some(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_kept(n: usize, aside: usize) -> Brought {
        Brought { n_came: n, n_kept: n, aside }
    }

    #[test]
    fn no_more_jobs_are_taken_than_may_be_and_what_did_not_come_is_left_for_others() {
        let intake = Intake::new(2, Some(10));
        assert_eq!((intake.set_aside(8), intake.set_aside(8), intake.set_aside(8)), (8, 2, 0));
        intake.brought(all_kept(5, 8));
        assert_eq!(intake.set_aside(8), 3);
        intake.brought(all_kept(2, 2));
        assert!(!intake.enough().is_cancelled());
        intake.brought(Brought { n_came: 3, n_kept: 1, aside: 3 });
        assert!(!intake.enough().is_cancelled(), "two went back at once");
        assert_eq!(intake.set_aside(8), 2);
        intake.brought(all_kept(2, 2));
        assert!(intake.enough().is_cancelled());
        assert!(Intake::new(1, Some(0)).enough().is_cancelled());
    }

    #[test]
    fn all_queues_must_be_empty_since_the_last_job() {
        let intake = Intake::new(2, None);
        intake.found_empty(0);
        intake.brought(all_kept(1, 4));
        intake.found_empty(1);
        assert!(!intake.enough().is_cancelled(), "the first may have a job by now");
        intake.found_empty(0);
        assert!(intake.enough().is_cancelled());
    }

    #[test]
    fn any_number_of_queues_may_be_found_empty() {
        for n_queues in [1, 32, 63, 64, 65, 1000] {
            let intake = Intake::new(n_queues, None);
            for at in 0..n_queues {
                assert!(!intake.enough().is_cancelled(), "{at} of {n_queues} were looked at");
                intake.found_empty(at);
            }
            assert!(intake.enough().is_cancelled(), "{n_queues}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_moment_after_the_last_who_was_alone_all_is_as_before() {
        let intake = Intake::new(2, None);
        assert!(!intake.is_lonely());
        let solitude = intake.solitude().unwrap();
        tokio::time::sleep(2 * AFTERMATH).await;
        assert!(intake.is_lonely());
        drop(solitude);
        assert!(intake.is_lonely());
        tokio::time::sleep(AFTERMATH).await;
        assert!(!intake.is_lonely());
    }

    #[tokio::test]
    async fn who_is_alone_waits_for_calls_under_way_and_holds_up_the_next() {
        let intake = Intake::new(2, None);
        let call = intake.among_others().await;
        let solitude = intake.solitude().unwrap();
        assert!(intake.solitude().is_none(), "two would wait for each other");
        let mut begun = Box::pin(solitude.begin());
        assert!(futures::poll!(&mut begun).is_pending());
        drop(call);
        let alone = begun.await;
        let mut next = Box::pin(intake.among_others());
        assert!(futures::poll!(&mut next).is_pending());
        drop(alone);
        drop(next.await);
    }
}
