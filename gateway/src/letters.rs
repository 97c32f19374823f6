//! Dead letters, which say how a job has ended where its result is forgotten or was never stored.

use std::time::Duration;

use ebb_queue::{Failure, JobId, JobResult, Outcome};
use tokio::time::timeout;
use tracing::debug;

use crate::models::Model;

/// How long the letter of a dead job may take.
const LETTER: Duration = Duration::from_secs(2);

impl Model {
    /// What the letter of a dead job says, as its result would, unless it takes long: a broker may have to
    /// bury all that has expired first, and hands over the body as well. So one is read at a time.
    pub(crate) async fn letter(&self, id: &JobId) -> Option<JobResult> {
        let queue = self.opened()?;
        let letter = async {
            let _alone = self.reading_dead.acquire().await.ok()?;
            let letter = queue.show(id).await;
            letter.map_err(|error| debug!(%error, "a dead letter cannot be read")).ok()?
        };
        let letter = timeout(LETTER, letter).await.ok()??;
        let outcome = Outcome::Failed(Failure::new(letter.kind, letter.reason));
        let (id, attempt, finished_at) = (id.clone(), letter.attempts, letter.died_at);
        Some(JobResult { id, attempt, outcome, finished_at, queue: None })
    }
}
