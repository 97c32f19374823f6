//! NATS JetStream: a work queue stream with a lane for each priority, and streams beside it for the
//! dead letters, the answers, the idempotency keys, the notes of the holders and the workers.
//!
//! JetStream keeps the leases. What it cannot tell lies in subjects (when a job is due or dead) and
//! in the notes of the handles (who holds what), so that nobody has to read the jobs to count them.

mod admit;
mod answers;
mod api;
mod awake;
mod back;
mod bell;
mod cancel;
mod connect;
mod consumer;
mod dead;
mod depth;
mod ending;
mod entry;
mod later;
mod leases;
mod limits;
mod names;
mod news;
mod noted;
mod notes;
mod plain;
mod publish;
mod read;
mod receive;
mod settle;
mod sight;
mod speak;
mod topology;
mod waiting;

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::aside::Aside;
use crate::{
    Backlog, Behavior, Broker, Clock, DeadLetter, DeadLetters, Delivery, Depth, Elsewhere, Error,
    ErrorKind, Frame, Info, Job, JobId, JobResult, Link, NatsAddress, OpenOptions, Phase,
    Published, Purged, Receipt, Result, ResultStore, Settled, Settlement, Stored, Timestamp,
    Unsettled, WorkerId, WorkerStatus,
};
use answers::Answered;
use api::Api;
use awake::Awake;
use cancel::Marks;
pub(crate) use consumer::Consumer;
use later::Later;
use leases::Leases;
pub(crate) use limits::LIMITS;
use names::Names;
use news::Answers;
use sight::Sight;
use speak::version;
use topology::Wanted;

/// So long until a queue that could not be opened is tried again.
const BETWEEN_TRIES: Duration = Duration::from_millis(200);

/// A queue on NATS JetStream; clones share its connection.
#[derive(Debug, Clone)]
pub(crate) struct NatsQueue {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    api: Api,
    names: Names,
    behavior: Behavior,
    replicas: u8,
    worker: WorkerId,
    clock: Arc<dyn Clock>,
    link: Arc<Link>,
    /// When the stream of the jobs was made, as it was seen last: part of the ids of jobs that came without
    /// one.
    created: Mutex<Timestamp>,
    leases: Leases,
    later: Later,
    answered: Answered,
    answers: OnceCell<Answers>,
    sight: Sight,
    awake: Awake,
    marks: Marks,
    aside: Mutex<Aside>,
    /// Plain messages that a look at the depth read, without their bodies, by their numbers.
    unread: Mutex<Vec<(u64, Job)>>,
    /// The last phase that each worker reported through this handle.
    phases: Mutex<HashMap<WorkerId, Phase>>,
    is_closed: AtomicBool,
}

