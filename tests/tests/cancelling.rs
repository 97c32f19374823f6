//! Cancelling a job, on the command line and with a real worker process.
#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::process::Stdio;

use e2e::{Process, Workplace, wait_for};
use serde_json::json;

/// A worker with the model that returns its input.
fn echo_worker(workplace: &Workplace) -> Process {
    workplace.start(&["worker", "--model", "echo", "--listen", "127.0.0.1:0"])
}

fn enqueue(workplace: &Workplace, id: &str, body: &serde_json::Value) {
    let file = workplace.path("jobs.jsonl");
    std::fs::write(&file, json!({ "id": id, "body": body }).to_string()).unwrap();
    workplace.ebb(&["enqueue", "--file", file.to_str().unwrap()]).ok();
}

#[test]
fn a_job_that_waits_is_cancelled_before_any_worker_is_there() {
    let workplace = Workplace::new();
    enqueue(&workplace, "unwanted", &json!({ "input": "unwanted" }));
    let told = workplace.ebb(&["cancel", "unwanted", "--json"]).ok().json();
    assert_eq!(told, json!({ "id": "unwanted", "state": "waiting" }));
    assert_eq!(workplace.depth()["ready"], 0);
    let again = workplace.ebb(&["cancel", "unwanted"]).ok();
    assert!(again.stdout.contains("had ended before"), "{again}");
    let unknown = workplace.ebb(&["cancel", "nobody-knows"]);
    assert_eq!(unknown.status.code(), Some(66), "{unknown}");

    let _worker = echo_worker(&workplace);
    enqueue(&workplace, "wanted", &json!({ "input": "wanted" }));
    workplace.ebb(&["result", "wanted", "--follow", "--timeout", "60s"]).ok();
    let result = workplace.ebb(&["result", "unwanted", "--json"]);
    assert_eq!(result.status.code(), Some(1), "{result}");
    assert_eq!(result.json()["outcome"], "cancelled", "{result}");
    assert_eq!(workplace.ebb(&["dlq", "list", "--json"]).ok().json(), json!([]));
}

#[test]
fn jobs_are_cancelled_to_the_last_though_nobody_reads_of_them() {
    let workplace = Workplace::new();
    let jobs = ["a", "b", "c"];
    for id in jobs {
        enqueue(&workplace, id, &json!({ "input": id }));
    }
    for (ids, code) in [(&jobs[..], 0), (&["nobody-knows", "a"], 66)] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut cancel = workplace.command("ebb", &[&["cancel"], ids].concat());
        let status = cancel.stdin(Stdio::null()).stdout(writer).stderr(Stdio::null()).status();
        assert_eq!(status.unwrap().code(), Some(code), "{ids:?}");
        assert_eq!(workplace.depth()["ready"], 0, "{ids:?}");
    }
}

#[test]
fn a_job_that_is_being_told_word_by_word_stops() {
    let workplace = Workplace::new();
    let _worker = echo_worker(&workplace);
    let body = json!({ "input": "word ".repeat(2000), "stream": true, "sleep_ms": 50 });
    enqueue(&workplace, "long", &body);
    wait_for("the job to run", || (workplace.depth()["in_flight"] == 1).then_some(()));
    let told = workplace.ebb(&["cancel", "long", "--json"]).ok().json();
    assert_eq!(told["state"], "running", "{told}");
    // It makes room: on this device one follows the other.
    enqueue(&workplace, "next", &json!({ "input": "next" }));
    workplace.ebb(&["result", "next", "--follow", "--timeout", "30s"]).ok();
    let followed = workplace.ebb(&["result", "long", "--follow", "--json"]);
    assert_eq!(followed.status.code(), Some(1), "{followed}");
    assert_eq!(followed.lines().last().unwrap()["outcome"], "cancelled", "{followed}");
}
