//! What a producer is promised, on the command line and with a real worker process.

#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::fmt::Write as _;
use std::io::Write as _;

use e2e::{Process, Run, Workplace, run, wait_for};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// A worker with the model that returns its input.
fn echo_worker(workplace: &Workplace, more: &[&str]) -> Process {
    let args = ["worker", "--model", "echo", "--listen", "127.0.0.1:0"];
    workplace.start(&[&args, more].concat())
}

/// Writes jobs as JSON lines and enqueues the file.
fn enqueue_file(workplace: &Workplace, jobs: &[Value], more: &[&str]) -> Run {
    let mut lines = String::new();
    for job in jobs {
        writeln!(lines, "{job}").unwrap();
    }
    let file = workplace.path("jobs.jsonl");
    std::fs::write(&file, lines).unwrap();
    let args = ["enqueue", "--file", file.to_str().unwrap()];
    workplace.ebb(&[&args, more].concat())
}

fn ids(results: &[Value]) -> Vec<&str> {
    results.iter().map(|result| result["id"].as_str().unwrap()).collect()
}

#[test]
fn results_come_in_the_order_of_the_jobs_whatever_was_done_first() {
    let workplace = Workplace::new();
    let _worker = echo_worker(&workplace, &["--max-items", "4"]);
    // The last ones are done first.
    let job = |n: usize| {
        let priority = ["low", "normal", "high"][n / 10];
        let body = json!({"input": format!("text {n}"), "sleep_ms": 5});
        json!({"id": format!("job-{n:02}"), "headers": {"ebb-priority": priority}, "body": body})
    };
    let jobs: Vec<Value> = (0..30).map(job).collect();
    let results = enqueue_file(&workplace, &jobs, &["--wait", "--json"]).ok().lines();
    assert_eq!(results.len(), 30);
    for (n, result) in results.iter().enumerate() {
        assert_eq!(result["id"], format!("job-{n:02}"), "{result}");
        assert_eq!(result["outcome"], "completed", "{result}");
        assert_eq!(result["body"], json!({"output": format!("text {n}")}), "{result}");
        assert_eq!(result["attempt"], 1, "{result}");
    }
    let again = workplace.ebb(&["result", "job-07", "--json"]).ok().json();
    assert_eq!(again, results[7], "the result can be asked for again");
}

#[test]
fn texts_are_jobs_on_the_command_line_and_lines_on_standard_input() {
    let workplace = Workplace::new();
    let _worker = echo_worker(&workplace, &[]);
    let results = workplace.ebb(&["enqueue", "The tide turns.", "42", "--wait"]).ok().lines();
    assert_eq!(results[0]["body"]["output"], "The tide turns.");
    assert_eq!(results[1]["body"]["output"], "42");

    let mut enqueue = workplace.command("ebb", &["enqueue", "-", "--wait"]);
    let lines = "\"a line\"\n\n{\"input\": \"an object\"}\n{\"id\": \"x-1\", \"body\": {\"input\": \"all\"}}\n";
    let results = run(&mut enqueue, lines).ok().lines();
    let outputs: Vec<_> = results.iter().map(|result| &result["body"]["output"]).collect();
    assert_eq!(outputs, ["a line", "an object", "all"]);
    assert_eq!(results[2]["id"], "x-1");
}

#[test]
fn a_job_that_fails_makes_the_command_fail_and_says_why() {
    let workplace = Workplace::new();
    let _worker = echo_worker(&workplace, &[]);
    let jobs = [
        json!({"id": "good", "body": {"input": "a"}}),
        json!({"id": "bad", "body": {"input": "b", "fail": true}}),
    ];
    let ran = enqueue_file(&workplace, &jobs, &["--wait"]).failed();
    let results = ran.lines();
    assert_eq!(ids(&results), ["good", "bad"], "{ran}");
    assert_eq!(results[0]["outcome"], "completed", "{ran}");
    assert_eq!(results[1]["outcome"], "failed", "{ran}");
    let told = results[1]["error"].as_str().unwrap();
    assert!(told.contains("asked to fail"), "{told}");
    assert_eq!(ran.status.code(), Some(1), "{ran}");

    assert_eq!(workplace.ebb(&["result", "bad"]).status.code(), Some(1));
    assert_eq!(workplace.ebb(&["result", "nobody-knows"]).status.code(), Some(66));
    assert_eq!(workplace.ebb(&["result", "bad", "--queue", "nowhere"]).status.code(), Some(2));
}

