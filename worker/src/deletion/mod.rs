//! Tells Kubernetes what the deletion of this worker's pod would cost, so that a scale-in takes
//! the pods that have the least to lose.

mod cost;
mod pod;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::shared::Shared;
use cost::{Debounce, cost};

use pod::PatchError;
pub use pod::Pod;

/// From one look to the next: what begins and ends in between is not worth a patch.
const PERIOD: Duration = Duration::from_secs(1);

/// Keeps the annotation of the pod by `patch` until it is dropped. Whatever fails here is nothing to the
/// jobs. Who may not patch tries on as well: a container of this pod before this one may have left a cost
/// there, which would be too high for ever.
pub(crate) async fn keep<F: Future<Output = Result<(), PatchError>>>(
    patch: impl Fn(u64) -> F,
    sunk: impl Fn(Instant) -> Option<Duration>,
    chance: impl Fn() -> f64,
) {
    let mut debounce = Debounce::new(Instant::now());
    // A burst of jobs wakes all pods at once; they need not patch at once.
    tokio::time::sleep(PERIOD.mul_f64(chance())).await;
    loop {
        let now = Instant::now();
        if let Some(cost) = debounce.look(cost(sunk(now)), now) {
            match patch(cost).await {
                Ok(()) => {
                    debug!(cost, "the pod's deletion cost is patched");
                    debounce.told(cost, Instant::now());
                }
                Err(error) => {
                    let n_failures = debounce.failed(Instant::now(), chance());
                    tell_failure(&error, n_failures);
                }
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}

fn tell_failure(error: &PatchError, n_failures: u32) {
    let reason = anyhow::Chain::new(error).last().map(ToString::to_string);
    // Once for each outage: a pod lives well without.
    if n_failures == 1 {
        warn!(%error, reason, "the deletion cost was not patched; trying again");
    } else {
        debug!(%error, reason, n_failures, "the deletion cost was not patched");
    }
}

impl Shared {
    /// Keeps the deletion cost of the pod, if there is a pod, until the worker drains: who is
    /// being deleted is chosen by then.
    pub(crate) async fn keep_deletion_cost(&self) {
        let Some(pod) = &self.settings.deletion_cost else { return };
        info!(pod = pod.name, namespace = pod.namespace, "keeping the pod's deletion cost");
        let patch = |cost| pod.set_deletion_cost(cost);
        let keep = keep(patch, |now| self.sunk(now), || self.chance());
        tokio::select! { biased;
            () = self.halt.cancelled() => {}
            () = keep => {}
        }
    }

    /// How long the device has been at what it works on, of jobs of several turns at the oldest of them;
    /// `None` when no job is held.
    fn sunk(&self, now: Instant) -> Option<Duration> {
        if self.n_held.get() == 0 {
            return None;
        }
        let load = self.device.load().get();
        let since = load.running.map(|batch| batch.since).or(load.loading);
        let since = since.into_iter().chain(self.under_way.oldest()).min();
        Some(since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since)))
    }
}
