//! `ebb result`: the answer to a job, now or as it comes.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use clap::builder::BoolishValueParser;
use ebb_queue::claim::lies_elsewhere;
use ebb_queue::{Failure, Frame, JobId, JobResult, JobState, Outcome, Queue};
use futures::StreamExt;
use serde_json::json;

use crate::exit::{Exit, missing, timeout, usage};
use crate::options::{QueueArgs, parse_span};
use crate::output::{Output, note, printable};
use crate::pieces::{Said, objects, plain};
use crate::results::{Awaited, ELSEWHERE, GONE, Line, dead_now, death, unless_denied};

/// Which result, and in which form.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct ResultArgs {
    /// The job's id, as `ebb enqueue` printed it
    id: JobId,

    /// Wait for the result, and print pieces of it as they come
    #[arg(long, env = "EBB_RESULT_FOLLOW", hide_env_values = true)]
    #[arg(value_parser = BoolishValueParser::new())]
    follow: bool,

    /// Print the body of the result alone, as it is
    #[arg(long, env = "EBB_RESULT_BODY", hide_env_values = true)]
    #[arg(value_parser = BoolishValueParser::new())]
    body: bool,

    /// With --follow: give up after this long (exit code 75)
    #[arg(long, env = "EBB_RESULT_TIMEOUT", hide_env_values = true, value_name = "SPAN")]
    #[arg(value_parser = parse_span, requires = "follow")]
    timeout: Option<Duration>,

    /// Where the queue is.
    #[command(flatten)]
    queue: QueueArgs,
}

/// What is shown of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    /// All that is known of it, as JSON.
    All,
    /// The answer alone.
    Body,
}

/// What is said before an answer whose pieces were printed, and are not all of it.
const VOID: &str = "the pieces before are void or not all of the answer, which is:";

/// What is said of a job that was cancelled.
const CANCELLED: &str = "cancelled: nobody wants its answer any more";

const HELP: &str = "\
The result is one JSON object: id, outcome (completed, failed or cancelled), attempt, finished_at,
queue (whose worker answered), and body, or error and its kind. A failed or cancelled job exits with
1, one without a result yet with 66: the command does not wait, unless --follow says so.

Where there is no result, what is known of the job is told, with --json as the field `state` of an
object: waiting, delayed, running, dead, done (and its result forgotten) or unknown. Where the
broker cannot tell, it is null: on RabbitMQ always, on NATS but for dead letters and what plain
clients published, and on Redis in place of unknown while something of plain clients is unread.

With --follow, pieces of the body are printed as they come, of a chat or a completion their text.
When an attempt fails midway and the next one begins anew, a line on standard error says so, and
where the pieces were not all of the answer the body follows; with --json each piece is an object
with its attempt, and pieces of other attempts than that of the result are void. With --body no
piece is printed.

Examples:
  ebb result 0199c0de-7aa1-7bd2-9f3a-1f2e3d4c5b6a
  ebb result 0199c0de-7aa1-7bd2-9f3a-1f2e3d4c5b6a --body | jq .
  ebb result 0199c0de-7aa1-7bd2-9f3a-1f2e3d4c5b6a --follow --timeout 30s";

/// Runs the command.
///
/// # Errors
/// When there is no result, or the queue does not answer.
pub(crate) async fn run(args: ResultArgs, output: Output) -> Result<Exit> {
    let queue = args.queue.find().await?;
    let shown = if args.body { Shown::Body } else { Shown::All };
    if !args.follow {
        let result = match queue.get(&args.id).await? {
            None => unless_denied(dead_now(&queue, &args.id).await)?,
            found => found,
        };
        return match result {
            Some(result) => show(&result, shown, output),
            None => no_result(&queue, &args.id, shown, output).await,
        };
    }
    let job = Awaited::known_by_id(args.id);
    follow(&queue, &job, args.timeout, (shown, output)).await
}

/// Prints pieces of a result as they come, and its end.
///
/// # Errors
/// When none can come, or not in time, or the queue does not answer.
pub(super) async fn follow(
    queue: &Queue,
    job: &Awaited,
    limit: Option<Duration>,
    how: (Shown, Output),
) -> Result<Exit> {
    let limit = limit.unwrap_or(Duration::MAX);
    match tokio::time::timeout(limit, follow_on(queue, job, how)).await {
        Ok(exit) => exit,
        Err(_) => {
            let id = &job.id;
            let words =
                format!("no result for {id} in time; it may still come: `ebb result {id}` asks");
            Err(timeout(words))
        }
    }
}

