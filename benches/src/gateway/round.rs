//! One round of one side: so many clients, and the time until they have had so many answers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use ebb_queue::{Frame, Job, Queue, Timestamp};
use ebb_servers::Watched;
use futures::StreamExt;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Args;
use super::client::Client;
use crate::broker::{Bed, Place};
use crate::process::{after, command, cpu_time, end, rss_kib, start, stop, tail, watch};
use crate::report::percentile;

/// Leases that no round outlives.
const LEASE: Duration = Duration::from_secs(30);

/// Requests one after the other before memory is looked at.
const FIRST_REQUESTS: usize = 20;

/// An answer that is not there by then never will be.
const LIMIT: Duration = Duration::from_secs(60);

/// Whose turn it is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Side {
    Gateway,
    Queue,
}

impl Side {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Queue => "queue",
        }
    }
}

/// What came of a round.
#[derive(Debug, Clone, Copy)]
pub(super) struct Round {
    pub(super) per_s: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    /// Processor time of the gateway for each request; not a number where the system does not tell.
    pub(super) cpu_us: f64,
}

/// A gateway that runs; gone when it is dropped.
struct Gateway {
    process: Watched,
    address: String,
}

/// What all rounds have in common.
pub(super) struct Bench {
    n_clients: usize,
    queue: Queue,
    ebb: PathBuf,
    place: Place,
    gateway: Gateway,
    answerer: Option<Child>,
    body: String,
    logs: tempfile::TempDir,
}

/// Somebody who asks again and again.
enum Asker {
    Gateway(Client),
    Queue(Queue, Bytes),
}

