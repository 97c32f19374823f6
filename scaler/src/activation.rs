//! Whether a pool may be at zero. Pure: time comes in as an argument.

use std::fmt;
use std::time::Duration;

use ebb_queue::{Phase, Priority, Timestamp};

use crate::learn::Pace;
use crate::snapshot::{Jobs, Known, Snapshot, ahead, span};
use crate::trigger::{Activation, Low, Trigger};

/// Why a pool is active or not; the first that holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Active: workers hold jobs, and dropping to zero would kill them.
    InFlight(u64),
    /// Active: workers are loading their model, and there is work for them, or was or will be within
    /// a short while.
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
    /// Inactive: all that are ready are of low priority, and wake the pool only when one of them
    /// has been ready for as long as is given, if that.
    LeftOut {
        /// How many there are.
        ready: u64,
        /// How long one may be; none for ever.
        wait: Option<Duration>,
    },
    /// Inactive: there is nothing to do.
    Empty,
}

impl Why {
    /// Whether the pool is active.
    #[must_use]
    pub fn is_active(self) -> bool {
        !matches!(self, Self::BelowActivation(_) | Self::LeftOut { .. } | Self::Empty)
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
            Self::LeftOut { ready, wait: Some(wait) } => {
                let wait = wait.as_secs_f64();
                write!(f, "inactive: {ready} ready, all of low priority; one may wait {wait} s")
            }
            Self::LeftOut { ready, wait: None } => {
                write!(f, "inactive: {ready} ready, all of low priority, which wake no pool")
            }
            Self::Empty => f.write_str("inactive: nothing is ready or in flight"),
        }
    }
}

/// Starting workers keep a pool up for so long after the last work and before the next delayed job at
/// least, and for so many cold starts: those that fail and start again would do so for ever.
const START: Duration = Duration::from_secs(300);
const STARTS: f64 = 3.0;

