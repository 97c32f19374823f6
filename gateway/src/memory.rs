//! How many bytes of bodies and of answers are held at once, over all requests.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes are counted in these.
const UNIT: usize = 1024;

/// The room there is; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Memory(Arc<Semaphore>);

/// Bytes that one request holds, until this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    memory: Memory,
    n_bytes: usize,
    permit: Option<OwnedSemaphorePermit>,
}

impl Memory {
    /// Room for so many bytes.
    pub(crate) fn new(n_bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new((n_bytes / UNIT).min(Semaphore::MAX_PERMITS))))
    }

    /// Nothing yet, of this room.
    pub(crate) fn nothing(&self) -> Held {
        Held { memory: self.clone(), n_bytes: 0, permit: None }
    }
}

impl Held {
    /// Holds this many bytes in all, where it holds fewer; false where there is no room for them.
    #[must_use]
    pub(crate) fn grow_to(&mut self, n_bytes: usize) -> bool {
        let units = n_bytes.div_ceil(UNIT).saturating_sub(self.n_bytes.div_ceil(UNIT));
        let Ok(units) = u32::try_from(units) else { return false };
        let room = Arc::clone(&self.memory.0);
        let Ok(more) = room.try_acquire_many_owned(units) else { return false };
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            None => self.permit = Some(more),
        }
        self.n_bytes = self.n_bytes.max(n_bytes);
        true
    }

    /// Holds nothing any more.
    pub(crate) fn release(&mut self) {
        *self = self.memory.nothing();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_so_many_bytes_until_they_are_released() {
        let memory = Memory::new(10 * UNIT);
        let (mut a, mut b) = (memory.nothing(), memory.nothing());
        assert!(a.grow_to(1) && a.grow_to(4 * UNIT) && a.grow_to(3 * UNIT));
        assert!(b.grow_to(6 * UNIT));
        assert!(!b.grow_to(6 * UNIT + 1) && !a.grow_to(usize::MAX));
        a.release();
        assert!(b.grow_to(10 * UNIT) && !a.grow_to(1));
        drop(b);
        assert!(a.grow_to(10 * UNIT));
    }
}
