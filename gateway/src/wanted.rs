//! Jobs that one request has made and nobody else waits for: they are cancelled when it goes away.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ebb_queue::{Error, ErrorKind, JobId, Queue};
use futures::{StreamExt, stream};
use prometheus::IntCounter;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use crate::metrics::Metrics;

/// Jobs of one request that are cancelled at a time.
const AT_ONCE: usize = 16;

/// Requests whose jobs are cancelled at a time.
const REQUESTS: usize = 8;

/// How long one cancel may take, and how long nothing is asked of a broker that took longer or is away.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long after its client left a job is tried to be cancelled.
const LATEST: Duration = Duration::from_secs(60);

/// Cancels in the background what is not wanted any more; clones share the work.
#[derive(Debug, Clone)]
pub struct Canceller {
    left: mpsc::Sender<Left>,
    /// Counts the jobs that are not cancelled.
    uncancelled: IntCounter,
}

/// Jobs of a request that has gone.
struct Left {
    queue: Queue,
    ids: Vec<JobId>,
    uncancelled: Uncancelled,
}

/// So many jobs that are not cancelled yet. They count when this is dropped, wherever that is: where there
/// is no place for them, where the broker failed, and where the gateway ends before it is their turn.
struct Uncancelled {
    n_jobs: u64,
    counter: IntCounter,
}

impl Drop for Uncancelled {
    fn drop(&mut self) {
        self.counter.inc_by(self.n_jobs);
    }
}

impl Canceller {
    /// Starts the work, which ends by itself once all clones are gone and all is done. The jobs of so many
    /// requests wait for it at most, which is as many as there are at once: all may go away together.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn start(metrics: &Metrics, max_in_flight: usize) -> (Self, AbortOnDropHandle<()>) {
        let (canceller, left) = Self::new(metrics, max_in_flight);
        let work = tokio::spawn(work(left, metrics.clone(), max_in_flight.max(1)));
        (canceller, AbortOnDropHandle::new(work))
    }

    fn new(metrics: &Metrics, most: usize) -> (Self, mpsc::Receiver<Left>) {
        let (sender, left) = mpsc::channel(most.clamp(1, Semaphore::MAX_PERMITS));
        (Self { left: sender, uncancelled: metrics.uncancelled.clone() }, left)
    }

    fn left_of(&self, queue: &Queue, ids: Vec<JobId>) -> Left {
        let counter = self.uncancelled.clone();
        let uncancelled = Uncancelled { n_jobs: ids.len() as u64, counter };
        Left { queue: Arc::clone(queue), ids, uncancelled }
    }
}

async fn work(mut left: mpsc::Receiver<Left>, metrics: Metrics, most: usize) {
    let left = stream::poll_fn(move |context| left.poll_recv(context));
    let (hung, places) = (Hung::default(), Semaphore::new(REQUESTS));
    // Those of a broker that hangs or is away wait here, and keep nobody from a place.
    left.for_each_concurrent(most, |left| left.cancel(&metrics, &hung, &places)).await;
}

/// Queues whose brokers have hung or were away, and until when nothing is asked of them: they would hold up
/// the jobs of all others.
#[derive(Default)]
struct Hung(Mutex<Vec<(Queue, Instant)>>);

impl Hung {
    fn queues(&self) -> MutexGuard<'_, Vec<(Queue, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn until(&self, queue: &Queue) -> Option<Instant> {
        let mut queues = self.queues();
        let now = Instant::now();
        queues.retain(|(_, until)| *until > now);
        queues.iter().find(|(hung, _)| Arc::ptr_eq(hung, queue)).map(|(_, until)| *until)
    }

    fn add(&self, queue: &Queue) {
        if self.until(queue).is_none() {
            self.queues().push((Arc::clone(queue), Instant::now() + PATIENCE));
        }
    }
}

impl Left {
    async fn cancel(mut self, metrics: &Metrics, hung: &Hung, places: &Semaphore) {
        let latest = Instant::now() + LATEST;
        while !self.ids.is_empty() && Instant::now() < latest {
            if let Some(until) = hung.until(&self.queue) {
                sleep_until(until).await;
                continue;
            }
            let Ok(_place) = places.acquire().await else { return };
            // Somebody may have found out meanwhile.
            if hung.until(&self.queue).is_none() {
                self.try_each(metrics, hung).await;
            }
        }
        if !self.ids.is_empty() {
            debug!(n_jobs = self.ids.len(), "jobs that nobody waits for go on");
        }
    }

