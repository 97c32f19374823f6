//! `ebb enqueue`: jobs from the command line, a file or standard input; and their results.

mod envelope;
mod lines;
mod publish;
mod wait;

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::builder::BoolishValueParser;
use clap::{ArgGroup, Args};
use ebb_queue::{Job, Missing};
use ebb_split::{By, Share};
use ebb_telemetry::{Service, Stop, TraceArgs, Traces};
use futures::StreamExt;
use tokio::io::{AsyncBufRead, BufReader};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::result::{Shown, follow};
use crate::exit::{Exit, interrupted, usage};
use crate::options::{QueueArgs, parse_span};
use crate::output::{Output, Progress, Unit, note};
use crate::spread::{Spread, check_keys};
use envelope::Envelope;
use lines::{Jobs, read_lines, until_bad};
use publish::{Enqueued, Target, publish, unless_too_many};
use wait::{hint_at_nobody, tell_rest, wait};

/// Jobs stored in one commit.
const BATCH: usize = 256;

/// How long a pipe has to show that it is at its end, once nobody reads the ids.
const MOMENT: Duration = Duration::from_secs(1);

/// A batch or more is worth a progress bar.
const LONG: usize = 4 * BATCH;

/// What to enqueue, and how.
#[derive(Debug, Args)]
#[command(after_help = HELP, group = ArgGroup::new("waits").args(["wait", "follow"]).multiple(true))]
#[command(group = ArgGroup::new("jobs").args(["texts", "file"]).required(true))]
#[command(override_usage = USAGE)]
pub(crate) struct EnqueueArgs {
    /// One job each: a text, or a JSON object that is the body itself; `-` reads JSON lines
    #[arg(value_name = "TEXT")]
    texts: Vec<String>,

    /// A file of JSON lines, one job each; `-` is standard input
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,

    #[command(flatten)]
    envelope: Envelope,

    /// Publish to these queues of the broker instead, by weight: jobs-stable=95,jobs-canary=5
    ///
    /// As `ebb split` would; results are found at --queue all the same. An idempotency key holds
    /// while these weights stay: with others its job may go to a queue that does not know it.
    #[arg(long, env = "EBB_ENQUEUE_SPLIT", hide_env_values = true, value_name = "QUEUE=WEIGHT")]
    #[arg(value_delimiter = ',')]
    split: Vec<Share>,

    /// With --split: what jobs are told apart by; jobs of the same id, tenant or key go the same
    /// way. Jobs with a key can go by nothing else
    #[arg(long, env = "EBB_ENQUEUE_SPLIT_BY", hide_env_values = true, default_value = "key")]
    split_by: By,

    /// Wait, and print the results as JSON lines in the order of the jobs
    #[arg(long, env = "EBB_ENQUEUE_WAIT", hide_env_values = true)]
    #[arg(value_parser = BoolishValueParser::new())]
    wait: bool,

    /// Of one text: ask for pieces of the answer, and print them as they come
    #[arg(long, env = "EBB_ENQUEUE_FOLLOW", hide_env_values = true, conflicts_with = "wait")]
    #[arg(value_parser = BoolishValueParser::new())]
    follow: bool,

    /// With --wait or --follow: give up after this long (exit code 75)
    #[arg(long, env = "EBB_ENQUEUE_TIMEOUT", hide_env_values = true, value_name = "SPAN")]
    #[arg(value_parser = parse_span, requires = "waits")]
    timeout: Option<Duration>,

    /// Create nothing on the broker: a queue that is missing there is an error, and `ebb queue init`
    /// makes it
    #[arg(long, env = "EBB_NO_CREATE", hide_env_values = true)]
    #[arg(value_parser = BoolishValueParser::new())]
    no_create: bool,

    /// Where the queue is.
    #[command(flatten)]
    queue: QueueArgs,

    /// Where spans go: with it each job is the end of a span, and carries it on.
    #[command(flatten)]
    trace: TraceArgs,
}

