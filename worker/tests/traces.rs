//! Spans of a worker, at a collector.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use std::time::{Duration, Instant};

use clap::Parser;
use ebb_queue::{OpenOptions, Queue, QueueUrl, Timestamp};
use ebb_servers::{Collector, Seen};
use ebb_telemetry::TraceArgs;
use ebb_worker::{WorkerArgs, run};
use support::job;
use tokio_util::sync::CancellationToken;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PRODUCER: &str = "00f067aa0ba902b7";
const STAGES: [&str; 6] = ["queue", "decode", "wait", "infer", "store", "settle"];

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    worker: WorkerArgs,
}

/// A fresh queue, and a worker that empties it and sends its spans there.
async fn site(dir: &tempfile::TempDir, collector: &str) -> (Queue, WorkerArgs) {
    let url = QueueUrl::sqlite(dir.path().join("queue.db"));
    let queue = ebb_queue::open(&url, OpenOptions::default()).await.unwrap();
    let args = ["worker", "--model", "echo", "--exit-when-empty", "--id", "worker-1"];
    let args = args.into_iter().chain(["--otlp-endpoint", collector, "--queue"]);
    let args = args.map(str::to_owned).chain([url.to_string()]);
    let mut args = Cli::parse_from(args).worker;
    // The collector is to have all spans at the end, however slow the machine is.
    args.trace.flush = Duration::from_secs(30);
    (queue, args)
}

async fn publish(queue: &Queue, number: usize, body: &str, traceparent: Option<String>) {
    let mut job = job(number, body);
    job.enqueued_at = Timestamp::now();
    job.headers.traceparent = traceparent;
    queue.publish(vec![job]).await.unwrap();
}

fn job_span(spans: &[Seen], number: usize) -> &Seen {
    let id = format!("job-{number:04}");
    let is_it = |span: &&Seen| span.name == "job" && span.fields["job.id"] == id;
    spans.iter().find(is_it).unwrap()
}

