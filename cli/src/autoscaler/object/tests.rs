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

fn at(second: u64) -> Timestamp {
    Timestamp::UNIX_EPOCH + seconds(second)
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
    /// When each of those that come later is due.
    delayed: Vec<u64>,
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
            delayed: Vec::new(),
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
        let next_due = self.delayed.iter().min().map(|due| at(*due));
        let depth = Depth {
            ready: self.waiting,
            in_flight: self.in_flight(),
            delayed: self.delayed.len() as u64,
            next_due,
            next_delayed: next_due,
            ..Depth::empty(now)
        };
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
        at(self.second)
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

    /// A second of work, which the scaler sees.
    fn pass(&mut self) {
        self.work();
        let now = self.now();
        let look = self.snapshot(now);
        self.learner.observe(&look.depth, &look.workers, now);
    }

    /// A second of work.
    fn work(&mut self) {
        self.second += 1;
        let n_delayed = self.delayed.len();
        self.delayed.retain(|due| *due > self.second);
        self.waiting += (n_delayed - self.delayed.len()) as u64;
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
    }
}

/// How a scaler answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Well,
    /// `GetMetrics` or `IsActive` fails.
    Failed,
    /// `GetMetricSpec` does, or nobody is there.
    Silent,
}

impl World {
    fn answer(&self, answer: Answer) -> Look {
        match (answer, self.look()) {
            (Answer::Well, look) => look,
            (Answer::Failed, Look::Answered { target, .. }) => Look::Failed { target },
            (Answer::Failed | Answer::Silent, _) => Look::Silent,
        }
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
    answer: Answer,
}

fn moments() -> impl Strategy<Value = Vec<Moment>> {
    let arrivals = prop_oneof![6 => Just(0u64), 2 => 1u64..4, 1 => 4u64..60];
    let answer =
        prop_oneof![8 => Just(Answer::Well), 1 => Just(Answer::Failed), 1 => Just(Answer::Silent)];
    // Failures in a row are what a fallback counts.
    let answers = (answer, 1usize..20).prop_map(|(answer, n)| vec![answer; n]);
    let answers = prop::collection::vec(answers, 20);
    let moment = (arrivals, 0u8..10, 0u8..10, any::<bool>());
    let moments = prop::collection::vec(moment, 1..200);
    (moments, answers).prop_map(|(moments, answers)| {
        let answers = answers.concat().into_iter().cycle();
        let moment = |((arrivals, polls, syncs, pushes), answer)| Moment {
            arrivals,
            polls: polls < 2,
            syncs: syncs < 3,
            pushes,
            answer,
        };
        moments.into_iter().zip(answers).map(moment).collect()
    })
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
    fn fallbacks()(
        failure_threshold in 0u32..6, replicas in 0u32..12,
        behavior in prop::sample::select(&[
            FallbackBehavior::Static,
            FallbackBehavior::CurrentReplicas,
            FallbackBehavior::CurrentReplicasIfHigher,
            FallbackBehavior::CurrentReplicasIfLower,
        ][..]),
    ) -> FallbackPolicy {
        FallbackPolicy { failure_threshold, replicas, behavior }
    }
}

prop_compose! {
    fn policies()(
        rules in rules(), min in 0u32..3, idle in any::<bool>(), extra in 0u32..9,
        cooldown in 0u64..40, value in any::<bool>(), fallback in prop::option::of(fallbacks()),
    ) -> ObjectPolicy {
        let idle = (idle && min > 0).then_some(0);
        let cooldown = seconds(cooldown);
        ObjectPolicy {
            executor: ExecutorPolicy { min, idle, cooldown, ..ExecutorPolicy::default() },
            hpa: HpaPolicy { min, max: min.max(1) + extra, rules, ..HpaPolicy::default() },
            fallback,
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

/// Options that hold a pool at zero back, and for how long at most.
const CHOOSY: [&[(&str, &str)]; 3] = [
    &[("activationJobs", "3"), ("activationWait", "20")],
    &[("activationPriority", "high"), ("activationWait", "15")],
    &[("activationJobs", "1000000"), ("activationWait", "30"), ("linger", "5")],
];

fn metadata() -> impl Strategy<Value = Vec<(&'static str, &'static str)>> {
    let choosy = prop::option::of(prop::sample::select(&CHOOSY[..]));
    (modes(), choosy).prop_map(|(modes, choosy)| [&modes[..], choosy.unwrap_or_default()].concat())
}

/// A time in which the scaler does not answer well, or its broker does not answer it.
#[derive(Debug, Clone, Copy)]
struct Outage {
    from: u64,
    until: u64,
    answer: Answer,
}

fn outages() -> impl Strategy<Value = Vec<Outage>> {
    let answer = prop_oneof![Just(Answer::Failed), Just(Answer::Silent)];
    let outage = (0u64..120, 1u64..90, answer);
    let outage =
        outage.prop_map(|(from, length, answer)| Outage { from, until: from + length, answer });
    prop::collection::vec(outage, 0..3)
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
        let fallback = policy.fallback.as_ref().map(|fallback| fallback.replicas);
        let threshold = policy.fallback.as_ref().map(|fallback| fallback.failure_threshold);
        // Failures that a fallback counts since the last answer.
        let mut n_failed = 0;
        let mut world = World::new(policy, &metadata);
        for moment in moments {
            world.waiting += moment.arrivals;
            let now = seconds(world.second);
            let look = world.answer(moment.answer);
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
            let looks = u32::from(moment.polls) + u32::from(moment.syncs && world.wanted > 0);
            match look {
                Look::Answered { .. } if looks > 0 => n_failed = 0,
                Look::Failed { .. } => n_failed += looks,
                Look::Answered { .. } | Look::Silent => {}
            }
            // Without a spec KEDA does not get as far as a fallback, but for one of no replicas, and
            // such a failure is not counted for those that follow.
            let dark = match moment.answer {
                Answer::Well => false,
                Answer::Failed => fallback != Some(0) && threshold.is_none_or(|most| n_failed <= most),
                Answer::Silent => fallback != Some(0),
            };
            prop_assert!(!dark || world.wanted == before, "changed in the dark");
            let released = moment.answer != Answer::Well && moment.polls && fallback == Some(0);
            let busy = world.in_flight() > 0 && !released;
            prop_assert!(!busy || before == 0 || world.wanted > 0, "to zero with work in flight");
            world.pass();
        }
    }

    #[test]
    fn all_work_is_done_and_the_pool_ebbs_to_its_least(
        policy in policies(),
        arrivals in prop::collection::vec((0u64..8, prop_oneof![2 => Just(0u64), 1 => 1u64..60]), 1..30),
        polling in 1u64..30,
        syncing in 1u64..15,
        pushes in any::<bool>(),
        metadata in metadata(),
        outages in outages(),
    ) {
        let least = policy.executor.idle.unwrap_or(policy.executor.min);
        let mut world = World::new(policy, &metadata);
        let total: u64 = arrivals.iter().map(|(n, _)| n).sum();
        // One pod alone does two jobs in five seconds; delays, outages and the options' patience
        // come before that, and windows, cooldown and steps follow.
        let end = arrivals.len() as u64 + 3 * total + 900;
        for second in 0..end {
            match arrivals.get(second as usize) {
                Some((n, 0)) => world.waiting += n,
                Some((n, delay)) => world.delayed.extend((0..*n).map(|_| second + delay)),
                None => {}
            }
            let now = seconds(second);
            let outage = outages.iter().find(|it| (it.from..it.until).contains(&second));
            let answer = outage.map_or(Answer::Well, |outage| outage.answer);
            let look = world.answer(answer);
            if pushes && matches!(look, Look::Answered { active: true, .. }) {
                let wanted = world.object.push(now, world.wanted);
                world.scale(wanted);
            }
            if second.is_multiple_of(polling) {
                let wanted = world.object.poll(now, world.replicas(), world.answer(answer));
                world.scale(wanted);
            }
            if second.is_multiple_of(syncing) {
                let wanted = world.object.sync(now, world.replicas(), world.answer(answer));
                world.scale(wanted);
            }
            match answer {
                Answer::Well => world.pass(),
                Answer::Failed | Answer::Silent => world.work(),
            }
        }
        let left = (world.waiting, world.delayed.len(), world.in_flight());
        prop_assert_eq!(left, (0, 0, 0), "work is left");
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