impl EnqueueArgs {
    /// Whether somebody waits for the answers.
    fn waits(&self) -> bool {
        self.wait || self.follow
    }

    fn missing(&self) -> Missing {
        if self.no_create { Missing::Refuse } else { Missing::Create }
    }

    /// The jobs of a file or of arguments. To be called once: what is read of a pipe is gone.
    fn jobs(&self) -> Result<Jobs> {
        let check = |job: &Job| match &self.split[..] {
            [] => Ok(()),
            _ => check_keys(self.split_by, std::slice::from_ref(job)),
        };
        let Some(file) = &self.file else {
            let jobs = self.texts.iter().map(|text| self.envelope.job_of_text(text));
            let checked = jobs.map(|job| job.and_then(|job| check(&job).map(|()| job)));
            return checked.collect::<Result<_>>().map(Jobs::Held);
        };
        let jobs = Jobs::of_file(file, &self.envelope, check)?;
        if jobs.len() == 0 {
            return Err(usage(format!("{} has no jobs; write one a line", file.display())));
        }
        Ok(jobs)
    }
}

const USAGE: &str = "ebb enqueue [OPTIONS] <TEXT>...\n       ebb enqueue [OPTIONS] --file <FILE>";

const HELP: &str = r#"A JSON line is one of
  "a text"                                    the body is {"input": "a text"}
  {"input": "a text", ...}                    the body itself: any object without the key `body`
  {"id": "a-1", "headers": {"ebb-priority": "high"}, "body": ...}
                                              id and headers are optional; a body that is a string
                                              is sent as it is
A file is checked as a whole before anything is enqueued, and read again then; standard input is
enqueued as it comes.
A queue that is missing is made, and standard error says so; --no-create forbids it.
When nobody reads the ids any more, as behind `| head`, a file is enqueued to its end all the same,
on standard input too. A pipe may have none: what comes later is not enqueued, and the exit code 1.

Without --wait the ids are printed, one a line. With --wait each job gives one JSON object: id,
outcome (completed, failed or cancelled), attempt, finished_at, queue (whose worker answered), and
body, or error and its kind. A failed job exits with 1, and so does one that expired, was cancelled
or purged. After --timeout, Ctrl-C or an outage each of the other jobs is printed as it stands,
those that are open with the outcome waiting.

Where the queue does not say whether jobs are stored, as in an outage, their ids are told: send them
again under the same ids (--id, or `id` in a JSON line). Those that are there already may run twice,
where the broker knows ids for two minutes (NATS) or not at all (RabbitMQ); each has one result.

With --follow the body of a text is {"input": "a text", "stream": true}; one that is given is sent
as it is. Pieces are printed as `ebb result --follow` does. The model that answers must be one that
streams, such as a generator or echo; of another the whole answer is printed.

Examples:
  ebb enqueue "The tide turns." --wait
  ebb enqueue '{"input":"The tide turns.","dimensions":128}' --priority high
  ebb enqueue "Why does the tide turn?" --follow
  ebb enqueue --file jobs.jsonl --wait --timeout 5m > results.jsonl
  journalctl -f -o cat | jq -cR --unbuffered . | ebb enqueue - --ttl 1h"#;

/// Runs the command.
///
/// # Errors
/// When a job is not one, the queue does not answer, or time runs out.
pub(crate) async fn run(mut args: EnqueueArgs, output: Output) -> Result<Exit> {
    let stdin = args.texts == ["-"] || args.file.as_deref() == Some(Path::new("-"));
    if args.follow && (stdin || args.texts.len() != 1) {
        return Err(usage("--follow is for one text; for more use --wait"));
    }
    args.envelope.streams = args.follow;
    args.envelope.check()?;
    let jobs = if stdin { None } else { Some(args.jobs()?) };
    // How many come on standard input nobody knows.
    let is_one = jobs.as_ref().is_some_and(|jobs| jobs.len() == 1);
    if args.envelope.key.is_some() && !is_one {
        return Err(usage("--key makes all jobs of a call one job; give each its own `ebb-key`"));
    }
    if args.envelope.id.is_some() && !is_one {
        return Err(usage("--id makes all jobs of a call one job; give each line its own `id`"));
    }
    if args.waits() {
        // Before anything is published: who hears of it afterwards runs the jobs twice.
        args.queue.check_answers()?;
    }
    let service = Service { name: "ebb", version: env!("CARGO_PKG_VERSION"), instance: None };
    let traces = args.trace.start(&service).map_err(|error| usage(error.to_string()))?;
    let ended = enqueue(&args, traces.clone(), jobs, output).await;
    traces.flush().await;
    ended
}

