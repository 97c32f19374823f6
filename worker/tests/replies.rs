//! Replies: a job that asks for one gets its result as a message, before it is acknowledged.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use ebb_model::echo::{Echo, EchoInput};
use ebb_queue::faulty::{Faults, Faulty};
use ebb_queue::memory::MemoryQueue;
use ebb_queue::{
    Backlog, Broker, DeadLetters, Delivery, Depth, Elsewhere, ErrorKind, Failure, FailureKind,
    Info, Job, JobId, JobResult, Link, Outcome, Published, Purged, Receipt, Result, ResultStore,
    Settled, Settlement, Unsettled, WorkerStatus,
};
use ebb_worker::{Device, Metrics, ModelParts, Parts, Pipeline, Settings};
use futures::stream::BoxStream;
use support::{
    Alarmed, EPOCH, echo_answer, echo_job, job, parts, parts_of, queue, served, settings,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

const LEASE: Duration = Duration::from_secs(30);

/// A broker that takes no reply at first, and sees that no job is settled before its reply.
struct Deaf {
    queue: MemoryQueue,
    /// Replies that it still refuses, and as what.
    left: AtomicU32,
    kind: ErrorKind,
}

#[async_trait]
impl Backlog for Deaf {
    async fn depth(&self) -> Result<Depth> {
        self.queue.depth().await
    }
    async fn workers(&self) -> Result<Vec<WorkerStatus>> {
        self.queue.workers().await
    }
    async fn arrivals(&self) -> Result<BoxStream<'static, ()>> {
        self.queue.arrivals().await
    }
    async fn info(&self) -> Result<Info> {
        self.queue.info().await
    }
    fn link(&self) -> &Link {
        self.queue.link()
    }
    async fn close(&self) -> Result<()> {
        self.queue.close().await
    }
}

#[async_trait]
impl Broker for Deaf {
    async fn publish(&self, jobs: Vec<Job>) -> Result<Vec<Published>> {
        self.queue.publish(jobs).await
    }
    async fn receive(&self, max: NonZeroUsize, wait: Duration) -> Result<Vec<Delivery>> {
        self.queue.receive(max, wait).await
    }
    async fn extend(&self, receipts: &[Receipt]) -> Result<Vec<Settled>> {
        self.queue.extend(receipts).await
    }
    async fn cancellations(&self) -> Result<BoxStream<'static, JobId>> {
        self.queue.cancellations().await
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<Vec<Settled>, Unsettled> {
        self.queue.settle(settlements).await
    }
    async fn report(&self, status: &WorkerStatus) -> Result<()> {
        self.queue.report(status).await
    }
    async fn reply(&self, to: &str, result: &JobResult, traceparent: Option<&str>) -> Result<()> {
        assert_eq!(self.queue.get(&result.id).await?.as_ref(), Some(result), "not stored yet");
        assert_ne!(self.queue.depth().await?.in_flight, 0, "settled already");
        if self.left.load(Relaxed) > 0 {
            self.left.fetch_sub(1, Relaxed);
            return Err(ebb_queue::Error::new(self.kind, "no reply is taken"));
        }
        self.queue.reply(to, result, traceparent).await
    }
    async fn purge_old(&self, elsewhere: Elsewhere) -> Result<Purged> {
        self.queue.purge_old(elsewhere).await
    }
    fn lease(&self) -> Duration {
        self.queue.lease()
    }
}

fn asking(mut job: Job, to: &str) -> Job {
    job.headers.reply_to = Some(to.to_owned());
    job
}

