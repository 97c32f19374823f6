//! KEDA and the HorizontalPodAutoscaler at their real periods, over the model that `ebb up` runs.
//! No clock in here; the phases of polls and syncs come from the seed.

use std::time::Duration;

use ebb::autoscaler::behavior::{Behavior, Step};
use ebb::autoscaler::fallback::{FallbackBehavior, FallbackPolicy};
use ebb::autoscaler::hpa::{HpaPolicy, Rules, SYNC_PERIOD};
use ebb::autoscaler::keda::{ExecutorPolicy, POLLING_INTERVAL};
use ebb::autoscaler::object::{Look, ObjectPolicy, Replicas, ScaledObject};

use ebb_scaler::{Cadence, Push, Seen};
use tokio::time::Instant;

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
    /// Its stream, and what counts as the beginning there: only what is between two moments matters.
    push: Push,
    beginning: Instant,
    outage: Option<Outage>,
}

/// Failures in a row that a fallback lets pass, as in KEDA's documentation; it has no default.
const FAILURES: u32 = 3;

/// How often it speaks, as ours does by default.
const CADENCE: Cadence =
    Cadence { repeat: Duration::from_secs(1), heartbeat: Duration::from_secs(30) };

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
            push: Push::Opening,
            beginning: Instant::now(),
            outage,
        }
    }

    fn look(&self, view: &View<'_>) -> Look {
        let look = self.scaler.look(view);
        self.outage.map_or(look, |outage| outage.dim(view.now, look))
    }

    fn push(&mut self, view: &View<'_>, wanted: u32) -> u32 {
        if self.tells(view) { self.object.push(view.now, wanted) } else { wanted }
    }

    /// Whether it pushes now. What it would say between two seconds it says at the second one, or when
    /// a job arrives.
    fn tells(&mut self, view: &View<'_>) -> bool {
        if self.outage.is_some_and(|outage| outage.is_mute(view.now)) {
            if self.outage.is_some_and(Outage::closes_streams) {
                self.push = Push::Opening;
            }
            return false;
        }
        let active = matches!(self.look(view), Look::Answered { active: true, .. });
        let attended = view.pods.iter().any(|pod| pod.draining.is_none());
        let seen = Seen { active, attended, reports: true, wakes: None, rests: None };
        self.push.next(seen, CADENCE, self.beginning + view.now).is_some()
    }
}

impl<S: Scaler> Policy for Keda<S> {
    fn arrived(&mut self, view: &View<'_>) -> u32 {
        // What is active already pushes by the clock.
        if self.push.is_unhurried() || !self.scaler.pushes() {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::kit::{SETTINGS, pods, view};
    use crate::simulate::outage::Away;
    use crate::simulate::trace::{Kind, Trace};

    /// Active while there are jobs, which one replica is enough for.
    struct Pushing;

    impl Scaler for Pushing {
        fn look(&self, view: &View<'_>) -> Look {
            let active = view.ready + view.in_flight > 0;
            Look::Answered { value: f64::from(u8::from(active)), target: 1.0, active }
        }

        fn learn(&mut self, _: &View<'_>) {}

        fn pushes(&self) -> bool {
            true
        }
    }

    /// Polled at 20 and 50 s, with a cooldown of 15 s.
    fn polled_at_20() -> Settings {
        let seed = (0..).find(|seed| hash(*seed) % POLLING_INTERVAL.as_secs() == 10);
        Settings { cooldown: Duration::from_secs(15), seed: seed.unwrap(), ..SETTINGS }
    }

    #[test]
    fn a_job_between_two_polls_keeps_a_pool_up_that_has_others_behind_it() {
        let settings = polled_at_20();
        let mut keda =
            Keda::new(Pushing, Object::Brisk, None, Bed { settings: &settings, outage: None });
        let (mut pods, mut wanted) = (pods(1), 1);
        for second in 1..=56 {
            // One until 31, and another from 40 to 41.5.
            let is_busy = second < 32 || (40..42).contains(&second);
            pods[0].running = if is_busy { vec![0] } else { Vec::new() };
            let now = Duration::from_secs(second);
            let view = |wanted| View {
                now,
                settings: &settings,
                ready: 0,
                by_priority: [0; 3],
                in_flight: usize::from(is_busy),
                oldest: None,
                cost: 0.0,
                pods: &pods,
                wanted,
            };
            if matches!(second, 1 | 40) {
                wanted = keda.arrived(&view(wanted));
            }
            wanted = keda.second(&view(wanted));
            assert_eq!(wanted, 1, "at {second} s");
        }
    }

    #[test]
    fn a_scaler_pushes_as_ours_does() {
        let settings = polled_at_20();
        let mut keda =
            Keda::new(Pushing, Object::Brisk, None, Bed { settings: &settings, outage: None });
        let mut pushed = Vec::new();
        let mut tell = |second: u64, ready: usize, pods: &[crate::simulate::pods::Pod]| {
            let view = View { wanted: 1, ..crate::simulate::kit::view(second, ready, pods) };
            if keda.tells(&view) {
                pushed.push(second);
            }
        };
        for second in 0..75 {
            tell(second, 1, &[]);
        }
        // A worker comes, and jobs come one by one.
        let pods = pods(1);
        for second in 75..80 {
            tell(second, 1, &pods);
        }
        for second in 80..86 {
            tell(second, usize::from(second % 2 == 1), &pods);
        }
        assert_eq!(pushed, [0, 1, 2, 4, 8, 16, 32, 62, 81, 83, 85]);
    }

    #[test]
    fn a_stream_that_is_open_through_an_outage_goes_on_and_one_that_was_closed_begins_anew() {
        let trace = Trace::make(Kind::Steady, 1);
        for (away, expected) in [
            (Away::Broker, &[0, 1, 2, 4, 8, 20, 40][..]),
            // KEDA opens it again after 14 s.
            (Away::Scaler, &[0, 1, 2, 4, 8, 24, 25, 26, 28, 32, 40]),
        ] {
            let settings = polled_at_20();
            let outage = Outage::draw(away, Duration::from_secs(10), 1, &trace);
            let from = (10..).find(|second| outage.is_mute(Duration::from_secs(*second))).unwrap();
            let bed = Bed { settings: &settings, outage: Some(outage) };
            let mut keda = Keda::new(Pushing, Object::Brisk, None, bed);
            let mut tells = |second: u64| keda.tells(&view(from - 10 + second, 1, &[]));
            let told: Vec<_> = (0..45).filter(|second| tells(*second)).collect();
            assert_eq!(told, expected, "{away:?}");
        }
    }
}
