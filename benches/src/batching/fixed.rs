//! The other side: a batcher with a fixed size and a fixed window, as servers have it by the dozen.
//!
//! It waits for a job, collects until it has `size` or `window` has passed, in the order of
//! arrival, runs the batch, and begins anew. What came meanwhile is there at once. With a window of
//! 0 it is greedy: it takes what is there.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::world::{Arrival, Device, Outcome, Tally};

/// When a batch is closed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Fixed {
    pub(super) size: usize,
    pub(super) window: Duration,
}

impl Fixed {
    /// What somebody might set: first those that wait for more, in a second list those that take
    /// what is there when the device is free.
    pub(super) fn all() -> [Vec<Self>; 2] {
        let with = |windows: &[u64]| {
            let sizes = [4, 8, 16, 32].into_iter();
            let each = |size| {
                windows.iter().map(move |ms| Self { size, window: Duration::from_millis(*ms) })
            };
            sizes.flat_map(each).collect()
        };
        [with(&[5, 20, 50]), with(&[0])]
    }

    /// Runs all jobs.
    pub(super) fn run(&self, device: &Device, arrivals: &[Arrival], seed: u64) -> Outcome {
        let mut dice = StdRng::seed_from_u64(seed);
        let mut tally = Tally::new(arrivals);
        let (mut next, mut free) = (0, Duration::ZERO);
        while next < arrivals.len() {
            let begins = free.max(arrivals[next].at);
            let closes = begins + self.window;
            let in_time = arrivals[next..].iter().take_while(|arrival| arrival.at <= closes);
            let n = in_time.take(self.size).count();
            let batch: Vec<usize> = (next..next + n).collect();
            // A full batch does not wait for the window to end.
            let last = arrivals[next + n - 1].at;
            let starts = if n == self.size { begins.max(last) } else { closes };
            let lengths = arrivals[next..next + n].iter().map(|arrival| arrival.length);
            let cost = device.size(lengths).cost();
            free = starts + device.time(cost, dice.random());
            tally.batch(&batch, cost, free);
            next += n;
        }
        tally.outcome()
    }
}
