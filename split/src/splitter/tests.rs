//! A split on a broker in memory, under paused time: crashes, faults, full queues, and a stop.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use ebb_queue::faulty::{Faults, Faulty};
use ebb_queue::memory::MemoryQueue;
use ebb_queue::{
    Backlog, Behavior, Broker, Cancelled, DeadLetters, Error, ErrorKind, Failure, FailureKind,
    JobId, JobResult, OpenOptions, Operator, Outcome, ResultStore, Timestamp, TokioClock,
};
use ebb_telemetry::{GateKind, Health};
use tokio_util::task::AbortOnDropHandle;

use super::lane::PATIENCE;
use super::*;
use crate::metrics::QUEUES;
use crate::weights::Share;

const LEASE: Duration = Duration::from_secs(10);

/// A broker that does not permit anything.
const DENIALS: Faults = Faults { fail_before: 1.0, kind: ErrorKind::Denied, ..Faults::NONE };

fn weights(text: &str) -> Arc<Weights> {
    let shares = text.split(',').map(|share| share.parse::<Share>().unwrap());
    Arc::new(Weights::new(shares).unwrap())
}

/// A broker in memory: an intake, and two queues that jobs go to.
struct Scene {
    clock: Arc<TokioClock>,
    intake: MemoryQueue,
    /// Where answers are, when not with the jobs.
    results: Option<MemoryQueue>,
    versions: BTreeMap<String, MemoryQueue>,
    weights: watch::Sender<Arc<Weights>>,
    faults: Option<(u64, Faults)>,
    /// Queues, or the intake, that fail as they are told to fail.
    denied: Vec<(&'static str, Faulty<MemoryQueue>)>,
    when_full: WhenFull,
    body_memory: usize,
    grace: Duration,
    /// How queues are opened that the first weights do not name.
    opening: Open,
    metrics: Metrics,
    health: Health,
    n_starts: std::cell::Cell<u64>,
}

impl Scene {
    fn new(max_ready: Option<u64>) -> Self {
        let clock = Arc::new(TokioClock::starting_at(Timestamp::UNIX_EPOCH));
        let queue = |max_ready| {
            let behavior = Behavior { lease: LEASE, max_ready, ..Behavior::default() };
            let options = OpenOptions { clock: clock.clone(), ..OpenOptions::default() };
            MemoryQueue::new(&behavior, options)
        };
        let versions = ["stable", "canary"].map(|name| (name.to_owned(), queue(max_ready)));
        Self {
            intake: queue(None),
            results: None,
            versions: versions.into_iter().collect(),
            weights: watch::Sender::new(weights("stable=70,canary=30")),
            faults: None,
            denied: Vec::new(),
            when_full: WhenFull::Wait,
            body_memory: 1 << 20,
            grace: Duration::from_secs(5),
            opening: Arc::new(|name| unreachable!("{name} is open")),
            metrics: Metrics::default(),
            health: Health::new(),
            n_starts: std::cell::Cell::new(0),
            clock,
        }
    }

    /// A queue that can be opened once that is allowed, whether it is, and how often it was tried.
    fn with_one_more_queue(&mut self) -> (MemoryQueue, Arc<AtomicBool>, Arc<AtomicU64>) {
        let behavior = Behavior { lease: LEASE, ..Behavior::default() };
        let options = OpenOptions { clock: self.clock.clone(), ..OpenOptions::default() };
        let queue = MemoryQueue::new(&behavior, options);
        let (allowed, n_tries) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (opened, may, n) = (queue.clone(), Arc::clone(&allowed), Arc::clone(&n_tries));
        self.opening = Arc::new(move |name| {
            n.fetch_add(1, Relaxed);
            let opened: Queue = Arc::new(opened.clone());
            let wrong = Error::new(ErrorKind::Invalid, format!("there is no queue {name}"));
            let answer = if may.load(Relaxed) { Ok(opened) } else { Err(wrong) };
            Box::pin(std::future::ready(answer))
        });
        (queue, allowed, n_tries)
    }

    fn wrapped(&self, queue: &MemoryQueue, nth: u64) -> Queue {
        match self.faults {
            None => Arc::new(queue.clone()),
            Some((seed, faults)) => {
                let seed = seed * 1000 + self.n_starts.get() * 10 + nth;
                Arc::new(Faulty::new(Arc::new(queue.clone()), faults, seed))
            }
        }
    }

    fn named(&self, name: &str, queue: &MemoryQueue, nth: u64) -> Queue {
        match self.denied.iter().find(|(denied, _)| *denied == name) {
            Some((_, queue)) => Arc::new(queue.clone()),
            None => self.wrapped(queue, nth),
        }
    }

    /// Lets things go wrong with one of its queues, or with the intake.
    fn afflict(&mut self, name: &'static str, faults: Faults) -> Faulty<MemoryQueue> {
        let queue = self.versions.get(name).unwrap_or(&self.intake);
        let faulty = Faulty::new(Arc::new(queue.clone()), faults, 1);
        self.denied.push((name, faulty.clone()));
        faulty
    }

    /// Starts a split; dropped, it crashes.
    fn start(&self, stop: &CancellationToken) -> (AbortOnDropHandle<()>, AbortOnDropHandle<()>) {
        let (splitter, leases) = self.splitter();
        let intake = Arc::clone(&splitter.parts.intake);
        let keeper = tokio::spawn(leases.keep(intake, self.metrics.clone()));
        let splitter = tokio::spawn(splitter.run(stop.clone()));
        (AbortOnDropHandle::new(splitter), AbortOnDropHandle::new(keeper))
    }

    fn splitter(&self) -> (Splitter, Leases) {
        self.n_starts.set(self.n_starts.get() + 1);
        let versions = self.versions.iter().zip(1..);
        let queues = versions
            .map(|((name, queue), nth)| (name.clone(), self.named(name, queue, nth)))
            .collect();
        let leases = Leases::default();
        let parts = Parts {
            intake: self.named("intake", &self.intake, 0),
            results: self.results.clone().map(|results| Arc::new(results) as Queue),
            keeps_records: true,
            open: Arc::clone(&self.opening),
            weights: self.weights.subscribe(),
            by: By::Key,
            when_full: self.when_full,
            window: NonZeroUsize::new(64).unwrap(),
            body_memory: NonZeroUsize::new(self.body_memory).unwrap(),
            grace: self.grace,
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
            gate: self.health.gate("broker", GateKind::Ready),
        };
        (Splitter::new(parts, leases.clone(), queues), leases)
    }

