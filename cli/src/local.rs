//! The whole system on one machine: scaler, autoscaler and worker processes on one queue.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ebb_queue::{Depth, Phase, Queue, QueueUrl, WorkerStatus};
use ebb_scaler::{Scaler, ScalerArgs};
use ebb_telemetry::Stop;
use futures::future::join_all;
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::autoscaler::driver;
use crate::autoscaler::fallback::FallbackPolicy;
use crate::autoscaler::hpa::{HpaPolicy, Rules};
use crate::autoscaler::keda::ExecutorPolicy;
use crate::autoscaler::object::ObjectPolicy;
use crate::meter::{Counters, Meter, Rates};
use crate::output::{grouped, note, seconds};
use crate::pool;

/// How long a metrics page may take.
const PAGE_LIMIT: Duration = Duration::from_millis(300);

/// Rates are those of so long ago until now.
const WINDOW: Duration = Duration::from_secs(4);

/// How often the scaler looks at a busy queue; on one machine a look costs little.
const REFRESH: Duration = Duration::from_millis(250);

/// What is said while workers finish what they hold.
pub(crate) const FINISHING: &str = "finishing what is held; once more Ctrl-C kills the workers";

/// How the system is run.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The queue all of it is about.
    pub(crate) url: QueueUrl,
    /// How workers are started and stopped.
    pub(crate) pool: pool::Settings,
    /// Replicas without work.
    pub(crate) min: u32,
    /// Replicas at most.
    pub(crate) max: u32,
    /// Jobs that one replica is to have.
    pub(crate) jobs_per_replica: f64,
    /// Time between two polls of the scaler.
    pub(crate) polling: Duration,
    /// Time between two syncs of the HorizontalPodAutoscaler.
    pub(crate) sync: Duration,
    /// How long after the last activity replicas are kept.
    pub(crate) cooldown: Duration,
    /// Scale down only to the largest recommendation of this window.
    pub(crate) stabilization: Duration,
    /// What stands in for the scaler when it fails.
    pub(crate) fallback: Option<FallbackPolicy>,
}

/// The system, running.
pub(crate) struct Local {
    /// What the autoscaler wants.
    pub(crate) autoscaler: watch::Receiver<driver::View>,
    /// What the pool has.
    pub(crate) pool: watch::Receiver<pool::View>,
    queue: Queue,
    meter: Meter,
    epoch: Instant,
    parts: Vec<Part>,
}

/// A part that runs until it is told to stop, or this is dropped.
struct Part {
    name: &'static str,
    stop: DropGuard,
    running: JoinHandle<Result<()>>,
}

impl Local {
    /// Starts scaler, autoscaler and an empty pool.
    ///
    /// # Errors
    /// When a port cannot be had.
    pub(crate) async fn start(settings: Settings, queue: Queue) -> Result<Self> {
        let scaler = Scaler::bind(ScalerArgs {
            queue: Some(settings.url.clone()),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            http_listen: None,
            refresh: REFRESH,
            stream_max_age: Duration::from_secs(86_400),
            // Nobody is left who asks when it ends.
            grace: Duration::from_secs(1),
            ..ScalerArgs::default()
        });
        let scaler = scaler.await.context("cannot start the scaler")?;
        let asked = settings.driver(scaler.local_addr()?);
        let (wants, autoscaler) = watch::channel(driver::View::default());
        let (has, pool) = watch::channel(pool::View::default());
        let wanted = autoscaler.clone();
        let workers = queue.clone();
        // In the order in which they are stopped.
        let parts = vec![
            Part::start("autoscaler", |stop| driver::run(asked, wants, stop)),
            Part::start("pool", |stop| pool::run(settings.pool, workers, wanted, has, stop)),
            Part::start("scaler", |stop| scaler.serve(stop)),
        ];
        let meter = Meter::new(WINDOW);
        Ok(Self { autoscaler, pool, queue, meter, epoch: Instant::now(), parts })
    }

    /// How all of it is at the moment.
    ///
    /// # Errors
    /// When the queue does not answer, or a part has ended.
    pub(crate) async fn look(&mut self) -> Result<Look> {
        if let Some(part) = self.parts.iter().find(|part| part.running.is_finished()) {
            bail!("the {} ended by itself", part.name);
        }
        let depth = self.queue.depth().await?;
        let workers = self.queue.workers().await?;
        let members = self.pool.borrow().members.clone();
        let pages = members.iter().map(|member| async {
            let page = tokio::time::timeout(PAGE_LIMIT, metrics_page(member.listen)).await;
            let page = page.ok()?.ok()?;
            Some((member.id.clone(), Counters::parse(&page)))
        });
        // A worker that is starting or stopping has no page.
        let counted = join_all(pages).await.into_iter().flatten().collect();
        let rates = self.meter.look(self.epoch.elapsed(), counted);
        let replicas = self.autoscaler.borrow().replicas;
        let prefix = pool::name_prefix();
        let workers = workers.into_iter().filter(|it| it.id.starts_with(&prefix)).collect();
        Ok(Look { depth, workers, replicas, running: members.len(), rates })
    }

    /// Stops in order: nothing is started any more, the workers finish, and the scaler goes last.
    ///
    /// # Errors
    /// When a part failed.
    pub(crate) async fn stop(self) -> Result<()> {
        let mut ended = Ok(());
        for Part { name, stop, running } in self.parts {
            drop(stop);
            let end = running.await.context("panicked").and_then(|end| end);
            ended = ended.and(end.with_context(|| format!("the {name} failed")));
        }
        ended
    }
}