#[test]
fn a_dead_letter_can_be_read_put_back_and_answered() {
    let workplace = Workplace::new();
    let job =
        json!({"id": "late", "headers": {"ebb-ttl": "10ms"}, "body": {"input": "still wanted"}});
    enqueue_file(&workplace, &[job], &[]).ok();
    wait_for("the deadline to pass", || (workplace.depth()["dead"] == 1).then_some(()));
    let _worker = echo_worker(&workplace, &[]);
    let expired = workplace.ebb(&["result", "late", "--follow", "--timeout", "60s"]).failed();
    assert!(expired.stdout.contains("expired"), "{expired}");

    let list = workplace.ebb(&["dlq", "list", "--json"]).ok().json();
    assert_eq!(list.as_array().map(Vec::len), Some(1), "{list}");
    assert_eq!(list[0]["job"]["id"], "late", "{list}");
    assert!(list[0]["reason"].as_str().unwrap().contains("expired"), "{list}");
    assert_eq!(list[0]["kind"], "expired", "{list}");
    let shown = workplace.ebb(&["dlq", "show", "late"]).ok();
    assert!(shown.stdout.contains("still wanted"), "{shown}");
    assert_eq!(workplace.ebb(&["dlq", "show", "late", "--json"]).ok().json(), list[0]);

    assert_eq!(workplace.ebb(&["dlq", "redrive", "late", "--json"]).ok().json()["redriven"], 1);
    let result = workplace.ebb(&["result", "late", "--follow", "--timeout", "60s", "--json"]).ok();
    assert_eq!(result.json()["body"]["output"], "still wanted", "{result}");
    assert_eq!(workplace.ebb(&["dlq", "list", "--json"]).ok().json(), json!([]));
}

#[test]
fn a_list_of_dead_letters_that_goes_to_a_pipe_is_whole() {
    let workplace = Workplace::new();
    let text = "a text that is much longer than a column of a terminal may be";
    workplace.ebb(&["enqueue", text, "--ttl", "1ms"]).ok();
    workplace.comes_to("dead", 1);
    let list = workplace.ebb(&["dlq", "list"]).ok();
    assert!(list.stdout.contains(text), "{list}");
}

#[test]
fn dead_letters_are_deleted_only_when_it_is_meant() {
    let workplace = Workplace::new();
    let _worker = echo_worker(&workplace, &[]);
    let poison = |id: &str| json!({"id": id, "body": {"input": "", "poison": true}});
    enqueue_file(&workplace, &[poison("p-1"), poison("p-2")], &["--wait"]).failed();

    let timid = workplace.ebb(&["dlq", "purge", "--all"]);
    assert_eq!(timid.status.code(), Some(2), "{timid}");
    assert!(timid.stderr.contains("--yes"), "{timid}");
    let unknown = workplace.ebb(&["dlq", "purge", "p-3", "--yes"]);
    assert_eq!(unknown.status.code(), Some(66), "{unknown}");
    assert!(unknown.stderr.contains("p-3 is no dead letter"), "{unknown}");
    let some = workplace.ebb(&["dlq", "list", "--max", "1"]).ok();
    assert!(some.stderr.contains("the newest 1 of 2 dead letters"), "{some}");
    let all = workplace.ebb(&["dlq", "list", "--max", "2"]).ok();
    assert_eq!(all.stderr, "");
    workplace.comes_to("dead", 2);

    let one = workplace.ebb(&["dlq", "purge", "p-1", "--yes", "--json"]).ok().json();
    assert_eq!((&one["purged"], &one["dead"]), (&json!(1), &json!(1)));
    let all = workplace.ebb(&["dlq", "purge", "--all", "--yes", "--json"]).ok().json();
    assert_eq!((&all["purged"], &all["dead"]), (&json!(1), &json!(0)));
    assert_eq!(workplace.depth()["dead"], 0);
}

