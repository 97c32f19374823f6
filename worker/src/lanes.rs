//! Whose turn it is on a device that several models share. Pure, like the batcher.
//!
//! Each lane groups its own jobs, so no batch ever holds two models. When the device is about to be
//! free, the lane with the most urgent job gets it: the highest priority, and among equals the one
//! that waits longest. A lane that younger jobs have passed often enough goes first, whatever waits elsewhere.

use std::cmp::Reverse;
use std::num::NonZeroUsize;

use tokio::time::Instant;

use crate::batcher::{Batch, Batcher, Entry, Limits, View};

/// A lane that younger jobs have passed this often is next.
const PATIENCE: u32 = 4;

/// The jobs that wait, by lane.
#[derive(Debug)]
pub struct Lanes<T>(Vec<Lane<T>>);

#[derive(Debug)]
struct Lane<T> {
    batcher: Batcher<T>,
    /// Younger batches of other lanes, since this one was ready.
    passed: u32,
}

impl<T> Lanes<T> {
    /// So many lanes, and nothing waits in any.
    #[must_use]
    pub fn new(n: usize, limits: Limits) -> Self {
        Self((0..n).map(|_| Lane { batcher: Batcher::new(limits), passed: 0 }).collect())
    }

    /// Adds a job to a lane.
    pub fn push(&mut self, lane: usize, entry: Entry<T>, now: Instant) {
        self.0[lane].batcher.push(entry, now);
    }