impl Gateway {
    /// Starts one, and returns when it listens.
    async fn start(ebb: &Path, place: &Place, log: &Path) -> anyhow::Result<Self> {
        let mut command = command(ebb, place);
        command.args(["gateway", "--listen", "127.0.0.1:0", "--model", "bench"]);
        let mut process = watch(&command, log)?;
        let begun = Instant::now();
        loop {
            let words = std::fs::read_to_string(log).unwrap_or_default();
            let listens = words.find("the gateway listens");
            if let Some(address) = listens.and_then(|at| after(&words[at..], "address=")) {
                return Ok(Self { process, address });
            }
            if let Some(status) = process.ended()? {
                bail!("the gateway ended before it listened ({status}): {}", tail(log));
            }
            ensure!(begun.elapsed() < LIMIT, "the gateway is mute after 60 s: {}", tail(log));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn cpu_time(&self) -> Option<Duration> {
        cpu_time(self.process.pid())
    }

    fn rss_kib(&self) -> anyhow::Result<f64> {
        rss_kib(self.process.pid()).context("the system does not tell the gateway's memory")
    }
}

impl Bench {
    /// Starts a gateway, and who answers.
    pub(super) async fn start(args: &Args, bed: &Bed) -> anyhow::Result<Self> {
        let (place, ebb) = (bed.place("gateway", LEASE)?, args.gateway.find()?);
        let logs = tempfile::tempdir()?;
        let queue = place.open("clients").await?;
        let log = logs.path().join("answerer.log");
        let answerer = start(answerer(args, &place)?, &log)?;
        let gateway = Gateway::start(&ebb, &place, &logs.path().join("gateway.log")).await?;
        let body = serde_json::json!({"input": "x".repeat(args.letters)}).to_string();
        let (n_clients, answerer) = (args.clients.get(), Some(answerer));
        Ok(Self { n_clients, queue, ebb, place, gateway, answerer, body, logs })
    }

    /// One round of one side.
    pub(super) async fn round(&self, side: Side, n_requests: usize) -> anyhow::Result<Round> {
        let mut askers = Vec::with_capacity(self.n_clients);
        for _ in 0..self.n_clients {
            askers.push(match side {
                Side::Gateway => {
                    Asker::Gateway(Client::connect(&self.gateway.address, &self.body).await?)
                }
                Side::Queue => Asker::Queue(Arc::clone(&self.queue), self.body.clone().into()),
            });
        }
        let n_left = Arc::new(AtomicUsize::new(n_requests));
        let (begun, cpu) = (Instant::now(), self.gateway.cpu_time());
        let mut asking: JoinSet<_> =
            askers.into_iter().map(|asker| asker.work(Arc::clone(&n_left))).collect();
        let mut millis = Vec::with_capacity(n_requests);
        while let Some(worked) = asking.join_next().await {
            millis.extend(worked??);
        }
        let took = begun.elapsed();
        let cpu = match (cpu, self.gateway.cpu_time()) {
            (Some(before), Some(now)) => now.saturating_sub(before).as_secs_f64(),
            _ => f64::NAN,
        };
        Ok(Round {
            per_s: n_requests as f64 / took.as_secs_f64(),
            p50_ms: percentile(&millis, 0.5),
            p99_ms: percentile(&millis, 0.99),
            cpu_us: cpu * 1e6 / n_requests as f64,
        })
    }

    /// What a gateway has more, in KiB of memory for each, with so many requests that wait than with none.
    ///
    /// Another one: the memory of one that has served thousands is large enough for those that wait.
    pub(super) async fn kib_of_a_waiting_one(&mut self, n: usize) -> anyhow::Result<f64> {
        let log = self.logs.path().join("gateway-waiting.log");
        let gateway = Gateway::start(&self.ebb, &self.place, &log).await?;
        let gateway = std::mem::replace(&mut self.gateway, gateway);
        end(gateway.process).await?;
        // What it makes once, at its first request, is no request's.
        let mut first = Client::connect(&self.gateway.address, &self.body).await?;
        for _ in 0..FIRST_REQUESTS {
            timeout(LIMIT, first.ask()).await.context("a request has no answer after 60 s")??;
        }
        drop(first);
        if let Some(answerer) = self.answerer.take() {
            stop(answerer).await?;
        }
        let before = self.gateway.rss_kib()?;
        let mut waiting = Vec::with_capacity(n);
        for _ in 0..n {
            let mut client = Client::connect(&self.gateway.address, &self.body).await?;
            client.begin().await?;
            waiting.push(client);
        }
        let begun = Instant::now();
        while self.queue.depth().await?.ready < n as u64 {
            ensure!(begun.elapsed() < LIMIT, "{n} requests are not all jobs after 60 s");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // All follow their jobs by then.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let now = self.gateway.rss_kib()?;
        drop(waiting);
        Ok((now - before) / n as f64)
    }

    /// Ends who was started.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        if let Some(answerer) = self.answerer {
            stop(answerer).await?;
        }
        end(self.gateway.process).await
    }
}

impl Asker {
    /// Asks until nothing is left to ask, and says how long each answer took, in milliseconds.
    async fn work(mut self, n_left: Arc<AtomicUsize>) -> anyhow::Result<Vec<f64>> {
        let mut millis = Vec::new();
        let take = |n: usize| n.checked_sub(1);
        while n_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
            let begun = Instant::now();
            let asked = timeout(LIMIT, self.ask()).await;
            asked.context("a request has no answer after 60 s")??;
            millis.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        Ok(millis)
    }

    async fn ask(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Gateway(client) => client.ask().await,
            Self::Queue(queue, body) => {
                let job = Job::new(body.clone(), Timestamp::now());
                let id = job.id.clone();
                queue.publish(vec![job]).await.context("cannot publish")?;
                let mut frames = queue.follow(&id, 0).await?;
                while let Some(frame) = frames.next().await {
                    if let Frame::Final(result) = frame? {
                        ensure!(result.outcome.is_completed(), "job {id} failed");
                        return Ok(());
                    }
                }
                bail!("job {id} was forgotten")
            }
        }
    }
}

fn answerer(args: &Args, place: &Place) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    place.name_to(&mut command);
    command.args(["answerer", "--dimensions", &args.dimensions.to_string()]);
    Ok(command)
}