#[test]
fn dead_letters_are_chosen_by_their_kind() {
    let workplace = Workplace::new();
    let _worker = echo_worker(&workplace, &[]);
    let (poison, bad) = (json!({"input": "", "poison": true}), json!("no input"));
    let jobs = [json!({"id": "poison", "body": poison}), json!({"id": "bad", "body": bad})];
    enqueue_file(&workplace, &jobs, &["--wait"]).failed();
    let ids = |kinds: &str| -> Vec<Value> {
        let letters = workplace.ebb(&["dlq", "list", "--kind", kinds, "--json"]).ok().json();
        let letters = letters.as_array().unwrap().iter();
        letters.map(|letter| letter["job"]["id"].clone()).collect()
    };
    assert_eq!((ids("model"), ids("invalid")), (vec![json!("poison")], vec![json!("bad")]));
    assert_eq!((ids("model,invalid").len(), ids("lost,expired").len()), (2, 0));
    let slip = workplace.ebb(&["dlq", "purge", "--kind", "modell", "--yes"]);
    assert_eq!(slip.status.code(), Some(2), "{slip}");
    assert!(slip.stderr.contains("invalid, expired, attempts, model, lost, other"), "{slip}");
    let none = workplace.ebb(&["dlq", "redrive", "--kind", "lost", "--json"]).ok().json();
    assert_eq!((&none["redriven"], &none["dead"]), (&json!(0), &json!(2)));
    let one = workplace.ebb(&["dlq", "purge", "--kind", "invalid", "--yes", "--json"]).ok().json();
    assert_eq!((&one["purged"], &one["dead"]), (&json!(1), &json!(1)));
    assert_eq!(ids("model"), [json!("poison")]);
}

/// One that is ready, and one that is delayed.
fn two_waiting() -> [Value; 2] {
    let later = json!({"id": "later", "headers": {"ebb-delay": "1h"}, "body": {"input": "later"}});
    [json!({"id": "now", "body": {"input": "now"}}), later]
}

#[test]
fn what_waits_is_deleted_only_when_it_is_meant() {
    let workplace = Workplace::new();
    enqueue_file(&workplace, &two_waiting(), &[]).ok();
    let timid = workplace.ebb(&["queue", "purge"]);
    assert_eq!(timid.status.code(), Some(2), "{timid}");
    assert!(timid.stderr.contains("--yes"), "{timid}");
    assert_eq!(workplace.depth()["ready"], 1);
    let purged = workplace.ebb(&["queue", "purge", "--yes", "--json"]).ok().json();
    let none = json!({"purged": 2, "ready": 0, "in_flight": 0, "delayed": 0, "dead": 0});
    assert_eq!(purged, none);

    // The same ids are new again.
    enqueue_file(&workplace, &two_waiting(), &[]).ok();
    let words = workplace.ebb(&["queue", "purge", "--yes"]).ok();
    let expected = "2 deleted; now 0 ready, 0 in flight, 0 delayed, 0 dead";
    assert_eq!(words.stdout.trim_end(), expected);
}

#[test]
fn a_job_without_a_result_says_where_it_is() {
    let workplace = Workplace::new();
    enqueue_file(&workplace, &two_waiting(), &[]).ok();
    for (id, state, words) in [
        ("now", "waiting", "no result for now yet: it is waiting for a worker"),
        ("later", "delayed", "no result for later yet: it is delayed"),
        ("never", "unknown", "never is unknown"),
    ] {
        let ran = workplace.ebb(&["result", id, "--json"]);
        assert_eq!(ran.status.code(), Some(66), "{ran}");
        assert_eq!((&ran.json()["id"], &ran.json()["state"]), (&json!(id), &json!(state)));
        let ran = workplace.ebb(&["result", id]);
        assert_eq!((ran.status.code(), &*ran.stdout), (Some(66), ""), "{ran}");
        assert!(ran.stderr.contains(words), "{ran}");
    }
}

