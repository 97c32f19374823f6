//! When a push stream says `true`. No clock and no task in here: time comes in as an argument.

use std::time::Duration;

use tokio::time::Instant;

/// How often an active stream speaks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cadence {
    /// Until a worker reports: KEDA drops a push that comes too early in the life of an object.
    pub(crate) repeat: Duration,
    /// Once one does.
    pub(crate) heartbeat: Duration,
}

/// What a stream looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Whether the trigger is active.
    pub(crate) active: bool,
    /// Whether a worker reports that is here to stay.
    pub(crate) attended: bool,
    /// When time alone may make it active.
    pub(crate) wakes: Option<Instant>,
}

/// Why a stream spoke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// It was opened; the only one that may say `false`.
    Open,
    /// The trigger became active.
    Edge,
    /// It is active and no worker reports.
    Repeat,
    /// It is active and a worker reports.
    Heartbeat,
}

/// The state of one push stream.
#[derive(Debug)]
pub(crate) enum Push {
    /// Nothing was said; leads to `Inactive` and `Active`.
    Opening,
    /// Leads to `Active`.
    Inactive {
        /// When to look again even if nothing changes.
        wakes: Option<Instant>,
    },
    /// `true` was said last at `told`; leads to `Inactive`.
    Active {
        /// When it was said.
        told: Instant,
        /// When it is due again.
        due: Instant,
    },
}

impl Push {
    /// Takes note of what is seen, and says whether and why to tell it now.
    pub(crate) fn next(&mut self, seen: Seen, cadence: Cadence, now: Instant) -> Option<Reason> {
        let reason = match *self {
            Self::Opening => Some(Reason::Open),
            Self::Inactive { .. } => seen.active.then_some(Reason::Edge),
            Self::Active { told, .. } => {
                let due = told + cadence.after(seen);
                *self = Self::Active { told, due };
                let reason = if seen.attended { Reason::Heartbeat } else { Reason::Repeat };
                (seen.active && due <= now).then_some(reason)
            }
        };
        if !seen.active {
            *self = Self::Inactive { wakes: seen.wakes };
        } else if reason.is_some() {
            *self = Self::Active { told: now, due: now + cadence.after(seen) };
        }
        reason
    }

    /// When to look again even if nothing changes.
    pub(crate) fn due(&self) -> Option<Instant> {
        match self {
            Self::Opening => None,
            Self::Inactive { wakes } => *wakes,
            Self::Active { due, .. } => Some(*due),
        }
    }

    /// Whether news can wait a little, for `true` was said.
    pub(crate) fn is_unhurried(&self) -> bool {
        matches!(self, Self::Active { .. })
    }
}

impl Cadence {
    fn after(self, seen: Seen) -> Duration {
        if seen.attended { self.heartbeat } else { self.repeat }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{Cadence, Push, Reason, Seen};

    const CADENCE: Cadence =
        Cadence { repeat: Duration::from_secs(1), heartbeat: Duration::from_secs(30) };
    const IDLE: Seen = Seen { active: false, attended: false, wakes: None };
    const ALONE: Seen = Seen { active: true, attended: false, wakes: None };
    const ATTENDED: Seen = Seen { active: true, attended: true, wakes: None };

    /// Seconds since the stream was opened, what is seen then, and what is to be said.
    fn check(steps: &[(u64, Seen, Option<Reason>)]) {
        let start = Instant::now();
        let mut push = Push::Opening;
        for (at, seen, expected) in steps {
            let now = start + Duration::from_secs(*at);
            assert_eq!(push.next(*seen, CADENCE, now), *expected, "at {at} s of {steps:?}");
        }
    }

    #[test]
    fn the_state_comes_first_and_false_never_again() {
        let cases = [(IDLE, None), (ALONE, None)];
        for (seen, next) in cases {
            check(&[(0, seen, Some(Reason::Open)), (0, seen, next), (100, IDLE, None)]);
        }
    }

    #[test]
    fn an_edge_is_told_at_once_and_repeated_until_a_worker_reports() {
        check(&[
            (0, IDLE, Some(Reason::Open)),
            (50, ALONE, Some(Reason::Edge)),
            (50, ALONE, None),
            (51, ALONE, Some(Reason::Repeat)),
            (52, ALONE, Some(Reason::Repeat)),
            (53, ATTENDED, None),
            (81, ATTENDED, None),
            (82, ATTENDED, Some(Reason::Heartbeat)),
            (83, ALONE, Some(Reason::Repeat)),
            (84, IDLE, None),
            (84, ATTENDED, Some(Reason::Edge)),
        ]);
    }

    #[test]
    fn it_is_due_when_it_would_speak() {
        let start = Instant::now();
        let mut push = Push::Opening;
        assert_eq!(push.due(), None);
        assert_eq!(push.next(ALONE, CADENCE, start), Some(Reason::Open));
        assert_eq!(push.due(), Some(start + CADENCE.repeat));
        assert_eq!(push.next(ATTENDED, CADENCE, start), None);
        assert_eq!(push.due(), Some(start + CADENCE.heartbeat));
        assert!(push.is_unhurried());
        assert_eq!(push.next(IDLE, CADENCE, start), None);
        assert_eq!(push.due(), None);
        let wakes = Some(start + CADENCE.repeat);
        assert_eq!(push.next(Seen { wakes, ..IDLE }, CADENCE, start), None);
        assert_eq!(push.due(), wakes);
        assert!(!push.is_unhurried());
    }
}
