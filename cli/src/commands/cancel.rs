//! `ebb cancel`: jobs whose answers nobody wants any more.

use anyhow::Result;
use clap::Args;
use ebb_queue::{Cancelled, JobId};
use serde_json::json;

use crate::exit::{Exit, missing};
use crate::options::QueueArgs;
use crate::output::{Output, Reader, note};

/// Which jobs.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct CancelArgs {
    /// The jobs' ids, as `ebb enqueue` printed them
    #[arg(required = true, value_name = "ID")]
    ids: Vec<JobId>,

    /// Where the queue is.
    #[command(flatten)]
    queue: QueueArgs,
}

const HELP: &str = "\
A job that waits is not run any more, whoever receives next; one that runs is stopped within about
a second where its model takes turns, as a generator does, and else runs to its end for nothing. Its
result is that it was cancelled: `ebb result` says so and exits with 1, who follows it is told, and
a reply is sent where the job asked for one. It is no dead letter. Id and key stay known as those of
a job that was done. A job that has ended stays as it is.

Each line tells what became of a job, with --json as its `state`: waiting or running (where it was),
marked (it waits or runs, and the broker cannot tell which), ended (before: nothing was changed), or
unknown (exit code 66). When nobody reads the lines any more, as behind `| head`, the other jobs are
cancelled all the same. On NATS a job is marked that was published more than two minutes ago and not
tried since, also where there is none of that id; on RabbitMQ all are, and it takes --results.

Examples:
  ebb cancel 0199c0de-7aa1-7bd2-9f3a-1f2e3d4c5b6a
  ebb cancel job-1 job-2 job-3 --json";

/// Runs the command.
///
/// # Errors
/// When the queue does not answer, or does not know one of the jobs.
pub(crate) async fn run(args: CancelArgs, output: Output) -> Result<Exit> {
    args.queue.check_answers()?;
    let queue = args.queue.find().await?;
    let (mut unknown, mut failed) = (Vec::new(), None);
    // Who reads no more has asked for the others to be cancelled all the same.
    let mut reader = Reader::default();
    for id in &args.ids {
        let cancelled = match queue.cancel(id).await {
            Ok(cancelled) => cancelled,
            Err(error) => {
                // The others are no worse for it.
                note(format!("{id} could not be cancelled: {error}"));
                failed.get_or_insert(error);
                continue;
            }
        };
        reader.print(|| {
            if output.json {
                output.json(&json!({ "id": id, "state": cancelled }))
            } else {
                output.line(words_of(id, cancelled))
            }
        })?;
        if cancelled == Cancelled::Unknown {
            unknown.push(id.as_str());
        }
    }
    if let Some(error) = failed {
        return Err(error.into());
    }
    match &unknown[..] {
        [] => Ok(Exit::Done),
        ids => Err(missing(format!("not known here: {}", ids.join(", ")))),
    }
}

fn words_of(id: &JobId, cancelled: Cancelled) -> String {
    match cancelled {
        Cancelled::Waiting => format!("{id} is cancelled; it was waiting"),
        Cancelled::Running => format!("{id} is cancelled; its worker is told to stop"),
        Cancelled::Marked => format!("{id} is cancelled; whoever comes to it drops it"),
        Cancelled::Ended => format!("{id} had ended before; nothing was changed"),
        Cancelled::Unknown => format!("{id} is unknown; nothing was changed"),
    }
}
