//! `ebb queue`: makes a queue, tells how its broker is set, looks at it, and empties it.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Subcommand;
use ebb_queue::{Depth, Info, Queue, QueueUrl, WorkerStatus};
use futures::StreamExt;
use serde_json::json;

use crate::exit::{Exit, usage};
use crate::options::QueueArgs;
use crate::output::{Output, Progress, Unit, grouped, note, seconds, shortened, span, table};

/// What to look at.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Count the jobs that are ready, in flight, delayed and dead
    #[command(after_help = DEPTH_HELP)]
    Depth {
        /// Where the queue is.
        #[command(flatten)]
        queue: QueueArgs,
    },
    /// Make the queue on its broker, or check that it is as it should be
    #[command(after_help = INIT_HELP)]
    Init {
        /// Where the queue is.
        #[command(flatten)]
        queue: QueueArgs,
    },
    /// Tell what the broker is, how it is set, and what it cannot promise
    #[command(after_help = INFO_HELP)]
    Info {
        /// Where the queue is.
        #[command(flatten)]
        queue: QueueArgs,
    },
    /// List the workers that reported within the last seconds
    #[command(after_help = WORKERS_HELP)]
    Workers {
        /// Where the queue is.
        #[command(flatten)]
        queue: QueueArgs,
    },
    /// Delete the jobs that are ready or delayed; what runs and the dead letters stay
    #[command(after_help = PURGE_HELP)]
    Purge {
        /// Really delete them; there is no way back
        #[arg(long)]
        yes: bool,
        /// Where the queue is.
        #[command(flatten)]
        queue: QueueArgs,
    },
}

/// How a queue is named, on each broker.
pub(crate) const URLS: &str = "\
Where a queue is (--queue, --results, EBB_QUEUE, EBB_RESULTS):
  sqlite:PATH                                   the embedded queue, a file on a local disk
  nats://[USER:PASSWORD@|TOKEN@]HOST[:4222]     NATS JetStream; tls:// with TLS
  amqp://[USER:PASSWORD@]HOST[:5672][/VHOST]    RabbitMQ; amqps:// with TLS; needs --results
  redis://[[USER]:PASSWORD@]HOST[:6379][/DB]    Redis 7.0, Valkey; rediss:// with TLS
  Several hosts of one broker are separated by commas. Encode odd characters as %XX.

