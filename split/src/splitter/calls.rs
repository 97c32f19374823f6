//! Jobs on their way to the queues that they are for: one call at a time to each queue, and all of them
//! beside each other, so that a queue that is slow, or hangs, holds up no other.
//!
//! A call is not cut off before the broker's client would give up: what was sent is mostly stored, and
//! to send it again makes a copy where the broker knows no ids.

use std::collections::HashSet;
use std::mem::take;
use std::time::Duration;

use ebb_queue::{Error, ErrorKind, Failure, Job, JobId, JobResult, Queue};
use futures::future::join_all;
use tokio::time::{Instant, timeout, timeout_at};

use super::lane::{Held, PATIENCE};
use super::{Splitter, hangs};

/// How long a round stays for what queues say; what they say later is heard in a later one.
const MOMENT: Duration = Duration::from_millis(20);

/// What came of a call.
#[derive(Debug)]
pub(super) struct Sent {
    /// Of the queue.
    name: String,
    /// Of which jobs there was an answer, so that they were not sent.
    answered: Vec<bool>,
    published: ebb_queue::Result<()>,
}

impl Splitter {
    /// Sends what waits to queues that have no call, and hears what they say.
    pub(super) async fn publish(&mut self) {
        let end = Instant::now() + MOMENT;
        loop {
            self.call().await;
            let Ok(Some(sent)) = timeout_at(end, self.calls.join_next()).await else { return };
            self.hear(sent.expect("it is cut off with the split alone")).await;
        }
    }

    /// Waits for the ends of all calls.
    pub(super) async fn hear_out(&mut self) {
        while let Some(sent) = self.calls.join_next().await {
            self.hear(sent.expect("it is cut off with the split alone")).await;
        }
    }

    async fn call(&mut self) {
        let names: Vec<String> = self.lanes.keys().cloned().collect();
        for name in names {
            let n_jobs = self.n_next(&name).await;
            if n_jobs == 0 {
                continue;
            }
            let Some(queue) = self.opened(&name).await else { continue };
            let Some(lane) = self.lanes.get_mut(&name) else { continue };
            let batch: Vec<Held> = lane.waiting.drain(..n_jobs).collect();
            let store = self.parts.results.clone().unwrap_or_else(|| queue.clone());
            let jobs = batch.iter().map(|held| (as_published(&held.delivery.job), held.before));
            let jobs: Vec<_> = jobs.collect();
            lane.begin(batch);
            self.calls.spawn(async move {
                let sent = timeout(PATIENCE, send(&queue, &store, jobs)).await;
                let (answered, published) = sent.unwrap_or_else(|_| (Vec::new(), Err(hangs())));
                Sent { name, answered, published }
            });
        }
    }

    /// How many of the jobs that wait for a queue are sent next, none while it may not be called; those
    /// in front of them whose time is over wait no more.
    async fn n_next(&mut self, name: &str) -> usize {
        loop {
            let now = self.parts.clock.now();
            let lane = self.lanes.get_mut(name).filter(|lane| lane.out.is_empty());
            let Some(lane) = lane else { return 0 };
            if lane.waiting.is_empty() {
                // Else nobody would find out that there is room again.
                lane.is_full = false;
                return 0;
            }
            if !lane.failures.may_try() {
                return 0;
            }
            let n_jobs = lane.chunk.min(lane.waiting.len());
            let batch: Vec<Held> = lane.waiting.drain(..n_jobs).collect();
            let mine = batch.into_iter().filter(|held| self.leases.holds(held.delivery.receipt()));
            let (late, batch): (Vec<_>, Vec<_>) =
                mine.partition(|held| held.delivery.job.expired(now));
            let (n_late, n_next) = (late.len(), batch.len());
            // They stay there until they are sent: a stop may come before.
            lane.put_back(batch);
            for held in late {
                self.bury(held.delivery, Failure::expired()).await;
            }
            if n_late == 0 && n_next > 0 {
                return n_next;
            }
        }
    }

    async fn hear(&mut self, sent: Sent) {
        self.sort(&sent);
        let Sent { name, published, .. } = sent;
        let Err(error) = published else { return self.answered() };
        // One that refuses without a word of what it has stored may be going down.
        let is_unsure = matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Full);
        let answers = error.is_answer() || is_unsure && self.answers().await;
        if answers {
            self.answered();
        }
        let rest = self.lanes.get_mut(&name).map(|lane| take(&mut lane.out)).unwrap_or_default();
        self.not_published(&name, rest, &error, answers).await;
    }

    /// Makes ends of jobs that have gone on, or are answered; the others stay with those on their way.
    /// It waits for nothing, so that no stop comes in between.
    pub(super) fn sort(&mut self, Sent { name, answered, published }: &Sent) {
        let Some(lane) = self.lanes.get_mut(name) else { return };
        let stored = published.as_ref().err().map_or(&[][..], Error::stored);
        let stored: HashSet<&JobId> = stored.iter().collect();
        let (mut gone, mut rest) = (Vec::new(), Vec::new());
        for (nth, held) in take(&mut lane.out).into_iter().enumerate() {
            if answered.get(nth) == Some(&true) {
                self.settlements.push(held.delivery.ack());
            } else if published.is_ok() || stored.contains(&held.delivery.job.id) {
                gone.push(held);
            } else {
                rest.push(held);
            }
        }
        if published.is_ok() && !gone.is_empty() {
            lane.succeeded();
        }
        lane.out = rest;
        self.gone(name, gone);
    }

    fn gone(&mut self, name: &str, batch: Vec<Held>) {
        let (metrics, now) = (&self.parts.metrics, self.parts.clock.now());
        let jobs = metrics.jobs.with_label_values(&[name]);
        for held in batch {
            jobs.inc();
            if held.spilled {
                metrics.spilled.with_label_values(&[name]).inc();
            }
            let age = now.duration_since(held.delivery.job.enqueued_at);
            metrics.age.observe(age.as_secs_f64().max(0.0));
            self.settlements.push(held.delivery.ack());
        }
    }
}

/// Publishes jobs, and says of which there is an answer instead: those that may have gone there before,
/// since the queue may have forgotten their ids. A failure is no answer, since a dead letter can be
/// put back.
async fn send(
    queue: &Queue,
    store: &Queue,
    jobs: Vec<(Job, bool)>,
) -> (Vec<bool>, ebb_queue::Result<()>) {
    let is_answer = |found: Option<JobResult>| found.is_some_and(|one| one.outcome.is_final());
    let answered = jobs.iter().map(|(job, before)| async move {
        *before && store.get(&job.id).await.is_ok_and(is_answer)
    });
    let answered = join_all(answered).await;
    let rest = jobs.into_iter().zip(&answered).filter(|(_, is_answered)| !**is_answered);
    let rest: Vec<Job> = rest.map(|((job, _), _)| job).collect();
    if rest.is_empty() {
        return (answered, Ok(()));
    }
    let published = queue.publish(rest).await.map(drop);
    (answered, published)
}

/// The job as it goes on: under its own id, at its own age. Its idempotency key has done its work at
/// the intake, and elsewhere could only be taken for that of another job.
fn as_published(job: &Job) -> Job {
    let mut job = job.clone();
    job.headers.key = None;
    job
}
