//! What an operator does with jobs whose bodies lie in a store.

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;

use super::reference::Reference;
use super::{Claim, delete};
use crate::{DeadLetter, DeadLetters, Job, JobId, JobState, Operator, Purged, Result};

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

    async fn purge_waiting(&self) -> Result<BoxStream<'static, Result<Purged>>> {
        let steps = self.queue.purge_waiting().await?;
        let store = Arc::clone(&self.store);
        let purged = steps.then(move |step| {
            let store = Arc::clone(&store);
            async move {
                let Purged { n_jobs, referring } = step?;
                delete(&store, referring.iter().filter_map(key_of).collect()).await;
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

impl Claim {
    async fn purge_letters(&self, letters: Vec<DeadLetter>) -> Result<u64> {
        let (mut plain, mut keys, mut n_purged) = (Vec::new(), Vec::new(), 0);
        for letter in &letters {
            let Some(key) = key_of(&letter.job) else {
                plain.push(letter.job.id.clone());
                continue;
            };
            // One by one: a letter that was put back meanwhile still needs its body.
            let n_gone = self.queue.purge(Some(std::slice::from_ref(&letter.job.id))).await?;
            if n_gone == 1 {
                keys.push(key);
            }
            n_purged += n_gone;
        }
        if !plain.is_empty() {
            n_purged += self.queue.purge(Some(&plain)).await?;
        }
        delete(&self.store, keys).await;
        Ok(n_purged)
    }
}
