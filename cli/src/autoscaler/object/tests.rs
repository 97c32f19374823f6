//! The whole loop against the scaler's own `decide`: a small world of jobs and workers, and what
//! must hold in it whatever happens.

use ebb_queue::{Depth, Phase, QueueUrl, Timestamp, WorkerStatus};
use ebb_scaler::{Learner, Snapshot, Trigger, decide};
use proptest::prelude::*;

use super::*;
use crate::autoscaler::behavior::{Behavior, Select, Step};
use crate::autoscaler::fallback::FallbackBehavior;
use crate::autoscaler::hpa::Rules;

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A pod: loading until `ready`, then taking up to two jobs of five seconds at a time.
#[derive(Debug, Clone)]
struct Pod {
    ready: u64,
    jobs: u64,
    done: u64,
    draining: bool,
}

/// Jobs and pods under an object that is scaled; a second is a step.
struct World {
    trigger: Trigger,
    learner: Learner,
    object: ScaledObject,
    pods: Vec<Pod>,
    waiting: u64,
    wanted: u32,
    second: u64,
}

impl World {
    const COLD_START: u64 = 7;
    const SERVICE: u64 = 5;
    const SLOTS: u64 = 2;

    fn new(policy: ObjectPolicy, metadata: &[(&str, &str)]) -> Self {
        let broker = QueueUrl::sqlite("/data/ebb.db");
        let trigger = Trigger::parse(metadata.iter().copied(), &broker).unwrap();
        let wanted = policy.executor.idle.unwrap_or(policy.executor.min);
        let object = ScaledObject::new(policy);
        let mut world = Self {
            trigger,
            learner: Learner::new(),
            object,
            pods: Vec::new(),
            waiting: 0,
            wanted: 0,
            second: 0,
        };
        world.scale(wanted);
        world
    }

    fn in_flight(&self) -> u64 {
        self.pods.iter().map(|pod| pod.jobs).sum()
    }

    fn staying(&self) -> u32 {
        self.pods.iter().filter(|pod| !pod.draining).count() as u32
    }

    fn snapshot(&self, now: Timestamp) -> Snapshot {
        let depth = Depth { ready: self.waiting, in_flight: self.in_flight(), ..Depth::empty(now) };
        let workers = self.pods.iter().enumerate().map(|(n, pod)| WorkerStatus {
            id: format!("w{n}"),
            pod: format!("w{n}"),
            phase: match pod {
                Pod { draining: true, .. } => Phase::Draining,
                Pod { ready, .. } if *ready > self.second => Phase::Starting,
                Pod { jobs: 0, .. } => Phase::Idle,
                Pod { .. } => Phase::Busy,
            },
            in_flight: pod.jobs,
            slots: Self::SLOTS,
            completed: 0,
            failed: 0,
            batch_time: None,
            cold_start: Vec::new(),
            first_result: None,
            model: "echo".into(),
            at: now,
        });
        Snapshot { depth, workers: workers.collect(), learned: self.learner.learned() }
    }

    fn now(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH + seconds(self.second)
    }

    fn look(&self) -> Look {
        let now = self.now();
        let decision = decide(&self.snapshot(now), &self.trigger, now);
        let (value, target) = (decision.value, decision.target);
        Look::Answered { value, target, active: decision.active }
    }

    fn replicas(&self) -> Replicas {
        let ready = self.pods.iter().filter(|pod| !pod.draining && pod.ready <= self.second);
        Replicas { wanted: self.wanted, ready: ready.count() as u32 }
    }

    /// Starts or drains pods: those that are not ready first, then the newest.
    fn scale(&mut self, wanted: u32) {
        self.wanted = wanted;
        while self.staying() < wanted {
            let ready = self.second + Self::COLD_START;
            self.pods.push(Pod { ready, jobs: 0, done: 0, draining: false });
        }
        while self.staying() > wanted {
            let staying = self.pods.iter_mut().rev().filter(|pod| !pod.draining);
            let victim = staying.max_by_key(|pod| pod.ready > self.second);
            victim.expect("more stay than are wanted").draining = true;
        }
        self.pods.retain(|pod| !pod.draining || pod.jobs > 0);
    }

