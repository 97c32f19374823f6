//! How a worker ends when it cannot go on, and what it does with jobs that are too much for it.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ebb_model::echo::{Echo, EchoInput};
use ebb_model::{InferError, ItemError, Model};
use ebb_queue::faulty::{Faults, Faulty};
use ebb_queue::memory::MemoryQueue;
use ebb_queue::{
    Backlog, Broker, DeadLetters, Delivery, Depth, Elsewhere, ErrorKind, Failure, FailureKind,
    Frame, Info, Job, JobId, JobResult, Link, Outcome, Phase, Published, Purged, Receipt, Result,
    ResultStore, Settled, Settlement, Stored, Unsettled, WorkerStatus,
};
use ebb_worker::batcher::Size;
use ebb_worker::{Answer, BadJob, Codec, Device, EchoCodec, ModelParts, Pipeline, Settings, Spent};
use futures::stream::BoxStream;
use support::{
    answer, echo_answer, echo_job, job, parts, parts_of, pipeline, queue, served, settings, until,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const LEASE: Duration = Duration::from_secs(30);

fn echo() -> Device<EchoInput, String> {
    Device::inline(Echo::new(), |_: &[EchoInput]| Duration::ZERO)
}

/// The calls that may fail for a while.
const RECEIVE: usize = 0;
const SETTLE: usize = 1;
const PUT: usize = 2;
const DEPTH: usize = 3;

/// A broker that brings nothing at first, as one that clears away what expired, or never anything, as
/// one whose file is broken; or that takes its time.
struct Odd {
    queue: MemoryQueue,
    /// Calls that it still answers with nothing.
    n_vain: AtomicU32,
    is_broken: bool,
    /// How long it takes to count, to hear a report, and to be left.
    takes: [Duration; 3],
    /// How often it was left in order.
    n_left: AtomicU32,
    /// How often it was asked for jobs.
    n_receives: AtomicU32,
    /// As what its next calls fail: to receive, to settle, to store a result, to count.
    fails: [Mutex<VecDeque<ErrorKind>>; 4],
    /// The job of which it cannot read what it has stored.
    spoilt: Option<JobId>,
}

impl Odd {
    fn new(queue: &MemoryQueue) -> Self {
        let (queue, takes) = (queue.clone(), [Duration::ZERO; 3]);
        Self {
            queue,
            n_vain: AtomicU32::new(0),
            is_broken: false,
            takes,
            n_left: AtomicU32::new(0),
            n_receives: AtomicU32::new(0),
            fails: Default::default(),
            spoilt: None,
        }
    }

    /// Lets calls of one kind fail, so often as this kind of error, in order.
    fn failing(queue: &MemoryQueue, call: usize, errors: &[(usize, ErrorKind)]) -> Self {
        let odd = Self::new(queue);
        let kinds = errors.iter().flat_map(|(n, kind)| std::iter::repeat_n(*kind, *n));
        odd.fails[call].lock().unwrap().extend(kinds);
        odd
    }

    fn fail(&self, call: usize) -> Result<()> {
        match self.fails[call].lock().unwrap().pop_front() {
            Some(kind) => Err(ebb_queue::Error::new(kind, "it fails for a while")),
            None => Ok(()),
        }
    }

    fn n_failures_left(&self, call: usize) -> usize {
        self.fails[call].lock().unwrap().len()
    }
}

#[async_trait]
impl Backlog for Odd {
    async fn depth(&self) -> Result<Depth> {
        tokio::time::sleep(self.takes[0]).await;
        self.fail(DEPTH)?;
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
        tokio::time::sleep(self.takes[2]).await;
        self.n_left.fetch_add(1, Relaxed);
        self.queue.close().await
    }
}

#[async_trait]
impl Broker for Odd {
    async fn publish(&self, jobs: Vec<Job>) -> Result<Vec<Published>> {
        self.queue.publish(jobs).await
    }
    async fn receive(&self, max: NonZeroUsize, wait: Duration) -> Result<Vec<Delivery>> {
        if self.is_broken {
            return Err(ebb_queue::Error::new(ErrorKind::Internal, "the file is broken"));
        }
        self.n_receives.fetch_add(1, Relaxed);
        self.fail(RECEIVE)?;
        if self.n_vain.load(Relaxed) > 0 {
            self.n_vain.fetch_sub(1, Relaxed);
            return Ok(Vec::new());
        }
        self.queue.receive(max, wait).await
    }
    async fn extend(&self, receipts: &[Receipt]) -> Result<Vec<Settled>> {
        self.queue.extend(receipts).await
    }
    async fn cancellations(&self) -> Result<BoxStream<'static, JobId>> {
        self.queue.cancellations().await
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<Vec<Settled>, Unsettled> {
        self.fail(SETTLE)?;
        self.queue.settle(settlements).await
    }
    async fn report(&self, status: &WorkerStatus) -> Result<()> {
        tokio::time::sleep(self.takes[1]).await;
        self.queue.report(status).await
    }
    async fn reply(&self, to: &str, result: &JobResult, traceparent: Option<&str>) -> Result<()> {
        self.queue.reply(to, result, traceparent).await
    }
    async fn purge_old(&self, elsewhere: Elsewhere) -> Result<Purged> {
        self.queue.purge_old(elsewhere).await
    }
    fn lease(&self) -> Duration {
        self.queue.lease()
    }
}

#[async_trait]
impl ResultStore for Odd {
    async fn put(&self, result: &JobResult) -> Result<Stored> {
        self.fail(PUT)?;
        if self.spoilt.as_ref() == Some(&result.id) {
            return Err(ebb_queue::Error::new(ErrorKind::Incompatible, "it cannot be read"));
        }
        self.queue.put(result).await
    }
    async fn get(&self, id: &JobId) -> Result<Option<JobResult>> {
        self.queue.get(id).await
    }
    async fn chunk(&self, id: &JobId, attempt: u32, seq: u64, body: Bytes) -> Result<Stored> {
        self.queue.chunk(id, attempt, seq, body).await
    }
    async fn follow(&self, id: &JobId, from: u64) -> Result<BoxStream<'static, Result<Frame>>> {
        self.queue.follow(id, from).await
    }
    fn result_ttl(&self) -> Duration {
        self.queue.result_ttl()
    }
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_refuses_for_good_ends_the_worker() {
    let (queue, clock) = queue(LEASE);
    let mut parts = parts(&Arc::new(queue.clone()), &clock, echo(), settings());
    parts.queues[0].broker = Arc::new(Odd { is_broken: true, ..Odd::new(&queue) });
    let worker = Pipeline::new(parts);
    let error = worker.run(CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.to_string(), "broker is lost: the file is broken");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_brings_nothing_is_no_end_while_jobs_are_ready() {
    let (queue, clock) = queue(LEASE);
    queue.publish((0..3).map(echo_job).collect()).await.unwrap();
    let until_empty = Settings { exit_when_empty: true, ..settings() };
    let mut parts = parts(&Arc::new(queue.clone()), &clock, echo(), until_empty);
    parts.queues[0].broker = Arc::new(Odd { n_vain: AtomicU32::new(5), ..Odd::new(&queue) });
    let summary = Pipeline::new(parts).run(CancellationToken::new()).await.unwrap();
    assert_eq!(summary.completed, 3);
}

#[tokio::test(start_paused = true)]
async fn a_few_refusals_to_count_are_no_end_while_jobs_are_ready() {
    let ever = usize::from(u16::MAX);
    for (n_refusals, kind, n_completed) in
        [(4, ErrorKind::Internal, 3), (4, ErrorKind::Denied, 3), (ever, ErrorKind::Internal, 0)]
    {
        let (queue, clock) = queue(LEASE);
        queue.publish((0..3).map(echo_job).collect()).await.unwrap();
        let until_empty = Settings { exit_when_empty: true, ..settings() };
        let mut parts = parts(&Arc::new(queue.clone()), &clock, echo(), until_empty);
        let odd = Odd::failing(&queue, DEPTH, &[(n_refusals, kind)]);
        parts.queues[0].broker = Arc::new(Odd { n_vain: AtomicU32::new(9), ..odd });
        let summary = Pipeline::new(parts).run(CancellationToken::new()).await.unwrap();
        assert_eq!(summary.completed, n_completed, "{n_refusals} refusals of {kind}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_result_store_that_denies_us_ends_the_worker_and_harms_no_job() {
    for kind in [ErrorKind::Denied, ErrorKind::Incompatible, ErrorKind::Missing] {
        let (queue, clock) = queue(LEASE);
        queue.publish((0..8).map(echo_job).collect()).await.unwrap();
        queue.publish(vec![job(8, "not JSON")]).await.unwrap();
        let mut parts = parts(&Arc::new(queue.clone()), &clock, echo(), settings());
        let broken = Faults { fail_before: 1.0, kind, ..Faults::NONE };
        parts.queues[0].results = Arc::new(Faulty::new(Arc::new(queue.clone()), broken, 1));
        let worker = Pipeline::new(parts).run(CancellationToken::new());
        let ended = tokio::time::timeout(20 * LEASE, worker).await;
        let error = ended.unwrap_or_else(|_| panic!("{kind:?} does not end it")).unwrap_err();
        assert!(error.to_string().starts_with("broker is lost"), "{error}");
        let depth = queue.depth().await.unwrap();
        let counts = (depth.ready, depth.in_flight, depth.delayed, depth.dead);
        assert_eq!(counts, (9, 0, 0, 0), "{kind:?}: all are there for one that may answer them");
        let again = queue.receive(NonZeroUsize::new(9).unwrap(), Duration::ZERO).await.unwrap();
        assert!(again.iter().all(|one| one.attempt == 1), "{kind:?}: charged for nothing");
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_stored_result_cannot_be_read_ends_no_worker() {
    let (queue, clock) = queue(LEASE);
    queue.publish((0..3).map(echo_job).collect()).await.unwrap();
    // The store takes the results of all other jobs.
    let store = Odd { spoilt: Some(echo_job(1).id), ..Odd::new(&queue) };
    let mut parts = parts(&Arc::new(queue.clone()), &clock, echo(), settings());
    parts.queues[0].results = Arc::new(store);
    let stop = CancellationToken::new();
    let running = tokio::spawn(Pipeline::new(parts).run(stop.clone()));
    tokio::time::timeout(20 * LEASE, until(&queue, |depth| depth.dead == 1)).await.unwrap();
    stop.cancel();
    let summary = running.await.unwrap().unwrap();
    assert_eq!((summary.completed, summary.failed), (2, 1));
}

/// A store that can be read and takes nothing, as a file whose last page is damaged.
#[tokio::test(start_paused = true)]
async fn a_store_that_takes_no_result_for_good_ends_the_worker_though_it_can_be_read() {
    let (queue, clock) = queue(LEASE);
    queue.publish((0..3).map(echo_job).collect()).await.unwrap();
    let store = Odd::failing(&queue, PUT, &[(usize::from(u16::MAX), ErrorKind::Incompatible)]);
    let mut parts = parts(&Arc::new(queue.clone()), &clock, echo(), settings());
    parts.queues[0].results = Arc::new(store);
    let worker = Pipeline::new(parts).run(CancellationToken::new());
    let ended = tokio::time::timeout(20 * LEASE, worker).await.expect("it ends");
    assert!(ended.unwrap_err().to_string().starts_with("broker is lost"));
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.ready, depth.in_flight, depth.delayed, depth.dead), (3, 0, 0, 0));
    let again = queue.receive(NonZeroUsize::new(3).unwrap(), Duration::ZERO).await.unwrap();
    assert!(again.iter().all(|one| one.attempt == 1), "charged for nothing");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_cannot_tell_for_now_whose_fault_it_is_charges_no_job() {
    let (queue, clock) = queue(LEASE);
    queue.publish(vec![echo_job(0)]).await.unwrap();
    // The sixth call is the one that is to tell.
    let errors = [(5, ErrorKind::Incompatible), (1, ErrorKind::Unavailable)];
    let store = Arc::new(Odd::failing(&queue, PUT, &errors));
    let until_empty = Settings { exit_when_empty: true, ..settings() };
    let mut parts = parts(&Arc::new(queue.clone()), &clock, echo(), until_empty);
    parts.queues[0].results = Arc::clone(&store) as Arc<dyn ResultStore>;
    let summary = Pipeline::new(parts).run(CancellationToken::new()).await.unwrap();
    assert_eq!((summary.completed, summary.retried, summary.lost), (1, 0, 0));
    assert_eq!(store.n_failures_left(PUT), 0);
}

/// An outage, and a few refusals when it is over, twice: fewer in a row than are believed.
const OUTAGE_AND_REFUSALS: [(usize, ErrorKind); 4] = [
    (8, ErrorKind::Unavailable),
    (4, ErrorKind::Internal),
    (1, ErrorKind::Unavailable),
    (4, ErrorKind::Internal),
];

#[tokio::test(start_paused = true)]
async fn a_refusal_at_the_end_of_an_outage_does_not_end_the_worker() {
    for (last, is_over) in [(0, false), (1, true)] {
        let (queue, clock) = queue(LEASE);
        queue.publish(vec![echo_job(0)]).await.unwrap();
        let errors = [&OUTAGE_AND_REFUSALS[..], &[(last, ErrorKind::Internal)]].concat();
        let until_empty = Settings { exit_when_empty: true, ..settings() };
        let mut parts = parts(&Arc::new(queue.clone()), &clock, echo(), until_empty);
        parts.queues[0].broker = Arc::new(Odd::failing(&queue, RECEIVE, &errors));
        let ended = Pipeline::new(parts).run(CancellationToken::new()).await;
        assert_eq!(ended.is_err(), is_over, "{ended:?}");
        assert!(ended.is_err() || ended.unwrap().completed == 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_at_the_end_of_an_outage_leaves_no_job_to_its_lease_and_charges_none() {
    for call in [SETTLE, PUT] {
        let (queue, clock) = queue(LEASE);
        queue.publish(vec![echo_job(0)]).await.unwrap();
        let odd = Arc::new(Odd::failing(&queue, call, &OUTAGE_AND_REFUSALS));
        let until_empty = Settings { exit_when_empty: true, ..settings() };
        let mut parts = parts(&Arc::new(queue.clone()), &clock, echo(), until_empty);
        parts.queues[0].broker = Arc::clone(&odd) as Arc<dyn Broker>;
        parts.queues[0].results = Arc::clone(&odd) as Arc<dyn ResultStore>;
        let metrics = parts.metrics.clone();
        let summary = Pipeline::new(parts).run(CancellationToken::new()).await.unwrap();
        assert_eq!((summary.completed, summary.retried, summary.lost), (1, 0, 0), "call {call}");
        let n_batches = metrics.infer.with_label_values(&["echo"]).get_sample_count();
        assert_eq!((n_batches, odd.n_failures_left(call)), (1, 0), "call {call}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_waited_for_a_job_that_is_alone_receives_nothing_after_the_stop() {
    let (clock, queues) = {
        let (one, clock) = queue(LEASE);
        (clock, [one, queue(LEASE).0])
    };
    queues[0].publish(vec![echo_job(0)]).await.unwrap();
    for _ in 0..2 {
        drop(queues[0].receive(NonZeroUsize::MIN, Duration::ZERO).await.unwrap());
        tokio::time::sleep(2 * LEASE).await;
    }
    let device = Device::inline(Echo::new(), |_: &[EchoInput]| Duration::from_secs(10));
    let of = |name: &str| vec![ModelParts::new(name, EchoCodec, device.clone())];
    let other = Arc::new(Odd::new(&queues[1]));
    let mut served = vec![
        served("one", &Arc::new(queues[0].clone()), of("one")),
        served("other", &Arc::new(queues[1].clone()), of("other")),
    ];
    served[1].broker = Arc::clone(&other) as Arc<dyn Broker>;
    let stop = CancellationToken::new();
    let running =
        tokio::spawn(Pipeline::new(parts_of(served, &clock, settings())).run(stop.clone()));
    until(&queues[0], |depth| depth.in_flight == 1).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    // It waits until the job is gone, with a job of its own to be had.
    queues[1].publish(vec![echo_job(1)]).await.unwrap();
    let n_before = other.n_receives.load(Relaxed);
    stop.cancel();
    let summary = running.await.unwrap().unwrap();
    assert_eq!((summary.completed, summary.released), (1, 0));
    assert_eq!(other.n_receives.load(Relaxed), n_before);
}

#[tokio::test]
async fn a_worker_whose_model_cannot_be_loaded_is_not_taken_for_one_that_starts() {
    let (queue, clock) = queue(LEASE);
    let device = Device::thread::<Echo, _>(|_| Err("no weights".into())).unwrap();
    let worker = pipeline(&Arc::new(queue.clone()), &clock, device, settings());
    worker.run(CancellationToken::new()).await.unwrap_err();
    let phases = queue.workers().await.unwrap().into_iter().map(|worker| worker.phase);
    assert!(phases.into_iter().all(|phase| phase != Phase::Starting));
}

/// An echo whose jobs cost as much as they are long, and that cannot write down one answer.
struct Peculiar;

impl Codec for Peculiar {
    type Input = EchoInput;
    type Output = String;
    type Asked = ();

    fn decode(&self, job: &Job) -> std::result::Result<(EchoInput, ()), BadJob> {
        EchoCodec.decode(job)
    }

    fn size(&self, input: &EchoInput) -> Size {
        Size::of([input.input.len()])
    }

    fn encode(&self, output: String, (): (), job: &Job, spent: &Spent) -> Answer {
        assert_ne!(output, "unspeakable");
        EchoCodec.encode(output, (), job, spent)
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_costs_too_much_or_has_an_answer_that_cannot_be_written_hurts_nobody_else() {
    let (queue, clock) = queue(LEASE);
    let long = format!(r#"{{"input": "{}"}}"#, "x".repeat(101));
    let unspeakable = r#"{"input": "unspeakable"}"#;
    let jobs = vec![echo_job(0), job(1, &long), job(2, unspeakable), echo_job(3)];
    queue.publish(jobs).await.unwrap();
    let settings = Settings { max_job_cost: 100, exit_when_empty: true, ..settings() };
    let models = vec![ModelParts::new("peculiar", Peculiar, echo())];
    let served = served("default", &Arc::new(queue.clone()), models);
    let peculiar = parts_of(vec![served], &clock, settings);
    Pipeline::new(peculiar).run(CancellationToken::new()).await.unwrap();
    for number in [0, 3] {
        assert_eq!(answer(&queue, number).await, Some(echo_answer(number)));
    }
    let mut dead = queue.list(10).await.unwrap();
    dead.sort_by(|a, b| a.job.id.cmp(&b.job.id));
    let reasons: Vec<_> = dead.iter().map(|letter| letter.reason.as_str()).collect();
    assert!(reasons[0].contains("at most 100 in one job, or raise --max-job-cost"), "{reasons:?}");
    assert!(reasons[1].contains("a bug of ours"), "{reasons:?}");
    let kinds: Vec<_> = dead.iter().map(|letter| letter.kind).collect();
    assert_eq!(kinds, [FailureKind::Invalid, FailureKind::Model]);
}

/// What is too long for the device, and breaks whoever lets go of it.
struct Volatile(EchoInput);

impl Drop for Volatile {
    fn drop(&mut self) {
        assert!(self.0.input.len() <= 100, "on purpose");
    }
}

/// Returns what it is given.
struct Mirror;

impl Model for Mirror {
    type Input = Volatile;
    type Output = String;

    fn infer(
        &mut self,
        batch: &[Volatile],
    ) -> std::result::Result<Vec<std::result::Result<String, ItemError>>, InferError> {
        Ok(batch.iter().map(|item| Ok(item.0.input.clone())).collect())
    }
}

impl Codec for Mirror {
    type Input = Volatile;
    type Output = String;
    type Asked = ();

    fn decode(&self, job: &Job) -> std::result::Result<(Volatile, ()), BadJob> {
        EchoCodec.decode(job).map(|(input, ())| (Volatile(input), ()))
    }

    fn size(&self, input: &Volatile) -> Size {
        Size::of([input.0.input.len()])
    }

    fn encode(&self, output: String, (): (), job: &Job, spent: &Spent) -> Answer {
        EchoCodec.encode(output, (), job, spent)
    }
}

#[tokio::test]
async fn a_job_that_makes_its_cpu_thread_panic_takes_no_other_with_it() {
    let (queue, clock) = queue(LEASE);
    let mut jobs: Vec<_> = (0..20).map(echo_job).collect();
    jobs[7] = job(7, &format!(r#"{{"input": "{}"}}"#, "x".repeat(101)));
    queue.publish(jobs).await.unwrap();
    let one_thread = Settings { max_job_cost: 100, decode_threads: 1, ..settings() };
    let device = Device::thread(|_| Ok(Mirror)).unwrap();
    let models = vec![ModelParts::new("mirror", Mirror, device)];
    let served = served("default", &Arc::new(queue.clone()), models);
    let until_empty = Settings { exit_when_empty: true, ..one_thread };
    let worker = Pipeline::new(parts_of(vec![served], &clock, until_empty));
    let summary = worker.run(CancellationToken::new()).await.unwrap();
    assert_eq!((summary.completed, summary.failed, summary.left), (19, 1, 0));
    let dead = queue.list(10).await.unwrap();
    assert_eq!((dead[0].job.id.as_str(), dead[0].attempts), ("job-0007", 1));
    assert!(dead[0].reason.contains("made the decoder panic"), "{}", dead[0].reason);
}

#[tokio::test(start_paused = true)]
async fn a_stop_at_the_very_end_of_a_batch_does_not_wait_for_the_grace_period() {
    const BATCH: Duration = Duration::from_millis(10);
    let (queue, clock) = queue(LEASE);
    let queue = Arc::new(queue);
    queue.publish((0..2).map(echo_job).collect()).await.unwrap();
    // Room for a third job that never comes: the batcher knows that the second one is the last.
    let settings = Settings {
        limits: ebb_worker::batcher::Limits { max_items: NonZeroUsize::MIN, ..settings().limits },
        prefetch: 2,
        max_jobs: Some(2),
        ..settings()
    };
    let device = Device::inline(Echo::new(), |_: &[EchoInput]| BATCH);
    let stop = CancellationToken::new();
    let began = tokio::time::Instant::now();
    let worker = tokio::spawn(pipeline(&queue, &clock, device, settings).run(stop.clone()));
    tokio::time::sleep(BATCH).await;
    stop.cancel();
    let summary = worker.await.unwrap().unwrap();
    assert_eq!((summary.completed, summary.released, summary.left), (1, 1, 0));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_failure_tells_the_beginning_and_the_end_of_a_reason_that_repeats_a_body() {
    let (queue, clock) = queue(LEASE);
    let body = format!(r#"{{"input": "a text", "fail": "{}"}}"#, "\u{e4}".repeat(400_000));
    queue.publish(vec![job(0, &body)]).await.unwrap();
    let worker = pipeline(&Arc::new(queue.clone()), &clock, echo(), settings());
    let stop = CancellationToken::new();
    let worker = tokio::spawn(worker.run(stop.clone()));
    until(&queue, |depth| depth.dead == 1).await;
    stop.cancel();
    worker.await.unwrap().unwrap();
    let letter = queue.list(1).await.unwrap().remove(0);
    let reason = letter.reason;
    let length = reason.chars().count();
    assert!(length <= 500, "{length} characters");
    assert!(reason.starts_with("body: invalid type: string \"\u{e4}\u{e4}"), "{reason}");
    assert!(reason.contains("\u{e4}\", expected a boolean at line 1 column "), "{reason}");
    let stored = queue.get(&letter.job.id).await.unwrap().unwrap().outcome;
    assert_eq!(stored, Outcome::Failed(Failure::invalid(reason.clone())));
    assert_eq!(letter.history.last().unwrap().what, reason);
}

#[tokio::test(start_paused = true)]
async fn an_end_that_the_broker_refuses_holds_up_no_other_and_is_told_again() {
    let (queue, clock) = queue(LEASE);
    let full = Faults { refuse_rejection: 1.0, ..Faults::NONE };
    let broker = Faulty::new(Arc::new(queue.clone()), full, 1);
    let mut parts = parts(&Arc::new(queue.clone()), &clock, echo(), settings());
    parts.queues[0].broker = Arc::new(broker.clone());
    let worker = Pipeline::new(parts);
    let stop = CancellationToken::new();
    let running = tokio::spawn(worker.run(stop.clone()));
    let (n_good, n_bad) = (1980, 20);
    let jobs = (0..2000).map(|n| if n % 100 == 50 { job(n, "not JSON") } else { echo_job(n) });
    queue.publish(jobs.collect()).await.unwrap();
    let begin = Instant::now();
    until(&queue, |depth| (depth.ready, depth.in_flight) == (0, n_bad)).await;
    assert!(begin.elapsed() < LEASE / 3, "in {:?}", begin.elapsed());
    tokio::time::sleep(2 * LEASE).await;
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.in_flight, depth.dead), (n_bad, 0), "they are held meanwhile");
    broker.set(Faults::NONE);
    until(&queue, |depth| depth.dead == n_bad).await;
    stop.cancel();
    let summary = running.await.unwrap().unwrap();
    let counts = (summary.completed, summary.failed, summary.lost, summary.left);
    assert_eq!(counts, (n_good, n_bad, 0, 0));
    assert!(broker.injected().refused > n_bad, "they were told again");
}

#[tokio::test(start_paused = true)]
async fn an_end_that_comes_too_late_during_an_outage_does_not_end_the_worker() {
    let (queue, clock) = queue(LEASE);
    let full = Faults { refuse_rejection: 1.0, ..Faults::NONE };
    let broker = Faulty::new(Arc::new(queue.clone()), full, 1);
    let mut parts = parts(&Arc::new(queue.clone()), &clock, echo(), settings());
    parts.queues[0].broker = Arc::new(broker.clone());
    let stop = CancellationToken::new();
    let running = tokio::spawn(Pipeline::new(parts).run(stop.clone()));
    queue.publish(vec![job(0, "not JSON")]).await.unwrap();
    while broker.injected().refused == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Away for longer than its lease lasts, and whoever looks, it answers no call.
    broker.set(Faults { fail_before: 1.0, ..Faults::NONE });
    tokio::time::sleep(3 * LEASE).await;
    broker.set(Faults::NONE);
    queue.publish(vec![echo_job(1)]).await.unwrap();
    until(&queue, |depth| (depth.ready, depth.in_flight, depth.dead) == (0, 0, 1)).await;
    stop.cancel();
    let summary = running.await.unwrap().unwrap();
    assert_eq!((summary.completed, summary.lost), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_takes_long_to_count_holds_up_neither_jobs_nor_a_stop() {
    let (queue, clock) = queue(LEASE);
    let hour = Duration::from_secs(3600);
    let mut parts = parts(&Arc::new(queue.clone()), &clock, echo(), settings());
    let health = parts.health.clone();
    let takes = [hour, Duration::ZERO, Duration::ZERO];
    parts.queues[0].broker = Arc::new(Odd { takes, ..Odd::new(&queue) });
    let stop = CancellationToken::new();
    let began = Instant::now();
    let running = tokio::spawn(Pipeline::new(parts).run(stop.clone()));
    queue.publish(vec![echo_job(1)]).await.unwrap();
    let done = until(&queue, |depth| (depth.ready, depth.in_flight) == (0, 0));
    tokio::time::timeout(Duration::from_secs(5), done).await.expect("it is done at once");
    assert_eq!(answer(&queue, 1).await, Some(echo_answer(1)));
    assert_eq!(health.ready(), Ok(()), "what was received shows that the broker answers");
    stop.cancel();
    assert_eq!(running.await.unwrap().unwrap().completed, 1);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_worker_is_ready_before_the_first_call_for_jobs_returns() {
    let (queue, clock) = queue(LEASE);
    let parts = parts(&Arc::new(queue.clone()), &clock, echo(), settings());
    let health = parts.health.clone();
    let stop = CancellationToken::new();
    let running = tokio::spawn(Pipeline::new(parts).run(stop.clone()));
    // A call for jobs waits for a second.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(health.ready(), Ok(()));
    stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn all_brokers_are_left_in_order_also_where_the_grace_period_is_over() {
    let (clock, queues) = {
        let (one, clock) = queue(LEASE);
        (clock, [one, queue(LEASE).0])
    };
    let (hour, close) = (Duration::from_secs(3600), Duration::from_millis(1500));
    // It does not hear the last report.
    let takes = [Duration::ZERO, hour, close];
    let brokers = queues.each_ref().map(|queue| Arc::new(Odd { takes, ..Odd::new(queue) }));
    let settings = settings();
    // Models of one device.
    let device = Device::inline(Echo::new(), move |_: &[EchoInput]| hour);
    let of = |name: &str| vec![ModelParts::new(name, EchoCodec, device.clone())];
    let mut served = vec![
        served("one", &Arc::new(queues[0].clone()), of("one")),
        served("other", &Arc::new(queues[1].clone()), of("other")),
    ];
    for (served, broker) in served.iter_mut().zip(&brokers) {
        served.broker = Arc::clone(broker) as Arc<dyn Broker>;
    }
    queues[0].publish(vec![echo_job(0)]).await.unwrap();
    let stop = CancellationToken::new();
    let grace = settings.grace;
    let running = tokio::spawn(Pipeline::new(parts_of(served, &clock, settings)).run(stop.clone()));
    until(&queues[0], |depth| depth.in_flight == 1).await;
    let stopped = Instant::now();
    stop.cancel();
    let summary = running.await.unwrap().unwrap();
    assert_eq!(summary.left, 1, "a batch that takes an hour");
    assert_eq!(brokers.map(|broker| broker.n_left.load(Relaxed)), [1, 1]);
    let late = stopped.elapsed() - grace;
    assert!(late < Duration::from_millis(2100), "{late:?} after the grace period");
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_until_an_empty_queue_is_counted() {
    let (queue, clock) = queue(LEASE);
    let until_empty = Settings { exit_when_empty: true, ..settings() };
    let mut parts = parts(&Arc::new(queue.clone()), &clock, echo(), until_empty);
    let takes = [Duration::from_secs(3600), Duration::ZERO, Duration::ZERO];
    parts.queues[0].broker = Arc::new(Odd { takes, ..Odd::new(&queue) });
    let stop = CancellationToken::new();
    let running = tokio::spawn(Pipeline::new(parts).run(stop.clone()));
    tokio::time::sleep(Duration::from_secs(5)).await;
    let stopped = Instant::now();
    stop.cancel();
    running.await.unwrap().unwrap();
    assert!(stopped.elapsed() < Duration::from_secs(2), "{:?}", stopped.elapsed());
}
