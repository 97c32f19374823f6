//! What an operator does with jobs whose bodies lie in a store.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tracing::{debug, warn};

use super::reference::Reference;
use super::store::Store;
use super::{ABREAST, Claim, delete};
use crate::{
    Cancelled, Clock, DeadLetter, DeadLetters, Job, JobId, JobState, Operator, Purged, Result,
};

/// Dead letters that are looked at in one go when all are deleted.
const PAGE: usize = 256;

/// Bodies that surely go in the time that a deletion has.
const IN_TIME: usize = 64;

/// The list shows references, since it may be long; what is put back keeps its own.
#[async_trait]
impl DeadLetters for Claim {
    async fn list(&self, max: usize) -> Result<Vec<DeadLetter>> {
        self.queue.list(max).await
    }

    /// With the body if that is to be had, else with the reference.
    async fn show(&self, id: &JobId) -> Result<Option<DeadLetter>> {
        let Some(mut letter) = self.queue.show(id).await? else { return Ok(None) };
        let job = &mut letter.job;
        let Some(key) = &job.headers.body_ref else { return Ok(Some(letter)) };
        if let Ok(reference) = Reference::of_job(job, key)
            && reference.size <= self.largest as u64
            && let Ok(body) = self.store.get(&reference).await
        {
            job.body = body;
            job.headers.body_ref = None;
        }
        Ok(Some(letter))
    }

    async fn redrive(&self, ids: Option<&[JobId]>) -> Result<u64> {
        self.queue.redrive(ids).await
    }

    async fn purge(&self, ids: Option<&[JobId]>) -> Result<u64> {
        if let Some(ids) = ids {
            let mut letters = Vec::new();
            for id in ids {
                letters.extend(self.queue.show(id).await?);
            }
            return self.purge_letters(letters).await;
        }
        self.purge_all().await
    }
}

#[async_trait]
impl Operator for Claim {
    async fn state(&self, id: &JobId) -> Result<Option<JobState>> {
        self.queue.state(id).await
    }

    async fn has_gone_on(&self, id: &JobId) -> Result<bool> {
        self.queue.has_gone_on(id).await
    }

    async fn cancel(&self, id: &JobId) -> Result<Cancelled> {
        self.queue.cancel(id).await
    }

    async fn purge_waiting(&self) -> Result<BoxStream<'static, Result<Purged>>> {
        let steps = self.queue.purge_waiting().await?;
        let bodies = self.bodies();
        let purged = steps.then(move |step| {
            let bodies = bodies.clone();
            async move {
                let mut purged = step?;
                bodies.delete(std::mem::take(&mut purged.referring)).await;
                Ok(purged)
            }
        });
        Ok(purged.boxed())
    }
}

/// Where the body of a job lies in the store, if it lies there.
fn key_of(job: &Job) -> Option<String> {
    let key = job.headers.body_ref.as_deref()?;
    Reference::of_job(job, key).ok().map(|reference| reference.key)
}

/// The bodies in the store.
#[derive(Clone)]
pub(super) struct Bodies {
    store: Arc<Store>,
    clock: Arc<dyn Clock>,
    result_ttl: Duration,
}

impl Bodies {
    /// Deletes the bodies of jobs that are gone, of which it was known that they have not gone on to
    /// another queue: there they are needed. Of those that are older than such a record nobody knows.
    pub(super) async fn delete(&self, jobs: Vec<Job>) {
        let now = self.clock.now();
        // A producer may say that a job is of any moment.
        let age = |job: &Job| Duration::try_from(now.duration_since(job.enqueued_at));
        let is_known = |job: &&Job| age(job).unwrap_or_default() < self.result_ttl;
        let n_jobs = jobs.len();
        let keys: Vec<_> = jobs.iter().filter(is_known).filter_map(key_of).collect();
        if keys.len() < n_jobs {
            let n_kept = n_jobs - keys.len();
            debug!(
                n_kept,
                "bodies of jobs older than result_ttl stay: another queue may need them"
            );
        }
        for keys in keys.chunks(IN_TIME) {
            delete(&self.store, keys.to_vec()).await;
        }
    }
}

impl Claim {
    pub(super) fn bodies(&self) -> Bodies {
        let Self { store, clock, result_ttl, .. } = self;
        let (store, clock) = (Arc::clone(store), Arc::clone(clock));
        Bodies { store, clock, result_ttl: *result_ttl }
    }

    /// The jobs of these that have not gone on to another queue, as far as that can be asked.
    async fn stayed(&self, jobs: Vec<Job>) -> Vec<Job> {
        let asked = stream::iter(jobs).map(|job| async move {
            match self.queue.has_gone_on(&job.id).await {
                Ok(has_gone_on) => Some(job).filter(|_| !has_gone_on),
                Err(error) => {
                    let id = &job.id;
                    warn!(%id, %error, "a body was not deleted; the store's lifecycle rules may");
                    None
                }
            }
        });
        let asked: Vec<_> = asked.buffered(ABREAST).collect().await;
        asked.into_iter().flatten().collect()
    }

    /// Deletes all that were dead when this began. What dies meanwhile is listed before the newest of
    /// them, which goes last.
    async fn purge_all(&self) -> Result<u64> {
        let Some(newest) = self.queue.list(1).await?.pop() else { return Ok(0) };
        let is_newest =
            |one: &DeadLetter| one.job.id == newest.job.id && one.died_at == newest.died_at;
        let (mut n_purged, mut n_newer) = (0, 0);
        loop {
            let n_asked = n_newer + PAGE;
            let mut letters = self.queue.list(n_asked).await?;
            let is_all = letters.len() < n_asked;
            let place = letters.iter().position(is_newest);
            // Where somebody else took it, the moments tell.
            n_newer = place.unwrap_or_else(|| {
                letters.iter().take_while(|one| one.died_at > newest.died_at).count()
            });
            letters.drain(..n_newer);
            let is_last = letters.len() <= 1 && is_all;
            if place.is_some() && !is_last {
                letters.remove(0);
            }
            let (n_letters, n_gone) = (letters.len(), self.purge_letters(letters).await?);
            n_purged += n_gone;
            if is_last {
                return Ok(n_purged);
            }
            if n_letters > 0 && n_gone == 0 {
                // Somebody else has those for the moment.
                let newest = Vec::from_iter(place.map(|_| newest));
                return Ok(n_purged + self.purge_letters(newest).await?);
            }
        }
    }

    async fn purge_letters(&self, letters: Vec<DeadLetter>) -> Result<u64> {
        let (mut plain, mut referring, mut n_purged) = (Vec::new(), Vec::new(), 0);
        for DeadLetter { job, .. } in letters {
            if key_of(&job).is_none() {
                plain.push(job.id);
                continue;
            }
            // One by one: a letter that was put back meanwhile still needs its body.
            let n_gone = self.queue.purge(Some(std::slice::from_ref(&job.id))).await?;
            if n_gone == 1 {
                referring.push(job);
            }
            n_purged += n_gone;
        }
        if !plain.is_empty() {
            n_purged += self.queue.purge(Some(&plain)).await?;
        }
        self.bodies().delete(self.stayed(referring).await).await;
        Ok(n_purged)
    }
}
