//! That a job was cancelled, where answers are kept apart from the jobs.

use crate::{JobId, JobResult, Result, ResultStore, Stored, Timestamp};

/// How often it is offered under a higher number than that of the pieces that are there.
const RAISED: u32 = 31;

/// Stores that a job was cancelled; false where its end is stored already.
///
/// A worker that stored a failure may be about to bury its job and tell of it, so that stays, unless the job
/// is known to wait again. One that is stored in the moment between two calls gives way all the same.
pub(crate) async fn put(
    store: &dyn ResultStore,
    id: &JobId,
    now: Timestamp,
    waits: bool,
) -> Result<bool> {
    if !waits && store.get(id).await?.is_some() {
        return Ok(false);
    }
    let mut result = JobResult::cancelled(id.clone(), 0, now);
    for nth in 0..RAISED {
        match store.put(&result).await? {
            Stored::Stored => return Ok(true),
            Stored::Duplicate => return Ok(false),
            // Nobody else's pieces are of use any more, whatever number they bear.
            Stored::Stale => result.attempt += 1 << nth,
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::memory::MemoryQueue;
    use crate::{Behavior, OpenOptions, Outcome};

    #[tokio::test]
    async fn it_is_stored_beside_pieces_of_any_attempt_and_once() {
        let queue = MemoryQueue::new(&Behavior::default(), OpenOptions::default());
        let id: JobId = "a".parse().unwrap();
        queue.chunk(&id, 1000, 0, Bytes::from_static(b"piece")).await.unwrap();
        let now = Timestamp::now();
        assert!(put(&queue, &id, now, false).await.unwrap());
        assert_eq!(queue.get(&id).await.unwrap().unwrap().outcome, Outcome::Cancelled);
        assert!(!put(&queue, &id, now, true).await.unwrap());
    }

    #[tokio::test]
    async fn a_failure_stays_unless_its_job_waits() {
        let queue = MemoryQueue::new(&Behavior::default(), OpenOptions::default());
        let (id, now): (JobId, _) = ("a".parse().unwrap(), Timestamp::now());
        let failure = JobResult::buried(id.clone(), 1, "no".into(), now);
        queue.put(&failure).await.unwrap();
        assert!(!put(&queue, &id, now, false).await.unwrap());
        assert_eq!(queue.get(&id).await.unwrap(), Some(failure));
        assert!(put(&queue, &id, now, true).await.unwrap());
    }
}
