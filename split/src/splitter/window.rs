//! How many jobs are asked for at once: by their number, and by the bytes of their bodies. Pure.

use std::num::NonZeroUsize;

/// Jobs that are asked for while nothing is known of their sizes.
const FIRST: usize = 16;

/// Jobs of one call at most: how large they are is known once they are here.
const MOST: usize = 128;

/// What may be held, and what was seen of it.
#[derive(Debug)]
pub(super) struct Window {
    jobs: usize,
    bytes: usize,
    /// Jobs of the next call at most.
    step: usize,
    /// Bytes of the largest body of late.
    largest: usize,
}

impl Window {
    /// For so many jobs, with so many bytes of bodies.
    pub(super) fn new(jobs: NonZeroUsize, bytes: NonZeroUsize) -> Self {
        Self { jobs: jobs.get(), bytes: bytes.get(), step: FIRST, largest: 0 }
    }

    /// How many more jobs may come while so many are held, with so many bytes.
    pub(super) fn room(&self, n_held: usize, n_bytes: usize) -> Option<NonZeroUsize> {
        let jobs = self.jobs.saturating_sub(n_held).min(self.step);
        let by_size = match self.bytes.saturating_sub(n_bytes) {
            // One that is larger than all that may be held goes alone.
            0 => usize::from(n_held == 0),
            left => (left / self.largest.max(1)).max(1),
        };
        NonZeroUsize::new(jobs.min(by_size))
    }

    /// Jobs came, with bodies of these sizes.
    pub(super) fn saw(&mut self, sizes: impl Iterator<Item = usize>) {
        let Some(largest) = sizes.max() else { return };
        // Forgotten within a few dozen calls.
        self.largest = largest.max(self.largest - self.largest.div_ceil(8));
        self.step = (self.step * 2).min(MOST);
    }

    /// Whether so many jobs are more than half of those that may be held.
    pub(super) fn are_half(&self, n_jobs: usize) -> bool {
        n_jobs > self.jobs / 2
    }

    /// Whether so many bytes are more than half of those that may be held.
    pub(super) fn are_half_the_bytes(&self, n_bytes: usize) -> bool {
        n_bytes > self.bytes / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn window(jobs: usize, bytes: usize) -> Window {
        Window::new(NonZeroUsize::new(jobs).unwrap(), NonZeroUsize::new(bytes).unwrap())
    }

    fn room(window: &Window, n_held: usize, n_bytes: usize) -> usize {
        window.room(n_held, n_bytes).map_or(0, NonZeroUsize::get)
    }

    #[test]
    fn small_bodies_are_bounded_by_their_number() {
        let mut window = window(512, 64 * MIB);
        assert_eq!(room(&window, 0, 0), FIRST, "until their size is known");
        for _ in 0..5 {
            window.saw([100, 90].into_iter());
        }
        assert_eq!(room(&window, 0, 0), MOST);
        assert_eq!(room(&window, 500, 50_000), 12);
        assert_eq!(room(&window, 512, 51_200), 0);
    }

    #[test]
    fn large_bodies_are_bounded_by_their_bytes() {
        let mut window = window(512, 64 * MIB);
        let (mut n_held, mut most) = (0, 0);
        // Nothing goes on: a queue is full.
        while let Some(room) = window.room(n_held, n_held * MIB) {
            n_held += room.get();
            most = most.max(room.get());
            window.saw(std::iter::repeat_n(MIB, room.get()));
        }
        assert_eq!((n_held, most), (64, 32));
    }

    #[test]
    fn a_body_that_is_larger_than_all_that_may_be_held_comes_alone() {
        let mut window = window(512, MIB);
        window.saw([8 * MIB].into_iter());
        assert_eq!(room(&window, 0, 0), 1);
        assert_eq!(room(&window, 1, 8 * MIB), 0);
    }

    #[test]
    fn a_large_body_is_forgotten() {
        let mut window = window(512, MIB);
        window.saw([8 * MIB].into_iter());
        for _ in 0..200 {
            window.saw([1].into_iter());
        }
        assert_eq!(room(&window, 0, 0), MOST);
    }
}