/// Why the pool is active or not, and when time alone makes it active.
pub(crate) fn wake(
    known: &Known<'_>,
    trigger: &Trigger,
    pace: &Pace,
    now: Timestamp,
) -> (Why, Option<Timestamp>) {
    let &Known { all: snapshot, counted, jobs, n_left_out } = known;
    let activation = &trigger.activation;
    let starting = snapshot.workers.iter().filter(|w| w.phase == Phase::Starting).count() as u64;
    let is_asking = jobs.ready > n_left_out;
    let patience = START.max(span(STARTS * pace.cold_start));
    let worked_lately = || {
        let is_recent = |last: Timestamp| last.checked_add(patience).is_ok_and(|end| now < end);
        counted.learned.last_work.is_some_and(is_recent)
    };
    let due = snapshot.depth.next_delayed.filter(|_| snapshot.depth.delayed > 0);
    let before = |due: Timestamp, span| due.checked_sub(span).unwrap_or(Timestamp::MIN);
    // Where nobody tells when, it may be at once.
    let comes_soon =
        || snapshot.depth.delayed > 0 && due.is_none_or(|due| before(due, patience) <= now);
    let is_wanted = || is_asking || comes_soon() || worked_lately();
    let up = || snapshot.workers.iter().any(|worker| worker.phase != Phase::Draining);
    let lingers = || {
        let last = counted.learned.last_work;
        !activation.linger.is_zero() && last.is_some_and(|last| now < last + activation.linger)
    };
    let (counting, high) = counting(snapshot, jobs, activation);
    let clocks = Clocks::read(known, trigger, pace);
    let why = match jobs.ready {
        _ if jobs.in_flight > 0 => Why::InFlight(jobs.in_flight),
        _ if starting > 0 && is_wanted() => Why::Starting(starting),
        _ if counting > activation.jobs => Why::Ready(counting),
        _ if high > 0 => Why::HighPriority(high),
        0 if lingers() => Why::Lingering,
        0 => Why::Empty,
        ready => match (clocks.rung(now), trigger.low) {
            (Some(why), _) => why,
            // Nobody takes what is left out: workers that are up are none for it.
            _ if up() && (is_asking || worked_lately()) => Why::AwakeAlready(ready),
            _ if lingers() => Why::Lingering,
            (None, Low::LeftOut { wait }) if !is_asking => Why::LeftOut { ready, wait },
            _ => Why::BelowActivation(ready),
        },
    };
    // Workers that start count for it sooner than it counts itself.
    let lead = if starting > 0 { patience } else { ahead(trigger, pace) };
    let due = due.map(|due| before(due, lead)).filter(|at| *at > now);
    let wakes_at = match why {
        Why::BelowActivation(_) | Why::LeftOut { .. } => clocks.next().into_iter().chain(due).min(),
        Why::Empty => due,
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
    /// Since when one has been ready, and until when it may be: of those that count, and of those
    /// that are left out.
    waits: [Option<(Timestamp, Timestamp)>; 2],
    /// The first deadline, and when a worker has to start for it.
    deadline: Option<(Timestamp, Timestamp)>,
}

impl Clocks {
    fn read(known: &Known<'_>, trigger: &Trigger, pace: &Pace) -> Self {
        let &Known { all, counted, jobs, n_left_out } = known;
        let until = |(snapshot, wait): (&Snapshot, Duration)| {
            let since = ready_since(snapshot, jobs);
            (since, since.checked_add(wait).unwrap_or(Timestamp::MAX))
        };
        let asking = (jobs.ready > n_left_out).then_some((counted, trigger.activation.wait));
        let left_out = match trigger.low {
            Low::LeftOut { wait: Some(wait) } if n_left_out > 0 => Some((all, wait)),
            _ => None,
        };
        let lead = span(pace.cold_start + pace.service);
        let start = |deadline: Timestamp| deadline.checked_sub(lead).unwrap_or(Timestamp::MIN);
        let deadline = all.depth.first_deadline.map(|deadline| (deadline, start(deadline)));
        Self { waits: [asking, left_out].map(|one| one.map(until)), deadline }
    }

    fn rung(&self, now: Timestamp) -> Option<Why> {
        if let Some((deadline, start)) = self.deadline
            && start <= now
        {
            return Some(Why::Deadline(deadline));
        }
        let rung = self.waits.iter().flatten().find(|(_, until)| *until <= now);
        let waited = |since| Duration::try_from(now.duration_since(since)).unwrap_or_default();
        rung.map(|(since, _)| Why::Waited(waited(*since)))
    }

    fn next(&self) -> Option<Timestamp> {
        let start = self.deadline.map(|(_, start)| start);
        start.into_iter().chain(self.waits.iter().flatten().map(|(_, until)| *until)).min()
    }
}

/// Since when one of the ready jobs of a snapshot has been ready.
fn ready_since(snapshot: &Snapshot, jobs: &Jobs) -> Timestamp {
    let depth = &snapshot.depth;
    // A job that was delayed is older than its wait; a scaler that has just started has seen less
    // of it.
    match (depth.oldest_ready, snapshot.learned.waiting_since) {
        (Some(published), Some(seen)) => published.max(seen),
        (Some(since), None) | (None, Some(since)) => since,
        (None, None) if jobs.came_due > 0 && depth.ready == 0 => depth.as_of,
        // Nobody can tell: it may be for ever already.
        (None, None) => Timestamp::MIN,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ebb_queue::{ByPriority, Phase, Priority};
    use proptest::prelude::{ProptestConfig, prop_assert_eq, proptest};

    use super::Why;
    use crate::decision::decide;
    use crate::kit::{NOW, asking, at, modes, queue, snapshots, trigger, triggers};
    use crate::snapshot::Snapshot;
    use crate::trigger::{Activation, Low, Trigger};

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
    fn a_delayed_job_that_makes_them_enough_wakes_the_pool_when_it_is_due() {
        let mut snapshot = queue(2, 0, &[]);
        (snapshot.depth.delayed, snapshot.depth.next_delayed) = (1, Some(at(60)));
        let decision = |seconds| decide(&snapshot, &patient(2), at(seconds));
        assert_eq!(decision(0).why, Why::BelowActivation(2));
        assert_eq!(decision(0).wakes_at, Some(at(60)), "long before the two have waited");
        assert_eq!(decision(60).why, Why::Ready(3));
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

    /// Leaves jobs of low priority out.
    fn without_low(wait: Option<u64>) -> Trigger {
        let activation = Activation { priority: Priority::Normal, ..patient(0).activation };
        let low = Low::LeftOut { wait: wait.map(Duration::from_secs) };
        Trigger { activation, low, ..trigger(modes()[3]) }
    }

    /// So many jobs of normal and of low priority, the oldest published at 0.
    fn mixed(normal: u64, low: u64) -> Snapshot {
        let mut snapshot = queue(normal + low, 0, &[]);
        snapshot.depth.ready_by_priority = Some(ByPriority { high: 0, normal, low });
        snapshot
    }

    #[test]
    fn jobs_that_are_left_out_wake_a_pool_by_no_wait_but_their_own() {
        let (never, later) = (without_low(None), without_low(Some(7200)));
        let decision = decide(&mixed(0, 2003), &never, at(86_400));
        assert_eq!(decision.why, Why::LeftOut { ready: 2003, wait: None });
        assert_eq!((decision.active, decision.value, decision.wakes_at), (false, 0.0, None));
        let wait = Some(Duration::from_secs(7200));
        let decision = decide(&mixed(0, 2003), &later, at(7199));
        assert_eq!(decision.why, Why::LeftOut { ready: 2003, wait });
        assert_eq!(decision.wakes_at, Some(at(7200)));
        let decision = decide(&mixed(0, 2003), &later, at(7200));
        assert_eq!(decision.why, Why::Waited(Duration::from_secs(7200)));
        // One replica, and for a ScaledJob one job.
        assert_eq!((decision.value / decision.target).ceil(), 1.0);
        // What comes due may be of any priority.
        let mut delayed = mixed(0, 2003);
        (delayed.depth.delayed, delayed.depth.next_delayed) = (1, Some(at(500)));
        assert_eq!(decide(&delayed, &never, at(7)).wakes_at, Some(at(490)));
        assert!(decide(&delayed, &never, at(490)).active);
        assert!(decide(&mixed(1, 2003), &never, NOW).active);
        assert!(decide(&mixed(1, 2003), &never, NOW).value < 1.0);
        // In whatever mode.
        let jobs = Trigger { mode: modes()[0], ..never.clone() };
        assert!(!decide(&mixed(0, 2003), &jobs, at(86_400)).active);
        // Of a broker that tells no priorities all jobs count.
        let mut untold = mixed(0, 2003);
        untold.depth.ready_by_priority = None;
        let decision = decide(&untold, &never, NOW);
        assert_eq!(decision.why, Why::Ready(2003));
        assert!(decision.value > 1.0 && decision.basis.to_string().contains("tells no priorities"));
    }

    #[test]
    fn a_job_that_counts_is_as_old_as_the_oldest_until_it_is_known_to_be_younger() {
        let activation = Activation { jobs: 9, ..without_low(None).activation };
        let trigger = Trigger { activation, ..without_low(None) };
        let mut snapshot = mixed(1, 2003);
        assert_eq!(decide(&snapshot, &trigger, at(299)).why, Why::BelowActivation(2004));
        assert!(decide(&snapshot, &trigger, at(300)).active);
        snapshot.learned.without_low.waiting_since = Some(at(1000));
        assert_eq!(decide(&snapshot, &trigger, at(1299)).why, Why::BelowActivation(2004));
        assert_eq!(decide(&snapshot, &trigger, at(1299)).wakes_at, Some(at(1300)));
        assert!(decide(&snapshot, &trigger, at(1300)).active);
    }

    #[test]
    fn jobs_that_are_left_out_keep_a_pool_up_only_while_it_works() {
        let trigger = without_low(None);
        let mut snapshot = mixed(0, 2003);
        snapshot.workers.push(crate::kit::worker(Phase::Idle, 0));
        snapshot.learned.last_work = Some(at(86_400));
        snapshot.learned.without_low.last_work = Some(NOW);
        let why = |snapshot: &Snapshot, seconds| decide(snapshot, &trigger, at(seconds)).why;
        assert_eq!(why(&snapshot, 299), Why::AwakeAlready(2003));
        assert_eq!(why(&snapshot, 300), Why::LeftOut { ready: 2003, wait: None });
        snapshot.workers[0].phase = Phase::Starting;
        assert_eq!(why(&snapshot, 299), Why::Starting(1));
        assert_eq!(why(&snapshot, 300), Why::LeftOut { ready: 2003, wait: None });
        // What runs is never given up, whatever it is.
        snapshot.workers[0] = crate::kit::worker(Phase::Busy, 3);
        assert_eq!(why(&snapshot, 86_400), Why::InFlight(3));
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
        // What is still to come is work, where nobody tells when.
        snapshot.depth.delayed = 1;
        assert_eq!(why(&snapshot, 86_400), Why::Starting(2));
    }

    #[test]
    fn a_job_that_is_far_away_does_not_keep_a_pool_up_whose_worker_never_gets_ready() {
        let mut snapshot = queue(0, 0, &[(Phase::Starting, 0)]);
        (snapshot.depth.delayed, snapshot.depth.next_delayed) = (1, Some(at(43_200)));
        let decision = |snapshot: &Snapshot, seconds| decide(snapshot, &patient(0), at(seconds));
        for seconds in [0, 300, 42_899] {
            assert_eq!(decision(&snapshot, seconds).why, Why::Empty, "{seconds} s");
        }
        // By the time it is due the worker may be ready.
        assert_eq!(decision(&snapshot, 0).wakes_at, Some(at(42_900)));
        assert_eq!(decision(&snapshot, 42_900).why, Why::Starting(1));
        // A model that takes long to load has as much more time.
        snapshot.learned.cold_start = Some(200.0);
        assert_eq!(decision(&snapshot, 42_600).why, Why::Starting(1));
        assert_eq!(decision(&snapshot, 42_599).why, Why::Empty);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_ready_job_waits_longer_than_it_may(s in snapshots(), t in triggers()) {
            let seen = [s.learned.waiting_since, s.learned.without_low.waiting_since];
            let since = s.depth.oldest_ready.into_iter().chain(seen.into_iter().flatten()).max();
            let late = since.map_or(NOW, |since| since + t.activation.wait);
            let decision = decide(&s, &t, late);
            assert!(decision.active || asking(&s, &t) == 0, "{decision:?}");
            let n_left_out = s.depth.ready - asking(&s, &t);
            if let (1.., Low::LeftOut { wait: Some(wait) }) = (n_left_out, t.low) {
                let late = since.map_or(NOW, |since| since + wait);
                assert!(decide(&s, &t, late).active, "{decision:?}");
            }
        }

        #[test]
        fn a_pool_that_is_up_is_never_put_to_sleep_while_anything_is_to_be_done(
            s in snapshots(), t in triggers(),
        ) {
            let up = s.workers.iter().any(|w| w.phase != Phase::Draining);
            let is_soon = s.depth.next_delayed.is_none_or(|due| due <= at(300));
            let starts = s.workers.iter().any(|w| w.phase == Phase::Starting)
                && (s.depth.delayed > 0 && is_soon || s.learned.last_work.is_some());
            let runs = s.depth.in_flight > 0 || s.workers.iter().any(|w| w.in_flight > 0);
            let active = decide(&s, &t, NOW).active;
            assert!(active || !(runs || starts || up && asking(&s, &t) > 0));
        }

        #[test]
        fn without_options_a_pool_is_active_exactly_when_there_is_work_or_a_start_for_it(
            mut s in snapshots(), mut t in triggers(),
        ) {
            s.depth.delayed = 0;
            (t.activation, t.low) = (trigger(t.mode).activation, Low::Counts);
            // No moment of the strategy is longer ago than a start may be.
            let starts = s.workers.iter().any(|w| w.phase == Phase::Starting)
                && s.learned.last_work.is_some();
            let runs = s.depth.in_flight > 0 || s.workers.iter().any(|w| w.in_flight > 0);
            prop_assert_eq!(decide(&s, &t, NOW).active, runs || starts || s.depth.ready > 0);
        }
    }
}
