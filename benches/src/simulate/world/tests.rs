//! The world under policies that a test can follow by hand.

use super::*;
use crate::simulate::trace::{Arrival, Priority};

/// So many pods from the start, and another number from a second on.
struct Fixed(u32, Option<(u64, u32)>);

impl Policy for Fixed {
    fn arrived(&mut self, view: &View<'_>) -> u32 {
        view.wanted
    }

    fn second(&mut self, view: &View<'_>) -> u32 {
        match self.1 {
            Some((second, pods)) if view.now.as_secs() >= second => pods,
            _ => self.0,
        }
    }
}

fn settings() -> Settings {
    Settings {
        cold_start: Duration::from_secs(10),
        overhead: 1.0,
        slots: 2,
        grace: Duration::from_secs(5),
        max_replicas: 4,
        objective: Duration::from_secs(20),
        cooldown: Duration::from_secs(30),
        window: Duration::from_secs(30),
        outage_length: Duration::ZERO,
        away: Away::Broker,
        fallback_replicas: 4,
        seed: 1,
    }
}

fn trace(arrivals: &[(f64, f64)]) -> Trace {
    let arrival = |(at, service): &(f64, f64)| Arrival {
        at: *at,
        service: *service,
        priority: Priority::Normal,
    };
    Trace { name: "made".into(), arrivals: arrivals.iter().map(arrival).collect() }
}

#[test]
fn a_pod_loads_and_then_takes_batches() {
    // Ready at 10 s: two jobs of 2 s and 3 s take 6 s together, and the third one 5 s after them.
    let trace = trace(&[(1.0, 2.0), (2.0, 3.0), (3.0, 4.0)]);
    let outcome = run(settings(), &trace, &mut Fixed(1, Some((22, 0))));
    assert_eq!(outcome.waits(), [9.0, 8.0, 13.0]);
    assert_eq!(outcome.attainment(), 1.0);
    assert_eq!((outcome.gpu_seconds(), outcome.n_starts), (22.0, 1));
}

#[test]
fn a_job_is_late_when_it_ends_too_late_however_soon_it_began() {
    let trace = trace(&[(0.0, 2.0), (0.0, 20.0)]);
    let outcome = run(Settings { slots: 1, ..settings() }, &trace, &mut Fixed(2, Some((60, 0))));
    assert_eq!(outcome.waits(), [10.0, 10.0]);
    assert_eq!(outcome.attainment(), 0.5);
}

#[test]
fn a_draining_pod_gives_back_what_it_has_not_begun_and_finishes_the_rest() {
    // One pod holds four jobs from 10 s on and is told to end at 12 s; the second one starts then.
    let trace = trace(&[(0.0, 2.0); 4]);
    let settings = settings();
    struct Swap;
    impl Policy for Swap {
        fn arrived(&mut self, view: &View<'_>) -> u32 {
            view.wanted
        }
        fn second(&mut self, view: &View<'_>) -> u32 {
            match view.now.as_secs() {
                0..12 => 1,
                12 => 0,
                _ if view.ready + view.in_flight > 0 => 1,
                _ => 0,
            }
        }
    }
    let outcome = run(settings, &trace, &mut Swap);
    // The first batch runs from 10 to 15 s; the others wait for the pod started at 13 s.
    assert_eq!(outcome.waits(), [10.0, 10.0, 23.0, 23.0]);
    assert_eq!((outcome.n_starts, outcome.n_killed), (2, 0));
    // 0 to 15 s, and 13 to 28 s.
    assert_eq!(outcome.gpu_seconds(), 15.0 + 15.0);
}

#[test]
fn what_outlives_the_grace_is_done_again() {
    let trace = trace(&[(0.0, 30.0)]);
    struct Again;
    impl Policy for Again {
        fn arrived(&mut self, view: &View<'_>) -> u32 {
            view.wanted
        }
        fn second(&mut self, view: &View<'_>) -> u32 {
            match view.now.as_secs() {
                12..18 => 0,
                _ => u32::from(view.ready + view.in_flight > 0),
            }
        }
    }
    let outcome = run(settings(), &trace, &mut Again);
    assert_eq!((outcome.n_killed, outcome.n_undone()), (1, 0));
    assert_eq!(outcome.waits(), [28.0]);
}

#[test]
fn a_high_priority_goes_first() {
    let mut trace = trace(&[(0.0, 2.0), (0.0, 2.0), (0.0, 2.0)]);
    trace.arrivals[2].priority = Priority::High;
    let outcome = run(Settings { slots: 1, ..settings() }, &trace, &mut Fixed(1, Some((40, 0))));
    assert_eq!(outcome.waits(), [13.0, 16.0, 10.0]);
}

#[test]
fn what_is_never_done_counts_as_late() {
    let outcome = run(settings(), &trace(&[(0.0, 1.0)]), &mut Fixed(0, None));
    assert_eq!((outcome.attainment(), outcome.n_undone(), outcome.gpu_seconds()), (0.0, 1, 0.0));
    assert!(outcome.waits()[0] >= PATIENCE.as_secs_f64());
}

#[test]
fn a_pod_that_ends_by_itself_does_so_when_it_finds_nothing_to_do() {
    struct Jobs;
    impl Policy for Jobs {
        fn arrived(&mut self, view: &View<'_>) -> u32 {
            view.wanted
        }
        fn second(&mut self, view: &View<'_>) -> u32 {
            if view.now.is_zero() { 2 } else { view.wanted }
        }
        fn pods_end_by_themselves(&self) -> bool {
            true
        }
    }
    let outcome = run(settings(), &trace(&[(1.0, 2.0)]), &mut Jobs);
    // One works until 13 s, and the other finds nothing when it is ready at 10 s.
    assert_eq!((outcome.gpu_seconds(), outcome.n_starts, outcome.n_undone()), (23.0, 2, 0));
}
