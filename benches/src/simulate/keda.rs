//! KEDA and the HorizontalPodAutoscaler at their real periods, over the model that `ebb up` runs.
//! No clock in here; the phases of polls and syncs come from the seed.

use std::time::Duration;

use ebb::autoscaler::behavior::{Behavior, Step};
use ebb::autoscaler::fallback::{FallbackBehavior, FallbackPolicy};
use ebb::autoscaler::hpa::{HpaPolicy, Rules, SYNC_PERIOD};
use ebb::autoscaler::keda::{ExecutorPolicy, POLLING_INTERVAL};
use ebb::autoscaler::object::{Look, ObjectPolicy, Replicas, ScaledObject};

use super::outage::Outage;
use super::pods::hash;
use super::world::{Bed, Policy, Settings, View};

/// What a ScaledObject says of the loop; the trigger is the same in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Object {
    /// Nothing: KEDA's and Kubernetes' defaults, cooldown and window of 300 s.
    Default,
    /// A short cooldown and `scaleDown` window, and no limit to `scaleUp`.
    Brisk,
}

/// A scaler as KEDA sees it.
pub(crate) trait Scaler {
    /// What it would answer now.
    fn look(&self, view: &View<'_>) -> Look;
    /// A second has passed, and workers have reported.
    fn learn(&mut self, view: &View<'_>);
    /// Whether it pushes; built-in scalers are only polled.
    fn pushes(&self) -> bool;
}

/// One ScaledObject with its scaler.
pub(crate) struct Keda<S> {
    scaler: S,
    object: ScaledObject,
    poll_phase: u64,
    sync_phase: u64,
    told: Option<Duration>,
    outage: Option<Outage>,
}

/// Failures in a row that a fallback lets pass, as in KEDA's documentation; it has no default.
const FAILURES: u32 = 3;

/// How soon an active scaler pushes again while a worker reports, as ours does by default. While
/// none does, it is each second.
const HEARTBEAT: Duration = Duration::from_secs(30);

impl<S: Scaler> Keda<S> {
    /// With `fallback`, so many replicas stand in for a scaler that fails.
    pub(crate) fn new(
        scaler: S,
        object: Object,
        fallback: Option<u32>,
        Bed { settings, outage }: Bed<'_>,
    ) -> Self {
        let fallback = fallback.map(|replicas| FallbackPolicy {
            failure_threshold: FAILURES,
            replicas,
            behavior: FallbackBehavior::Static,
        });
        let policy = ObjectPolicy { fallback, ..object.policy(settings) };
        Self {
            scaler,
            object: ScaledObject::new(policy),
            poll_phase: hash(settings.seed) % POLLING_INTERVAL.as_secs(),
            sync_phase: hash(settings.seed ^ 1) % SYNC_PERIOD.as_secs(),
            told: None,
            outage,
        }
    }

    fn look(&self, view: &View<'_>) -> Look {
        let look = self.scaler.look(view);
        self.outage.map_or(look, |outage| outage.dim(view.now, look))
    }

    fn push(&mut self, view: &View<'_>, wanted: u32) -> u32 {
        let attended = view.pods.iter().any(|pod| pod.draining.is_none());
        let due = match self.told {
            Some(told) if attended => view.now >= told + HEARTBEAT,
            Some(_) | None => true,
        };
        let mute = self.outage.is_some_and(|outage| outage.is_mute(view.now));
        let active = || matches!(self.look(view), Look::Answered { active: true, .. });
        if !due || mute || !active() {
            return wanted;
        }
        self.told = Some(view.now);
        self.object.push(view.now, wanted)
    }
}

impl<S: Scaler> Policy for Keda<S> {
    fn arrived(&mut self, view: &View<'_>) -> u32 {
        // With a replica up, a push changes nothing but the time of the last activity.
        if view.wanted > 0 || !self.scaler.pushes() {
            return view.wanted;
        }
        self.push(view, view.wanted)
    }

    fn second(&mut self, view: &View<'_>) -> u32 {
        if !self.outage.is_some_and(|outage| outage.is_blind(view.now)) {
            self.scaler.learn(view);
        }
        let second = view.now.as_secs();
        let mut wanted = view.wanted;
        if self.scaler.pushes() {
            wanted = self.push(view, wanted);
        }
        if (second + self.poll_phase).is_multiple_of(POLLING_INTERVAL.as_secs()) {
            let replicas = Replicas { wanted, ready: view.ready_pods() };
            wanted = self.object.poll(view.now, replicas, self.look(view));
        }
        if (second + self.sync_phase).is_multiple_of(SYNC_PERIOD.as_secs()) {
            let replicas = Replicas { wanted, ready: view.ready_pods() };
            wanted = self.object.sync(view.now, replicas, self.look(view));
        }
        wanted
    }
}

impl Object {
    /// Both, the one that is recommended for GPUs first.
    pub(crate) const ALL: [Self; 2] = [Self::Brisk, Self::Default];

    /// What marks a policy in it by name.
    pub(crate) fn mark(self) -> &'static str {
        match self {
            Self::Brisk => "",
            Self::Default => "/default",
        }
    }

    fn policy(self, settings: &Settings) -> ObjectPolicy {
        let max = settings.max_replicas;
        let (cooldown, rules) = match self {
            Self::Default => (ExecutorPolicy::default().cooldown, Rules::default()),
            Self::Brisk => {
                let mut behavior = Behavior::default();
                behavior.down.window = Some(settings.window);
                behavior.up.steps = vec![Step::Pods(max, SYNC_PERIOD)];
                (settings.cooldown, Rules::Behavior(behavior))
            }
        };
        ObjectPolicy {
            executor: ExecutorPolicy { cooldown, ..ExecutorPolicy::default() },
            hpa: HpaPolicy { max, rules, ..HpaPolicy::default() },
            ..ObjectPolicy::default()
        }
    }
}

/// KEDA's built-in queue length: a count against a target, active above zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct QueueLength {
    /// Jobs that one replica is to have.
    pub(crate) length: f64,
    pub(crate) counts: Counts,
}

/// What a built-in scaler counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counts {
    /// Ready and unacknowledged: `rabbitmq` over HTTP, `nats-jetstream`.
    Unacked,
    /// Ready only: `rabbitmq` over AMQP, `redis` lists, `redis-streams` by lag.
    Ready,
}

impl Scaler for QueueLength {
    fn look(&self, view: &View<'_>) -> Look {
        let n = match self.counts {
            Counts::Unacked => view.ready + view.in_flight,
            Counts::Ready => view.ready,
        };
        Look::Answered { value: n as f64, target: self.length, active: n > 0 }
    }

    fn learn(&mut self, _: &View<'_>) {}

    fn pushes(&self) -> bool {
        false
    }
}
