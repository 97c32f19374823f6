//! The thread of a handle that only reads, and so never waits for a writer.

use std::sync::Arc;

use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use super::File;
use super::failure::Outcome;
use super::writer::gone;
use crate::Result;

/// Looks that may wait for the reader before callers wait to be let in.
const WAITING: usize = 256;

type Look = Box<dyn FnOnce(&mut Connection) + Send>;

/// The way to the thread that reads; it ends when the last of these is dropped.
#[derive(Debug, Clone)]
pub(super) struct Reader {
    looks: mpsc::Sender<Look>,
    file: Arc<File>,
}

impl Reader {
    pub(super) fn start(mut db: Connection, file: Arc<File>) -> Result<Self> {
        let (looks, mut waiting) = mpsc::channel::<Look>(WAITING);
        super::spawn("ebb-sqlite-reader", move || {
            while let Some(look) = waiting.blocking_recv() {
                look(&mut db);
            }
        })?;
        Ok(Self { looks, file })
    }

    /// Looks at one moment of the database: all that is read belongs together.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection, i64) -> Outcome<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let queue = self.file.queue;
        let look = move |db: &mut Connection| {
            // Short, since an open look keeps the log from being folded back into the file.
            let outcome = db
                .transaction_with_behavior(TransactionBehavior::Deferred)
                .map_err(Into::into)
                .and_then(|look| work(&look, queue));
            // A caller that has gone needs no answer.
            reply.send(outcome).ok();
        };
        self.looks.send(Box::new(look)).await.map_err(|_| gone())?;
        let outcome = answer.await.map_err(|_| gone())?;
        outcome.map_err(|failure| failure.into_error(&self.file.path))
    }
}
