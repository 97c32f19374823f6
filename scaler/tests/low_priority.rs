//! An objective that is not for jobs of low priority, in virtual time: what they cost, and what
//! they do to the others. Jobs come and take their time at random; the seed is the same each time.

#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::collections::VecDeque;
use std::time::Duration;

use ebb_queue::{ByPriority, Depth, Phase, QueueUrl, Timestamp, WorkerStatus};
use ebb_scaler::{Decision, Learned, Learner, Snapshot, Trigger, decide};

const COLD_START: u64 = 20;
const HPA_PERIOD: u64 = 15;
const STABLE: u64 = 60;
const COOLDOWN: u64 = 30;
const TICKS: u64 = 50;

/// A pool whose replicas do one job at a time, of a second on average.
struct World {
    random: u64,
    /// When jobs of normal priority came, in ticks.
    normal: VecDeque<u64>,
    low: u64,
    replicas: Vec<Replica>,
    born: usize,
    wanted: VecDeque<(u64, u64)>,
    active: u64,
    done: u64,
    late: u64,
}

struct Replica {
    id: usize,
    ready: u64,
    /// The tick at which its job ends.
    busy: Option<u64>,
    completed: u64,
}

impl World {
    fn new(low: u64) -> Self {
        Self {
            random: 7,
            normal: VecDeque::new(),
            low,
            replicas: Vec::new(),
            born: 0,
            wanted: VecDeque::new(),
            active: 0,
            done: 0,
            late: 0,
        }
    }

    /// Above 0 and at most 1 (SplitMix64).
    fn uniform(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64 + f64::EPSILON
    }

    fn second(&mut self, now: u64, rate: f64, objective: u64) {
        for tick in now * TICKS..(now + 1) * TICKS {
            if self.uniform() < rate / TICKS as f64 {
                self.normal.push_back(tick);
            }
            for nth in 0..self.replicas.len() {
                let replica = &mut self.replicas[nth];
                if replica.busy.is_some_and(|end| end <= tick) {
                    replica.busy = None;
                    replica.completed += 1;
                }
                if replica.busy.is_some() || replica.ready > tick / TICKS {
                    continue;
                }
                let end = tick + (-self.uniform().ln() * TICKS as f64).ceil() as u64;
                if let Some(came) = self.normal.pop_front() {
                    self.done += 1;
                    self.late += u64::from(end - came > objective * TICKS);
                } else if self.low > 0 {
                    self.low -= 1;
                } else {
                    continue;
                }
                self.replicas[nth].busy = Some(end);
            }
        }
    }

    fn look(&self, now: u64) -> Snapshot {
        let as_of = moment(now);
        let workers = self.replicas.iter().map(|replica| {
            let phase = match replica.busy {
                _ if replica.ready > now => Phase::Starting,
                Some(_) => Phase::Busy,
                None => Phase::Idle,
            };
            let cold_start = vec![("start".to_owned(), COLD_START as f64)];
            WorkerStatus {
                id: replica.id.to_string(),
                pod: String::new(),
                phase,
                in_flight: replica.busy.is_some().into(),
                slots: 1,
                completed: replica.completed,
                failed: 0,
                batch_time: None,
                cold_start: if phase == Phase::Starting { Vec::new() } else { cold_start },
                first_result: None,
                model: String::new(),
                at: as_of,
            }
        });
        let workers: Vec<_> = workers.collect();
        let normal = self.normal.len() as u64;
        let came = self.normal.front().map(|came| moment(came / TICKS));
        let depth = Depth {
            ready: normal + self.low,
            in_flight: workers.iter().map(|worker| worker.in_flight).sum(),
            oldest_ready: if self.low > 0 { Some(moment(0)) } else { came },
            ready_by_priority: Some(ByPriority { high: 0, normal, low: self.low }),
            ..Depth::empty(as_of)
        };
        Snapshot { depth, workers, learned: Learned::default() }
    }

    fn start(&mut self, now: u64) {
        self.born += 1;
        let (id, ready) = (self.born, now + COLD_START);
        self.replicas.push(Replica { id, ready, busy: None, completed: 0 });
    }

    /// KEDA between zero and one, and the HPA above.
    fn obey(&mut self, now: u64, decision: &Decision) {
        if decision.active {
            self.active = now;
        }
        if self.replicas.is_empty() {
            if decision.active {
                self.start(now);
            }
        } else if self.active + COOLDOWN <= now {
            assert!(self.replicas.iter().all(|replica| replica.busy.is_none()), "killed at {now}");
            self.replicas.clear();
        } else if now.is_multiple_of(HPA_PERIOD) {
            self.scale(now, decision.value);
        }
    }

