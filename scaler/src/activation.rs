//! Whether a pool may be at zero. Pure: time comes in as an argument.

use std::fmt;
use std::time::Duration;

use ebb_queue::{Phase, Priority, Timestamp};

use crate::decision::{Jobs, Snapshot, ahead, span};
use crate::learn::Pace;
use crate::trigger::{Activation, Trigger};

/// Why a pool is active or not; the first that holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Active: workers hold jobs, and dropping to zero would kill them.
    InFlight(u64),
    /// Active: workers are loading their model, and there is or was work for them a short while ago.
    Starting(u64),
    /// Active: more jobs are ready than it takes to wake the pool.
    Ready(u64),
    /// Active: jobs of high priority are ready.
    HighPriority(u64),
    /// Active: a deadline is so close that a worker which starts now is just in time.
    Deadline(Timestamp),
    /// Active: a job has been ready for as long as any may be.
    Waited(Duration),
    /// Active: jobs are ready, too few to wake a pool but not to keep one up.
    AwakeAlready(u64),
    /// Active: the last work was a short while ago.
    Lingering,
    /// Inactive: jobs are ready, but too few, or not important enough, to wake the pool.
    BelowActivation(u64),
    /// Inactive: there is nothing to do.
    Empty,
}

impl Why {
    /// Whether the pool is active.
    #[must_use]
    pub fn is_active(self) -> bool {
        !matches!(self, Self::BelowActivation(_) | Self::Empty)
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InFlight(n) => write!(f, "active: {n} in flight"),
            Self::Starting(n) => write!(f, "active: {n} workers are starting"),
            Self::Ready(n) => write!(f, "active: {n} ready"),
            Self::HighPriority(n) => write!(f, "active: {n} of high priority ready"),
            Self::Deadline(at) => {
                write!(f, "active: the deadline {at} leaves time for a cold start and the job")
            }
            Self::Waited(wait) => write!(f, "active: a job has waited {} s", wait.as_secs()),
            Self::AwakeAlready(n) => write!(f, "active: {n} ready and workers are up"),
            Self::Lingering => f.write_str("active: the last work is not long ago"),
            Self::BelowActivation(n) => write!(f, "inactive: only {n} ready"),
            Self::Empty => f.write_str("inactive: nothing is ready or in flight"),
        }
    }
}

/// Starting workers keep a pool up for so long after the last work at least, and for so many cold
/// starts: those that fail and start again would do so for ever.
const START: Duration = Duration::from_secs(300);
const STARTS: f64 = 3.0;

/// Why the pool is active or not, and when time alone makes it active.
pub(crate) fn wake(
    snapshot: &Snapshot,
    jobs: &Jobs,
    trigger: &Trigger,
    pace: &Pace,
    now: Timestamp,
) -> (Why, Option<Timestamp>) {
    let activation = &trigger.activation;
    let starting = snapshot.workers.iter().filter(|w| w.phase == Phase::Starting).count() as u64;
    let is_wanted = || {
        let span = START.max(span(STARTS * pace.cold_start));
        let is_recent = |last: Timestamp| last.checked_add(span).is_ok_and(|end| now < end);
        let to_do = jobs.ready > 0 || snapshot.depth.delayed > 0;
        to_do || snapshot.learned.last_work.is_some_and(is_recent)
    };
    let up = || snapshot.workers.iter().any(|worker| worker.phase != Phase::Draining);
    let lingers = || {
        let last = snapshot.learned.last_work;
        !activation.linger.is_zero() && last.is_some_and(|last| now < last + activation.linger)
    };
    let (counting, high) = counting(snapshot, jobs, activation);
    let clocks = Clocks::read(snapshot, jobs, trigger, pace);
    let why = match jobs.ready {
        _ if jobs.in_flight > 0 => Why::InFlight(jobs.in_flight),
        _ if starting > 0 && is_wanted() => Why::Starting(starting),
        _ if counting > activation.jobs => Why::Ready(counting),
        _ if high > 0 => Why::HighPriority(high),
        0 if lingers() => Why::Lingering,
        0 => Why::Empty,
        ready => match clocks.rung(now) {
            Some(why) => why,
            None if up() => Why::AwakeAlready(ready),
            None if lingers() => Why::Lingering,
            None => Why::BelowActivation(ready),
        },
    };
    let due = || snapshot.depth.next_due.filter(|_| snapshot.depth.delayed > 0);
    let wakes_at = match why {
        Why::BelowActivation(_) => clocks.next(),
        Why::Empty => due().map(|due| due - ahead(trigger, pace)).filter(|at| *at > now),
        _ => None,
    };
    (why, wakes_at)
}

