//! Our scaler in the simulated world: the real trigger and the real `decide`, fed with what workers
//! would report. No clock in here.

use ebb::autoscaler::object::Look;
use ebb_queue::{BatchTime, Depth, Phase, QueueUrl, Timestamp, WorkerStatus};
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
        let depth = Depth {
            ready: view.ready as u64,
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
        self.learner.observe(&self.snapshot(view), time(view));
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
