//! How soon thousands of push streams on one connection are told of an arrival.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use ebb_proto::keda::ScaledObjectRef;
use ebb_proto::keda::external_scaler_client::ExternalScalerClient;
use ebb_queue::{Delivery, Job, Queue, Timestamp};
use futures::future::try_join_all;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout, timeout_at};
use tonic::transport::Channel;

use crate::broker::{Bed, BrokerArgs, Place};
use crate::process::EbbArgs;
use crate::report::{Table, dash, percentile, print, progress, rounded};
use crate::scaler::ScalerProcess;

/// From publishing to `true` on thousands of streams
///
/// Starts `ebb scaler` and opens streams of activity on one connection, as KEDA does for its
/// external-push triggers, spread over a few queues. Then one job arrives in each queue. Exits
/// with 1 if a stream is never told, or has not opened by then.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    broker: BrokerArgs,

    #[command(flatten)]
    ebb: EbbArgs,

    /// Streams that are open at once
    #[arg(long, env = "EBB_BENCH_STREAMS", hide_env_values = true, value_name = "N")]
    #[arg(default_value_t = 2_500)]
    streams: usize,

    /// Queues over which they are spread
    #[arg(long, env = "EBB_BENCH_STREAM_QUEUES", hide_env_values = true, value_name = "Q")]
    #[arg(default_value_t = 10)]
    queues: usize,

    /// Arrivals in each queue, one after the other
    #[arg(long, env = "EBB_BENCH_ROUNDS", hide_env_values = true, value_name = "N")]
    #[arg(default_value_t = 5)]
    rounds: usize,
}

#[derive(Debug, Serialize)]
struct Report {
    broker: String,
    streams: usize,
    queues: usize,
    rounds: usize,
    opened_ms: f64,
    p50_ms: f64,
    p99_ms: f64,
    told_within_ms: f64,
    untold: usize,
    rss_mib: f64,
}

/// A stream that is not told by then is not told.
const LIMIT: Duration = Duration::from_secs(10);
const LEASE: Duration = Duration::from_secs(30);
/// Streams of a queue that has been idle for a while, as in `notify`.
const IDLE: Duration = Duration::from_millis(700);

pub(crate) async fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    ensure!(args.queues > 0 && args.rounds > 0, "--queues and --rounds are 1 or more");
    ensure!(args.streams >= args.queues, "--streams is less than --queues; use at least as many");
    let ebb = args.ebb.find()?;
    let bed = Bed::make(&args.broker).await?;
    let logs = tempfile::tempdir()?;
    let places: Vec<Place> = (0..args.queues)
        .map(|n| bed.place(&format!("streams-{n}"), LEASE))
        .collect::<anyhow::Result<_>>()?;
    let queues = try_join_all(places.iter().map(|place| place.open("producer"))).await?;
    let log = logs.path().join("scaler.log");
    // No stream ends in the middle of a round.
    let n_queues = (args.queues + 1).to_string();
    let flags = ["--stream-max-age", "24h", "--max-queues", &n_queues];
    let scaler = ScalerProcess::start(&ebb, &places[0], &flags, log).await?;
    let client = scaler.client().await?;
    let names = places.iter().map(|place| place.queue.queue.clone()).collect();

    let began = Instant::now();
    let mut crowd = Crowd::open(&client, names, args.streams).await?;
    let opened_ms = began.elapsed().as_secs_f64() * 1e3;
    progress(format_args!("{} streams are open", args.streams));
    let (mut millis, mut untold) = (Vec::new(), 0);
    for round in 1..=args.rounds {
        crowd.hush(&client).await?;
        let told = crowd.arrivals(&queues).await?;
        progress(format_args!("round {round}: {} of {} told", told.len(), args.streams));
        untold += args.streams - told.len();
        millis.extend(told);
        try_join_all(queues.iter().map(empty)).await?;
    }
    let report = Report {
        broker: bed.words(),
        streams: args.streams,
        queues: args.queues,
        rounds: args.rounds,
        opened_ms: rounded(opened_ms, 1),
        p50_ms: rounded(percentile(&millis, 0.5), 2),
        p99_ms: rounded(percentile(&millis, 0.99), 2),
        told_within_ms: rounded(percentile(&millis, 1.0), 2),
        untold,
        rss_mib: rounded(scaler.peak_mib(), 1),
    };
    drop((crowd, client));
    scaler.stop().await?;
    print(json, &report.table(), &report)?;
    ensure!(untold == 0, "{untold} times a stream was not told within 10 s");
    Ok(())
}

/// Streams that are open, and what they say.
struct Crowd {
    streams: JoinSet<anyhow::Result<()>>,
    /// The number of a stream that said `true`, and when.
    pushes: mpsc::Receiver<(usize, Instant)>,
    /// The queues, by which streams are dealt out.
    names: Vec<String>,
    n_streams: usize,
}

