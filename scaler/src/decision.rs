//! From a [`Snapshot`] and a [`Trigger`] to what KEDA is told. No clock, no task and no log in
//! here: time comes in as an argument.

use ebb_queue::Timestamp;

use crate::activation::{Why, wake};
use crate::learn::Pace;
use crate::snapshot::{Jobs, Known, Snapshot, ahead, counted};
use crate::trigger::{Mode, Trigger};
use crate::value::{Basis, value};

/// What KEDA is told for one trigger.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decision {
    /// Whether the pool may not be at zero.
    pub active: bool,
    /// The value of the metric: never negative, always finite, no more than a million replicas are
    /// to have, and 0 or what Kubernetes does not round to 0.
    pub value: f64,
    /// What one replica is to have of it.
    pub target: f64,
    /// Why the pool is active or not.
    pub why: Why,
    /// What the value is made of.
    pub basis: Basis,
    /// The next moment at which time alone may make an inactive pool active.
    pub wakes_at: Option<Timestamp>,
    /// When time alone makes a pool inactive that only lingers.
    pub rests_at: Option<Timestamp>,
}

/// Decides what KEDA is told.
///
/// # Behavior
/// - More jobs in any state that counts never make the value smaller or an active pool inactive.
/// - Jobs held by any worker, a draining one too, keep the pool active; so does a starting worker
///   while there is work, and for a while after the last.
/// - What draining workers hold asks for no replacement.
/// - The options of activation hold back only a pool at zero, and no job longer than
///   `activationWait` from the moment at which it was seen to be ready.
/// - Ready jobs that the trigger leaves out ask for no replica, and wake no pool before their own
///   wait is over. A job in flight counts, whatever its priority: nobody tells it.
/// - A delayed job counts as ready from the moment it is due; in mode `slo` the one that is due
///   next counts a cold start earlier, and only that one, since brokers tell of no other.
///
/// # Formulas
/// With `w` jobs ready, `b` in flight on workers that stay, `x` jobs per second of a loaded
/// replica and `c` slots, the latter two as in [`Pace`]:
/// - `jobs`: `w + b`. `waiting`: `w`. Targets: jobs per replica.
/// - `drain`: `(w + b) / x` seconds of one replica's work; target: the seconds it may take. This is
///   the backlog per instance of AWS's guidance for scaling on SQS, with the acceptable latency as
///   the target.
/// - `slo`: replicas, the largest of what the jobs of each age and older need before the youngest
///   of them is late, `b / c * exp(-15 / s)` with `s` seconds a job, and what the arrivals need at
///   the wanted utilisation; target 1. See [`Basis::Slo`].
/// - `cost`: the broker's sum of the hints, or `w + b` times the cost of a job if that is more;
///   what draining workers hold is taken off in proportion. Target: cost per replica.
#[must_use]
pub fn decide(snapshot: &Snapshot, trigger: &Trigger, now: Timestamp) -> Decision {
    let counted = counted(snapshot, trigger.low);
    let n_left_out = snapshot.depth.ready - counted.depth.ready;
    // Only an objective can do without a part of the jobs: other modes are about all of them.
    let sized = if matches!(trigger.mode, Mode::Slo { .. }) { &*counted } else { snapshot };
    let pace = Pace::of(&sized.learned, &trigger.priors);
    let at = now + ahead(trigger, &pace);
    let jobs = Jobs::count(snapshot, at);
    let known = Known { all: snapshot, counted: &counted, jobs: &jobs, n_left_out };
    let (why, wakes_at) = wake(&known, trigger, &pace, now);
    let (value, basis) = value(sized, &Jobs::count(sized, at), trigger, &pace, now);
    // What is left out asks for the one replica that a pool has which is up.
    let is_for_left_out = n_left_out > 0 && why.is_active();
    let is_zero = value == 0.0 && !is_for_left_out;
    let target = trigger.target();
    let value = if is_zero { 0.0 } else { value.min(target * MOST_REPLICAS).max(LEAST) };
    let basis = basis.leaving_out(snapshot, trigger.low);
    let last = counted.learned.last_work.filter(|_| why == Why::Lingering);
    let rests_at = last.and_then(|last| last.checked_add(trigger.activation.linger).ok());
    Decision { active: why.is_active(), value, target, why, basis, wakes_at, rests_at }
}

