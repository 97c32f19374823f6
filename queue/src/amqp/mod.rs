//! RabbitMQ, over AMQP 0-9-1 (3.10 and later, also 4).
//!
//! A queue is a quorum queue per priority, one for jobs that came back, one for dead letters and a
//! ladder of queues that hold delayed jobs; no process of ours need live for a delay to end.
//! Producers publish to the exchange `ebb` with the queue's name as the routing key, or straight to
//! the queue of that name; the latter is not heard: a worker that waits for jobs finds it within a
//! second, and an idle scaler when it next looks by itself.
//!
//! RabbitMQ gives messages no identity: a job is known by `ebb-id`, else by the property
//! `message_id`, else by a fresh id at each delivery.

mod aged;
mod bell;
mod cancel;
mod coming;
mod confirms;
mod connect;
mod core;
mod counts;
mod dead;
mod errors;
mod fate;
mod fetched;
mod heard;
mod intake;
#[cfg(test)]
mod kit;
mod ledger;
mod limits;
mod line;
mod meeting;
mod most;
mod names;
mod pages;
mod parcel;
mod publish;
mod receive;
mod session;
mod standing;
mod tags;
mod topology;
mod voice;
mod waiting;
mod walk;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::time::{Instant, sleep};

use self::bell::Listener;
use self::core::{Core, Parts};
use self::counts::Unknown;
use self::intake::Intake;
pub(crate) use self::limits::LIMITS;
use self::line::{Caller, Owned};
use self::names::{LANES, Lane, Names};
use self::session::Session;
use crate::{
    AmqpAddress, Backlog, Behavior, Broker, ByPriority, DeadLetter, DeadLetters, Delivery, Depth,
    Elsewhere, Error, ErrorKind, Frame, Info, Job, JobId, JobResult, Link, OpenOptions, Priority,
    Published, Purged, Queue, Receipt, Result, ResultStore, Settled, Settlement, Stored, Unsettled,
    Warning, WorkerStatus,
};

/// How long to wait before a queue that was not known to be empty is looked at again and said to be: at
/// least and at most, and in times of what it takes to count what waits.
const DOUBT: Duration = Duration::from_millis(50);
const MAX_DOUBT: Duration = Duration::from_millis(500);
const DOUBT_BY_COUNT: u32 = 8;

/// A queue on RabbitMQ.
#[derive(Debug, Clone)]
pub(crate) struct AmqpQueue(Arc<Handle>);

/// The tasks end before what they work on, but for that of the bell, which has something to end itself.
#[derive(Debug)]
struct Handle {
    _tasks: Vec<Owned>,
    intake: Intake,
    core: Arc<Core>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.core.bell.hang_up();
    }
}

impl AmqpQueue {
    /// Connects, and makes or finds the queue.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when no server answers in time, [`ErrorKind::Denied`] for a
    /// wrong user or virtual host, [`ErrorKind::Incompatible`] for a queue with other settings.
    pub(crate) async fn open(
        address: &AmqpAddress,
        queue: &str,
        behavior: &Behavior,
        options: OpenOptions,
    ) -> Result<Self> {
        let OpenOptions { worker, clock, missing, connect_timeout, results, .. } = options;
        let link = Arc::new(Link::new(format!("RabbitMQ {}", address.server.shown())));
        let names = Names::new(queue);
        let (address, name, limit) = (address.clone(), worker.clone(), connect_timeout);
        let caller = Caller { address, names: names.clone(), missing, name, limit };
        let (sessions, line) = line::open(caller, link.clone()).await?;
        let behavior = behavior.clone();
        let parts = Parts { names, missing, behavior, clock, worker, sessions, link, results };
        let core = Arc::new(Core::new(parts));
        let (intake, fetching) = intake::spawn(core.clone());
        let tasks = vec![
            Owned(tokio::spawn(fate::watch_leases(core.clone()))),
            Owned(tokio::spawn(voice::keep(core.clone()))),
            fetching,
            line,
        ];
        tokio::spawn(bell::keep(core.clone()));
        Ok(Self(Arc::new(Handle { _tasks: tasks, intake, core })))
    }

    fn core(&self) -> &Arc<Core> {
        &self.0.core
    }

