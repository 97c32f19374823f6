//! Who is told that a device compiles and tunes kernels, which takes far longer than to run them.

use std::sync::Arc;

#[cfg(feature = "cpu")]
use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Who is told, on the device's thread, that a batch has work of a shape that was not run before.
/// Clones tell the same; by default nobody is told.
#[derive(Clone, Default)]
pub struct FirstRuns(Option<Arc<dyn Fn() + Send + Sync>>);

impl FirstRuns {
    /// Calls `tell` before each first run of a shape.
    pub fn new(tell: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(tell)))
    }

    /// Tells that such a run begins.
    pub fn begin(&self) {
        if let Some(tell) = &self.0 {
            tell();
        }
    }
}

impl std::fmt::Debug for FirstRuns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("FirstRuns").field(&self.0.is_some()).finish()
    }
}

/// The shapes that were run to their end, and who is told of the others.
#[cfg(feature = "cpu")]
#[derive(Debug, Default)]
pub(crate) struct KnownShapes {
    shapes: Mutex<Shapes>,
    /// Whether the device compiles and tunes kernels for a shape.
    is_tuned: bool,
    first_runs: FirstRuns,
}

#[cfg(feature = "cpu")]
#[derive(Debug, Default)]
struct Shapes {
    known: HashSet<[usize; 3]>,
    /// Of runs that were begun and did not come to their end yet.
    begun: HashSet<[usize; 3]>,
}

#[cfg(feature = "cpu")]
impl KnownShapes {
    /// Of a model whose device tunes its kernels, or does not.
    pub(crate) fn new(is_tuned: bool) -> Self {
        Self { is_tuned, ..Self::default() }
    }

    /// Tells this one from now on, where kernels are tuned.
    pub(crate) fn tell(&mut self, first_runs: FirstRuns) {
        if self.is_tuned {
            self.first_runs = first_runs;
        }
    }

    /// These are run next, each as the sizes that its kernels depend on.
    pub(crate) fn begin(&self, shapes: impl IntoIterator<Item = [usize; 3]>) {
        let mut lock = self.lock();
        let Shapes { known, begun } = &mut *lock;
        begun.extend(shapes.into_iter().filter(|shape| !known.contains(shape)));
        // A run that nobody waited for may be tuned during the next.
        if !begun.is_empty() {
            self.first_runs.begin();
        }
    }

    /// What was begun has come to its end, or has failed: then it may yet have to be tuned.
    pub(crate) fn end(&self, is_sound: bool) {
        let mut lock = self.lock();
        let begun = std::mem::take(&mut lock.begun);
        if is_sound {
            lock.known.extend(begun);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shapes> {
        // Sets are whole whatever their holder was doing.
        self.shapes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, feature = "cpu"))]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use super::*;

    /// One who counts how often it is told.
    pub(crate) fn counter() -> (FirstRuns, impl Fn() -> u32) {
        let told = Arc::new(AtomicU32::new(0));
        let n_told = Arc::clone(&told);
        let first_runs = FirstRuns::new(move || {
            n_told.fetch_add(1, Relaxed);
        });
        (first_runs, move || told.load(Relaxed))
    }

    #[test]
    fn a_shape_that_was_run_before_is_told_of_no_more() {
        let (first_runs, n_told) = counter();
        let mut shapes = KnownShapes::new(true);
        shapes.begin([[1, 16, 0]]);
        shapes.end(true);
        shapes.tell(first_runs);
        for (more, expected) in [([1, 16, 0], 0), ([2, 16, 0], 1), ([2, 16, 0], 1), ([2, 24, 0], 2)]
        {
            shapes.begin([more, [1, 16, 0]]);
            shapes.end(true);
            assert_eq!(n_told(), expected, "{more:?}");
        }
    }

    #[test]
    fn a_shape_whose_run_failed_or_was_not_waited_for_is_told_of_again() {
        let (first_runs, n_told) = counter();
        let mut shapes = KnownShapes::new(true);
        shapes.tell(first_runs);
        let run = |shape, ended: Option<bool>| {
            shapes.begin([shape]);
            ended.into_iter().for_each(|is_sound| shapes.end(is_sound));
            n_told()
        };
        assert_eq!(run([1, 16, 0], Some(false)), 1);
        assert_eq!(run([1, 16, 0], Some(true)), 2);
        assert_eq!(run([2, 16, 0], None), 3);
        assert_eq!(run([1, 16, 0], Some(true)), 4, "it may be the other that takes long");
        assert_eq!(run([2, 16, 0], Some(true)), 4);
    }

    #[test]
    fn nobody_is_told_where_nothing_is_tuned() {
        let (first_runs, n_told) = counter();
        let mut shapes = KnownShapes::new(false);
        shapes.tell(first_runs);
        shapes.begin([[1, 16, 0]]);
        assert_eq!(n_told(), 0);
    }
}
