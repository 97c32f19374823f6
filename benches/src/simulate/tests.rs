//! Whole runs from a fixed seed, in seconds.

use super::*;
use crate::simulate::kit::SETTINGS;
use crate::simulate::outage::Away;
use crate::simulate::trace::{Arrival, Priority};

fn settings() -> Settings {
    Settings { max_replicas: 10, ..SETTINGS }
}

/// Ten minutes in which two jobs come each second, after a minute without.
fn short() -> Trace {
    let arrival = |n: u32| Arrival {
        at: 60.0 + f64::from(n) / 2.0,
        service: 1.0,
        priority: Priority::Normal,
    };
    Trace { name: "short".into(), arrivals: (0..1200).map(arrival).collect() }
}

fn replay(policies: &[Choice]) -> Vec<(String, Outcome)> {
    policies::replay(policies, settings(), &short(), 0.95).unwrap()
}

#[track_caller]
fn named<'a>(outcomes: &'a [(String, Outcome)], name: &str) -> &'a Outcome {
    &outcomes.iter().find(|(policy, _)| policy == name).unwrap().1
}

#[test]
fn every_policy_does_all_jobs_and_none_goes_below_what_the_work_takes() {
    let least = oracle::least_gpu_seconds(&short(), &settings());
    for (policy, outcome) in replay(&[]) {
        assert!(outcome.gpu_seconds() >= least || outcome.n_undone() > 0, "{policy}");
        // Those that count only what is ready give up a pod that works, and may starve.
        if !policy.starts_with("ready") {
            assert_eq!(outcome.n_undone(), 0, "{policy}");
        }
        assert!(outcome.samples.iter().all(|sample| sample.ready <= 1200), "{policy}");
    }
}

#[test]
fn the_same_seed_gives_the_same_figures() {
    let figures = || {
        let outcomes = replay(&[Choice::Jobs, Choice::Kpa]);
        outcomes.iter().map(|(_, it)| (it.gpu_seconds(), it.attainment())).collect::<Vec<_>>()
    };
    assert_eq!(figures(), figures());
}

#[test]
fn who_knows_all_reaches_the_objective_and_needs_no_more_than_the_others_that_do() {
    let outcomes = replay(&[]);
    let oracle = named(&outcomes, "oracle");
    assert!(oracle.attainment() >= 0.95);
    for (policy, outcome) in outcomes.iter().filter(|(_, it)| it.attainment() >= 0.95) {
        assert!(outcome.gpu_seconds() >= oracle.gpu_seconds(), "{policy}");
    }
}

#[test]
fn a_push_wakes_the_pool_sooner_than_a_poll() {
    let outcomes = replay(&[Choice::Jobs, Choice::Unacked]);
    let first = |name| named(&outcomes, name).waits()[0];
    // A cold start, and nothing else.
    assert!((first("jobs") - 30.0).abs() < 0.01, "{}", first("jobs"));
    assert!(first("unacked-16") >= 30.0 && first("unacked-16") <= 60.0);
}

#[test]
fn the_defaults_keep_pods_for_longer() {
    let outcomes = replay(&[Choice::Jobs]);
    let gpu = |name| named(&outcomes, name).gpu_seconds();
    assert!(gpu("jobs/default") > gpu("jobs") + 200.0, "{} {}", gpu("jobs/default"), gpu("jobs"));
}

#[test]
fn a_verdict_names_the_cheapest_setting_that_reaches_the_objective() {
    let mut outcomes = replay(&[Choice::Oracle, Choice::Jobs, Choice::Unacked, Choice::Ready]);
    let judged = named(&outcomes, "jobs").clone();
    outcomes.push(("slo".to_owned(), judged.clone()));
    let verdict = Verdict::of("short", &outcomes, 0.95).unwrap();
    assert_eq!(verdict.reached, verdict::Reached::Yes);
    let saving = verdict.cheapest.unwrap();
    let cheapest = named(&outcomes, &saving.setting);
    assert!(cheapest.attainment() >= 0.95);
    let saved = 1.0 - judged.gpu_seconds() / cheapest.gpu_seconds();
    assert!((saving.slo - saved).abs() < 0.001 && saving.oracle >= saving.slo, "{saving:?}");
    for (policy, outcome) in outcomes.iter().filter(|(_, it)| it.attainment() >= 0.95) {
        let is_length = policy.starts_with("unacked-") || policy.starts_with("ready-");
        assert!(!is_length || outcome.gpu_seconds() >= cheapest.gpu_seconds(), "{policy}");
    }
    assert!(verdict.cheapest_default.unwrap().setting.ends_with("/default"));

    let overall = Overall::of(&[&outcomes, &outcomes], 0.95).unwrap();
    assert_eq!(overall.cheapest.unwrap().setting, saving.setting);
    assert!(Overall::of(&[&outcomes], 0.95).is_none(), "one trace is not all");
}