/// Waits for the end of all parts; none where somebody does not want to wait for it. The workers are
/// killed then, with the process.
pub(crate) async fn unless_hurried<T>(
    ending: impl Future<Output = T>,
    stop: &mut Stop,
) -> Option<T> {
    tokio::select! {
        ended = ending => Some(ended),
        () = stop.wait() => {
            note("killed; what was held comes back when its leases end");
            None
        }
    }
}

impl Part {
    fn start<F>(name: &'static str, run: impl FnOnce(CancellationToken) -> F) -> Self
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        Self { name, running: tokio::spawn(run(stop.clone())), stop: stop.drop_guard() }
    }
}

impl std::fmt::Debug for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Local")
            .field("autoscaler", &*self.autoscaler.borrow())
            .finish_non_exhaustive()
    }
}

impl Settings {
    fn driver(&self, scaler: SocketAddr) -> driver::Settings {
        let metadata = [("jobsPerReplica", self.jobs_per_replica.to_string())];
        driver::Settings {
            scaler: format!("http://{scaler}"),
            name: "workers".into(),
            namespace: "local".into(),
            metadata: metadata.map(|(key, value)| (key.to_owned(), value)).into(),
            polling: self.polling,
            sync: self.sync,
            policy: ObjectPolicy {
                executor: ExecutorPolicy {
                    min: self.min,
                    cooldown: self.cooldown,
                    ..ExecutorPolicy::default()
                },
                hpa: HpaPolicy {
                    min: self.min,
                    max: self.max,
                    rules: Rules::Plain { stabilization: self.stabilization },
                    ..HpaPolicy::default()
                },
                fallback: self.fallback.clone(),
                ..ObjectPolicy::default()
            },
        }
    }
}

/// All of it at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Look {
    /// The queue.
    pub(crate) depth: Depth,
    /// What our workers say of themselves, also those that ended a moment ago.
    pub(crate) workers: Vec<WorkerStatus>,
    /// Replicas wanted.
    pub(crate) replicas: u32,
    /// Processes that run.
    pub(crate) running: usize,
    /// What the workers did of late.
    pub(crate) rates: Rates,
}

/// A look as JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Line {
    ready: u64,
    in_flight: u64,
    delayed: u64,
    dead: u64,
    replicas: u32,
    running: usize,
    jobs_per_s: f64,
    batch: Option<f64>,
    p50_ms: Option<f64>,
    p95_ms: Option<f64>,
    phase: &'static str,
}

impl Look {
    /// For programs.
    #[must_use]
    pub(crate) fn line(&self) -> Line {
        let rounded = |value: f64| (value * 10.0).round() / 10.0;
        Line {
            ready: self.depth.ready,
            in_flight: self.depth.in_flight,
            delayed: self.depth.delayed,
            dead: self.depth.dead,
            replicas: self.replicas,
            running: self.running,
            jobs_per_s: rounded(self.rates.jobs_per_s),
            batch: self.rates.batch.map(rounded),
            p50_ms: self.rates.p50.map(|seconds| rounded(seconds * 1e3)),
            p95_ms: self.rates.p95.map(|seconds| rounded(seconds * 1e3)),
            phase: self.phase(),
        }
    }

    /// What the pool is doing, in one word.
    fn phase(&self) -> &'static str {
        let any = |phase| self.workers.iter().any(|worker| worker.phase == phase);
        match () {
            () if self.running == 0 && self.replicas == 0 => "asleep",
            () if self.replicas == 0 => "draining",
            () if any(Phase::Busy) => "working",
            () if any(Phase::Idle) => "idle",
            () => "starting",
        }
    }
}

/// For people: one line.
impl std::fmt::Display for Look {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Rates { jobs_per_s, batch, p50, p95 } = self.rates;
        let (ready, in_flight) = (grouped(self.depth.ready), grouped(self.depth.in_flight));
        let batch = batch.map_or_else(|| "-".to_owned(), |batch| format!("{batch:.0}"));
        // What matters most comes first: a narrow terminal cuts the end off.
        write!(f, "{:<8}  ready {ready:>5}  in flight {in_flight:>3}  ", self.phase())?;
        write!(f, "replicas {}/{}  {jobs_per_s:>4.0} jobs/s  ", self.running, self.replicas)?;
        write!(f, "p50 {:>6}  p95 {:>6}  batch {batch:>3}", seconds(p50), seconds(p95))
    }
}

/// A worker's `/metrics`, asked in the plainest way.
async fn metrics_page(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let ask = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(ask.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use ebb_queue::Timestamp;

    use super::*;

    fn look() -> Look {
        let mut depth = Depth::empty(Timestamp::UNIX_EPOCH);
        depth.ready = 1203;
        depth.in_flight = 64;
        let rates = Rates { jobs_per_s: 311.6, batch: Some(28.4), p50: Some(0.12), p95: Some(1.4) };
        Look { depth, workers: Vec::new(), replicas: 2, running: 2, rates }
    }

    #[test]
    fn a_look_is_one_line_for_people() {
        insta::assert_snapshot!(look(), @"starting  ready 1,203  in flight  64  replicas 2/2   312 jobs/s  p50 120 ms  p95  1.4 s  batch  28");
    }

    #[test]
    fn a_look_is_one_object_for_programs() {
        let line = serde_json::to_string(&look().line()).unwrap();
        insta::assert_snapshot!(line, @r#"{"ready":1203,"in_flight":64,"delayed":0,"dead":0,"replicas":2,"running":2,"jobs_per_s":311.6,"batch":28.4,"p50_ms":120.0,"p95_ms":1400.0,"phase":"starting"}"#);
    }

    #[test]
    fn the_phase_says_what_the_pool_is_doing() {
        let with = |replicas, running| Look { replicas, running, ..look() }.phase();
        assert_eq!(with(0, 0), "asleep");
        assert_eq!(with(1, 0), "starting");
        assert_eq!(with(0, 2), "draining");
    }
}
