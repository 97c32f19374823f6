//! Jobs from a file, checked as a whole before, or from standard input as they come.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek};
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

/// Jobs that were checked and counted before the first of them is enqueued.
#[derive(Debug)]
pub(super) enum Jobs {
    /// Those of arguments, or of a pipe, which can be read once.
    Held(Vec<Job>),
    /// So many in a file, which is read anew, so that it may be larger than the memory.
    InFile { file: File, shown: String, n_jobs: usize },
}

impl Jobs {
    /// The jobs of a file.
    ///
    /// # Errors
    /// Of the first line that is none, or that is refused.
    pub(super) fn of_file(
        path: &Path,
        envelope: &Envelope,
        check: impl Fn(&Job) -> Result<()>,
    ) -> Result<Self> {
        let cannot = |error: io::Error| usage(format!("cannot read {}: {error}", path.display()));
        let file = File::open(path).map_err(cannot)?;
        let is_file = file.metadata().map_err(cannot)?.is_file();
        let shown = path.display().to_string();
        let jobs = jobs_of(BufReader::new(&file), shown.clone(), envelope);
        let mut jobs = jobs.map(|job| job.and_then(|job| check(&job).map(|()| job)));
        if !is_file {
            return jobs.collect::<Result<_>>().map(Self::Held);
        }
        let n_jobs = jobs.try_fold(0, |n, job| job.map(|_| n + 1))?;
        drop(jobs);
        Ok(Self::InFile { file, shown, n_jobs })
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Held(jobs) => jobs.len(),
            Self::InFile { n_jobs, .. } => *n_jobs,
        }
    }

    /// The jobs, each as it is read.
    ///
    /// # Errors
    /// When the file cannot be read again; and of a line that is no job any more.
    pub(super) fn each<'a>(
        self,
        envelope: &'a Envelope,
    ) -> Result<Box<dyn Iterator<Item = Result<Job>> + Send + 'a>> {
        match self {
            Self::Held(jobs) => Ok(Box::new(jobs.into_iter().map(Ok))),
            Self::InFile { mut file, shown, n_jobs } => {
                file.rewind().with_context(|| format!("cannot read {shown} again"))?;
                // What was written behind them meanwhile is not checked.
                Ok(Box::new(jobs_of(BufReader::new(file), shown, envelope).take(n_jobs)))
            }
        }
    }
}

/// The jobs of JSON lines, each as it is read. To be read up to the first error.
fn jobs_of<'a>(
    mut input: impl BufRead + 'a,
    shown: String,
    envelope: &'a Envelope,
) -> impl Iterator<Item = Result<Job>> + 'a {
    let mut bytes = Vec::new();
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            bytes.clear();
            match input.read_until(b'\n', &mut bytes) {
                Ok(0) => return None,
                Ok(_) => at += 1,
                Err(error) => return Some(Err(usage(format!("cannot read {shown}: {error}")))),
            }
            let Ok(line) = std::str::from_utf8(&bytes) else {
                return Some(Err(usage(format!("{shown}:{at}: {NOT_UTF8}"))));
            };
            let line = line.strip_prefix(BYTE_ORDER_MARK).filter(|_| at == 1).unwrap_or(line);
            if !line.trim().is_empty() {
                let job = envelope.job_of_line(line.trim_end_matches(['\n', '\r']));
                return Some(job.with_context(|| format!("{shown}:{at}")));
            }
        }
    })
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

    /// The jobs of a file, all of which are good.
    fn read_file(path: &Path) -> Result<Vec<Job>> {
        let envelope = Envelope::default();
        let jobs = Jobs::of_file(path, &envelope, |_| Ok(()))?;
        let n_jobs = jobs.len();
        let jobs = jobs.each(&envelope)?.collect::<Result<Vec<Job>>>()?;
        assert_eq!(jobs.len(), n_jobs);
        Ok(jobs)
    }

    #[test]
    fn what_is_written_to_a_file_behind_the_jobs_that_were_checked_is_not_enqueued() {
        use std::io::Write;

        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"\"a\"\r\n\n\"b\"").unwrap();
        let envelope = Envelope::default();
        let jobs = Jobs::of_file(file.path(), &envelope, |_| Ok(())).unwrap();
        file.write_all(b"\nno job\n").unwrap();
        let jobs: Vec<Job> = jobs.each(&envelope).unwrap().map(Result::unwrap).collect();
        assert_eq!(bodies(jobs), [r#"{"input":"a"}"#, r#"{"input":"b"}"#]);
    }

    #[test]
    fn a_job_of_a_file_that_is_refused_is_told_before_any_is_enqueued() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jobs.jsonl");
        std::fs::write(&path, "\"a\"\n\"b\"\n").unwrap();
        let check =
            |job: &Job| if job.body == r#"{"input":"b"}"# { Err(usage("b")) } else { Ok(()) };
        let refused = Jobs::of_file(&path, &Envelope::default(), check).unwrap_err();
        assert_eq!(refused.to_string(), "b");
    }

    #[tokio::test]
    async fn a_byte_order_mark_is_no_part_of_the_first_line() {
        let text = "\u{feff}\"a\"\n\"\u{feff}b\"\n";
        let expected = [r#"{"input":"a"}"#, "{\"input\":\"\u{feff}b\"}"];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jobs.jsonl");
        std::fs::write(&path, text).unwrap();
        assert_eq!(bodies(read_file(&path).unwrap()), expected);

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
        let of_file = read_file(&path).unwrap_err();
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
