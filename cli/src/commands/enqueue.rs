//! `ebb enqueue`: jobs from the command line, a file or standard input; and their results.

mod lines;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use ebb_queue::{Job, JobId, Phase, Queue, Timestamp, header};
use ebb_split::{By, Share};
use ebb_telemetry::{Service, Span, TraceArgs, Traces, read_traceparent};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::io::BufReader;

use crate::exit::{Exit, usage};
use crate::options::{QueueArgs, parse_span};
use crate::output::{Output, Progress, Unit, note};
use crate::results::{Line, result_of};
use crate::spread::Spread;
use crate::trace::publication;
use lines::{read_file, read_lines, until_bad};

/// Jobs stored in one commit.
const BATCH: usize = 256;

/// A batch or more is worth a progress bar.
const LONG: usize = 4 * BATCH;

/// How long a worker may stay away before we say so.
const NOBODY: Duration = Duration::from_secs(5);

/// What to enqueue, and how.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct EnqueueArgs {
    /// One job each: a text, or a JSON object that is the body itself; `-` reads JSON lines
    #[arg(value_name = "TEXT", required_unless_present = "file")]
    texts: Vec<String>,

    /// A file of JSON lines, one job each; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "texts")]
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
    wait: bool,

    /// With --wait: give up after this long (exit code 75)
    #[arg(long, env = "EBB_ENQUEUE_TIMEOUT", hide_env_values = true, value_name = "SPAN")]
    #[arg(value_parser = parse_span, requires = "wait")]
    timeout: Option<Duration>,

    /// Where the queue is.
    #[command(flatten)]
    queue: QueueArgs,

    /// Where spans go: with it each job is the end of a span, and carries it on.
    #[command(flatten)]
    trace: TraceArgs,
}

/// Headers for all jobs of the call; what a line says itself comes before them.
#[derive(Debug, Clone, Default, Args)]
struct Envelope {
    /// The model asked for
    #[arg(long, env = "EBB_ENQUEUE_MODEL", hide_env_values = true, value_name = "NAME")]
    model: Option<String>,
    /// high, normal or low
    #[arg(long, env = "EBB_ENQUEUE_PRIORITY", hide_env_values = true, value_name = "PRIORITY")]
    priority: Option<String>,
    /// Worthless after this long, such as 30s or 5m; expired jobs end in the dead letters
    #[arg(long, env = "EBB_ENQUEUE_TTL", hide_env_values = true, value_name = "SPAN")]
    ttl: Option<String>,
    /// Worthless after this moment, such as 2030-01-31T12:00:00Z
    #[arg(long, env = "EBB_ENQUEUE_DEADLINE", hide_env_values = true, value_name = "TIME")]
    deadline: Option<String>,
    /// Not to be run before this long has passed
    #[arg(long, env = "EBB_ENQUEUE_DELAY", hide_env_values = true, value_name = "SPAN")]
    delay: Option<String>,
    /// Idempotency key: a second job with the same key is the first one
    #[arg(long, env = "EBB_ENQUEUE_KEY", hide_env_values = true, value_name = "KEY")]
    key: Option<String>,
    /// On whose behalf
    #[arg(long, env = "EBB_ENQUEUE_TENANT", hide_env_values = true, value_name = "NAME")]
    tenant: Option<String>,
    /// What a job costs, in tokens; a hint for the scaler
    #[arg(long, env = "EBB_ENQUEUE_COST", hide_env_values = true, value_name = "TOKENS")]
    cost: Option<String>,
    /// The W3C trace context that the jobs are part of, as 00-TRACE-SPAN-01
    #[arg(long, env = "EBB_ENQUEUE_TRACEPARENT", hide_env_values = true, value_name = "HEADER")]
    traceparent: Option<String>,
}

const HELP: &str = r#"A JSON line is one of
  "a text"                                    the body is {"input": "a text"}
  {"input": "a text", ...}                    the body itself: any object without the key `body`
  {"id": "a-1", "headers": {"ebb-priority": "high"}, "body": ...}
                                              id and headers are optional; a body that is a string
                                              is sent as it is
A file is checked as a whole before anything is enqueued; standard input is enqueued as it comes.

Without --wait the ids are printed, one a line. With --wait each job gives one JSON object: id,
outcome (completed or failed), attempt, finished_at, queue (whose worker answered), and body or
error. A failed job exits with 1.

