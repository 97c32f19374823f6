//! The whole pipeline on a broker that fails on purpose, under paused time, seed by seed.
//!
//! Workers crash and come back, calls fail before and after they had their effect, leases end early, and
//! somebody cancels jobs. In the end every job is done, dead or cancelled, no answer that was stored has
//! changed, and every job that asked for a reply has one.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ebb_model::echo::{Echo, EchoInput};
use ebb_queue::faulty::{Faults, Faulty};
use ebb_queue::memory::MemoryQueue;
use ebb_queue::{
    Backlog, Broker, Cancelled, Clock, DeadLetters, Frame, Job, JobId, JobResult, Operator,
    Outcome, Result, ResultStore, Stored,
};
use ebb_worker::batcher::Size;
use ebb_worker::{
    Answer, BadJob, Codec, Device, EchoCodec, ModelParts, Parts, Pipeline, QueueParts, Settings,
    Spent,
};
use futures::stream::BoxStream;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use support::{EPOCH, echo_job, job, parts_of, queue, settings};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const N_SEEDS: u64 = 200;
const N_JOBS: usize = 60;
const N_WORKERS: usize = 3;
/// Jobs that somebody tries to cancel.
const N_CANCELS: usize = 12;
const LEASE: Duration = Duration::from_secs(10);
const REPLIES: &str = "replies";

/// What the workers do wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Workers {
    /// Nothing.
    Sound,
    /// They ack before the result is stored: what this test must notice.
    AckBeforeStore,
}

/// How a seed ended; two runs of one seed end alike.
#[derive(Debug, Clone, PartialEq)]
struct End {
    took: Duration,
    n_done: usize,
    n_dead: usize,
    n_cancelled: usize,
    n_crashes: u64,
    faults: ebb_queue::faulty::Injected,
    answers: BTreeMap<String, Bytes>,
}

/// An echo whose every answer is another one, so that one that changed is seen.
struct Numbered(Arc<AtomicU64>);

impl Codec for Numbered {
    type Input = EchoInput;
    type Output = String;
    type Asked = ();

    fn decode(&self, job: &Job) -> std::result::Result<(EchoInput, ()), BadJob> {
        EchoCodec.decode(job)
    }

    fn size(&self, input: &EchoInput) -> Size {
        Size::of([input.input.len()])
    }

    fn encode(&self, output: String, (): (), _: &Job, _: &Spent) -> Answer {
        let number = self.0.fetch_add(1, Relaxed);
        let body = format!("{output} #{number}").into();
        Answer { content_type: "text/plain", body, alert: None, tokens: 0, n_cut: 0 }
    }
}

/// Sees each answer that was stored, and tells if it is another one later.
struct Watched {
    store: Faulty<MemoryQueue>,
    seen: Arc<std::sync::Mutex<BTreeMap<String, Bytes>>>,
    /// Puts that are still to be made, and die with this worker.
    put_later: Option<std::sync::Mutex<JoinSet<()>>>,
}

#[async_trait]
impl ResultStore for Watched {
    async fn put(&self, result: &JobResult) -> Result<Stored> {
        if let Some(later) = &self.put_later {
            let (store, result) = (self.store.clone(), result.clone());
            later.lock().unwrap().spawn(async move {
                tokio::time::sleep(Duration::from_millis(200)).await;
                while store.put(&result).await.is_err() {}
            });
            return Ok(Stored::Stored);
        }
        let stored = self.store.put(result).await?;
        let is_new = stored == Stored::Stored && result.outcome.is_completed();
        if let (true, Outcome::Completed { body, .. }) = (is_new, &result.outcome) {
            let id = result.id.to_string();
            let before = self.seen.lock().unwrap().insert(id, body.clone());
            assert_eq!(before, None, "{} was stored twice", result.id);
        }
        Ok(stored)
    }

    async fn get(&self, id: &JobId) -> Result<Option<JobResult>> {
        self.store.get(id).await
    }

    async fn chunk(&self, id: &JobId, attempt: u32, seq: u64, body: Bytes) -> Result<Stored> {
        self.store.chunk(id, attempt, seq, body).await
    }

    async fn follow(&self, id: &JobId, from_seq: u64) -> Result<BoxStream<'static, Result<Frame>>> {
        self.store.follow(id, from_seq).await
    }

    fn result_ttl(&self) -> Duration {
        self.store.result_ttl()
    }
}

/// Everything that outlives a worker.
#[derive(Clone)]
struct World {
    queue: MemoryQueue,
    faulty: Faulty<MemoryQueue>,
    clock: Arc<dyn Clock>,
    seen: Arc<std::sync::Mutex<BTreeMap<String, Bytes>>>,
    n_answers: Arc<AtomicU64>,
    n_crashes: Arc<AtomicU64>,
    /// Jobs of which somebody was told that they are cancelled.
    cancelled: Arc<std::sync::Mutex<BTreeSet<JobId>>>,
    workers: Workers,
}

