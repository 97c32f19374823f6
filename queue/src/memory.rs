//! The reference broker: the contract as the shortest code, in one process.
//!
//! Waits follow tokio's time, so with a [`TokioClock`](crate::TokioClock) a paused test runs hours
//! in no time.

mod answers;
mod bell;
mod entry;
mod jobs;
mod operator;

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

use crate::follow::Hope;
use crate::open::check_reply_to;
use crate::owed::{self, Owed};
use crate::{
    Backlog, Behavior, Broker, Clock, DeadLetter, DeadLetters, Delivery, Depth, Elsewhere, Failure,
    Frame, Info, Job, JobId, JobResult, Link, OpenOptions, Published, Purged, Receipt, Result,
    ResultStore, STATUS_TTL, Settled, Settlement, Stored, Timestamp, Unsettled, Verdict, WorkerId,
    WorkerStatus,
};
use answers::{Answers, Cursor};
use bell::Bell;
use jobs::Jobs;

/// Replies that are kept: nobody takes them away.
const MAX_REPLIES: usize = 1000;

/// Hints at jobs that were cancelled, for who is slow to hear them.
const MAX_HINTS: usize = 1024;

/// A queue in the memory of one process; clones share it. Loses everything with the process.
#[derive(Debug, Clone)]
pub struct MemoryQueue {
    shared: Arc<Shared>,
    worker: WorkerId,
}

#[derive(Debug)]
struct Shared {
    behavior: Behavior,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    link: Link,
    /// Rung when a job becomes ready, a delay begins, or a worker has a new phase.
    arrival: Bell,
    /// Rung when a result or a piece of one is stored, or may never come.
    answer: Bell,
    /// Told of jobs that were cancelled.
    cancelled: broadcast::Sender<JobId>,
}

#[derive(Debug)]
struct State {
    jobs: Jobs,
    answers: Answers,
    replies: VecDeque<(String, JobResult)>,
    workers: BTreeMap<WorkerId, (WorkerStatus, Timestamp)>,
}

impl State {
    fn reply(&mut self, to: &str, result: &JobResult) -> Result<()> {
        check_reply_to(to)?;
        let replies = &mut self.replies;
        let is_it = |(there, reply): &(String, JobResult)| {
            there == to && reply.id == result.id && reply.outcome == result.outcome
        };
        if replies.iter().any(is_it) {
            return Ok(());
        }
        if replies.len() == MAX_REPLIES {
            replies.pop_front();
        }
        replies.push_back((to.to_owned(), result.clone()));
        Ok(())
    }
}

impl MemoryQueue {
    /// An empty queue.
    #[must_use]
    pub fn new(behavior: &Behavior, options: OpenOptions) -> Self {
        let state = State {
            jobs: Jobs::new(behavior.clone()),
            answers: Answers::new(behavior.result_ttl),
            replies: VecDeque::new(),
            workers: BTreeMap::new(),
        };
        let shared = Shared {
            behavior: behavior.clone(),
            clock: options.clock,
            state: Mutex::new(state),
            link: Link::new("memory"),
            arrival: Bell::default(),
            answer: Bell::default(),
            cancelled: broadcast::Sender::new(MAX_HINTS),
        };
        Self { shared: Arc::new(shared), worker: options.worker }
    }

    /// The same queue, as another worker sees it.
    #[must_use]
    pub fn as_worker(&self, worker: impl Into<WorkerId>) -> Self {
        Self { shared: self.shared.clone(), worker: worker.into() }
    }

    /// The replies that were sent and where to, oldest first; only the newest thousand are kept.
    ///
    /// There is one queue only, so nobody receives them; one of the same id is a duplicate.
    #[must_use]
    pub fn replies(&self) -> Vec<(String, JobResult)> {
        self.state().0.replies.iter().cloned().collect()
    }

    fn state(&self) -> (MutexGuard<'_, State>, Timestamp) {
        let state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state, self.shared.clock.now())
    }

    /// The state once the deadlines have had their effect.
    fn tidy_state(&self) -> (MutexGuard<'_, State>, Timestamp) {
        let (mut guard, now) = self.state();
        let state = &mut *guard;
        state.answers.tidy(now);
        for (job, attempt) in state.jobs.tidy(now, |id| state.answers.is_completed(id, now)) {
            let failure = JobResult::buried(job.id, attempt, Failure::expired(), now);
            let failure = state.answers.bury(failure, now);
            // A worker that was lost may have stored another result, and not have told it.
            let stored = state.answers.get(&failure.id, now).unwrap_or(failure);
            if let Some(owed) = Owed::new(&job.headers, stored) {
                owed::note(&owed.result.id, state.reply(&owed.to, &owed.result));
            }
            self.shared.answer.ring();
        }
        (guard, now)
    }

    /// What is ready, or how long it takes until time alone makes it so.
    fn lease_ready(&self, max: NonZeroUsize) -> (Vec<Delivery>, Option<Duration>) {
        let (mut state, now) = self.tidy_state();
        let deliveries = state.jobs.lease(max.get(), &self.worker, now);
        let until_due = state.jobs.next_due(now).map(|due| due.duration_since(now));
        (deliveries, until_due.and_then(|span| span.try_into().ok()))
    }
}