Examples:
  ebb enqueue "The tide turns." --wait
  ebb enqueue '{"input":"The tide turns.","dimensions":128}' --priority high
  ebb enqueue --file jobs.jsonl --wait --timeout 5m > results.jsonl
  journalctl -f -o cat | jq -cR . | ebb enqueue - --ttl 1h"#;

/// Runs the command.
///
/// # Errors
/// When a job is not one, the queue does not answer, or time runs out.
pub(crate) async fn run(args: EnqueueArgs, output: Output) -> Result<Exit> {
    let stdin = args.texts == ["-"] || args.file.as_deref() == Some(Path::new("-"));
    if args.envelope.key.is_some() && (stdin || args.file.is_some() || args.texts.len() > 1) {
        return Err(usage("--key makes all jobs of a call one job; give each its own `ebb-key`"));
    }
    args.envelope.check()?;
    let service = Service { name: "ebb", version: env!("CARGO_PKG_VERSION"), instance: None };
    let traces = args.trace.start(&service).map_err(|error| usage(error.to_string()))?;
    let ended = enqueue(&args, traces.clone(), stdin, output).await;
    traces.flush().await;
    ended
}

async fn enqueue(args: &EnqueueArgs, traces: Traces, stdin: bool, output: Output) -> Result<Exit> {
    let spread = Spread::new(&args.queue, &args.split, args.split_by).await?;
    let queue = args.queue.open().await?;
    let target = Target { queue: &queue, spread: spread.as_ref() };
    let mut enqueued = Enqueued { traces, ..Enqueued::default() };
    let fed = if stdin {
        enqueue_lines(target, args, &mut enqueued, output).await
    } else {
        enqueue_all(target, args, &mut enqueued, output).await
    };
    if let Err(error) = fed {
        if enqueued.n_jobs == 0 {
            return Err(error);
        }
        // Without --wait the ids are printed already.
        enqueued.ids.iter().for_each(|id| note(format!("enqueued {id}")));
        return Err(error.context(format!("{} jobs were enqueued before", enqueued.n_jobs)));
    }
    if args.wait { wait(target, &enqueued.ids, args.timeout, output).await } else { Ok(Exit::Done) }
}

/// Where jobs go, and where their results are asked for.
#[derive(Clone, Copy)]
struct Target<'a> {
    queue: &'a Queue,
    spread: Option<&'a Spread>,
}

impl Target<'_> {
    fn check(self, jobs: &[Job]) -> Result<()> {
        self.spread.map_or(Ok(()), |spread| spread.check(jobs))
    }
}

/// Standard input as it comes.
async fn enqueue_lines(
    target: Target<'_>,
    args: &EnqueueArgs,
    enqueued: &mut Enqueued,
    output: Output,
) -> Result<()> {
    let lines = read_lines(BufReader::new(tokio::io::stdin()), args.envelope.clone());
    let mut lines = std::pin::pin!(lines);
    while let Some(batch) = lines.next().await {
        let (jobs, bad) = until_bad(batch);
        if !jobs.is_empty() {
            target.check(&jobs)?;
            publish(target, jobs, enqueued, args, output).await?;
        }
        bad.map_or(Ok(()), Err)?;
    }
    Ok(())
}

/// A file or arguments, checked as a whole before.
async fn enqueue_all(
    target: Target<'_>,
    args: &EnqueueArgs,
    enqueued: &mut Enqueued,
    output: Output,
) -> Result<()> {
    let jobs: Vec<Job> = match &args.file {
        Some(file) => read_file(file, &args.envelope)?,
        None => {
            args.texts.iter().map(|text| args.envelope.job_of_text(text)).collect::<Result<_>>()?
        }
    };
    target.check(&jobs)?;
    let mut progress = (jobs.len() >= LONG)
        .then(|| Progress::new("enqueue", Some(jobs.len() as u64), Unit::Items));
    let mut jobs = jobs.into_iter().peekable();
    while jobs.peek().is_some() {
        let batch: Vec<Job> = jobs.by_ref().take(BATCH).collect();
        let n_jobs = batch.len() as u64;
        publish(target, batch, enqueued, args, output).await?;
        if let Some(progress) = &mut progress {
            progress.add(n_jobs);
        }
    }
    progress.into_iter().for_each(Progress::end);
    Ok(())
}

/// What was enqueued so far.
#[derive(Debug, Default)]
struct Enqueued {
    n_jobs: usize,
    /// With --wait, whose results are waited for; else they are printed and forgotten.
    ids: Vec<JobId>,
    traces: Traces,
}

