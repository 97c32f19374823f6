//! Hears of jobs that somebody cancelled, so that those which are here are not gone on with.
//!
//! The broker hints at them, and their results say whether it is so. A hint that is missed costs what the
//! job takes of the device and nothing else: what came of it is not stored.

use ebb_queue::{JobId, Outcome};
use futures::StreamExt;
use tracing::debug;

use crate::served::Served;
use crate::shared::{PATIENCE, Pauses};

/// Heeds what is told, for ever.
pub(crate) async fn heed(served: Served) {
    let mut pauses = Pauses::default();
    loop {
        match served.broker.cancellations().await {
            Ok(mut told) => {
                pauses.reset();
                while let Some(id) = told.next().await {
                    served.heed(&id).await;
                }
            }
            // The leases tell of it, too, where the broker knows.
            Err(error) => served.complain("cancellations", &error),
        }
        tokio::time::sleep(pauses.next(served.shared.chance())).await;
    }
}

impl Served {
    /// A job may have been cancelled.
    async fn heed(&self, id: &JobId) {
        let mut pauses = Pauses::default();
        while self.leases.holds(id) && pauses.n_failures() < PATIENCE {
            match self.results.get(id).await {
                Ok(there) => {
                    if there.is_some_and(|there| there.outcome == Outcome::Cancelled) {
                        self.leases.cancel(id);
                        self.shared.n_cancelled.update(|n| *n += 1);
                    }
                    return;
                }
                Err(error) => {
                    debug!(job.id = %id, %error, "it is not known whether the job was cancelled");
                    tokio::time::sleep(pauses.next(self.shared.chance())).await;
                }
            }
        }
    }
}