    fn results(&self) -> Result<&Queue> {
        let results = self.core().results.as_ref().ok_or_else(|| {
            let words = "RabbitMQ keeps no results; name a store with --results URL";
            Error::new(ErrorKind::Invalid, words)
        })?;
        Ok(&results.0)
    }

    /// What waits and what is held, and how long it took to count the former.
    async fn look(&self, session: &Session) -> Result<(Depth, Duration)> {
        let (core, asked) = (self.core(), Instant::now());
        let mut depth = self.count(session).await?;
        let (counted, took) = (Instant::now(), asked.elapsed());
        // What is taken in between is counted twice rather than not at all. That jobs wait is told at once
        // also where who holds others was not heard yet: who must know that asks for the workers.
        if depth.ready > 0 {
            voice::catch_up(core, session).await?;
        } else if voice::catch_up_with_a_holder(core, session).await? {
            // What came or went back in that time is neither held nor in the counts from before.
            let waited = counted.elapsed();
            depth = self.count(session).await?;
            depth.waited = waited;
            voice::catch_up(core, session).await?;
        }
        let (held, ahead) = core.heard.holdings();
        let ledger = core.ledger();
        let n_ahead = ahead + ledger.n_between();
        depth.ready += n_ahead;
        if let Some(by) = &mut depth.ready_by_priority {
            by.normal += n_ahead;
        }
        let n_waiting = depth.ready + depth.delayed;
        let n_held = core.heard.n_held(session.epoch, n_waiting, held + ledger.n_held());
        let Some(n_held) = n_held else {
            session.check_open()?;
            return Err(errors::late("let us hear what is held"));
        };
        depth.in_flight = n_held;
        Ok((depth, took))
    }

    /// What waits in the queues of the broker.
    async fn count(&self, session: &Session) -> Result<Depth> {
        let core = self.core();
        let mut depth = Depth::empty(core.clock.now());
        let dead = [core.names.dead()];
        let counts = core.count_waiting(session, &dead, Unknown::IsAnError).await?;
        let (waiting, dead) = counts.split_at(counts.len().saturating_sub(1));
        let (delayed, ready) = waiting.split_at(waiting.len().saturating_sub(LANES.len()));
        let mut by = ByPriority::default();
        for (lane, n_jobs) in LANES.into_iter().zip(ready) {
            // Who comes back is in one lane, whatever its priority.
            *by.of_mut(if let Lane::New(priority) = lane { priority } else { Priority::Normal }) +=
                n_jobs;
        }
        depth.ready = by.total();
        depth.ready_by_priority = Some(by);
        depth.dead = dead.iter().sum();
        depth.delayed = delayed.iter().sum();
        Ok(depth)
    }
}

fn is_empty(depth: &Depth) -> bool {
    depth.ready + depth.in_flight + depth.delayed == 0
}

/// How long to doubt that a queue is empty where it took so long to count what waits in it.
fn doubt(took: Duration) -> Duration {
    (took * DOUBT_BY_COUNT).clamp(DOUBT, MAX_DOUBT)
}

#[async_trait]
impl Backlog for AmqpQueue {
    async fn depth(&self) -> Result<Depth> {
        let core = self.core();
        let session = core.session().await?;
        core.ledger().keep_from(session.epoch);
        core.find_levels(&session).await?;
        let (mut depth, took) = self.look(&session).await?;
        if is_empty(&depth) && !core.was_empty.load(Ordering::SeqCst) {
            // A job on its way from one place to another is in neither for a moment, which is longer where
            // everything takes long.
            let doubt = doubt(took);
            sleep(doubt).await;
            let waited = depth.waited + doubt;
            (depth, _) = self.look(&session).await?;
            depth.waited += waited;
        }
        core.was_empty.store(is_empty(&depth), Ordering::SeqCst);
        Ok(depth)
    }

    async fn workers(&self) -> Result<Vec<WorkerStatus>> {
        let session = self.core().session().await?;
        voice::catch_up_with_all(self.core(), &session).await?;
        Ok(self.core().heard.workers())
    }