    /// Leaves those whose broker hangs or is away.
    async fn try_each(&mut self, metrics: &Metrics, hung: &Hung) {
        let ids = std::mem::take(&mut self.ids);
        let queue = &self.queue;
        let cancel = async |id: JobId| {
            if hung.until(queue).is_some() {
                return (id, None);
            }
            let cancelled = timeout(PATIENCE, queue.cancel(&id)).await.unwrap_or_else(|_| {
                let words = format!("no answer within {} s", PATIENCE.as_secs());
                Err(Error::new(ErrorKind::Unavailable, words))
            });
            (id, Some(cancelled))
        };
        let mut cancels = std::pin::pin!(stream::iter(ids).map(cancel).buffer_unordered(AT_ONCE));
        while let Some((id, cancelled)) = cancels.next().await {
            let error = match cancelled {
                Some(Ok(cancelled)) => {
                    metrics.cancelled.inc_by(u64::from(cancelled.took_effect()));
                    self.uncancelled.n_jobs -= 1;
                    continue;
                }
                Some(Err(error)) => error,
                None => {
                    self.ids.push(id);
                    continue;
                }
            };
            debug!(%error, job.id = %id, "a job that nobody waits for is not cancelled");
            metrics.failed("cancel", &error);
            if error.kind() == ErrorKind::Unavailable {
                hung.add(queue);
                self.ids.push(id);
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
        let left = self.canceller.left_of(&self.queue, ids);
        if self.canceller.left.try_send(left).is_err() {
            debug!("too many jobs are to be cancelled; these go on");
        }
    }
}

#[cfg(test)]
mod tests {
    use ebb_queue::faulty::{Faults, Faulty};
    use ebb_queue::memory::MemoryQueue;
    use ebb_queue::{Behavior, Job, OpenOptions, Timestamp};

    use super::*;

    #[test]
    fn jobs_for_which_there_is_no_place_are_counted() {
        let metrics = Metrics::default();
        let (canceller, _left) = Canceller::new(&metrics, 2);
        let queue: Queue = Arc::new(MemoryQueue::new(&Behavior::default(), OpenOptions::default()));
        for _ in 0..4 {
            let ids = vec![JobId::fresh(), JobId::fresh(), JobId::fresh()];
            drop(Wanted::new(&queue, ids, &canceller));
        }
        assert_eq!(metrics.uncancelled.get(), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn jobs_whose_turn_does_not_come_are_counted() {
        let inner = Arc::new(MemoryQueue::new(&Behavior::default(), OpenOptions::default()));
        let faults = Faults { delay: Duration::from_secs(1_000_000), ..Faults::NONE };
        let queue: Queue = Arc::new(Faulty::new(inner, faults, 7));
        let metrics = Metrics::default();
        let (canceller, mut work) = Canceller::start(&metrics, 20);
        for _ in 0..20 {
            drop(Wanted::new(&queue, vec![JobId::fresh()], &canceller));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(metrics.uncancelled.get(), 0);
        work.abort();
        (&mut work).await.unwrap_err();
        assert_eq!(metrics.uncancelled.get(), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_hangs_holds_up_the_jobs_of_no_other_for_longer_than_one_cancel_takes() {
        let memory = || Arc::new(MemoryQueue::new(&Behavior::default(), OpenOptions::default()));
        let faults = Faults { delay: Duration::from_secs(1_000_000), ..Faults::NONE };
        let hangs = Faulty::new(memory(), faults, 7);
        let (hung, good): (Queue, Queue) = (Arc::new(hangs.clone()), memory());
        let metrics = Metrics::default();
        let (canceller, _work) = Canceller::start(&metrics, 200);
        let put = async |queue: &Queue| {
            let job = Job::new("x", Timestamp::UNIX_EPOCH);
            let id = job.id.clone();
            queue.publish(vec![job]).await.unwrap();
            drop(Wanted::new(queue, vec![id], &canceller));
        };
        for _ in 0..100 {
            drop(Wanted::new(&hung, vec![JobId::fresh()], &canceller));
        }
        put(&good).await;
        tokio::time::sleep(PATIENCE + Duration::from_secs(1)).await;
        assert_eq!((metrics.cancelled.get(), metrics.uncancelled.get()), (1, 0));
        // It is asked again, for all of them.
        hangs.set(Faults::NONE);
        put(&hung).await;
        tokio::time::sleep(2 * PATIENCE).await;
        assert_eq!((metrics.cancelled.get(), metrics.uncancelled.get()), (2, 0));
        hangs.set(faults);
        for _ in 0..100 {
            drop(Wanted::new(&hung, vec![JobId::fresh()], &canceller));
        }
        tokio::time::sleep(LATEST + 2 * PATIENCE).await;
        assert_eq!(metrics.uncancelled.get(), 100, "not for ever");
    }

    #[tokio::test(start_paused = true)]
    async fn jobs_whose_broker_fails_are_counted() {
        let inner = Arc::new(MemoryQueue::new(&Behavior::default(), OpenOptions::default()));
        let faults = Faults { fail_before: 1.0, ..Faults::NONE };
        let queue: Queue = Arc::new(Faulty::new(inner, faults, 7));
        let metrics = Metrics::default();
        let (canceller, _left) = Canceller::new(&metrics, 1);
        let ids = vec![JobId::fresh(), JobId::fresh()];
        let (hung, places) = (Hung::default(), Semaphore::new(1));
        canceller.left_of(&queue, ids).cancel(&metrics, &hung, &places).await;
        assert_eq!((metrics.uncancelled.get(), metrics.cancelled.get()), (2, 0));
    }
}
