//! How long a job takes when the worker is half busy: jobs come at times of their own, whether the
//! earlier ones are done or not.

use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use ebb_queue::{Frame, Job, JobId, Queue, Timestamp};
use futures::StreamExt;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::lane::LEASE;
use super::round::{Bench, Side};
use crate::process::{ready, start, stop};
use crate::report::{percentile, progress};

/// What was measured at half the worker's rate.
pub(super) struct Latency {
    /// From the moment a job was due to the moment its result was seen.
    pub(super) millis: Vec<f64>,
    /// Jobs/s that were published.
    pub(super) jobs_per_s: f64,
}

impl Latency {
    pub(super) fn percentile(&self, share: f64) -> f64 {
        percentile(&self.millis, share)
    }
}

/// Jobs that are due within it are published together: a call for each job would keep the machine
/// busy with the bench itself.
const TICK: Duration = Duration::from_millis(2);
/// One job in so many ticks is followed to its result.
const SAMPLED: u64 = 5;
/// Publications under way: beyond that the jobs are late, and that is in their time.
const AT_ONCE: usize = 64;
const LIMIT: Duration = Duration::from_secs(60);

/// Publishes at this rate for so long, to a worker that is ready.
pub(super) async fn measure(
    bench: &Bench,
    jobs_per_s: f64,
    seconds: f64,
) -> anyhow::Result<Latency> {
    let place = bench.bed.place("latency", LEASE)?;
    let queue = place.open("producer").await?;
    let log = bench.logs.path().join("latency.log");
    let mut child = start(bench.command(Side::Worker, &place)?, &log)?;
    ready(&queue, &mut child, &log).await?;
    progress(format_args!("{seconds} s of {jobs_per_s:.0} jobs/s, for their latency"));
    let latency = open_loop(&queue, &bench.request(), jobs_per_s, seconds).await;
    stop(child).await?;
    latency
}

async fn open_loop(
    queue: &Queue,
    body: &Bytes,
    jobs_per_s: f64,
    seconds: f64,
) -> anyhow::Result<Latency> {
    // Not counted: whoever follows opens what it needs with it.
    let job = Job::new(body.clone(), Timestamp::now());
    let warm_up = follow(queue.clone(), job.id.clone(), Instant::now());
    tokio::try_join!(warm_up, publish(queue.clone(), vec![job]))?;

    let (mut publishing, mut following) = (JoinSet::new(), JoinSet::new());
    let (began, mut n_sent) = (Instant::now(), 0);
    for tick in 0..(seconds / TICK.as_secs_f64()) as u64 {
        let due = began + TICK * u32::try_from(tick)?;
        let n_due = (jobs_per_s * TICK.as_secs_f64() * (tick + 1) as f64) as usize;
        if n_due == n_sent {
            continue;
        }
        sleep_until(due).await;
        let jobs: Vec<Job> =
            (n_sent..n_due).map(|_| Job::new(body.clone(), Timestamp::now())).collect();
        n_sent = n_due;
        if tick.is_multiple_of(SAMPLED) {
            following.spawn(follow(queue.clone(), jobs[0].id.clone(), due));
        }
        while publishing.len() >= AT_ONCE {
            publishing.join_next().await.context("some are under way")???;
        }
        publishing.spawn(publish(queue.clone(), jobs));
    }
    while let Some(published) = publishing.join_next().await {
        published??;
    }
    let jobs_per_s = n_sent as f64 / began.elapsed().as_secs_f64();
    let mut millis = Vec::with_capacity(following.len());
    while let Some(followed) = following.join_next().await {
        millis.push(followed??.as_secs_f64() * 1e3);
    }
    Ok(Latency { millis, jobs_per_s })
}

async fn publish(queue: Queue, jobs: Vec<Job>) -> anyhow::Result<()> {
    queue.publish(jobs).await.map(drop).context("cannot publish")
}

/// The time from `since` to the result.
async fn follow(queue: Queue, id: JobId, since: Instant) -> anyhow::Result<Duration> {
    let followed = async {
        let mut frames = queue.follow(&id, 0).await?;
        while let Some(frame) = frames.next().await {
            if let Frame::Final(result) = frame? {
                anyhow::ensure!(result.outcome.is_completed(), "job {id} failed");
                return Ok(since.elapsed());
            }
        }
        bail!("job {id} was forgotten")
    };
    timeout(LIMIT, followed).await.context("a job has no result after 60 s")?
}
