//! What an operator may ask and do.

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};

use super::MemoryQueue;
use crate::owed::{self, Owed};
use crate::{Cancelled, JobId, JobResult, JobState, Operator, Purged, Result, ResultStore};

#[async_trait]
impl Operator for MemoryQueue {
    async fn state(&self, id: &JobId) -> Result<Option<JobState>> {
        let (state, now) = self.state();
        Ok(Some(state.jobs.state(id, now, |id| state.answers.is_completed(id, now))))
    }

    async fn has_gone_on(&self, id: &JobId) -> Result<bool> {
        Ok(self.get(id).await?.is_some_and(|found| found.moved_to().is_some()))
    }

    async fn cancel(&self, id: &JobId) -> Result<Cancelled> {
        let (mut guard, now) = self.tidy_state();
        let state = &mut *guard;
        let end = state.answers.get(id, now);
        let (cancelled, gone) = state.jobs.cancel(id, now, end.as_ref());
        let Some((job, attempt)) = gone else { return Ok(cancelled) };
        let result = state.answers.bury(JobResult::cancelled(id.clone(), attempt, now), now);
        if let Some(owed) = Owed::new(&job.headers, result) {
            owed::note(id, state.reply(&owed.to, &owed.result));
        }
        self.shared.answer.ring();
        // Who counts the jobs is to count anew.
        self.shared.arrival.ring();
        // Nobody listens where no worker runs.
        self.shared.cancelled.send(id.clone()).ok();
        Ok(cancelled)
    }

    async fn purge_waiting(&self) -> Result<BoxStream<'static, Result<Purged>>> {
        let queue = self.clone();
        let all_at_once = stream::once(async move {
            let (mut state, now) = queue.tidy_state();
            let mut jobs = state.jobs.purge_waiting(now);
            let n_jobs = jobs.len() as u64;
            jobs.retain(|job| !state.answers.reset(&job.id) && job.headers.body_ref.is_some());
            queue.shared.answer.ring();
            Ok(Purged { n_jobs, referring: jobs, n_left: 0 })
        });
        Ok(all_at_once.boxed())
    }
}
