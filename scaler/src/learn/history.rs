//! When the jobs of the last half hour arrived: as exactly as their age needs.

use std::collections::VecDeque;
use std::time::Duration;

use ebb_queue::Timestamp;

/// Spans over which arrivals are told.
const SPANS: usize = 23;

/// Older arrivals are forgotten.
const LONGEST: Duration = Duration::from_secs(2048);

/// Arrivals of so small a part of their age are one entry.
const PART: f64 = 1.0 / 16.0;

/// Less than this apart they are one entry, however new.
const CLOSEST: f64 = 0.25;

/// How many jobs arrived in the last second, and in spans of which each is longer by the square
/// root of two, up to half an hour.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Recent([f64; SPANS]);

impl Recent {
    /// The spans in seconds, and the jobs that arrived within each; the shortest first.
    pub fn spans(&self) -> impl Iterator<Item = (f64, f64)> {
        self.0.iter().enumerate().map(|(nth, jobs)| (seconds(nth), *jobs))
    }
}

#[cfg(test)]
impl Recent {
    /// So many jobs that arrived within the first span, and between each two after it.
    pub(crate) fn of(arrived: &[f64]) -> Self {
        let mut sum = 0.0;
        Self(std::array::from_fn(|nth| {
            sum += arrived.get(nth).copied().unwrap_or_default();
            sum
        }))
    }
}

fn seconds(nth: usize) -> f64 {
    (nth as f64 / 2.0).exp2()
}

/// Arrivals, the oldest first; each entry begins where the one before ends.
#[derive(Debug, Clone, Default)]
pub(super) struct History {
    entries: VecDeque<Entry>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    since: Timestamp,
    until: Timestamp,
    jobs: f64,
}

impl History {
    /// Adds what arrived from one moment to the next, and tells what arrived lately.
    pub(super) fn add(&mut self, since: Timestamp, until: Timestamp, jobs: f64) -> Recent {
        self.entries.push_back(Entry { since, until, jobs });
        while self.entries.front().is_some_and(|first| first.until + LONGEST < until) {
            self.entries.pop_front();
        }
        self.merge(until);
        let mut recent = Recent::default();
        for (nth, sum) in recent.0.iter_mut().enumerate() {
            *sum = self.entries.iter().map(|entry| entry.within(seconds(nth), until)).sum();
        }
        recent
    }

    fn merge(&mut self, now: Timestamp) {
        let mut nth = 0;
        while nth + 1 < self.entries.len() {
            let (older, newer) = (self.entries[nth], self.entries[nth + 1]);
            let age = now.duration_since(newer.until).as_secs_f64();
            let span = newer.until.duration_since(older.since).as_secs_f64();
            if span <= (age * PART).max(CLOSEST) {
                let jobs = older.jobs + newer.jobs;
                self.entries[nth] = Entry { since: older.since, until: newer.until, jobs };
                self.entries.remove(nth + 1);
            } else {
                nth += 1;
            }
        }
    }
}

impl Entry {
    /// The part of it that is not older than so many seconds.
    fn within(&self, seconds: f64, now: Timestamp) -> f64 {
        let ages = |at: Timestamp| now.duration_since(at).as_secs_f64().max(0.0);
        let (youngest, oldest) = (ages(self.until), ages(self.since));
        if oldest <= seconds {
            return self.jobs;
        }
        if youngest >= seconds {
            return 0.0;
        }
        self.jobs * (seconds - youngest) / (oldest - youngest)
    }
}

#[cfg(test)]
mod tests {
    use super::{History, Recent};
    use crate::kit::at;

    fn within(recent: &Recent, seconds: f64) -> f64 {
        recent.spans().find(|(span, _)| *span >= seconds).unwrap().1
    }

    #[test]
    fn a_burst_is_found_where_it_was_and_forgotten_in_the_end() {
        let mut history = History::default();
        history.add(at(0), at(1), 100.0);
        let mut recent = Recent::default();
        for second in 1..60 {
            recent = history.add(at(second), at(second + 1), 1.0);
        }
        // 59 s ago.
        assert!((within(&recent, 32.0) - 32.0).abs() < 2.0, "{recent:?}");
        assert!((within(&recent, 64.0) - 159.0).abs() < 1e-6, "{recent:?}");
        for second in 60..3000 {
            recent = history.add(at(second), at(second + 1), 1.0);
        }
        assert!((within(&recent, 2048.0) - 2048.0).abs() < 140.0, "{recent:?}");
        assert!(history.entries.len() < 256, "{}", history.entries.len());
    }
}