/// Enqueues these jobs, or those on standard input where there are none.
async fn enqueue(
    args: &EnqueueArgs,
    traces: Traces,
    jobs: Option<Jobs>,
    output: Output,
) -> Result<Exit> {
    let place = (&args.queue, args.missing());
    let spread = Spread::new(place, &args.split, args.split_by).await?;
    let url = args.queue.url()?;
    // With a split it has the records of where the jobs went, and is asked for their results.
    let queue = args.queue.open_or_make(&url, args.missing()).await?;
    let target = Target { name: &url.queue, queue: &queue, spread: spread.as_ref() };
    let stop = CancellationToken::new();
    tokio::spawn(Stop::listen()?.cancel(stop.clone()));
    let mut enqueued = Enqueued { traces, ..Enqueued::default() };
    let told = (&mut enqueued, output);
    let fed = if let Some(jobs) = jobs {
        enqueue_all(target, jobs, args, told, &stop).await
    } else {
        let has_end = is_file(std::io::stdin());
        let input = Input { lines: BufReader::new(tokio::io::stdin()), has_end };
        enqueue_lines(target, input, args, told, &stop).await
    };
    if let Err(error) = fed {
        if enqueued.n_jobs == 0 {
            return Err(error);
        }
        // Without --wait the ids are printed already.
        drop(tell_rest(&queue, &enqueued.jobs, output).await);
        return Err(error.context(format!("{} jobs were enqueued before", enqueued.n_jobs)));
    }
    if enqueued.n_known > 0 {
        let (n_known, n_jobs) = (enqueued.n_known, enqueued.n_jobs);
        note(format!(
            "{n_known} of {n_jobs} were known before by id or key: the jobs stay as they were, and \
             what was sent now is dropped"
        ));
    }
    if let Some(job) = enqueued.jobs.first().filter(|_| args.follow) {
        let hint = hint_at_nobody(target);
        let followed = follow(&queue, job, args.timeout, (Shown::All, output));
        let exit = tokio::select! {
            exit = followed => exit,
            () = stop.cancelled() => {
                let id = &job.id;
                Err(interrupted(format!("interrupted; the job stays, `ebb result {id}` asks")))
            }
        };
        hint.inspect(JoinHandle::abort);
        return exit;
    }
    if !args.wait {
        return Ok(Exit::Done);
    }
    wait(target, &enqueued.jobs, args.timeout, &stop, output).await
}

/// Standard input, or what stands for it.
struct Input<R> {
    lines: R,
    /// A file has an end; a pipe may have none.
    has_end: bool,
}

fn is_file(input: impl AsFd) -> bool {
    let file = input.as_fd().try_clone_to_owned().map(File::from);
    file.and_then(|file| file.metadata()).is_ok_and(|metadata| metadata.is_file())
}