/// Works until nothing is left on a broker that refuses so many replies; how many were what.
async fn work(
    queue: &MemoryQueue,
    clock: &Arc<dyn ebb_queue::Clock>,
    deaf: (u32, ErrorKind),
) -> [u64; 2] {
    let deaf = Arc::new(Deaf { queue: queue.clone(), left: deaf.0.into(), kind: deaf.1 });
    let metrics = Metrics::default();
    loop {
        let device = Device::inline(Echo::new(), |_: &[EchoInput]| Duration::ZERO);
        let settings = Settings { exit_when_empty: true, ..settings() };
        let mut parts = parts(&Arc::new(queue.clone()), clock, device, settings);
        parts.queues[0].broker = Arc::clone(&deaf) as Arc<dyn Broker>;
        let worker = Pipeline::new(Parts { metrics: metrics.clone(), ..parts });
        worker.run(CancellationToken::new()).await.unwrap();
        if queue.depth().await.unwrap().delayed == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    ["sent", "refused"].map(|outcome| metrics.replies.with_label_values(&[outcome]).get())
}

const HEARS: (u32, ErrorKind) = (0, ErrorKind::Unavailable);

#[tokio::test(start_paused = true)]
async fn an_answer_and_a_failure_are_sent_to_who_asked() {
    for (body, expected) in [
        (r#"{"input": "text 1"}"#, Ok(echo_answer(1))),
        ("not JSON", Err("body: not JSON, at line 1, column 2")),
        (r#"{"input": "", "poison": true}"#, Err("batch failed: an item is poison")),
    ] {
        let (queue, clock) = queue(LEASE);
        queue.publish(vec![asking(job(1, body), "inbox")]).await.unwrap();
        assert_eq!(work(&queue, &clock, HEARS).await, [1, 0]);
        let (to, reply) = queue.replies().remove(0);
        assert_eq!((to.as_str(), reply.id.as_str()), ("inbox", "job-0001"));
        match (reply.outcome, expected) {
            (Outcome::Completed { body, .. }, Ok(answer)) => assert_eq!(body, answer),
            (Outcome::Failed(failure), Err(why)) => {
                assert!(failure.reason.starts_with(why), "{failure:?}");
            }
            (outcome, _) => panic!("{outcome:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_did_not_ask_gets_none() {
    let (queue, clock) = queue(LEASE);
    queue.publish(vec![echo_job(1)]).await.unwrap();
    assert_eq!(work(&queue, &clock, HEARS).await, [0, 0]);
    assert_eq!(queue.replies(), []);
}

#[tokio::test(start_paused = true)]
async fn a_result_that_was_stored_before_a_crash_is_sent_by_the_next_attempt() {
    for outcome in [
        Outcome::Completed { content_type: "text/plain".to_owned(), body: "the first".into() },
        Outcome::Failed("the first".into()),
    ] {
        let (queue, clock) = queue(LEASE);
        // The body is bad, so that a failure is not overwritten.
        let body = if outcome.is_completed() { r#"{"input": "a second"}"# } else { "not JSON" };
        let job = asking(job(1, body), "inbox");
        let id = job.id.clone();
        queue.publish(vec![job]).await.unwrap();
        let first = JobResult { id, attempt: 1, outcome, finished_at: EPOCH, queue: None };
        queue.put(&first).await.unwrap();
        assert_eq!(work(&queue, &clock, HEARS).await, [1, 0]);
        assert_eq!(queue.replies(), [("inbox".to_owned(), first)]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_says_why_the_job_failed_before_a_crash() {
    let (queue, clock) = queue(LEASE);
    let job = asking(job(1, "not JSON"), "inbox");
    let id = job.id.clone();
    queue.publish(vec![job]).await.unwrap();
    let held = queue.receive(NonZeroUsize::MIN, Duration::ZERO).await.unwrap();
    let outcome = Outcome::Failed(Failure::new(FailureKind::Model, "not finite"));
    let first = JobResult { id, attempt: 1, outcome, finished_at: EPOCH, queue: None };
    queue.put(&first).await.unwrap();
    drop(held);
    tokio::time::sleep(LEASE).await;
    assert_eq!(work(&queue, &clock, HEARS).await, [1, 0]);
    assert_eq!(queue.replies(), [("inbox".to_owned(), first)]);
    let letter = queue.list(1).await.unwrap().remove(0);
    assert_eq!((letter.kind, &*letter.reason), (FailureKind::Model, "not finite"));
    assert_eq!(letter.attempts, 2);
}

#[tokio::test(start_paused = true)]
async fn an_answer_stored_before_the_attempts_were_spent_is_sent_and_acked() {
    let (queue, clock) = queue(LEASE);
    let mut job = asking(job(1, "not JSON"), "inbox");
    job.headers.priority = ebb_queue::Priority::High;
    let (id, body) = (job.id.clone(), "the first".into());
    queue.publish(vec![job]).await.unwrap();
    let outcome = Outcome::Completed { content_type: "text/plain".to_owned(), body };
    let first = JobResult { id, attempt: 1, outcome, finished_at: EPOCH, queue: None };
    queue.put(&first).await.unwrap();
    assert_eq!(work(&queue, &clock, HEARS).await, [1, 0]);
    assert_eq!(queue.replies(), [("inbox".to_owned(), first)]);
    assert!(queue.list(1).await.unwrap().is_empty(), "an answered job is no dead letter");
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_takes_no_reply_for_a_while_is_asked_again() {
    let (queue, clock) = queue(LEASE);
    queue.publish(vec![asking(echo_job(1), "inbox")]).await.unwrap();
    let began = Instant::now();
    // Longer than a lease, which is kept meanwhile.
    assert_eq!(work(&queue, &clock, (30, ErrorKind::Unavailable)).await, [1, 0]);
    assert!(began.elapsed() > LEASE, "{:?}", began.elapsed());
    assert_eq!(queue.replies().len(), 1);
    assert!(queue.list(1).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_address_that_cannot_be_does_not_keep_a_job() {
    let (queue, clock) = queue(LEASE);
    queue.publish(vec![asking(echo_job(1), "no/such/place")]).await.unwrap();
    assert_eq!(work(&queue, &clock, HEARS).await, [0, 1]);
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.ready, depth.in_flight, depth.delayed, depth.dead), (0, 0, 0, 0));
    assert_eq!(support::answer(&queue, 1).await, Some(echo_answer(1)));
}

#[tokio::test(start_paused = true)]
async fn an_address_that_never_takes_a_reply_costs_neither_attempts_nor_neighbours() {
    for kind in [ErrorKind::Internal, ErrorKind::Full, ErrorKind::Incompatible] {
        let (queue, clock) = queue(LEASE);
        let asking = (0..300).map(|number| asking(echo_job(number), "inbox"));
        let quiet = (300..600).map(echo_job);
        queue.publish(asking.chain(quiet).collect()).await.unwrap();
        let began = Instant::now();
        assert_eq!(work(&queue, &clock, (u32::MAX, kind)).await, [0, 300]);
        assert!(began.elapsed() < LEASE, "{kind:?}: {:?}", began.elapsed());
        for number in 0..600 {
            let id = echo_job(number).id;
            let result = queue.get(&id).await.unwrap().unwrap();
            assert_eq!(result.attempt, 1, "{result:?}");
            assert_eq!(support::answer(&queue, number).await, Some(echo_answer(number)));
        }
        assert!(queue.list(1).await.unwrap().is_empty(), "an answered job is no dead letter");
    }
}

/// Counts the warnings that say this.
struct Warnings {
    says: &'static str,
    n: Arc<AtomicU32>,
}

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::WARN
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut said = Said(String::new());
        event.record(&mut said);
        self.n.fetch_add(said.0.contains(self.says).into(), Relaxed);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

struct Said(String);

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn addresses_that_take_nothing_do_not_fill_the_log() {
    // Those that cannot be, and those that answer that they have no room, each asked several times.
    let (refused, full) = ((0, ErrorKind::Unavailable), (u32::MAX, ErrorKind::Full));
    for (to, deaf, says) in [
        ("no/such/place", refused, "the reply was not sent"),
        ("inbox", full, "the reply was not sent"),
        ("inbox", full, "not taken"),
    ] {
        let (queue, clock) = queue(LEASE);
        queue.publish((0..500).map(|n| asking(echo_job(n), to)).collect()).await.unwrap();
        let n = Arc::default();
        let warnings = Warnings { says, n: Arc::clone(&n) };
        let _listening = tracing::subscriber::set_default(warnings);
        let began = Instant::now();
        assert_eq!(work(&queue, &clock, deaf).await, [0, 500]);
        let (most, n_warnings) = (1 + began.elapsed().as_secs(), u64::from(n.load(Relaxed)));
        assert!((1..=most).contains(&n_warnings), "{says}: {n_warnings} in {most} s");
    }
}

#[tokio::test(start_paused = true)]
async fn alerts_that_cannot_be_do_not_fill_the_log() {
    let ((queue, clock), (alerts, _)) = (queue(LEASE), queue(LEASE));
    queue.publish((0..500).map(echo_job).collect()).await.unwrap();
    let invalid = Faults { fail_before: 1.0, kind: ErrorKind::Invalid, ..Faults::NONE };
    let device = Device::inline(Echo::new(), |_: &[EchoInput]| Duration::ZERO);
    let models = vec![ModelParts::new("alarmed", Alarmed { about: |_| true }, device)];
    let mut served = served("default", &Arc::new(queue.clone()), models);
    served.alerts = Arc::new(Faulty::new(Arc::new(alerts), invalid, 1));
    let n = Arc::default();
    let warnings = Warnings { says: "the alert was not published", n: Arc::clone(&n) };
    let _listening = tracing::subscriber::set_default(warnings);
    let began = Instant::now();
    let until_empty = Settings { exit_when_empty: true, ..settings() };
    let worker = Pipeline::new(parts_of(vec![served], &clock, until_empty));
    assert_eq!(worker.run(CancellationToken::new()).await.unwrap().completed, 500);
    let (most, n_warnings) = (1 + began.elapsed().as_secs(), u64::from(n.load(Relaxed)));
    assert!((1..=most).contains(&n_warnings), "{n_warnings} in {most} s");
}
