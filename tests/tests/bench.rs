//! The promises that `ebb-bench` checks, in a run short enough for every day. No speed is asserted.

#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

use e2e::{Workplace, run};

#[test]
fn nothing_is_lost_or_overwritten_when_workers_are_killed_at_random() {
    let workplace = Workplace::new();
    let args = ["chaos", "--broker", "sqlite", "--jobs", "500", "--kills", "8", "--json"];
    let report = run(&mut workplace.command("ebb-bench", &args), "").ok().json();
    let count = |key: &str| report[key].as_u64().unwrap_or_else(|| panic!("{key} in {report}"));
    assert_eq!(count("enqueued"), 500, "{report}");
    assert_eq!(count("done") + count("dead"), 500, "{report}");
    assert_eq!((count("lost"), count("overwritten")), (0, 0), "{report}");
    assert_eq!(count("kills"), 8, "{report}");
}

#[test]
fn every_arrival_is_told_in_the_process_that_waits_for_it() {
    let workplace = Workplace::new();
    let args = ["notify", "--broker", "sqlite", "--samples", "5", "--json"];
    let report = run(&mut workplace.command("ebb-bench", &args), "").ok().json();
    assert_eq!((&report["samples"], &report["missed"]), (&5.into(), &0.into()), "{report}");
    for key in ["event_p50_ms", "event_p99_ms", "stream_p50_ms", "stream_p99_ms"] {
        // How fast it is says the bench alone on its machine, and not beside these tests.
        assert!(report[key].as_f64().is_some_and(|spent| spent > 0.0), "{key}: {report}");
    }
}