    async fn arrivals(&self) -> Result<BoxStream<'static, ()>> {
        let listener = Listener::new(self.core());
        listener.armed().await?;
        // The stream listens as long as somebody has it, also without this handle.
        let state = (listener, self.clone());
        let arrivals = stream::unfold(state, |(mut listener, queue)| async move {
            let told = listener.next().await?;
            Some((told, (listener, queue)))
        });
        Ok(arrivals.boxed())
    }

    async fn info(&self) -> Result<Info> {
        let session = self.core().session().await?;
        let version = &session.version;
        let mut warnings = Vec::new();
        if version.number < (3, 10) {
            let text = format!("{} is older than 3.10: delayed jobs may be lost", version.text);
            warnings.push(Warning { code: "old_server", text });
        }
        Ok(Info {
            broker: "amqp",
            version: version.text.clone(),
            max_body: Some(publish::max_body(version)),
            warnings,
            limits: LIMITS,
        })
    }

    fn link(&self) -> &Link {
        &self.core().link
    }

    async fn close(&self) -> Result<()> {
        // At the same time: whoever ends has not long.
        let (closed, ()) = tokio::join!(self.0.intake.close(), self.core().bell.close());
        closed
    }
}

#[async_trait]
impl Broker for AmqpQueue {
    async fn publish(&self, jobs: Vec<Job>) -> Result<Vec<Published>> {
        publish::publish(self.core(), jobs).await
    }

    async fn receive(&self, max: NonZeroUsize, wait: Duration) -> Result<Vec<Delivery>> {
        receive::receive(self.core(), &self.0.intake, max, wait).await
    }

    async fn extend(&self, receipts: &[Receipt]) -> Result<Vec<Settled>> {
        fate::extend(self.core(), receipts).await
    }

    async fn cancellations(&self) -> Result<BoxStream<'static, JobId>> {
        cancel::told(self).await
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<Vec<Settled>, Unsettled> {
        fate::settle(self.core(), settlements).await
    }

    async fn report(&self, status: &WorkerStatus) -> Result<()> {
        voice::report(self.core(), status).await
    }

    async fn reply(&self, to: &str, result: &JobResult, traceparent: Option<&str>) -> Result<()> {
        let correlation = self.core().ledger().correlation(&result.id);
        publish::reply(self.core(), to, result, (traceparent, correlation)).await
    }

    async fn purge_old(&self, _elsewhere: Elsewhere) -> Result<Purged> {
        match self.core().behavior.dead_ttl {
            Some(ttl) => aged::purge_old(self.core(), ttl).await,
            None => Ok(Purged::default()),
        }
    }

    fn lease(&self) -> Duration {
        self.core().behavior.lease
    }
}

#[async_trait]
impl DeadLetters for AmqpQueue {
    async fn list(&self, max: usize) -> Result<Vec<DeadLetter>> {
        dead::list(self.core(), max).await
    }

    async fn show(&self, id: &JobId) -> Result<Option<DeadLetter>> {
        dead::show(self.core(), id).await
    }

    async fn redrive(&self, ids: Option<&[JobId]>) -> Result<u64> {
        dead::redrive(self.core(), ids).await
    }

    async fn purge(&self, ids: Option<&[JobId]>) -> Result<u64> {
        dead::purge(self.core(), ids).await
    }
}

#[async_trait]
impl ResultStore for AmqpQueue {
    async fn put(&self, result: &JobResult) -> Result<Stored> {
        self.results()?.put(result).await
    }

    async fn get(&self, id: &JobId) -> Result<Option<JobResult>> {
        self.results()?.get(id).await
    }

    async fn chunk(&self, id: &JobId, attempt: u32, seq: u64, body: Bytes) -> Result<Stored> {
        self.results()?.chunk(id, attempt, seq, body).await
    }

    async fn follow(&self, id: &JobId, from_seq: u64) -> Result<BoxStream<'static, Result<Frame>>> {
        self.results()?.follow(id, from_seq).await
    }

    fn result_ttl(&self) -> Duration {
        // Without a store nothing is put there.
        self.results().map_or(Duration::MAX, |results| results.result_ttl())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_doubted_to_be_empty_for_longer_where_its_broker_is_slow() {
        for (took, expected) in [(1, 50), (20, 160), (200, 500)] {
            let took = Duration::from_millis(took);
            assert_eq!(doubt(took), Duration::from_millis(expected), "{took:?}");
        }
    }
}
