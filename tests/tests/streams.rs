//! Answers that come in pieces, from the worker's process to whoever reads them on a terminal.

#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

use e2e::{Process, Workplace, wait_for};
use ebb_queue::{JSON, Job, JobResult, OpenOptions, Outcome, QueueUrl, Timestamp};
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
        workplace.start(&["enqueue", &body(30, 300), "--follow", "--timeout", "60s"]);
    says(&mut follower, 0);
    assert!(!follower.output().contains("word-29."), "{}", follower.output());
    assert!(follower.ends().success());
    says(&mut follower, 29);
    assert_eq!(words(&follower).trim(), text(30).trim());

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

/// Stores pieces of a job, each with its attempt, and its answer as that of attempt 2.
async fn answer(workplace: &Workplace, id: &str, pieces: &[(u32, &'static str)], output: &str) {
    let url: QueueUrl = workplace.queue().parse().unwrap();
    let queue = ebb_queue::open(&url, OpenOptions::default()).await.unwrap();
    let mut job = Job::new("{}", Timestamp::now());
    job.id = id.parse().unwrap();
    let job_id = job.id.clone();
    queue.publish(vec![job]).await.unwrap();
    for (nth, (attempt, piece)) in pieces.iter().enumerate() {
        queue.chunk(&job_id, *attempt, nth as u64, (*piece).into()).await.unwrap();
    }
    let body = json!({ "output": output }).to_string().into();
    let outcome = Outcome::Completed { content_type: JSON.to_owned(), body };
    let finished_at = Timestamp::now();
    queue
        .put(&JobResult { id: job_id, attempt: 2, outcome, finished_at, queue: None })
        .await
        .unwrap();
}

#[tokio::test]
async fn pieces_that_are_not_all_of_an_answer_are_not_taken_for_it() {
    let workplace = Workplace::new();
    let whole = r#"{"output":"The tide turns."}"#;
    let pieces = [(2, "The tide "), (2, "turns.")];
    answer(&workplace, "whole", &pieces, "The tide turns.").await;
    answer(&workplace, "cut", &pieces[..1], "The tide turns.").await;
    let follow = |id: &str, more: &[&str]| {
        workplace.ebb(&[&["result", id, "--follow", "--timeout", "60s"], more].concat()).ok()
    };
    assert_eq!(follow("whole", &[]).stdout, "The tide turns.\n");
    let cut = follow("cut", &[]);
    assert_eq!(cut.stdout, format!("The tide \n{whole}\n"));
    assert!(cut.stderr.contains("void or not all of the answer"), "{cut}");
    assert_eq!(follow("cut", &["--body"]).stdout, whole);
    let numbers = [(2, "7"), (2, " 5")];
    answer(&workplace, "numbers", &numbers, "7 5").await;
    let said: Vec<_> =
        follow("numbers", &["--json"]).lines().iter().map(|line| line["body"].clone()).collect();
    assert_eq!(said, [json!("7"), json!(" 5"), json!({ "output": "7 5" })]);
    let both = workplace.ebb(&["enqueue", "a", "--follow", "--wait"]).failed();
    assert!(both.stderr.contains("cannot be used with"), "{both}");
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
    let (mut follower, id) = followed(&workplace, &body(400, 50));
    says(&mut follower, 3);
    short.signal(Signal::SIGTERM);
    assert!(short.ends().success(), "{}", short.output());
    // At once, and neither at the end of the job nor with its lease.
    let depth = workplace.depth();
    assert_eq!((&depth["ready"], &depth["in_flight"]), (&json!(1), &json!(0)), "{depth}");
    let _next = worker(&workplace, &[]);
    wait_for("the end of the follower", || (!follower.runs()).then_some(()));
    let anew = "begins anew; what came before is void";
    follower.says(anew, |said| said.find(anew));
    assert!(words(&follower).ends_with(&text(400)), "{}", follower.output());
    assert!(workplace.ebb(&["result", &id]).ok().json()["error"].is_null());
}
