//! `ebb queue depth` and `ebb queue workers`: a look at the queue, touching nothing.

use anyhow::Result;
use clap::Subcommand;
use ebb_queue::{Depth, WorkerStatus};

use crate::exit::Exit;
use crate::options::QueueArgs;
use crate::output::{Output, grouped, span, table};

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
    /// List the workers that reported within the last seconds
    #[command(after_help = WORKERS_HELP)]
    Workers {
        /// Where the queue is.
        #[command(flatten)]
        queue: QueueArgs,
    },
}

const DEPTH_HELP: &str = "\
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

/// Runs the command.
///
/// # Errors
/// When the queue does not answer.
pub(crate) async fn run(command: Command, output: Output) -> Result<Exit> {
    match command {
        Command::Depth { queue } => {
            let depth = queue.open().await?.depth().await?;
            if output.json { output.json(&depth)? } else { output.line(depth_words(&depth))? }
        }
        Command::Workers { queue } => {
            let workers = queue.open().await?.workers().await?;
            match workers.as_slice() {
                workers if output.json => output.json(&workers)?,
                [] => output.line("no worker has reported within the last seconds")?,
                workers => output.line(workers_table(workers))?,
            }
        }
    }
    Ok(Exit::Done)
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
        let started: f64 = worker.cold_start.iter().map(|(_, seconds)| seconds).sum();
        [
            worker.id.clone(),
            format!("{:?}", worker.phase).to_lowercase(),
            grouped(worker.in_flight),
            grouped(worker.slots),
            grouped(worker.completed),
            grouped(worker.failed),
            format!("{started:.1}"),
            worker.model.clone(),
        ]
    };
    let headings =
        ["worker", "phase", "in flight", "slots", "completed", "failed", "cold start s", "model"];
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
            model: "echo".into(),
            at: Timestamp::UNIX_EPOCH,
        };
        insta::assert_snapshot!(workers_table(&[worker]), @r"
        worker   phase  in flight  slots  completed  failed  cold start s  model
        local-1  busy          64    128      1,200       1           0.3  echo
        ");
    }
}