    /// A tenth more or less is nothing, and of a minute the largest counts downwards.
    fn scale(&mut self, now: u64, value: f64) {
        let n_now = self.replicas.len() as u64;
        let ratio = value / n_now as f64;
        let wanted = if (ratio - 1.0).abs() <= 0.1 { n_now } else { value.ceil() as u64 };
        self.wanted.push_back((now, wanted.max(1)));
        self.wanted.retain(|(at, _)| at + STABLE >= now);
        let most = self.wanted.iter().map(|(_, wanted)| *wanted).max().unwrap();
        (n_now..wanted).for_each(|_| self.start(now));
        // The busy ones finish their job and leave: it is let go of here.
        self.replicas.truncate(usize::try_from(most).unwrap());
    }
}

fn moment(second: u64) -> Timestamp {
    Timestamp::UNIX_EPOCH + Duration::from_secs(second)
}

/// The replicas of each second, and the share of the jobs of normal priority that were late.
fn run(options: &[(&str, &str)], low: u64, rate: impl Fn(u64) -> f64) -> (Vec<usize>, f64) {
    let given = [("mode", "slo"), ("sloSeconds", "120")];
    let metadata = given.iter().chain(options).copied();
    let trigger = Trigger::parse(metadata, &QueueUrl::sqlite("/nowhere")).unwrap();
    let (mut world, mut learner) = (World::new(low), Learner::new());
    let replicas = (0..3000).map(|now| {
        world.second(now, rate(now), 120);
        let mut snapshot = world.look(now);
        learner.observe(&snapshot.depth, &snapshot.workers, moment(now));
        snapshot.learned = learner.learned();
        world.obey(now, &decide(&snapshot, &trigger, moment(now)));
        world.replicas.len()
    });
    let replicas = replicas.collect();
    (replicas, world.late as f64 / world.done.max(1) as f64)
}

fn mean(replicas: &[usize]) -> f64 {
    replicas.iter().sum::<usize>() as f64 / replicas.len() as f64
}

const NORMAL: (&str, &str) = ("sloPriority", "normal");
const PLENTY: u64 = 1_000_000;

#[test]
fn two_thousand_jobs_of_low_priority_wake_no_pool_or_one_replica_when_they_may() {
    let most = |options: &[_]| run(options, 2003, |_| 0.0).0.into_iter().max();
    assert!(most(&[]) > Some(20), "by default the objective is for them");
    assert_eq!(most(&[NORMAL]), Some(0));
    assert_eq!(most(&[NORMAL, ("activationWait", "12h")]), Some(0));
    assert_eq!(most(&[NORMAL, ("activationPriority", "low")]), Some(1));
    let (replicas, _) = run(&[NORMAL, ("activationWait", "10m")], 2003, |_| 0.0);
    assert_eq!(replicas.iter().position(|n| *n > 0), Some(600));
    assert_eq!(replicas.iter().max(), Some(&1));
    // It stays until they are done, and no longer.
    let up = replicas.iter().filter(|n| **n > 0).count();
    assert!((1900..2300).contains(&up) && replicas.last() == Some(&0), "{up}");
}

#[test]
fn what_counts_is_in_time_and_costs_little_more_beside_jobs_of_low_priority_that_never_end() {
    for rate in [0.5, 8.0] {
        let (alone, _) = run(&[NORMAL], 0, |_| rate);
        let (beside, late) = run(&[NORMAL], PLENTY, |_| rate);
        let (alone, beside) = (mean(&alone), mean(&beside));
        assert!(late < 0.01, "at {rate}/s {late} of the jobs were late");
        assert!(beside < alone * 1.25 + 0.5, "at {rate}/s {beside} replicas, and {alone} alone");
    }
}

#[test]
fn a_pool_that_is_left_to_jobs_of_low_priority_becomes_one_replica() {
    for utilization in ["0.5", "1"] {
        let rate = |now| if now < 1500 { 10.0 } else { 0.0 };
        let (replicas, late) = run(&[NORMAL, ("utilization", utilization)], PLENTY, rate);
        assert!(late < 0.01, "{late} of the jobs were late");
        assert!(mean(&replicas[900..1500]) > 8.0);
        assert!(replicas[2100..].iter().all(|n| *n == 1), "{:?}", &replicas[2100..2200]);
    }
}