/// The ready jobs that count for `activationJobs`, and those of high priority.
fn counting(snapshot: &Snapshot, jobs: &Jobs, activation: &Activation) -> (u64, u64) {
    let by = snapshot.depth.ready_by_priority.unwrap_or_default();
    // Those of which no priority is known, because the broker does not tell or they came due
    // since it did, are normal.
    let unknown = jobs.ready.saturating_sub(by.total().min(snapshot.depth.ready));
    let counting = match activation.priority {
        Priority::Low => jobs.ready,
        Priority::Normal => by.high.saturating_add(by.normal).saturating_add(unknown),
        Priority::High => by.high,
    };
    (counting.min(jobs.ready), by.high.min(jobs.ready))
}

/// The moments at which ready jobs wake a pool that they were too few for.
struct Clocks {
    /// Since when one has been ready, and until when it may be.
    wait: (Timestamp, Timestamp),
    /// The first deadline, and when a worker has to start for it.
    deadline: Option<(Timestamp, Timestamp)>,
}

impl Clocks {
    fn read(snapshot: &Snapshot, jobs: &Jobs, trigger: &Trigger, pace: &Pace) -> Self {
        let depth = &snapshot.depth;
        let seen = snapshot.learned.waiting_since;
        // A job that was delayed is older than its wait; a scaler that has just started has seen
        // less of it.
        let since = match (depth.oldest_ready, seen) {
            (Some(published), Some(seen)) => published.max(seen),
            (Some(since), None) | (None, Some(since)) => since,
            (None, None) if jobs.came_due > 0 && depth.ready == 0 => depth.as_of,
            // Nobody can tell: it may be for ever already.
            (None, None) => Timestamp::MIN,
        };
        let until = since.checked_add(trigger.activation.wait).unwrap_or(Timestamp::MAX);
        let lead = span(pace.cold_start + pace.service);
        let start = |deadline: Timestamp| deadline.checked_sub(lead).unwrap_or(Timestamp::MIN);
        let deadline = depth.first_deadline.map(|deadline| (deadline, start(deadline)));
        Self { wait: (since, until), deadline }
    }

    fn rung(&self, now: Timestamp) -> Option<Why> {
        if let Some((deadline, start)) = self.deadline
            && start <= now
        {
            return Some(Why::Deadline(deadline));
        }
        let (since, until) = self.wait;
        let waited = || Duration::try_from(now.duration_since(since)).unwrap_or_default();
        (until <= now).then(|| Why::Waited(waited()))
    }

