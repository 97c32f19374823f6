//! Queues with jobs in them, whose depth goes up and down by one.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use anyhow::Context;
use ebb_proto::keda::ScaledObjectRef;
use ebb_queue::{Delivery, Job, Queue, Timestamp};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::load::Object;
use crate::broker::{Bed, Place};

/// The queues of a run.
pub(super) struct Queues(Vec<Filled>);

#[derive(Clone)]
struct Filled {
    place: Place,
    queue: Queue,
    /// Jobs that are there throughout.
    n_jobs: usize,
}

/// Somebody who publishes a job here and takes one out there.
pub(super) struct Changing {
    stop: CancellationToken,
    changer: JoinHandle<anyhow::Result<f64>>,
}

/// Queues differ in how much they hold.
const MOST: usize = 20;
/// Objects differ in what they ask for.
const TARGETS: usize = 7;
const NAMESPACES: usize = 97;

impl Queues {
    /// Opens them and puts jobs into each.
    pub(super) async fn fill(bed: &Bed, n_queues: usize, lease: Duration) -> anyhow::Result<Self> {
        let mut queues = Vec::with_capacity(n_queues);
        for n in 0..n_queues {
            let place = bed.place(&format!("scaler-{n}"), lease)?;
            let queue = place.open("producer").await?;
            let n_jobs = 1 + n % MOST;
            queue.publish((0..n_jobs).map(|_| job()).collect()).await?;
            queues.push(Filled { place, queue, n_jobs });
        }
        Ok(Self(queues))
    }

    pub(super) fn first(&self) -> &Place {
        &self.0[0].place
    }

    /// So many objects, spread over the queues.
    pub(super) fn objects(&self, n_objects: usize) -> Vec<Object> {
        let object = |(n, queue): (usize, &Filled)| {
            let metadata = [
                ("scalerAddress", "ebb-scaler.ebb.svc:6000".to_owned()),
                ("queue", queue.place.queue.queue.clone()),
                ("jobsPerReplica", (1 + n % TARGETS).to_string()),
            ];
            Object {
                request: ScaledObjectRef {
                    name: format!("object-{n}"),
                    namespace: format!("namespace-{}", n % NAMESPACES),
                    scaler_metadata: metadata.map(|(key, value)| (key.to_owned(), value)).into(),
                },
                // What is in flight is told a moment late by some brokers.
                values: (queue.n_jobs - 1) as f64..=(queue.n_jobs + 1) as f64,
            }
        };
        (0..n_objects).zip(self.0.iter().cycle()).map(object).collect()
    }

    /// Begins to change their depth, one queue after the other.
    pub(super) fn change(&self, per_second: u32) -> Changing {
        let (stop, queues) = (CancellationToken::new(), self.0.clone());
        let stopped = stop.clone();
        let changer = tokio::spawn(async move {
            let Some(pace) = Duration::from_secs(1).checked_div(per_second) else { return Ok(0.0) };
            let mut pace = interval(pace);
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let (began, mut n_changes) = (Instant::now(), 0_usize);
            loop {
                tokio::select! {
                    () = stopped.cancelled() => break,
                    _ = pace.tick() => {}
                }
                let round = n_changes / queues.len();
                let queue = &queues[n_changes % queues.len()].queue;
                let changed =
                    if round.is_multiple_of(2) { add(queue).await } else { take(queue).await };
                changed.context("the depth of a queue cannot be changed")?;
                n_changes += 1;
            }
            Ok(n_changes as f64 / began.elapsed().as_secs_f64())
        });
        Changing { stop, changer }
    }
}

impl Changing {
    /// Ends it, and says how many changes there were in a second.
    pub(super) async fn stop(self) -> anyhow::Result<f64> {
        self.stop.cancel();
        self.changer.await?
    }
}

async fn add(queue: &Queue) -> ebb_queue::Result<()> {
    queue.publish(vec![job()]).await.map(drop)
}

async fn take(queue: &Queue) -> ebb_queue::Result<()> {
    let deliveries = queue.receive(NonZeroUsize::MIN, Duration::from_secs(5)).await?;
    let acks: Vec<_> = deliveries.into_iter().map(Delivery::ack).collect();
    queue.settle(&acks).await?;
    Ok(())
}

fn job() -> Job {
    Job::new(r#"{"input": "one of many"}"#, Timestamp::now())
}
