//! Faults that are injected happen as described, from the seed alone, and break no promise.
#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use ebb_queue::faulty::{Faults, Faulty, Injected};
use ebb_queue::memory::MemoryQueue;
use ebb_queue::{
    Backlog, Behavior, Broker, DeadLetters, Delivery, ErrorKind, Job, JobId, JobResult,
    OpenOptions, Outcome, ResultStore, Settled, Stored, TokioClock, answer_at,
};

const LEASE: Duration = Duration::from_secs(30);

fn memory() -> Arc<MemoryQueue> {
    let clock = TokioClock::starting_at("2030-01-31T12:00:00Z".parse().unwrap());
    let options =
        OpenOptions { worker: "one".to_owned(), clock: Arc::new(clock), ..OpenOptions::default() };
    Arc::new(MemoryQueue::new(&Behavior { lease: LEASE, ..Behavior::default() }, options))
}

fn job(n: usize) -> Job {
    let mut job = Job::new("body", "2030-01-31T12:00:00Z".parse().unwrap());
    job.id = format!("job-{n}").parse().unwrap();
    job
}

async fn take(queue: &impl Broker) -> Result<Vec<Delivery>, ErrorKind> {
    let deliveries = queue.receive(NonZeroUsize::new(9).unwrap(), Duration::ZERO).await;
    deliveries.map_err(|error| error.kind())
}

#[tokio::test(start_paused = true)]
async fn a_call_that_fails_before_had_no_effect() {
    let queue = Faulty::new(memory(), Faults { fail_before: 1.0, ..Faults::NONE }, 1);
    let refused = queue.publish(vec![job(1)]).await.map_err(|error| error.kind());
    assert_eq!(refused, Err(ErrorKind::Unavailable));
    assert_eq!(queue.inner().depth().await.unwrap().ready, 0);
    assert_eq!(queue.injected(), Injected { failed_before: 1, ..Injected::default() });
}

#[tokio::test(start_paused = true)]
async fn a_call_that_fails_after_had_its_effect() {
    let queue = Faulty::new(memory(), Faults { fail_after: 1.0, ..Faults::NONE }, 1);
    queue.publish(vec![job(1)]).await.unwrap_err();
    assert_eq!(queue.inner().depth().await.unwrap().ready, 1);
    assert_eq!(take(&queue).await.unwrap_err(), ErrorKind::Unavailable);
    assert_eq!(queue.inner().depth().await.unwrap().in_flight, 1);
    queue.set(Faults::NONE);
    assert!(queue.publish(vec![job(1)]).await.unwrap()[0].duplicate);
    let injected = Injected { failed_after: 2, repeated: 1, ..Injected::default() };
    assert_eq!(queue.injected(), injected);
}

