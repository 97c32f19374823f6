//! When a push stream says `true`. No clock and no task in here: time comes in as an argument.

use std::time::Duration;

use ebb_queue::{Phase, Source, Timestamp};
use tokio::time::Instant;

use crate::snapshot::Snapshot;
use crate::trigger::Trigger;

/// How often an active stream speaks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cadence {
    /// Until a worker reports: KEDA drops a push that comes too early in the life of an object.
    pub(crate) repeat: Duration,
    /// Once one does.
    pub(crate) heartbeat: Duration,
}

/// Who waits for workers that do not report repeats itself no longer than this.
const LONGEST_REPEATED: Duration = Duration::from_secs(60);

/// What a stream looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Whether the trigger is active.
    pub(crate) active: bool,
    /// Whether a worker is known to be here to stay.
    pub(crate) attended: bool,
    /// Whether its workers report at all.
    pub(crate) reports: bool,
    /// When time alone may make it active.
    pub(crate) wakes: Option<Instant>,
    /// When time alone makes it inactive.
    pub(crate) rests: Option<Instant>,
}

/// Why a stream spoke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// It was opened; the only one that may say `false`.
    Open,
    /// The trigger became active.
    Edge,
    /// It is active and no worker is known.
    Repeat,
    /// It is active, and a worker is known or none can be.
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
        /// When it was said first.
        since: Instant,
        /// When it was said.
        told: Instant,
        /// When it is due again, or time alone makes it inactive.
        due: Instant,
    },
}

impl Push {
    /// Takes note of what is seen, and says whether and why to tell it now.
    pub(crate) fn next(&mut self, seen: Seen, cadence: Cadence, now: Instant) -> Option<Reason> {
        let reason = match *self {
            Self::Opening => Some(Reason::Open),
            Self::Inactive { .. } => seen.active.then_some(Reason::Edge),
            Self::Active { since, told, .. } => {
                let (reason, after) = cadence.next(seen, now - since);
                *self = Self::Active { since, told, due: seen.until(told + after, now) };
                (seen.active && told + after <= now).then_some(reason)
            }
        };
        if !seen.active {
            *self = Self::Inactive { wakes: seen.wakes };
        } else if reason.is_some() {
            let since = if let Self::Active { since, .. } = *self { since } else { now };
            let (_, after) = cadence.next(seen, now - since);
            *self = Self::Active { since, told: now, due: seen.until(now + after, now) };
        }
        reason
    }

    /// Since when it is active.
    pub(crate) fn active_since(&self) -> Option<Instant> {
        if let Self::Active { since, .. } = self { Some(*since) } else { None }
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

impl Seen {
    /// When to look again that would speak at a moment.
    fn until(&self, due: Instant, now: Instant) -> Instant {
        self.rests.filter(|rests| *rests > now).map_or(due, |rests| rests.min(due))
    }
}

impl Cadence {
    /// How an active stream goes on that was first told of it so long ago.
    fn next(self, seen: Seen, active_for: Duration) -> (Reason, Duration) {
        if seen.attended || (!seen.reports && active_for >= LONGEST_REPEATED) {
            (Reason::Heartbeat, self.heartbeat)
        } else {
            (Reason::Repeat, self.repeat)
        }
    }
}

/// Whether somebody is there who takes jobs, and whether workers report that at all: those of others
/// are known by what they hold, and held since the trigger became active. What they held before that
/// says nothing: the pool may be at zero since.
pub(crate) fn attendance(
    snapshot: &Snapshot,
    trigger: &Trigger,
    since: Option<Timestamp>,
) -> (bool, bool) {
    let reported = snapshot.workers.iter().any(|worker| worker.phase != Phase::Draining);
    let Source::Foreign(_) = trigger.source else { return (reported, true) };
    let last = snapshot.learned.last_work;
    let held_since = since.zip(last).is_some_and(|(since, last)| last > since);
    (snapshot.depth.in_flight > 0 || held_since, false)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use ebb_queue::{Foreign, Source};

    use super::{Cadence, Push, Reason, Seen, attendance};
    use crate::kit::{NOW, at, modes, queue, trigger};
    use crate::trigger::Trigger;

    const CADENCE: Cadence =
        Cadence { repeat: Duration::from_secs(1), heartbeat: Duration::from_secs(30) };
    const IDLE: Seen =
        Seen { active: false, attended: false, reports: true, wakes: None, rests: None };
    const ALONE: Seen = Seen { active: true, ..IDLE };
    const ATTENDED: Seen = Seen { attended: true, ..ALONE };

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
    fn where_no_worker_reports_the_repetition_ends_when_one_holds_jobs_and_after_a_while() {
        let silent = Seen { reports: false, ..ALONE };
        let held = Seen { attended: true, ..silent };
        let edge = |at| (at, silent, Some(Reason::Edge));
        let repeats = |seconds: std::ops::Range<u64>| {
            seconds.map(|at| (at, silent, Some(Reason::Repeat))).collect::<Vec<_>>()
        };
        let opened = (0, IDLE, Some(Reason::Open));
        let mut never = vec![opened, edge(10)];
        never.extend(repeats(11..70));
        never.extend([(70, silent, None), (98, silent, None)]);
        never.extend([(99, silent, Some(Reason::Heartbeat)), (100, silent, None)]);
        never.extend([(101, IDLE, None), edge(102), (103, silent, Some(Reason::Repeat))]);
        check(&never);
        check(&[opened, edge(10), (11, held, None), (40, held, Some(Reason::Heartbeat))]);
    }

    #[test]
    fn workers_of_others_are_there_only_if_they_held_something_since_the_trigger_became_active() {
        let foreign = Foreign { stream: "work".into(), reader: "embedders".into() };
        let trigger = Trigger { source: Source::Foreign(foreign), ..trigger(modes()[0]) };
        let mut snapshot = queue(1, 0, &[]);
        snapshot.learned.last_work = Some(NOW);
        assert_eq!(attendance(&snapshot, &trigger, None), (false, false));
        // The pool may have gone to zero a second ago.
        assert_eq!(attendance(&snapshot, &trigger, Some(at(1))), (false, false));
        snapshot.learned.last_work = Some(at(2));
        assert_eq!(attendance(&snapshot, &trigger, Some(at(1))), (true, false));
        snapshot = queue(1, 1, &[]);
        assert_eq!(attendance(&snapshot, &trigger, Some(at(1))), (true, false));
    }

    #[test]
    fn one_that_only_lingers_is_looked_at_again_when_that_ends() {
        let start = Instant::now();
        let mut push = Push::Opening;
        let rests = Some(start + Duration::from_secs(5));
        let lingers = Seen { rests, ..ATTENDED };
        assert_eq!(push.next(lingers, CADENCE, start), Some(Reason::Open));
        assert_eq!(push.due(), rests);
        let end = start + Duration::from_secs(5);
        assert_eq!(push.next(IDLE, CADENCE, end), None);
        // So that a job which comes then is told at once.
        assert_eq!(push.next(ALONE, CADENCE, end), Some(Reason::Edge));
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