impl World {
    fn pipeline(&self, name: String, seed: u64, device: Device<EchoInput, String>) -> Pipeline {
        let faulty = self.faulty.around(Arc::new(self.queue.as_worker(name.clone())));
        let mut settings = Settings { worker: name, prefetch: 8, ..settings() };
        settings.limits.max_items = std::num::NonZeroUsize::new(8).unwrap();
        settings.grace = Duration::from_secs(3);
        let put_later = (self.workers == Workers::AckBeforeStore).then(Default::default);
        let store = faulty.clone();
        let codec = Numbered(Arc::clone(&self.n_answers));
        let served = QueueParts {
            name: "default".to_owned(),
            model: "echo on cpu".to_owned(),
            broker: Arc::new(faulty.clone()),
            results: Arc::new(Watched { store, seen: Arc::clone(&self.seen), put_later }),
            alerts: Arc::new(faulty),
            models: vec![ModelParts::new("echo", codec, device)],
        };
        let parts = parts_of(vec![served], &self.clock, settings);
        Pipeline::new(Parts { seed, ..parts })
    }

    /// One worker after the other under this name: each crashes, is stopped, or loses its device.
    async fn supervise(self, number: usize, seed: u64) {
        let mut dice = StdRng::seed_from_u64(seed * 100 + number as u64);
        for life in 0.. {
            let speed = Duration::from_millis(dice.random_range(5..400));
            let device = Device::inline(Echo::new(), move |batch: &[EchoInput]| {
                speed + Duration::from_millis(10) * u32::try_from(batch.len()).unwrap()
            });
            let stop = CancellationToken::new();
            let worker = self.pipeline(format!("worker-{number}-{life}"), dice.random(), device);
            let mut work = Box::pin(worker.run(stop.clone()));
            let span = Duration::from_millis(dice.random_range(100..20_000));
            let ended = tokio::time::timeout(span, &mut work).await;
            if ended.is_err() && dice.random_bool(0.3) {
                stop.cancel();
                work.await.ok();
            } else if ended.is_err() {
                // A crash: nothing of it runs on.
                drop(work);
                self.n_crashes.fetch_add(1, Relaxed);
            }
            tokio::time::sleep(Duration::from_millis(dice.random_range(0..2_000))).await;
        }
    }
}

impl World {
    /// Cancels some jobs, one after the other, most of them twice.
    async fn cancel(self, seed: u64) {
        let mut dice = StdRng::seed_from_u64(seed ^ 0x0ca0_ce1d);
        for _ in 0..N_CANCELS {
            tokio::time::sleep(Duration::from_millis(dice.random_range(0..1_500))).await;
            let number = dice.random_range(0..N_JOBS);
            let id: JobId = format!("job-{number:04}").parse().unwrap();
            let told = self.queue.cancel(&id).await.unwrap();
            if told.took_effect() {
                assert!(self.cancelled.lock().unwrap().insert(id), "it was cancelled before");
            } else {
                assert_eq!(told, Cancelled::Ended, "{id}");
            }
        }
    }
}

