//! From a [`Snapshot`] and a [`Trigger`] to what KEDA is told. No clock, no task and no log in
//! here: time comes in as an argument.

use std::fmt;

use ebb_queue::{Depth, Phase, Timestamp, WorkerStatus};

use crate::trigger::{Mode, Trigger};

/// All that is known of a queue at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Its jobs by state.
    pub depth: Depth,
    /// Its workers, as far as they report.
    pub workers: Vec<WorkerStatus>,
}

/// What KEDA is told for one trigger.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decision {
    /// Whether the pool may not be at zero.
    pub active: bool,
    /// The value of the metric: never negative, always finite.
    pub value: f64,
    /// What one replica is to have of it.
    pub target: f64,
    /// Why the pool is active or not.
    pub why: Why,
}

/// Why a pool is active or not; the first that holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Active: workers hold jobs, and dropping to zero would kill them.
    InFlight(u64),
    /// Active: workers are loading their model.
    Starting(u64),
    /// Active: more jobs are ready than it takes to wake the pool.
    Ready(u64),
    /// Active: jobs are ready, too few to wake a pool but not to keep one up.
    AwakeAlready(u64),
    /// Inactive: jobs are ready, but too few to wake the pool.
    BelowActivation(u64),
    /// Inactive: there is nothing to do.
    Empty,
}

/// Decides what KEDA is told.
///
/// # Behavior
/// - More jobs in any state that counts never make the value smaller or an active pool inactive.
/// - Jobs held by any worker, a draining one too, keep the pool active; so does a starting worker.
/// - `activation_jobs` holds back only a pool at zero.
#[must_use]
pub fn decide(snapshot: &Snapshot, trigger: &Trigger, now: Timestamp) -> Decision {
    let jobs = Jobs::count(snapshot, now);
    let value = match trigger.mode {
        Mode::Jobs => jobs.ready.saturating_add(jobs.in_flight_staying),
        Mode::Waiting => jobs.ready,
    };
    let starting = snapshot.workers.iter().filter(|w| w.phase == Phase::Starting).count() as u64;
    let awake = snapshot.workers.iter().any(|worker| worker.phase != Phase::Draining);
    let why = match jobs.ready {
        _ if jobs.in_flight > 0 => Why::InFlight(jobs.in_flight),
        _ if starting > 0 => Why::Starting(starting),
        ready if ready > trigger.activation_jobs => Why::Ready(ready),
        0 => Why::Empty,
        ready if awake => Why::AwakeAlready(ready),
        ready => Why::BelowActivation(ready),
    };
    Decision { active: why.is_active(), value: value as f64, target: trigger.target(), why }
}

/// The same figure for clients that read only whole numbers; 0 only where the figure is 0.
#[must_use]
pub fn whole(figure: f64) -> i64 {
    figure.ceil() as i64
}

impl Why {
    fn is_active(self) -> bool {
        !matches!(self, Self::BelowActivation(_) | Self::Empty)
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InFlight(n) => write!(f, "active: {n} in flight"),
            Self::Starting(n) => write!(f, "active: {n} workers are starting"),
            Self::Ready(n) => write!(f, "active: {n} ready"),
            Self::AwakeAlready(n) => write!(f, "active: {n} ready and workers are up"),
            Self::BelowActivation(n) => write!(f, "inactive: only {n} ready"),
            Self::Empty => f.write_str("inactive: nothing is ready or in flight"),
        }
    }
}

/// The jobs of a snapshot as they are now.
struct Jobs {
    ready: u64,
    /// Held by anybody.
    in_flight: u64,
    /// The part that does not go away with a draining worker.
    in_flight_staying: u64,
}

