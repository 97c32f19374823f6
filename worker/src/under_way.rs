//! Since when the jobs are under way that take several turns.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use tokio::time::Instant;

use crate::shared::lock;

/// The jobs that have had a turn and go on.
#[derive(Debug, Default)]
pub(crate) struct UnderWay(Mutex<Begun>);

#[derive(Debug, Default)]
struct Begun {
    /// With a number, since several may begin in one batch.
    since: BTreeSet<(Instant, u64)>,
    n_begun: u64,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(crate) struct GoesOn {
    all: Arc<UnderWay>,
    key: (Instant, u64),
}

impl UnderWay {
    /// Adds a job whose first turn began then.
    pub(crate) fn begin(self: &Arc<Self>, since: Instant) -> GoesOn {
        let mut begun = lock(&self.0);
        begun.n_begun += 1;
        let key = (since, begun.n_begun);
        begun.since.insert(key);
        GoesOn { all: Arc::clone(self), key }
    }

    /// When the one began that is under way for the longest time.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        lock(&self.0).since.first().map(|(since, _)| *since)
    }
}

impl Drop for GoesOn {
    fn drop(&mut self) {
        lock(&self.all.0).since.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_oldest_is_known_until_it_ends() {
        let (all, now) = (Arc::<UnderWay>::default(), Instant::now());
        let later = now + Duration::from_secs(1);
        let [young, old, beside] = [later, now, now].map(|since| all.begin(since));
        assert_eq!(all.oldest(), Some(now));
        drop(old);
        assert_eq!(all.oldest(), Some(now), "one that began beside it goes on");
        drop(beside);
        assert_eq!(all.oldest(), Some(later));
        drop(young);
        assert_eq!(all.oldest(), None);
    }
}