async fn publish(
    target: Target<'_>,
    mut jobs: Vec<Job>,
    enqueued: &mut Enqueued,
    args: &EnqueueArgs,
    output: Output,
) -> Result<()> {
    let spans: Vec<Span> = jobs.iter_mut().map(|job| publication(&enqueued.traces, job)).collect();
    let published = match target.spread {
        Some(spread) => spread.publish(jobs).await?,
        None => target.queue.publish(jobs).await?,
    };
    // Until here, since they end when they are dropped.
    drop(spans);
    enqueued.n_jobs += published.len();
    for job in published {
        match (args.wait, output.json) {
            (true, _) => enqueued.ids.push(job.id),
            (false, true) => output.json(&json!({ "id": job.id, "duplicate": job.duplicate }))?,
            (false, false) => output.line(job.id.as_str())?,
        }
    }
    Ok(())
}

/// Prints the results in the order of the jobs.
async fn wait(
    target: Target<'_>,
    ids: &[JobId],
    limit: Option<Duration>,
    output: Output,
) -> Result<Exit> {
    let end = limit.map(|limit| tokio::time::Instant::now() + limit);
    let mut progress =
        (ids.len() >= LONG).then(|| Progress::new("results", Some(ids.len() as u64), Unit::Items));
    let queue = target.queue;
    // With a split nobody works here.
    let hint = target.spread.is_none().then(|| say_when_nobody_works(queue.clone()));
    let hint = hint.map(tokio::spawn);
    let mut exit = Exit::Done;
    for id in ids {
        let result = match end {
            // What is there already is printed, however late it is.
            Some(end) => {
                tokio::time::timeout_at(end, result_of(queue, id)).await.ok().transpose()?
            }
            None => Some(result_of(queue, id).await?),
        };
        let Some(result) = result else {
            output.json(&Line::waiting(id))?;
            exit = Exit::Timeout;
            continue;
        };
        if !result.outcome.is_completed() && exit == Exit::Done {
            exit = Exit::Failed;
        }
        output.json(&Line::of(&result))?;
        if let Some(progress) = &mut progress {
            progress.add(1);
        }
    }
    hint.inspect(tokio::task::JoinHandle::abort);
    progress.into_iter().for_each(Progress::end);
    Ok(exit)
}

async fn say_when_nobody_works(queue: Queue) {
    tokio::time::sleep(NOBODY).await;
    let at_work = |status: &ebb_queue::WorkerStatus| status.phase != Phase::Draining;
    if queue.workers().await.is_ok_and(|workers| !workers.iter().any(at_work)) {
        note("no worker reports on this queue; `ebb up` starts them, `ebb worker` is a single one");
    }
}

impl Envelope {
    fn check(&self) -> Result<()> {
        let wrong = |text: &&String| read_traceparent(text, None).is_none();
        if self.traceparent.as_ref().filter(wrong).is_some() {
            return Err(usage(
                "--traceparent is not one; use 00-TRACE-SPAN-01 with 32 and 16 hex digits",
            ));
        }
        self.job(Vec::new()).map(drop)
    }

    fn job(&self, body: impl Into<bytes::Bytes>) -> Result<Job> {
        let mut job = Job::new(body, Timestamp::now());
        let headers = [
            (header::MODEL, &self.model),
            (header::PRIORITY, &self.priority),
            (header::TTL, &self.ttl),
            (header::DEADLINE, &self.deadline),
            (header::DELAY, &self.delay),
            (header::KEY, &self.key),
            (header::TENANT, &self.tenant),
            (header::COST, &self.cost),
            (header::TRACEPARENT, &self.traceparent),
        ];
        for (name, value) in headers {
            if let Some(value) = value {
                job.set(name, value)?;
            }
        }
        Ok(job)
    }

    /// A job from an argument: a JSON object is the body, anything else a text.
    fn job_of_text(&self, text: &str) -> Result<Job> {
        let object = serde_json::from_str(text).is_ok_and(|value: Value| value.is_object());
        if object { self.job(text.to_owned()) } else { self.job(input(text)) }
    }