impl Shared {
    fn aside(&self) -> MutexGuard<'_, Aside> {
        self.aside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn created(&self) -> Timestamp {
        *self.created.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stream of the jobs is the one that was made then. Where that is another than before, it counts
    /// anew, and nobody holds a job of the old one. What was made earlier than the known one is gone: an
    /// answer came late.
    fn meet_stream(&self, created: Timestamp) {
        let mut known = self.created.lock().unwrap_or_else(PoisonError::into_inner);
        if created > *known {
            *known = created;
            self.unread().clear();
            self.leases.forget_before(created);
        }
    }

    fn unread(&self) -> MutexGuard<'_, Vec<(u64, Job)>> {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NatsQueue {
    /// Connects, makes the streams and consumers that are missing, and compares those that are not.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when no server answers in time, [`ErrorKind::Denied`] when it
    /// does not let us in or to its JetStream, [`ErrorKind::Incompatible`] for what does not fit.
    pub(crate) async fn open(
        address: &NatsAddress,
        queue: &str,
        behavior: &Behavior,
        options: OpenOptions,
    ) -> Result<Self> {
        let link = Arc::new(Link::new(format!("nats {}", address.server.shown())));
        let end = Instant::now() + options.connect_timeout;
        let (client, refusal) = connect::connect(address, options.connect_timeout, &link).await?;
        let names = Names::new(queue);
        let (replicas, missing) = (address.replicas, options.missing);
        let api = Api { client, refusal, replicas };
        let wanted = Wanted { names: &names, behavior, replicas, missing };
        let created = Self::prepare(&api, &wanted, end).await?;
        let shared = Shared {
            leases: Leases::new(&names, options.worker.clone()),
            api,
            names,
            behavior: behavior.clone(),
            replicas,
            worker: options.worker,
            clock: options.clock,
            link,
            created: Mutex::new(created),
            later: Later::default(),
            answered: Answered::default(),
            answers: OnceCell::new(),
            sight: Sight::default(),
            awake: Awake::default(),
            marks: Marks::default(),
            aside: Mutex::default(),
            unread: Mutex::default(),
            phases: Mutex::default(),
            is_closed: AtomicBool::new(false),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Makes and compares, again until this moment: a cluster may be about to elect a leader.
    async fn prepare(api: &Api, wanted: &Wanted<'_>, end: Instant) -> Result<Timestamp> {
        loop {
            let prepared = match Self::check_server(api).await {
                Ok(()) => wanted.ensure(api).await,
                Err(error) => Err(error),
            };
            match prepared {
                Err(error) if error.kind() == ErrorKind::Unavailable && Instant::now() < end => {
                    tracing::debug!(%error, "not ready");
                }
                prepared => return prepared,
            }
            tokio::time::sleep(BETWEEN_TRIES).await;
        }
    }

    async fn check_server(api: &Api) -> Result<()> {
        let server = api.client.server_info();
        if let Some((2, 10, 20..=22)) = version(&server.version) {
            let words = format!(
                "NATS server {} may lose a whole stream when it crashes; use 2.10.23 or newer",
                server.version
            );
            return Err(Error::new(ErrorKind::Incompatible, words));
        }
        let account = api.call::<Value>("INFO", &json!({})).await;
        match account {
            // Where other servers of its cluster have it, they answer.
            Err(error) if error.kind() == ErrorKind::Unavailable && !server.jetstream => {
                let words = "JetStream is not enabled on the NATS server; start it with \
                             --jetstream, or write `jetstream {}` into its configuration";
                Err(Error::new(ErrorKind::Invalid, words).caused_by(error))
            }
            // Who may only look need not be allowed to ask this.
            Err(error) if api.refusal.since(Instant::now() - Duration::from_secs(5)).is_some() => {
                tracing::debug!(%error, "the account cannot be looked at");
                Ok(())
            }
            account => account.map(drop),
        }
    }

    fn now(&self) -> Timestamp {
        self.shared.clock.now()
    }
}

#[async_trait]
impl Backlog for NatsQueue {
    async fn depth(&self) -> Result<Depth> {
        self.count().await
    }

    async fn workers(&self) -> Result<Vec<WorkerStatus>> {
        self.alive().await
    }

    async fn arrivals(&self) -> Result<BoxStream<'static, ()>> {
        self.hear().await
    }

    async fn info(&self) -> Result<Info> {
        self.describe().await
    }

    async fn ping(&self) -> Result<()> {
        // That fails where no majority of the servers that keep the jobs follows whoever answers.
        self.glance().await.map(drop)
    }

    fn link(&self) -> &Link {
        &self.shared.link
    }

    async fn close(&self) -> Result<()> {
        // Nothing is fetched ahead.
        self.shared.is_closed.store(true, Ordering::Release);
        Ok(())
    }
}

#[async_trait]
impl Broker for NatsQueue {
    async fn publish(&self, jobs: Vec<Job>) -> Result<Vec<Published>> {
        self.publish_all(jobs).await
    }

    async fn receive(&self, max: NonZeroUsize, wait: Duration) -> Result<Vec<Delivery>> {
        if self.shared.is_closed.load(Ordering::Acquire) {
            tokio::time::sleep(wait).await;
            return Ok(Vec::new());
        }
        self.wait_for_jobs(max.get(), wait).await
    }

    async fn extend(&self, receipts: &[Receipt]) -> Result<Vec<Settled>> {
        self.extend_all(receipts).await
    }

    async fn cancellations(&self) -> Result<BoxStream<'static, JobId>> {
        self.hear_of_cancelled().await
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<Vec<Settled>, Unsettled> {
        self.settle_all(settlements).await
    }

    async fn report(&self, status: &WorkerStatus) -> Result<()> {
        self.say(status).await
    }

    async fn reply(&self, to: &str, result: &JobResult, traceparent: Option<&str>) -> Result<()> {
        self.send(to, result, traceparent).await
    }

    async fn purge_old(&self, elsewhere: Elsewhere) -> Result<Purged> {
        match self.shared.behavior.dead_ttl {
            Some(ttl) => self.purge_old_dead(ttl, elsewhere).await,
            None => Ok(Purged::default()),
        }
    }

    fn lease(&self) -> Duration {
        self.shared.behavior.lease
    }
}

#[async_trait]
impl DeadLetters for NatsQueue {
    async fn list(&self, max: usize) -> Result<Vec<DeadLetter>> {
        self.list_dead(max).await
    }

    async fn show(&self, id: &JobId) -> Result<Option<DeadLetter>> {
        self.show_dead(id).await
    }

    async fn redrive(&self, ids: Option<&[JobId]>) -> Result<u64> {
        self.redrive_dead(ids).await
    }

    async fn purge(&self, ids: Option<&[JobId]>) -> Result<u64> {
        self.purge_dead(ids).await
    }
}

#[async_trait]
impl ResultStore for NatsQueue {
    async fn put(&self, result: &JobResult) -> Result<Stored> {
        self.put_result(result).await
    }

    async fn get(&self, id: &JobId) -> Result<Option<JobResult>> {
        self.answer(id).await
    }

    async fn chunk(&self, id: &JobId, attempt: u32, seq: u64, body: Bytes) -> Result<Stored> {
        self.put_chunk(id, attempt, seq, body).await
    }

    async fn follow(&self, id: &JobId, from_seq: u64) -> Result<BoxStream<'static, Result<Frame>>> {
        self.follow_result(id, from_seq).await
    }

    fn result_ttl(&self) -> Duration {
        self.shared.behavior.result_ttl
    }
}