    /// A second of work.
    fn work(&mut self) {
        self.second += 1;
        for pod in &mut self.pods {
            if pod.jobs > 0 && pod.done <= self.second {
                pod.jobs = 0;
            }
            if pod.jobs == 0 && !pod.draining && pod.ready <= self.second {
                pod.jobs = self.waiting.min(Self::SLOTS);
                pod.done = self.second + Self::SERVICE;
                self.waiting -= pod.jobs;
            }
        }
        self.pods.retain(|pod| !pod.draining || pod.jobs > 0);
        let now = self.now();
        self.learner.observe(&self.snapshot(now), now);
    }
}

/// What happens in a second.
#[derive(Debug, Clone, Copy)]
struct Moment {
    arrivals: u64,
    polls: bool,
    syncs: bool,
    /// The scaler pushes if there is something to push.
    pushes: bool,
    answers: bool,
}

fn moments() -> impl Strategy<Value = Vec<Moment>> {
    let arrivals = prop_oneof![6 => Just(0u64), 2 => 1u64..4, 1 => 4u64..60];
    let moment = (arrivals, 0u8..10, 0u8..10, any::<bool>(), 0u8..10);
    let moment = moment.prop_map(|(arrivals, polls, syncs, pushes, answers)| Moment {
        arrivals,
        polls: polls < 2,
        syncs: syncs < 3,
        pushes,
        answers: answers < 8,
    });
    prop::collection::vec(moment, 1..200)
}

fn rules() -> impl Strategy<Value = Rules> {
    let select = prop_oneof![Just(Select::Max), Just(Select::Min)];
    prop_oneof![
        (0u64..60).prop_map(|window| Rules::Plain { stabilization: seconds(window) }),
        (0u64..60, 0u64..20, select, 1u32..6).prop_map(|(down, up, select, pods)| {
            let mut behavior = Behavior::default();
            behavior.down.window = Some(seconds(down));
            behavior.up.window = Some(seconds(up));
            behavior.up.select = select;
            behavior.down.steps.push(Step::Pods(pods, seconds(15)));
            behavior.down.select = select;
            Rules::Behavior(behavior)
        }),
    ]
}

prop_compose! {
    fn policies()(
        rules in rules(), min in 0u32..3, idle in any::<bool>(), extra in 0u32..9,
        cooldown in 0u64..40, value in any::<bool>(),
    ) -> ObjectPolicy {
        let idle = (idle && min > 0).then_some(0);
        let cooldown = seconds(cooldown);
        ObjectPolicy {
            executor: ExecutorPolicy { min, idle, cooldown, ..ExecutorPolicy::default() },
            hpa: HpaPolicy { min, max: min.max(1) + extra, rules, ..HpaPolicy::default() },
            fallback: None,
            metric: if value { MetricType::Value } else { MetricType::AverageValue },
        }
    }
}

/// Triggers that are active whenever there is work.
fn modes() -> impl Strategy<Value = Vec<(&'static str, &'static str)>> {
    prop_oneof![
        Just(vec![("mode", "jobs"), ("jobsPerReplica", "4")]),
        Just(vec![("mode", "waiting"), ("jobsPerReplica", "2")]),
        Just(vec![("mode", "drain"), ("drainSeconds", "30")]),
        Just(vec![("mode", "slo"), ("sloSeconds", "60")]),
        Just(vec![("mode", "cost"), ("costPerReplica", "4")]),
    ]
}

fn metadata() -> impl Strategy<Value = Vec<(&'static str, &'static str)>> {
    let choosy = vec![("mode", "jobs"), ("jobsPerReplica", "1"), ("activationJobs", "3")];
    prop_oneof![4 => modes(), 1 => Just(choosy)]
}

