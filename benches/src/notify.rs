//! How soon an arrival is told: from publishing in one process to the event in another, and to
//! `true` on the stream on which the scaler wakes KEDA.

use std::num::NonZeroUsize;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use ebb_proto::keda::IsActiveResponse;
use ebb_queue::{Delivery, Job, Queue, Timestamp};
use futures::StreamExt;
use futures::stream::BoxStream;
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;
use tonic::Streaming;

use crate::broker::{Bed, BrokerArgs, Place, PlaceArgs};
use crate::report::{Table, percentile, print, progress, rounded};
use crate::scaler::Scaler;

/// From publishing to the arrival event, and to `true` on the scaler's stream
///
/// Another process publishes; the event and the stream are heard in this one. Exits with 1 if an
/// arrival is not told within 5 s.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    broker: BrokerArgs,

    /// Jobs to publish, each into an empty queue; about a second each
    #[arg(long, env = "EBB_BENCH_SAMPLES", hide_env_values = true, value_name = "N")]
    #[arg(default_value_t = 50)]
    samples: usize,
}

/// Publishes a job for each line that comes in. Run by `notify` as a process of its own.
#[derive(Debug, clap::Args)]
pub(crate) struct PublisherArgs {
    #[command(flatten)]
    place: PlaceArgs,
}

#[derive(Debug, Serialize)]
struct Report {
    broker: String,
    samples: usize,
    publish_p50_ms: f64,
    publish_p99_ms: f64,
    event_p50_ms: f64,
    event_p99_ms: f64,
    stream_p50_ms: f64,
    stream_p99_ms: f64,
    missed: usize,
}

/// What was measured of one publication, in milliseconds from the moment it was asked for.
#[derive(Debug, Clone, Copy)]
struct Sample {
    publish: f64,
    event: Option<f64>,
    stream: Option<f64>,
}

/// An arrival that is not told by then is not told.
const LIMIT: Duration = Duration::from_secs(5);
/// What nothing is heard of for so long is quiet.
const QUIET: Duration = Duration::from_millis(50);
/// Between two jobs: the edge that wakes a pool is that of a queue where nothing has happened for a
/// while, and the scaler spaces its looks by up to half a second.
const IDLE: Duration = Duration::from_millis(600);
const LEASE: Duration = Duration::from_secs(30);

pub(crate) async fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    ensure!(args.samples > 0, "--samples is 1 or more");
    let bed = Bed::make(&args.broker).await?;
    let place = bed.place("notify", LEASE)?;
    let queue = place.open("observer").await?;
    let scaler = Scaler::start(&place.queue).await?;
    let mut bench = Bench {
        publisher: Publisher::start(&place)?,
        arrivals: queue.arrivals().await?,
        pushes: scaler.stream().await?,
        queue,
        scaler,
    };
    // Not counted: the publisher opens the queue with it.
    bench.sample().await?;
    let mut samples = Vec::with_capacity(args.samples);
    for n in 1..=args.samples {
        samples.push(bench.sample().await?);
        if n % 10 == 0 {
            progress(format_args!("{n} of {} samples", args.samples));
        }
    }
    bench.publisher.stop().await?;
    bench.scaler.stop().await?;
    let report = Report::of(bed.words(), &samples);
    print(json, &report.table(), &report)?;
    ensure!(report.missed == 0, "{} arrivals were not told within 5 s", report.missed);
    Ok(())
}

struct Bench {
    publisher: Publisher,
    arrivals: BoxStream<'static, ()>,
    pushes: Streaming<IsActiveResponse>,
    queue: Queue,
    scaler: Scaler,
}

impl Bench {
    /// Publishes one job into an empty queue, waits until both have told it, and takes it out.
    async fn sample(&mut self) -> anyhow::Result<Sample> {
        self.hush().await?;
        let start = Instant::now();
        let millis = || start.elapsed().as_secs_f64() * 1e3;
        let (publish, event, stream) = tokio::join!(
            async { self.publisher.publish().await.map(|()| millis()) },
            timeout(LIMIT, async {
                let told = arrived(&mut self.arrivals, &self.queue).await?;
                anyhow::Ok(told.duration_since(start).as_secs_f64() * 1e3)
            }),
            timeout(LIMIT, async { activated(&mut self.pushes).await.map(|()| millis()) }),
        );
        let sample = Sample {
            publish: publish?,
            event: event.ok().transpose()?,
            stream: stream.ok().transpose()?,
        };
        self.drain().await?;
        Ok(sample)
    }