/// KEDA hands metrics on in thousandths: less would be nothing, and a ScaledJob start nothing.
const LEAST: f64 = 0.001;

/// More than any pool may have. The HPA counts replicas in 32 bits, and beyond them takes the fewest
/// that it may have; KEDA counts thousandths of the value in 64.
const MOST_REPLICAS: f64 = 1e6;

/// The same figure for clients that read only whole numbers; 0 only where the figure is 0.
#[must_use]
pub fn whole(figure: f64) -> i64 {
    figure.ceil() as i64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ebb_queue::{ByPriority, Depth, Phase, Timestamp};
    use proptest::option;
    use proptest::prelude::{ProptestConfig, prop_assert, prop_assert_eq, proptest};

    use super::{LEAST, decide, whole};
    use crate::kit::{NOW, asking, at, modes, queue, snapshots, trigger, triggers};
    use crate::learn::{Inflow, Learned};
    use crate::snapshot::Snapshot;
    use crate::trigger::{Low, Mode, Trigger};

    const JOBS: Mode = Mode::Jobs { per_replica: 4.0 };
    const WAITING: Mode = Mode::Waiting { per_replica: 4.0 };

    #[test]
    fn what_a_draining_worker_holds_asks_for_no_replacement() {
        let value = |mode, snapshot: &Snapshot| decide(snapshot, &trigger(mode), NOW).value;
        let draining = queue(5, 8, &[(Phase::Busy, 4), (Phase::Draining, 4)]);
        assert_eq!(value(JOBS, &draining), 9.0);
        assert_eq!(value(WAITING, &draining), 5.0);
        // The draining worker's word is older than the look at the broker.
        let stale = queue(0, 3, &[(Phase::Busy, 3), (Phase::Draining, 8)]);
        assert_eq!(value(JOBS, &stale), 3.0);
        for mode in modes() {
            let leaving = queue(0, 4, &[(Phase::Draining, 4)]);
            assert_eq!(value(mode, &leaving), 0.0, "{mode}");
            assert!(decide(&leaving, &trigger(mode), NOW).active);
        }
    }

    #[test]
    fn a_delayed_job_counts_from_the_moment_it_is_due_and_for_an_objective_a_cold_start_sooner() {
        let due = NOW + Duration::from_secs(15);
        let depth = Depth { delayed: 2, next_delayed: Some(due), ..Depth::empty(NOW) };
        let snapshot = Snapshot { depth, workers: Vec::new(), learned: Learned::default() };
        for mode in modes() {
            let at = |now| decide(&snapshot, &trigger(mode), now);
            let counts = match mode {
                Mode::Slo { .. } => due - Duration::from_secs(10),
                _ => due,
            };
            let before = at(counts - Duration::from_millis(1));
            assert_eq!((before.active, before.value), (false, 0.0));
            assert_eq!(before.wakes_at, Some(counts));
            assert!(at(counts).active && at(counts).value > 0.0);
        }
    }

    #[test]
    fn a_lease_that_ends_is_no_job_that_comes_due() {
        // Within a cold start of the look, and renewed again and again; the delayed job is far away.
        let lease_ends = NOW + Duration::from_secs(5);
        let far = NOW + Duration::from_secs(36_000);
        for mode in modes() {
            let trigger = trigger(mode);
            let alone = queue(0, 1, &[(Phase::Busy, 1)]);
            let mut beside = alone.clone();
            beside.depth.delayed = 1;
            (beside.depth.next_due, beside.depth.next_delayed) = (Some(lease_ends), Some(far));
            for seconds in [0, 5, 6] {
                let of = |snapshot: &Snapshot| decide(snapshot, &trigger, at(seconds)).value;
                assert_eq!(of(&beside), of(&alone), "{mode} after {seconds} s");
            }
        }
    }

    #[test]
    fn no_cost_asks_for_more_replicas_than_an_autoscaler_can_count() {
        let mut dear = queue(3, 0, &[]);
        dear.depth.cost = Some(3e9);
        let trigger = trigger(Mode::Cost { per_replica: 1.0, per_job: 1.0 });
        assert_eq!(decide(&dear, &trigger, NOW).value, 1e6);
        dear.depth.cost = Some(3e18);
        assert_eq!(decide(&dear, &trigger, NOW).value, 1e6);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn figures_are_ones_that_kubernetes_takes(s in snapshots(), t in triggers()) {
            let decision = decide(&s, &t, NOW);
            prop_assert!(decision.value.is_finite() && decision.value >= 0.0, "{:?}", decision);
            prop_assert!(decision.target.is_finite() && decision.target > 0.0);
            for figure in [decision.value, decision.target] {
                let thousandths = (figure * 1000.0).round();
                prop_assert_eq!(thousandths == 0.0, figure == 0.0);
                let int = whole(figure);
                prop_assert_eq!(int == 0, figure == 0.0);
                prop_assert!(int >= 0 && (int == i64::MAX || int as f64 >= figure));
                prop_assert!(int as f64 - figure <= 1.0 || figure > 1e15);
            }
            let replicas = (decision.value / decision.target).ceil();
            prop_assert!(replicas <= f64::from(i32::MAX), "{:?}", decision);
            let thousandths = decision.value * 1000.0;
            prop_assert!(thousandths < i64::MAX as f64, "{:?}", decision);
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
            prop_assert!(after.value >= before.value * (1.0 - 1e-12), "{:?} {:?}", before, after);
            prop_assert!(after.active || !before.active);
        }

        #[test]
        fn work_that_waits_never_counts_for_nothing(s in snapshots(), t in triggers()) {
            let decision = decide(&s, &t, NOW);
            let held = s.depth.in_flight > 0 || s.workers.iter().any(|w| w.in_flight > 0);
            let waits = if decision.active { s.depth.ready } else { asking(&s, &t) };
            prop_assert!(waits == 0 || decision.value > 0.0, "{:?}", decision);
            prop_assert!(!held || decision.active);
        }

        #[test]
        fn jobs_of_low_priority_never_raise_an_objective_that_is_not_for_them(
            s in snapshots(), t in triggers(), n in 1..1_000_000u64, wait in option::of(1..9u64),
        ) {
            let low = Low::LeftOut { wait: wait.map(Duration::from_secs) };
            let mode = Mode::Slo { within: Duration::from_secs(60), utilization: 0.5 };
            let mut t = Trigger { mode, low, ..t };
            // Both are `activationWait` where that is given, so none that counts waits longer.
            t.activation.wait = wait.map_or(t.activation.wait, Duration::from_secs);
            // Who looked at jobs that wait has seen since when they do.
            let mut s = s;
            if s.depth.ready > 0 {
                let that = *s.learned.without_low.waiting_since.get_or_insert(s.depth.as_of);
                let all = &mut s.learned.waiting_since;
                *all = Some(all.map_or(that, |all| all.min(that)));
            }
            let mut with = s.clone();
            with.depth.ready = with.depth.ready.saturating_add(n);
            let by = s.depth.ready_by_priority.unwrap_or(ByPriority { normal: s.depth.ready, ..Default::default() });
            let more = with.depth.ready - s.depth.ready;
            with.depth.ready_by_priority = Some(ByPriority { low: by.low + more, ..by });
            let (before, after) = (decide(&s, &t, at(10)), decide(&with, &t, at(10)));
            prop_assert!(after.value <= before.value.max(LEAST), "{:?} {:?}", before, after);
            prop_assert!(after.value >= before.value && (after.active || !before.active));
            // One of them that counts after all never asks for less.
            with.depth.ready_by_priority = Some(ByPriority { normal: by.normal + more, ..by });
            with.learned.without_low.waiting_since = with.learned.waiting_since;
            let counts = decide(&with, &t, at(10));
            prop_assert!(counts.value >= after.value && (counts.active || !after.active), "{:?} {:?}", counts, after);
        }

        #[test]
        fn by_default_priorities_say_nothing_about_a_value(s in snapshots(), mut t in triggers()) {
            t.low = Low::Counts;
            let mut untold = s.clone();
            untold.depth.ready_by_priority = None;
            untold.learned.without_low = Inflow::default();
            prop_assert_eq!(decide(&s, &t, NOW).value, decide(&untold, &t, NOW).value);
            // And where all are of another, nothing is left out.
            let mut all = s.clone();
            all.depth.ready_by_priority = None;
            let Learned { arrivals, recent, waiting_since, last_work, .. } = s.learned;
            all.learned.without_low = Inflow { arrivals, recent, waiting_since, last_work };
            let left_out = Trigger { low: Low::LeftOut { wait: None }, ..t.clone() };
            let (same, other) = (decide(&all, &t, NOW), decide(&all, &left_out, NOW));
            prop_assert_eq!((same.active, same.value), (other.active, other.value));
        }

        #[test]
        fn what_a_busy_worker_takes_with_it_asks_for_no_more(s in snapshots(), t in triggers()) {
            let mut draining = s.clone();
            for worker in draining.workers.iter_mut().filter(|w| w.phase == Phase::Busy) {
                worker.phase = Phase::Draining;
            }
            // A broker that counts what is in flight: what its workers hold, and no less.
            let held = s.workers.iter().fold(0u64, |sum, w| sum.saturating_add(w.in_flight));
            let (mut s, in_flight) = (s, held);
            (s.depth.in_flight, draining.depth.in_flight) = (in_flight, in_flight);
            let (stays, goes) = (decide(&s, &t, NOW), decide(&draining, &t, NOW));
            if !matches!(t.mode, Mode::Slo { .. }) {
                prop_assert!(goes.value <= stays.value);
            }
        }

        #[test]
        fn time_alone_never_puts_a_pool_to_sleep(
            s in snapshots(), mut t in triggers(), later in 0..100i64,
        ) {
            t.activation.linger = Duration::ZERO;
            let before = decide(&s, &t, NOW);
            let after = decide(&s, &t, Timestamp::new(later, 0).unwrap());
            prop_assert!(after.active || !before.active);
            prop_assert!(after.value >= before.value, "{:?} {:?}", before, after);
        }

        #[test]
        fn a_pool_that_lingers_rests_at_the_moment_that_was_told(
            s in snapshots(), t in triggers(),
        ) {
            let before = decide(&s, &t, NOW);
            prop_assert_eq!(before.rests_at.is_some(), before.why == crate::activation::Why::Lingering);
            if let Some(at) = before.rests_at {
                prop_assert!(at > NOW);
                let after = decide(&s, &t, at);
                prop_assert!(after.rests_at.is_none(), "{:?}", after);
            }
        }

        #[test]
        fn a_pool_wakes_at_the_moment_that_was_told(s in snapshots(), t in triggers()) {
            let before = decide(&s, &t, NOW);
            prop_assert!(before.wakes_at.is_some() || before.active || asking(&s, &t) == 0);
            if let Some(at) = before.wakes_at {
                prop_assert!(!before.active && at > NOW);
                let after = decide(&s, &t, at);
                // A job that has come due may be one of too few, and waits from then on.
                prop_assert!(after.active || after.wakes_at.is_some_and(|next| next > at));
            }
        }

        #[test]
        fn no_pool_wakes_before_the_moment_that_was_told(
            s in snapshots(), t in triggers(), later in 0..100_000i64,
        ) {
            let (before, then) = (decide(&s, &t, NOW), Timestamp::from_millisecond(later).unwrap());
            let is_told = before.wakes_at.is_some_and(|at| at <= then);
            prop_assert!(before.active || is_told || !decide(&s, &t, then).active, "{:?}", before);
        }
    }
}
