//! What an operator does with jobs whose bodies lie in a store.

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tracing::warn;

use super::reference::Reference;
use super::store::Store;
use super::{ABREAST, Claim, delete};
use crate::{DeadLetter, DeadLetters, Job, JobId, JobState, Operator, Purged, Queue, Result};

/// Dead letters that are looked at in one go when all are deleted.
const PAGE: usize = 256;

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
        // What dies meanwhile is none of those that were meant.
        let n_dead = self.queue.depth().await?.dead;
        let mut n_purged = 0;
        while n_purged < n_dead {
            let n_gone = self.purge_letters(self.queue.list(PAGE).await?).await?;
            if n_gone == 0 {
                break;
            }
            n_purged += n_gone;
        }
        Ok(n_purged)
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

    async fn purge_waiting(&self) -> Result<BoxStream<'static, Result<Purged>>> {
        let steps = self.queue.purge_waiting().await?;
        let (queue, store) = (Arc::clone(&self.queue), Arc::clone(&self.store));
        let purged = steps.then(move |step| {
            let (queue, store) = (Arc::clone(&queue), Arc::clone(&store));
            async move {
                let Purged { n_jobs, referring } = step?;
                delete_bodies(&queue, &store, referring).await;
                Ok(Purged { n_jobs, referring: Vec::new() })
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

/// Deletes the bodies of jobs that are gone, but for those that have gone on to another queue: there
/// they are needed.
pub(super) async fn delete_bodies(queue: &Queue, store: &Store, jobs: Vec<Job>) {
    let keys = stream::iter(jobs).map(|job| async move {
        let key = key_of(&job)?;
        match queue.has_gone_on(&job.id).await {
            Ok(has_gone_on) => Some(key).filter(|_| !has_gone_on),
            Err(error) => {
                warn!(key, %error, "a body was not deleted; the store's lifecycle rules may");
                None
            }
        }
    });
    let keys: Vec<_> = keys.buffered(ABREAST).collect().await;
    delete(store, keys.into_iter().flatten().collect()).await;
}

impl Claim {
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
        delete_bodies(&self.queue, &self.store, referring).await;
        Ok(n_purged)
    }
}