    fn next(&self) -> Option<Timestamp> {
        let start = self.deadline.map(|(_, start)| start);
        start.into_iter().chain([self.wait.1]).min()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ebb_queue::{ByPriority, Phase, Priority};
    use proptest::prelude::{ProptestConfig, prop_assert_eq, proptest};

    use super::Why;
    use crate::decision::{Snapshot, decide};
    use crate::kit::{NOW, at, modes, queue, snapshots, trigger, triggers};
    use crate::trigger::{Activation, Trigger};

    fn patient(jobs: u64) -> Trigger {
        let activation = Activation { jobs, ..trigger(modes()[0]).activation };
        Trigger { activation, ..trigger(modes()[0]) }
    }

    #[test]
    fn a_pool_is_active_while_it_has_anything_to_lose() {
        let cases = [
            (queue(0, 0, &[]), Why::Empty),
            (queue(0, 0, &[(Phase::Idle, 0)]), Why::Empty),
            (queue(1, 0, &[]), Why::BelowActivation(1)),
            (queue(3, 0, &[]), Why::BelowActivation(3)),
            (queue(4, 0, &[]), Why::Ready(4)),
            (queue(1, 0, &[(Phase::Idle, 0)]), Why::AwakeAlready(1)),
            (queue(1, 0, &[(Phase::Draining, 0)]), Why::BelowActivation(1)),
            (queue(0, 1, &[]), Why::InFlight(1)),
            (queue(0, 0, &[(Phase::Busy, 2)]), Why::InFlight(2)),
            (queue(0, 1, &[(Phase::Draining, 1)]), Why::InFlight(1)),
            (queue(0, 0, &[(Phase::Starting, 0)]), Why::Starting(1)),
        ];
        for (mut snapshot, why) in cases {
            snapshot.learned.last_work = Some(NOW);
            for mode in modes() {
                let decision = decide(&snapshot, &Trigger { mode, ..patient(3) }, NOW);
                assert_eq!(decision.why, why, "{snapshot:?}");
                assert_eq!(decision.active, why.to_string().starts_with("active"), "{why}");
            }
        }
    }

    #[test]
    fn a_job_wakes_the_pool_when_it_has_waited_long_enough() {
        let why = |snapshot: &Snapshot, seconds| decide(snapshot, &patient(9), at(seconds)).why;
        let mut snapshot = queue(1, 0, &[]);
        assert_eq!(why(&snapshot, 299), Why::BelowActivation(1));
        assert_eq!(why(&snapshot, 300), Why::Waited(Duration::from_secs(300)));
        assert_eq!(decide(&snapshot, &patient(9), at(7)).wakes_at, Some(at(300)));
        // One that was published long ago with a delay has waited only since it was due.
        snapshot.learned.waiting_since = Some(at(100));
        assert_eq!(why(&snapshot, 399), Why::BelowActivation(1));
        assert_eq!(why(&snapshot, 400), Why::Waited(Duration::from_secs(300)));
        // A broker that does not tell ages is made up for by what was seen of it.
        snapshot.depth.oldest_ready = None;
        assert_eq!(why(&snapshot, 399), Why::BelowActivation(1));
        assert_eq!(why(&snapshot, 400), Why::Waited(Duration::from_secs(300)));
        // Where nobody knows, no job is left to wait.
        snapshot.learned.waiting_since = None;
        assert!(why(&snapshot, 0).is_active());
    }

    #[test]
    fn a_deadline_wakes_the_pool_a_cold_start_and_a_job_before_it() {
        let mut snapshot = queue(1, 0, &[]);
        snapshot.depth.first_deadline = Some(at(60));
        let decision = |seconds| decide(&snapshot, &patient(9), at(seconds));
        // 10 s to start and 1 s for the job.
        assert_eq!(decision(48).why, Why::BelowActivation(1));
        assert_eq!(decision(48).wakes_at, Some(at(49)));
        assert_eq!(decision(49).why, Why::Deadline(at(60)));
        snapshot.learned.cold_start = Some(39.0);
        assert_eq!(decide(&snapshot, &patient(9), at(20)).why, Why::Deadline(at(60)));
    }

    #[test]
    fn jobs_below_the_priority_do_not_wake_a_pool_until_they_have_waited() {
        use Priority::{High, Low, Normal};
        let told = |high, normal, low| Some(ByPriority { high, normal, low });
        let cases = [
            (Low, told(0, 0, 2), Why::Ready(2)),
            (Normal, told(0, 0, 2), Why::BelowActivation(2)),
            (Normal, told(0, 1, 1), Why::Ready(1)),
            (High, told(0, 1, 1), Why::BelowActivation(2)),
            (High, told(1, 1, 0), Why::Ready(1)),
            // What is not told is normal.
            (Low, None, Why::Ready(2)),
            (Normal, None, Why::Ready(2)),
            (High, None, Why::BelowActivation(2)),
        ];
        for (priority, by, why) in cases {
            let mut snapshot = queue(2, 0, &[]);
            snapshot.depth.ready_by_priority = by;
            let activation = Activation { priority, ..patient(0).activation };
            let trigger = Trigger { activation, ..patient(0) };
            assert_eq!(decide(&snapshot, &trigger, NOW).why, why, "{priority:?} of {by:?}");
            assert!(decide(&snapshot, &trigger, at(300)).active);
            snapshot.workers.push(crate::kit::worker(Phase::Idle, 0));
            assert!(decide(&snapshot, &trigger, NOW).active);
        }
        let mut snapshot = queue(2, 0, &[]);
        snapshot.depth.ready_by_priority = told(1, 0, 1);
        assert_eq!(decide(&snapshot, &patient(9), NOW).why, Why::HighPriority(1));
    }

    #[test]
    fn a_pool_lingers_after_the_last_work_and_no_longer() {
        let mut snapshot = queue(0, 0, &[(Phase::Idle, 0)]);
        snapshot.learned.last_work = Some(NOW);
        let activation = Activation { linger: Duration::from_secs(60), ..patient(0).activation };
        let trigger = Trigger { activation, ..patient(0) };
        assert_eq!(decide(&snapshot, &trigger, at(59)).why, Why::Lingering);
        assert_eq!(decide(&snapshot, &trigger, at(60)).why, Why::Empty);
        assert_eq!(decide(&snapshot, &patient(0), at(1)).why, Why::Empty);
    }

    #[test]
    fn workers_that_start_again_and_again_do_not_keep_a_pool_up_that_has_nothing_to_do() {
        let mut snapshot = queue(0, 0, &[(Phase::Starting, 0), (Phase::Starting, 0)]);
        snapshot.learned.last_work = Some(NOW);
        let why = |snapshot: &Snapshot, seconds| decide(snapshot, &patient(0), at(seconds)).why;
        assert_eq!(why(&snapshot, 299), Why::Starting(2));
        assert_eq!(why(&snapshot, 300), Why::Empty);
        // A model that takes long to load has as much more time.
        snapshot.learned.cold_start = Some(200.0);
        assert_eq!(why(&snapshot, 599), Why::Starting(2));
        assert_eq!(why(&snapshot, 600), Why::Empty);
        // What is still to come is work.
        snapshot.depth.delayed = 1;
        assert_eq!(why(&snapshot, 86_400), Why::Starting(2));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_ready_job_waits_longer_than_it_may(s in snapshots(), t in triggers()) {
            let since = s.depth.oldest_ready.into_iter().chain(s.learned.waiting_since).max();
            let late = since.map_or(NOW, |since| since + t.activation.wait);
            let decision = decide(&s, &t, late);
            assert!(decision.active || s.depth.ready == 0, "{decision:?}");
        }

        #[test]
        fn a_pool_that_is_up_is_never_put_to_sleep_while_anything_is_to_be_done(
            s in snapshots(), t in triggers(),
        ) {
            let up = s.workers.iter().any(|w| w.phase != Phase::Draining);
            let starts = s.workers.iter().any(|w| w.phase == Phase::Starting)
                && (s.depth.delayed > 0 || s.learned.last_work.is_some());
            let runs = s.depth.in_flight > 0 || s.workers.iter().any(|w| w.in_flight > 0);
            let active = decide(&s, &t, NOW).active;
            assert!(active || !(runs || starts || up && s.depth.ready > 0));
        }

        #[test]
        fn without_options_a_pool_is_active_exactly_when_there_is_work_or_a_start_for_it(
            mut s in snapshots(), mut t in triggers(),
        ) {
            s.depth.delayed = 0;
            t.activation = trigger(t.mode).activation;
            // No moment of the strategy is longer ago than a start may be.
            let starts = s.workers.iter().any(|w| w.phase == Phase::Starting)
                && s.learned.last_work.is_some();
            let runs = s.depth.in_flight > 0 || s.workers.iter().any(|w| w.in_flight > 0);
            prop_assert_eq!(decide(&s, &t, NOW).active, runs || starts || s.depth.ready > 0);
        }
    }
}
