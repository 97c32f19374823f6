//! Who is told that a device compiles and tunes kernels, which takes far longer than to run them.

use std::sync::Arc;

#[cfg(feature = "cpu")]
use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
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

/// The shapes that were run, and who is told of the others.
#[cfg(feature = "cpu")]
#[derive(Debug, Default)]
pub(crate) struct KnownShapes {
    known: Mutex<HashSet<[usize; 3]>>,
    first_runs: FirstRuns,
}

#[cfg(feature = "cpu")]
impl KnownShapes {
    /// Tells this one from now on.
    pub(crate) fn tell(&mut self, first_runs: FirstRuns) {
        self.first_runs = first_runs;
    }

    /// These are run next, each as the sizes that its kernels depend on.
    pub(crate) fn run(&self, shapes: impl IntoIterator<Item = [usize; 3]>) {
        // A set is whole whatever its holder was doing.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.len();
        known.extend(shapes);
        if known.len() > before {
            self.first_runs.begin();
        }
    }
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use super::*;

    #[test]
    fn a_shape_that_was_run_before_is_told_of_no_more() {
        let told = Arc::new(AtomicU32::new(0));
        let n_told = Arc::clone(&told);
        let mut shapes = KnownShapes::default();
        shapes.run([[1, 16, 0]]);
        shapes.tell(FirstRuns::new(move || {
            n_told.fetch_add(1, Relaxed);
        }));
        for (more, expected) in [([1, 16, 0], 0), ([2, 16, 0], 1), ([2, 16, 0], 1), ([2, 24, 0], 2)]
        {
            shapes.run([more, [1, 16, 0]]);
            assert_eq!(told.load(Relaxed), expected, "{more:?}");
        }
    }
}
