//! `ebb split`: passes jobs on by weight, or compares the versions that they go to.

use anyhow::Result;
use clap::{Args, Subcommand};
use ebb_queue::{Depth, Missing, Phase, QueueUrl, WorkerStatus};
use ebb_split::SplitArgs;
use ebb_telemetry::Stop;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::exit::{Exit, of_service, usage};
use crate::options::{QueueArgs, default_queue};
use crate::output::{Output, grouped, seconds, table};

/// The split, or a question about its versions.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, after_help = SPLIT_HELP)]
pub(crate) struct SplitCommand {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    split: SplitArgs,
}

/// What can be asked.
#[derive(Debug, Subcommand)]
enum Command {
    /// Put versions side by side: what waits, what their workers have done, and how long it takes
    #[command(after_help = HELP)]
    Compare(CompareArgs),
}

/// What to compare.
#[derive(Debug, Args)]
struct CompareArgs {
    /// The queues of the versions, on the broker of --queue
    #[arg(value_name = "QUEUE", required = true)]
    versions: Vec<String>,

    /// Where the queues are; the queue that it names itself does not matter.
    #[command(flatten)]
    queue: QueueArgs,
}

const HELP: &str = "\
Completed and failed count since the start of the workers that report now, dead letters since they
were last purged. Seconds per job are those of the device, batches considered, as the workers have
fitted them; for latencies and for what was, see the metrics of the workers by version.

Example:
  ebb split compare jobs-stable jobs-canary --queue nats://broker";

const SPLIT_HELP: &str = "\
Examples:
  ebb split --to jobs-stable=95,jobs-canary=5
  ebb split --queue nats://broker --weights weights.toml --by tenant
  ebb split compare jobs-stable jobs-canary --queue nats://broker";

impl SplitCommand {
    /// Whether it runs until it is told to stop.
    pub(crate) fn serves(&self) -> bool {
        self.command.is_none()
    }
}

/// Runs the command.
///
/// # Errors
/// When a flag is wrong, a port cannot be had, or the broker does not answer.
pub(crate) async fn run(command: SplitCommand, output: Output) -> Result<Exit> {
    match command.command {
        None => serve(command.split).await,
        Some(Command::Compare(args)) => compare(args, output).await,
    }
}

async fn serve(mut split: SplitArgs) -> Result<Exit> {
    if split.queue.is_none() {
        split.queue = Some((&default_queue()?).into());
    }
    let stop = CancellationToken::new();
    tokio::spawn(Stop::listen()?.cancel(stop.clone()));
    ebb_split::run(split, stop).await.map_err(of_service)?;
    Ok(Exit::Done)
}

/// One version, as it is now.
#[derive(Debug, PartialEq, Serialize)]
struct Row {
    queue: String,
    ready: u64,
    in_flight: u64,
    dead: u64,
    workers: u64,
    completed: u64,
    failed: u64,
    /// Of the jobs that ended, those that failed; none where none ended.
    failed_ratio: Option<f64>,
    seconds_per_job: Option<f64>,
    models: Vec<String>,
}

async fn compare(args: CompareArgs, output: Output) -> Result<Exit> {
    let url = args.queue.url()?;
    let mut rows = Vec::new();
    for name in &args.versions {
        rows.push(look(&args.queue, &url, name).await?);
    }
    if output.json {
        output.json(&rows)?;
        return Ok(Exit::Done);
    }
    let cells: Vec<_> = rows.iter().map(Row::cells).collect();
    let headings = [
        "queue",
        "ready",
        "in flight",
        "dead",
        "workers",
        "completed",
        "failed",
        "failed ratio",
        "a job",
        "model",
    ];
    output.line(table(headings, &cells))?;
    Ok(Exit::Done)
}

async fn look(args: &QueueArgs, url: &QueueUrl, name: &str) -> Result<Row> {
    let url = url.with_queue(name).map_err(|error| usage(error.to_string()))?;
    let queue = args.open_at(&url, Missing::Refuse).await?;
    Ok(Row::new(name, &queue.depth().await?, &queue.workers().await?))
}

impl Row {
    fn new(name: &str, depth: &Depth, workers: &[WorkerStatus]) -> Self {
        let completed: u64 = workers.iter().map(|worker| worker.completed).sum();
        let failed: u64 = workers.iter().map(|worker| worker.failed).sum();
        let ended = completed + failed;
        let fitted = workers.iter().filter_map(|worker| worker.batch_time);
        let seconds: Vec<f64> = fitted.map(|time| time.per_job).collect();
        let mean = seconds.iter().sum::<f64>() / seconds.len() as f64;
        let mut models: Vec<String> = workers.iter().map(|worker| worker.model.clone()).collect();
        models.sort();
        models.dedup();
        let at_work = workers.iter().filter(|worker| worker.phase != Phase::Draining);
        Self {
            queue: name.to_owned(),
            ready: depth.ready,
            in_flight: depth.in_flight,
            dead: depth.dead,
            workers: at_work.count() as u64,
            completed,
            failed,
            failed_ratio: (ended > 0).then(|| failed as f64 / ended as f64),
            seconds_per_job: (!seconds.is_empty()).then_some(mean),
            models,
        }
    }

    fn cells(&self) -> [String; 10] {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let counts = [self.ready, self.in_flight, self.dead, self.workers, self.completed];
        let [ready, in_flight, dead, workers, completed] = counts.map(grouped);
        let ratio = self.failed_ratio.map(|ratio| format!("{:.1} %", ratio * 100.0));
        [
            self.queue.clone(),
            ready,
            in_flight,
            dead,
            workers,
            completed,
            grouped(self.failed),
            or_dash(ratio),
            seconds(self.seconds_per_job),
            or_dash(Some(self.models.join(", ")).filter(|models| !models.is_empty())),
        ]
    }
}

#[cfg(test)]
mod tests {
    use ebb_queue::{BatchTime, Timestamp};

    use super::*;

    fn worker(completed: u64, failed: u64, per_job: Option<f64>) -> WorkerStatus {
        WorkerStatus {
            id: "w".into(),
            pod: "p".into(),
            phase: Phase::Busy,
            in_flight: 1,
            slots: 8,
            completed,
            failed,
            batch_time: per_job.map(|per_job| BatchTime { base: 0.0, per_cost: 0.0, per_job }),
            cold_start: Vec::new(),
            first_result: None,
            model: "echo on cpu".into(),
            at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_version_is_the_sum_of_its_workers() {
        let depth = Depth { ready: 1200, dead: 3, ..Depth::empty(Timestamp::UNIX_EPOCH) };
        let workers = [worker(90, 10, Some(0.25)), worker(100, 0, Some(0.75)), worker(0, 0, None)];
        let row = Row::new("jobs-canary", &depth, &workers);
        assert_eq!((row.workers, row.completed, row.failed), (3, 190, 10));
        let cells = row.cells();
        let expected = ["jobs-canary", "1,200", "0", "3", "3", "190", "10", "5.0 %", "500 ms"];
        assert_eq!(&cells[..9], expected);
        let none = Row::new("jobs-new", &Depth::empty(Timestamp::UNIX_EPOCH), &[]);
        assert_eq!(&none.cells()[6..], ["0", "-", "-", "-"]);
    }
}
