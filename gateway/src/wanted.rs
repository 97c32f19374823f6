//! Jobs that one request has made and nobody else waits for: they are cancelled when it goes away.

use std::sync::Arc;
use std::time::Duration;

use ebb_queue::{Error, ErrorKind, JobId, Queue};
use futures::{StreamExt, stream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use crate::metrics::Metrics;

/// Jobs of one request that are cancelled at a time.
const AT_ONCE: usize = 16;

/// Requests whose jobs are cancelled at a time: a broker that hangs holds up no other's.
const REQUESTS: usize = 8;

/// Requests that wait for it, at most: the deadlines of others' jobs have to do.
const MOST: usize = 1024;

/// How long one cancel may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Cancels in the background what is not wanted any more; clones share the work.
#[derive(Debug, Clone)]
pub struct Canceller(mpsc::Sender<Left>);

/// Jobs of a request that has gone.
struct Left {
    queue: Queue,
    ids: Vec<JobId>,
}

impl Canceller {
    /// Starts the work, which ends by itself once all clones are gone and all is done.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn start(metrics: &Metrics) -> (Self, AbortOnDropHandle<()>) {
        let (sender, left) = mpsc::channel(MOST);
        let work = tokio::spawn(work(left, metrics.clone()));
        (Self(sender), AbortOnDropHandle::new(work))
    }
}

async fn work(mut left: mpsc::Receiver<Left>, metrics: Metrics) {
    let left = stream::poll_fn(move |context| left.poll_recv(context));
    left.for_each_concurrent(REQUESTS, |left| left.cancel(metrics.clone())).await;
}

impl Left {
    async fn cancel(self, metrics: Metrics) {
        let Self { queue, ids } = self;
        let cancel = async |id: JobId| timeout(PATIENCE, queue.cancel(&id)).await;
        let mut cancels = std::pin::pin!(stream::iter(ids).map(cancel).buffer_unordered(AT_ONCE));
        while let Some(cancelled) = cancels.next().await {
            let error = match cancelled {
                Ok(Ok(cancelled)) => {
                    metrics.cancelled.inc_by(u64::from(cancelled.took_effect()));
                    continue;
                }
                Ok(Err(error)) => error,
                Err(_) => {
                    let words = format!("no answer within {} s", PATIENCE.as_secs());
                    Error::new(ErrorKind::Unavailable, words)
                }
            };
            debug!(%error, "a job that nobody waits for goes on");
            metrics.failed("cancel", &error);
            if error.kind() == ErrorKind::Unavailable {
                // The others would wait as long for nothing.
                return;
            }
        }
    }
}

/// Jobs that are wanted as long as this is there; dropped before they have ended, it cancels them.
pub(crate) struct Wanted {
    queue: Queue,
    ids: Vec<JobId>,
    canceller: Canceller,
}

impl Wanted {
    /// Who waits for these jobs holds this.
    pub(crate) fn new(queue: &Queue, ids: Vec<JobId>, canceller: &Canceller) -> Self {
        Self { queue: Arc::clone(queue), ids, canceller: canceller.clone() }
    }

    /// Leaves the jobs as they are from now on.
    pub(crate) fn let_be(&mut self) {
        self.ids.clear();
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        let ids = std::mem::take(&mut self.ids);
        if ids.is_empty() {
            return;
        }
        let left = Left { queue: Arc::clone(&self.queue), ids };
        if self.canceller.0.try_send(left).is_err() {
            debug!("too many jobs are to be cancelled; the deadlines of these have to do");
        }
    }
}
