//! Pods: loading, working, draining, and which of them Kubernetes takes.
//! No clock and no chance in here.

use std::time::Duration;

/// A place in the list of jobs.
pub(crate) type JobIndex = usize;

/// One pod of the pool, from its start to its end.
#[derive(Debug, Clone)]
pub(crate) struct Pod {
    /// Its number, in the order of starts.
    pub(crate) number: usize,
    pub(crate) started: Duration,
    /// When its model is loaded.
    pub(crate) ready: Duration,
    /// Since when it is told to end.
    pub(crate) draining: Option<Duration>,
    /// The batch on its device, in order.
    pub(crate) running: Vec<JobIndex>,
    /// When that batch began.
    pub(crate) since: Duration,
    /// What it holds for the next batch.
    pub(crate) held: Vec<JobIndex>,
    /// When it last became idle, or was idle last.
    pub(crate) idle: Duration,
    pub(crate) completed: u64,
    /// Batches and jobs in them, and the device seconds they took.
    pub(crate) batches: u64,
    pub(crate) device: Duration,
}

impl Pod {
    pub(crate) fn start(number: usize, now: Duration, ready: Duration) -> Self {
        Self {
            number,
            started: now,
            ready,
            draining: None,
            running: Vec::new(),
            since: now,
            held: Vec::new(),
            idle: ready,
            completed: 0,
            batches: 0,
            device: Duration::ZERO,
        }
    }

    pub(crate) fn is_ready(&self, now: Duration) -> bool {
        self.ready <= now
    }

    /// Could begin a batch.
    pub(crate) fn is_free(&self, now: Duration) -> bool {
        self.is_ready(now) && self.draining.is_none() && self.running.is_empty()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.running.len() + self.held.len()
    }
}

/// The pod that a ReplicaSet takes first (Kubernetes, `pkg/controller/controller_utils.go`,
/// `ActivePodsWithRanks`): one that is not ready, then one that has been ready for a shorter time
/// by the order of magnitude (base 2), then by uid, for which a hash of the number stands. Nothing
/// of it knows about work; all pods have the same `pod-deletion-cost`.
pub(crate) fn victim(pods: &[Pod], now: Duration) -> Option<usize> {
    let staying = pods.iter().enumerate().filter(|(_, pod)| pod.draining.is_none());
    let rank = |pod: &Pod| match now.checked_sub(pod.ready) {
        None => (0, 0, std::cmp::Reverse(pod.number as u64)),
        Some(age) => {
            let magnitude = (age.as_secs() + 1).ilog2();
            (1, magnitude, std::cmp::Reverse(hash(pod.number as u64)))
        }
    };
    staying.min_by_key(|(_, pod)| rank(pod)).map(|(place, _)| place)
}

/// The finalizer of SplitMix64.
pub(crate) fn hash(n: u64) -> u64 {
    let mut z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(number: usize, ready: u64) -> Pod {
        Pod::start(number, Duration::ZERO, Duration::from_secs(ready))
    }

    #[test]
    fn what_is_not_ready_goes_first_then_what_is_ready_for_a_shorter_time() {
        let now = Duration::from_secs(1000);
        let old = pod(0, 10);
        let young = Pod { running: vec![1, 2], ..pod(1, 950) };
        let loading = pod(2, 1010);
        let mut pods = vec![old, young, loading];
        let mut order = Vec::new();
        while let Some(place) = victim(&pods, now) {
            order.push(pods[place].number);
            pods[place].draining = Some(now);
        }
        assert_eq!(order, [2, 1, 0], "work does not count");
    }
}
