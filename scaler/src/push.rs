//! When a push stream says `true`. No clock and no task in here: time comes in as an argument.
//!
//! It never says `false`: KEDA from 2.18 on does not listen to it, and KEDA 2.17 takes the pool to zero
//! for it once the cooldown is over, whatever the other triggers of the object say.

use std::time::Duration;

use ebb_queue::{Phase, Source, Timestamp};
use tokio::time::Instant;

use crate::snapshot::Snapshot;
use crate::trigger::Trigger;

/// How often an active stream speaks.
#[derive(Debug, Clone, Copy)]
pub struct Cadence {
    /// For the first time, where no worker is known: KEDA drops a push that comes too early in the
    /// life of an object. Each pause after it is as long as it is active by then.
    pub repeat: Duration,
    /// At last, or once a worker is known.
    pub heartbeat: Duration,
}

/// Each `true` has KEDA patch the status of an object, and a pool that is up needs none sooner than
/// its cooldown could notice.
const LONGEST_CALM: Duration = Duration::from_secs(1);

/// What a stream looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Whether the trigger is active.
    pub active: bool,
    /// Whether a worker is known to be here to stay.
    pub attended: bool,
    /// Whether its workers report at all.
    pub reports: bool,
    /// When time alone may make it active.
    pub wakes: Option<Instant>,
    /// When time alone makes it inactive.
    pub rests: Option<Instant>,
}

/// Why a stream spoke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It was opened, and the trigger is active.
    Open,
    /// The trigger became active.
    Edge,
    /// It is active for a short while, and no worker is known.
    Repeat,
    /// It is active, and a worker is known or does not come.
    Heartbeat,
}