/// Mostly good jobs, and each kind of bad one.
fn jobs(dice: &mut StdRng) -> Vec<Job> {
    let mut one = |number| match dice.random_range(0..100) {
        0..5 => job(number, &format!(r#"{{"input": "text {number}", "poison": true}}"#)),
        5..8 => job(number, r#"{"input": "", "fail": true}"#),
        8..10 => job(number, r#"{"input": "", "lose_device": true}"#),
        10..13 => job(number, "not JSON"),
        13..16 => {
            let mut job = echo_job(number);
            job.headers.deadline = Some(EPOCH + Duration::from_millis(dice.random_range(0..5_000)));
            job
        }
        _ => echo_job(number),
    };
    let asking = |number| {
        let mut job = one(number);
        job.headers.reply_to = Some(REPLIES.to_owned());
        job
    };
    (0..N_JOBS).map(asking).collect()
}

/// Runs one seed to its end, and says what is wrong with it.
async fn simulate(seed: u64, workers: Workers) -> std::result::Result<End, String> {
    let (queue, clock) = queue(LEASE);
    let mut dice = StdRng::seed_from_u64(seed);
    let world = World {
        faulty: Faulty::new(Arc::new(queue.clone()), Faults::default(), seed),
        queue: queue.clone(),
        clock,
        seen: Arc::default(),
        n_answers: Arc::default(),
        n_crashes: Arc::default(),
        cancelled: Arc::default(),
        workers,
    };
    let jobs = jobs(&mut dice);
    queue.publish(jobs.clone()).await.map_err(|error| error.to_string())?;
    let start = Instant::now();
    let mut supervisors = JoinSet::new();
    for number in 0..N_WORKERS {
        supervisors.spawn(world.clone().supervise(number, seed));
    }
    let cancelling = tokio::spawn(world.clone().cancel(seed));
    loop {
        let depth = queue.depth().await.map_err(|error| error.to_string())?;
        if depth.ready + depth.in_flight + depth.delayed == 0 && cancelling.is_finished() {
            break;
        }
        if start.elapsed() > Duration::from_secs(3600) {
            return Err(format!("after an hour there is still {depth:?}"));
        }
        if let Some(ended) = supervisors.try_join_next() {
            return Err(format!("a worker ended: {ended:?}"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    supervisors.shutdown().await;
    cancelling.await.map_err(|error| error.to_string())?;
    judge(&world, &jobs, start.elapsed()).await
}

/// Whether every job is done, dead or cancelled, each for a good reason.
async fn judge(world: &World, jobs: &[Job], took: Duration) -> std::result::Result<End, String> {
    let dead = world.queue.list(N_JOBS).await.map_err(|error| error.to_string())?;
    let reasons: BTreeMap<_, _> =
        dead.iter().map(|letter| (letter.job.id.clone(), letter.reason.as_str())).collect();
    let mut answers = BTreeMap::new();
    let cancelled = world.cancelled.lock().map_err(|error| error.to_string())?.clone();
    for job in jobs {
        let result = world.queue.get(&job.id).await.map_err(|error| error.to_string())?;
        let outcome = result.map(|result| result.outcome);
        let is_cancelled = cancelled.contains(&job.id);
        match (outcome, reasons.get(&job.id)) {
            (Some(Outcome::Cancelled), None) if is_cancelled => {}
            (outcome, reason) if is_cancelled => {
                return Err(format!("{} is cancelled, {outcome:?}, dead {reason:?}", job.id));
            }
            (Some(Outcome::Completed { body, .. }), None) => {
                answers.insert(job.id.to_string(), body);
            }
            (Some(Outcome::Failed { .. }), Some(reason)) if is_good(job, reason) => {}
            // Answered, never acked, and then past its deadline: the broker cannot know better.
            (Some(Outcome::Completed { body, .. }), Some(&"expired"))
                if job.headers.deadline.is_some() =>
            {
                answers.insert(job.id.to_string(), body);
            }
            (outcome, reason) => {
                return Err(format!("{}: stored {outcome:?}, dead {reason:?}", job.id));
            }
        }
    }
    judge_replies(world, &answers, &reasons)?;
    for (id, body) in &*world.seen.lock().map_err(|error| error.to_string())? {
        if answers.get(id) != Some(body) {
            return Err(format!("{id} was {body:?} and became {:?}", answers.get(id)));
        }
    }
    Ok(End {
        took,
        n_done: answers.len(),
        n_dead: dead.len(),
        n_cancelled: cancelled.len(),
        n_crashes: world.n_crashes.load(Relaxed),
        faults: world.faulty.injected(),
        answers,
    })
}

/// Whether every job has a reply, and every answer is the one that is stored.
fn judge_replies(
    world: &World,
    answers: &BTreeMap<String, Bytes>,
    reasons: &BTreeMap<JobId, &str>,
) -> std::result::Result<(), String> {
    let replies = world.queue.replies().into_iter();
    let replies: BTreeMap<_, _> =
        replies.map(|(to, reply)| ((to, reply.id.to_string()), reply.outcome)).collect();
    let reply = |id: &str| replies.get(&(REPLIES.to_owned(), id.to_owned()));
    for (id, answer) in answers {
        let is_dead = reasons.keys().any(|dead| dead.as_str() == id);
        match reply(id) {
            Some(Outcome::Completed { body, .. }) if body == answer => {}
            // It was dead before it was answered, and then its worker was lost.
            Some(Outcome::Failed { .. }) if is_dead => {}
            other => return Err(format!("{id} is {answer:?}, and its reply {other:?}")),
        }
    }
    for id in &*world.cancelled.lock().map_err(|error| error.to_string())? {
        if reply(id.as_str()) != Some(&Outcome::Cancelled) {
            return Err(format!("{id} is cancelled, and its reply {:?}", reply(id.as_str())));
        }
    }
    for (id, reason) in reasons.iter().filter(|(id, _)| !answers.contains_key(id.as_str())) {
        if !matches!(reply(id.as_str()), Some(Outcome::Failed { .. })) {
            return Err(format!(
                "{id} died of {reason}, and its reply is {:?}",
                reply(id.as_str())
            ));
        }
    }
    Ok(())
}

/// Whether this job may have died of that.
fn is_good(job: &Job, reason: &str) -> bool {
    let body = String::from_utf8_lossy(&job.body);
    let spent = reason.starts_with("all 5 attempts are spent");
    spent
        || (reason == "batch failed: an item is poison" && body.contains("poison"))
        || (reason.starts_with("the item asked to fail") && body.contains("fail"))
        || (reason.starts_with("body: ") && body == "not JSON")
        || (reason == "expired" && job.headers.deadline.is_some())
        || (reason.starts_with("too late: ") && job.headers.deadline.is_some())
        || (reason.starts_with("attempt 5 of 5 failed: device") && body.contains("lose_device"))
}

fn run(seed: u64, workers: Workers) -> std::result::Result<End, String> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    let end = runtime.block_on(simulate(seed, workers));
    end.map_err(|wrong| format!("seed {seed}: {wrong}"))
}

#[test]
fn no_job_is_lost_and_no_answer_changes_whatever_the_broker_does() {
    let mut wrong = Vec::new();
    let (mut n_done, mut n_dead, mut n_crashes, mut n_faults) = (0, 0, 0, 0);
    let mut n_cancelled = 0;
    for seed in 0..N_SEEDS {
        match run(seed, Workers::Sound) {
            Ok(end) => {
                n_done += end.n_done;
                n_dead += end.n_dead;
                n_cancelled += end.n_cancelled;
                n_crashes += end.n_crashes;
                n_faults += end.faults.failed_before + end.faults.failed_after;
                n_faults += end.faults.dropped + end.faults.ended;
            }
            Err(words) => wrong.push(words),
        }
    }
    assert!(wrong.is_empty(), "{} seeds failed:\n{}", wrong.len(), wrong.join("\n"));
    eprintln!(
        "{n_done} done, {n_dead} dead, {n_cancelled} cancelled, {n_crashes} crashes, {n_faults} faults"
    );
    assert!(n_cancelled as u64 > N_SEEDS, "{n_cancelled}");
    // Else it was no trial.
    assert!(n_crashes > N_SEEDS && n_faults > 20 * N_SEEDS && n_done > n_dead);
}

#[test]
fn a_seed_does_the_same_thing_twice() {
    for seed in 0..5 {
        assert_eq!(run(seed, Workers::Sound), run(seed, Workers::Sound));
    }
}

#[test]
fn a_worker_that_acks_before_it_stores_is_found_out() {
    let found = (0..20).find(|seed| run(*seed, Workers::AckBeforeStore).is_err());
    assert!(found.is_some(), "the simulation cannot fail, and so shows nothing");
}

/// A pill that kills the process, and so charges an attempt to everybody it holds.
#[tokio::test(start_paused = true)]
async fn a_job_that_kills_its_worker_takes_nobody_with_it() {
    for place in [0, 1, 7, 30, 59] {
        let (queue, clock) = queue(LEASE);
        let mut jobs: Vec<_> = (0..N_JOBS).map(echo_job).collect();
        jobs[place] = job(place, r#"{"input": "kill"}"#);
        jobs[(place + 13) % N_JOBS] = job((place + 13) % N_JOBS, r#"{"input": "kill"}"#);
        queue.publish(jobs).await.unwrap();
        let mut n_lives = 0;
        loop {
            n_lives += 1;
            let killed = CancellationToken::new();
            let kill = killed.clone();
            let device = Device::inline(Echo::new(), move |batch: &[EchoInput]| {
                if batch.iter().any(|item| item.input == "kill") {
                    kill.cancel();
                }
                Duration::from_millis(50)
            });
            let until_empty = Settings { exit_when_empty: true, ..settings() };
            let shared = Arc::new(queue.clone());
            let work = support::pipeline(&shared, &clock, device, until_empty);
            let is_killed = tokio::select! { biased;
                () = killed.cancelled() => true,
                ended = work.run(CancellationToken::new()) => ended.is_err(),
            };
            let depth = queue.depth().await.unwrap();
            if !is_killed && depth.in_flight + depth.ready + depth.delayed == 0 {
                break;
            }
            assert!(n_lives < 100, "{depth:?}");
            tokio::time::sleep(LEASE).await;
        }
        let dead = queue.list(N_JOBS).await.unwrap();
        let ids: Vec<_> = dead.iter().map(|letter| letter.job.id.to_string()).collect();
        assert_eq!(dead.len(), 2, "two killers at {place}, dead are {ids:?}");
        assert!(dead.iter().all(|letter| letter.job.body.ends_with(b"\"kill\"}")), "{ids:?}");
    }
}
