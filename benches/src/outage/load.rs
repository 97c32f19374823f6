//! A queue on which work goes on when the broker dies: a producer publishes, and a worker process
//! holds jobs under lease.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::ensure;
use ebb_queue::{Job, Queue, Timestamp};
use tokio::process::Child;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::broker::{Bed, Place};
use crate::process::{ready, start, stop, tail, worker_command};

/// One such queue. Dropped, it publishes nothing more and its worker is gone.
pub(super) struct Load {
    place: Place,
    queue: Queue,
    worker: Child,
    log: PathBuf,
    /// Jobs that the broker took from the producer.
    accepted: Arc<AtomicUsize>,
    producer: JoinHandle<()>,
    stop: DropGuard,
}

/// What a job adds to its batch: five jobs a second are done.
const BODY: &str = r#"{"input": "x", "sleep_ms": 200}"#;
/// Between two publications: the queue grows all the time, and so is never empty.
const PACE: Duration = Duration::from_millis(50);
/// Jobs that are there before the first is done: a minute of work.
const STOCK: usize = 300;

impl Load {
    /// Begins, and returns when the worker is ready.
    pub(super) async fn begin(
        bed: &Bed,
        ebb: &Path,
        (n, logs): (usize, &Path),
        lease: Duration,
    ) -> anyhow::Result<Self> {
        let place = bed.place(&format!("outage-load-{n}"), lease)?;
        let queue = place.open(&format!("load-{n}")).await?;
        let log = logs.join(format!("worker-{n}.log"));
        let mut command = worker_command(ebb, &place, &format!("load-{n}"));
        command.args(["--max-items", "8"]);
        let mut worker = start(command, &log)?;
        ready(&queue, &mut worker, &log).await?;
        queue.publish((0..STOCK).map(|_| Job::new(BODY, Timestamp::now())).collect()).await?;
        let (accepted, token) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
        let (counted, stopped, producer) = (Arc::clone(&accepted), token.clone(), queue.clone());
        let producer = tokio::spawn(async move {
            stopped.run_until_cancelled(produce(producer, &counted)).await;
        });
        Ok(Self { place, queue, worker, log, accepted, producer, stop: token.drop_guard() })
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Jobs that its worker holds.
    pub(super) async fn held(&self) -> anyhow::Result<u64> {
        let workers = self.queue.workers().await?;
        Ok(workers.iter().map(|worker| worker.in_flight).sum())
    }

    /// Waits until its worker holds some.
    pub(super) async fn wait_until_held(&self, limit: Duration) -> anyhow::Result<()> {
        let limit = Instant::now() + limit;
        while self.held().await? == 0 {
            ensure!(Instant::now() < limit, "no job is held: {}", tail(&self.log));
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    pub(super) fn n_accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Waits until the broker takes jobs again, more than so many, and its worker receives some and
    /// completes them.
    pub(super) async fn wait_until_it_goes_on(
        &mut self,
        before: usize,
        limit: Duration,
    ) -> anyhow::Result<()> {
        let limit = Instant::now() + limit;
        while self.n_accepted() <= before {
            ensure!(Instant::now() < limit, "the producer is not heard after the outage");
            sleep(Duration::from_millis(50)).await;
        }
        let (begun, mut without_receiving) = (Timestamp::now(), None);
        loop {
            let ended = self.worker.try_wait()?;
            ensure!(ended.is_none(), "a worker did not outlive the outage: {}", tail(&self.log));
            let workers = self.queue.workers().await?;
            for worker in workers.iter().filter(|worker| worker.at >= begun) {
                // What it holds when it is first heard it may complete without ever receiving again.
                let most = *without_receiving.get_or_insert(worker.completed + worker.in_flight);
                if worker.completed > most {
                    return Ok(());
                }
            }
            let late = Instant::now() >= limit;
            ensure!(!late, "a worker does no new jobs after the outage: {}", tail(&self.log));
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Ends it in peace.
    pub(super) async fn end(self) -> anyhow::Result<()> {
        drop(self.stop);
        self.producer.await?;
        stop(self.worker).await
    }
}

/// One job after the other; what the broker does not take is lost to nobody here.
async fn produce(queue: Queue, accepted: &AtomicUsize) {
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        pace.tick().await;
        if queue.publish(vec![Job::new(BODY, Timestamp::now())]).await.is_ok() {
            accepted.fetch_add(1, Ordering::Relaxed);
        }
    }
}
