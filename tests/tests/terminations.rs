//! SIGTERM under load, at random moments, again and again: nothing is lost, no attempt is spent.
//!
//! `EBB_TERMINATIONS` says how often on each broker; `EBB_TERMINATION_SEED` repeats a run.

#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::time::{Duration, Instant};

use e2e::{Workplace, skipped};
use ebb_queue::{Job, JobId, OpenOptions, Outcome, Queue, QueueUrl, Timestamp};
use ebb_servers::{Redis, RedisOptions};
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::runtime::Runtime;

/// Workers that share the queue, and are terminated in one round.
const WORKERS: usize = 4;
/// More than a worker gets done before its end: the queue is full for each of them.
const JOBS_PER_TERMINATION: usize = 60;
/// Far more than a batch takes, and what a worker is told.
const GRACE: Duration = Duration::from_secs(10);
/// From the first line of a worker to its SIGTERM at most: it covers the start, the first receive
/// and several batches.
const LATEST: Duration = Duration::from_millis(200);

fn from_environment<T: std::str::FromStr>(name: &str, default: T) -> T {
    let given = std::env::var(name).ok();
    given.map_or(Some(default), |value| value.parse().ok()).unwrap_or_else(|| panic!("{name}"))
}

fn id(number: usize) -> JobId {
    format!("job-{number}").parse().unwrap()
}

/// A queue, and who looks at it from outside.
struct Scene {
    workplace: Workplace,
    queue: Queue,
    runtime: Runtime,
    n_jobs: usize,
}

impl Scene {
    fn new(workplace: Workplace, runtime: Runtime, n_jobs: usize) -> Self {
        let url: QueueUrl = workplace.queue().parse().unwrap();
        let open = ebb_queue::open(&url, OpenOptions::default());
        let queue = runtime.block_on(open).unwrap();
        let scene = Self { workplace, queue, runtime, n_jobs };
        let numbers: Vec<usize> = (0..n_jobs).collect();
        for some in numbers.chunks(1000) {
            let job = |number: &usize| {
                let mut job = Job::new(format!(r#"{{"input": "{number}"}}"#), Timestamp::now());
                job.id = id(*number);
                job
            };
            let jobs = some.iter().map(job).collect();
            scene.runtime.block_on(scene.queue.publish(jobs)).unwrap();
        }
        scene
    }

    /// Starts a worker, terminates it after `delay` and returns what it said.
    fn terminate(&self, delay: Duration) -> String {
        let args = ["worker", "--model", "echo", "--echo-batch", "15ms", "--max-items", "4"];
        let mut worker = self.workplace.start(&[&args[..], &["--grace", "10s"]].concat());
        worker.says("that it starts", |said| said.find("worker starts"));
        let started = Instant::now();
        while let Some(rest) = delay.checked_sub(started.elapsed()).filter(|rest| !rest.is_zero()) {
            std::thread::park_timeout(rest);
        }
        let told = Instant::now();
        worker.signal(Signal::SIGTERM);
        let status = worker.ends();
        assert_eq!(status.code(), Some(0), "after {delay:?}: {}", worker.output());
        assert!(told.elapsed() < GRACE, "after {delay:?}: {}", worker.output());
        worker.says("its last words", |said| Some(said.to_owned()))
    }

    fn ready_and_in_flight(&self) -> (usize, usize) {
        let depth = self.runtime.block_on(self.queue.depth()).unwrap();
        assert_eq!((depth.dead, depth.delayed), (0, 0), "{depth:?}");
        (depth.ready as usize, depth.in_flight as usize)
    }

    /// Terminates `n` workers; returns how many jobs were given back.
    fn terminate_workers(&self, n: usize, dice: &mut StdRng) -> usize {
        let mut n_released = 0;
        let mut n_left = n;
        while n_left > 0 {
            let n_now = n_left.min(WORKERS);
            n_left -= n_now;
            let delays: Vec<_> =
                (0..n_now).map(|_| dice.random_range(Duration::ZERO..LATEST)).collect();
            let said: Vec<String> = std::thread::scope(|scope| {
                let workers = delays.iter().map(|delay| scope.spawn(|| self.terminate(*delay)));
                let workers: Vec<_> = workers.collect();
                workers.into_iter().map(|worker| worker.join().unwrap()).collect()
            });
            // Nobody has to wait for a lease to end, and there is still work for the next ones.
            let (ready, in_flight) = self.ready_and_in_flight();
            assert_eq!(in_flight, 0, "after {delays:?}: {said:?}");
            assert!(ready > 0, "the queue was not full enough");
            n_released += said.iter().map(|said| released(said)).sum::<usize>();
        }
        n_released
    }

    /// Works off the rest, and finds every job answered at its first attempt.
    fn finish(&self) {
        let args = ["worker", "--model", "echo", "--max-items", "256", "--exit-when-empty"];
        let mut worker = self.workplace.start(&args);
        assert!(worker.ends().success(), "{}", worker.output());
        assert_eq!(self.ready_and_in_flight(), (0, 0), "{}", worker.output());
        for number in 0..self.n_jobs {
            let result = self.runtime.block_on(self.queue.get(&id(number))).unwrap();
            let result = result.unwrap_or_else(|| panic!("job {number} is lost"));
            assert_eq!(result.attempt, 1, "job {number}: {result:?}");
            let Outcome::Completed { body, .. } = result.outcome else {
                panic!("job {number}: {:?}", result.outcome)
            };
            assert_eq!(body, format!(r#"{{"output":"{number}"}}"#), "job {number}");
        }
    }
}

/// What a worker says at its end of the jobs that it gave back; one that had no broker yet says
/// nothing.
fn released(said: &str) -> usize {
    let Some((_, rest)) = said.rsplit_once("released=") else { return 0 };
    rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
}

#[track_caller]
fn check(workplace: Workplace, runtime: Runtime, n: usize) {
    let seed = from_environment("EBB_TERMINATION_SEED", 1);
    let n = from_environment("EBB_TERMINATIONS", n);
    let scene = Scene::new(workplace, runtime, n * JOBS_PER_TERMINATION);
    let n_released = scene.terminate_workers(n, &mut StdRng::seed_from_u64(seed));
    assert!(n_released > 0, "no worker held a job that it had not begun: this proves nothing");
    scene.finish();
}

#[test]
fn no_termination_under_load_loses_a_job_or_an_attempt_on_sqlite() {
    check(Workplace::new(), Runtime::new().unwrap(), 200);
}

#[test]
fn no_termination_under_load_loses_a_job_or_an_attempt_on_redis() {
    let unwanted = std::env::var("EBB_SKIP_BROKERS").unwrap_or_default();
    if unwanted.split(',').any(|name| name == "redis") {
        return skipped("terminations on redis", "EBB_SKIP_BROKERS names it");
    }
    let runtime = Runtime::new().unwrap();
    let redis = runtime.block_on(Redis::start(RedisOptions::default())).unwrap();
    let queue = format!("{}?queue=jobs&lease=30s", redis.url());
    check(Workplace::new().on(queue, None), runtime, 200);
}
