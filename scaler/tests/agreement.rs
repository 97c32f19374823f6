//! Two replicas of the scaler of which one was started later, in virtual time: how far apart what
//! each has learned for itself puts their answers. They see the same queue and the same statuses.

#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::collections::VecDeque;
use std::time::Duration;

use ebb_queue::{BatchTime, Depth, Phase, QueueUrl, Timestamp, WorkerStatus};
use ebb_scaler::{Learned, Learner, Snapshot, Trigger, decide};

const SLOTS: usize = 8;
/// Ticks of 100 ms to a second.
const TICKS: u64 = 10;
/// When the later replica starts, in seconds.
const LATER: u64 = 300;
/// So many seconds after that, the answers are nearer to each other.
const SPANS: [u64; 4] = [10, 30, 60, 240];

/// A queue and the workers on it, which run batches of jobs.
struct World {
    /// When the waiting jobs came, in ticks.
    waiting: VecDeque<u64>,
    workers: Vec<Worker>,
    /// Ticks that a batch takes, and each job more in it.
    batch: (u64, u64),
    chance: u64,
}

#[derive(Clone, Default)]
struct Worker {
    held: usize,
    until: u64,
    completed: u64,
    /// As last reported.
    told: Option<WorkerStatus>,
}

impl World {
    fn new(n_workers: usize, batch: (u64, u64), seed: u64) -> Self {
        let workers = vec![Worker::default(); n_workers];
        Self { waiting: VecDeque::new(), workers, batch, chance: seed }
    }

    /// From 0 to 1; the same in every run.
    fn chance(&mut self) -> f64 {
        self.chance = self.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.chance >> 11) as f64 / (1u64 << 53) as f64
    }

    fn pass(&mut self, tick: u64, rate: f64) {
        let mut left = rate / TICKS as f64;
        while left > 0.0 {
            if self.chance() < left.min(1.0) {
                self.waiting.push_back(tick);
            }
            left -= 1.0;
        }
        for (nth, worker) in self.workers.iter_mut().enumerate() {
            if worker.held > 0 && worker.until <= tick {
                worker.completed += worker.held as u64;
                worker.held = 0;
            }
            if worker.held == 0 && !self.waiting.is_empty() {
                worker.held = self.waiting.len().min(SLOTS);
                self.waiting.drain(..worker.held);
                worker.until = tick + self.batch.0 + self.batch.1 * worker.held as u64;
            }
            // Each speaks once a second, all at other moments.
            if tick % TICKS == 3 * nth as u64 % TICKS {
                worker.told = Some(self_told(nth, worker, self.batch, tick));
            }
        }
    }

    fn look(&self, tick: u64) -> Snapshot {
        let in_flight = self.workers.iter().map(|worker| worker.held as u64).sum();
        let oldest_ready = self.waiting.front().map(|came| moment(*came));
        let ready = self.waiting.len() as u64;
        let depth = Depth { ready, in_flight, oldest_ready, ..Depth::empty(moment(tick)) };
        let workers = self.workers.iter().filter_map(|worker| worker.told.clone()).collect();
        Snapshot { depth, workers, learned: Learned::default() }
    }
}

fn self_told(nth: usize, worker: &Worker, batch: (u64, u64), tick: u64) -> WorkerStatus {
    let seconds = |ticks: u64| ticks as f64 / TICKS as f64;
    let per_job = seconds(batch.0) / SLOTS as f64 + seconds(batch.1);
    let time = BatchTime { base: seconds(batch.0), per_cost: 0.0, per_job };
    WorkerStatus {
        id: nth.to_string(),
        pod: String::new(),
        phase: if worker.held > 0 { Phase::Busy } else { Phase::Idle },
        in_flight: worker.held as u64,
        slots: SLOTS as u64,
        completed: worker.completed,
        failed: 0,
        batch_time: (worker.completed > 0).then_some(time),
        cold_start: vec![("weights".to_owned(), 20.0)],
        first_result: None,
        model: String::new(),
        at: moment(tick),
    }
}

fn moment(tick: u64) -> Timestamp {
    Timestamp::UNIX_EPOCH + Duration::from_millis(tick * 1000 / TICKS)
}

fn trigger(metadata: &[(&str, &str)]) -> Trigger {
    Trigger::parse(metadata.iter().copied(), &QueueUrl::sqlite("/nowhere")).unwrap()
}

