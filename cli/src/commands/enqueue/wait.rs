//! `--wait`: the results in the order of the jobs, until all are there or somebody has enough.

use std::time::Duration;

use anyhow::Result;
use ebb_queue::claim::lies_elsewhere;
use ebb_queue::{JobId, Phase, Queue};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::LONG;
use super::publish::Target;
use crate::exit::{Exit, interrupted};
use crate::output::{Output, Progress, Unit, note};
use crate::results::{Answer, Awaited, Line, answer_of, answers_now};

/// How long a worker may stay away before we say so.
const NOBODY: Duration = Duration::from_secs(5);

/// Prints the results in the order of the jobs.
pub(super) async fn wait(
    target: Target<'_>,
    jobs: &[Awaited],
    limit: Option<Duration>,
    stop: &CancellationToken,
    output: Output,
) -> Result<Exit> {
    let end = limit.map(|limit| Instant::now() + limit);
    let mut progress = (jobs.len() >= LONG)
        .then(|| Progress::new("results", Some(jobs.len() as u64), Unit::Items));
    let queue = target.queue;
    let hint = hint_at_nobody(target);
    let mut exit = Exit::Done;
    for (nth, job) in jobs.iter().enumerate() {
        let answer = tokio::select! {
            answer = answer_until(queue, job, end) => answer,
            () = stop.cancelled() => {
                Err(interrupted("interrupted; the jobs stay, `ebb result ID` asks"))
            }
        };
        let Ok(Some(answer)) = answer else {
            let rest = tell_rest(queue, &jobs[nth..], output).await;
            // Whatever became of these lines, the end is that of the wait.
            answer?;
            exit = match rest? {
                Exit::Timeout => Exit::Timeout,
                rest => exit.or(rest),
            };
            break;
        };
        exit = exit.or(exit_of(&answer));
        output.json(&line_of(&job.id, &answer))?;
        if let Some(progress) = &mut progress {
            progress.add(1);
        }
    }
    hint.inspect(JoinHandle::abort);
    progress.into_iter().for_each(Progress::end);
    Ok(exit)
}

/// Prints each job as it stands: what became of it if that is known, else that it is open, which is a
/// timeout. The jobs are there all the same, and who knows their ids can ask again.
pub(super) async fn tell_rest(queue: &Queue, jobs: &[Awaited], output: Output) -> Result<Exit> {
    let mut exit = Exit::Done;
    for (job, answer) in jobs.iter().zip(answers_now(queue, jobs).await) {
        match answer {
            Some(answer) => {
                exit = exit.or(exit_of(&answer));
                output.json(&line_of(&job.id, &answer))?;
            }
            None => {
                exit = Exit::Timeout;
                output.json(&Line::waiting(&job.id))?;
            }
        }
    }
    Ok(exit)
}

fn line_of<'a>(id: &'a JobId, answer: &'a Answer) -> Line<'a> {
    match answer {
        Answer::Result(result) => Line::of(result),
        Answer::Gone(why) => Line::gone(id, why),
    }
}

fn exit_of(answer: &Answer) -> Exit {
    match answer {
        Answer::Result(result) if lies_elsewhere(result) => Exit::Usage,
        Answer::Result(result) if result.outcome.is_completed() => Exit::Done,
        Answer::Result(_) | Answer::Gone(_) => Exit::Failed,
    }
}

async fn answer_until(
    queue: &Queue,
    job: &Awaited,
    end: Option<Instant>,
) -> Result<Option<Answer>> {
    match end {
        Some(end) => timeout_at(end, answer_of(queue, job)).await.ok().transpose(),
        None => answer_of(queue, job).await.map(Some),
    }
}

/// Says after a while that nobody works, if so. With a split nobody works here.
pub(super) fn hint_at_nobody(target: Target<'_>) -> Option<JoinHandle<()>> {
    let (queue, name) = (target.queue.clone(), target.name.to_owned());
    let hint = target.spread.is_none().then(|| say_when_nobody_works(queue, name));
    hint.map(tokio::spawn)
}

async fn say_when_nobody_works(queue: Queue, name: String) {
    tokio::time::sleep(NOBODY).await;
    let at_work = |status: &ebb_queue::WorkerStatus| status.phase != Phase::Draining;
    if queue.workers().await.is_ok_and(|workers| !workers.iter().any(at_work)) {
        note(format!(
            "no worker reports on queue {name} yet; `ebb up` starts them, `ebb worker` is a single one"
        ));
    }
}
