//! Deletes dead letters of the intake that are older than its `dead_ttl`: no worker looks there.

use std::time::Duration;

use ebb_queue::{Elsewhere, Queue};
use tracing::{info, warn};

use crate::metrics::Metrics;

/// From one look to the next.
const PERIOD: Duration = Duration::from_secs(60);
/// Steps that follow each other at most.
const STEPS: usize = 20;

/// Looks until it is dropped.
pub(crate) async fn keep(intake: Queue, metrics: Metrics) {
    loop {
        tokio::time::sleep(PERIOD).await;
        let mut n_purged = 0;
        for _ in 0..STEPS {
            // A split has no store of payloads: what refers to one stays.
            match intake.purge_old(Elsewhere::Leave).await {
                Ok(purged) if purged.n_jobs == 0 => break,
                Ok(purged) => n_purged += purged.n_jobs,
                Err(error) => {
                    metrics.broker_errors.with_label_values(&["purge_old"]).inc();
                    warn!(%error, "old dead letters were not deleted");
                    break;
                }
            }
        }
        if n_purged > 0 {
            metrics.dead_purged.inc_by(n_purged);
            info!(n_purged, "dead letters older than dead_ttl were deleted");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::sync::Arc;

    use ebb_queue::memory::MemoryQueue;
    use ebb_queue::{Backlog, Behavior, Broker, Job, OpenOptions, Timestamp, TokioClock};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn old_dead_letters_of_the_intake_are_deleted_and_counted() {
        let clock = Arc::new(TokioClock::starting_at(Timestamp::UNIX_EPOCH));
        let options = OpenOptions { clock, ..OpenOptions::default() };
        let behavior = Behavior { dead_ttl: Some(PERIOD * 5), ..Behavior::default() };
        let queue = MemoryQueue::new(&behavior, options);
        queue.publish(vec![Job::new("{}", Timestamp::UNIX_EPOCH)]).await.unwrap();
        let dead = queue.receive(NonZeroUsize::MIN, Duration::ZERO).await.unwrap().remove(0);
        queue.settle(&[dead.reject("refused")]).await.unwrap();
        let metrics = Metrics::default();
        let kept = keep(Arc::new(queue.clone()), metrics.clone());
        let ended = tokio::time::timeout(PERIOD * 4, kept).await;
        assert!(ended.is_err() && metrics.dead_purged.get() == 0);
        let kept = keep(Arc::new(queue.clone()), metrics.clone());
        assert!(tokio::time::timeout(PERIOD * 3, kept).await.is_err());
        assert_eq!((metrics.dead_purged.get(), queue.depth().await.unwrap().dead), (1, 0));
    }
}