#[test]
fn one_poison_job_among_64_hurts_nobody_else() {
    let workplace = Workplace::new();
    let jobs: Vec<Value> = (0..64)
        .map(|n| json!({"id": format!("n-{n}"), "body": {"input": n.to_string(), "poison": n == 41}}))
        .collect();
    enqueue_file(&workplace, &jobs, &[]).ok();
    // All of them wait, so they come to the worker as one batch.
    let _worker = echo_worker(&workplace, &["--max-items", "64"]);
    let answered = |n: usize| {
        let id = format!("n-{n}");
        workplace.ebb(&["result", &id, "--follow", "--timeout", "60s", "--json"])
    };
    for n in (0..64).filter(|n| *n != 41) {
        let result = answered(n).ok().json();
        assert_eq!(result["body"]["output"], n.to_string());
        assert_eq!(result["attempt"], 1, "its neighbour cost it no attempt: {result}");
    }
    let poison = answered(41).failed().json();
    assert_eq!(poison["outcome"], "failed");

    workplace.comes_to("dead", 1);
    let list = workplace.ebb(&["dlq", "list", "--json"]).ok().json();
    assert_eq!(list.as_array().map(Vec::len), Some(1), "{list}");
    assert_eq!(list[0]["job"]["id"], "n-41");
    assert!(list[0]["reason"].as_str().unwrap().contains("poison"), "{list}");
    assert_eq!(list[0]["kind"], "model", "{list}");
    wait_for("an empty queue", || {
        let depth = workplace.depth();
        let counts = ["ready", "in_flight", "delayed", "dead"].map(|state| depth[state].as_u64());
        (counts == [Some(0), Some(0), Some(0), Some(1)]).then_some(())
    });
}

#[test]
fn a_body_that_cannot_be_read_is_refused_alone() {
    let workplace = Workplace::new();
    let _worker = echo_worker(&workplace, &["--max-items", "8"]);
    let jobs = [
        json!({"id": "a", "body": {"input": "fine"}}),
        json!({"id": "b", "body": "no JSON at all"}),
        json!({"id": "c", "body": {"no_input": 1}}),
        json!({"id": "d", "body": {"input": "fine too"}}),
    ];
    let ran = enqueue_file(&workplace, &jobs, &["--wait"]).failed();
    let outcomes: Vec<Value> = ran.lines().iter().map(|result| result["outcome"].clone()).collect();
    assert_eq!(outcomes, ["completed", "failed", "failed", "completed"], "{ran}");
    assert!(ran.lines()[2]["error"].as_str().unwrap().contains("input"), "{ran}");
    workplace.comes_to("dead", 2);
}

#[test]
fn a_job_that_is_sent_again_under_its_id_is_stored_once() {
    let workplace = Workplace::new();
    let enqueue = || workplace.ebb(&["enqueue", "one", "--id", "order-7", "--json"]).ok().json();
    assert_eq!(enqueue(), json!({"id": "order-7", "duplicate": false}));
    assert_eq!(enqueue(), json!({"id": "order-7", "duplicate": true}));
    assert_eq!(workplace.depth()["ready"], 1);
    let two = workplace.ebb(&["enqueue", "one", "two", "--id", "order-8"]);
    assert_eq!(two.status.code(), Some(2), "{two}");
    assert!(two.stderr.contains("give each line its own `id`"), "{two}");
    let slip = workplace.ebb(&["enqueue", "one", "--id", "order 8"]);
    assert_eq!(slip.status.code(), Some(2), "{slip}");
}

#[test]
fn a_job_with_a_key_that_is_known_is_the_first_job() {
    let workplace = Workplace::new();
    let enqueue =
        |text: &str| workplace.ebb(&["enqueue", text, "--key", "order-7", "--json"]).ok().json();
    let (first, second) = (enqueue("one"), enqueue("two"));
    assert_eq!((&first["duplicate"], &second["duplicate"]), (&json!(false), &json!(true)));
    assert_eq!(first["id"], second["id"]);
    assert_eq!(workplace.depth()["ready"], 1);
    let third = workplace.ebb(&["enqueue", "three", "--key", "order-7"]).ok();
    assert!(third.stderr.contains("1 of 1 were known before"), "{third}");
}