/// How far apart the answers of the two are at most in each span since the later one started, as
/// a ratio of at least one; by trigger. What is below a tenth of a replica, or of a second's work,
/// counts as one.
fn apart(triggers: &[Trigger; 2], world: &mut World, rate: f64) -> [[f64; SPANS.len()]; 2] {
    let (mut first, mut later) = (Learner::new(), Learner::new());
    let mut most = [[1.0f64; SPANS.len()]; 2];
    for tick in 0..(LATER + SPANS[SPANS.len() - 1]) * TICKS {
        world.pass(tick, rate);
        // They look once a second, at other moments.
        if tick % TICKS == 0 {
            let look = world.look(tick);
            first.observe(&look.depth, &look.workers, moment(tick));
        }
        if tick % TICKS == 4 && tick >= LATER * TICKS {
            let look = world.look(tick);
            later.observe(&look.depth, &look.workers, moment(tick));
        }
        if tick % TICKS != 9 || tick < LATER * TICKS {
            continue;
        }
        let look = world.look(tick);
        let value = |learner: &Learner, trigger: &Trigger| {
            let snapshot = Snapshot { learned: learner.learned(), ..look.clone() };
            decide(&snapshot, trigger, moment(tick)).value.max(0.1)
        };
        let since = tick / TICKS - LATER;
        let span = SPANS.iter().position(|span| since < *span).unwrap();
        for (trigger, most) in triggers.iter().zip(&mut most) {
            let ratio = value(&first, trigger) / value(&later, trigger);
            most[span] = most[span].max(ratio).max(ratio.recip());
        }
    }
    most
}

#[test]
fn what_a_scaler_that_was_just_started_learns_brings_its_answers_near_those_of_the_other() {
    let triggers = [
        trigger(&[("mode", "drain"), ("drainSeconds", "60")]),
        trigger(&[("mode", "slo"), ("sloSeconds", "60")]),
    ];
    // Of what arrives, on which `slo` counts, nothing is known at first, and all but chance after ten
    // seconds.
    let bounds = [[6.0, 2.0, 1.3, 1.4], [35.0, 2.2, 1.5, 1.5]];
    let mut most = [[1.0f64; SPANS.len()]; 2];
    // Jobs of a second in batches of eight and of ten seconds; too few, some and too many of them.
    for batch in [(2, 1), (20, 10)] {
        for load in [0.3, 0.7, 1.02] {
            for seed in [1, 2] {
                let mut world = World::new(4, batch, seed);
                let seconds = (batch.0 + batch.1 * SLOTS as u64) as f64 / TICKS as f64;
                let told = apart(&triggers, &mut world, load * 4.0 * SLOTS as f64 / seconds);
                println!("{batch:?} {load} {seed}: {told:.2?}");
                for (most, told) in most.iter_mut().flatten().zip(told.iter().flatten()) {
                    *most = most.max(*told);
                }
            }
        }
    }
    for (most, bound) in most.iter().flatten().zip(bounds.iter().flatten()) {
        assert!(most < bound, "{most:.2?}");
    }
}

#[test]
fn a_scaler_that_was_just_started_lets_a_pool_linger_once_more_at_most_and_no_less() {
    let linger = trigger(&[("linger", "60")]);
    let (done, later_from) = (100, 130);
    let (mut first, mut later) = (Learner::new(), Learner::new());
    let mut world = World::new(2, (2, 1), 1);
    let mut n_apart = 0;
    for second in 0..300 {
        for tick in 0..TICKS {
            world.pass(second * TICKS + tick, if second < done { 4.0 } else { 0.0 });
        }
        let now = second * TICKS + TICKS - 1;
        let look = world.look(now);
        let is_active = |learner: &mut Learner| {
            learner.observe(&look.depth, &look.workers, moment(now));
            let snapshot = Snapshot { learned: learner.learned(), ..look.clone() };
            decide(&snapshot, &linger, moment(now)).active
        };
        let by_first = is_active(&mut first);
        assert_eq!(by_first, second < done + 60, "at {second}");
        if second >= later_from {
            let by_later = is_active(&mut later);
            assert_eq!(by_later, second < later_from + 60, "at {second}");
            n_apart += u64::from(by_later != by_first);
        }
    }
    assert_eq!(n_apart, later_from - done);
}