proptest! {
    // A case is minutes of a small world, and the learner looks at each second of them.
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_nothing_busy_is_taken_to_zero_and_what_is_unknown_changes_nothing(
        policy in policies(), metadata in metadata(), moments in moments(),
    ) {
        let max = policy.hpa.max;
        let floor = if policy.executor.idle.is_some() { 0 } else { policy.executor.min };
        let mut world = World::new(policy, &metadata);
        for moment in moments {
            world.waiting += moment.arrivals;
            let now = seconds(world.second);
            let look = if moment.answers { world.look() } else { Look::Silent };
            let active = matches!(look, Look::Answered { active: true, .. });
            let before = world.wanted;
            if moment.pushes && active {
                let wanted = world.object.push(now, world.wanted);
                world.scale(wanted);
            }
            if moment.polls {
                let wanted = world.object.poll(now, world.replicas(), look);
                world.scale(wanted);
                prop_assert!(!active || world.wanted > 0, "work waits and nobody is asked for");
            }
            if moment.syncs {
                let wanted = world.object.sync(now, world.replicas(), look);
                world.scale(wanted);
            }
            prop_assert!(world.wanted <= max && world.wanted >= floor);
            prop_assert!(moment.answers || world.wanted == before, "changed in the dark");
            let busy = world.in_flight() > 0;
            prop_assert!(!busy || before == 0 || world.wanted > 0, "to zero with work in flight");
            world.work();
        }
    }

    #[test]
    fn all_work_is_done_and_the_pool_ebbs_to_its_least(
        policy in policies(),
        arrivals in prop::collection::vec(0u64..8, 1..30),
        polling in 1u64..30,
        syncing in 1u64..15,
        metadata in modes(),
    ) {
        let least = policy.executor.idle.unwrap_or(policy.executor.min);
        let mut world = World::new(policy, &metadata);
        let total: u64 = arrivals.iter().sum();
        // One pod alone does two jobs in five seconds; windows, cooldown and steps follow.
        let end = arrivals.len() as u64 + 3 * total + 600;
        for second in 0..end {
            world.waiting += arrivals.get(second as usize).copied().unwrap_or(0);
            let now = seconds(second);
            if second.is_multiple_of(polling) {
                let wanted = world.object.poll(now, world.replicas(), world.look());
                world.scale(wanted);
            }
            if second.is_multiple_of(syncing) {
                let wanted = world.object.sync(now, world.replicas(), world.look());
                world.scale(wanted);
            }
            world.work();
        }
        prop_assert_eq!((world.waiting, world.in_flight()), (0, 0), "work is left");
        prop_assert_eq!(world.wanted, least);
    }
}

#[test]
fn after_the_threshold_a_fallback_wakes_the_object_and_says_how_many() {
    let fallback =
        FallbackPolicy { failure_threshold: 1, replicas: 3, behavior: FallbackBehavior::Static };
    let policy = ObjectPolicy { fallback: Some(fallback), ..ObjectPolicy::default() };
    let mut object = ScaledObject::new(policy);
    let failed = Look::Failed { target: 10.0 };
    let none = Replicas { wanted: 0, ready: 0 };
    let one = Replicas { wanted: 1, ready: 1 };
    assert_eq!(object.poll(seconds(0), none, Look::Silent), 0);
    assert_eq!(object.poll(seconds(30), none, failed), 0, "the first failure");
    assert_eq!(object.poll(seconds(60), none, failed), 1, "the second is one too many");
    assert_eq!(object.sync(seconds(61), one, failed), 3);
    let empty = Look::Answered { value: 0.0, target: 10.0, active: false };
    assert_eq!(object.sync(seconds(400), one, empty), 1);
    assert_eq!(object.sync(seconds(415), one, failed), 1, "counted anew");
}

#[test]
fn a_fallback_of_zero_lets_an_outage_end_the_pool_after_the_cooldown() {
    let fallback =
        FallbackPolicy { failure_threshold: 9, replicas: 0, behavior: FallbackBehavior::Static };
    let mut object =
        ScaledObject::new(ObjectPolicy { fallback: Some(fallback), ..ObjectPolicy::default() });
    assert_eq!(object.push(seconds(0), 0), 1);
    let one = Replicas { wanted: 1, ready: 1 };
    let failed = Look::Failed { target: 10.0 };
    assert_eq!(object.poll(seconds(300), one, failed), 1);
    assert_eq!(object.poll(seconds(330), one, failed), 0);
}