#[test]
fn a_scaled_job_does_all_work_within_its_most_and_kills_nothing() {
    let outcomes = replay(&[Choice::ScaledJob]);
    assert_eq!(outcomes.len(), 12, "three strategies, two modes, two polling intervals");
    for (policy, outcome) in &outcomes {
        assert_eq!((outcome.n_undone(), outcome.n_killed), (0, 0), "{policy}");
        let most = outcome.samples.iter().map(|sample| sample.pods).max().unwrap();
        assert!((1..=10).contains(&most), "{policy}: {most}");
    }
    let starts = |name| named(&outcomes, name).n_starts;
    // What is in flight needs nobody, and a strategy that does not take it off starts more.
    let (fit, unfit) = ("scaledjob-accurate-waiting", "scaledjob-accurate-jobs");
    assert!(starts(fit) < starts(unfit), "{} {}", starts(fit), starts(unfit));
}

/// Pods at each second of the last half minute of an outage.
fn pods_in_the_dark(settings: Settings, outcome: &Outcome) -> Vec<u32> {
    let outage = settings.outage(&short()).unwrap();
    let blind = |second: u64| outage.is_blind(Duration::from_secs(second));
    let late = |at: u64| blind(at) && !blind(at + 30);
    outcome.samples.iter().filter(|it| late(it.at)).map(|it| it.pods).collect()
}

#[test]
fn a_fallback_sets_the_pods_while_a_broker_is_away_and_not_while_the_scaler_is() {
    let outage_length = Duration::from_secs(240);
    let away = |away| Settings { outage_length, away, fallback_replicas: 6, ..settings() };
    let replay = |settings| {
        policies::replay(&[Choice::Jobs, Choice::Fallback], settings, &short(), 0.95).unwrap()
    };
    let settings = away(Away::Broker);
    let outcomes = replay(settings);
    let dark = |name| pods_in_the_dark(settings, named(&outcomes, name));
    assert_eq!(dark("jobs-fallback"), [6; 30]);
    let held = dark("jobs");
    assert!(held.iter().all(|pods| *pods == held[0]) && held[0] != 6, "{held:?}");
    // KEDA does not get as far as the fallback without a metric's spec.
    let outcomes = replay(away(Away::Scaler));
    let figures = |name| {
        let outcome = named(&outcomes, name);
        (outcome.gpu_seconds(), outcome.attainment(), outcome.n_starts)
    };
    assert_eq!(figures("jobs-fallback"), figures("jobs"));
}

#[test]
fn what_was_asked_is_compared_with_lengths_that_reach_as_much() {
    let mut outcomes = replay(&[Choice::Oracle, Choice::Unacked]);
    let judged = named(&outcomes, "unacked-5").clone();
    outcomes.push(("slo".to_owned(), judged.clone()));
    let verdict = Verdict::of("short", &outcomes, 0.5).unwrap();
    let (any, same) = (verdict.cheapest.unwrap(), verdict.cheapest_same.unwrap());
    let reached = |saving: &verdict::Saving| named(&outcomes, &saving.setting).attainment();
    assert!(reached(&same) >= judged.attainment() - 0.001, "{same:?}");
    assert!(reached(&any) < reached(&same), "cheaper, and not as good: {any:?} {same:?}");
    let default = verdict.cheapest_same_default.unwrap();
    assert!(default.setting.ends_with("/default") && default.slo >= same.slo, "{default:?}");
    let overall = Overall::of(&[&outcomes, &outcomes], 0.5).unwrap();
    assert_eq!(overall.cheapest_same.unwrap().setting, same.setting);
}