Options, after a ? and joined by &:
  queue=NAME            which queue [default: jobs]
  lease=30s             how long a job is held without a sign of life [30s]
  result_ttl=1d         how long answers are kept; no less than lease [1d]
  key_ttl=1d            how long the id and ebb-key of a job that is done are known; no less
                        than result_ttl [1d, or result_ttl where that is longer]
  dead_ttl=SPAN         how long dead letters are kept; workers delete older ones [for ever]
  max_ready=N           jobs that may wait before the queue is full [no limit]
  synchronous=full|normal        sqlite: what a commit waits for [full]
  replicas=1|3|5                 nats: servers that keep each stream that is created [1]
  creds=FILE, nkey=FILE          nats: who we are, in place of a password
  heartbeat=10s                  amqp: after how long a silent peer is taken for gone [10s]
  password_file=FILE             the password or token, read at each connect
  tls_ca=FILE                    the authorities that we trust, PEM [the system's]
  tls_cert=FILE, tls_key=FILE    our certificate and its key, PEM, where the server asks for them";

const DEPTH_HELP: &str = "\
What is counted:
  ready       could be run now
  in flight   held by a worker under a live lease
  delayed     will be ready later: published with a delay, or waiting to be retried
  dead        failed for good; see `ebb dlq`

Examples:
  ebb queue depth
  ebb queue depth --json --queue sqlite:/data/queue.db?queue=embeddings";

const WORKERS_HELP: &str = "\
Examples:
  ebb queue workers
  watch -n1 ebb queue workers";

const INIT_HELP: &str = "\
Does nothing where all is as it should be, and says what differs where it is not. Workers and
scalers make their queues themselves unless they run with --no-create.

Examples:
  ebb queue init --queue 'nats://broker:4222?queue=embeddings&replicas=3'
  ebb queue init --queue 'amqp://ebb@rabbit/jobs?password_file=/run/secrets/rabbit'";

const INFO_HELP: &str = "\
Creates nothing. A warning is a setting that is weaker than what Ebb promises; a limit is what this
kind of broker cannot promise however it is set.

Examples:
  ebb queue info --queue redis://broker:6379
  ebb queue info --json | jq -r '.warnings[].code'";

const PURGE_HELP: &str = "\
A job that is deleted leaves nothing behind: its id and ebb-key are unknown at once, no result is
stored and no reply is sent. Who waits for its result is told that none will come, but on RabbitMQ;
on NATS who waits for many jobs is told of the one whose turn it is. What workers hold goes on, and
what is enqueued meanwhile may stay. For dead letters there is `ebb dlq purge`. With --payloads the
large bodies of the jobs are deleted as well, but on RabbitMQ.

Examples:
  ebb queue depth
  ebb queue purge --yes
  ebb queue purge --yes --json --queue nats://broker?queue=embeddings";

/// Runs the command.
///
/// # Errors
/// When the queue does not answer.
pub(crate) async fn run(command: Command, output: Output) -> Result<Exit> {
    match command {
        Command::Depth { queue } => {
            let depth = queue.find().await?.depth().await?;
            if output.json { output.json(&depth)? } else { output.line(depth_words(&depth))? }
        }
        Command::Init { queue } => {
            let url = queue.url()?;
            let info = queue.open().await?.info().await?;
            warn_of(&info);
            if output.json {
                output.json(&Told { queue: url.to_string(), info: &info })?;
            } else {
                output.line(format!("queue {} is ready on {}", url.queue, info.version))?;
            }
        }
        Command::Info { queue } => {
            let url = queue.url()?;
            let info = queue.find().await?.info().await?;
            if output.json {
                output.json(&Told { queue: url.to_string(), info: &info })?;
            } else {
                output.line(info_words(&url, &info))?;
            }
        }
        Command::Workers { queue } => {
            let workers = queue.find().await?.workers().await?;
            match workers.as_slice() {
                workers if output.json => output.json(&workers)?,
                [] => output.line("no worker has reported within the last seconds")?,
                workers => output.line(workers_table(workers))?,
            }
        }
        Command::Purge { queue, yes } => {
            if !yes {
                return Err(usage("purge deletes jobs for good; add --yes if you mean it"));
            }
            purge(&queue.find().await?, output).await?;
        }
    }
    Ok(Exit::Done)
}

async fn purge(queue: &Queue, output: Output) -> Result<()> {
    let before = queue.depth().await?;
    let mut progress = Progress::new("purge", Some(before.ready + before.delayed), Unit::Items);
    let (mut steps, mut n_purged) = (queue.purge_waiting().await?, 0);
    while let Some(step) = steps.next().await {
        let step =
            step.with_context(|| format!("{} were deleted, the rest stays", grouped(n_purged)))?;
        n_purged += step.n_jobs;
        progress.add(step.n_jobs);
    }
    progress.end();
    // What was deleted is gone, whatever becomes of this look.
    let left = match queue.depth().await {
        Ok(depth) => Some(depth),
        Err(error) => {
            note(format!("what is left is not known: {error}"));
            None
        }
    };
    output.line(purged_words(output.json, n_purged, left.as_ref()))
}

/// How many jobs were deleted, and what is left, where that is known.
fn purged_words(json: bool, n_purged: u64, left: Option<&Depth>) -> String {
    if json {
        let of = |count: fn(&Depth) -> u64| left.map(count);
        let told = json!({
            "purged": n_purged, "ready": of(|depth| depth.ready),
            "in_flight": of(|depth| depth.in_flight), "delayed": of(|depth| depth.delayed),
            "dead": of(|depth| depth.dead),
        });
        return told.to_string();
    }
    let deleted = format!("{} deleted", grouped(n_purged));
    let Some(Depth { ready, in_flight, delayed, dead, .. }) = left else { return deleted };
    let [ready, in_flight, delayed, dead] = [*ready, *in_flight, *delayed, *dead].map(grouped);
    format!("{deleted}; now {ready} ready, {in_flight} in flight, {delayed} delayed, {dead} dead")
}

/// What `init` and `info` print with --json.
#[derive(serde::Serialize)]
struct Told<'a> {
    queue: String,
    #[serde(flatten)]
    info: &'a Info,
}

fn warn_of(info: &Info) {
    info.warnings.iter().for_each(|warning| note(format!("warning: {}", warning.text)));
}

fn info_words(url: &QueueUrl, info: &Info) -> String {
    let mut lines = vec![
        format!("queue     {}", url.queue),
        format!("broker    {}", info.version),
        format!("max body  {}", info.max_body.map_or("no limit".to_owned(), bytes)),
        format!("dead ttl  {}", url.behavior.dead_ttl.map_or("for ever".to_owned(), kept)),
    ];
    lines.extend(info.warnings.iter().map(|one| format!("warning   {}: {}", one.code, one.text)));
    lines.extend(
        info.limits.iter().map(|one| format!("limit     {}: {}", one.promise, one.instead)),
    );
    lines.join("\n")
}

/// `30 d`, `12 h`, or as any other span where it is no whole number of these.
fn kept(ttl: Duration) -> String {
    match ttl.as_secs() {
        s if ttl.subsec_nanos() > 0 || s % 3600 > 0 || s == 0 => span(ttl),
        s if s % 86_400 > 0 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86_400),
    }
}

/// `1 MiB`, or `1,000,000 bytes` where no unit fits.
fn bytes(n: u64) -> String {
    match n {
        n if n > 0 && n % (1 << 20) == 0 => format!("{} MiB", grouped(n >> 20)),
        n if n > 0 && n % (1 << 10) == 0 => format!("{} KiB", grouped(n >> 10)),
        n => format!("{} bytes", grouped(n)),
    }
}