    /// A job from a JSON line.
    fn job_of_line(&self, line: &str) -> Result<Job> {
        let value: Value = serde_json::from_str(line)
            .map_err(|error| usage(format!("not a JSON line: {error}")))?;
        match value {
            Value::String(text) => self.job(input(&text)),
            Value::Object(mut fields) if fields.contains_key("body") => {
                let body = match fields.remove("body") {
                    Some(Value::String(text)) => text,
                    body => body.unwrap_or_default().to_string(),
                };
                let mut job = self.job(body)?;
                let headers = match fields.remove("headers") {
                    None => serde_json::Map::new(),
                    Some(Value::Object(headers)) => headers,
                    Some(_) => return Err(usage("`headers` is no object of names and values")),
                };
                if let Some(id) = fields.remove("id") {
                    job.set(header::ID, &words_of(&id))?;
                }
                if let Some((name, _)) = fields.into_iter().next() {
                    return Err(usage(format!(
                        "{name:?} stands beside `body`; only id, headers and body may"
                    )));
                }
                for (name, value) in headers {
                    job.set(&name, &words_of(&value))?;
                }
                Ok(job)
            }
            Value::Object(_) => self.job(line.trim().to_owned()),
            _ => Err(usage("a JSON line is a string or an object")),
        }
    }
}

fn input(text: &str) -> String {
    json!({ "input": text }).to_string()
}

fn words_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use ebb_queue::Priority;

    use super::*;

    fn line(text: &str) -> Result<Job> {
        Envelope { priority: Some("low".into()), ..Envelope::default() }.job_of_line(text)
    }

    #[test]
    fn a_text_becomes_an_input_and_an_object_is_the_body() {
        for (text, body) in [
            ("a text", r#"{"input":"a text"}"#),
            ("42", r#"{"input":"42"}"#),
            (r#"{"input": "as it is"}"#, r#"{"input": "as it is"}"#),
        ] {
            assert_eq!(Envelope::default().job_of_text(text).unwrap().body, body, "{text}");
        }
    }

    #[test]
    fn each_form_of_a_line_is_read() {
        for (text, body) in [
            (r#""a text""#, r#"{"input":"a text"}"#),
            (r#"{"input": ["a", "b"]}"#, r#"{"input": ["a", "b"]}"#),
            (r#"{"body": {"input": "x"}}"#, r#"{"input":"x"}"#),
            (r#"{"body": "plain"}"#, "plain"),
        ] {
            let job = line(text).unwrap();
            assert_eq!(job.body, body, "{text}");
            assert_eq!(job.headers.priority, Priority::Low);
        }
        let job = line(
            r#"{"id": "a-1", "headers": {"ebb-priority": "high", "ebb-cost": 7}, "body": ""}"#,
        );
        let job = job.unwrap();
        assert_eq!((job.id.as_str(), job.headers.priority), ("a-1", Priority::High));
        assert_eq!(job.headers.cost, Some(7.0));
    }

    #[test]
    fn a_wrong_line_is_told_with_its_remedy() {
        for (text, told) in [
            ("not json", "not a JSON line"),
            ("[1]", "a string or an object"),
            (r#"{"body": "", "prio": 1}"#, "only id, headers and body"),
            (r#"{"body": "", "headers": []}"#, "no object"),
            (r#"{"body": "", "id": "a b"}"#, "without spaces"),
            (r#"{"body": "", "headers": {"ebb-ttl": "soon"}}"#, "such as 30s"),
        ] {
            let error = line(text).expect_err(text);
            assert!(format!("{error:#}").contains(told), "{text}: {error:#}");
            assert_eq!(Exit::of(&error), Exit::Usage, "{text}");
        }
    }

    #[test]
    fn a_traceparent_that_is_none_is_refused_and_one_that_is_travels_with_each_job() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let with = |text: &str| Envelope { traceparent: Some(text.into()), ..Envelope::default() };
        assert!(with("nonsense").check().unwrap_err().to_string().contains("--traceparent"));
        let job = with(good).job_of_text("a").unwrap();
        assert_eq!(job.headers.traceparent.as_deref(), Some(good));
    }

    #[tokio::test]
    async fn what_comes_before_a_bad_line_is_kept_and_the_line_is_numbered() {
        for (text, told) in [
            (&b"\"a\"\n\n\"b\"\n{bad\n\"c\"\n"[..], "line 4 of standard input"),
            (&b"\"a\"\n\"b\"\n\xff\n\"c\"\n"[..], "cannot read line 3 of standard input"),
        ] {
            let batches: Vec<_> = read_lines(text, Envelope::default()).collect().await;
            let (jobs, bad) = until_bad(batches.into_iter().flatten().collect());
            let bodies: Vec<_> = jobs.into_iter().map(|job| job.body).collect();
            assert_eq!(bodies, [r#"{"input":"a"}"#, r#"{"input":"b"}"#]);
            let bad = format!("{:#}", bad.expect(told));
            assert!(bad.starts_with(told), "{bad}");
        }
    }
}