/// Standard input as it comes; where it may never end, only while somebody reads the ids.
async fn enqueue_lines(
    target: Target<'_>,
    input: Input<impl AsyncBufRead + Unpin>,
    args: &EnqueueArgs,
    (enqueued, output): (&mut Enqueued, Output),
    stop: &CancellationToken,
) -> Result<()> {
    // A batch that is larger than the queue would never fit, and these have no size of their own.
    let limit = args.queue.url()?.behavior.max_ready.unwrap_or(u64::MAX);
    let at_once = usize::try_from(limit).unwrap_or(usize::MAX).clamp(1, BATCH);
    let mut lines = std::pin::pin!(read_lines(input.lines, args.envelope.clone(), at_once));
    loop {
        let batch = tokio::select! {
            biased;
            () = stop.cancelled() => return Err(interrupted("interrupted; the rest was not read")),
            batch = lines.next() => batch,
        };
        let Some(batch) = batch else { return Ok(()) };
        let (jobs, bad) = until_bad(batch);
        if !jobs.is_empty() {
            target.check(&jobs)?;
            publish(target, jobs, enqueued, stop, (args.waits(), output)).await?;
        }
        bad.map_or(Ok(()), Err)?;
        if enqueued.reader.is_gone && !input.has_end {
            let next = tokio::time::timeout(MOMENT, lines.next()).await;
            let told =
                "nobody reads the ids, and what else comes on standard input is not enqueued";
            ensure!(matches!(next, Ok(None)), told);
            return Ok(());
        }
    }
}