/// Says what is known of a job that has no result.
async fn no_result(queue: &Queue, id: &JobId, shown: Shown, output: Output) -> Result<Exit> {
    let state = unless_denied(queue.state(id).await)?;
    // It may have been done a moment ago.
    if state == Some(JobState::Done)
        && let Some(result) = queue.get(id).await?
    {
        return show(&result, shown, output);
    }
    let words = words_of(id, state);
    if output.json {
        output.json(&json!({ "id": id, "state": state, "error": words }))?;
    }
    Err(missing(words))
}

fn words_of(id: &JobId, state: Option<JobState>) -> String {
    let not_yet = |why: &str| format!("no result for {id} yet{why}; wait for it with --follow");
    match state {
        None => not_yet(""),
        Some(JobState::Waiting) => not_yet(": it is waiting for a worker"),
        Some(JobState::Delayed) => not_yet(": it is delayed"),
        Some(JobState::Running) => not_yet(": it is running"),
        Some(JobState::Dead) => format!("no result for {id}: it is dead; see ebb dlq show {id}"),
        Some(JobState::Done) => {
            format!("no result for {id} any more: it is done, and its result forgotten")
        }
        Some(JobState::Unknown) => format!(
            "{id} is unknown: it was never published here, was purged, or was done long ago"
        ),
    }
}

async fn follow_on(
    queue: &Queue,
    Awaited { id, expiry, .. }: &Awaited,
    (shown, output): (Shown, Output),
) -> Result<Exit> {
    let mut frames = queue.follow(id, 0).await?;
    let mut dead = std::pin::pin!(death(queue, id, *expiry));
    let mut said = Said::default();
    loop {
        let frame = tokio::select! {
            biased;
            frame = frames.next() => frame,
            result = &mut dead => Some(Ok(Frame::Final(result))),
        };
        let Some(frame) = frame else { break };
        match frame? {
            Frame::Chunk { .. } if shown == Shown::Body => {}
            Frame::Chunk { attempt, seq, body } if output.json => {
                for body in objects(&body).unwrap_or_else(|| vec![plain(&body)]) {
                    output.json(&json!({ "attempt": attempt, "seq": seq, "body": body }))?;
                }
            }
            Frame::Chunk { attempt, body, .. } => {
                let (spoken, begins_anew) = said.add(attempt, &body);
                if begins_anew {
                    note(format!("\nattempt {attempt} begins anew; what came before is void"));
                }
                output.bytes(&spoken)?;
            }
            Frame::Final(result) if !said.is_nothing() => {
                output.line("")?;
                return end_of(&said, &result, output);
            }
            Frame::Final(result) => return show(&result, shown, output),
        }
    }
    Err(missing(format!("{id} {GONE}")))
}

/// Prints what there is to say of a result whose pieces were printed: nothing if they are all of it.
fn end_of(said: &Said, result: &JobResult, output: Output) -> Result<Exit> {
    match &result.outcome {
        Outcome::Failed(failure) => note(error_words(failure)),
        Outcome::Cancelled => note(CANCELLED),
        // Its pieces are here, and their attempt is all that there is to compare.
        Outcome::Completed { .. } if lies_elsewhere(result) => {
            if !said.is_of(result.attempt) {
                note(VOID);
                return show(result, Shown::Body, output);
            }
        }
        Outcome::Completed { body, .. } if said.is_all_of(result.attempt, body) => {}
        Outcome::Completed { body, .. } => {
            note(VOID);
            output.bytes(body)?;
            output.line("")?;
        }
    }
    Ok(exit_of(result))
}

fn show(result: &JobResult, shown: Shown, output: Output) -> Result<Exit> {
    if lies_elsewhere(result) {
        return Err(usage(format!("{}: {ELSEWHERE}", result.id)));
    }
    match &result.outcome {
        Outcome::Completed { body, .. } if shown == Shown::Body => output.bytes(body)?,
        Outcome::Failed(failure) if shown == Shown::Body => {
            note(error_words(failure));
        }
        Outcome::Cancelled if shown == Shown::Body => note(CANCELLED),
        _ => output.json(&Line::of(result))?,
    }
    Ok(exit_of(result))
}

/// A reason may quote what a producer wrote.
fn error_words(failure: &Failure) -> String {
    format!("error: {}", printable(&failure.reason))
}

fn exit_of(result: &JobResult) -> Exit {
    if result.outcome.is_completed() { Exit::Done } else { Exit::Failed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown_and_not_done() {
        let failure = Failure::invalid("text: \u{1b}]0;title\u{7}is no number");
        let words = r"error: text: \u{1b}]0;title\u{7}is no number";
        assert_eq!(error_words(&failure), words);
    }
}