/// The stages of a job, in the order in which they began.
fn stages<'a>(spans: &'a [Seen], job: &Seen) -> Vec<&'a Seen> {
    let mut stages: Vec<_> = spans.iter().filter(|span| span.parent == job.id).collect();
    stages.sort_by_key(|stage| stage.time);
    stages
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_leads_from_the_producer_through_every_stage() {
    let dir = tempfile::tempdir().unwrap();
    let collector = Collector::start().unwrap();
    let (queue, args) = site(&dir, &collector.url()).await;
    let body = r#"{"input": "hunter2", "sleep_ms": 50}"#;
    publish(&queue, 0, body, Some(format!("00-{TRACE}-{PRODUCER}-01"))).await;
    publish(&queue, 1, body, Some("nonsense".to_owned())).await;
    publish(&queue, 2, body, Some(format!("00-{TRACE}-{PRODUCER}-00"))).await;
    let summary = run(args, CancellationToken::new()).await.unwrap();
    assert_eq!(summary.completed, 3);

    let spans = collector.spans();
    let job = job_span(&spans, 0);
    assert_eq!((job.trace.as_str(), job.parent.as_str()), (TRACE, PRODUCER));
    assert_eq!((job.kind.as_str(), job.failed), ("consumer", false));
    assert_eq!(
        (job.fields["attempt"].as_str(), job.fields["outcome"].as_str()),
        ("1", "completed")
    );
    assert_eq!(job.resource["service.name"], "ebb-worker");
    assert_eq!(job.resource["service.instance.id"], "worker-1");

    let parts = stages(&spans, job);
    assert_eq!(parts.iter().map(|stage| stage.name.as_str()).collect::<Vec<_>>(), STAGES);
    assert!(parts.iter().all(|stage| stage.trace == TRACE));
    // The stages are the whole of the job: each begins where the one before it ended.
    assert!(parts.windows(2).all(|pair| pair[0].time.1 == pair[1].time.0), "{parts:#?}");
    assert_eq!((parts[0].time.0, parts[5].time.1), job.time);
    let infer = parts[3];
    assert!(infer.time.1 - infer.time.0 >= 50_000_000, "{infer:#?}");

    let batch = spans.iter().find(|span| infer.links.concat() == span.id).unwrap();
    assert_eq!((batch.name.as_str(), batch.parent.as_str()), ("batch", ""));
    assert!(batch.links.contains(&job.id), "{batch:#?}");
    assert_eq!(batch.time, infer.time);

    let stranger = job_span(&spans, 1);
    assert_eq!(stranger.parent, "");
    assert_ne!(stranger.trace, TRACE);
    // What its producer does not sample is not seen.
    assert_eq!(spans.iter().filter(|span| span.name == "job").count(), 2);
    let all = format!("{spans:?}");
    assert!(!all.contains("hunter2") && !all.contains("queue.db"), "{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_taken_apart_shows_each_of_its_runs() {
    let dir = tempfile::tempdir().unwrap();
    let collector = Collector::start().unwrap();
    let (queue, args) = site(&dir, &collector.url()).await;
    let jobs = (0..2).map(|number| {
        let mut job = job(number, r#"{"input": "a", "poison": true}"#);
        job.enqueued_at = Timestamp::now();
        job
    });
    queue.publish(jobs.collect()).await.unwrap();
    let summary = run(args, CancellationToken::new()).await.unwrap();
    assert_eq!(summary.failed, 2);

    let spans = collector.spans();
    let job = job_span(&spans, 0);
    assert_eq!((job.fields["outcome"].as_str(), job.failed), ("rejected", true));
    let stages = stages(&spans, job);
    let runs: Vec<_> = stages.iter().filter(|stage| stage.name == "infer").collect();
    assert_eq!(runs.len(), 2, "{stages:#?}");
    assert!(runs.iter().all(|run| run.failed));
    let batches = spans.iter().filter(|span| span.name == "batch");
    let sizes: Vec<_> = batches.map(|batch| batch.fields["batch.items"].as_str()).collect();
    assert_eq!(sizes, ["2", "1", "1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_several_turns_has_one_span_and_says_how_many() {
    let dir = tempfile::tempdir().unwrap();
    let collector = Collector::start().unwrap();
    let (queue, args) = site(&dir, &collector.url()).await;
    publish(&queue, 0, r#"{"input": "a b c", "stream": true, "turn_ms": 20}"#, None).await;
    let summary = run(args, CancellationToken::new()).await.unwrap();
    assert_eq!(summary.completed, 1);

    let spans = collector.spans();
    let job = job_span(&spans, 0);
    assert_eq!((&*job.fields["turns"], &*job.fields["outcome"]), ("3", "completed"));
    let parts = stages(&spans, job);
    assert_eq!(parts.iter().map(|stage| stage.name.as_str()).collect::<Vec<_>>(), STAGES);
    assert!(parts.windows(2).all(|pair| pair[0].time.1 == pair[1].time.0), "{parts:#?}");
    let batches: Vec<_> = spans.iter().filter(|span| span.name == "batch").collect();
    assert_eq!(batches.len(), 3);
    let (begin, end) = parts[3].time;
    assert!(batches.iter().all(|batch| begin <= batch.time.0 && batch.time.1 <= end));
    assert_eq!(batches.iter().map(|batch| batch.time.1).max(), Some(end));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_down_harms_no_job_and_holds_the_end_for_two_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let nobody = ebb_servers::Port::draw().unwrap();
    let (queue, mut args) = site(&dir, &format!("http://127.0.0.1:{}", nobody.number())).await;
    args.trace.flush = TraceArgs::default().flush;
    queue.publish((0..50).map(support::echo_job).collect()).await.unwrap();
    let stop = CancellationToken::new();
    let worker = tokio::spawn(run(WorkerArgs { exit_when_empty: false, ..args }, stop.clone()));
    while queue.depth().await.unwrap().ready + queue.depth().await.unwrap().in_flight > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let stopped = Instant::now();
    stop.cancel();
    assert_eq!(worker.await.unwrap().unwrap().completed, 50);
    // An export alone may take 10 s.
    assert!(stopped.elapsed() < Duration::from_secs(8), "{:?}", stopped.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_is_none_is_told_before_anything_begins() {
    let dir = tempfile::tempdir().unwrap();
    let (_, args) = site(&dir, "collector:4317").await;
    let error = run(args, CancellationToken::new()).await.unwrap_err().to_string();
    assert!(error.contains("--otlp-endpoint is no URL"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_is_in_the_trace_of_its_job() {
    for traced in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let collector = Collector::start().unwrap();
        let (queue, mut args) = site(&dir, &collector.url()).await;
        if !traced {
            args.trace.otlp_endpoint = None;
        }
        let mut asking = job(0, r#"{"input": "a"}"#);
        asking.enqueued_at = Timestamp::now();
        asking.headers.reply_to = Some("inbox".to_owned());
        let own = format!("00-{TRACE}-{PRODUCER}-01");
        asking.headers.traceparent = Some(own.clone());
        queue.publish(vec![asking]).await.unwrap();
        assert_eq!(run(args, CancellationToken::new()).await.unwrap().completed, 1);

        let inbox = QueueUrl::sqlite(dir.path().join("queue.db")).with_queue("inbox").unwrap();
        let inbox = ebb_queue::open(&inbox, OpenOptions::default()).await.unwrap();
        let reply = inbox.receive(std::num::NonZeroUsize::MIN, Duration::ZERO).await.unwrap();
        let expected = if traced {
            format!("00-{TRACE}-{}-01", job_span(&collector.spans(), 0).id)
        } else {
            own
        };
        assert_eq!(reply[0].job.headers.traceparent, Some(expected), "traced: {traced}");
    }
}