#[async_trait]
impl Backlog for MemoryQueue {
    async fn depth(&self) -> Result<Depth> {
        let (state, now) = self.state();
        Ok(state.jobs.depth(now, |id| state.answers.is_completed(id, now)))
    }

    async fn workers(&self) -> Result<Vec<WorkerStatus>> {
        let (mut state, now) = self.state();
        state.workers.retain(|_, (_, at)| *at + STATUS_TTL > now);
        Ok(state.workers.values().map(|(status, _)| status.clone()).collect())
    }

    async fn arrivals(&self) -> Result<BoxStream<'static, ()>> {
        let arrivals = stream::unfold(self.shared.arrival.listen(), |mut arrival| async {
            arrival.hear().await;
            Some(((), arrival))
        });
        Ok(arrivals.boxed())
    }

    async fn info(&self) -> Result<Info> {
        let version = concat!("memory ", env!("CARGO_PKG_VERSION")).to_owned();
        Ok(Info { broker: "memory", version, max_body: None, warnings: Vec::new(), limits: &[] })
    }

    fn link(&self) -> &Link {
        &self.shared.link
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl Broker for MemoryQueue {
    async fn publish(&self, jobs: Vec<Job>) -> Result<Vec<Published>> {
        let (mut state, now) = self.state();
        let published = state.jobs.publish(jobs, now)?;
        if published.iter().any(|one| !one.duplicate) {
            self.shared.arrival.ring();
        }
        Ok(published)
    }

    async fn receive(&self, max: NonZeroUsize, wait: Duration) -> Result<Vec<Delivery>> {
        let start = Instant::now();
        let mut arrival = self.shared.arrival.listen();
        loop {
            let (deliveries, until_due) = self.lease_ready(max);
            let left = wait.saturating_sub(start.elapsed());
            if !deliveries.is_empty() || left.is_zero() {
                return Ok(deliveries);
            }
            let nap = until_due.map_or(left, |due| due.min(left));
            // Both an arrival and the end of the nap mean to look again.
            tokio::time::timeout(nap, arrival.hear()).await.ok();
        }
    }

    async fn extend(&self, receipts: &[Receipt]) -> Result<Vec<Settled>> {
        let (mut state, now) = self.state();
        let extend = |receipt: &Receipt| {
            let held = state.jobs.extend(receipt, now);
            state.answers.unless_cancelled(&receipt.job, held, now)
        };
        Ok(receipts.iter().map(extend).collect())
    }

    async fn cancellations(&self) -> Result<BoxStream<'static, JobId>> {
        let told = stream::unfold(self.shared.cancelled.subscribe(), |mut told| async {
            loop {
                match told.recv().await {
                    Ok(id) => return Some((id, told)),
                    // They are hints.
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return None,
                }
            }
        });
        Ok(told.boxed())
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<Vec<Settled>, Unsettled> {
        let (mut state, now) = self.state();
        let settle = |settlement: &Settlement| {
            let held = state.jobs.settle(settlement, now);
            state.answers.unless_cancelled(&settlement.receipt().job, held, now)
        };
        let settled = settlements.iter().map(settle).collect();
        if settlements
            .iter()
            .any(|one| matches!(one.verdict(), Verdict::Retry { .. } | Verdict::Release))
        {
            self.shared.arrival.ring();
        }
        if settlements.iter().any(|one| matches!(one.verdict(), Verdict::Ack)) {
            self.shared.answer.ring();
        }
        Ok(settled)
    }

    async fn report(&self, status: &WorkerStatus) -> Result<()> {
        let (mut state, now) = self.state();
        let before = state.workers.insert(status.id.clone(), (status.clone(), now));
        if before.is_none_or(|(before, _)| before.phase != status.phase) {
            self.shared.arrival.ring();
        }
        Ok(())
    }

    async fn reply(&self, to: &str, result: &JobResult, _traceparent: Option<&str>) -> Result<()> {
        self.state().0.reply(to, result)
    }

    async fn purge_old(&self, elsewhere: Elsewhere) -> Result<Purged> {
        let (mut state, now) = self.tidy_state();
        let (mut jobs, n_left) = state.jobs.purge_old(now, elsewhere);
        let n_jobs = jobs.len() as u64;
        jobs.retain(|job| !state.answers.reset(&job.id) && job.headers.body_ref.is_some());
        self.shared.answer.ring();
        Ok(Purged { n_jobs, referring: jobs, n_left: n_left as u64 })
    }

    fn lease(&self) -> Duration {
        self.shared.behavior.lease
    }
}

#[async_trait]
impl DeadLetters for MemoryQueue {
    async fn list(&self, max: usize) -> Result<Vec<DeadLetter>> {
        let (state, _) = self.tidy_state();
        Ok(state.jobs.dead().into_iter().take(max).collect())
    }

    async fn show(&self, id: &JobId) -> Result<Option<DeadLetter>> {
        let (state, _) = self.tidy_state();
        Ok(state.jobs.dead().into_iter().find(|letter| letter.job.id == *id))
    }

    async fn redrive(&self, ids: Option<&[JobId]>) -> Result<u64> {
        let (mut state, now) = self.tidy_state();
        let again = state.jobs.redrive(ids, now);
        for id in &again {
            state.answers.reset(id);
        }
        if !again.is_empty() {
            self.shared.arrival.ring();
        }
        Ok(again.len() as u64)
    }

    async fn purge(&self, ids: Option<&[JobId]>) -> Result<u64> {
        let (mut state, _) = self.tidy_state();
        let purged = state.jobs.purge(ids);
        for id in &purged {
            state.answers.reset(id);
        }
        self.shared.answer.ring();
        Ok(purged.len() as u64)
    }
}

#[async_trait]
impl ResultStore for MemoryQueue {
    async fn put(&self, result: &JobResult) -> Result<Stored> {
        let (mut state, now) = self.state();
        let stored = state.answers.put(result, now);
        self.shared.answer.ring();
        Ok(stored)
    }

    async fn get(&self, id: &JobId) -> Result<Option<JobResult>> {
        let (state, now) = self.state();
        Ok(state.answers.get(id, now))
    }

    async fn chunk(&self, id: &JobId, attempt: u32, seq: u64, body: Bytes) -> Result<Stored> {
        let (mut state, now) = self.state();
        let stored = state.answers.chunk((id, attempt), (seq, body), now);
        self.shared.answer.ring();
        Ok(stored)
    }

    async fn follow(&self, id: &JobId, from_seq: u64) -> Result<BoxStream<'static, Result<Frame>>> {
        let (queue, id) = (self.clone(), id.clone());
        let mut answer = self.shared.answer.listen();
        let (mut cursor, mut hope) = (Cursor::from_seq(from_seq), Hope::default());
        let frames = async_stream::stream! {
            loop {
                let (frames, standing) = {
                    let (state, now) = queue.state();
                    let frames = state.answers.frames(&id, &mut cursor, now);
                    (frames, state.jobs.standing(&id, now))
                };
                for frame in frames {
                    let last = matches!(frame, Frame::Final(_));
                    yield Ok(frame);
                    if last {
                        return;
                    }
                }
                if hope.is_lost(standing) {
                    return;
                }
                answer.hear().await;
            }
        };
        Ok(frames.boxed())
    }

    fn result_ttl(&self) -> Duration {
        self.shared.behavior.result_ttl
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Outcome, TokioClock};

    fn job(name: &str) -> Job {
        let headers = [("ebb-id", name), ("ebb-ttl", "60"), ("ebb-reply-to", "inbox")];
        Job::from_message(headers, name.to_owned(), Timestamp::UNIX_EPOCH).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_that_ends_without_a_worker_is_told_of_once_with_what_is_stored() {
        let clock = Arc::new(TokioClock::starting_at(Timestamp::UNIX_EPOCH));
        let options = OpenOptions { clock, ..OpenOptions::default() };
        let queue = MemoryQueue::new(&Behavior::default(), options);
        queue.publish(["waits", "lost", "done", "moved"].map(job).to_vec()).await.unwrap();
        let at = Timestamp::UNIX_EPOCH;
        let lost = JobResult::buried("lost".parse().unwrap(), 1, "no such text".into(), at);
        queue.put(&lost).await.unwrap();
        let outcome =
            Outcome::Completed { content_type: String::new(), body: Bytes::from_static(b"42") };
        let done = JobResult { id: "done".parse().unwrap(), outcome, ..lost.clone() };
        queue.put(&done).await.unwrap();
        queue.put(&JobResult::moved("moved".parse().unwrap(), "elsewhere", at)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        for _ in 0..2 {
            assert_eq!(queue.list(9).await.unwrap().len(), 3);
        }
        let now = queue.shared.clock.now();
        let waits = JobResult::buried("waits".parse().unwrap(), 0, Failure::expired(), now);
        assert_eq!(queue.replies(), [waits, lost, done].map(|result| ("inbox".to_owned(), result)));
    }
}