    /// Lets everything that earlier jobs caused be said, so that the next word is the next edge.
    async fn hush(&mut self) -> anyhow::Result<()> {
        while timeout(QUIET, self.arrivals.next()).await.is_ok() {}
        while let Ok(push) = timeout(QUIET, self.pushes.message()).await {
            ensure!(push?.is_some(), "the scaler closed the stream");
        }
        Ok(())
    }

    /// Empties the queue and waits until the scaler has seen it.
    async fn drain(&self) -> anyhow::Result<()> {
        let deliveries = self.queue.receive(NonZeroUsize::MIN, LIMIT).await?;
        ensure!(!deliveries.is_empty(), "the job that was published is not there");
        let acks: Vec<_> = deliveries.into_iter().map(Delivery::ack).collect();
        self.queue.settle(&acks).await?;
        let limit = Instant::now() + Duration::from_secs(30);
        while self.scaler.is_active().await? {
            ensure!(Instant::now() < limit, "the scaler calls an empty queue active after 30 s");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(IDLE).await;
        Ok(())
    }
}

/// Waits for an arrival that is one, and says when it was told: there may be others without cause,
/// or before there is a job to be seen. The look that tells them apart is not in the time.
async fn arrived(arrivals: &mut BoxStream<'static, ()>, queue: &Queue) -> anyhow::Result<Instant> {
    while arrivals.next().await.is_some() {
        let told = Instant::now();
        if queue.depth().await?.ready > 0 {
            return Ok(told);
        }
    }
    bail!("the stream of arrivals ended")
}

/// Waits for `true`.
async fn activated(pushes: &mut Streaming<IsActiveResponse>) -> anyhow::Result<()> {
    while let Some(push) = pushes.message().await? {
        if push.result {
            return Ok(());
        }
    }
    bail!("the scaler closed the stream")
}

/// The process that publishes.
struct Publisher {
    child: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Publisher {
    fn start(place: &Place) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        place.name_to(&mut command);
        command.arg("publisher").kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start the publisher")?;
        let orders = child.stdin.take().context("the publisher has no input")?;
        let answers = child.stdout.take().context("the publisher has no output")?;
        Ok(Self { child, orders, answers: BufReader::new(answers).lines() })
    }

    /// Has one job published, and returns when it is.
    async fn publish(&mut self) -> anyhow::Result<()> {
        self.orders.write_all(b"\n").await?;
        let answer = self.answers.next_line().await?;
        answer.map(drop).context("the publisher ended; its words are above")
    }

    async fn stop(mut self) -> anyhow::Result<()> {
        drop(self.orders);
        let status = self.child.wait().await?;
        ensure!(status.success(), "the publisher ended with {status}");
        Ok(())
    }
}

/// Publishes a job for each line on the standard input, and says so with a line.
pub(crate) async fn publish(args: &PublisherArgs) -> anyhow::Result<()> {
    let queue = args.place.read()?.open("publisher").await?;
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    let mut out = tokio::io::stdout();
    while orders.next_line().await?.is_some() {
        queue.publish(vec![Job::new(r#"{"input": "wake up"}"#, Timestamp::now())]).await?;
        out.write_all(b"published\n").await?;
        out.flush().await?;
    }
    Ok(())
}

impl Report {
    fn of(broker: String, samples: &[Sample]) -> Self {
        let publish: Vec<f64> = samples.iter().map(|sample| sample.publish).collect();
        let event: Vec<f64> = samples.iter().filter_map(|sample| sample.event).collect();
        let stream: Vec<f64> = samples.iter().filter_map(|sample| sample.stream).collect();
        let at = |times: &[f64], share| rounded(percentile(times, share), 2);
        Self {
            broker,
            samples: samples.len(),
            publish_p50_ms: at(&publish, 0.5),
            publish_p99_ms: at(&publish, 0.99),
            event_p50_ms: at(&event, 0.5),
            event_p99_ms: at(&event, 0.99),
            stream_p50_ms: at(&stream, 0.5),
            stream_p99_ms: at(&stream, 0.99),
            missed: 2 * samples.len() - event.len() - stream.len(),
        }
    }

    fn table(&self) -> Table {
        let mut table = Table::new(["publish to", "p50 ms", "p99 ms"]);
        for (what, p50, p99) in [
            ("its own return", self.publish_p50_ms, self.publish_p99_ms),
            ("the event in another process", self.event_p50_ms, self.event_p99_ms),
            ("`true` on the scaler's stream", self.stream_p50_ms, self.stream_p99_ms),
        ] {
            table.row([what.to_owned(), format!("{p50:.2}"), format!("{p99:.2}")]);
        }
        table
    }
}