fn depth_words(depth: &Depth) -> String {
    let mut lines = vec![
        format!("ready      {}", grouped(depth.ready)),
        format!("in flight  {}", grouped(depth.in_flight)),
        format!("delayed    {}", grouped(depth.delayed)),
        format!("dead       {}", grouped(depth.dead)),
    ];
    if let Some(age) = depth.oldest_age() {
        lines.push(format!("oldest     {}", span(age)));
    }
    if let Some(cost) = depth.cost.filter(|cost| *cost > 0.0) {
        lines.push(format!("cost       {cost}"));
    }
    lines.join("\n")
}

fn workers_table(workers: &[WorkerStatus]) -> String {
    let row = |worker: &WorkerStatus| {
        let started: f64 = worker.cold_start.iter().map(|(_, took)| took).sum();
        [
            shortened(&worker.id, usize::MAX),
            format!("{:?}", worker.phase).to_lowercase(),
            grouped(worker.in_flight),
            grouped(worker.slots),
            grouped(worker.completed),
            grouped(worker.failed),
            seconds(started),
            shortened(&worker.model, usize::MAX),
        ]
    };
    let headings =
        ["worker", "phase", "in flight", "slots", "completed", "failed", "cold start", "model"];
    table(headings, &workers.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use ebb_queue::{Phase, Timestamp};

    use super::*;

    #[test]
    fn a_depth_reads_well() {
        let now = Timestamp::UNIX_EPOCH + std::time::Duration::from_secs(100);
        let mut depth = Depth::empty(now);
        insta::assert_snapshot!(depth_words(&depth), @r"
        ready      0
        in flight  0
        delayed    0
        dead       0
        ");
        depth.ready = 1234;
        depth.oldest_ready = Some(now - std::time::Duration::from_millis(3200));
        depth.cost = Some(4096.0);
        insta::assert_snapshot!(depth_words(&depth), @r"
        ready      1,234
        in flight  0
        delayed    0
        dead       0
        oldest     3.2 s
        cost       4096
        ");
    }

    #[test]
    fn what_was_deleted_is_told_though_nobody_knows_what_is_left() {
        let left = Depth { ready: 1000, dead: 2, ..Depth::empty(Timestamp::UNIX_EPOCH) };
        insta::assert_snapshot!(purged_words(false, 7, Some(&left)), @"7 deleted; now 1,000 ready, 0 in flight, 0 delayed, 2 dead");
        insta::assert_snapshot!(purged_words(false, 7, None), @"7 deleted");
        insta::assert_snapshot!(purged_words(true, 7, Some(&left)), @r#"{"dead":2,"delayed":0,"in_flight":0,"purged":7,"ready":1000}"#);
        insta::assert_snapshot!(purged_words(true, 7, None), @r#"{"dead":null,"delayed":null,"in_flight":null,"purged":7,"ready":null}"#);
    }

    #[test]
    fn what_a_broker_tells_reads_well() {
        let warning = ebb_queue::Warning { code: "power_loss", text: "set appendfsync".into() };
        let info = Info {
            broker: "redis",
            version: "Redis 7.0.15".into(),
            max_body: Some(512 << 20),
            warnings: vec![warning],
            limits: &[ebb_queue::Limit { promise: "failover", instead: "copies lag behind" }],
        };
        let url = "redis://me:secret@host".parse().unwrap();
        insta::assert_snapshot!(info_words(&url, &info), @r"
        queue     jobs
        broker    Redis 7.0.15
        max body  512 MiB
        dead ttl  for ever
        warning   power_loss: set appendfsync
        limit     failover: copies lag behind
        ");
        let spans = [30 * 86_400, 5400, 7200].map(|seconds| kept(Duration::from_secs(seconds)));
        assert_eq!(spans, ["30 d", "90 min 0 s", "2 h"]);
        assert_eq!([1 << 10, 1000, 0].map(bytes), ["1 KiB", "1,000 bytes", "0 bytes"]);
    }

    #[test]
    fn workers_are_listed_one_a_line() {
        let worker = WorkerStatus {
            id: "local-1".into(),
            pod: "host".into(),
            phase: Phase::Busy,
            in_flight: 64,
            slots: 128,
            completed: 1200,
            failed: 1,
            batch_time: None,
            cold_start: vec![("process".into(), 0.1), ("weights".into(), 0.2)],
            first_result: None,
            model: "ec\u{1b}[2J".into(),
            at: Timestamp::UNIX_EPOCH,
        };
        // What a worker says of itself is for people, and not for their terminal.
        insta::assert_snapshot!(workers_table(&[worker]), @r"
        worker   phase  in flight  slots  completed  failed  cold start  model
        local-1  busy          64    128      1,200       1  300 ms      ec [2J
        ");
    }
}
