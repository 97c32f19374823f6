//! Deletes dead letters that are older than `dead_ttl` of the queue, about once a minute.

use std::time::Duration;

use ebb_queue::{Elsewhere, Purged};
use tracing::{info, warn};

use crate::served::Served;

/// Soon after the start: a pool that is at zero most of the time has short-lived workers.
const FIRST: Duration = Duration::from_secs(5);
/// From one look to the next.
const PERIOD: Duration = Duration::from_secs(60);
/// Steps that follow each other at most: a long backlog of dead letters waits for the next look.
const STEPS: usize = 20;

/// Looks until it is dropped.
pub(crate) async fn keep(served: Served) {
    let mut pause = FIRST;
    loop {
        tokio::time::sleep(pause).await;
        served.purge_old().await;
        pause = PERIOD;
    }
}

impl Served {
    /// Nothing else waits for it or depends on it, so an error is told and no more.
    async fn purge_old(&self) {
        let mut n_purged = 0;
        for _ in 0..STEPS {
            // Bodies in a store of payloads go along where this worker has it.
            match self.broker.purge_old(Elsewhere::Leave).await {
                Ok(Purged { n_jobs: 0, .. }) => break,
                Ok(Purged { n_jobs, .. }) => n_purged += n_jobs,
                Err(error) => {
                    self.shared.metrics.broker_errors.with_label_values(&["purge_old"]).inc();
                    warn!(queue = %self.name, %error, "old dead letters were not deleted");
                    break;
                }
            }
        }
        if n_purged > 0 {
            self.shared.metrics.dead_purged.inc_by(n_purged);
            info!(queue = %self.name, n_purged, "dead letters older than dead_ttl were deleted");
        }
    }
}
