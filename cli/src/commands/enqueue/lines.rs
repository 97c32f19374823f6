//! Jobs from a file as a whole, or from standard input as they come.

use std::path::Path;

use anyhow::{Context, Result};
use ebb_queue::Job;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use tokio::io::{AsyncBufRead, AsyncBufReadExt};

use super::Envelope;
use crate::exit::usage;

pub(super) fn read_file(path: &Path, envelope: &Envelope) -> Result<Vec<Job>> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| usage(format!("cannot read {}: {error}", path.display())))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let job = |(at, line): (usize, &str)| {
        envelope.job_of_line(line).with_context(|| format!("{}:{}", path.display(), at + 1))
    };
    lines.map(job).collect()
}

/// Batches of what standard input has at the moment, at most so many jobs each.
pub(super) fn read_lines(
    input: impl AsyncBufRead + Unpin,
    envelope: Envelope,
    at_once: usize,
) -> impl Stream<Item = Vec<Result<Job>>> {
    let lines = input.lines();
    let jobs = stream::try_unfold((lines, 0), |(mut lines, at)| async move {
        let line = lines.next_line().await;
        let line =
            line.with_context(|| format!("cannot read line {} of standard input", at + 1))?;
        Ok::<_, anyhow::Error>(line.map(|line| ((at + 1, line), (lines, at + 1))))
    });
    let jobs = jobs.try_filter(|(_, line)| std::future::ready(!line.trim().is_empty()));
    let jobs = jobs.map(move |line| {
        let (at, line) = line?;
        envelope.job_of_line(&line).with_context(|| format!("line {at} of standard input"))
    });
    jobs.ready_chunks(at_once)
}

/// The jobs up to the first line that is none, and what is wrong with that one.
pub(super) fn until_bad(batch: Vec<Result<Job>>) -> (Vec<Job>, Option<anyhow::Error>) {
    let mut jobs = Vec::with_capacity(batch.len());
    for job in batch {
        match job {
            Ok(job) => jobs.push(job),
            Err(error) => return (jobs, Some(error)),
        }
    }
    (jobs, None)
}
