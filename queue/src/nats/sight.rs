//! What a handle knows of its lanes between two looks.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::names::{LANES, Lane};

/// A lane that was empty is not looked at again for so long while others have jobs.
const EMPTY_FOR: Duration = Duration::from_millis(5);
/// A server confirms a job a moment before it hands it out; so long after that at most. Where it does
/// not show by then, somebody else took it.
const SHOWN_WITHIN: Duration = Duration::from_millis(20);

/// The state of each lane.
#[derive(Debug, Default)]
pub(super) struct Sight(Mutex<[View; LANES.len()]>);

#[derive(Debug, Clone, Copy, Default)]
struct View {
    /// Since when it was seen empty.
    empty: Option<Instant>,
    /// The number of the last job that this handle put there, and when.
    filled: Option<(u64, Instant)>,
}

impl Sight {
    fn views(&self) -> MutexGuard<'_, [View; LANES.len()]> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server confirmed a job of this number in this lane.
    pub(super) fn fill(&self, lane: Lane, seq: u64) {
        let Some(nth) = LANES.iter().position(|known| *known == lane) else { return };
        let view = &mut self.views()[nth];
        let seq = view.filled.map_or(seq, |(last, _)| last.max(seq));
        *view = View { empty: None, filled: Some((seq, Instant::now())) };
    }

    /// A pull handed out these of a lane, and would have handed out more.
    ///
    /// Returns whether the lane is empty: it may hide a job that was confirmed a moment ago.
    pub(super) fn empty(&self, nth: usize, seqs: impl Iterator<Item = u64>) -> bool {
        let view = &mut self.views()[nth];
        if let Some((seq, at)) = view.filled {
            if seqs.max() < Some(seq) && at.elapsed() < SHOWN_WITHIN {
                return false;
            }
            view.filled = None;
        }
        view.empty = Some(Instant::now());
        true
    }

    /// Whether a lane was seen empty a moment ago.
    pub(super) fn was_empty(&self, nth: usize) -> bool {
        self.views()[nth].empty.is_some_and(|since| since.elapsed() < EMPTY_FOR)
    }
}

#[cfg(test)]
mod tests {
    use std::iter::empty;

    use super::*;

    const FIRST: usize = 0;

    #[tokio::test(start_paused = true)]
    async fn a_lane_is_not_empty_before_it_has_shown_what_was_put_there() {
        let sight = Sight::default();
        assert!(sight.empty(FIRST, empty()), "nothing is known to be there");
        assert!(sight.was_empty(FIRST));
        sight.fill(LANES[FIRST], 7);
        sight.fill(LANES[FIRST], 6);
        assert!(!sight.was_empty(FIRST));
        assert!(!sight.empty(FIRST, empty()) && !sight.empty(FIRST, [5, 6].into_iter()));
        assert!(sight.empty(FIRST + 1, empty()), "another lane");
        assert!(sight.empty(FIRST, [7, 3].into_iter()));
        assert!(sight.empty(FIRST, empty()), "it was shown");
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_lane_does_not_show_for_long_somebody_else_took() {
        let sight = Sight::default();
        sight.fill(LANES[FIRST], 7);
        tokio::time::advance(SHOWN_WITHIN).await;
        assert!(sight.empty(FIRST, empty()) && sight.was_empty(FIRST));
        tokio::time::advance(EMPTY_FOR).await;
        assert!(!sight.was_empty(FIRST));
    }
}
