//! Jobs from a file as a whole, or from standard input as they come.

use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use ebb_queue::Job;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use tokio::io::{AsyncBufRead, AsyncBufReadExt};

use super::Envelope;
use crate::exit::usage;

/// What some editors put before a text in UTF-8; it is no part of the first line.
const BYTE_ORDER_MARK: char = '\u{feff}';

const NOT_UTF8: &str = "this is not UTF-8; write it as UTF-8";

pub(super) fn read_file(path: &Path, envelope: &Envelope) -> Result<Vec<Job>> {
    let shown = path.display();
    let bytes =
        std::fs::read(path).map_err(|error| usage(format!("cannot read {shown}: {error}")))?;
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let at = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        usage(format!("{shown}:{at}: {NOT_UTF8}"))
    })?;
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let job = |(at, line): (usize, &str)| {
        envelope.job_of_line(line).with_context(|| format!("{shown}:{}", at + 1))
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
        let line = lines.next_line().await.map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => usage(NOT_UTF8),
            _ => error.into(),
        });
        let line =
            line.with_context(|| format!("cannot read line {} of standard input", at + 1))?;
        let line = line.map(|line| match line.strip_prefix(BYTE_ORDER_MARK) {
            Some(rest) if at == 0 => rest.to_owned(),
            _ => line,
        });
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    fn bodies(jobs: impl IntoIterator<Item = Job>) -> Vec<bytes::Bytes> {
        jobs.into_iter().map(|job| job.body).collect()
    }

    #[tokio::test]
    async fn a_byte_order_mark_is_no_part_of_the_first_line() {
        let text = "\u{feff}\"a\"\n\"\u{feff}b\"\n";
        let expected = [r#"{"input":"a"}"#, "{\"input\":\"\u{feff}b\"}"];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jobs.jsonl");
        std::fs::write(&path, text).unwrap();
        assert_eq!(bodies(read_file(&path, &Envelope::default()).unwrap()), expected);

        let batches: Vec<_> = read_lines(text.as_bytes(), Envelope::default(), 8).collect().await;
        let (jobs, bad) = until_bad(batches.into_iter().flatten().collect());
        assert!(bad.is_none(), "{bad:?}");
        assert_eq!(bodies(jobs), expected);
    }

    #[tokio::test]
    async fn what_is_no_utf8_is_told_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jobs.jsonl");
        let text = b"\"a\"\n\"b\"\n\"\xfc\"\n";
        std::fs::write(&path, text).unwrap();
        let of_file = read_file(&path, &Envelope::default()).unwrap_err();
        let batches: Vec<_> = read_lines(&text[..], Envelope::default(), 8).collect().await;
        let of_input = until_bad(batches.into_iter().flatten().collect()).1.unwrap();
        for (error, place) in
            [(of_file, "jobs.jsonl:3: "), (of_input, "line 3 of standard input: ")]
        {
            let told = format!("{error:#}");
            assert!(told.contains(&format!("{place}{NOT_UTF8}")), "{told}");
            assert_eq!(Exit::of(&error), Exit::Usage);
        }
    }
}
