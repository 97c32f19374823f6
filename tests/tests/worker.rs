//! What a worker process promises when it is killed, stopped or asked how it is.

#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use e2e::{Process, Workplace, get, skipped, wait_for};
use nix::sys::signal::Signal;
use serde_json::Value;

/// A worker with the model that returns its input, and where its probes are.
fn echo_worker(workplace: &Workplace, more: &[&str]) -> (Process, String) {
    let args = ["worker", "--model", "echo", "--listen", "127.0.0.1:0"];
    let mut worker = workplace.start(&[&args, more].concat());
    let address = worker.says("its address", |said| {
        let rest = said.split_once("address=")?.1;
        let (address, _) = rest.split_once(char::is_whitespace)?;
        Some(address.to_owned())
    });
    (worker, address)
}

/// Enqueues `n` jobs named `job-0` and on, each of which takes so long.
fn enqueue(workplace: &Workplace, n: usize, sleep_ms: u64) {
    let mut lines = String::new();
    for n in 0..n {
        writeln!(
            lines,
            r#"{{"id": "job-{n}", "body": {{"input": "{n}", "sleep_ms": {sleep_ms}}}}}"#
        )
        .unwrap();
    }
    std::fs::write(workplace.path("jobs.jsonl"), lines).unwrap();
    let file = workplace.path("jobs.jsonl");
    workplace.ebb(&["enqueue", "--file", file.to_str().unwrap()]).ok();
}

fn result(workplace: &Workplace, n: usize) -> Value {
    let id = format!("job-{n}");
    let result = workplace.ebb(&["result", &id, "--follow", "--timeout", "60s", "--json"]).ok();
    let result = result.json();
    assert_eq!(result["body"]["output"], n.to_string(), "{result}");
    result
}

fn count(workplace: &Workplace, state: &str) -> u64 {
    workplace.depth()[state].as_u64().unwrap()
}

/// Waits until the worker holds jobs, and says how many.
fn holding(workplace: &Workplace) -> u64 {
    wait_for("jobs in flight", || {
        let n = count(workplace, "in_flight");
        (n > 0).then_some(n)
    })
}

#[test]
fn kill_9_in_mid_batch_loses_nothing() {
    let workplace = Workplace::new().with_short_leases();
    let (mut first, _) = echo_worker(&workplace, &["--max-items", "4"]);
    enqueue(&workplace, 24, 250);
    holding(&workplace);
    first.signal(Signal::SIGKILL);
    assert!(!first.ends().success());
    let left = count(&workplace, "ready") + count(&workplace, "in_flight");
    assert!(left > 0, "it was killed too late to prove anything");

    let (_second, _) = echo_worker(&workplace, &["--max-items", "4"]);
    let attempts: Vec<u64> =
        (0..24).map(|n| result(&workplace, n)["attempt"].as_u64().unwrap()).collect();
    assert!(attempts.iter().all(|attempt| [1, 2].contains(attempt)), "{attempts:?}");
    assert!(attempts.contains(&2), "what was held was tried again: {attempts:?}");
    assert_eq!(count(&workplace, "dead"), 0);
}

#[test]
fn sigterm_gives_back_what_has_not_begun_and_spends_no_attempt() {
    let workplace = Workplace::new();
    let (mut worker, _) = echo_worker(&workplace, &["--max-items", "2"]);
    enqueue(&workplace, 30, 200);
    wait_for("the end of a batch", || {
        (count(&workplace, "ready") + count(&workplace, "in_flight") < 30).then_some(())
    });
    worker.signal(Signal::SIGTERM);
    assert!(worker.ends().success(), "{}", worker.output());
    // Given back at once: nobody has to wait for a lease to end.
    assert_eq!(count(&workplace, "in_flight"), 0, "{}", worker.output());
    let left = count(&workplace, "ready");
    assert!((1..30).contains(&left), "it finished what it had begun and no more: {left} left");

    let (_second, _) = echo_worker(&workplace, &["--max-items", "30"]);
    for n in 0..30 {
        assert_eq!(result(&workplace, n)["attempt"], 1, "job {n}");
    }
}

#[test]
fn a_worker_that_cannot_finish_ends_within_its_grace_all_the_same() {
    let workplace = Workplace::new().with_short_leases();
    let (mut worker, _) = echo_worker(&workplace, &["--grace", "1s"]);
    enqueue(&workplace, 1, 600_000);
    holding(&workplace);
    worker.signal(Signal::SIGTERM);
    // Far less than the ten minutes of the job.
    worker.ends();
    wait_for("the job's lease to end", || (count(&workplace, "ready") == 1).then_some(()));
}