/// The state of one push stream.
#[derive(Debug)]
pub enum Push {
    /// Nothing was said; leads to `Inactive` and `Active`.
    Opening,
    /// Leads to `Active`.
    Inactive {
        /// When `true` was said last, if ever.
        told: Option<Instant>,
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
    /// Takes note of what is seen, and says whether and why to say `true` now.
    pub fn next(&mut self, seen: Seen, cadence: Cadence, now: Instant) -> Option<Reason> {
        if !seen.active {
            *self = Self::Inactive { told: self.told(), wakes: seen.wakes };
            return None;
        }
        let (reason, since) = match *self {
            Self::Opening => (Reason::Open, now),
            Self::Inactive { told, .. } => {
                if let Some(until) = told.and_then(|told| cadence.calm(seen, told, now)) {
                    *self = Self::Inactive { told, wakes: Some(seen.until(until, now)) };
                    return None;
                }
                (Reason::Edge, now)
            }
            Self::Active { since, told, .. } => {
                let (reason, after) = cadence.next(seen, told - since);
                if now < told + after {
                    *self = Self::Active { since, told, due: seen.until(told + after, now) };
                    return None;
                }
                (reason, since)
            }
        };
        let (_, after) = cadence.next(seen, now - since);
        *self = Self::Active { since, told: now, due: seen.until(now + after, now) };
        Some(reason)
    }

    /// When `true` was said last.
    fn told(&self) -> Option<Instant> {
        match *self {
            Self::Opening => None,
            Self::Inactive { told, .. } => told,
            Self::Active { told, .. } => Some(told),
        }
    }

    /// Since when it is active.
    pub(crate) fn active_since(&self) -> Option<Instant> {
        if let Self::Active { since, .. } = self { Some(*since) } else { None }
    }

    /// When to look again even if nothing changes.
    pub(crate) fn due(&self) -> Option<Instant> {
        match self {
            Self::Opening => None,
            Self::Inactive { wakes, .. } => *wakes,
            Self::Active { due, .. } => Some(*due),
        }
    }

    /// Whether news can wait a little, for `true` was said.
    pub fn is_unhurried(&self) -> bool {
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
    /// How an active stream goes on that spoke last when it had been active for so long.
    fn next(self, seen: Seen, active_for: Duration) -> (Reason, Duration) {
        let pause = self.repeat.max(active_for);
        if seen.attended || pause >= self.heartbeat {
            (Reason::Heartbeat, self.heartbeat)
        } else {
            (Reason::Repeat, pause)
        }
    }

    /// Until when an edge waits, if it does: at once it is told only to a pool that may be at zero.
    fn calm(self, seen: Seen, told: Instant, now: Instant) -> Option<Instant> {
        // Whether the workers of others are there nobody knows before they hold a job: so
        // their edges wait too where the pool is at zero, for a second at most.
        let is_up = seen.attended || !seen.reports;
        let until = told + self.repeat.min(LONGEST_CALM);
        Some(until).filter(|until| is_up && now < *until)
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
    #[track_caller]
    fn check(steps: &[(u64, Seen, Option<Reason>)]) {
        let millis = steps.iter().map(|(at, seen, expected)| (1000 * at, *seen, *expected));
        check_millis(&millis.collect::<Vec<_>>());
    }

    /// The same in milliseconds.
    #[track_caller]
    fn check_millis(steps: &[(u64, Seen, Option<Reason>)]) {
        let start = Instant::now();
        let mut push = Push::Opening;
        for (at, seen, expected) in steps {
            let now = start + Duration::from_millis(*at);
            assert_eq!(push.next(*seen, CADENCE, now), *expected, "at {at} ms of {steps:?}");
        }
    }

    #[test]
    fn a_stream_never_says_false() {
        // KEDA 2.17 takes a pool to zero for it that another trigger keeps up.
        check(&[(0, IDLE, None), (50, ALONE, Some(Reason::Edge)), (60, IDLE, None)]);
        check(&[(0, ALONE, Some(Reason::Open)), (0, ALONE, None), (100, IDLE, None)]);
    }

    #[test]
    fn short_jobs_of_a_pool_that_is_up_are_told_once_a_second_and_at_zero_at_once() {
        let silent = Seen { reports: false, ..ALONE };
        for working in [ATTENDED, silent, Seen { attended: true, ..silent }] {
            check_millis(&[
                (0, working, Some(Reason::Open)),
                (100, IDLE, None),
                (250, working, None),
                (300, IDLE, None),
                (999, working, None),
                (1000, working, Some(Reason::Edge)),
                (1100, IDLE, None),
                (1250, working, None),
                // The pool went to zero meanwhile.
                (1300, ALONE, Some(Reason::Edge)),
                (1400, IDLE, None),
                (2400, working, Some(Reason::Edge)),
            ]);
        }
        let start = Instant::now();
        let mut push = Push::Opening;
        assert_eq!(push.next(ATTENDED, CADENCE, start), Some(Reason::Open));
        assert_eq!(push.next(IDLE, CADENCE, start), None);
        assert_eq!(push.next(ATTENDED, CADENCE, start), None);
        assert_eq!(push.due(), Some(start + CADENCE.repeat), "it is looked at again then");
    }

    #[test]
    fn where_no_worker_comes_it_is_told_ever_less_often() {
        for reports in [true, false] {
            let seen = Seen { reports, ..ALONE };
            let repeats = [11, 12, 14, 18, 26, 42];
            let beats = [72, 102, 132];
            let told = |at: u64| match at {
                10 => Some(Reason::Edge),
                _ if repeats.contains(&at) => Some(Reason::Repeat),
                _ if beats.contains(&at) => Some(Reason::Heartbeat),
                _ => None,
            };
            let mut steps = vec![(0, IDLE, None)];
            steps.extend((10..140).map(|at| (at, seen, told(at))));
            check(&steps);
        }
    }

    #[test]
    fn an_edge_is_told_at_once_and_repeated_until_a_worker_reports() {
        check(&[
            (0, IDLE, None),
            (50, ALONE, Some(Reason::Edge)),
            (50, ALONE, None),
            (51, ALONE, Some(Reason::Repeat)),
            (52, ALONE, Some(Reason::Repeat)),
            (53, ATTENDED, None),
            (81, ATTENDED, None),
            (82, ATTENDED, Some(Reason::Heartbeat)),
            (83, ALONE, None),
            (84, IDLE, None),
            (84, ATTENDED, Some(Reason::Edge)),
        ]);
    }

    #[test]
    fn where_no_worker_reports_the_repetition_ends_when_one_holds_jobs() {
        let silent = Seen { reports: false, ..ALONE };
        let held = Seen { attended: true, ..silent };
        let edge = (10, silent, Some(Reason::Edge));
        check(&[(0, IDLE, None), edge, (11, held, None), (40, held, Some(Reason::Heartbeat))]);
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
