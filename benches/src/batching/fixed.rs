//! The other side: a batcher with a fixed size and a fixed window, as servers have it by the dozen.
//!
//! It collects in the order of arrival until it has `size` or the oldest has waited for `window`, runs
//! the batch as soon as the device is free, and begins anew. With a window of 0 it is greedy: it takes
//! what is there.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::ours::MAX_ITEMS;
use super::world::{Arrival, Device, Outcome, Tally};

/// From no batching at all to as many as ours takes at most: the best lies between, or is one of these.
pub(super) const SIZES: [usize; 6] = [1, 2, 4, 8, 16, MAX_ITEMS];
const WINDOWS_MS: [u64; 3] = [5, 20, 50];

/// When a batch is closed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Fixed {
    pub(super) size: usize,
    pub(super) window: Duration,
}

impl Fixed {
    /// What somebody might set: those that wait for more, those that take what is there when the
    /// device is free, and no batching.
    pub(super) fn all() -> [Vec<Self>; 3] {
        let with = |sizes: &[usize], windows: &[u64]| {
            let windows = windows.iter().map(|ms| Duration::from_millis(*ms));
            let each = |window| sizes.iter().map(move |size| Self { size: *size, window });
            windows.flat_map(each).collect()
        };
        // One at a time is full at once, whatever the window.
        let (one, more) = SIZES.split_at(1);
        [with(more, &WINDOWS_MS), with(more, &[0]), with(one, &[0])]
    }

    /// Runs all jobs.
    pub(super) fn run(&self, device: &Device, arrivals: &[Arrival], seed: u64) -> Outcome {
        let mut dice = StdRng::seed_from_u64(seed);
        let mut tally = Tally::new(arrivals);
        let (mut next, mut free) = (0, Duration::ZERO);
        while next < arrivals.len() {
            let oldest = arrivals[next].at;
            let closes = free.max(oldest + self.window);
            let in_time = arrivals[next..].iter().take_while(|arrival| arrival.at <= closes);
            let n = in_time.take(self.size).count();
            let batch: Vec<usize> = (next..next + n).collect();
            // A full batch does not wait for the window to end.
            let last = arrivals[next + n - 1].at;
            let starts = if n == self.size { free.max(last) } else { closes };
            let lengths = arrivals[next..next + n].iter().map(|arrival| arrival.length);
            let cost = device.size(lengths).cost();
            free = starts + device.time(cost, dice.random());
            tally.batch(&batch, cost, free);
            next += n;
        }
        tally.outcome()
    }
}
