//! Stores results: those that come while a script runs go into the next one together.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use super::Calls;
use crate::{Error, ErrorKind, JobResult, Outcome, Result, Stored};

/// Results that may wait before their callers wait to be let in.
const WAITING: usize = 256;

/// What one script takes at most: others wait for the server.
const MOST: usize = 256;
const MOST_BYTES: usize = 4 << 20;

type Put = (JobResult, oneshot::Sender<Result<Stored>>);

/// The way to the task that stores; it ends with the queue.
#[derive(Debug)]
pub(super) struct Putter {
    waiting: mpsc::Sender<Put>,
    task: AbortHandle,
}

impl Drop for Putter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Putter {
    pub(super) fn start(calls: Arc<Calls>) -> Self {
        let (sender, waiting) = mpsc::channel(WAITING);
        let task = tokio::spawn(store(calls, waiting)).abort_handle();
        Self { waiting: sender, task }
    }

    pub(super) async fn put(&self, result: &JobResult) -> Result<Stored> {
        let gone = || Error::new(ErrorKind::Internal, "the queue was closed; open it anew");
        let (reply, answer) = oneshot::channel();
        self.waiting.send((result.clone(), reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

async fn store(calls: Arc<Calls>, mut waiting: mpsc::Receiver<Put>) {
    while let Some(first) = waiting.recv().await {
        let group = gather(first, &mut waiting).await;
        let (results, replies): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        // A caller that has gone needs no answer.
        match calls.put(&results).await {
            Ok(stored) => {
                for (reply, stored) in replies.into_iter().zip(stored) {
                    reply.send(Ok(stored)).ok();
                }
            }
            Err(error) => {
                for reply in replies {
                    reply.send(Err(Error::new(error.kind(), error.to_string()))).ok();
                }
            }
        }
    }
}

/// What waits, and what keeps coming at this moment: the results of a batch come one by one, and a
/// script for the first of them alone would be one more write to the disk.
async fn gather(first: Put, waiting: &mut mpsc::Receiver<Put>) -> Vec<Put> {
    let mut n_bytes = size(&first.0);
    let mut group = vec![first];
    loop {
        tokio::task::yield_now().await;
        let n_before = group.len();
        while let Ok(next) = waiting.try_recv() {
            n_bytes += size(&next.0);
            group.push(next);
            if group.len() >= MOST || n_bytes >= MOST_BYTES {
                return group;
            }
        }
        if group.len() == n_before {
            return group;
        }
    }
}

fn size(result: &JobResult) -> usize {
    match &result.outcome {
        Outcome::Completed { body, .. } => body.len(),
        Outcome::Failed(failure) => failure.reason.len(),
        Outcome::Cancelled => 0,
    }
}
