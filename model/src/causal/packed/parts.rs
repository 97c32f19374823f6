//! What pieces of a pass write for those of the next phase.

use std::ops::Range;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Rows in parts, each of which one thread writes at a time: a block of rows, some of the columns.
pub(super) struct Parts {
    parts: Vec<RwLock<Vec<f32>>>,
    n_groups: usize,
}

impl Parts {
    pub(super) fn new(n_blocks: usize, n_groups: usize) -> Self {
        Self { parts: (0..n_blocks * n_groups).map(|_| RwLock::default()).collect(), n_groups }
    }

    pub(super) fn read(&self, block: usize, group: usize) -> RwLockReadGuard<'_, Vec<f32>> {
        let part = &self.parts[block * self.n_groups + group];
        part.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self, block: usize, group: usize) -> RwLockWriteGuard<'_, Vec<f32>> {
        let part = &self.parts[block * self.n_groups + group];
        part.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the parts of a block side by side in rows of `width` numbers.
    pub(super) fn gather(
        &self,
        block: usize,
        columns: &[Range<usize>],
        rows: &mut [f32],
        width: usize,
    ) {
        for (group, columns) in columns.iter().enumerate() {
            let part = self.read(block, group);
            for (row, part) in rows.chunks_exact_mut(width).zip(part.chunks_exact(columns.len())) {
                row[columns.clone()].copy_from_slice(part);
            }
        }
    }
}