impl Jobs {
    fn count(snapshot: &Snapshot, now: Timestamp) -> Self {
        let depth = &snapshot.depth;
        let held = |draining: bool| {
            let workers = snapshot.workers.iter();
            let those = workers.filter(|worker| (worker.phase == Phase::Draining) == draining);
            those.fold(0u64, |sum, worker| sum.saturating_add(worker.in_flight))
        };
        let (staying, draining) = (held(false), held(true));
        // One may have come due since the look. If it was a lease, one job counts twice until the
        // next look: better than not at all.
        let came_due = depth.delayed > 0 && depth.next_due.is_some_and(|due| due <= now);
        Self {
            ready: depth.ready.saturating_add(came_due.into()),
            // Not every broker tells what is in flight: the workers then do.
            in_flight: depth.in_flight.max(staying.saturating_add(draining)),
            in_flight_staying: depth.in_flight.saturating_sub(draining).max(staying),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ebb_queue::{Depth, Phase, Timestamp, WorkerStatus};
    use proptest::prelude::{
        ProptestConfig, any, prop_assert, prop_assert_eq, prop_oneof, proptest,
    };
    use proptest::strategy::{Just, Strategy};

    use super::{Snapshot, Why, decide, whole};
    use crate::trigger::{Mode, Trigger};

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn trigger(mode: Mode, activation_jobs: u64) -> Trigger {
        Trigger { queue: "jobs".into(), mode, jobs_per_replica: 4.0, activation_jobs }
    }

    fn worker(phase: Phase, in_flight: u64) -> WorkerStatus {
        WorkerStatus {
            id: "w".into(),
            pod: "p".into(),
            phase,
            in_flight,
            slots: 8,
            completed: 0,
            failed: 0,
            batch_time: None,
            cold_start: Vec::new(),
            model: "echo".into(),
            at: NOW,
        }
    }

    fn queue(ready: u64, in_flight: u64, workers: &[(Phase, u64)]) -> Snapshot {
        let workers = workers.iter().map(|(phase, n)| worker(*phase, *n)).collect();
        Snapshot { depth: Depth { ready, in_flight, ..Depth::empty(NOW) }, workers }
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
        for (snapshot, why) in cases {
            for mode in [Mode::Jobs, Mode::Waiting] {
                let decision = decide(&snapshot, &trigger(mode, 3), NOW);
                assert_eq!(decision.why, why, "{snapshot:?}");
                assert_eq!(decision.active, why.to_string().starts_with("active"), "{why}");
            }
        }
    }

    #[test]
    fn what_a_draining_worker_holds_asks_for_no_replacement() {
        let value = |mode, snapshot: &Snapshot| decide(snapshot, &trigger(mode, 0), NOW).value;
        let draining = queue(5, 8, &[(Phase::Busy, 4), (Phase::Draining, 4)]);
        assert_eq!(value(Mode::Jobs, &draining), 9.0);
        assert_eq!(value(Mode::Waiting, &draining), 5.0);
        // The draining worker's word is older than the look at the broker.
        let stale = queue(0, 3, &[(Phase::Busy, 3), (Phase::Draining, 8)]);
        assert_eq!(value(Mode::Jobs, &stale), 3.0);
    }

    #[test]
    fn a_delayed_job_counts_from_the_moment_it_is_due() {
        let due = NOW + Duration::from_secs(5);
        let depth = Depth { delayed: 2, next_due: Some(due), ..Depth::empty(NOW) };
        let snapshot = Snapshot { depth, workers: Vec::new() };
        let at = |now| decide(&snapshot, &trigger(Mode::Waiting, 0), now);
        let before = at(due - Duration::from_millis(1));
        assert_eq!((before.active, before.value), (false, 0.0));
        assert_eq!((at(due).active, at(due).value), (true, 1.0));
    }

    fn phases() -> impl Strategy<Value = Phase> {
        prop_oneof![
            Just(Phase::Starting),
            Just(Phase::Idle),
            Just(Phase::Busy),
            Just(Phase::Draining),
        ]
    }

    /// Mostly small, sometimes absurd.
    fn counts() -> impl Strategy<Value = u64> {
        prop_oneof![4 => 0..20u64, 1 => any::<u64>()]
    }

    fn snapshots() -> impl Strategy<Value = Snapshot> {
        let workers = proptest::collection::vec((phases(), counts()), 0..4);
        let due = proptest::option::of(-10..10i64);
        (counts(), counts(), counts(), workers, due).prop_map(|(ready, flying, delayed, w, due)| {
            let mut snapshot = queue(ready, flying, &w);
            snapshot.depth.delayed = delayed;
            snapshot.depth.next_due = due.map(|s| Timestamp::new(s, 0).unwrap());
            snapshot
        })
    }

    fn triggers() -> impl Strategy<Value = Trigger> {
        (any::<bool>(), 0.001..1e9, counts()).prop_map(|(waiting, jobs_per_replica, jobs)| {
            let mode = if waiting { Mode::Waiting } else { Mode::Jobs };
            Trigger { jobs_per_replica, ..trigger(mode, jobs) }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn figures_are_ones_that_kubernetes_takes(s in snapshots(), t in triggers()) {
            let decision = decide(&s, &t, NOW);
            prop_assert!(decision.value.is_finite() && decision.value >= 0.0);
            prop_assert!(decision.target.is_finite() && decision.target > 0.0);
            for figure in [decision.value, decision.target] {
                let int = whole(figure);
                prop_assert_eq!(int == 0, figure == 0.0);
                prop_assert!(int >= 0 && (int == i64::MAX || int as f64 >= figure));
                prop_assert!(int as f64 - figure < 1.0 || figure > 1e15);
            }
        }

        #[test]
        fn more_jobs_never_mean_fewer_replicas(
            s in snapshots(), t in triggers(), ready in 0..100u64, in_flight in 0..100u64,
        ) {
            let before = decide(&s, &t, NOW);
            let mut more = s;
            more.depth.ready = more.depth.ready.saturating_add(ready);
            more.depth.in_flight = more.depth.in_flight.saturating_add(in_flight);
            let after = decide(&more, &t, NOW);
            prop_assert!(after.value >= before.value);
            prop_assert!(after.active || !before.active);
        }

        #[test]
        fn active_exactly_when_something_runs_starts_or_waits_enough(
            s in snapshots(), t in triggers(),
        ) {
            let Snapshot { mut depth, workers } = s;
            depth.next_due = None;
            let runs = depth.in_flight > 0 || workers.iter().any(|w| w.in_flight > 0);
            let starts = workers.iter().any(|w| w.phase == Phase::Starting);
            let up = workers.iter().any(|w| w.phase != Phase::Draining);
            let waits = depth.ready > if up { 0 } else { t.activation_jobs };
            let decision = decide(&Snapshot { depth, workers }, &t, NOW);
            prop_assert_eq!(decision.active, runs || starts || waits);
        }

        #[test]
        fn time_alone_never_puts_a_pool_to_sleep(
            s in snapshots(), t in triggers(), later in 0..100i64,
        ) {
            let before = decide(&s, &t, NOW);
            let after = decide(&s, &t, Timestamp::new(later, 0).unwrap());
            prop_assert!(after.active || !before.active);
            prop_assert!(after.value >= before.value);
        }
    }
}