#[test]
fn a_key_is_not_spread_over_queues_that_do_not_know_it() {
    let workplace = Workplace::new();
    let split = ["enqueue", "one", "--key", "order-7", "--split", "a=50,b=50"];
    for by in ["id", "tenant"] {
        let ran = workplace.ebb(&[&split[..], &["--split-by", by]].concat());
        assert_eq!(ran.status.code(), Some(2), "{ran}");
        assert!(ran.stderr.contains("--split-by key"), "{ran}");
    }
    let ids: Vec<String> = (0..6).map(|_| workplace.ebb(&split).ok().stdout).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[test]
fn a_full_queue_says_so_and_takes_nothing() {
    let workplace = Workplace::new();
    let queue = workplace.queue() + "&max_ready=3";
    let enqueue = |texts: &[&str]| {
        workplace.ebb(&[&["enqueue"], texts, &["--queue", queue.as_str()]].concat())
    };
    enqueue(&["a", "b"]).ok();
    let full = enqueue(&["c", "d"]);
    assert_eq!(full.status.code(), Some(69), "{full}");
    assert!(full.stderr.contains("full"), "{full}");
    assert_eq!(workplace.depth()["ready"], 2, "all or none");
    let never = enqueue(&["c", "d", "e", "f"]);
    assert_eq!(never.status.code(), Some(2), "{never}");
    assert!(never.stderr.contains("4 jobs are more than may wait"), "{never}");
}

#[test]
fn a_wait_ends_in_time_where_nobody_works() {
    let workplace = Workplace::new();
    let late = workplace.ebb(&["enqueue", "anyone?", "--wait", "--timeout", "200ms"]);
    assert_eq!(late.status.code(), Some(75), "{late}");
    assert_eq!(late.json()["outcome"], "waiting", "{late}");
    assert_eq!(workplace.depth()["ready"], 1, "the job stays");
}

#[test]
fn a_queue_that_its_first_job_makes_is_told_and_may_be_forbidden() {
    let workplace = Workplace::new();
    let mut by_variable = workplace.command("ebb", &["enqueue", "a"]);
    let refused = [
        workplace.ebb(&["enqueue", "a", "--no-create"]),
        run(by_variable.env("EBB_NO_CREATE", "true"), ""),
    ];
    for ran in refused {
        assert_eq!(ran.status.code(), Some(2), "{ran}");
        assert!(ran.stderr.contains("no queue jobs in"), "{ran}");
    }
    let made = workplace.ebb(&["enqueue", "a"]).ok();
    assert!(made.stderr.contains("made queue jobs"), "{made}");
    let again = workplace.ebb(&["enqueue", "a", "--no-create"]).ok();
    assert_eq!(again.stderr, "");
    // A slip in the name of the queue where the answers of a split are found.
    let slip = workplace.queue() + "&queue=jbos";
    let split = ["enqueue", "a", "--split", "jobs=1", "--queue", &slip];
    let made = workplace.ebb(&split).ok();
    assert_eq!(made.stderr.matches("made queue jbos").count(), 1, "{made}");
}

#[test]
fn an_id_of_the_call_is_for_one_job_of_a_file_too() {
    let workplace = Workplace::new();
    let one = enqueue_file(&workplace, &[json!({"input": "a"})], &["--id", "mine"]).ok();
    assert_eq!(one.stdout.trim(), "mine");
    let two = enqueue_file(&workplace, &[json!("a"), json!("b")], &["--id", "mine"]);
    assert_eq!(two.status.code(), Some(2), "{two}");
    assert!(two.stderr.contains("give each line its own `id`"), "{two}");
}

#[test]
fn who_interrupts_the_wait_is_left_with_the_ids_of_the_jobs() {
    let workplace = Workplace::new();
    let mut waiting = workplace.start(&["enqueue", "--wait", "one", "two"]);
    workplace.comes_to("ready", 2);
    // Said after five seconds, and so after the signals are listened to.
    let told = "no worker reports on queue jobs yet";
    waiting.says("that nobody works", |said| said.contains(told).then_some(()));
    waiting.signal(Signal::SIGINT);
    assert_eq!(waiting.ends().code(), Some(130), "{}", waiting.output());
    let said = waiting.output();
    assert_eq!(said.matches(r#""outcome":"waiting""#).count(), 2, "{said}");
    assert!(said.contains("interrupted"), "{said}");
    assert_eq!(workplace.depth()["ready"], 2, "the jobs stay");
}

#[test]
fn who_interrupts_a_pipe_is_left_with_the_ids_of_the_jobs() {
    let workplace = Workplace::new();
    let mut command = workplace.command("ebb", &["enqueue", "-", "--wait"]);
    let (mut feeding, mut pipe) = Process::start_fed(&mut command);
    pipe.write_all(b"\"one\"\n\"two\"\n").unwrap();
    workplace.comes_to("ready", 2);
    feeding.signal(Signal::SIGINT);
    assert_eq!(feeding.ends().code(), Some(130), "{}", feeding.output());
    let said = feeding.output();
    assert_eq!(said.matches(r#""outcome":"waiting""#).count(), 2, "{said}");
    assert!(said.contains("2 jobs were enqueued before: interrupted"), "{said}");
}

#[test]
fn each_job_of_a_wait_that_is_interrupted_is_told_as_it_stands() {
    let workplace = Workplace::new();
    let _worker = echo_worker(&workplace, &[]);
    let jobs = [
        json!({"id": "later", "headers": {"ebb-delay": "1h"}, "body": {"input": "a"}}),
        json!({"id": "done", "body": {"input": "b"}}),
    ];
    let lines = jobs.map(|job| format!("{job}\n")).concat();
    let file = workplace.path("jobs.jsonl");
    std::fs::write(&file, lines).unwrap();
    let mut waiting = workplace.start(&["enqueue", "--wait", "--file", file.to_str().unwrap()]);
    workplace.comes_to("delayed", 1);
    workplace.ebb(&["result", "done", "--follow", "--timeout", "60s"]).ok();
    waiting.signal(Signal::SIGINT);
    assert_eq!(waiting.ends().code(), Some(130), "{}", waiting.output());
    let said = waiting.output();
    assert!(said.contains(r#"{"id":"later","outcome":"waiting""#), "{said}");
    assert!(said.contains(r#"{"id":"done","outcome":"completed""#), "{said}");
}

#[test]
fn a_job_that_is_purged_is_told_and_the_others_are_waited_for() {
    // The first is followed when the purge comes, the second is not yet.
    for order in [["purged", "held"], ["held", "purged"]] {
        let workplace = Workplace::new();
        let _worker = echo_worker(&workplace, &[]);
        let held = json!({"id": "held", "body": {"input": "a", "sleep_ms": 5000}});
        let [_, later] = two_waiting();
        let purged = json!({"id": "purged", "headers": later["headers"], "body": {"input": "b"}});
        let jobs = order.map(|id| if id == "held" { &held } else { &purged });
        let file = workplace.path("jobs.jsonl");
        std::fs::write(&file, jobs.map(|job| format!("{job}\n")).concat()).unwrap();
        let args = ["enqueue", "--wait", "--file", file.to_str().unwrap()];
        let mut waiting = workplace.start(&args);
        workplace.comes_to("delayed", 1);
        workplace.comes_to("in_flight", 1);
        let done = workplace.ebb(&["queue", "purge", "--yes", "--json"]).ok().json();
        assert_eq!(done["purged"], 1, "{done}");
        assert_eq!(waiting.ends().code(), Some(1), "{}", waiting.output());
        let said = waiting.output();
        let lines = said.lines().filter_map(|line| serde_json::from_str(line).ok());
        let lines: Vec<Value> = lines.collect();
        assert_eq!(ids(&lines), order, "{said}");
        for line in lines {
            let expected = if line["id"] == "held" { "completed" } else { "failed" };
            assert_eq!(line["outcome"], expected, "{said}");
            let told = line["error"].as_str().unwrap_or_default();
            assert_eq!(told.contains("was purged"), line["id"] == "purged", "{said}");
        }
    }
}

#[test]
fn a_wait_for_a_job_that_expires_ends_where_nobody_works() {
    let workplace = Workplace::new();
    let late = workplace.ebb(&["enqueue", "anyone?", "--wait", "--ttl", "100ms"]);
    assert_eq!(late.status.code(), Some(1), "{late}");
    let result = late.json();
    assert_eq!((&result["outcome"], &result["error"]), (&json!("failed"), &json!("expired")));
    assert_eq!(result["kind"], "expired", "{late}");
    let id = workplace.ebb(&["enqueue", "anyone?", "--ttl", "1ms"]).ok().stdout;
    let followed = workplace.ebb(&["result", id.trim(), "--follow"]);
    assert_eq!(followed.status.code(), Some(1), "{followed}");
    assert_eq!(followed.json()["error"], "expired", "{followed}");
}

#[test]
fn an_answer_in_a_store_of_payloads_is_not_taken_for_the_reference_to_it() {
    let workplace = Workplace::new();
    let store = format!("file://{}", workplace.path("store").display());
    let apart = ["--payloads", &store, "--inline-limit", "10"];
    let _worker = echo_worker(&workplace, &apart);
    let job = [json!({"id": "big", "body": {"input": "longer than ten bytes"}})];
    let without = enqueue_file(&workplace, &job, &["--wait"]);
    assert_eq!(without.status.code(), Some(2), "{without}");
    assert!(without.json()["error"].as_str().unwrap().contains("--payloads"), "{without}");
    let without = workplace.ebb(&["result", "big", "--body"]);
    assert_eq!((without.status.code(), without.stdout.as_str()), (Some(2), ""), "{without}");
    assert!(without.stderr.contains("--payloads"), "{without}");
    let with = workplace.ebb(&["result", "big", "--payloads", &store]).ok();
    assert_eq!(with.json()["body"]["output"], "longer than ten bytes");
}

#[test]
fn flags_that_contradict_each_other_end_with_the_code_of_wrong_flags() {
    let workplace = Workplace::new();
    let amqp = "amqp://127.0.0.1:1";
    for (args, told) in [
        (&["worker"][..], "--model is missing"),
        (&["worker", "--model", "echo", "--serve", "a=echo"], "--model and --serve"),
        (&["worker", "--model", "echo", "--queue", amqp], "--results is missing"),
        (&["scaler", "--config", "missing.toml"], "missing.toml"),
        (&["scaler", "--tls-cert", "missing.crt", "--tls-key", "missing.key"], "missing."),
        (&["scaler", "--otlp-endpoint", "nowhere at all"], "--otlp-endpoint"),
        (&["split", "--to", "a=0"], "no queue has a weight above 0"),
        (&["--log-level", "debg", "queue", "depth"], "use error, warn, info"),
        (&["scaler", "check", "--scaledobject", "missing.yaml"], "missing.yaml: cannot be read"),
        (&["scaler", "conformance", "--address", "http://a:6000"], "write HOST:PORT"),
        (&["scaler", "conformance", "--address", "a:6000", "--ca", "missing.pem"], "missing.pem"),
        (&["worker", "warm", "--model", "missing"], "missing: no such directory"),
        (&["model", "info", "sentinel"], "comes with ebb"),
        (&["enqueue", r#"{"input":"x""#], "send it as a text"),
        (&["enqueue", "a", "--wait", "--queue", amqp], "--results is missing"),
        (&["up", "--model", "echo", "--queue", amqp], "--results is missing"),
        (&["up", "--model", "echo", "--", "--max-itms", "3"], "try 'ebb worker --help'"),
        (&["up", "--model", "echo", "--", "--queue", "sqlite:b.db"], "sets --queue itself"),
    ] {
        let ran = workplace.ebb(args);
        assert_eq!(ran.status.code(), Some(2), "{args:?}: {ran}");
        assert!(ran.stderr.contains(told), "{args:?}: {ran}");
    }
}

#[test]
fn a_service_alone_in_a_binary_ends_with_the_code_of_ebb() {
    let workplace = Workplace::new();
    for (name, args, told) in [
        ("ebb-worker", &["--model", "echo", "--serve", "a=echo"][..], "--model and --serve"),
        ("ebb-worker", &["--model", "echo", "--queue", "mysql://host"], "--queue"),
        ("ebb-scaler", &["--config", "missing.toml"], "missing.toml"),
        ("ebb-scaler", &["--log-level", "debg"], "use error, warn, info"),
        ("ebb-split", &["--to", "a=0"], "no queue has a weight above 0"),
    ] {
        let ran = run(&mut workplace.command(name, args), "");
        assert_eq!(ran.status.code(), Some(2), "{name} {args:?}: {ran}");
        assert!(ran.stderr.contains(told), "{name} {args:?}: {ran}");
    }
}

#[test]
fn who_only_looks_makes_no_queue() {
    let workplace = Workplace::new();
    for args in [
        &["queue", "depth"][..],
        &["queue", "workers"],
        &["queue", "info"],
        &["dlq", "list"],
        &["dlq", "show", "job-1"],
        &["dlq", "redrive", "--all"],
        &["dlq", "purge", "--all", "--yes"],
        &["queue", "purge", "--yes"],
        &["result", "job-1"],
    ] {
        let ran = workplace.ebb(args);
        assert_eq!(ran.status.code(), Some(2), "{args:?}: {ran}");
        assert!(ran.stderr.contains("no queue jobs in"), "{args:?}: {ran}");
        assert!(ran.stderr.contains("by `ebb queue init --queue 'sqlite:"), "{args:?}: {ran}");
        assert!(!workplace.path("queue.db").exists(), "{args:?}");
    }
}

#[test]
fn a_mistake_is_told_with_its_remedy_and_nothing_is_enqueued() {
    let workplace = Workplace::new();
    let jobs = [json!({"input": "good"}), json!({"id": "a b", "body": {}})];
    let ran = enqueue_file(&workplace, &jobs, &[]);
    assert_eq!(ran.status.code(), Some(2), "{ran}");
    assert!(ran.stderr.contains("jobs.jsonl:2") && ran.stderr.contains("spaces"), "{ran}");
    assert_eq!(workplace.depth()["ready"], 0);
    let ran = workplace.ebb(&["enqueue", "x", "--queue", "mysql://host"]);
    assert_eq!(ran.status.code(), Some(2), "{ran}");
    assert!(ran.stderr.contains("sqlite:PATH"), "{ran}");
}

#[test]
fn a_file_is_enqueued_in_less_memory_than_it_has_bytes() {
    const N_JOBS: usize = 4096;
    let workplace = Workplace::new();
    let file = workplace.path("jobs.jsonl");
    let line = format!("{{\"input\": \"{}\"}}\n", "x".repeat(32 << 10));
    std::fs::write(&file, line.repeat(N_JOBS)).unwrap();
    let mut waiting = workplace.start(&["enqueue", "--wait", "--file", file.to_str().unwrap()]);
    workplace.comes_to("ready", N_JOBS as u64);
    let peak = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", waiting.pid())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    };
    assert!(peak() < line.len() * N_JOBS, "{} bytes", peak());
    waiting.signal(Signal::SIGINT);
    assert_eq!(waiting.ends().code(), Some(130));
}

#[test]
fn lines_before_a_bad_one_on_standard_input_are_enqueued_and_said() {
    let workplace = Workplace::new();
    let lines = "\"a\"\n\"b\"\n{bad\n\"c\"\n";
    for from in [&["enqueue", "-"][..], &["enqueue", "--file", "-"]] {
        let before = workplace.depth()["ready"].as_u64().unwrap();
        let ran = run(&mut workplace.command("ebb", from), lines).failed();
        assert_eq!(ran.status.code(), Some(2), "{ran}");
        assert!(ran.stderr.contains("2 jobs were enqueued before"), "{ran}");
        assert!(ran.stderr.contains("line 3 of standard input"), "{ran}");
        assert_eq!(ran.stdout.lines().count(), 2, "{ran}");
        assert_eq!(workplace.depth()["ready"], before + 2);
    }
}
