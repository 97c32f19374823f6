//! Work in phases, done by the caller's thread and those of the pool that have time for it.
//!
//! A fork and a join of the pool cost some tens of microseconds each, as long as a layer's attention
//! takes for a short text. Here threads come once for all phases and wait for each other awake. The
//! caller waits for no thread that has not begun, so it ends however busy the pool is.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Looks at what others have done before a thread that waits lets another have its processor.
const LOOKS: usize = 2000;

/// Work cut into phases, each of some pieces.
pub(crate) trait Phased: Send + Sync + 'static {
    /// What one thread needs for it.
    type Scratch: Default;

    /// How many pieces a phase has.
    fn pieces(&self, phase: usize) -> usize;

    /// Does a piece of a phase. All pieces of the phases before are done; the others of this one may
    /// be done at the same time. It must not wait for the pool: its thread could take another part in
    /// this work meanwhile, which would wait for this piece.
    fn piece(&self, phase: usize, piece: usize, scratch: &mut Self::Scratch);
}

/// Does all of it, with at most as many threads as the pool has.
///
/// # Panics
/// If a piece does; others may still be at theirs then.
pub(crate) fn run<W: Phased>(work: &Arc<W>, n_phases: usize) {
    let n_pieces = (0..n_phases).map(|phase| work.pieces(phase)).max().unwrap_or(0);
    let n_members = n_pieces.clamp(1, rayon::current_num_threads());
    let crew = Arc::new(Crew {
        work: Arc::clone(work),
        n_phases,
        n_members,
        taken: (0..n_pieces).map(|_| AtomicUsize::new(0)).collect(),
        n_done: AtomicUsize::new(0),
        failed: AtomicBool::new(false),
        panic: Mutex::default(),
    });
    for member in 1..n_members {
        let crew = Arc::clone(&crew);
        rayon::spawn(move || crew.join(member));
    }
    crew.join(0);
    let panic = crew.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(panic) = panic {
        resume_unwind(panic);
    }
}

struct Crew<W> {
    work: Arc<W>,
    n_phases: usize,
    n_members: usize,
    /// The last phase in which each piece has been taken, from one on.
    taken: Vec<AtomicUsize>,
    /// Pieces done so far, of all phases together.
    n_done: AtomicUsize,
    /// Whether a piece panicked; no other is begun then.
    failed: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl<W: Phased> Crew<W> {
    /// Takes part until the end.
    fn join(&self, member: usize) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.work_as(member))) {
            let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(panic);
            drop(first);
            self.failed.store(true, Ordering::Release);
        }
    }

    fn work_as(&self, member: usize) {
        let mut scratch = W::Scratch::default();
        let mut n_until = 0;
        for phase in 0..self.n_phases {
            let n_pieces = self.work.pieces(phase);
            n_until += n_pieces;
            // First its own share, of which it had the rows or the weights in its cache before.
            let first = member * n_pieces / self.n_members;
            for piece in (first..n_pieces).chain(0..first) {
                if self.take(phase, piece) {
                    self.work.piece(phase, piece, &mut scratch);
                    self.n_done.fetch_add(1, Ordering::Release);
                }
            }
            // Only the caller wants what comes out of the last.
            let is_over = member > 0 && phase + 1 == self.n_phases;
            if is_over || !self.wait(n_until) {
                return;
            }
        }
    }

    fn take(&self, phase: usize, piece: usize) -> bool {
        if self.failed.load(Ordering::Relaxed) {
            return false;
        }
        self.taken[piece].fetch_max(phase + 1, Ordering::Relaxed) <= phase
    }

    /// Waits until so many pieces are done; whether they are, and nothing failed.
    fn wait(&self, n_pieces: usize) -> bool {
        let mut looks = 0;
        loop {
            if self.failed.load(Ordering::Acquire) {
                return false;
            }
            if self.n_done.load(Ordering::Acquire) >= n_pieces {
                return true;
            }
            looks += 1;
            if looks < LOOKS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use proptest::prelude::*;

    use super::*;

    /// Notes what is done, and panics at one piece.
    struct Noted {
        /// Of each phase.
        n_pieces: Vec<usize>,
        done: Vec<Vec<AtomicUsize>>,
        bad: Option<(usize, usize)>,
    }

    impl Noted {
        fn new(n_pieces: Vec<usize>, bad: Option<(usize, usize)>) -> Arc<Self> {
            let phase = |n: &usize| (0..*n).map(|_| AtomicUsize::new(0)).collect();
            let done = n_pieces.iter().map(phase).collect();
            Arc::new(Self { n_pieces, done, bad })
        }
    }

    impl Phased for Noted {
        type Scratch = ();

        fn pieces(&self, phase: usize) -> usize {
            self.n_pieces[phase]
        }

        fn piece(&self, phase: usize, piece: usize, (): &mut ()) {
            assert!(self.bad != Some((phase, piece)), "bad piece");
            let mut before = self.done[..phase].iter().flatten();
            assert!(before.all(|done| done.load(Ordering::Relaxed) == 1), "out of turn");
            self.done[phase][piece].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn all_done(work: &Noted) -> bool {
        work.done.iter().flatten().all(|done| done.load(Ordering::Relaxed) == 1)
    }

    proptest! {
        // Each case of the second panics, and says so.
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn each_piece_is_done_once_and_after_all_of_the_phase_before(
            n_pieces in prop::collection::vec(0usize..9, 0..20),
        ) {
            let work = Noted::new(n_pieces.clone(), None);
            run(&work, n_pieces.len());
            prop_assert!(all_done(&work));
        }

        #[test]
        fn a_panic_of_any_piece_comes_to_the_caller(phase in 0usize..4, piece in 0usize..4) {
            let work = Noted::new(vec![4; 4], Some((phase, piece)));
            let ran = catch_unwind(AssertUnwindSafe(|| run(&work, 4)));
            let panic = ran.expect_err("a piece panicked");
            prop_assert_eq!(panic.downcast_ref::<&str>(), Some(&"bad piece"));
            let mut later = work.done[phase + 1..].iter().flatten();
            prop_assert!(later.all(|done| done.load(Ordering::Relaxed) == 0));
        }
    }

    #[test]
    fn callers_on_a_busy_pool_end() {
        let call = || {
            let work = Noted::new(vec![4; 50], None);
            run(&work, 50);
            assert!(all_done(&work));
        };
        // More callers than threads, from inside of the pool and outside of it.
        rayon::scope(|scope| {
            (0..16).for_each(|_| scope.spawn(|_| call()));
            let callers: Vec<_> = (0..4).map(|_| std::thread::spawn(call)).collect();
            callers.into_iter().for_each(|caller| caller.join().expect("no panic"));
        });
    }

    fn pool(n_threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap()
    }

    #[test]
    fn a_pool_of_one_thread_is_enough() {
        let work = Noted::new(vec![4; 50], None);
        pool(1).install(|| run(&work, 50));
        assert!(all_done(&work));
    }

    #[test]
    fn who_comes_late_is_not_waited_for_and_does_no_harm() {
        let pool = pool(2);
        let (begin, begun) = sync_channel(1);
        let (end, ended) = sync_channel::<()>(1);
        pool.spawn(move || {
            begin.send(()).unwrap();
            ended.recv().unwrap();
        });
        begun.recv().unwrap();
        let work = Noted::new(vec![4; 50], None);
        pool.install(|| run(&work, 50));
        assert!(all_done(&work));
        end.send(()).unwrap();
        pool.broadcast(|_| ());
        assert!(all_done(&work));
    }
}