    async fn publish(&self, n: usize, change: impl Fn(usize, &mut Job)) {
        for nth in 0..n {
            let mut job = Job::new(format!("body {nth}"), self.clock.now());
            job.id = format!("job-{nth}").parse().unwrap();
            change(nth, &mut job);
            self.intake.publish(vec![job]).await.unwrap();
        }
    }

    /// All jobs that wait in a queue, taken out of it.
    async fn take(&self, name: &str) -> Vec<Job> {
        let (queue, mut jobs) = (&self.versions[name], Vec::new());
        let max = NonZeroUsize::new(1000).unwrap();
        loop {
            let deliveries = queue.receive(max, Duration::ZERO).await.unwrap();
            if deliveries.is_empty() {
                return jobs;
            }
            jobs.extend(deliveries.iter().map(|delivery| delivery.job.clone()));
            let acks: Vec<_> = deliveries.into_iter().map(Delivery::ack).collect();
            queue.settle(&acks).await.unwrap();
        }
    }

    async fn until(&self, what: &str, look: impl AsyncFn() -> bool) {
        let look = async {
            while !look().await {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(3600), look).await.expect(what);
    }

    async fn until_empty(&self) {
        self.until("the intake to be empty", async || {
            let depth = self.intake.depth().await.unwrap();
            depth.ready + depth.in_flight + depth.delayed == 0
        })
        .await;
    }

    async fn waiting(&self, name: &str) -> u64 {
        self.versions[name].depth().await.unwrap().ready
    }

    fn count(&self, name: &str) -> u64 {
        self.metrics.jobs.with_label_values(&[name]).get()
    }
}

fn ids(jobs: &[Job]) -> BTreeSet<JobId> {
    jobs.iter().map(|job| job.id.clone()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_job_goes_on_as_it_came_to_the_queue_of_its_key() {
    let scene = Scene::new(None);
    let published: Timestamp = scene.clock.now();
    scene
        .publish(200, |nth, job| {
            job.set("ebb-tenant", "t").unwrap();
            job.set("ebb-priority", "high").unwrap();
            job.set("ebb-deadline", "1970-01-02T00:00:00Z").unwrap();
            job.set("ebb-reply-to", "replies").unwrap();
            job.set("ebb-cost", "7").unwrap();
            job.set("ebb-key", &format!("key-{nth}")).unwrap();
            job.set("ebb-correlation", "mark").unwrap();
            job.set("traceparent", "00-1-2-01").unwrap();
        })
        .await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    let _split = scene.start(&CancellationToken::new());
    scene.until_empty().await;

    let weights = weights("stable=70,canary=30");
    let mut n = 0;
    for name in ["stable", "canary"] {
        let jobs = scene.take(name).await;
        assert_eq!(scene.count(name), jobs.len() as u64);
        for job in jobs {
            let nth = job.id.as_str().strip_prefix("job-").unwrap();
            assert_eq!(weights.choose(&format!("key-{nth}")), name, "{}", job.id);
            assert_eq!(job.body, format!("body {nth}"));
            assert_eq!(job.enqueued_at, published, "its age is its own");
            let headers = &job.headers;
            assert_eq!((headers.tenant.as_deref(), headers.cost), (Some("t"), Some(7.0)));
            assert_eq!(headers.priority, ebb_queue::Priority::High);
            assert_eq!(headers.reply_to.as_deref(), Some("replies"));
            assert_eq!(headers.correlation.as_deref(), Some("mark"));
            assert_eq!(headers.traceparent.as_deref(), Some("00-1-2-01"));
            assert!(headers.deadline.is_some());
            let record = scene.intake.get(&job.id).await.unwrap().unwrap();
            assert_eq!(record.moved_to(), Some(name), "whoever waits is led on");
            n += 1;
        }
    }
    assert_eq!(n, 200);
}

/// Crashes at random moments and changes of the weights in between, on a broker that fails.
async fn crash(seed: u64) {
    use rand::{Rng, SeedableRng};
    const N: usize = 120;
    let mut dice = rand::rngs::StdRng::seed_from_u64(seed);
    let mut scene = Scene::new(None);
    scene.faults = Some((seed, Faults::default()));
    scene.publish(N, |_, _| {}).await;
    for _ in 0..6 {
        let split = scene.start(&CancellationToken::new());
        tokio::time::sleep(Duration::from_millis(dice.random_range(0..400))).await;
        drop(split);
        let share = dice.random_range(0..=100);
        scene.weights.send_replace(weights(&format!("stable={},canary={share}", 101 - share)));
    }
    let stop = CancellationToken::new();
    let (last, _keeper) = scene.start(&stop);
    scene.until_empty().await;
    let (stable, canary) = (scene.take("stable").await, scene.take("canary").await);
    let (a, b) = (ids(&stable), ids(&canary));
    assert_eq!((a.len(), b.len()), (stable.len(), canary.len()), "seed {seed}: twice in one");
    assert!(a.is_disjoint(&b), "seed {seed}: in both: {:?}", a.intersection(&b));
    assert_eq!(a.len() + b.len(), N, "seed {seed}: lost");
    for (name, jobs) in [("stable", &a), ("canary", &b)] {
        for id in jobs {
            let record = scene.intake.get(id).await.unwrap().unwrap();
            assert_eq!(record.moved_to(), Some(name), "seed {seed}: {id} is led astray");
        }
    }
    stop.cancel();
    last.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn no_job_is_lost_or_doubled_whatever_the_broker_does_and_the_weights_become() {
    for seed in 0..60 {
        crash(seed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn new_weights_count_from_the_next_job_on() {
    let scene = Scene::new(None);
    let _split = scene.start(&CancellationToken::new());
    scene.publish(20, |_, _| {}).await;
    scene.until_empty().await;
    assert!(scene.count("canary") > 0 && scene.count("stable") > 0);
    let before = scene.count("stable");
    scene.weights.send_replace(weights("stable=0,canary=1"));
    scene
        .until("the weights", async || {
            scene.metrics.weights.with_label_values(&["canary"]).get() > 0.99
        })
        .await;
    scene.publish(50, |nth, job| job.id = format!("later-{nth}").parse().unwrap()).await;
    scene.until_empty().await;
    assert_eq!(scene.count("stable"), before, "all went to the new version");
    assert_eq!(scene.count("canary") + before, 70);
}

#[tokio::test(start_paused = true)]
async fn weights_with_a_queue_that_cannot_be_opened_change_nothing_and_hold_up_no_job() {
    let mut scene = Scene::new(None);
    let (_typo, allowed, n_tries) = scene.with_one_more_queue();
    let _split = scene.start(&CancellationToken::new());
    let reloads = |outcome: &str| scene.metrics.reloads.with_label_values(&[outcome]).get();
    let broken = || scene.metrics.broken.with_label_values(&[QUEUES]).get();
    let share = |name: &str| scene.metrics.weights.with_label_values(&[name]).get();
    scene.weights.send_replace(weights("stable=0,canary=1,typo=99"));
    scene.until("a refusal", async || reloads("failed") > 0).await;

    let start = Instant::now();
    scene.publish(40, |_, _| {}).await;
    scene.until_empty().await;
    assert!(start.elapsed() < Duration::from_secs(2), "held up for {:?}", start.elapsed());
    assert_eq!(scene.count("stable") + scene.count("canary"), 40);
    assert!(scene.count("stable") > 20, "the weights before them stay");
    assert!((share("stable") - 0.7).abs() < 1e-9, "and are told");
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(n_tries.load(Relaxed) < 60, "each try is a connection");
    assert_eq!((reloads("ok"), reloads("failed")), (0, 1), "one change");
    assert_eq!(scene.metrics.broker_up.get(), 1, "the broker answers");
    assert_eq!(broken(), 1, "and is not over");

    // The file as it was before is right again.
    scene.weights.send_replace(weights("stable=70,canary=30"));
    scene.until("the weights before them", async || broken() == 0).await;
    scene.weights.send_replace(weights("stable=0,canary=1,typo=99"));
    scene.until("another refusal", async || broken() == 1).await;

    allowed.store(true, Relaxed);
    scene.until("the new weights", async || share("typo") > 0.98).await;
    assert_eq!((reloads("ok"), reloads("failed"), broken()), (1, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_job_that_went_to_a_queue_which_cannot_be_opened_waits_and_holds_up_no_other() {
    let mut scene = Scene::new(None);
    let (gone, allowed, n_tries) = scene.with_one_more_queue();
    let record = JobResult::moved("job-0".parse().unwrap(), "gone", scene.clock.now());
    scene.intake.put(&record).await.unwrap();
    scene.publish(40, |_, _| {}).await;
    let _split = scene.start(&CancellationToken::new());
    scene.until("the others", async || scene.count("stable") + scene.count("canary") == 39).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(n_tries.load(Relaxed) < 60, "each try is a connection");
    assert_eq!(scene.intake.depth().await.unwrap().in_flight, 1);
    allowed.store(true, Relaxed);
    scene.until_empty().await;
    assert_eq!(gone.depth().await.unwrap().ready, 1);
}

/// A job that a split took before and sent to stable, as its record says; what became of it there
/// is this.
async fn taken_before(scene: &Scene, store: &MemoryQueue, outcome: Outcome) {
    let killed = |first: Delivery| first.retry(Duration::ZERO, "the split was killed");
    taken_and(scene, killed, store, outcome).await;
}

/// The same with the end that the first split made of it.
async fn taken_and(
    scene: &Scene,
    end: impl Fn(Delivery) -> Settlement,
    store: &MemoryQueue,
    outcome: Outcome,
) {
    let (id, finished_at): (JobId, _) = ("job-0".parse().unwrap(), scene.clock.now());
    scene.publish(1, |_, _| {}).await;
    let max = NonZeroUsize::MIN;
    let first = scene.intake.receive(max, Duration::ZERO).await.unwrap().remove(0);
    scene.intake.settle(&[end(first)]).await.unwrap();
    scene.intake.put(&JobResult::moved(id.clone(), "stable", finished_at)).await.unwrap();
    store.put(&JobResult { id, attempt: 1, outcome, finished_at, queue: None }).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_job_that_was_put_back_after_a_failure_is_passed_on() {
    let scene = Scene::new(None);
    let expired = Outcome::Failed(Failure::expired());
    taken_before(&scene, &scene.versions["stable"], expired).await;
    let _split = scene.start(&CancellationToken::new());
    scene.until_empty().await;
    assert_eq!(scene.take("stable").await.len(), 1, "it is not answered by a failure");
}

#[tokio::test(start_paused = true)]
async fn a_job_that_was_cancelled_where_it_went_is_not_passed_on_again() {
    let scene = Scene::new(None);
    taken_before(&scene, &scene.versions["stable"], Outcome::Cancelled).await;
    let _split = scene.start(&CancellationToken::new());
    scene.until_empty().await;
    assert_eq!(scene.take("stable").await.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_on_its_way_is_cancelled_once_it_is_there() {
    let mut scene = Scene::new(None);
    let (gone, allowed, _) = scene.with_one_more_queue();
    let id: JobId = "job-0".parse().unwrap();
    // It waits for its queue to be opened.
    let record = JobResult::moved(id.clone(), "gone", scene.clock.now());
    scene.intake.put(&record).await.unwrap();
    scene.publish(1, |_, _| {}).await;
    let _split = scene.start(&CancellationToken::new());
    scene
        .until("the split to hold it", async || scene.intake.depth().await.unwrap().in_flight == 1)
        .await;
    // Whoever asks through a handle that follows its jobs is told that it is on its way.
    assert_eq!(gone.cancel(&id).await.unwrap(), Cancelled::Unknown);
    allowed.store(true, Relaxed);
    scene.until_empty().await;
    assert_eq!(gone.cancel(&id).await.unwrap(), Cancelled::Waiting);
    assert_eq!(gone.depth().await.unwrap().ready, 0);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_was_answered_is_not_passed_on_again_wherever_answers_are() {
    for apart in [false, true] {
        let mut scene = Scene::new(None);
        let elsewhere = scene.with_one_more_queue().0;
        let store = if apart { elsewhere } else { scene.versions["stable"].clone() };
        scene.results = apart.then(|| store.clone());
        let outcome = Outcome::Completed { content_type: "text/plain".into(), body: "a".into() };
        taken_before(&scene, &store, outcome).await;
        let _split = scene.start(&CancellationToken::new());
        scene.until_empty().await;
        assert_eq!(scene.take("stable").await.len(), 0, "apart: {apart}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_was_answered_is_not_passed_on_again_after_a_stop_that_gave_it_back() {
    let scene = Scene::new(None);
    let outcome = Outcome::Completed { content_type: "text/plain".into(), body: "a".into() };
    taken_and(&scene, Delivery::release, &scene.versions["stable"], outcome).await;
    let _split = scene.start(&CancellationToken::new());
    scene.until_empty().await;
    assert_eq!(scene.take("stable").await.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_may_have_gone_on_is_looked_for_before_it_is_sent_again() {
    let mut scene = Scene::new(None);
    scene.weights.send_replace(weights("stable=0,canary=1"));
    // It takes the job, and does not say so.
    let canary = scene.afflict("canary", Faults { fail_after: 1.0, ..Faults::NONE });
    scene.publish(1, |_, _| {}).await;
    let _split = scene.start(&CancellationToken::new());
    scene.until("the job", async || scene.waiting("canary").await == 1).await;
    let id = scene.take("canary").await.remove(0).id;
    let outcome = Outcome::Completed { content_type: "text/plain".into(), body: "a".into() };
    let answer = JobResult { id, attempt: 1, outcome, finished_at: scene.clock.now(), queue: None };
    scene.versions["canary"].put(&answer).await.unwrap();
    let before = canary.injected().repeated;
    canary.set(Faults::NONE);
    scene.until_empty().await;
    assert_eq!(canary.injected().repeated, before, "a broker may have forgotten its id");
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_was_full_and_answers_late_from_then_on_gets_each_job_once() {
    let mut scene = Scene::new(None);
    let full = Faults { fail_before: 1.0, kind: ErrorKind::Full, ..Faults::NONE };
    let canary = scene.afflict("canary", full);
    scene.publish(40, |_, _| {}).await;
    let _split = scene.start(&CancellationToken::new());
    let n_full = || scene.metrics.full.with_label_values(&["canary"]).get();
    scene.until("a full queue", async || n_full() == 1).await;
    canary.set(Faults { lag: Duration::from_secs(2), ..Faults::NONE });
    scene.until_empty().await;
    assert_eq!(canary.injected().repeated, 0);
    assert_eq!(scene.waiting("stable").await + scene.waiting("canary").await, 40);
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_answers_late_holds_up_no_other() {
    let mut scene = Scene::new(None);
    let canary = scene.afflict("canary", Faults { lag: PATIENCE / 2, ..Faults::NONE });
    let stop = CancellationToken::new();
    let (split, _keeper) = scene.start(&stop);
    let begun = Instant::now();
    scene.publish(60, |_, _| {}).await;
    let n_stable = (0..60)
        .filter(|nth| scene.weights.borrow().choose(&format!("job-{nth}")) == "stable")
        .count() as u64;
    scene.until("the others", async || scene.count("stable") == n_stable).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "held up for {:?}", begun.elapsed());
    scene.until_empty().await;
    assert_eq!((scene.count("canary"), canary.injected().repeated), (60 - n_stable, 0));

    // What is on its way at a stop has half of the grace period, and is given back then.
    scene.publish(60, |nth, job| job.id = format!("later-{nth}").parse().unwrap()).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.cancel();
    split.await.unwrap();
    let depth = scene.intake.depth().await.unwrap();
    assert_eq!(depth.in_flight, 0);
    let max = NonZeroUsize::new(60).unwrap();
    let again = scene.intake.receive(max, Duration::ZERO).await.unwrap();
    assert_eq!(again.len() as u64, depth.ready);
    assert!(!again.is_empty() && again.iter().all(|delivery| delivery.attempt == 1));
}

#[tokio::test(start_paused = true)]
async fn more_jobs_than_may_be_held_for_a_queue_that_hangs_hold_up_the_others_for_two_calls() {
    let mut scene = Scene::new(None);
    scene.afflict("canary", Faults { lag: Duration::from_secs(7200), ..Faults::NONE });
    scene.publish(400, |_, _| {}).await;
    let n_stable = (0..400)
        .filter(|nth| scene.weights.borrow().choose(&format!("job-{nth}")) == "stable")
        .count() as u64;
    let begun = Instant::now();
    let _split = scene.start(&CancellationToken::new());
    scene.until("the others", async || scene.count("stable") == n_stable).await;
    assert!(begun.elapsed() < PATIENCE * 5 / 2, "held up for {:?}", begun.elapsed());
    assert_eq!(scene.metrics.refuses.with_label_values(&["canary"]).get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_takes_some_of_its_jobs_and_is_full_gets_each_once() {
    let mut scene = Scene::new(None);
    let canary = scene.afflict("canary", Faults { refuse_half: 1.0, ..Faults::NONE });
    scene.publish(60, |_, _| {}).await;
    let _split = scene.start(&CancellationToken::new());
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        canary.set(Faults::NONE);
        // Room for a few.
        tokio::time::sleep(Duration::from_millis(500)).await;
        canary.set(Faults { refuse_half: 1.0, ..Faults::NONE });
    }
    canary.set(Faults::NONE);
    scene.until_empty().await;
    assert_eq!(canary.injected().repeated, 0, "copies, on a broker that knows no ids");
    assert_eq!(scene.waiting("canary").await, scene.count("canary"));
    assert_eq!(scene.count("canary") + scene.count("stable"), 60);
}

/// As many jobs are held as may be, for queues that have no room; the broker goes, and comes back.
async fn go_and_come_back(mut scene: Scene, no_room: Faults) {
    let all = [("stable", no_room), ("canary", no_room), ("intake", Faults::NONE)];
    let all = all.map(|(name, faults)| (scene.afflict(name, faults), faults));
    let _split = scene.start(&CancellationToken::new());
    scene.publish(200, |_, _| {}).await;
    let in_flight = async || scene.intake.depth().await.unwrap().in_flight;
    scene.until("a full window", async || in_flight().await == 64).await;
    let is_up = || scene.metrics.broker_up.get() == 1;
    let away = Faults { fail_before: 1.0, ..Faults::NONE };
    all.iter().for_each(|(queue, _)| queue.set(away));
    scene.until("an outage", async || !is_up()).await;
    assert!(scene.health.ready().is_err());
    all.iter().for_each(|(queue, faults)| queue.set(*faults));
    let begun = Instant::now();
    scene.until("its end", async || is_up()).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(scene.health.ready(), Ok(()));
    assert_eq!(in_flight().await, 64, "nothing more was received");
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_is_back_is_told_though_as_many_jobs_are_held_as_may_be() {
    go_and_come_back(Scene::new(Some(5)), Faults::NONE).await;
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_is_back_is_told_though_it_refuses_jobs_without_saying_what_it_has_stored() {
    go_and_come_back(Scene::new(None), Faults { refuse_half: 1.0, ..Faults::NONE }).await;
}

#[tokio::test(start_paused = true)]
async fn an_intake_that_gives_no_jobs_is_told_all_the_time_though_the_queues_answer() {
    let mut scene = Scene::new(Some(5));
    let intake = scene.afflict("intake", Faults::NONE);
    let _split = scene.start(&CancellationToken::new());
    scene.publish(40, |_, _| {}).await;
    let is_full = async || scene.waiting("stable").await + scene.waiting("canary").await == 10;
    scene.until("two full queues", is_full).await;
    intake.set(Faults { fail_receive: 1.0, kind: ErrorKind::Denied, ..Faults::NONE });
    let is_up = || scene.metrics.broker_up.get() == 1;
    scene.until("a refusal", async || !is_up()).await;
    for _ in 0..6000 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(!is_up() && scene.health.ready().is_err());
    }
    intake.set(Faults::NONE);
    scene.until("its end", async || is_up() && scene.health.ready().is_ok()).await;
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_holds_its_jobs_back_and_not_those_of_the_others() {
    let scene = Scene::new(Some(10));
    let _split = scene.start(&CancellationToken::new());
    scene.publish(30, |_, _| {}).await;
    let of = |name: &str| {
        let weights = weights("stable=70,canary=30");
        (0..30).filter(|nth| weights.choose(&format!("job-{nth}")) == name).count()
    };
    let (n_stable, n_canary) = (of("stable"), of("canary"));
    assert!(n_stable > 10, "{n_stable}");
    scene
        .until("two full queues", async || {
            scene.waiting("stable").await == 10
                && scene.waiting("canary").await == n_canary.min(10) as u64
        })
        .await;
    // Far longer than a lease: they are kept.
    tokio::time::sleep(20 * LEASE).await;
    assert_eq!(scene.waiting("stable").await, 10);
    assert!(scene.metrics.full.with_label_values(&["stable"]).get() >= 1);

    let mut n_taken = 0;
    while n_taken < 30 {
        n_taken += scene.take("stable").await.len() + scene.take("canary").await.len();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    scene.until_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_spills_where_that_is_asked_for() {
    let mut scene = Scene::new(Some(40));
    scene.when_full = WhenFull::Other;
    scene.weights.send_replace(weights("stable=1,canary=99"));
    let _split = scene.start(&CancellationToken::new());
    scene.publish(70, |_, _| {}).await;
    scene.until("one that is full", async || scene.waiting("canary").await == 40).await;
    // Those that were chosen for it before wait; new ones go elsewhere.
    scene.publish(10, |nth, job| job.id = format!("new-{nth}").parse().unwrap()).await;
    scene.until("the others", async || scene.waiting("stable").await >= 5).await;
    assert!(scene.metrics.spilled.with_label_values(&["stable"]).get() >= 5);
    let (stable, canary) = (scene.take("stable").await, scene.take("canary").await);
    assert!(ids(&stable).is_disjoint(&ids(&canary)));
}

#[tokio::test(start_paused = true)]
async fn a_job_that_expires_while_it_waits_is_buried_and_whoever_waits_for_it_is_told() {
    let scene = Scene::new(Some(5));
    scene.weights.send_replace(weights("stable=1,canary=0"));
    let _split = scene.start(&CancellationToken::new());
    scene.publish(8, |_, job| job.set("ebb-ttl", "60s").unwrap()).await;
    scene.until("three dead letters", async || scene.intake.depth().await.unwrap().dead == 3).await;
    let letters = scene.intake.list(10).await.unwrap();
    assert!(letters.iter().all(|letter| letter.reason == "expired"), "{letters:?}");
    for letter in letters {
        let told = scene.versions["stable"].get(&letter.job.id).await.unwrap().unwrap();
        assert!(told.outcome == Outcome::Failed(Failure::expired()));
    }
    assert_eq!(scene.metrics.dead.with_label_values(&["expired"]).get(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_says_why_the_job_failed_before_a_crash() {
    let scene = Scene::new(Some(0));
    scene.weights.send_replace(weights("stable=1,canary=0"));
    scene
        .publish(1, |_, job| {
            job.set("ebb-ttl", "60s").unwrap();
            job.headers.reply_to = Some("inbox".to_owned());
        })
        .await;
    let first = scene.intake.receive(NonZeroUsize::MIN, Duration::ZERO).await.unwrap().remove(0);
    let outcome = Outcome::Failed(Failure::invalid("it is too large"));
    let (id, finished_at) = (first.job.id.clone(), scene.clock.now());
    let told = JobResult { id, attempt: 1, outcome, finished_at, queue: None };
    scene.intake.put(&told).await.unwrap();
    scene.intake.settle(&[first.retry(Duration::ZERO, "the split was killed")]).await.unwrap();
    let _split = scene.start(&CancellationToken::new());
    scene.until("a dead letter", async || scene.intake.depth().await.unwrap().dead == 1).await;
    let letter = scene.intake.list(1).await.unwrap().remove(0);
    assert_eq!((letter.kind, &*letter.reason), (FailureKind::Invalid, "it is too large"));
    assert_eq!(scene.intake.replies(), [("inbox".to_owned(), told)]);
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_denies_us_makes_no_dead_letters_and_holds_up_no_other() {
    let mut scene = Scene::new(None);
    let canary = Faulty::new(Arc::new(scene.versions["canary"].clone()), DENIALS, 1);
    scene.denied = vec![("canary", canary.clone())];
    let _split = scene.start(&CancellationToken::new());
    scene.publish(40, |_, _| {}).await;
    let n_stable = (0..40)
        .filter(|nth| scene.weights.borrow().choose(&format!("job-{nth}")) == "stable")
        .count() as u64;
    let start = Instant::now();
    scene.until("the others", async || scene.count("stable") == n_stable).await;
    assert!(start.elapsed() < Duration::from_secs(2), "held up for {:?}", start.elapsed());
    tokio::time::sleep(20 * LEASE).await;
    let depth = scene.intake.depth().await.unwrap();
    assert_eq!((depth.dead, depth.in_flight), (0, 40 - n_stable), "nothing is wrong with them");
    assert_eq!(scene.metrics.broker_up.get(), 1, "the intake answers");
    canary.set(Faults::NONE);
    scene.until_empty().await;
    assert_eq!(scene.waiting("canary").await, 40 - n_stable);
}

/// One queue fails like this, and far more jobs than the window are for it.
async fn fail_one_queue(kind: ErrorKind) {
    const N: usize = 400;
    let mut scene = Scene::new(None);
    let failures = Faults { fail_before: 1.0, kind, ..Faults::NONE };
    let canary = Faulty::new(Arc::new(scene.versions["canary"].clone()), failures, 1);
    scene.denied = vec![("canary", canary.clone())];
    scene.publish(N, |_, _| {}).await;
    let is_stable = |nth: &usize| scene.weights.borrow().choose(&format!("job-{nth}")) == "stable";
    let n_stable = (0..N).filter(is_stable).count();
    assert!(N - n_stable > 64, "more than the window are for the other");
    let _split = scene.start(&CancellationToken::new());
    scene.until("the others", async || scene.count("stable") == n_stable as u64).await;
    let of_canary = |metrics: &Metrics| {
        let refuses = metrics.refuses.with_label_values(&["canary"]).get();
        (refuses, metrics.given_back.with_label_values(&["canary"]).get() > 0)
    };
    assert_eq!(of_canary(&scene.metrics), (1, true));
    scene
        .until("half of the window", async || scene.intake.depth().await.unwrap().in_flight <= 32)
        .await;
    let depth = scene.intake.depth().await.unwrap();
    assert_eq!(depth.dead, 0, "nothing is wrong with them");
    assert_eq!(depth.ready + depth.delayed + depth.in_flight, (N - n_stable) as u64);
    canary.set(Faults::NONE);
    scene.until_empty().await;
    assert_eq!(scene.waiting("canary").await, (N - n_stable) as u64);
    scene.until("its word", async || of_canary(&scene.metrics).0 == 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_refuses_more_jobs_than_may_be_held_holds_up_no_other() {
    fail_one_queue(ErrorKind::Denied).await;
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_does_not_answer_while_its_broker_does_holds_up_no_other() {
    fail_one_queue(ErrorKind::Unavailable).await;
}

#[tokio::test(start_paused = true)]
async fn silences_of_a_queue_that_answered_in_between_are_not_one() {
    let silent = Faults { fail_before: 1.0, ..Faults::NONE };
    let answers = [
        Faults { kind: ErrorKind::Full, ..silent },
        Faults { kind: ErrorKind::Invalid, ..silent },
        Faults { refuse_half: 1.0, ..Faults::NONE },
    ];
    for answer in answers {
        let mut scene = Scene::new(None);
        scene.weights.send_replace(weights("stable=0,canary=1"));
        let canary = scene.afflict("canary", silent);
        let _split = scene.start(&CancellationToken::new());
        scene.publish(40, |_, _| {}).await;
        let n_silences = || scene.metrics.broker_errors.with_label_values(&["publish"]).get();
        scene.until("a silence", async || n_silences() > 0).await;
        canary.set(answer);
        tokio::time::sleep(Duration::from_secs(15)).await;
        let before = n_silences();
        canary.set(silent);
        scene.publish(1, |_, job| job.id = "later".parse().unwrap()).await;
        scene.until("another", async || n_silences() > before + 1).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let refuses = scene.metrics.refuses.with_label_values(&["canary"]).get();
        assert_eq!(refuses, 0, "{answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_hangs_holds_up_no_other() {
    let mut scene = Scene::new(None);
    // Each call takes minutes, if not hours.
    let hanging = Faults { delay: Duration::from_secs(7200), ..Faults::NONE };
    let canary = Faulty::new(Arc::new(scene.versions["canary"].clone()), hanging, 1);
    scene.denied = vec![("canary", canary.clone())];
    let _split = scene.start(&CancellationToken::new());
    scene.publish(40, |_, _| {}).await;
    scene.until("both", async || scene.count("stable") > 0).await;
    // The first call has the time of one that may only be slow.
    tokio::time::sleep(PATIENCE).await;
    for nth in 0..100 {
        let before = (scene.count("stable"), Instant::now());
        let is_stable = |id: &String| weights("stable=70,canary=30").choose(id) == "stable";
        let id = (0..).map(|n| format!("later-{nth}-{n}")).find(is_stable).unwrap();
        scene.publish(1, |_, job| job.id = id.parse().unwrap()).await;
        scene.until("the next", async || scene.count("stable") > before.0).await;
        assert!(before.1.elapsed() < Duration::from_secs(2), "{:?}", before.1.elapsed());
    }
    assert_eq!(scene.metrics.broker_up.get(), 1, "the intake answers");
    canary.set(Faults::NONE);
    scene.until_empty().await;
    assert_eq!(scene.waiting("stable").await + scene.waiting("canary").await, 140);
}

/// Receives jobs until as many are held as may be.
async fn fill(scene: &Scene, splitter: &mut Splitter) {
    let stop = CancellationToken::new();
    while scene.intake.depth().await.unwrap().in_flight < 64 {
        let received = splitter.receive(&stop).await;
        splitter.route(received).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_broker_is_told_of_no_queue_and_charges_no_job() {
    let mut scene = Scene::new(None);
    let away = Faults { fail_before: 1.0, ..Faults::NONE };
    let faulty = |queue: &MemoryQueue| Faulty::new(Arc::new(queue.clone()), Faults::NONE, 1);
    let [stable, canary] = ["stable", "canary"].map(|name| faulty(&scene.versions[name]));
    let intake = faulty(&scene.intake);
    scene.denied =
        vec![("stable", stable.clone()), ("canary", canary.clone()), ("intake", intake.clone())];
    let (mut splitter, _leases) = scene.splitter();
    scene.publish(64, |_, _| {}).await;
    fill(&scene, &mut splitter).await;
    let stop = CancellationToken::new();
    let all = [&stable, &canary, &intake];
    all.iter().for_each(|queue| queue.set(away));
    let begun = Instant::now();
    // Their leases end in the meantime.
    while begun.elapsed() < Duration::from_secs(120) {
        splitter.round(&stop).await;
        let refuses = |name| scene.metrics.refuses.with_label_values(&[name]).get();
        assert_eq!((refuses("stable"), refuses("canary")), (0, 0));
        assert_eq!(scene.metrics.broker_up.get(), 0);
    }
    all.iter().for_each(|queue| queue.set(Faults::NONE));
    let given_back = |name| scene.metrics.given_back.with_label_values(&[name]).get();
    assert_eq!((given_back("stable"), given_back("canary")), (0, 0));
    let begun = Instant::now();
    while scene.waiting("stable").await + scene.waiting("canary").await < 64 {
        splitter.round(&stop).await;
        assert!(begun.elapsed() < Duration::from_secs(30), "it is back");
    }
}

#[tokio::test(start_paused = true)]
async fn large_jobs_for_a_queue_that_refuses_them_hold_up_no_other() {
    // One that is as large as all that may be held, and two that are together.
    for (n_large, size) in [(1, 40 << 10), (2, 16 << 10)] {
        let mut scene = Scene::new(None);
        scene.body_memory = 32 << 10;
        let canary = Faulty::new(Arc::new(scene.versions["canary"].clone()), DENIALS, 1);
        scene.denied = vec![("canary", canary.clone())];
        let is_of = |id: &String, name: &str| weights("stable=70,canary=30").choose(id) == name;
        let id = |nth: usize, name: &str| {
            (0..).map(|n| format!("{name}-{nth}-{n}")).find(|id| is_of(id, name)).unwrap()
        };
        let large = |nth: usize, job: &mut Job| {
            job.id = id(nth, "canary").parse().unwrap();
            job.body = vec![b'x'; size].into();
        };
        scene.publish(n_large, large).await;
        let _split = scene.start(&CancellationToken::new());
        tokio::time::sleep(Duration::from_secs(60)).await;
        scene.publish(50, |nth, job| job.id = id(nth, "stable").parse().unwrap()).await;
        scene.until("the others", async || scene.count("stable") == 50).await;
        assert_eq!(scene.metrics.refuses.with_label_values(&["canary"]).get(), 1);
        canary.set(Faults::NONE);
        scene.until_empty().await;
        assert_eq!(scene.waiting("canary").await, n_large as u64);
        assert_eq!(scene.metrics.refuses.with_label_values(&["canary"]).get(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_may_have_gone_on_comes_again_while_the_broker_remembers_its_id() {
    let mut scene = Scene::new(None);
    scene.body_memory = 1 << 10;
    scene.weights.send_replace(weights("stable=0,canary=1"));
    // It takes jobs, and does not say so.
    let deaf = Faults { fail_after: 1.0, ..Faults::NONE };
    let canary = Faulty::new(Arc::new(scene.versions["canary"].clone()), deaf, 1);
    scene.denied = vec![("canary", canary)];
    scene.publish(1, |_, job| job.body = vec![b'x'; 1 << 10].into()).await;
    let _split = scene.start(&CancellationToken::new());
    let given_back = || scene.metrics.given_back.with_label_values(&["canary"]).get();
    scene.until("many returns", async || given_back() > 12).await;
    let (before, begun) = (given_back(), Instant::now());
    scene.until("the next", async || given_back() > before + 1).await;
    assert!(begun.elapsed() < Duration::from_secs(120), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn more_jobs_than_may_be_held_for_a_queue_that_cannot_be_opened_hold_up_no_other() {
    let mut scene = Scene::new(None);
    let (gone, allowed, n_tries) = scene.with_one_more_queue();
    for nth in 0..100 {
        let id = format!("job-{nth}").parse().unwrap();
        scene.intake.put(&JobResult::moved(id, "gone", scene.clock.now())).await.unwrap();
    }
    scene.publish(200, |_, _| {}).await;
    let _split = scene.start(&CancellationToken::new());
    scene.until("the others", async || scene.count("stable") + scene.count("canary") == 100).await;
    assert_eq!(scene.metrics.refuses.with_label_values(&["gone"]).get(), 1);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(n_tries.load(Relaxed) < 60, "each try is a connection");
    allowed.store(true, Relaxed);
    scene.until_empty().await;
    assert_eq!(gone.depth().await.unwrap().ready, 100);
}

#[tokio::test(start_paused = true)]
async fn jobs_with_large_bodies_are_held_in_smaller_numbers() {
    let mut scene = Scene::new(Some(0));
    scene.body_memory = 32 << 10;
    scene.publish(60, |_, job| job.body = vec![b'x'; 1 << 10].into()).await;
    let _split = scene.start(&CancellationToken::new());
    tokio::time::sleep(Duration::from_secs(60)).await;
    let depth = scene.intake.depth().await.unwrap();
    assert_eq!((depth.in_flight, depth.ready), (32, 28), "64 by their number");
}

#[tokio::test(start_paused = true)]
async fn a_queue_without_a_weight_is_closed_once_nothing_is_for_it_and_opened_again_when_it_has_one()
 {
    let mut scene = Scene::new(None);
    let (_, allowed, n_opened) = scene.with_one_more_queue();
    allowed.store(true, Relaxed);
    let (mut splitter, _) = scene.splitter();
    let stop = CancellationToken::new();
    scene.weights.send_replace(weights("canary=1"));
    splitter.round(&stop).await;
    assert_eq!(splitter.lanes.len(), 2, "a job may be on its way there");
    tokio::time::sleep(Duration::from_secs(60)).await;
    splitter.round(&stop).await;
    assert_eq!(splitter.lanes.keys().collect::<Vec<_>>(), ["canary"]);
    scene.weights.send_replace(weights("stable=1,canary=1"));
    splitter.round(&stop).await;
    assert_eq!((splitter.lanes.len(), n_opened.load(Relaxed)), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn jobs_of_which_nothing_can_be_written_down_are_not_fetched_over_and_over() {
    let mut scene = Scene::new(None);
    let intake = Faulty::new(Arc::new(scene.intake.clone()), Faults::NONE, 1);
    scene.denied = vec![("intake", intake.clone())];
    scene.publish(1, |_, _| {}).await;
    let (mut splitter, _) = scene.splitter();
    let stop = CancellationToken::new();
    let (start, mut n_fetched) = (Instant::now(), 0);
    while n_fetched < 20 {
        intake.set(Faults::NONE);
        let received = splitter.receive(&stop).await;
        n_fetched += received.len();
        intake.set(DENIALS);
        splitter.route(received).await;
        intake.set(Faults::NONE);
        splitter.settle().await;
    }
    let pace = start.elapsed();
    assert!(pace > Duration::from_secs(15), "20 times in {pace:?}");
    tokio::time::sleep(Duration::from_secs(2)).await;
    let received = splitter.receive(&stop).await;
    assert_eq!(received[0].attempt, 1, "it is charged nothing");
    splitter.route(received).await;
    splitter.publish().await;
    assert_eq!(scene.count("stable") + scene.count("canary"), 1);
    assert!(splitter.records.may_try(), "forgotten when it went well");
}

#[tokio::test(start_paused = true)]
async fn a_stop_gives_back_what_has_not_gone_on_and_charges_nothing() {
    let scene = Scene::new(Some(5));
    let stop = CancellationToken::new();
    let (split, _keeper) = scene.start(&stop);
    scene.publish(40, |_, _| {}).await;
    scene
        .until("two full queues", async || {
            scene.waiting("stable").await == 5 && scene.waiting("canary").await == 5
        })
        .await;
    stop.cancel();
    split.await.unwrap();
    let depth = scene.intake.depth().await.unwrap();
    assert_eq!((depth.ready, depth.in_flight), (30, 0));
    let max = NonZeroUsize::new(40).unwrap();
    let again = scene.intake.receive(max, Duration::ZERO).await.unwrap();
    assert!(again.iter().all(|delivery| delivery.attempt == 1), "no attempt was spent");
}

/// Runs a split that is told to stop after a moment.
async fn run_for_a_moment(splitter: Splitter) {
    let stop = CancellationToken::new();
    let stopping = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        stop.cancel();
    };
    tokio::join!(splitter.run(stop.clone()), stopping);
}

#[tokio::test(start_paused = true)]
async fn a_stop_gives_no_job_back_that_a_queue_has_confirmed_however_late_the_intake_answers() {
    // It takes all of its jobs, or half of them.
    for refuse_half in [0.0, 1.0] {
        let mut scene = Scene::new(None);
        let late = Faults { delay: scene.grace / 4, refuse_half, ..Faults::NONE };
        scene.afflict("stable", late);
        let intake = scene.afflict("intake", Faults::NONE);
        scene.publish(64, |_, _| {}).await;
        let (mut splitter, _leases) = scene.splitter();
        fill(&scene, &mut splitter).await;
        // It confirms while the intake is told what the other has confirmed.
        intake.set(Faults { lag: scene.grace, ..Faults::NONE });
        run_for_a_moment(splitter).await;
        let (stable, canary) = (scene.waiting("stable").await, scene.waiting("canary").await);
        assert!(stable > 0 && canary > 0, "{stable} {canary}");
        assert_eq!((scene.count("stable"), scene.count("canary")), (stable, canary));
        let depth = scene.intake.depth().await.unwrap();
        assert_eq!((depth.ready, depth.in_flight), (64 - stable - canary, 0), "{refuse_half}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_while_it_is_asked_whether_the_broker_answers_charges_nothing() {
    let mut scene = Scene { grace: Duration::from_secs(1), ..Scene::new(None) };
    scene.weights.send_replace(weights("stable=0,canary=1"));
    scene.afflict("canary", Faults { fail_before: 1.0, ..Faults::NONE });
    let intake = scene.afflict("intake", Faults::NONE);
    scene.publish(64, |_, _| {}).await;
    let (mut splitter, _leases) = scene.splitter();
    fill(&scene, &mut splitter).await;
    intake.set(Faults { lag: scene.grace, ..Faults::NONE });
    run_for_a_moment(splitter).await;
    let max = NonZeroUsize::new(64).unwrap();
    let again = scene.intake.receive(max, Duration::ZERO).await.unwrap();
    assert_eq!(again.len(), 64, "they are given back");
    assert!(again.iter().all(|delivery| delivery.attempt == 1), "no attempt was spent");
}

#[tokio::test(start_paused = true)]
async fn a_stop_while_it_is_written_down_where_jobs_go_charges_nothing() {
    let mut scene = Scene::new(None);
    // It answers after two seconds, and the stop comes to its half after two and a half.
    scene.afflict("intake", Faults { lag: scene.grace * 2 / 5, ..Faults::NONE });
    scene.publish(10, |_, _| {}).await;
    let (splitter, _leases) = scene.splitter();
    run_for_a_moment(splitter).await;
    let again = scene.intake.receive(NonZeroUsize::new(10).unwrap(), Duration::ZERO).await;
    let attempts: Vec<u32> = again.unwrap().iter().map(|delivery| delivery.attempt).collect();
    assert_eq!(attempts, [1; 10], "no attempt was spent");
}

#[tokio::test(start_paused = true)]
async fn a_stop_while_a_queue_is_opened_charges_nothing() {
    let mut scene = Scene::new(None);
    scene.opening = Arc::new(|_| Box::pin(std::future::pending()));
    let record = JobResult::moved("job-0".parse().unwrap(), "gone", scene.clock.now());
    scene.intake.put(&record).await.unwrap();
    scene.publish(1, |_, _| {}).await;
    let (splitter, _leases) = scene.splitter();
    run_for_a_moment(splitter).await;
    let again = scene.intake.receive(NonZeroUsize::MIN, Duration::ZERO).await.unwrap();
    assert_eq!((again.len(), again[0].attempt), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_stop_cuts_no_call_off_that_waits_for_jobs_however_short_the_grace_period_is() {
    for grace in [100, 1000, 2000, 3000, 10_000].map(Duration::from_millis) {
        let scene = Scene { grace, ..Scene::new(None) };
        let stop = CancellationToken::new();
        let (split, _keeper) = scene.start(&stop);
        // A call has just begun, however long each is.
        tokio::time::sleep(Duration::from_millis(5001)).await;
        let begun = Instant::now();
        stop.cancel();
        split.await.unwrap();
        // Half of the grace period is what a call that hangs has.
        assert!(begun.elapsed() < grace / 2, "{grace:?}: {:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_is_over_with_the_grace_period_while_a_broker_hangs() {
    let mut scene = Scene::new(Some(5));
    scene.opening = Arc::new(|_| Box::pin(std::future::pending()));
    let stop = CancellationToken::new();
    let (split, _keeper) = scene.start(&stop);
    scene.publish(40, |_, _| {}).await;
    let held = async || scene.intake.depth().await.unwrap().in_flight == 30;
    scene.until("two full queues", held).await;
    scene.weights.send_replace(weights("stable=50,canary=20,new=30"));
    tokio::time::sleep(Duration::from_secs(2)).await;
    let begun = Instant::now();
    stop.cancel();
    split.await.unwrap();
    assert!(begun.elapsed() <= Duration::from_secs(5), "{:?}", begun.elapsed());
    let depth = scene.intake.depth().await.unwrap();
    assert_eq!((depth.ready, depth.in_flight), (30, 0), "they are given back all the same");
}
