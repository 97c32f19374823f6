//! Where jobs go on to that are no longer to run.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::sync::mpsc::{self, Receiver, Sender};

use super::{CHUNK, Concluded};
use crate::held::{Finished, Held};
use crate::shared::{send, send_all};
use crate::stream::Telling;

/// Jobs that have run and are not stored yet, at least: enough for quick jobs in small batches to
/// be stored together.
const UNSTORED: usize = CHUNK;

/// Where jobs go on to that are no longer to run.
#[derive(Debug, Clone)]
pub(crate) struct Exit {
    to_store: Sender<Finished>,
    to_settle: Sender<Concluded>,
    to_stream: Sender<Telling>,
    /// One permit per job that may have run and not be stored yet.
    unstored: Arc<Semaphore>,
}

impl Exit {
    /// For a queue that may hold so many jobs that have not run; and what the stages take theirs from
    /// that store, settle, and store streams.
    pub(crate) fn new(
        room: usize,
    ) -> (Self, Receiver<Finished>, Receiver<Concluded>, Receiver<Telling>) {
        let n_unstored = UNSTORED.max(2 * room);
        // A job in there holds a permit or its own room, so there is always a place.
        let (to_store, finished) = mpsc::channel(n_unstored + room);
        let (to_settle, concluded) = mpsc::channel(2 * room);
        let unstored = Arc::new(Semaphore::new(n_unstored));
        // Who takes these waits for nobody.
        let (to_stream, begun) = mpsc::channel(1);
        (Self { to_store, to_settle, to_stream, unstored }, finished, concluded, begun)
    }

    /// Passes on a stream that begins.
    pub(crate) async fn tell(&self, telling: Telling) {
        send(&self.to_stream, telling).await;
    }

    /// Passes on jobs that have run, or never will, without waiting for anything. Where enough are
    /// to be stored, they keep the room of jobs that have not run: when the store is away, soon
    /// nothing is received.
    pub(crate) async fn finish(&self, mut jobs: Vec<Finished>) {
        for job in &mut jobs {
            if let Ok(own) = Arc::clone(&self.unstored).try_acquire_owned() {
                job.room = own;
            }
        }
        send_all(&self.to_store, jobs).await;
    }

    /// Gives jobs back uncharged. Nothing has to be stored for that, so a store that does
    /// not answer holds up none of them.
    pub(crate) async fn give_back(&self, jobs: impl IntoIterator<Item = Held>) {
        send_all(&self.to_settle, jobs.into_iter().map(Concluded::released).collect()).await;
    }

    /// For who stores: it does not keep itself waiting for more.
    pub(crate) fn into_settling(self) -> Sender<Concluded> {
        self.to_settle
    }
}
