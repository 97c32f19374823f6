//! What is known of a queue, and how long it counts.

use std::sync::Arc;
use std::time::Duration;

use ebb_queue::{ErrorKind, Timestamp, Warning};
use tokio::time::Instant;

use crate::snapshot::Snapshot;
use crate::trace::LookSpan;

/// What is known of a queue.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// The last good look.
    pub(crate) look: Option<Look>,
    /// What a look that is under way has counted already, where no look counts and work was found. Its
    /// workers were not heard yet: they are missing.
    pub(crate) glimpse: Option<Look>,
    /// Why there is no newer one.
    pub(crate) failed: Option<ErrorKind>,
    /// What is missing on the broker, in words for whoever wrote the trigger.
    pub(crate) missing: Option<Arc<str>>,
    /// Settings of the broker that are weaker than the promises.
    pub(crate) warnings: Arc<[Warning]>,
}

/// A snapshot, and when it was taken.
#[derive(Debug, Clone)]
pub(crate) struct Look {
    pub(crate) snapshot: Arc<Snapshot>,
    /// By our clock, when it was true: when the broker was asked for what it answered at last.
    pub(crate) at: Instant,
    /// Its span, when traces are on.
    pub(crate) span: Option<LookSpan>,
}

/// Why nothing can be said about a queue. It is never said that there is nothing in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unknown {
    /// The first look is still under way.
    #[error("the broker has not been seen yet; ask again")]
    NotYet,
    /// The first look failed. Its kind and nothing else: KEDA's log is not ours to fill.
    #[error("the broker was never reached ({0}); see the scaler's log")]
    Never(ErrorKind),
    /// The last good look is too old.
    #[error("the broker was last seen {} s ago; see the scaler's log", .0.as_secs())]
    TooOld(Duration),
    /// What the trigger names is not there.
    #[error("{0}")]
    Missing(Arc<str>),
    /// No observer can be started.
    #[error("{0} queues are watched already; raise --max-queues or name fewer in triggers")]
    TooManyQueues(usize),
    /// No observer can be started for this namespace.
    #[error(
        "{0} queues are watched for this namespace already; raise --max-queues-per-namespace or \
         name fewer in its triggers"
    )]
    TooManyOfNamespace(usize),
    /// The scaler ends.
    #[error("the scaler is shutting down")]
    Stopping,
}

impl View {
    /// Whether the last look was answered, be it that there is no such thing.
    pub(crate) fn answers(&self) -> bool {
        self.failed.map_or(self.look.is_some(), |kind| kind == ErrorKind::Missing)
    }

    /// The last good look and the broker's time now, if that look still counts.
    pub(crate) fn known(
        &self,
        now: Instant,
        max_age: Duration,
    ) -> Result<(&Snapshot, Timestamp), Unknown> {
        let missing = self.missing.clone().map(Unknown::Missing);
        let Some(look) = &self.look else {
            if let Some(missing) = missing {
                return Err(missing);
            }
            return Err(self.failed.map_or(Unknown::NotYet, Unknown::Never));
        };
        look.known(now, max_age).map_err(|age| missing.unwrap_or(Unknown::TooOld(age)))
    }

    /// The same of what a look that is under way has counted. It may be told that there is work, and
    /// never that there is none, or how much.
    pub(crate) fn glimpsed(
        &self,
        now: Instant,
        max_age: Duration,
    ) -> Option<(&Snapshot, Timestamp)> {
        self.glimpse.as_ref()?.known(now, max_age).ok()
    }
}

impl Look {
    /// The snapshot and the broker's time now, or how old it is that is too old to count.
    fn known(&self, now: Instant, max_age: Duration) -> Result<(&Snapshot, Timestamp), Duration> {
        let age = now.saturating_duration_since(self.at);
        if age > max_age { Err(age) } else { Ok((&self.snapshot, self.snapshot.depth.as_of + age)) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use ebb_queue::{Depth, ErrorKind, Timestamp};
    use tokio::time::Instant;

    use super::{Look, Unknown, View};
    use crate::learn::Learned;
    use crate::snapshot::Snapshot;

    #[test]
    fn a_look_counts_until_it_is_too_old_and_nothing_is_ever_guessed() {
        let max_age = Duration::from_secs(15);
        let at = Instant::now();
        let failed = Some(ErrorKind::Unavailable);
        let nothing = View::default();
        assert_eq!(nothing.known(at, max_age).unwrap_err(), Unknown::NotYet);
        let never = View { failed, ..View::default() };
        let told = never.known(at, max_age).unwrap_err();
        assert_eq!(told, Unknown::Never(ErrorKind::Unavailable));

        let depth = Depth::empty(Timestamp::UNIX_EPOCH);
        let snapshot =
            Arc::new(Snapshot { depth, workers: Vec::new(), learned: Learned::default() });
        let view =
            View { look: Some(Look { snapshot, at, span: None }), failed, ..View::default() };
        let (_, now) = view.known(at + max_age, max_age).unwrap();
        assert_eq!(now, Timestamp::UNIX_EPOCH + max_age);
        let later = max_age + Duration::from_millis(1);
        assert_eq!(view.known(at + later, max_age).unwrap_err(), Unknown::TooOld(later));
    }
}