#[tokio::test(start_paused = true)]
async fn a_publication_that_is_refused_by_half_tells_which_jobs_are_stored() {
    let queue = Faulty::new(memory(), Faults { refuse_half: 1.0, ..Faults::NONE }, 1);
    let error = queue.publish(vec![job(1), job(2), job(3)]).await.unwrap_err();
    assert_eq!((error.kind(), error.may_be_stored()), (ErrorKind::Full, true));
    assert_eq!(error.stored(), [job(1).id]);
    assert_eq!(queue.inner().depth().await.unwrap().ready, 1);
    assert!(queue.publish(vec![job(2)]).await.unwrap_err().stored().is_empty(), "half of one");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_answers_late_has_had_its_effect_before() {
    let lag = Duration::from_secs(2);
    let queue = Faulty::new(memory(), Faults { lag, ..Faults::NONE }, 1);
    let cut_off = tokio::time::timeout(lag / 2, queue.publish(vec![job(1)])).await;
    assert!(cut_off.is_err());
    assert_eq!(queue.inner().depth().await.unwrap().ready, 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_for_jobs_that_fails_leaves_them_and_other_calls_as_they_are() {
    let denied = Faults { fail_receive: 1.0, kind: ErrorKind::Denied, ..Faults::NONE };
    let queue = Faulty::new(memory(), denied, 1);
    queue.publish(vec![job(0)]).await.unwrap();
    assert_eq!(take(&queue).await.unwrap_err(), ErrorKind::Denied);
    assert_eq!((queue.depth().await.unwrap().ready, queue.injected().failed_before), (1, 1));
    queue.set(Faults::NONE);
    assert_eq!(take(&queue).await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_delivery_comes_back_with_its_lease() {
    let queue = Faulty::new(memory(), Faults { drop_delivery: 1.0, ..Faults::NONE }, 1);
    queue.publish(vec![job(1)]).await.unwrap();
    assert!(take(&queue).await.unwrap().is_empty());
    queue.set(Faults::NONE);
    assert!(take(&queue).await.unwrap().is_empty());
    tokio::time::sleep(LEASE).await;
    assert_eq!(take(&queue).await.unwrap()[0].attempt, 2);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_ends_early_is_lost_and_the_job_goes_to_another() {
    let queue = Faulty::new(memory(), Faults { end_lease: 1.0, ..Faults::NONE }, 1);
    let other = queue.around(Arc::new(queue.inner().as_worker("two")));
    queue.publish(vec![job(1)]).await.unwrap();
    let first = take(&queue).await.unwrap().remove(0);
    queue.set(Faults::NONE);
    // It waits for less than the lease: the early end is told to who waits.
    let second = other.receive(NonZeroUsize::MIN, LEASE * 9 / 10).await.unwrap().remove(0);
    assert_eq!(second.attempt, 2);
    assert_eq!(queue.extend(&[first.receipt().clone()]).await.unwrap(), [Settled::Lost]);
    assert_eq!(queue.settle(&[first.ack()]).await.unwrap(), [Settled::Lost]);
    assert_eq!(other.settle(&[second.reject("bad")]).await.unwrap(), [Settled::Held]);
    let letter = queue.list(1).await.unwrap().remove(0);
    let history: Vec<_> = letter.history.iter().map(|attempt| &*attempt.what).collect();
    assert_eq!(history, ["lease expired", "bad"]);
    assert_eq!(queue.injected(), Injected { ended: 1, ..Injected::default() });
}

#[tokio::test(start_paused = true)]
async fn a_rejection_without_room_is_told_apart_from_what_was_carried_out() {
    let queue = Faulty::new(memory(), Faults { refuse_rejection: 1.0, ..Faults::NONE }, 1);
    queue.publish(vec![job(1), job(2), job(3)]).await.unwrap();
    let [first, second, third] = take(&queue).await.unwrap().try_into().unwrap();
    let settlements = [first.ack(), second.reject("bad"), third.ack()];
    let answers = queue.settle(&settlements).await;
    let told = [0, 1, 2].map(|nth| answer_at(&answers, nth));
    assert_eq!(told, [Some(Settled::Held), None, Some(Settled::Held)]);
    assert_eq!(answers.unwrap_err().error.kind(), ErrorKind::Full);
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.in_flight, depth.dead), (1, 0));
    assert_eq!(queue.injected(), Injected { refused: 1, ..Injected::default() });
    queue.set(Faults::NONE);
    assert_eq!(queue.settle(&settlements[1..2]).await.unwrap(), [Settled::Held]);
    assert_eq!(queue.depth().await.unwrap().dead, 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_is_held_up_for_no_longer_than_asked() {
    let delay = Duration::from_millis(500);
    let queue = Faulty::new(memory(), Faults { delay, ..Faults::NONE }, 1);
    let start = tokio::time::Instant::now();
    for _ in 0..20 {
        queue.depth().await.unwrap();
    }
    let mean = start.elapsed() / 20;
    assert!(delay / 4 < mean && mean < delay * 3 / 4, "{mean:?}");
}

/// Twenty jobs and three careful workers; returns how it went.
async fn run(seed: u64) -> (BTreeMap<JobId, JobResult>, Injected) {
    let faults = Faults { end_lease: 0.3, ..Faults::default() };
    let queue = Faulty::new(memory(), faults, seed);
    for n in 0..20 {
        // Who is not sure publishes again.
        while queue.publish(vec![job(n)]).await.is_err() {}
    }
    let mut workers = tokio::task::JoinSet::new();
    for n in 0..3 {
        let inner = queue.inner().as_worker(format!("worker-{n}"));
        workers.spawn(work(queue.around(Arc::new(inner))));
    }
    let stored = workers.join_all().await;
    let inner = queue.inner();
    let depth = inner.depth().await.unwrap();
    assert_eq!((depth.ready, depth.in_flight, depth.delayed, depth.dead), (0, 0, 0, 0));
    let mut results = BTreeMap::new();
    for n in 0..20 {
        let result = inner.get(&job(n).id).await.unwrap().expect("no job is lost");
        results.insert(result.id.clone(), result);
    }
    let n_stored: usize = stored.into_iter().sum();
    assert!(n_stored <= 20, "seed {seed}: {n_stored} results were stored");
    (results, queue.injected())
}

/// Stores the result, then acks; returns how many it knows to have stored.
async fn work(queue: Faulty<MemoryQueue>) -> usize {
    let mut n_stored = 0;
    while !is_empty(&queue).await {
        let Ok(deliveries) = queue.receive(NonZeroUsize::new(4).unwrap(), LEASE).await else {
            continue;
        };
        for delivery in deliveries {
            tokio::time::sleep(Duration::from_millis(700)).await;
            let body = delivery.attempt.to_string().into();
            let content_type = "text/plain".to_owned();
            let result = JobResult {
                id: delivery.job.id.clone(),
                attempt: delivery.attempt,
                outcome: Outcome::Completed { content_type, body },
                finished_at: delivery.job.enqueued_at,
                queue: None,
            };
            // Without a stored result nothing is acked: the job comes back with its lease.
            let Ok(stored) = queue.put(&result).await else { continue };
            n_stored += usize::from(stored == Stored::Stored);
            let settlement = [delivery.ack()];
            while queue.settle(&settlement).await.is_err() {}
        }
    }
    n_stored
}

async fn is_empty(queue: &Faulty<MemoryQueue>) -> bool {
    let depth = queue.inner().depth().await.unwrap();
    depth.ready + depth.in_flight + depth.delayed == 0
}

#[test]
fn no_job_is_lost_and_no_result_stored_twice_whatever_goes_wrong() {
    let mut total = Injected::default();
    for seed in 0..100 {
        let (first, injected) = paused(run(seed));
        let again = paused(run(seed));
        assert_eq!((first, injected), again, "seed {seed} does not repeat itself");
        total.failed_before += injected.failed_before;
        total.failed_after += injected.failed_after;
        total.dropped += injected.dropped;
        total.ended += injected.ended;
    }
    // Else the above has not shown much.
    assert!(total.failed_before > 100 && total.failed_after > 100, "{total:?}");
    assert!(total.dropped > 50 && total.ended > 20, "{total:?}");
}

fn paused<T>(simulation: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().start_paused(true).build().unwrap().block_on(simulation)
}