    /// Changes the largest cost of a batch of one lane, as the memory of the device allows.
    pub fn bound(&mut self, lane: usize, max_cost: NonZeroUsize) {
        self.0[lane].batcher.bound(max_cost);
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|lane| lane.batcher.is_empty())
    }

    /// All that wait, lane by lane in the order of arrival: they will not be batched any more.
    pub fn drain(&mut self) -> Vec<T> {
        self.0.iter_mut().flat_map(|lane| lane.batcher.drain()).collect()
    }

    /// All of whom this is so, in the same order.
    pub fn drain_if(&mut self, is_so: impl Fn(&T) -> bool) -> Vec<T> {
        self.0.iter_mut().flat_map(|lane| lane.batcher.drain_if(&is_so)).collect()
    }

    /// All that wait and have not begun, in the same order.
    pub fn drain_unbegun(&mut self) -> Vec<T> {
        self.0.iter_mut().flat_map(|lane| lane.batcher.drain_unbegun()).collect()
    }

    /// Whether a job waits in a lane that is back for another turn.
    #[must_use]
    pub fn has_begun(&self, lane: usize) -> bool {
        self.0[lane].batcher.has_begun()
    }

    /// When [`Self::close`] will answer though nothing is pushed. There is a view for each lane.
    #[must_use]
    pub fn deadline(&self, views: &[View]) -> Option<Instant> {
        let lanes = self.0.iter().zip(views);
        lanes.filter_map(|(lane, view)| lane.batcher.deadline(view)).min()
    }

    /// The next batch and its lane, if now is the time for one.
    pub fn close(&mut self, now: Instant, views: &[View]) -> Option<(usize, Batch<T>)> {
        let lanes = self.0.iter().zip(views).enumerate();
        let ready = lanes.filter(|(_, (lane, view))| lane.batcher.is_ready(now, view));
        let ready: Vec<usize> = ready.map(|(place, _)| place).collect();
        let next = ready.iter().copied().min_by_key(|place| self.turn(*place))?;
        let led = self.since(next);
        let batch = self.0[next].batcher.close(now, &views[next])?;
        for place in ready.into_iter().filter(|place| *place != next) {
            self.0[place].passed += u32::from(self.since(place) < led);
        }
        self.0[next].passed = 0;
        Some((next, batch))
    }

    fn since(&self, place: usize) -> Option<Instant> {
        self.0[place].batcher.urgency().map(|(_, since)| since)
    }

    /// Less is earlier.
    fn turn(&self, place: usize) -> impl Ord + use<T> {
        let lane = &self.0[place];
        let (priority, since) = lane.batcher.urgency().unzip();
        // Among those that were passed too often the oldest is first, and nothing else counts.
        let priority = priority.filter(|_| lane.passed < PATIENCE);
        (priority.is_some(), Reverse(priority), since)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use ebb_queue::Priority;
    use proptest::prelude::*;

    use super::*;
    use crate::batcher::Size;

    const N_LANES: usize = 3;

    fn limits(max_items: usize) -> Limits {
        Limits {
            max_items: NonZeroUsize::new(max_items).unwrap(),
            max_cost: NonZeroUsize::new(10_000).unwrap(),
            max_wait: Duration::from_millis(5),
        }
    }

    fn entry(item: usize, priority: Priority) -> Entry<usize> {
        Entry { item, size: Size::ONE, priority, alone: false, begun: None }
    }

    fn free(now: Instant) -> View {
        View { free_at: Some(now), more: false, overhead: 0, enough: usize::MAX }
    }

    #[test]
    fn the_oldest_job_decides_which_model_runs() {
        let start = Instant::now();
        let mut lanes = Lanes::new(2, limits(8));
        for (item, lane) in [1, 0, 1, 0].into_iter().enumerate() {
            let now = start + Duration::from_millis(item as u64);
            lanes.push(lane, entry(item, Priority::Normal), now);
        }
        let now = start + Duration::from_millis(10);
        let views = [free(now); 2];
        let (lane, batch) = lanes.close(now, &views).unwrap();
        assert_eq!((lane, batch.items), (1, vec![0, 2]));
        let (lane, batch) = lanes.close(now, &views).unwrap();
        assert_eq!((lane, batch.items), (0, vec![1, 3]));
        assert_eq!(lanes.close(now, &views), None);
    }

    #[test]
    fn models_that_take_turns_take_them_in_turn() {
        let start = Instant::now();
        let at = |n: usize| start + Duration::from_millis(n as u64);
        let mut lanes = Lanes::new(N_LANES, limits(8));
        let back = |lane| Entry { begun: Some(at(lane)), ..entry(lane, Priority::Normal) };
        (0..N_LANES).for_each(|lane| lanes.push(lane, back(lane), at(10)));
        let mut order = Vec::new();
        for turn in 0..6 {
            let now = at(11 + turn);
            let (lane, batch) = lanes.close(now, &[free(now); N_LANES]).unwrap();
            assert_eq!(batch.items, [lane]);
            lanes.push(lane, back(lane), now);
            order.push(lane);
        }
        assert_eq!(order, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn a_lane_that_cannot_run_holds_nobody_up() {
        let now = Instant::now();
        let mut lanes = Lanes::new(2, limits(8));
        lanes.push(0, entry(0, Priority::High), now);
        lanes.push(1, entry(1, Priority::Low), now);
        // The first may get company in a moment.
        let views = [View { more: true, ..free(now) }, free(now)];
        assert_eq!(lanes.deadline(&views), Some(now));
        assert_eq!(lanes.close(now, &views).unwrap().0, 1);
        assert_eq!(lanes.close(now, &views), None);
        let later = now + Duration::from_millis(5);
        assert_eq!(lanes.deadline(&views), Some(later));
        // The way to the device is taken.
        let blocked = [View { free_at: None, ..free(later) }; 2];
        assert_eq!((lanes.close(later, &blocked), lanes.deadline(&blocked)), (None, None));
        assert_eq!(lanes.close(later, &[free(later); 2]).unwrap().0, 0);
    }

    #[test]
    fn memory_is_remembered_by_lane() {
        let now = Instant::now();
        let mut lanes = Lanes::new(2, limits(8));
        lanes.bound(0, NonZeroUsize::new(2).unwrap());
        for item in 0..4 {
            lanes.push(item % 2, entry(item, Priority::Normal), now);
            lanes.push(item % 2, entry(item, Priority::Normal), now);
        }
        let views = [free(now); 2];
        let sizes: Vec<_> = std::iter::from_fn(|| lanes.close(now, &views))
            .map(|(lane, batch)| (lane, batch.items.len()))
            .collect();
        assert_eq!(sizes, [(0, 2), (0, 2), (1, 4)]);
    }

    fn step() -> impl Strategy<Value = Option<(usize, Priority)>> {
        let priority =
            prop_oneof![Just(Priority::Low), Just(Priority::Normal), Just(Priority::High)];
        prop_oneof![3 => (0..N_LANES, priority).prop_map(Some), 1 => Just(None)]
    }

    proptest! {
        #[test]
        fn no_batch_has_two_lanes_the_most_urgent_leads_and_no_lane_starves(
            steps in prop::collection::vec(step(), 1..300),
            max_items in 1..6usize,
        ) {
            let start = Instant::now();
            let mut lanes = Lanes::new(N_LANES, limits(max_items));
            let mut waiting = BTreeMap::new();
            // Younger batches of others, since a lane had its turn.
            let mut passed = [0u32; N_LANES];
            let drain = std::iter::repeat_n(None, steps.len());
            for (number, step) in steps.iter().copied().chain(drain).enumerate() {
                let now = start + Duration::from_millis(number as u64);
                if let Some((lane, priority)) = step {
                    lanes.push(lane, entry(number, priority), now);
                    waiting.insert(number, lane);
                    continue;
                }
                let urgency: Vec<_> =
                    lanes.0.iter().map(|lane| lane.batcher.urgency()).collect();
                let is_due = lanes.0.iter().any(|lane| lane.passed >= PATIENCE);
                let Some((lane, batch)) = lanes.close(now, &[free(now); N_LANES]) else {
                    prop_assert!(waiting.is_empty());
                    continue;
                };
                prop_assert!(!batch.items.is_empty() && batch.items.len() <= max_items);
                for item in batch.items {
                    prop_assert_eq!(waiting.remove(&item), Some(lane), "it waits, once, and here");
                }
                let led = urgency[lane].unwrap();
                for (other, (priority, arrived)) in
                    urgency.iter().enumerate().filter_map(|(at, one)| Some((at, (*one)?)))
                {
                    prop_assert!(is_due || (led.0, led.1 <= arrived) >= (priority, true));
                    passed[other] += u32::from(arrived < led.1);
                    prop_assert!(passed[other] <= PATIENCE + N_LANES as u32, "{other} starves");
                }
                passed[lane] = 0;
            }
            prop_assert!(waiting.is_empty(), "left behind: {:?}", waiting);
        }

        #[test]
        fn among_equals_the_oldest_is_in_the_next_batch(
            places in prop::collection::vec(0..N_LANES, 1..100),
            max_items in 1..6usize,
        ) {
            let start = Instant::now();
            let mut lanes = Lanes::new(N_LANES, limits(max_items));
            for (item, lane) in places.iter().enumerate() {
                let now = start + Duration::from_millis(item as u64);
                lanes.push(*lane, entry(item, Priority::Normal), now);
            }
            let now = start + Duration::from_secs(1);
            let mut waiting: Vec<usize> = (0..places.len()).collect();
            while let Some((_, batch)) = lanes.close(now, &[free(now); N_LANES]) {
                prop_assert!(batch.items.contains(&waiting[0]));
                waiting.retain(|item| !batch.items.contains(item));
            }
            prop_assert!(waiting.is_empty());
        }
    }
}
