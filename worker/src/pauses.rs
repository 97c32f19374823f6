//! How long to wait before a call is made again, and how often.

use std::time::Duration;

use ebb_queue::{ErrorKind, RetryPolicy};

/// Calls in a row that may fail for a reason that time does not heal.
pub(crate) const PATIENCE: u32 = 5;

/// Pauses between tries while the broker does not answer, longer each time.
#[derive(Debug, Default)]
pub(crate) struct Pauses {
    n_failures: u32,
    n_refusals: u32,
}

/// What a failure says of the next try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failed {
    /// It may succeed, however often this was so.
    ForNow,
    /// It will fail as well, unless this one is odd: so it is where a broker comes back.
    ForGood,
}

impl Failed {
    /// By the word of the error.
    pub(crate) fn with(kind: ErrorKind) -> Self {
        if kind.heals() { Self::ForNow } else { Self::ForGood }
    }
}

impl Pauses {
    const POLICY: RetryPolicy = RetryPolicy {
        max_attempts: u32::MAX,
        base: Duration::from_millis(100),
        cap: Duration::from_secs(5),
    };

    /// How long to wait before the next try.
    pub(crate) fn next(&mut self, failed: Failed, chance: f64) -> Duration {
        self.n_failures = self.n_failures.saturating_add(1);
        self.n_refusals = match failed {
            Failed::ForNow => 0,
            Failed::ForGood => self.n_refusals.saturating_add(1),
        };
        Self::POLICY.after(self.n_failures, chance).unwrap_or(Self::POLICY.cap)
    }

    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Failures since the last success.
    pub(crate) fn n_failures(&self) -> u32 {
        self.n_failures
    }

    /// Whether the last failures were of the kind that time does not heal, and enough of them: those
    /// of an outage before them say nothing of it.
    pub(crate) fn are_over(&self) -> bool {
        self.n_refusals >= PATIENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_count_from_the_last_failure_that_heals() {
        let mut pauses = Pauses::default();
        let mut fail = |n: u32, kind| {
            for _ in 0..n {
                pauses.next(Failed::with(kind), 0.0);
            }
            (pauses.n_failures(), pauses.are_over())
        };
        assert_eq!(fail(9, ErrorKind::Unavailable), (9, false));
        assert_eq!(fail(4, ErrorKind::Internal), (13, false));
        assert_eq!(fail(1, ErrorKind::Full), (14, false));
        assert_eq!(fail(4, ErrorKind::Denied), (18, false));
        assert_eq!(fail(1, ErrorKind::Internal), (19, true));
        pauses.reset();
        assert_eq!((pauses.n_failures(), pauses.are_over()), (0, false));
    }
}
