//! What an operator does with jobs whose bodies lie in a store.

use async_trait::async_trait;

use super::Claim;
use super::reference::Reference;
use crate::{DeadLetter, DeadLetters, JobId, Result};

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

impl Claim {
    async fn purge_letters(&self, letters: Vec<DeadLetter>) -> Result<u64> {
        let keyed = |letter: &DeadLetter| {
            let key = letter.job.headers.body_ref.as_deref()?;
            Reference::of_job(&letter.job, key).ok().map(|reference| reference.key)
        };
        let (mut plain, mut keys, mut n_purged) = (Vec::new(), Vec::new(), 0);
        for letter in &letters {
            let Some(key) = keyed(letter) else {
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
        self.delete(keys).await;
        Ok(n_purged)
    }
}
