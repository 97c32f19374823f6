//! The learner and mode `slo` together, in virtual time: a pool that does what it is told keeps
//! the objective. Jobs are a fluid here; `ebb-bench simulate` has real ones, and the real HPA.

#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::collections::VecDeque;
use std::time::Duration;

use ebb_queue::{Depth, Phase, QueueUrl, Timestamp, WorkerStatus};
use ebb_scaler::{Learned, Learner, Snapshot, Trigger, decide};

const COLD_START: u64 = 20;
const HPA_PERIOD: u64 = 15;
const STABLE: u64 = 60;

/// A pool, its queue and its autoscaler.
struct World {
    /// Jobs per second of a replica.
    speed: f64,
    /// When jobs came, and how many of them wait.
    waiting: VecDeque<(u64, f64)>,
    replicas: Vec<Replica>,
    wanted: VecDeque<(u64, u64)>,
    done: f64,
    late: f64,
    replica_seconds: f64,
}

struct Replica {
    ready: u64,
    completed: f64,
    /// Whether it had more to do than half of what it can.
    is_busy: bool,
}

impl Replica {
    fn starting_at(now: u64) -> Self {
        Self { ready: now + COLD_START, completed: 0.0, is_busy: false }
    }
}

impl World {
    fn pass(&mut self, now: u64, arrive: f64, objective: u64) {
        self.waiting.push_back((now, arrive));
        for replica in &mut self.replicas {
            let mut room = if replica.ready <= now { self.speed } else { 0.0 };
            while let Some((came, jobs)) = self.waiting.front_mut() {
                let taken = room.min(*jobs);
                *jobs -= taken;
                room -= taken;
                replica.completed += taken;
                self.done += taken;
                self.late += if now - *came > objective { taken } else { 0.0 };
                if *jobs > 0.0 {
                    break;
                }
                self.waiting.pop_front();
            }
            replica.is_busy = replica.ready <= now && room < self.speed / 2.0;
        }
        self.replica_seconds += self.replicas.len() as f64;
    }

    fn look(&self, now: u64) -> Snapshot {
        let as_of = moment(now);
        let jobs: f64 = self.waiting.iter().map(|(_, jobs)| jobs).sum();
        let oldest_ready = self.waiting.front().map(|(came, _)| moment(*came));
        let workers = self.replicas.iter().enumerate().map(|(nth, replica)| {
            let is_starting = replica.ready > now;
            let phase = match replica.is_busy {
                _ if is_starting => Phase::Starting,
                true => Phase::Busy,
                false => Phase::Idle,
            };
            let cold_start = vec![("start".to_owned(), COLD_START as f64)];
            WorkerStatus {
                id: format!("{nth}-{}", replica.ready),
                pod: String::new(),
                phase,
                in_flight: replica.is_busy.into(),
                slots: 1,
                completed: replica.completed as u64,
                failed: 0,
                batch_time: None,
                cold_start: if is_starting { Vec::new() } else { cold_start },
                first_result: None,
                model: String::new(),
                at: as_of,
            }
        });
        let workers: Vec<_> = workers.collect();
        let in_flight = workers.iter().map(|worker| worker.in_flight).sum();
        let depth = Depth { ready: jobs as u64, in_flight, oldest_ready, ..Depth::empty(as_of) };
        Snapshot { depth, workers, learned: Learned::default() }
    }

    /// The HPA: a tenth more or less is nothing, and of a minute the largest counts downwards.
    fn scale(&mut self, now: u64, value: f64) {
        let n_now = self.replicas.len() as u64;
        let ratio = value / n_now.max(1) as f64;
        let wanted = if (ratio - 1.0).abs() <= 0.1 { n_now } else { value.ceil() as u64 };
        self.wanted.push_back((now, wanted.max(1)));
        self.wanted.retain(|(at, _)| at + STABLE >= now);
        let most = self.wanted.iter().map(|(_, wanted)| *wanted).max().unwrap();
        if wanted > n_now {
            let new = (n_now..wanted).map(|_| Replica::starting_at(now));
            self.replicas.extend(new);
        } else {
            self.replicas.truncate(usize::try_from(most.max(1)).unwrap());
        }
    }
}

fn moment(second: u64) -> Timestamp {
    Timestamp::UNIX_EPOCH + Duration::from_secs(second)
}

/// The share of jobs that were late, and replica-seconds for each that was worked.
fn run(objective: u64, speed: f64, seconds: u64, arrivals: impl Fn(u64) -> f64) -> (f64, f64) {
    let objective_text = objective.to_string();
    let metadata = [("mode", "slo"), ("sloSeconds", objective_text.as_str())];
    let trigger = Trigger::parse(metadata, &QueueUrl::sqlite("/nowhere")).unwrap();
    let mut learner = Learner::new();
    let mut world = World {
        speed,
        waiting: VecDeque::new(),
        replicas: Vec::new(),
        wanted: VecDeque::new(),
        done: 0.0,
        late: 0.0,
        replica_seconds: 0.0,
    };
    for now in 0..seconds {
        world.pass(now, arrivals(now), objective);
        let mut snapshot = world.look(now);
        learner.observe(&snapshot.depth, &snapshot.workers, moment(now));
        snapshot.learned = learner.learned();
        let decision = decide(&snapshot, &trigger, moment(now));
        if world.replicas.is_empty() && decision.active {
            world.replicas.push(Replica::starting_at(now));
        } else if now % HPA_PERIOD == 0 && !world.replicas.is_empty() {
            world.scale(now, decision.value);
        }
    }
    (world.late / world.done, world.replica_seconds * speed / world.done)
}

#[test]
fn a_pool_that_does_what_it_is_told_keeps_the_objective_and_wastes_little() {
    type Rate = fn(u64) -> f64;
    let traces: [(&str, Rate, f64); 4] = [
        ("steady", |_| 7.3, 1.15),
        ("slow swings", |t| 8.0 - 7.0 * (t as f64 / 600.0).cos(), 1.3),
        ("a step", |t| if t < 1200 { 2.0 } else { 12.0 }, 1.3),
        ("bursts", |t| if t % 600 < 120 { 10.0 } else { 0.5 }, 2.6),
    ];
    for (name, rate, waste) in traces {
        // The prior is a job a second: it has to be learned that one takes half or four of them.
        for speed in [2.0, 0.25] {
            let (late, spent) = run(90, speed, 3600, |t| rate(t) * speed);
            assert!(late < 0.05, "{name} at {speed}: {late} of the jobs were late");
            assert!(spent < waste, "{name} at {speed}: {spent} replica-seconds for one worked");
        }
    }
}
