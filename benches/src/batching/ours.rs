//! Our side: the worker's batcher and its fit of the device, driven as the worker drives them.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::time::Duration;

use ebb_queue::Priority;
use ebb_worker::batcher::{Batch, Batcher, Entry, Limits, View};
use ebb_worker::fit::{self, Fit};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use super::world::{Arrival, Device, Outcome, Tally};

/// The defaults of `ebb worker`.
pub(super) const MAX_ITEMS: usize = 32;
const MAX_COST: usize = 8192;
const MAX_WAIT: Duration = Duration::from_millis(5);
/// Jobs that a worker holds: a batch, and as many received ahead.
const ROOM: usize = 2 * MAX_ITEMS;

/// A worker in virtual time.
struct Worker<'a> {
    device: &'a Device,
    arrivals: &'a [Arrival],
    dice: StdRng,
    tally: Tally<'a>,
    batcher: Batcher<usize>,
    fit: Fit,
    /// Arrived, and not received: there is no room.
    queue: VecDeque<usize>,
    n_held: usize,
    running: Option<Running>,
    /// Before the device, bound.
    slot: Option<Batch<usize>>,
    // Durations are from here; the batcher wants moments.
    epoch: Instant,
}

struct Running {
    batch: Batch<usize>,
    since: Duration,
    until: Duration,
}

/// Runs all jobs.
pub(super) fn run(device: &Device, arrivals: &[Arrival], seed: u64) -> Outcome {
    let limits = Limits {
        max_items: NonZeroUsize::new(MAX_ITEMS).expect("it is not 0"),
        max_cost: NonZeroUsize::new(MAX_COST).expect("it is not 0"),
        max_wait: MAX_WAIT,
    };
    let mut worker = Worker {
        device,
        arrivals,
        dice: StdRng::seed_from_u64(seed),
        tally: Tally::new(arrivals),
        batcher: Batcher::new(limits),
        fit: Fit::default(),
        queue: VecDeque::new(),
        n_held: 0,
        running: None,
        slot: None,
        epoch: Instant::now(),
    };
    let (mut now, mut next) = (Duration::ZERO, 0);
    loop {
        while arrivals.get(next).is_some_and(|arrival| arrival.at <= now) {
            worker.queue.push_back(next);
            next += 1;
        }
        worker.step(now);
        let arrival = arrivals.get(next).map(|arrival| arrival.at);
        match arrival.into_iter().chain(worker.wakes(now)).min() {
            Some(later) => now = later,
            None => return worker.tally.outcome(),
        }
    }
}

impl Worker<'_> {
    /// Does all that can be done now.
    fn step(&mut self, now: Duration) {
        if self.running.as_ref().is_some_and(|running| running.until <= now) {
            self.end();
        }
        self.receive(now);
        loop {
            if self.running.is_none()
                && let Some(batch) = self.slot.take()
            {
                self.start(batch, now);
            }
            let view = self.view(now);
            let Some(batch) = self.batcher.close(self.epoch + now, &view) else { return };
            self.slot = Some(batch);
        }
    }

    /// When something happens by itself.
    fn wakes(&self, now: Duration) -> impl Iterator<Item = Duration> {
        let ends = self.running.as_ref().map(|running| running.until);
        let deadline = self.batcher.deadline(&self.view(now));
        let deadline = deadline.map(|deadline| deadline - self.epoch);
        ends.into_iter().chain(deadline)
    }

    fn receive(&mut self, now: Duration) {
        while self.n_held < ROOM
            && let Some(job) = self.queue.pop_front()
        {
            let size = self.device.size([self.arrivals[job].length]);
            let entry =
                Entry { item: job, size, priority: Priority::Normal, alone: false, begun: None };
            self.batcher.push(entry, self.epoch + now);
            self.n_held += 1;
        }
    }

    fn view(&self, now: Duration) -> View {
        let device = match (&self.slot, &self.running) {
            (Some(_), _) => fit::Device::Bound,
            (None, None) => fit::Device::Free,
            (None, Some(running)) => fit::Device::Running {
                since: self.epoch + running.since,
                cost: running.batch.size.cost(),
            },
        };
        self.fit.view(device, false, MAX_COST, self.epoch + now)
    }

    fn start(&mut self, batch: Batch<usize>, now: Duration) {
        let took = self.device.time(batch.size.cost(), self.dice.random());
        self.running = Some(Running { batch, since: now, until: now + took });
    }

    fn end(&mut self) {
        let Some(Running { batch, since, until }) = self.running.take() else { return };
        self.tally.batch(&batch.items, batch.size.cost(), until);
        self.fit.learn(batch.items.len(), batch.size.cost(), until - since);
        self.n_held -= batch.items.len();
    }
}
