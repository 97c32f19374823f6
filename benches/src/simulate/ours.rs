//! Our scaler in the simulated world: the real trigger and the real `decide`, fed with what workers
//! would report. No clock in here.

use ebb::autoscaler::object::Look;
use ebb_queue::{BatchTime, ByPriority, Depth, Phase, QueueUrl, Timestamp, WorkerStatus};
use ebb_scaler::{Learner, Snapshot, Trigger, decide};

use super::keda::Scaler;
use super::pods::Pod;
use super::world::View;

/// The scaler, what it has learned, and what workers last said: that is up to a second old, the
/// queue's depth is not.
pub(crate) struct Ours {
    trigger: Trigger,
    learner: Learner,
    workers: Vec<WorkerStatus>,
}

impl Ours {
    /// A scaler with this metadata.
    ///
    /// # Errors
    /// When the scaler does not take it.
    pub(crate) fn new(metadata: &[(&str, String)]) -> anyhow::Result<Self> {
        let broker = QueueUrl::sqlite("/simulated");
        let metadata = metadata.iter().map(|(key, value)| (*key, value.as_str()));
        let trigger = Trigger::parse(metadata, &broker)?;
        Ok(Self { trigger, learner: Learner::new(), workers: Vec::new() })
    }

    fn snapshot(&self, view: &View<'_>) -> Snapshot {
        let [high, normal, low] = view.by_priority.map(|n| n as u64);
        let depth = Depth {
            ready: view.ready as u64,
            ready_by_priority: Some(ByPriority { high, normal, low }),
            in_flight: view.in_flight as u64,
            oldest_ready: view.oldest.map(|oldest| Timestamp::UNIX_EPOCH + oldest),
            cost: Some(view.cost),
            ..Depth::empty(time(view))
        };
        Snapshot { depth, workers: self.workers.clone(), learned: self.learner.learned() }
    }
}

impl Scaler for Ours {
    fn look(&self, view: &View<'_>) -> Look {
        let decision = decide(&self.snapshot(view), &self.trigger, time(view));
        let (value, target) = (decision.value, decision.target);
        Look::Answered { value, target, active: decision.active }
    }

    fn learn(&mut self, view: &View<'_>) {
        self.workers = view.pods.iter().map(|pod| status(pod, view)).collect();
        let look = self.snapshot(view);
        self.learner.observe(&look.depth, &look.workers, time(view));
    }

    fn pushes(&self) -> bool {
        true
    }
}

fn time(view: &View<'_>) -> Timestamp {
    Timestamp::UNIX_EPOCH + view.now
}

/// What the worker in a pod would report now.
fn status(pod: &Pod, view: &View<'_>) -> WorkerStatus {
    let phase = match pod {
        _ if pod.draining.is_some() => Phase::Draining,
        _ if !pod.is_ready(view.now) => Phase::Starting,
        _ if pod.running.is_empty() => Phase::Idle,
        _ => Phase::Busy,
    };
    // A worker fits base and slope to its batches; with one kind of job it finds the truth, and
    // `per_job` is what its jobs took on average, the base shared by those of a batch.
    let batch_time = (pod.completed > 0).then(|| {
        let per_job = pod.device.as_secs_f64() / pod.completed as f64;
        let bases = pod.batches as f64 * view.settings.overhead;
        let per_cost = (pod.device.as_secs_f64() - bases).max(0.0) / pod.completed as f64;
        BatchTime { base: view.settings.overhead, per_cost, per_job }
    });
    WorkerStatus {
        id: format!("worker-{}", pod.number),
        pod: format!("worker-{}", pod.number),
        phase,
        in_flight: pod.in_flight() as u64,
        slots: view.settings.slots as u64,
        completed: pod.completed,
        failed: 0,
        batch_time,
        cold_start: phases(pod, view),
        first_result: None,
        model: "simulated".into(),
        at: time(view),
    }
}

/// A cold start has phases, and a worker tells of one when it is over; here there are five of the
/// same length.
fn phases(pod: &Pod, view: &View<'_>) -> Vec<(String, f64)> {
    let each = view.settings.cold_start / 5;
    let over = (1..=5u32).filter(|n| view.now >= pod.started + each * *n);
    over.map(|n| (format!("phase {n}"), each.as_secs_f64())).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::simulate::kit::{pods, view};

    fn ours(options: &[(&'static str, &str)]) -> Ours {
        let options = options.iter().map(|(key, value)| (*key, (*value).to_owned()));
        Ours::new(&options.collect::<Vec<_>>()).unwrap()
    }

    fn is_active(scaler: &Ours, view: &View<'_>) -> bool {
        matches!(scaler.look(view), Look::Answered { active: true, .. })
    }

    #[test]
    fn what_waits_and_what_is_held_is_told() {
        let mut pods = pods(1);
        pods[0].running = vec![0, 1, 2];
        let mut scaler = ours(&[("mode", "jobs"), ("jobsPerReplica", "16")]);
        scaler.learn(&view(9, 5, &pods));
        let told = scaler.look(&view(10, 5, &pods));
        assert_eq!(told, Look::Answered { value: 8.0, target: 16.0, active: true });
        pods[0].draining = Some(Duration::from_secs(10));
        scaler.learn(&view(10, 5, &pods));
        let told = scaler.look(&view(11, 5, &pods));
        assert_eq!(
            told,
            Look::Answered { value: 5.0, target: 16.0, active: true },
            "no replacement"
        );
    }

    #[test]
    fn the_activation_policy_sees_priorities() {
        let scaler = ours(&[("mode", "jobs"), ("activationPriority", "normal")]);
        let oldest = Some(Duration::from_secs(9));
        let with = |by_priority| View { by_priority, oldest, ..view(9, 3, &[]) };
        assert!(is_active(&scaler, &with([0, 3, 0])));
        assert!(!is_active(&scaler, &with([0, 0, 3])));
        assert!(is_active(&scaler, &with([0, 1, 2])));
    }

    #[test]
    fn a_worker_tells_what_it_does_and_how_far_its_start_is() {
        let mut pod = Pod::start(3, Duration::from_secs(100), Duration::from_secs(130));
        let phase = |pod: &Pod, second| status(pod, &view(second, 0, &[])).phase;
        assert_eq!(phase(&pod, 129), Phase::Starting);
        assert_eq!(phase(&pod, 130), Phase::Idle);
        // Five phases of six seconds, each told when it is over.
        let n_phases = |second| phases(&pod, &view(second, 0, &[])).len();
        assert_eq!([100, 106, 117, 130].map(n_phases), [0, 1, 2, 5]);
        pod.running = vec![4];
        assert_eq!(phase(&pod, 140), Phase::Busy);
        pod.draining = Some(Duration::from_secs(141));
        assert_eq!(phase(&pod, 141), Phase::Draining);
    }

    #[test]
    fn a_worker_tells_what_its_batches_took() {
        let mut pod = pods(1).remove(0);
        assert_eq!(status(&pod, &view(9, 0, &[])).batch_time, None);
        // Two full batches of 8.5 s.
        (pod.completed, pod.batches, pod.device) = (16, 2, Duration::from_secs(17));
        let time = status(&pod, &view(99, 0, &[])).batch_time.unwrap();
        assert_eq!((time.base, time.per_cost, time.per_job), (0.5, 1.0, 17.0 / 16.0));
    }
}