/// A file or arguments, checked as a whole before.
async fn enqueue_all(
    target: Target<'_>,
    jobs: Jobs,
    args: &EnqueueArgs,
    (enqueued, output): (&mut Enqueued, Output),
    stop: &CancellationToken,
) -> Result<()> {
    let (n_all, limit) = (jobs.len(), args.queue.url()?.behavior.max_ready);
    let mut progress =
        (n_all >= LONG).then(|| Progress::new("enqueue", Some(n_all as u64), Unit::Items));
    let mut jobs = jobs.each(&args.envelope)?.peekable();
    let mut n_sent = 0;
    while jobs.peek().is_some() {
        if stop.is_cancelled() {
            return Err(interrupted("interrupted; the rest was not enqueued"));
        }
        let batch: Vec<Job> = jobs.by_ref().take(BATCH).collect::<Result<_>>()?;
        let n_jobs = batch.len() as u64;
        n_sent += batch.len();
        let published = publish(target, batch, enqueued, stop, (args.waits(), output)).await;
        published.map_err(|error| match limit.filter(|_| target.spread.is_none()) {
            Some(limit) => unless_too_many(error, n_all as u64, limit),
            None => error,
        })?;
        if let Some(progress) = &mut progress {
            progress.add(n_jobs);
        }
    }
    progress.into_iter().for_each(Progress::end);
    ensure!(n_sent == n_all, "the file had {n_all} jobs, and {n_sent} when it was read again");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsRawFd;

    use clap::Parser;
    use ebb_queue::JobState;
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::output::Reader;

    #[derive(Debug, Parser)]
    struct Fake {
        #[command(flatten)]
        args: EnqueueArgs,
    }

    /// How many jobs of what is read are enqueued while nobody reads the ids, and how that ends.
    async fn unread(lines: impl AsyncBufRead + Unpin, has_end: bool) -> (usize, Result<()>) {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("queue.db").display());
        let args = Fake::parse_from(["enqueue", "--queue", &url, "-"]).args;
        let queue = args.queue.open().await.unwrap();
        let target = Target { name: "jobs", queue: &queue, spread: None };
        let reader = Reader { is_gone: true };
        let mut enqueued = Enqueued { reader, ..Enqueued::default() };
        let told = (&mut enqueued, Output { json: false });
        let stop = CancellationToken::new();
        let fed = enqueue_lines(target, Input { lines, has_end }, &args, told, &stop);
        let fed = tokio::time::timeout(Duration::from_secs(30), fed).await.expect("it ends");
        (enqueued.n_jobs, fed)
    }

    #[tokio::test]
    async fn a_pipe_is_read_while_somebody_reads_the_ids_and_a_file_to_its_end() {
        let lines = "\"a\"\n".repeat(BATCH + 1);
        for (has_end, text, n_jobs) in [
            (true, &*lines, BATCH + 1),
            (false, &*lines, BATCH),
            // Nothing is left of it.
            (false, "\"a\"\n\"b\"\n", 2),
        ] {
            let (n_enqueued, ended) = unread(text.as_bytes(), has_end).await;
            assert_eq!(n_enqueued, n_jobs, "{has_end} {ended:?}");
            assert_eq!(ended.is_ok(), n_jobs != BATCH, "{has_end} {ended:?}");
        }
        // The other end stays open.
        let (mut writer, reader) = tokio::io::duplex(64);
        writer.write_all(b"\"a\"\n").await.unwrap();
        let (n_jobs, ended) = unread(BufReader::new(reader), false).await;
        let told = ended.expect_err("more may come");
        assert_eq!((n_jobs, Exit::of(&told)), (1, Exit::Failed), "{told}");
    }

    #[tokio::test]
    async fn a_file_that_is_cut_behind_the_check_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("queue.db").display());
        let path = folder.path().join("jobs.jsonl");
        std::fs::write(&path, "\"a\"\n\"b\"\n").unwrap();
        let file = path.to_str().unwrap();
        let args = Fake::parse_from(["enqueue", "--queue", &url, "--file", file]).args;
        let queue = args.queue.open().await.unwrap();
        let target = Target { name: "jobs", queue: &queue, spread: None };
        let jobs = args.jobs().unwrap();
        std::fs::write(&path, "\"a\"\n").unwrap();
        let mut enqueued = Enqueued::default();
        let told = (&mut enqueued, Output { json: false });
        let fed = enqueue_all(target, jobs, &args, told, &CancellationToken::new()).await;
        assert!(fed.unwrap_err().to_string().contains("had 2 jobs, and 1 when"));
        assert_eq!(enqueued.n_jobs, 1);
    }

    /// Enqueues what somebody writes to a pipe, under an id; and what is found by it then.
    async fn piped(text: &'static [u8]) -> (Result<Exit>, JobState) {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("queue.db").display());
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(text).unwrap();
        drop(writer);
        let file = format!("/dev/fd/{}", reader.as_fd().as_raw_fd());
        let words = ["enqueue", "--queue", &url, "--id", "a-1", "--key", "k", "--file", &file];
        let args = Fake::parse_from(words).args;
        let queue = args.queue.open().await.unwrap();
        let ran = run(args, Output { json: false }).await;
        let state = queue.state(&"a-1".parse().unwrap()).await.unwrap();
        (ran, state.expect("this broker knows"))
    }

    #[tokio::test]
    async fn a_pipe_in_place_of_a_file_is_read_once() {
        let (ran, state) = piped(b"\"a\"\n").await;
        assert_eq!((ran.unwrap(), state), (Exit::Done, JobState::Waiting));
        for (text, told) in [(&b"\n"[..], "has no jobs"), (b"\"a\"\n\"b\"\n", "--key makes all")] {
            let (ran, state) = piped(text).await;
            let error = ran.expect_err(told);
            assert!(error.to_string().contains(told), "{error}");
            assert_eq!((Exit::of(&error), state), (Exit::Usage, JobState::Unknown));
        }
    }

    #[test]
    fn a_file_on_standard_input_is_told_from_a_pipe() {
        assert!(is_file(tempfile::tempfile().unwrap()));
        assert!(!is_file(std::io::pipe().unwrap().0));
    }

    #[tokio::test]
    async fn what_comes_before_a_bad_line_is_kept_and_the_line_is_numbered() {
        for (text, told) in [
            (&b"\"a\"\n\n\"b\"\n{bad\n\"c\"\n"[..], "line 4 of standard input"),
            (&b"\"a\"\n\"b\"\n\xff\n\"c\"\n"[..], "cannot read line 3 of standard input"),
        ] {
            let batches: Vec<_> = read_lines(text, Envelope::default(), BATCH).collect().await;
            let (jobs, bad) = until_bad(batches.into_iter().flatten().collect());
            let bodies: Vec<_> = jobs.into_iter().map(|job| job.body).collect();
            assert_eq!(bodies, [r#"{"input":"a"}"#, r#"{"input":"b"}"#]);
            let bad = format!("{:#}", bad.expect(told));
            assert!(bad.starts_with(told), "{bad}");
        }
    }
}