#[test]
fn probes_tell_a_start_a_run_and_a_drain_apart() {
    let workplace = Workplace::new();
    let (mut worker, address) = echo_worker(&workplace, &[]);
    let status = |path: &str| get(&address, path).map(|answer| answer.status);
    wait_for("readiness", || (status("/readyz") == Some(200)).then_some(()));
    assert_eq!((status("/livez"), status("/startupz")), (Some(200), Some(200)));

    enqueue(&workplace, 1, 20_000);
    holding(&workplace);
    let page = wait_for("the job in the metrics", || {
        let page = get(&address, "/metrics")?.body;
        page.lines().any(|line| line == "worker_jobs_in_flight 1").then_some(page)
    });
    assert!(page.contains("build_info{version="), "{page}");
    assert!(page.contains("worker_cold_start_seconds{phase="), "{page}");

    worker.signal(Signal::SIGTERM);
    // The batch takes long enough to look: alive and started, but no use for new jobs.
    wait_for("the drain to show", || (status("/readyz") == Some(503)).then_some(()));
    assert_eq!((status("/livez"), status("/startupz")), (Some(200), Some(200)));
    assert!(worker.ends().success(), "{}", worker.output());
    assert_eq!(result(&workplace, 0)["attempt"], 1, "the job was finished");
}

#[test]
fn a_worker_without_its_broker_waits_alive_and_not_ready() {
    let workplace = Workplace::new();
    // A file where the queue's folder should be: nothing can be opened there, for now.
    std::fs::write(workplace.path("folder"), "").unwrap();
    let queue = format!("sqlite:{}", workplace.path("folder/queue.db").display());
    let (mut worker, address) = echo_worker(&workplace, &["--queue", &queue]);
    let status = |path: &str| get(&address, path).map(|answer| answer.status);
    worker.says("that it tries again", |said| said.find("trying again"));
    assert_eq!(status("/livez"), Some(200), "a restart would mend nothing");
    // Else Kubernetes would end it at the end of its time for a start, and load the model again.
    wait_for("the end of the start", || (status("/startupz") == Some(200)).then_some(()));
    assert_eq!(status("/readyz"), Some(503));

    std::fs::remove_file(workplace.path("folder")).unwrap();
    std::fs::create_dir(workplace.path("folder")).unwrap();
    wait_for("readiness", || (status("/readyz") == Some(200)).then_some(()));
}

#[test]
fn a_worker_computes_with_the_processors_that_it_may_use() {
    let taskset = Path::new("/usr/bin/taskset");
    if !taskset.is_file() {
        let test = "a_worker_computes_with_the_processors_that_it_may_use";
        return skipped(test, "install util-linux for taskset");
    }
    let workplace = Workplace::new();
    let worker = ["worker", "--model", "echo"];
    let mut pinned = workplace.command("ebb", &[]);
    let ebb = pinned.get_program().to_owned();
    let environment: Vec<_> = pinned
        .get_envs()
        .map(|(name, value)| (name.to_owned(), value.map(ToOwned::to_owned)))
        .collect();
    pinned = Command::new(taskset);
    pinned.args(["--cpu-list", "0"]).arg(ebb).args(worker);
    for (name, value) in environment {
        match value {
            Some(value) => pinned.env(name, value),
            None => pinned.env_remove(name),
        };
    }
    Process::start(&mut pinned).says("its threads", |said| said.find("threads=1"));
    let mut named = workplace.start(&[&worker, &["--threads", "3"][..]].concat());
    named.says("the threads it was given", |said| said.find("threads=3"));
}

#[test]
fn a_model_that_the_code_does_not_know_is_an_error_at_once() {
    let workplace = Workplace::new();
    let folder = workplace.path("strange");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("config.json"), r#"{"model_type": "oracle"}"#).unwrap();
    let ran = workplace.ebb(&["worker", "--model", folder.to_str().unwrap()]).failed();
    assert!(ran.stderr.contains("oracle"), "{ran}");
    let ran = workplace.ebb(&["worker", "--model", "no/such-model"]).failed();
    assert!(ran.stderr.contains("no/such-model"), "{ran}");
}

#[test]
fn two_workers_share_a_queue_and_no_job_is_done_twice() {
    let workplace = Workplace::new();
    let (_one, one) = echo_worker(&workplace, &["--max-items", "3", "--id", "one"]);
    let (_two, two) = echo_worker(&workplace, &["--max-items", "3", "--id", "two"]);
    for address in [&one, &two] {
        let ready = || (get(address, "/readyz")?.status == 200).then_some(());
        wait_for("readiness", ready);
    }
    enqueue(&workplace, 60, 100);
    for n in 0..60 {
        assert_eq!(result(&workplace, n)["attempt"], 1, "job {n}");
    }
    let done = |address: &str| {
        let page = get(address, "/metrics").unwrap().body;
        let line = page.lines().find(|line| {
            line.starts_with("worker_jobs_total{model=\"echo\",outcome=\"completed\"")
        });
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0)
    };
    wait_for("60 jobs in the metrics of both", || (done(&one) + done(&two) == 60.0).then_some(()));
    assert!(done(&one) > 0.0 && done(&two) > 0.0, "one of them did everything");
}
