//! KEDA's ScaledJob: pods that are started at a poll and end by themselves. No clock in here; the
//! phase of the polls comes from the seed.
//!
//! A pod is a worker with `--exit-when-empty`. It counts as pending until its model is loaded, as
//! `pendingPodConditions: [Ready]` in `deploy/components/scaledjob` has it. There is no push, and no
//! fallback.

use ebb::autoscaler::keda::POLLING_INTERVAL;
use ebb::autoscaler::object::Look;
use ebb::autoscaler::scaledjob::{JobPolicy, Jobs, Strategy, to_start};

use super::keda::{Object, Scaler};
use super::outage::Outage;
use super::pods::hash;
use super::world::{Bed, Policy, View};

/// Seconds between two polls as our deployment has it; KEDA's default is [`POLLING_INTERVAL`].
const BRISK: u64 = 5;

/// One ScaledJob with its scaler.
pub(crate) struct ScaledJob<S> {
    scaler: S,
    policy: JobPolicy,
    polling: u64,
    phase: u64,
    outage: Option<Outage>,
}

impl<S: Scaler> ScaledJob<S> {
    pub(crate) fn new(
        scaler: S,
        strategy: Strategy,
        object: Object,
        Bed { settings, outage }: Bed<'_>,
    ) -> Self {
        let polling = match object {
            Object::Brisk => BRISK,
            Object::Default => POLLING_INTERVAL.as_secs(),
        };
        let policy = JobPolicy { max: settings.max_replicas, strategy, ..JobPolicy::default() };
        Self { scaler, policy, polling, phase: hash(settings.seed) % polling, outage }
    }

    /// Pods to start.
    fn poll(&self, view: &View<'_>) -> u32 {
        let look = self.scaler.look(view);
        let look = self.outage.map_or(look, |outage| outage.dim(view.now, look));
        // What is not known starts nothing.
        let Look::Answered { value, target, active } = look else { return 0 };
        let pending = view.pods.iter().filter(|pod| !pod.is_ready(view.now)).count() as u32;
        let jobs = Jobs { running: view.pods.len() as u32, pending };
        to_start(self.policy, jobs, active, value, target)
    }
}

impl<S: Scaler> Policy for ScaledJob<S> {
    fn arrived(&mut self, view: &View<'_>) -> u32 {
        view.wanted
    }

    fn second(&mut self, view: &View<'_>) -> u32 {
        if !self.outage.is_some_and(|outage| outage.is_blind(view.now)) {
            self.scaler.learn(view);
        }
        if (view.now.as_secs() + self.phase).is_multiple_of(self.polling) {
            return view.wanted + self.poll(view);
        }
        view.wanted
    }

    fn pods_end_by_themselves(&self) -> bool {
        true
    }
}
