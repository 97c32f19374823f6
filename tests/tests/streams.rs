//! Answers that come in pieces, from the worker's process to whoever reads them on a terminal.

#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::time::Instant;

use e2e::{Process, Workplace, wait_for};
use nix::sys::signal::Signal;
use serde_json::json;

/// A line for each word, so that each is seen as it comes.
fn text(n_words: usize) -> String {
    (0..n_words).map(|word| format!("word-{word}.\n")).collect()
}

/// A job of so many words, each of which takes so long.
fn body(n_words: usize, turn_ms: u64) -> String {
    json!({ "input": text(n_words), "stream": true, "turn_ms": turn_ms }).to_string()
}

fn worker(workplace: &Workplace, more: &[&str]) -> Process {
    workplace.start(&[&["worker", "--model", "echo"], more].concat())
}

/// Enqueues a job, and somebody who follows it; its id.
fn followed(workplace: &Workplace, body: &str) -> (Process, String) {
    let id = workplace.ebb(&["enqueue", body]).ok().stdout.trim().to_owned();
    (workplace.start(&["result", &id, "--follow", "--timeout", "60s"]), id)
}

fn says(process: &mut Process, word: usize) {
    let word = format!("word-{word}.\n");
    process.says(&word, |said| said.contains(&word).then_some(()));
}

/// All words that it printed; what it notes beside them comes by another pipe, at any moment.
fn words(process: &Process) -> String {
    let said = process.output();
    said.lines().filter(|line| line.starts_with("word-")).map(|line| format!("{line}\n")).collect()
}

#[test]
fn words_are_printed_as_they_come() {
    let workplace = Workplace::new();
    let _worker = worker(&workplace, &[]);
    let mut follower =
        workplace.start(&["enqueue", &body(10, 300), "--follow", "--timeout", "60s"]);
    says(&mut follower, 0);
    assert!(!follower.output().contains("word-9."), "{}", follower.output());
    assert!(follower.ends().success());
    says(&mut follower, 9);
    assert_eq!(follower.output().trim(), text(10).trim());

    let run = workplace.ebb(&["enqueue", "The tide turns.", "--follow", "--timeout", "60s"]).ok();
    assert_eq!(run.stdout, "The tide turns.\n");
    let run = workplace.ebb(&["enqueue", "ebb and flow", "--follow", "--json"]).ok();
    let lines = run.lines();
    let said: String = lines.iter().filter_map(|line| line["body"].as_str()).collect();
    assert_eq!((said.as_str(), &lines[0]["seq"]), ("ebb and flow", &json!(0)), "{lines:?}");
    assert_eq!(lines.last().unwrap()["body"]["output"], "ebb and flow");
    // A job that does not ask for pieces is answered whole.
    let run = workplace.ebb(&["enqueue", r#"{"input": "whole"}"#, "--follow"]).ok();
    assert_eq!(run.json()["body"]["output"], "whole");
    let two = workplace.ebb(&["enqueue", "a", "b", "--follow"]).failed();
    assert!(two.stderr.contains("--follow is for one text; for more use --wait"), "{two}");
}

#[test]
fn who_follows_is_told_that_an_attempt_begins_anew_after_kill_9_and_gets_the_whole() {
    let workplace = Workplace::new().with_short_leases();
    let mut first = worker(&workplace, &[]);
    let (mut follower, id) = followed(&workplace, &body(60, 100));
    says(&mut follower, 5);
    first.signal(Signal::SIGKILL);
    assert!(!first.ends().success());
    let _second = worker(&workplace, &[]);
    assert!(follower.ends().success(), "{}", follower.output());
    let anew = "attempt 2 begins anew; what came before is void";
    follower.says(anew, |said| said.find(anew));
    assert!(words(&follower).ends_with(&text(60)), "{}", follower.output());
    assert_eq!(workplace.ebb(&["result", &id]).ok().json()["attempt"], 2);
}

#[test]
fn sigterm_finishes_what_was_begun_where_there_is_time_and_else_gives_it_back() {
    let workplace = Workplace::new();
    let mut first = worker(&workplace, &["--grace", "30s"]);
    let (mut follower, id) = followed(&workplace, &body(40, 50));
    says(&mut follower, 3);
    first.signal(Signal::SIGTERM);
    assert!(first.ends().success(), "{}", first.output());
    assert!(follower.ends().success());
    assert_eq!(workplace.ebb(&["result", &id]).ok().json()["attempt"], 1);

    let mut short = worker(&workplace, &["--grace", "3s"]);
    let (mut follower, id) = followed(&workplace, &body(200, 50));
    says(&mut follower, 3);
    let stopped = Instant::now();
    short.signal(Signal::SIGTERM);
    assert!(short.ends().success(), "{}", short.output());
    assert!(stopped.elapsed().as_secs() < 9, "it did not wait for the end of the job");
    // At once, and not with its lease.
    let depth = workplace.depth();
    assert_eq!((&depth["ready"], &depth["in_flight"]), (&json!(1), &json!(0)), "{depth}");
    let _next = worker(&workplace, &[]);
    wait_for("the end of the follower", || (!follower.runs()).then_some(()));
    let anew = "begins anew; what came before is void";
    follower.says(anew, |said| said.find(anew));
    assert!(words(&follower).ends_with(&text(200)), "{}", follower.output());
    assert!(workplace.ebb(&["result", &id]).ok().json()["error"].is_null());
}
