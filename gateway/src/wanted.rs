//! Jobs that one request has made and nobody else waits for: they are cancelled when it goes away.

use std::sync::Arc;

use ebb_queue::{JobId, Queue};
use futures::StreamExt;
use tokio::runtime::Handle;
use tracing::debug;

use crate::metrics::Metrics;

/// Jobs that are cancelled at a time.
const AT_ONCE: usize = 16;

/// Jobs that are wanted as long as this is there; dropped before they have ended, it cancels them.
pub(crate) struct Wanted {
    queue: Queue,
    ids: Vec<JobId>,
    metrics: Metrics,
}

impl Wanted {
    /// Who waits for these jobs holds this.
    pub(crate) fn new(queue: &Queue, ids: Vec<JobId>, metrics: &Metrics) -> Self {
        Self { queue: Arc::clone(queue), ids, metrics: metrics.clone() }
    }

    /// Leaves the jobs as they are from now on.
    pub(crate) fn let_be(&mut self) {
        self.ids.clear();
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        let ids = std::mem::take(&mut self.ids);
        // Without a runtime the process ends, and the jobs' deadlines have to do.
        let (false, Ok(runtime)) = (ids.is_empty(), Handle::try_current()) else { return };
        let (queue, metrics) = (Arc::clone(&self.queue), self.metrics.clone());
        runtime.spawn(async move {
            let cancels = futures::stream::iter(ids).map(async |id| (queue.cancel(&id).await, id));
            let mut cancels = std::pin::pin!(cancels.buffer_unordered(AT_ONCE));
            while let Some((cancelled, id)) = cancels.next().await {
                match cancelled {
                    Ok(cancelled) if cancelled.took_effect() => metrics.cancelled.inc(),
                    Ok(_) => {}
                    Err(error) => {
                        metrics.broker_errors.with_label_values(&["cancel"]).inc();
                        debug!(job.id = %id, %error, "a job that nobody waits for goes on");
                    }
                }
            }
        });
    }
}
