//! Hears of jobs that somebody cancelled, so that those which are here are not gone on with.
//!
//! The broker hints at them, and their results say whether it is so. A hint may come before the job does,
//! so the last ones are remembered. One that is missed costs what the job takes of the device and nothing
//! else: what came of it is not stored.

use std::collections::VecDeque;

use ebb_queue::{JobId, Outcome};
use futures::StreamExt;
use tracing::debug;

use crate::pauses::{Failed, PATIENCE, Pauses};
use crate::served::Served;

/// Hints that are remembered.
const REMEMBERED: usize = 1024;

/// The jobs that were hinted at last, and those that came after their hint.
#[derive(Debug, Default)]
pub(crate) struct Hints {
    told: VecDeque<JobId>,
    suspects: VecDeque<JobId>,
}

impl Hints {
    pub(crate) fn tell(&mut self, id: &JobId) {
        if !self.told.contains(id) {
            self.told.push_back(id.clone());
        }
        if self.told.len() > REMEMBERED {
            self.told.pop_front();
        }
    }

    /// A job is held from now on: whether it is to be looked at.
    pub(crate) fn suspect(&mut self, id: &JobId) -> bool {
        let is_told = self.told.contains(id) && self.suspects.len() < REMEMBERED;
        if is_told {
            self.suspects.push_back(id.clone());
        }
        is_told
    }

    pub(crate) fn next_suspect(&mut self) -> Option<JobId> {
        self.suspects.pop_front()
    }
}

/// Heeds what is told, for ever.
pub(crate) async fn heed(served: Served) {
    let mut pauses = Pauses::default();
    loop {
        let failed = match served.broker.cancellations().await {
            Ok(mut told) => {
                pauses.reset();
                // Nobody listened until now.
                for id in served.leases.ids() {
                    served.heed(&id).await;
                }
                loop {
                    let id = tokio::select! { biased;
                        id = told.next() => id,
                        id = served.leases.suspect() => Some(id),
                    };
                    let Some(id) = id else { break };
                    served.leases.hint(&id);
                    served.heed(&id).await;
                }
                Failed::ForNow
            }
            // The leases tell of it, too, where the broker knows.
            Err(error) => {
                served.complain("cancellations", &error);
                Failed::with(error.kind())
            }
        };
        tokio::time::sleep(pauses.next(failed, served.shared.chance())).await;
    }
}

impl Served {
    /// A job may have been cancelled.
    async fn heed(&self, id: &JobId) {
        let mut pauses = Pauses::default();
        while self.leases.holds(id) && pauses.n_failures() < PATIENCE {
            match self.results.get(id).await {
                Ok(there) => {
                    if there.is_some_and(|there| there.outcome == Outcome::Cancelled) {
                        self.leases.cancel(id);
                        self.shared.n_cancelled.update(|n| *n += 1);
                    }
                    return;
                }
                Err(error) => {
                    debug!(job.id = %id, %error, "it is not known whether the job was cancelled");
                    let failed = Failed::with(error.kind());
                    tokio::time::sleep(pauses.next(failed, self.shared.chance())).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_hints_are_remembered() {
        let mut hints = Hints::default();
        let id = |nth: usize| -> JobId { format!("job-{nth}").parse().unwrap() };
        for nth in 0..=REMEMBERED {
            hints.tell(&id(nth));
        }
        assert!(!hints.suspect(&id(0)) && hints.suspect(&id(1)));
        assert!(!hints.suspect(&id(REMEMBERED + 1)));
        assert_eq!((hints.next_suspect(), hints.next_suspect()), (Some(id(1)), None));
    }
}
