//! A broker that fails on purpose, from a seed: the tool for simulation tests.
//!
//! Wrap any queue in [`Faulty`], run the whole pipeline on it under tokio's paused time on one
//! thread, and a seed that breaks a promise breaks it again when it is run again.

mod fate;
mod faults;

use std::fmt;
use std::future::Future;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::time::Instant;

use crate::delivery::{all_settled, note};
use crate::{
    AnyQueue, Backlog, Broker, Cancelled, DeadLetter, DeadLetters, Delivery, Depth, Elsewhere,
    Error, ErrorKind, Frame, Info, Job, JobId, JobResult, JobState, Link, Operator, Published,
    Purged, Receipt, Result, ResultStore, Settled, Settlement, Stored, Unsettled, WorkerStatus,
};
use fate::{Doomed, Failure, Fate};
pub use faults::{Faults, Injected};

/// Any queue, but things go wrong with it, all drawn from one seed.
///
/// # Behavior
/// - A call may be held up, may fail without effect, or may fail though it had its effect; a
///   followed result may break off with an error.
/// - Of the jobs of a publication some may be stored and the others refused.
/// - A rejection may be refused while the other settlements of its call are carried out.
/// - A delivery may get lost on the way: its job comes back when its lease ends.
/// - A lease may end early: the job is ready again with the attempt charged and `lease expired` in
///   its history, and the receipt is lost from then on.
/// - Clones, and other handles by [`Faulty::around`], share the seed.
pub struct Faulty<B: ?Sized> {
    inner: Arc<B>,
    fate: Arc<Mutex<Fate>>,
}

impl<B: ?Sized> Faulty<B> {
    /// Makes things go wrong with a queue.
    #[must_use]
    pub fn new(inner: Arc<B>, faults: Faults, seed: u64) -> Self {
        Self { inner, fate: Arc::new(Mutex::new(Fate::new(faults, seed))) }
    }

    /// The same seed and faults around another handle to the queue.
    #[must_use]
    pub fn around(&self, inner: Arc<B>) -> Self {
        Self { inner, fate: self.fate.clone() }
    }

    /// The queue inside, with which nothing goes wrong.
    #[must_use]
    pub fn inner(&self) -> &Arc<B> {
        &self.inner
    }

    /// Lets other things go wrong from now on, for all handles.
    pub fn set(&self, faults: Faults) {
        self.fate().faults = faults;
    }

    /// What went wrong so far, with all handles.
    #[must_use]
    pub fn injected(&self) -> Injected {
        self.fate().injected
    }

    fn outage(&self) -> Error {
        Error::new(self.fate().faults.kind, "the broker failed on purpose; try again")
    }

    fn fate(&self) -> MutexGuard<'_, Fate> {
        self.fate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: ?Sized> Clone for Faulty<B> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), fate: self.fate.clone() }
    }
}

impl<B: ?Sized> fmt::Debug for Faulty<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty").field("faults", &self.fate().faults).finish_non_exhaustive()
    }
}

impl<B: AnyQueue + ?Sized> Faulty<B> {
    async fn call<T, E: From<Error>>(
        &self,
        effect: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let (pause, failure) = self.fate().draw();
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        if failure == Some(Failure::Before) {
            return Err(self.outage().into());
        }
        self.end_leases().await?;
        let value = effect.await?;
        let lag = self.fate().faults.lag;
        if !lag.is_zero() {
            tokio::time::sleep(lag).await;
        }
        let fails = failure == Some(Failure::After);
        if fails { Err(self.outage().in_doubt().into()) } else { Ok(value) }
    }