impl Crowd {
    /// Opens them on one connection; the scaler says nothing yet, since the queues are idle.
    async fn open(
        client: &ExternalScalerClient<Channel>,
        names: Vec<String>,
        n_streams: usize,
    ) -> anyhow::Result<Self> {
        let (tell, pushes) = mpsc::channel(n_streams);
        let (begin, mut begun) = mpsc::channel(n_streams);
        let mut streams = JoinSet::new();
        for n in 0..n_streams {
            let (mut client, tell, begin) = (client.clone(), tell.clone(), begin.clone());
            let object = object(n, &names[n % names.len()]);
            streams.spawn(async move {
                let mut stream = client.stream_is_active(object).await?.into_inner();
                begin.send(()).await?;
                while let Some(push) = stream.message().await? {
                    if push.result {
                        tell.send((n, Instant::now())).await?;
                    }
                }
                bail!("the scaler ended a stream")
            });
        }
        let mut crowd = Self { streams, pushes, names, n_streams };
        for n in 0..n_streams {
            let opened = tokio::select! {
                opened = timeout(LIMIT, begun.recv()) => opened,
                broken = crowd.broken() => return Err(broken),
            };
            opened.with_context(|| format!("{n} of {n_streams} streams opened"))?;
        }
        Ok(crowd)
    }

    /// Publishes a job into each queue at once, and says after how many milliseconds from the
    /// moment that was begun each stream was told that was told at all.
    async fn arrivals(&mut self, queues: &[Queue]) -> anyhow::Result<Vec<f64>> {
        let began = Instant::now();
        let publish = |queue: &Queue| {
            let queue = queue.clone();
            async move { queue.publish(vec![Job::new("{}", Timestamp::now())]).await }
        };
        let mut published = std::pin::pin!(try_join_all(queues.iter().map(publish)));
        let mut is_published = false;
        let mut told = vec![None; self.n_streams];
        let mut n_told = 0;
        while n_told < self.n_streams || !is_published {
            tokio::select! {
                done = &mut published, if !is_published => {
                    done?;
                    is_published = true;
                }
                push = timeout_at((began + LIMIT).into(), self.pushes.recv()) => {
                    let Ok(Some((n, at))) = push else { break };
                    // It is said again every second as long as nobody works.
                    if told[n].is_none() {
                        told[n] = Some(at.duration_since(began).as_secs_f64() * 1e3);
                        n_told += 1;
                    }
                }
            }
        }
        if let Some(ended) = self.streams.try_join_next() {
            ended??;
        }
        Ok(told.into_iter().flatten().collect())
    }

    /// Waits until the scaler calls all queues idle and all streams have said what they had to.
    async fn hush(&mut self, client: &ExternalScalerClient<Channel>) -> anyhow::Result<()> {
        let limit = Instant::now() + Duration::from_secs(30);
        for name in &self.names {
            let mut client = client.clone();
            while client.is_active(object(0, name)).await?.into_inner().result {
                ensure!(Instant::now() < limit, "an empty queue is called active after 30 s");
                sleep(Duration::from_millis(10)).await;
            }
        }
        sleep(IDLE).await;
        while self.pushes.try_recv().is_ok() {}
        Ok(())
    }

    /// Why the first stream ended; they do not end by themselves.
    async fn broken(&mut self) -> anyhow::Error {
        match self.streams.join_next().await {
            Some(Ok(Err(error))) => error,
            ended => anyhow::anyhow!("a stream ended: {ended:?}"),
        }
    }
}

/// Takes the one job out.
async fn empty(queue: &Queue) -> anyhow::Result<()> {
    let deliveries = queue.receive(NonZeroUsize::MIN, LIMIT).await?;
    ensure!(!deliveries.is_empty(), "the job that was published is not there");
    let acks: Vec<_> = deliveries.into_iter().map(Delivery::ack).collect();
    queue.settle(&acks).await?;
    Ok(())
}

fn object(n: usize, queue: &str) -> ScaledObjectRef {
    let metadata = [("scalerAddress", "ebb-scaler.ebb.svc:6000"), ("queue", queue)];
    let own = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    ScaledObjectRef {
        name: format!("object-{n}"),
        namespace: "default".to_owned(),
        scaler_metadata: metadata.map(own).into(),
    }
}

impl Report {
    fn table(&self) -> Table {
        let mut table = Table::new([
            "streams",
            "queues",
            "rounds",
            "opened ms",
            "p50 ms",
            "p99 ms",
            "all told within ms",
            "untold",
            "RSS MiB",
        ]);
        table.row([
            self.streams.to_string(),
            self.queues.to_string(),
            self.rounds.to_string(),
            format!("{:.0}", self.opened_ms),
            dash(self.p50_ms, 2),
            dash(self.p99_ms, 2),
            dash(self.told_within_ms, 2),
            self.untold.to_string(),
            dash(self.rss_mib, 1),
        ]);
        table
    }
}
