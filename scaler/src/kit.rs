//! Queues, workers and triggers for the tests of what is pure.

use std::time::Duration;

use ebb_queue::{BatchTime, ByPriority, Depth, Phase, Priority, Source, Timestamp, WorkerStatus};
use proptest::option;
use proptest::prelude::{any, prop_oneof};
use proptest::strategy::{Just, Strategy};

use crate::learn::{Arrivals, Evidence, Inflow, Learned, Recent};
use crate::snapshot::Snapshot;
use crate::trigger::{Activation, Low, Mode, Priors, Trigger};

pub(crate) const NOW: Timestamp = Timestamp::UNIX_EPOCH;

pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::new(seconds, 0).unwrap()
}

pub(crate) fn trigger(mode: Mode) -> Trigger {
    Trigger {
        source: Source::Queue("jobs".into()),
        profile: None,
        mode,
        priors: Priors {
            slots: 1.0,
            service: Duration::from_secs(1),
            cold_start: Duration::from_secs(10),
            least_cold_start: Duration::ZERO,
        },
        activation: Activation {
            jobs: 0,
            wait: Duration::from_secs(300),
            priority: Priority::Low,
            linger: Duration::ZERO,
        },
        low: Low::Counts,
    }
}

/// One trigger of each mode.
pub(crate) fn modes() -> [Mode; 5] {
    let within = Duration::from_secs(60);
    [
        Mode::Jobs { per_replica: 4.0 },
        Mode::Waiting { per_replica: 4.0 },
        Mode::Drain { within },
        Mode::Slo { within, utilization: 0.9 },
        Mode::Cost { per_replica: 100.0, per_job: 1.0 },
    ]
}

pub(crate) fn worker(phase: Phase, in_flight: u64) -> WorkerStatus {
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
        first_result: None,
        model: "echo".into(),
        at: NOW,
    }
}

pub(crate) fn queue(ready: u64, in_flight: u64, workers: &[(Phase, u64)]) -> Snapshot {
    let workers = workers.iter().map(|(phase, n)| worker(*phase, *n)).collect();
    let oldest_ready = (ready > 0).then_some(NOW);
    let depth = Depth { ready, in_flight, oldest_ready, ..Depth::empty(NOW) };
    Snapshot { depth, workers, learned: Learned::default() }
}

pub(crate) fn phases() -> impl Strategy<Value = Phase> {
    prop_oneof![Just(Phase::Starting), Just(Phase::Idle), Just(Phase::Busy), Just(Phase::Draining)]
}

/// Mostly small, sometimes absurd.
pub(crate) fn counts() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..20u64, 1 => any::<u64>()]
}

/// Mostly sensible, sometimes what no clock and no division should give.
pub(crate) fn figures() -> impl Strategy<Value = f64> {
    prop_oneof![4 => 0.0..100.0, 1 => any::<f64>()]
}

fn moments() -> impl Strategy<Value = Option<Timestamp>> {
    option::of((-100..100i64).prop_map(at))
}

fn evidence() -> impl Strategy<Value = Evidence> {
    (0.0..1e12, 0.0..1e12).prop_map(|(jobs, seconds)| Evidence { jobs, seconds })
}

/// Jobs that came in spurts, now and then more than ever wait.
fn recent() -> impl Strategy<Value = Recent> {
    let spurt = prop_oneof![3 => Just(0.0), 4 => 0.0..20.0, 1 => 0.0..1e9];
    proptest::collection::vec(spurt, 0..24).prop_map(|spurts| Recent::of(&spurts))
}

pub(crate) fn learned() -> impl Strategy<Value = Learned> {
    let pace = (evidence(), evidence(), option::of(0.0..1e6), option::of(1.0..1e6));
    let rates = (0.0..1e9, 0.0..1e9, recent());
    let without_low = (0.0..1e9, recent(), moments(), moments());
    let without_low = without_low.prop_map(|(rate, recent, waiting_since, last_work)| Inflow {
        arrivals: Arrivals { fast: rate, slow: rate },
        recent,
        waiting_since,
        last_work,
    });
    let rest = (option::of(0.0..1e6), rates, moments(), moments(), without_low);
    (pace, rest).prop_map(|(pace, rest)| {
        let (throughput, service, fitted, slots) = pace;
        let (cold_start, (fast, slow, recent), waiting_since, last_work, without_low) = rest;
        // Where one of those waits, one of all does, as long at least.
        let of_those = without_low.waiting_since;
        let waiting_since =
            of_those.map_or(waiting_since, |that| waiting_since.min(Some(that)).or(Some(that)));
        Learned {
            throughput,
            service,
            fitted,
            slots,
            cold_start,
            arrivals: Arrivals { fast, slow },
            recent,
            waiting_since,
            last_work,
            without_low,
        }
    })
}