    /// Takes jobs from their holders behind their backs.
    async fn end_leases(&self) -> Result<()> {
        let due: Vec<_> = {
            let mut fate = self.fate();
            let now = Instant::now();
            let due: Vec<_> = fate.doomed.extract_if(.., |doomed| doomed.at <= now).collect();
            fate.ended.extend(due.iter().map(|doomed| doomed.receipt.token.clone()));
            fate.injected.ended += due.len() as u64;
            due
        };
        for Doomed { job, attempt, receipt, .. } in due {
            let delivery = Delivery::new(job, attempt, receipt);
            self.inner.settle(&[delivery.retry(Duration::ZERO, "lease expired")]).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl<B: AnyQueue + ?Sized + 'static> Backlog for Faulty<B> {
    async fn depth(&self) -> Result<Depth> {
        self.call(self.inner.depth()).await
    }

    async fn workers(&self) -> Result<Vec<WorkerStatus>> {
        self.call(self.inner.workers()).await
    }

    async fn arrivals(&self) -> Result<BoxStream<'static, ()>> {
        self.call(self.inner.arrivals()).await
    }

    async fn info(&self) -> Result<Info> {
        self.call(self.inner.info()).await
    }

    fn link(&self) -> &Link {
        self.inner.link()
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}

#[async_trait]
impl<B: AnyQueue + ?Sized + 'static> Broker for Faulty<B> {
    async fn publish(&self, jobs: Vec<Job>) -> Result<Vec<Published>> {
        let effect = async {
            let mut jobs = jobs;
            let n_stored = self.fate().stores(jobs.len());
            let refused = jobs.split_off(n_stored);
            let published = self.inner.publish(jobs).await?;
            let n_repeated = published.iter().filter(|one| one.duplicate).count();
            self.fate().injected.repeated += n_repeated as u64;
            if refused.is_empty() {
                return Ok(published);
            }
            let stored = published.into_iter().map(|one| one.id).collect();
            let full = Error::new(ErrorKind::Full, "the queue is full on purpose; try again");
            Err(full.in_doubt().but_stored(stored))
        };
        self.call(effect).await
    }

    async fn receive(&self, max: NonZeroUsize, wait: Duration) -> Result<Vec<Delivery>> {
        let start = Instant::now();
        let effect = async {
            if self.fate().fails_to_give() {
                return Err(self.outage());
            }
            loop {
                let left = wait.saturating_sub(start.elapsed());
                let next_end = self.fate().next_end();
                let nap = next_end.map_or(left, |at| left.min(at - Instant::now()));
                let deliveries = self.inner.receive(max, nap).await?;
                if !deliveries.is_empty() || start.elapsed() >= wait {
                    return Ok(self.fate().afflict(deliveries, self.inner.lease()));
                }
                self.end_leases().await?;
            }
        };
        self.call(effect).await
    }

    async fn extend(&self, receipts: &[Receipt]) -> Result<Vec<Settled>> {
        let effect = async {
            let mut settled = self.inner.extend(receipts).await?;
            for (settled, receipt) in settled.iter_mut().zip(receipts) {
                if self.fate().is_ended(receipt) {
                    *settled = Settled::Lost;
                }
            }
            Ok(settled)
        };
        self.call(effect).await
    }

    async fn cancellations(&self) -> Result<BoxStream<'static, JobId>> {
        self.call(self.inner.cancellations()).await
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<Vec<Settled>, Unsettled> {
        let effect = async {
            let (mut answers, mut failed) = (Vec::new(), None);
            for settlement in settlements {
                let receipt = settlement.receipt();
                if self.fate().is_ended(receipt) {
                    answers.push(Some(Settled::Lost));
                    continue;
                }
                if self.fate().refuses(settlement.verdict()) {
                    let words = "the dead letters have no room, on purpose";
                    note(&mut failed, Error::new(ErrorKind::Full, words));
                    answers.push(None);
                    continue;
                }
                self.fate().doomed.retain(|doomed| doomed.receipt != *receipt);
                match self.inner.settle(std::slice::from_ref(settlement)).await {
                    Ok(settled) => answers.extend(settled.into_iter().map(Some)),
                    Err(Unsettled { error, .. }) => {
                        note(&mut failed, error);
                        answers.push(None);
                    }
                }
            }
            all_settled(answers, failed)
        };
        self.call(effect).await
    }

    async fn report(&self, status: &WorkerStatus) -> Result<()> {
        self.call(self.inner.report(status)).await
    }

    async fn reply(&self, to: &str, result: &JobResult, traceparent: Option<&str>) -> Result<()> {
        self.call(self.inner.reply(to, result, traceparent)).await
    }

    async fn purge_old(&self, elsewhere: Elsewhere) -> Result<Purged> {
        self.call(self.inner.purge_old(elsewhere)).await
    }

    fn lease(&self) -> Duration {
        self.inner.lease()
    }
}

#[async_trait]
impl<B: AnyQueue + ?Sized + 'static> DeadLetters for Faulty<B> {
    async fn list(&self, max: usize) -> Result<Vec<DeadLetter>> {
        self.call(self.inner.list(max)).await
    }

    async fn show(&self, id: &JobId) -> Result<Option<DeadLetter>> {
        self.call(self.inner.show(id)).await
    }

    async fn redrive(&self, ids: Option<&[JobId]>) -> Result<u64> {
        self.call(self.inner.redrive(ids)).await
    }

    async fn purge(&self, ids: Option<&[JobId]>) -> Result<u64> {
        self.call(self.inner.purge(ids)).await
    }
}

#[async_trait]
impl<B: AnyQueue + ?Sized + 'static> Operator for Faulty<B> {
    async fn state(&self, id: &JobId) -> Result<Option<JobState>> {
        self.call(self.inner.state(id)).await
    }

    async fn has_gone_on(&self, id: &JobId) -> Result<bool> {
        self.call(self.inner.has_gone_on(id)).await
    }

    async fn cancel(&self, id: &JobId) -> Result<Cancelled> {
        self.call(self.inner.cancel(id)).await
    }

    async fn purge_waiting(&self) -> Result<BoxStream<'static, Result<Purged>>> {
        self.call(self.inner.purge_waiting()).await
    }
}

#[async_trait]
impl<B: AnyQueue + ?Sized + 'static> ResultStore for Faulty<B> {
    async fn put(&self, result: &JobResult) -> Result<Stored> {
        self.call(self.inner.put(result)).await
    }

    async fn get(&self, id: &JobId) -> Result<Option<JobResult>> {
        self.call(self.inner.get(id)).await
    }

    async fn chunk(&self, id: &JobId, attempt: u32, seq: u64, body: Bytes) -> Result<Stored> {
        self.call(self.inner.chunk(id, attempt, seq, body)).await
    }

    async fn follow(&self, id: &JobId, from_seq: u64) -> Result<BoxStream<'static, Result<Frame>>> {
        let mut frames = self.call(self.inner.follow(id, from_seq)).await?;
        let faulty = self.clone();
        let broken = async_stream::stream! {
            while let Some(frame) = frames.next().await {
                if faulty.fate().draw().1.is_some() {
                    yield Err(faulty.outage());
                    return;
                }
                yield frame;
            }
        };
        Ok(broken.boxed())
    }

    fn result_ttl(&self) -> Duration {
        self.inner.result_ttl()
    }
}
