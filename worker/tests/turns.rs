//! Jobs that take several turns of their model, and what they say meanwhile to who follows them.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ebb_model::echo::{Echo, EchoInput};
use ebb_model::{InferError, ItemError, Model};
use ebb_queue::faulty::{Faults, Faulty};
use ebb_queue::memory::MemoryQueue;
use ebb_queue::{
    AnyQueue, Backlog, Broker, Clock, DeadLetters, ErrorKind, Failure, FailureKind, Frame, Job,
    JobId, JobResult, Outcome, Priority, Result, ResultStore, Stored,
};
use ebb_worker::batcher::Size;
use ebb_worker::{
    Answer, BadJob, Codec, Device, EchoCodec, ModelParts, Next, Pipeline, Settings, Spent, Step,
};
use futures::StreamExt;
use futures::stream::BoxStream;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use support::{job, parts, parts_of, pipeline, queue, served, settings};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const LEASE: Duration = Duration::from_secs(30);
const TURN: Duration = Duration::from_millis(50);

/// A text of so many words, which is said in as many turns.
fn text(number: usize, n_words: usize) -> String {
    (0..n_words).map(|word| format!("{number}.{word} ")).collect()
}

/// A job that is streamed, with these fields besides.
fn stream_job(number: usize, n_words: usize, besides: &str) -> Job {
    let input = text(number, n_words);
    job(number, &format!(r#"{{"input": "{input}", "stream": true{besides}}}"#))
}

fn whole(number: usize, n_words: usize) -> String {
    serde_json::json!({ "output": text(number, n_words) }).to_string()
}

fn until_empty() -> Settings {
    Settings { exit_when_empty: true, ..settings() }
}

fn at_once(n: usize) -> Settings {
    let mut settings = until_empty();
    settings.limits.max_items = NonZeroUsize::new(n).unwrap();
    settings
}

/// The batches that ran: of each item its input and its turn.
type Ran = Arc<Mutex<Vec<Vec<(String, usize)>>>>;

/// An echo that takes a turn's time for a batch, and what it ran.
fn watched(echo: Echo) -> (Device<EchoInput, String>, Ran) {
    let ran = Ran::default();
    let batches = Arc::clone(&ran);
    let device = Device::inline(echo, move |batch: &[EchoInput]| {
        let items = batch.iter().map(|item| (item.input.clone(), item.turn));
        batches.lock().unwrap().push(items.collect());
        TURN
    });
    (device, ran)
}

/// What who follows a job that has ended is told: the attempt and the pieces, and the result.
async fn followed(queue: &MemoryQueue, number: usize) -> (Vec<(u32, Bytes)>, JobResult) {
    let id: JobId = format!("job-{number:04}").parse().unwrap();
    let mut frames = queue.follow(&id, 0).await.unwrap();
    let mut pieces = Vec::new();
    while let Some(frame) = frames.next().await {
        match frame.unwrap() {
            Frame::Chunk { attempt, seq, body } => {
                assert_eq!(seq, pieces.len() as u64, "{id}");
                pieces.push((attempt, body));
            }
            Frame::Final(result) => return (pieces, result),
        }
    }
    panic!("{id} has no result");
}

/// Looks at a job that was streamed to its end: what came is what was answered.
async fn assert_streamed(queue: &MemoryQueue, number: usize, n_words: usize) -> u32 {
    let (pieces, result) = followed(queue, number).await;
    let Outcome::Completed { body, .. } = result.outcome else { panic!("{result:?}") };
    assert_eq!(body, whole(number, n_words));
    let said: Vec<u8> = pieces.iter().flat_map(|(_, body)| body.to_vec()).collect();
    assert_eq!(String::from_utf8(said).unwrap(), text(number, n_words), "job {number}");
    assert!(pieces.iter().all(|(attempt, _)| *attempt == result.attempt), "{pieces:?}");
    result.attempt
}

#[tokio::test(start_paused = true)]
async fn a_job_goes_on_until_all_is_said_and_its_pieces_are_its_answer() {
    let (queue, clock) = queue(LEASE);
    let (device, ran) = watched(Echo::new());
    queue.publish((0..8).map(|n| stream_job(n, 1 + 3 * n, "")).collect()).await.unwrap();
    queue.publish(vec![support::echo_job(8), stream_job(9, 0, "")]).await.unwrap();
    let start = Instant::now();
    let worker = pipeline(&Arc::new(queue.clone()), &clock, device, until_empty());
    let summary = worker.run(CancellationToken::new()).await.unwrap();
    assert_eq!((summary.completed, summary.failed), (10, 0));
    for number in 0..8 {
        assert_eq!(assert_streamed(&queue, number, 1 + 3 * number).await, 1);
    }
    assert_eq!(followed(&queue, 8).await.0, [], "it did not ask for pieces");
    assert_eq!(assert_streamed(&queue, 9, 0).await, 1);
    let sizes: Vec<usize> = ran.lock().unwrap().iter().map(Vec::len).collect();
    assert_eq!(sizes.len(), 22, "{sizes:?}");
    assert!(sizes.is_sorted_by(|a, b| a >= b), "all that go on do so together: {sizes:?}");
    assert!(start.elapsed() < 22 * TURN + Duration::from_millis(200), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn who_arrives_joins_those_under_way_and_no_more_run_at_once_than_fit() {
    let (queue, clock) = queue(LEASE);
    let (device, ran) = watched(Echo::new());
    let mut settings = at_once(4);
    settings.exit_when_empty = false;
    queue.publish((0..3).map(|n| stream_job(n, 20, "")).collect()).await.unwrap();
    let stop = CancellationToken::new();
    let worker = turner((&queue, &clock), device, settings);
    let worker = tokio::spawn(worker.run(stop.clone()));
    tokio::time::sleep(5 * TURN).await;
    queue.publish((3..9).map(|n| stream_job(n, 5, "")).collect()).await.unwrap();
    let mut urgent = stream_job(9, 2, "");
    urgent.headers.priority = Priority::High;
    tokio::time::sleep(3 * TURN).await;
    queue.publish(vec![urgent]).await.unwrap();
    support::until(&queue, |depth| depth.ready + depth.in_flight == 0).await;
    stop.cancel();
    worker.await.unwrap().unwrap();
    let ran = ran.lock().unwrap().clone();
    let mut under_way: BTreeMap<String, usize> = BTreeMap::new();
    for batch in &ran {
        assert!(batch.len() <= 4, "{batch:?}");
        let n_urgent = batch.iter().filter(|(input, _)| input.starts_with("9.")).count();
        let n_missing =
            under_way.keys().filter(|input| !batch.iter().any(|(one, _)| one == *input)).count();
        assert!(n_missing <= n_urgent, "{batch:?} without all of {under_way:?}");
        for (input, turn) in batch {
            assert_eq!(under_way.remove(input).unwrap_or_default(), *turn, "each turn once");
            if turn + 1 < input.split_whitespace().count() {
                under_way.insert(input.clone(), turn + 1);
            }
        }
    }
    assert!(under_way.is_empty());
    let first = |number: &str| {
        ran.iter().position(|batch| batch.iter().any(|(input, _)| input.starts_with(number)))
    };
    assert!(first("3.").unwrap() < 8, "there was room for one");
    assert!(first("9.") < first("5."), "urgent");
    for number in 3..9 {
        assert_streamed(&queue, number, 5).await;
    }
}

/// Runs 64 jobs of six words, of which one does as told; how often which turn ran of the others.
async fn one_spoils(besides: &str, echo: Echo) -> (MemoryQueue, BTreeMap<(String, usize), usize>) {
    let (queue, clock) = queue(LEASE);
    let (device, ran) = watched(echo);
    let jobs = (0..64).map(|n| stream_job(n, 6, if n == 41 { besides } else { "" }));
    queue.publish(jobs.collect()).await.unwrap();
    let worker = pipeline(&Arc::new(queue.clone()), &clock, device, until_empty());
    worker.run(CancellationToken::new()).await.unwrap();
    let mut n_times = BTreeMap::new();
    for item in ran.lock().unwrap().iter().flatten() {
        *n_times.entry(item.clone()).or_default() += 1;
    }
    (queue, n_times)
}

#[tokio::test(start_paused = true)]
async fn one_that_spoils_its_third_turn_among_64_is_rejected_alone_and_the_others_go_on() {
    for (besides, reason) in [
        (r#", "poison_at": 2"#, "batch failed: an item is poison"),
        (r#", "panic_at": 2"#, "batch failed: panic: an item asked for a panic"),
    ] {
        let (queue, n_times) = one_spoils(besides, Echo::new()).await;
        let dead = queue.list(10).await.unwrap();
        assert_eq!(dead.len(), 1, "{dead:?}");
        assert_eq!((dead[0].job.id.as_str(), &*dead[0].reason), ("job-0041", reason));
        for number in (0..64).filter(|number| *number != 41) {
            assert_eq!(assert_streamed(&queue, number, 6).await, 1);
            for turn in [0, 1, 3, 4, 5] {
                assert_eq!(n_times[&(text(number, 6), turn)], 1, "{number} at turn {turn}");
            }
        }
        assert_eq!(followed(&queue, 41).await.0, [], "pieces of a failure are void");
    }
}

#[tokio::test(start_paused = true)]
async fn turns_that_do_not_fit_the_memory_are_taken_in_parts() {
    let (queue, n_times) = one_spoils("", Echo::new().with_memory_for(20)).await;
    for number in 0..64 {
        assert_eq!(assert_streamed(&queue, number, 6).await, 1);
    }
    assert!(queue.list(10).await.unwrap().is_empty());
    let again = n_times.iter().filter(|((_, turn), n)| *turn > 0 && **n > 1).count();
    assert_eq!(again, 0, "it is remembered from the first turn");
}

/// A worker with so many turns before it that is stopped after a second.
async fn stopped(n_words: usize, grace: Duration) -> (MemoryQueue, Summarised) {
    let (queue, clock) = queue(LEASE);
    queue.publish((0..8).map(|n| stream_job(n, n_words, "")).collect()).await.unwrap();
    let settings = Settings { grace, exit_when_empty: false, ..at_once(4) };
    let (device, _) = watched(Echo::new());
    let stop = CancellationToken::new();
    let worker = turner((&queue, &clock), device, settings);
    let worker = tokio::spawn(worker.run(stop.clone()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.cancel();
    let stopped = Instant::now();
    let summary = worker.await.unwrap().unwrap();
    let counts = [summary.completed, summary.released, summary.left, summary.failed];
    (queue, Summarised { counts, took: stopped.elapsed() })
}

struct Summarised {
    /// Completed, released, left, failed.
    counts: [u64; 4],
    took: Duration,
}

#[tokio::test(start_paused = true)]
async fn a_drain_finishes_who_has_begun_and_gives_back_who_has_not() {
    let (queue, Summarised { counts, took }) = stopped(40, Duration::from_secs(25)).await;
    assert_eq!(counts, [4, 0, 0, 0], "no more were received than run");
    assert!(took < Duration::from_secs(2), "{took:?}");
    for number in 0..4 {
        assert_eq!(assert_streamed(&queue, number, 40).await, 1);
    }
    let again = queue.receive(NonZeroUsize::new(8).unwrap(), Duration::ZERO).await.unwrap();
    assert!(again.len() == 4 && again.iter().all(|delivery| delivery.attempt == 1));
}

#[tokio::test(start_paused = true)]
async fn who_is_not_done_before_the_grace_period_ends_is_given_back_and_begins_anew_uncharged() {
    let (queue, Summarised { counts, took }) = stopped(400, Duration::from_secs(9)).await;
    assert_eq!(counts, [0, 4, 0, 0]);
    assert!(took >= Duration::from_secs(7) && took < Duration::from_secs(8), "{took:?}");
    let (counts, took) = {
        let (_, short) = stopped(400, Duration::from_secs(3)).await;
        (short.counts, short.took)
    };
    assert_eq!(counts, [0, 4, 0, 0]);
    assert!(took < Duration::from_secs(3), "{took:?}");

    // Somebody follows it on.
    let mut frames = queue.follow(&"job-0000".parse().unwrap(), 0).await.unwrap();
    let Some(Ok(Frame::Chunk { attempt: 1, seq: 0, .. })) = frames.next().await else {
        panic!("it has said something")
    };
    let (device, _) = watched(Echo::new());
    let clock = ebb_queue::TokioClock::starting_at(support::EPOCH);
    let clock: Arc<dyn Clock> = Arc::new(clock);
    let worker = turner((&queue, &clock), device, at_once(8));
    let summary = worker.run(CancellationToken::new()).await.unwrap();
    assert_eq!(summary.completed, 8);
    for number in 0..4 {
        assert_eq!(assert_streamed(&queue, number, 400).await, 2, "attempt 1 had spoken");
    }
    for number in 4..8 {
        assert_eq!(assert_streamed(&queue, number, 400).await, 1);
    }
    let mut said = Vec::new();
    while let Some(Ok(frame)) = frames.next().await {
        match frame {
            Frame::Chunk { attempt: 1, .. } => {}
            Frame::Chunk { body, .. } => said.extend_from_slice(&body),
            Frame::Final(result) => assert_eq!(result.attempt, 2),
        }
    }
    assert_eq!(String::from_utf8(said).unwrap(), text(0, 400));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_ends_after_so_many_jobs_takes_all_their_turns() {
    let (queue, clock) = queue(LEASE);
    queue.publish((0..5).map(|n| stream_job(n, 20, "")).collect()).await.unwrap();
    let (device, _) = watched(Echo::new());
    let settings = Settings { exit_when_empty: false, max_jobs: Some(2), ..at_once(4) };
    let worker = turner((&queue, &clock), device, settings);
    let summary = worker.run(CancellationToken::new()).await.unwrap();
    assert_eq!((summary.completed, summary.released, summary.left), (2, 0, 0));
    assert_streamed(&queue, 1, 20).await;
}

/// A job that kills its process in a later turn charges who is beside it; they prove themselves alone.
#[tokio::test(start_paused = true)]
async fn a_job_that_kills_its_worker_in_its_fourth_turn_takes_nobody_with_it() {
    let (queue, clock) = queue(LEASE);
    let mut jobs: Vec<Job> = (0..12).map(|n| stream_job(n, 6, "")).collect();
    jobs[5] = job(5, r#"{"input": "k i l l s", "stream": true}"#);
    queue.publish(jobs).await.unwrap();
    for n_lives in 0.. {
        let killed = CancellationToken::new();
        let kill = killed.clone();
        let device = Device::inline(Echo::new(), move |batch: &[EchoInput]| {
            if batch.iter().any(|item| item.input == "k i l l s" && item.turn == 3) {
                kill.cancel();
            }
            TURN
        });
        let work = turner((&queue, &clock), device, at_once(8));
        let is_killed = tokio::select! { biased;
            () = killed.cancelled() => true,
            ended = work.run(CancellationToken::new()) => ended.is_err(),
        };
        let depth = queue.depth().await.unwrap();
        if !is_killed && depth.in_flight + depth.ready + depth.delayed == 0 {
            break;
        }
        assert!(n_lives < 30, "{depth:?}");
        tokio::time::sleep(LEASE).await;
    }
    let dead = queue.list(20).await.unwrap();
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert_eq!(dead[0].job.id.as_str(), "job-0005");
    for number in (0..12).filter(|number| *number != 5) {
        assert_streamed(&queue, number, 6).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_wedge_gives_back_what_is_between_two_turns() {
    let (queue, clock) = queue(LEASE);
    let stuck = Device::inline(Echo::new(), |batch: &[EchoInput]| {
        if batch[0].input == "stuck" { Duration::from_secs(600) } else { TURN }
    });
    let models = ["first", "second"].map(|name| ModelParts::new(name, EchoCodec, stuck.clone()));
    let queues = vec![served("default", &Arc::new(queue.clone()), models.to_vec())];
    let worker = Pipeline::new(parts_of(queues, &clock, settings()));
    queue.publish(vec![stream_job(0, 100, "")]).await.unwrap();
    let worker = tokio::spawn(worker.run(CancellationToken::new()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut wedge = job(1, r#"{"input": "stuck"}"#);
    wedge.headers.model = Some("second".to_owned());
    queue.publish(vec![wedge]).await.unwrap();
    support::until(&queue, |depth| depth.in_flight == 2).await;
    support::until(&queue, |depth| depth.ready == 1).await;
    let one = queue.receive(NonZeroUsize::MIN, Duration::ZERO).await.unwrap();
    assert_eq!((one[0].job.id.as_str(), one[0].attempt), ("job-0000", 1));
    worker.abort();
}

/// A worker that is told to stop while a job between two turns lies before its device, behind a batch
/// that takes so long, though those before it were quick; that worker, and the summary of its end.
async fn stopped_behind(
    takes: Duration,
    settings: Settings,
) -> (MemoryQueue, tokio::task::JoinHandle<ebb_worker::Summary>) {
    let (queue, clock) = queue(LEASE);
    let device = Device::inline(
        Echo::new(),
        move |batch: &[EchoInput]| {
            if batch[0].input == "long" { takes } else { TURN }
        },
    );
    let models = ["first", "second"].map(|name| ModelParts::new(name, EchoCodec, device.clone()));
    let queues = vec![served("default", &Arc::new(queue.clone()), models.to_vec())];
    let stop = CancellationToken::new();
    let worker = Pipeline::new(parts_of(queues, &clock, settings)).run(stop.clone());
    let worker = tokio::spawn(async move { worker.await.unwrap() });
    let mut streams = stream_job(0, 1_000, "");
    streams.headers.model = Some("second".to_owned());
    queue.publish(vec![streams]).await.unwrap();
    for number in 1..=10 {
        let body = if number < 10 { r#"{"input": "quick"}"# } else { r#"{"input": "long"}"# };
        queue.publish(vec![job(number, body)]).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(queue.depth().await.unwrap().in_flight, 2);
    stop.cancel();
    (queue, worker)
}

/// That the job which went on is ready again, and charged nothing.
async fn assert_given_back(queue: &MemoryQueue) {
    let back = queue.receive(NonZeroUsize::new(9).unwrap(), Duration::ZERO).await.unwrap();
    let back: Vec<_> = back.iter().map(|one| (one.job.id.as_str(), one.attempt)).collect();
    assert_eq!(back, [("job-0000", 1)]);
}

#[tokio::test(start_paused = true)]
async fn who_lies_before_the_device_between_two_turns_is_given_back_when_the_turns_end() {
    let grace = Duration::from_secs(9);
    let settings = Settings { grace, ..settings() };
    let (queue, worker) = stopped_behind(Duration::from_secs(20), settings).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(queue.depth().await.unwrap().in_flight, 2, "it may have its next turn yet");
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_given_back(&queue).await;
    let summary = worker.await.unwrap();
    assert_eq!((summary.completed, summary.released, summary.left), (9, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn who_lies_before_a_device_that_is_wedged_while_its_worker_drains_is_given_back() {
    let settings = Settings { stall: Duration::from_secs(3), ..settings() };
    let (queue, worker) = stopped_behind(Duration::from_secs(400), settings).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_given_back(&queue).await;
    let summary = worker.await.unwrap();
    assert_eq!((summary.completed, summary.released, summary.left), (9, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn who_has_lost_its_lease_stops_and_the_next_attempt_is_followed_from_its_beginning() {
    let (queue, clock) = queue(LEASE);
    let faults = Faults { end_lease: 1.0, ..Faults::NONE };
    let faulty = Faulty::new(Arc::new(queue.clone()), faults, 5);
    let (device, ran) = watched(Echo::new());
    queue.publish(vec![stream_job(0, 2_000, "")]).await.unwrap();
    let parts = parts(&Arc::new(faulty.clone()), &clock, device, until_empty());
    let metrics = parts.metrics.clone();
    let worker = tokio::spawn(Pipeline::new(parts).run(CancellationToken::new()));
    tokio::time::sleep(Duration::from_millis(100)).await;
    faulty.set(Faults::NONE);
    let summary = worker.await.unwrap().unwrap();
    assert_eq!((summary.completed, summary.lost, metrics.leases_lost.get()), (1, 1, 1));
    assert_eq!(assert_streamed(&queue, 0, 2_000).await, 2);
    let n_turns = ran.lock().unwrap().len();
    assert!(n_turns > 2_000 && n_turns < 3_000, "the first attempt stopped: {n_turns}");
}

#[tokio::test(start_paused = true)]
async fn a_job_that_was_answered_before_a_crash_is_not_made_twice() {
    let (queue, clock) = queue(LEASE);
    let (device, ran) = watched(Echo::new());
    queue.publish(vec![stream_job(0, 400, "")]).await.unwrap();
    let outcome =
        Outcome::Completed { content_type: ebb_queue::JSON.to_owned(), body: "answered".into() };
    let (id, finished_at) = ("job-0000".parse().unwrap(), support::EPOCH);
    let result = JobResult { id, attempt: 1, outcome, finished_at, queue: None };
    queue.put(&result).await.unwrap();
    let worker = pipeline(&Arc::new(queue.clone()), &clock, device, until_empty());
    let summary = worker.run(CancellationToken::new()).await.unwrap();
    assert_eq!((summary.completed, summary.lost), (1, 0));
    assert_eq!(support::answer(&queue, 0).await.as_deref(), Some("answered"));
    assert!(ran.lock().unwrap().len() < 5, "it stopped when that was found");
}

/// A store that takes no pieces at some times.
struct Deaf {
    queue: MemoryQueue,
    takes_pieces: AtomicBool,
    /// Why it takes none.
    why: ErrorKind,
}

#[async_trait]
impl ResultStore for Deaf {
    async fn put(&self, result: &JobResult) -> Result<Stored> {
        self.queue.put(result).await
    }
    async fn get(&self, id: &JobId) -> Result<Option<JobResult>> {
        self.queue.get(id).await
    }
    async fn chunk(&self, id: &JobId, attempt: u32, seq: u64, body: Bytes) -> Result<Stored> {
        if !self.takes_pieces.load(Relaxed) {
            return Err(ebb_queue::Error::new(self.why, "no pieces now"));
        }
        self.queue.chunk(id, attempt, seq, body).await
    }
    async fn follow(&self, id: &JobId, from_seq: u64) -> Result<BoxStream<'static, Result<Frame>>> {
        self.queue.follow(id, from_seq).await
    }
    fn result_ttl(&self) -> Duration {
        self.queue.result_ttl()
    }
}

fn deaf(queue: &MemoryQueue, why: ErrorKind) -> Deaf {
    Deaf { queue: queue.clone(), takes_pieces: AtomicBool::new(false), why }
}

/// Streams a job of 100 words to a store that is deaf for so long; how long it took, how many pieces
/// there are, and how many were stored and given up.
async fn deaf_for(span: Duration, why: ErrorKind) -> (Duration, usize, [u64; 2]) {
    let (queue, clock) = queue(LEASE);
    let (device, _) = watched(Echo::new());
    queue.publish(vec![stream_job(0, 100, "")]).await.unwrap();
    let mut parts = parts(&Arc::new(queue.clone()), &clock, device, until_empty());
    let store = Arc::new(deaf(&queue, why));
    parts.queues[0].results = Arc::clone(&store) as Arc<dyn ResultStore>;
    let (metrics, start) = (parts.metrics.clone(), Instant::now());
    let worker = tokio::spawn(Pipeline::new(parts).run(CancellationToken::new()));
    tokio::time::sleep(span).await;
    store.takes_pieces.store(true, Relaxed);
    assert_eq!(worker.await.unwrap().unwrap().completed, 1);
    let (pieces, result) = followed(&queue, 0).await;
    assert!(result.outcome.is_completed());
    let said: Vec<u8> = pieces.iter().flat_map(|(_, body)| body.to_vec()).collect();
    assert!(text(0, 100).as_bytes().starts_with(&said));
    let counts = ["stored", "given_up"];
    let counts = counts.map(|outcome| metrics.chunks.with_label_values(&[outcome]).get());
    (start.elapsed(), pieces.len(), counts)
}

#[tokio::test(start_paused = true)]
async fn a_store_that_takes_no_pieces_for_a_while_holds_up_no_turn_and_gets_them_joined() {
    let (took, n_pieces, [n_stored, n_given_up]) =
        deaf_for(Duration::from_secs(1), ErrorKind::Unavailable).await;
    assert!(took < Duration::from_secs(6), "{took:?}");
    assert!(n_pieces > 10 && n_pieces < 90, "{n_pieces}");
    assert_eq!((n_stored, n_given_up), (n_pieces as u64, 0));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_refuses_a_few_times_as_it_comes_back_gets_all_pieces() {
    let (_, n_pieces, counts) = deaf_for(Duration::from_millis(300), ErrorKind::Internal).await;
    assert_eq!(counts, [n_pieces as u64, 0]);
}

#[tokio::test(start_paused = true)]
async fn pieces_that_cannot_be_stored_keep_no_answer() {
    // One that it may take later, and one that it refuses at once, with all that follow.
    for why in [ErrorKind::Unavailable, ErrorKind::Invalid] {
        let (took, n_pieces, counts) = deaf_for(Duration::from_secs(60), why).await;
        assert!(took >= Duration::from_secs(60), "that is how long the test waits");
        assert_eq!((n_pieces, counts), (0, [0, 100]), "{why:?}");
    }
}

/// An echo whose jobs take turns as a rule, that cannot go on where it is told so.
enum Turner {
    /// Answers as an echo does.
    Echoes,
    /// Answers what the job took of the device.
    Counts,
}

fn turner(
    (queue, clock): (&MemoryQueue, &Arc<dyn Clock>),
    device: Device<EchoInput, String>,
    settings: Settings,
) -> Pipeline {
    let models = vec![ModelParts::new("turner", Turner::Echoes, device)];
    let queues = vec![served("default", &Arc::new(queue.clone()), models)];
    Pipeline::new(parts_of(queues, clock, settings))
}

impl Codec for Turner {
    type Input = EchoInput;
    type Output = String;
    type Asked = ();

    const TAKES_TURNS: bool = true;

    fn decode(&self, job: &Job) -> std::result::Result<(EchoInput, ()), BadJob> {
        EchoCodec.decode(job)
    }

    fn size(&self, input: &EchoInput) -> Size {
        EchoCodec.size(input)
    }

    fn advance(
        &self,
        input: EchoInput,
        output: String,
        asked: &mut (),
        job: &Job,
    ) -> std::result::Result<Step<EchoInput, String>, BadJob> {
        assert_ne!(output, "panic ", "a bug");
        if output == "bad " {
            return Err(BadJob::new("input: a word is bad".to_owned()));
        }
        let waits = output == "wait ";
        let step = EchoCodec.advance(input, output, asked, job)?;
        Ok(match step.next {
            Next::Turn(input) if waits => Step { next: Next::Wait(input), ..step },
            _ => step,
        })
    }

    fn encode(&self, output: String, (): (), job: &Job, spent: &Spent) -> Answer {
        let answer = EchoCodec.encode(output, (), job, spent);
        match self {
            Self::Echoes => answer,
            Self::Counts => {
                let body = format!("{:.2} {:.2}", spent.seconds, spent.share).into();
                Answer { body, ..answer }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_queue_of_a_generator_holds_as_many_jobs_as_run_and_publishes_no_time_of_a_batch() {
    let (queue, clock) = queue(LEASE);
    let (device, _) = watched(Echo::new());
    queue.publish((0..20).map(|n| stream_job(n, 10, "")).collect()).await.unwrap();
    let models = vec![ModelParts::new("turner", Turner::Counts, device)];
    let settings = Settings { exit_when_empty: false, ..at_once(4) };
    let queues = vec![served("default", &Arc::new(queue.clone()), models)];
    let worker = Pipeline::new(parts_of(queues, &clock, settings));
    let stop = CancellationToken::new();
    let worker = tokio::spawn(worker.run(stop.clone()));
    let mut most = 0;
    loop {
        let depth = queue.depth().await.unwrap();
        most = most.max(depth.in_flight);
        if depth.ready + depth.in_flight == 0 {
            break;
        }
        let told = queue.workers().await.unwrap();
        assert!(told.iter().all(|status| status.batch_time.is_none()), "{told:?}");
        tokio::time::sleep(TURN).await;
    }
    stop.cancel();
    assert_eq!(worker.await.unwrap().unwrap().completed, 20);
    assert_eq!(most, 4);
    // Ten turns in batches of four.
    assert_eq!(support::answer(&queue, 0).await.as_deref(), Some("0.12 0.25"));
}

#[tokio::test(start_paused = true)]
async fn a_codec_that_cannot_go_on_rejects_its_job_alone() {
    let (queue, clock) = queue(LEASE);
    let (device, _) = watched(Echo::new());
    let bodies = ["a bad c", "a panic c", "a b c"];
    let jobs = bodies.iter().enumerate();
    let jobs = jobs.map(|(n, text)| job(n, &format!(r#"{{"input": "{text}", "stream": true}}"#)));
    queue.publish(jobs.collect()).await.unwrap();
    let models = vec![ModelParts::new("turner", Turner::Counts, device)];
    let queues = vec![served("default", &Arc::new(queue.clone()), models)];
    let worker = Pipeline::new(parts_of(queues, &clock, until_empty()));
    let summary = worker.run(CancellationToken::new()).await.unwrap();
    assert_eq!((summary.completed, summary.failed), (1, 2));
    let mut dead = queue.list(10).await.unwrap();
    dead.sort_by(|a, b| a.job.id.cmp(&b.job.id));
    let told = |nth: usize| (dead[nth].kind, &*dead[nth].reason);
    assert_eq!(told(0), (FailureKind::Invalid, "input: a word is bad"));
    assert_eq!(told(1), (FailureKind::Model, "a turn made the codec panic; a bug of ours"));
}

#[tokio::test(start_paused = true)]
async fn a_batch_in_which_nobody_has_room_pauses_and_one_in_which_somebody_has_does_not() {
    for (others, n_pauses) in [("wait ".repeat(40), 40), ("wait say ".repeat(20), 20)] {
        for (first, n_pauses) in [(others.clone(), n_pauses), ("say ".repeat(40), 0)] {
            let (queue, clock) = queue(LEASE);
            let device = Device::inline(Echo::new(), |_: &[EchoInput]| Duration::ZERO);
            let texts = [first, others.clone(), others.clone()].into_iter().enumerate();
            let jobs = texts
                .map(|(n, text)| job(n, &format!(r#"{{"input": "{text}end", "stream": true}}"#)));
            queue.publish(jobs.collect()).await.unwrap();
            let start = Instant::now();
            let worker = turner((&queue, &clock), device, until_empty());
            assert_eq!(worker.run(CancellationToken::new()).await.unwrap().completed, 3);
            let (took, pauses) = (start.elapsed(), n_pauses * Duration::from_millis(5));
            let most = pauses + Duration::from_millis(90);
            assert!((pauses..most).contains(&took), "{n_pauses} pauses in {took:?}");
        }
    }
}

/// An echo that says of each word in which life of which worker it was said: what several workers have
/// said of one answer is seen.
#[derive(Clone)]
struct Lived {
    echo: Echo,
    life: usize,
    /// Whether it fails each item.
    fails: bool,
}

impl Model for Lived {
    type Input = EchoInput;
    type Output = String;

    fn infer(
        &mut self,
        batch: &[EchoInput],
    ) -> std::result::Result<Vec<std::result::Result<String, ItemError>>, InferError> {
        let said =
            |word: String| if word.is_empty() { word } else { format!("{}:{word}", self.life) };
        let end = |word: std::result::Result<String, ItemError>| match self.fails {
            true => Err(ItemError::new("it fails in this life")),
            false => word.map(said),
        };
        Ok(self.echo.infer(batch)?.into_iter().map(end).collect())
    }
}

/// Answers with what was said turn by turn.
struct LivedCodec;

impl Codec for LivedCodec {
    type Input = EchoInput;
    type Output = String;
    type Asked = String;

    const TAKES_TURNS: bool = true;

    fn decode(&self, job: &Job) -> std::result::Result<(EchoInput, String), BadJob> {
        Ok((EchoCodec.decode(job)?.0, String::new()))
    }

    fn size(&self, input: &EchoInput) -> Size {
        EchoCodec.size(input)
    }

    fn advance(
        &self,
        input: EchoInput,
        output: String,
        said: &mut String,
        job: &Job,
    ) -> std::result::Result<Step<EchoInput, String>, BadJob> {
        said.push_str(&output);
        let Step { next, piece } = EchoCodec.advance(input, output, &mut (), job)?;
        let next = match next {
            Next::Answer(_) => Next::Answer(std::mem::take(said)),
            turn @ (Next::Turn(_) | Next::Wait(_)) => turn,
        };
        Ok(Step { next, piece })
    }

    fn encode(&self, output: String, _: String, job: &Job, spent: &Spent) -> Answer {
        EchoCodec.encode(output, (), job, spent)
    }
}

/// A worker in this life, whose batches take so long, with another store of results where one is given.
fn living<Q: AnyQueue + 'static>(
    queue: &Arc<Q>,
    store: Option<Arc<dyn ResultStore>>,
    (life, turn, fails): (usize, Duration, bool),
    settings: Settings,
) -> Pipeline {
    let clock: Arc<dyn Clock> = Arc::new(ebb_queue::TokioClock::starting_at(support::EPOCH));
    let model = Lived { echo: Echo::new(), life, fails };
    let device = Device::inline(model, move |_: &[EchoInput]| turn);
    let mut one = served("default", queue, vec![ModelParts::new("lived", LivedCodec, device)]);
    one.results = store.unwrap_or(one.results);
    Pipeline::new(parts_of(vec![one], &clock, settings))
}

/// Looks at who follows a job that a worker in one life has answered: all pieces are of that life, or
/// there are none; the attempt, and how many pieces there are.
async fn assert_of_one_life(queue: &MemoryQueue, number: usize, n_words: usize) -> (u32, usize) {
    let (pieces, result) = followed(queue, number).await;
    let Outcome::Completed { body, .. } = result.outcome else { panic!("{result:?}") };
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let answer = body["output"].as_str().unwrap();
    let words: Vec<(&str, &str)> =
        answer.split_whitespace().map(|word| word.split_once(':').unwrap()).collect();
    assert!(words.iter().all(|(life, _)| *life == words[0].0), "{answer}");
    let told: String = words.iter().map(|(_, word)| format!("{word} ")).collect();
    assert_eq!(told, text(number, n_words));
    assert!(pieces.iter().all(|(attempt, _)| *attempt == result.attempt), "{pieces:?}");
    let said: Vec<u8> = pieces.iter().flat_map(|(_, body)| body.to_vec()).collect();
    let said = String::from_utf8(said).unwrap();
    assert!(said.is_empty() || said == answer, "{number}: {said} is not all of {answer}");
    (result.attempt, pieces.len())
}

/// A queue with a job of 400 words that as many workers have given back midway, and what they said.
async fn given_back(n_times: usize, besides: &[(&str, &str)]) -> MemoryQueue {
    let (queue, _) = queue(LEASE);
    let mut job = stream_job(0, 400, "");
    besides.iter().for_each(|(name, value)| job.set(name, value).unwrap());
    queue.publish(vec![job]).await.unwrap();
    for life in 0..n_times {
        let settings =
            Settings { grace: Duration::from_millis(600), exit_when_empty: false, ..at_once(4) };
        let worker = living(&Arc::new(queue.clone()), None, (life, TURN, false), settings);
        let stop = CancellationToken::new();
        let worker = tokio::spawn(worker.run(stop.clone()));
        tokio::time::sleep(Duration::from_secs(1)).await;
        stop.cancel();
        assert_eq!(worker.await.unwrap().unwrap().released, 1);
    }
    queue
}

#[tokio::test(start_paused = true)]
async fn a_job_that_was_given_back_twice_can_be_rejected_in_its_first_turn() {
    let queue = given_back(2, &[]).await;
    let worker = living(&Arc::new(queue.clone()), None, (2, TURN, true), until_empty());
    let worker = worker.run(CancellationToken::new());
    let summary =
        tokio::time::timeout(LEASE / 2, worker).await.expect("it is rejected once").unwrap();
    assert_eq!((summary.failed, summary.lost), (1, 0));
    let (pieces, result) = followed(&queue, 0).await;
    assert_eq!(result.outcome, Outcome::Failed(Failure::invalid("it fails in this life")));
    assert!(pieces.is_empty() && result.attempt >= 2, "{result:?}");
    assert_eq!(queue.list(9).await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_was_given_back_and_expires_has_a_failed_result_and_a_reply() {
    let queue = given_back(2, &[("ebb-ttl", "60"), ("ebb-reply-to", "inbox")]).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(queue.receive(NonZeroUsize::MIN, Duration::ZERO).await.unwrap().is_empty());
    let (pieces, result) = followed(&queue, 0).await;
    assert_eq!(result.outcome, Outcome::Failed(Failure::expired()));
    assert_eq!((pieces.len(), queue.replies()), (0, vec![("inbox".to_owned(), result)]));
}

#[tokio::test(start_paused = true)]
async fn pieces_of_who_gave_a_job_back_are_not_taken_for_those_of_who_could_store_none() {
    for n_times in [1, 2] {
        let queue = given_back(n_times, &[]).await;
        let deaf = deaf(&queue, ErrorKind::Unavailable);
        let life = (n_times, TURN, false);
        let worker = living(&Arc::new(queue.clone()), Some(Arc::new(deaf)), life, until_empty());
        assert_eq!(worker.run(CancellationToken::new()).await.unwrap().completed, 1);
        let (attempt, n_pieces) = assert_of_one_life(&queue, 0, 400).await;
        assert!(attempt as usize > n_times, "{attempt}");
        assert_eq!(n_pieces, 0, "the result is all there is");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_job_without_an_answer_took_in_all_its_turns_is_counted() {
    let (queue, clock) = queue(LEASE);
    queue.publish(vec![stream_job(0, 9, r#", "poison_at": 4"#)]).await.unwrap();
    let (device, _) = watched(Echo::new());
    let parts = parts(&Arc::new(queue.clone()), &clock, device, until_empty());
    let metrics = parts.metrics.clone();
    let worker = Pipeline::new(parts).run(CancellationToken::new());
    assert_eq!(worker.await.unwrap().failed, 1);
    let wasted = metrics.failed_seconds.with_label_values(&["echo"]).get();
    // It has a second try at the turn that it spoils.
    assert!((wasted - 6.0 * TURN.as_secs_f64()).abs() < 1e-6, "{wasted}");
}

/// One worker after the other: each crashes, or is stopped with a short grace period.
async fn supervise(queue: MemoryQueue, faulty: Faulty<MemoryQueue>, seed: u64) {
    let mut dice = StdRng::seed_from_u64(seed);
    for life in 0.. {
        let name = format!("worker-{seed}-{life}");
        let shared = Arc::new(faulty.around(Arc::new(queue.as_worker(name.clone()))));
        let speed = Duration::from_millis(dice.random_range(5..100));
        let grace = Duration::from_millis(dice.random_range(100..3_000));
        let settings =
            Settings { worker: name, grace, prefetch: 4, exit_when_empty: false, ..at_once(6) };
        let stop = CancellationToken::new();
        // No two workers have the same.
        let life = (1_000 * usize::try_from(seed).unwrap() + life, speed, false);
        let worker = living(&shared, None, life, settings);
        let mut work = Box::pin(worker.run(stop.clone()));
        let span = Duration::from_millis(dice.random_range(500..20_000));
        if tokio::time::timeout(span, &mut work).await.is_err() && dice.random_bool(0.5) {
            stop.cancel();
            work.await.ok();
        } else {
            drop(work);
        }
        tokio::time::sleep(Duration::from_millis(dice.random_range(0..1_000))).await;
    }
}

/// Runs one seed to its end; how many jobs were answered, and how many were followed to the end.
async fn simulate(seed: u64) -> (usize, usize) {
    let (queue, _) = queue(Duration::from_secs(10));
    let faulty = Faulty::new(Arc::new(queue.clone()), Faults::default(), seed);
    let mut dice = StdRng::seed_from_u64(seed);
    let lengths: Vec<usize> = (0..24).map(|_| dice.random_range(1..80)).collect();
    let job = |(number, n_words): (usize, &usize)| match dice.random_range(0..20) {
        0 => stream_job(number, *n_words, r#", "poison_at": 2"#),
        1 => stream_job(number, *n_words, r#", "panic_at": 1"#),
        _ => stream_job(number, *n_words, ""),
    };
    let jobs: Vec<Job> = lengths.iter().enumerate().map(job).collect();
    queue.publish(jobs).await.unwrap();
    let mut supervisors = JoinSet::new();
    for number in 0..3 {
        supervisors.spawn(supervise(queue.clone(), faulty.clone(), 10 * seed + number));
    }
    let is_done =
        support::until(&queue, |depth| depth.ready + depth.in_flight + depth.delayed == 0);
    tokio::time::timeout(Duration::from_secs(3600), is_done).await.expect("it ends");
    supervisors.shutdown().await;
    let dead: Vec<String> =
        queue.list(100).await.unwrap().iter().map(|letter| letter.job.id.to_string()).collect();
    let (mut n_done, mut n_whole) = (0, 0);
    for (number, n_words) in lengths.iter().enumerate() {
        let (_, result) = followed(&queue, number).await;
        let is_dead = dead.contains(&result.id.to_string());
        if !result.outcome.is_completed() {
            assert!(is_dead, "{result:?}");
            continue;
        }
        assert!(!is_dead, "{result:?}");
        n_done += 1;
        // All is there, or was given up.
        let (_, n_pieces) = assert_of_one_life(&queue, number, *n_words).await;
        n_whole += usize::from(n_pieces > 0);
    }
    (n_done, n_whole)
}

#[test]
fn each_job_is_answered_once_and_its_pieces_are_its_answer_whatever_happens() {
    let (mut n_done, mut n_whole) = (0, 0);
    for seed in 0..60 {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        eprintln!("seed {seed}");
        let (done, whole) = runtime.block_on(simulate(seed));
        (n_done, n_whole) = (n_done + done, n_whole + whole);
    }
    eprintln!("{n_done} done, {n_whole} of them followed to the end");
    // Else it was no trial.
    assert!(n_done > 800 && n_whole * 10 > n_done * 9);
}