pub(crate) fn workers() -> impl Strategy<Value = Vec<WorkerStatus>> {
    let time = || (figures(), figures(), figures());
    let one = (phases(), counts(), counts(), counts(), option::of(time()), option::of(figures()));
    let one = one.prop_map(|(phase, in_flight, slots, completed, time, cold)| WorkerStatus {
        slots,
        completed,
        batch_time: time.map(|(base, per_cost, per_job)| BatchTime { base, per_cost, per_job }),
        cold_start: cold.map(|seconds| ("weights".to_owned(), seconds)).into_iter().collect(),
        ..worker(phase, in_flight)
    });
    proptest::collection::vec(one, 0..4).prop_map(|mut workers| {
        for (nth, worker) in workers.iter_mut().enumerate() {
            worker.id = format!("w{nth}");
        }
        workers
    })
}

pub(crate) fn snapshots() -> impl Strategy<Value = Snapshot> {
    let by = option::of((counts(), counts(), counts()));
    let by = by.prop_map(|by| by.map(|(high, normal, low)| ByPriority { high, normal, low }));
    let due = (moments(), moments());
    let depth = (counts(), counts(), counts(), moments(), due, moments(), by, figures());
    (depth, workers(), learned()).prop_map(|(depth, workers, learned)| {
        let (ready, in_flight, delayed, oldest, due, deadline, by, cost) = depth;
        let (next_delayed, lease_ends) = due;
        let depth = Depth {
            ready,
            in_flight,
            delayed,
            oldest_ready: oldest.filter(|_| ready > 0),
            next_due: next_delayed.into_iter().chain(lease_ends).min(),
            next_delayed,
            cost: (cost > 0.0).then_some(cost),
            ready_by_priority: by.map(|by| fitting(by, ready)),
            first_deadline: deadline.filter(|_| ready > 0),
            ..Depth::empty(NOW)
        };
        Snapshot { depth, workers, learned }
    })
}

/// The ready jobs that a trigger does not leave out.
pub(crate) fn asking(snapshot: &Snapshot, trigger: &Trigger) -> u64 {
    let low = snapshot.depth.ready_by_priority.map_or(0, |by| by.low);
    snapshot.depth.ready - if trigger.low == Low::Counts { 0 } else { low }
}

/// Counts that add up to what is ready.
fn fitting(by: ByPriority, ready: u64) -> ByPriority {
    let high = by.high.min(ready);
    let low = by.low.min(ready - high);
    ByPriority { high, low, normal: ready - high - low }
}

pub(crate) fn triggers() -> impl Strategy<Value = Trigger> {
    let millis = || (1..86_400_000u64).prop_map(Duration::from_millis);
    let figure = || 0.001..1e9;
    let mode = prop_oneof![
        figure().prop_map(|per_replica| Mode::Jobs { per_replica }),
        figure().prop_map(|per_replica| Mode::Waiting { per_replica }),
        millis().prop_map(|within| Mode::Drain { within }),
        (millis(), 0.1..1.0).prop_map(|(within, utilization)| Mode::Slo { within, utilization }),
        (figure(), figure()).prop_map(|(per_replica, per_job)| Mode::Cost { per_replica, per_job }),
    ];
    let priors = (figure(), millis(), millis(), any::<bool>());
    let priorities =
        || prop_oneof![Just(Priority::Low), Just(Priority::Normal), Just(Priority::High)];
    let activation = (counts(), millis(), priorities(), any::<bool>());
    let low =
        prop_oneof![Just(Low::Counts), option::of(millis()).prop_map(|wait| Low::LeftOut { wait })];
    (mode, priors, activation, low).prop_map(|(mode, priors, activation, low)| {
        let (slots, service, cold_start, is_given) = priors;
        let least_cold_start = if is_given { cold_start } else { Duration::ZERO };
        let (jobs, wait, priority, lingers) = activation;
        let linger = if lingers { wait } else { Duration::ZERO };
        Trigger {
            priors: Priors { slots, service, cold_start, least_cold_start },
            activation: Activation { jobs, wait, priority, linger },
            low,
            ..trigger(mode)
        }
    })
}
