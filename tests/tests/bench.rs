//! The promises that `ebb-bench` checks, on every broker, in runs short enough for every day.
//! No speed is asserted but that an arrival is told at once.

#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use e2e::{Process, Run, Workplace, eventually, processes_that_mention, run, skipped, wait_for};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Held alone by what is told by the clock, and by all others together: most of their time they wait.
static TURN: RwLock<()> = RwLock::new(());

/// Runs `ebb-bench QUESTION --broker BROKER` and returns its report; `None` where the broker is not
/// wanted here.
#[track_caller]
fn bench(question: &str, broker: &str, args: &[&str]) -> Option<Value> {
    Some(ran(question, broker, args)?.ok().json())
}

/// The same however it ended.
fn ran(question: &str, broker: &str, args: &[&str]) -> Option<Run> {
    let unwanted = std::env::var("EBB_SKIP_BROKERS").unwrap_or_default();
    if unwanted.split(',').any(|name| name == broker) {
        skipped(&format!("ebb-bench {question} --broker {broker}"), "EBB_SKIP_BROKERS names it");
        return None;
    }
    let _turns = if question == "notify" {
        (Some(TURN.write().unwrap_or_else(PoisonError::into_inner)), None)
    } else {
        (None, Some(TURN.read().unwrap_or_else(PoisonError::into_inner)))
    };
    let workplace = Workplace::new();
    let mut command = workplace.command("ebb-bench", &[question, "--broker", broker, "--json"]);
    command.args(args);
    // Where servers are is the machine's affair and not the test's.
    for name in ["EBB_NATS_SERVER", "EBB_REDIS_SERVER", "EBB_RABBITMQ_SERVER"] {
        command.envs(std::env::var_os(name).map(|path| (name, path)));
    }
    for name in ["HOME", "XDG_CACHE_HOME"] {
        match std::env::var_os(name) {
            Some(path) => command.env(name, path),
            None => command.env_remove(name),
        };
    }
    Some(run(&mut command, ""))
}

#[track_caller]
fn count(report: &Value, key: &str) -> u64 {
    report[key].as_u64().unwrap_or_else(|| panic!("{key} in {report}"))
}

#[track_caller]
fn number(report: &Value, key: &str) -> f64 {
    report[key].as_f64().unwrap_or_else(|| panic!("{key} in {report}"))
}

/// Kills workers and the broker at random, and looks at what became of the jobs.
#[track_caller]
fn assert_nothing_is_lost(broker: &str, n_jobs: u64, n_kills: u64, n_restarts: u64) {
    let (jobs, kills) = (n_jobs.to_string(), n_kills.to_string());
    let restarts = n_restarts.to_string();
    let args = ["--jobs", &jobs, "--kills", &kills, "--restarts", &restarts];
    let Some(report) = bench("chaos", broker, &args) else { return };
    assert_eq!(count(&report, "enqueued"), n_jobs, "{report}");
    assert_eq!(count(&report, "done") + count(&report, "dead"), n_jobs, "{report}");
    assert_eq!((count(&report, "lost"), count(&report, "overwritten")), (0, 0), "{report}");
    // One in a hundred cannot succeed, and of each of three kinds there is one.
    let n_bad = (n_jobs / 100).max(3);
    assert_eq!(count(&report, "dead") - count(&report, "exhausted"), n_bad, "{report}");
    assert_eq!((count(&report, "wronged"), count(&report, "crashed")), (0, 0), "{report}");
    assert_eq!(count(&report, "kills"), n_kills, "{report}");
    assert_eq!(count(&report, "restarts"), n_restarts, "{report}");
}

#[test]
fn nothing_is_lost_or_overwritten_when_workers_on_sqlite_are_killed_at_random() {
    assert_nothing_is_lost("sqlite", 500, 8, 0);
}

#[test]
fn nothing_is_lost_or_overwritten_when_nats_and_its_workers_are_killed_at_random() {
    assert_nothing_is_lost("nats", 300, 5, 2);
}

#[test]
fn nothing_is_lost_or_overwritten_when_rabbitmq_and_its_workers_are_killed_at_random() {
    assert_nothing_is_lost("amqp", 300, 5, 2);
}

#[test]
fn nothing_is_lost_or_overwritten_when_redis_and_its_workers_are_killed_at_random() {
    assert_nothing_is_lost("redis", 300, 5, 2);
}

/// Publishes in one process and listens in another.
#[track_caller]
fn assert_every_arrival_is_told_at_once(broker: &str) {
    // Whoever polls, at intervals of up to half a second, is late in every round; a machine that is
    // busy elsewhere is in some.
    for round in 1.. {
        let Some(report) = bench("notify", broker, &["--samples", "9"]) else { return };
        assert_eq!((count(&report, "samples"), count(&report, "missed")), (9, 0), "{report}");
        for key in ["event_p50_ms", "event_p99_ms", "stream_p50_ms", "stream_p99_ms"] {
            assert!(number(&report, key) > 0.0, "{key}: {report}");
        }
        // How long the disk takes to accept a job says nothing about how soon it is told.
        let limit = number(&report, "publish_p50_ms") + 100.0;
        let told = ["event_p50_ms", "stream_p50_ms"];
        if told.iter().all(|key| number(&report, key) < limit) {
            return;
        }
        assert!(round < 3, "the event and `true` are told within 100 ms at the median: {report}");
    }
}

#[test]
fn every_arrival_on_sqlite_is_told_in_the_process_that_waits_for_it() {
    assert_every_arrival_is_told_at_once("sqlite");
}

#[test]
fn every_arrival_on_nats_is_told_in_the_process_that_waits_for_it() {
    assert_every_arrival_is_told_at_once("nats");
}

#[test]
fn every_arrival_on_rabbitmq_is_told_in_the_process_that_waits_for_it() {
    assert_every_arrival_is_told_at_once("amqp");
}

#[test]
fn every_arrival_on_redis_is_told_in_the_process_that_waits_for_it() {
    assert_every_arrival_is_told_at_once("redis");
}

/// A short run of both sides: each job must have its result, which the bench looks up itself.
#[track_caller]
fn assert_both_sides_answer_every_job(broker: &str) {
    let args = ["--jobs", "1000", "--rounds", "1", "--latency-s", "1"];
    let Some(report) = bench("overhead", broker, &args) else { return };
    let speeds = ["worker_jobs_per_s", "bare_jobs_per_s", "ratio"];
    for key in speeds.into_iter().chain(["latency_p50_ms", "latency_p99_ms"]) {
        assert!(number(&report, key) > 0.0, "{key}: {report}");
    }
}

#[test]
fn the_worker_and_the_bare_loop_on_sqlite_answer_every_job() {
    assert_both_sides_answer_every_job("sqlite");
}

#[test]
fn the_worker_and_the_bare_loop_on_nats_answer_every_job() {
    assert_both_sides_answer_every_job("nats");
}

#[test]
fn the_worker_and_the_bare_loop_on_rabbitmq_answer_every_job() {
    assert_both_sides_answer_every_job("amqp");
}

#[test]
fn the_worker_and_the_bare_loop_on_redis_answer_every_job() {
    assert_both_sides_answer_every_job("redis");
}

/// A short run of both sides: each request must have its vectors, which the bench looks at itself.
#[track_caller]
fn assert_the_gateway_answers_every_request(broker: &str) {
    let args = ["--clients", "8", "--requests", "200", "--rounds", "1", "--waiting", "50"];
    let Some(report) = bench("gateway", broker, &args) else { return };
    let figures = ["gateway_requests_per_s", "queue_jobs_per_s", "ratio", "gateway_p50_ms"];
    for key in figures.into_iter().chain(["gateway_p99_ms", "queue_p50_ms", "queue_p99_ms"]) {
        assert!(number(&report, key) > 0.0, "{key}: {report}");
    }
    assert!(report["kib_per_waiting_request"].is_number(), "{report}");
}

#[test]
fn the_gateway_on_sqlite_answers_every_request() {
    assert_the_gateway_answers_every_request("sqlite");
}

#[test]
fn the_gateway_on_redis_answers_every_request() {
    assert_the_gateway_answers_every_request("redis");
}

#[test]
fn thousands_of_objects_are_answered_for_and_the_broker_does_not_notice() {
    let args = ["--objects", "400", "--queues", "4", "--rate", "100", "--seconds", "3", "--awake"];
    // The calls of a broker that notices grow in every round; a machine that is busy elsewhere gets
    // round to few of them while it is asked for few objects, in some.
    for round in 1.. {
        let Some(ran) = ran("scaler", "sqlite", &args) else { return };
        let report = ran.json();
        let few = &report["few"];
        assert_eq!((count(&report, "objects"), count(few, "objects")), (400, 4), "{report}");
        for side in [&report, few] {
            assert_eq!(count(side, "wrong"), 0, "{report}");
            for key in ["p50_ms", "p99_ms", "rss_mib", "broker_calls_per_s"] {
                assert!(number(side, key) > 0.0, "{key}: {report}");
            }
        }
        if ran.status.success() {
            assert_eq!((count(&report, "errors"), count(few, "errors")), (0, 0), "{report}");
            return;
        }
        assert!(round < 3, "{ran}");
    }
}

#[test]
fn every_stream_on_one_connection_is_told_of_an_arrival() {
    let args = ["--streams", "300", "--queues", "3", "--rounds", "2"];
    let Some(report) = bench("streams", "sqlite", &args) else { return };
    assert_eq!((count(&report, "streams"), count(&report, "untold")), (300, 0), "{report}");
    assert!(number(&report, "told_within_ms") >= number(&report, "p50_ms"), "{report}");
}

/// Kills the broker under a producer, a worker that holds jobs, and a scaler that is polled, for
/// longer than its last look counts.
#[track_caller]
fn assert_an_outage_is_never_told_as_no_work(broker: &str) {
    // Whoever forgets the broker is late in every round; a machine that is busy elsewhere is in some.
    for round in 1.. {
        let args = ["--queues", "2", "--loaded", "1", "--down-s", "6", "--max-age-s", "3"];
        let args = [&args[..], &["--recovery-s", "60"]].concat();
        let Some(ran) = ran("outage", broker, &args) else { return };
        let report = ran.json();
        // No machine is an excuse for these.
        for key in ["zeros", "inactive", "wrong"] {
            assert_eq!(count(&report, key), 0, "{key}: {report}");
        }
        let errors = ["spec_errors", "too_late", "other_errors", "broken_streams", "unanswered"];
        let has_none = errors.iter().all(|key| count(&report, key) == 0);
        let seconds = |key: &str, range: std::ops::RangeInclusive<f64>| {
            report[key].as_f64().is_some_and(|seconds| range.contains(&seconds))
        };
        // The last look counts for a while, then nothing is known, and good answers come back soon.
        let is_in_time = seconds("known_s", 0.5..=6.0)
            && seconds("all_known_s", 0.5..=6.0)
            && seconds("unavailable_s", 0.0..=6.0)
            && seconds("recovered_s", 0.0..=5.0);
        if ran.status.success() && has_none && is_in_time && count(&report, "held") > 0 {
            return;
        }
        assert!(round < 3, "{ran}");
    }
}

#[test]
fn while_nats_is_down_the_scaler_tells_what_it_knows_and_then_that_it_knows_nothing() {
    assert_an_outage_is_never_told_as_no_work("nats");
}

#[test]
fn while_rabbitmq_is_down_the_scaler_tells_what_it_knows_and_then_that_it_knows_nothing() {
    assert_an_outage_is_never_told_as_no_work("amqp");
}

#[test]
fn while_redis_is_down_the_scaler_tells_what_it_knows_and_then_that_it_knows_nothing() {
    assert_an_outage_is_never_told_as_no_work("redis");
}

#[test]
fn a_broker_that_a_url_names_is_not_killed() {
    let workplace = Workplace::new();
    // Refused before anything is asked of it.
    let url = "redis://127.0.0.1:9";
    for (broker, words) in [("redis", "not ours to kill"), ("nats", "make them agree")] {
        let args = ["chaos", "--broker", broker, "--url", url, "--restarts", "1"];
        let refused = run(&mut workplace.command("ebb-bench", &args), "").failed();
        assert!(refused.stderr.contains(words), "{words}: {refused}");
    }
    for place in [&["--broker", "redis", "--url", url][..], &["--broker", "sqlite"]] {
        let args = [&["outage"], place].concat();
        let refused = run(&mut workplace.command("ebb-bench", &args), "").failed();
        assert!(refused.stderr.contains("no broker to kill"), "{refused}");
    }
}

/// Starts a bench that would go on for long, with a temporary directory of its own.
fn started(workplace: &Workplace, args: &[&str]) -> (Process, PathBuf) {
    let folder = workplace.path("tmp");
    std::fs::create_dir(&folder).unwrap();
    let mut command = workplace.command("ebb-bench", args);
    (Process::start(command.env("TMPDIR", &folder)), folder)
}

/// Interrupts one that keeps processors busy, once it has said so.
#[track_caller]
fn assert_a_signal_ends(args: &[&str], words: &str) {
    let _turn = TURN.read().unwrap_or_else(PoisonError::into_inner);
    let workplace = Workplace::new();
    let (mut bench, folder) = started(&workplace, args);
    bench.says(words, |said| said.find(words));
    // Half a second of a processor: it is past its beginning.
    wait_for("a busy bench", || (ticks(bench.pid()) >= 50).then_some(()));
    bench.signal(Signal::SIGINT);
    let ended = eventually(Duration::from_secs(30), || (!bench.runs()).then_some(()));
    assert!(ended.is_some(), "{args:?} goes on for 30 s");
    assert_eq!(bench.ends().code(), Some(1), "{}", bench.output());
    assert!(bench.output().contains("interrupted"), "{}", bench.output());
    let left: Vec<_> = std::fs::read_dir(folder).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// The processor time that a process has used, in hundredths of a second.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let (_, fields) = stat.rsplit_once(')').unwrap_or_default();
    let times = fields.split_whitespace().skip(11).take(2);
    times.filter_map(|time| time.parse::<u64>().ok()).sum()
}

#[test]
fn a_simulation_ends_with_a_signal() {
    assert_a_signal_ends(&["simulate"], "");
}

#[test]
fn a_comparison_of_batchers_ends_with_a_signal() {
    assert_a_signal_ends(&["batching", "--jobs", "500000"], "");
}

#[test]
fn a_bench_of_devices_ends_with_a_signal_and_leaves_no_folder() {
    let args = ["gpu", "--device", "cpu", "--shapes", "tiny", "--tokens", "16", "--seconds", "60"];
    assert_a_signal_ends(&[&args[..], &["--batch-tokens", "16"]].concat(), "tiny on cpu");
}

#[test]
fn a_bench_of_answers_ends_with_a_signal_and_leaves_no_folder() {
    // Between its turns it rests.
    let args = ["generate", "--shape", "tiny", "--rounds", "100000", "--new", "200"];
    assert_a_signal_ends(&[&args[..], &["--sequences", "64"]].concat(), "at once");
}

/// Kills a bench with -9 while a process of ours runs for it.
#[track_caller]
fn assert_it_ends_with_its_bench(process: &str, args: &[&str], words: &str) {
    let _turn = TURN.read().unwrap_or_else(PoisonError::into_inner);
    let workplace = Workplace::new();
    let (mut bench, folder) = started(&workplace, args);
    let folder = folder.to_str().unwrap();
    bench.says(words, |said| said.find(words));
    wait_for(process, || {
        let is_one = |pid: &u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).nth(1) == Some(process.as_bytes())
        };
        processes_that_mention(folder).into_iter().find(is_one)
    });
    bench.signal(Signal::SIGKILL);
    let gone = || processes_that_mention(folder).is_empty().then_some(());
    let left = || processes_that_mention(folder);
    assert!(eventually(Duration::from_secs(10), gone).is_some(), "{process}: {:?}", left());
}

#[test]
fn a_scaler_ends_with_a_bench_that_is_killed() {
    let args = ["streams", "--streams", "100", "--queues", "2", "--rounds", "1000"];
    assert_it_ends_with_its_bench("scaler", &args, "streams are open");
}

#[test]
fn a_gateway_ends_with_a_bench_that_is_killed() {
    let args = ["gateway", "--clients", "4", "--requests", "40", "--rounds", "100000"];
    assert_it_ends_with_its_bench("gateway", &args, "round 1 of");
}

#[test]
fn a_worker_ends_with_a_bench_of_devices_that_is_killed() {
    let args = ["gpu", "--device", "cpu", "--shapes", "tiny", "--tokens", "16"];
    assert_it_ends_with_its_bench("worker", &args, "a start with caches cold");
}

#[test]
fn the_batcher_is_held_against_all_others_in_every_case_and_the_worst_is_told() {
    let _turn = TURN.read().unwrap_or_else(PoisonError::into_inner);
    let workplace = Workplace::new();
    let args = ["batching", "--jobs", "100", "--rounds", "1", "--json"];
    let report = run(&mut workplace.command("ebb-bench", &args), "").ok().json();
    let rows = report["rows"].as_array().unwrap();
    // Two devices, two mixes and three ways in which texts lie, against three others each.
    assert_eq!(rows.len(), 36, "{report}");
    for key in ["p50_ratio", "p99_ratio"] {
        let worst = rows.iter().map(|row| number(row, key)).fold(0.0, f64::max);
        assert!(worst > 0.0 && number(&report, key) == worst, "{key}: {report}");
    }
}

#[test]
fn the_bench_of_devices_runs_on_the_processor_from_the_weights_to_the_queue() {
    let args = ["--device", "cpu", "--shapes", "tiny", "--tokens", "16", "--batch-tokens", "16"];
    let Some(report) = bench("gpu", "sqlite", &[&args[..], &["--seconds", "0.1"]].concat()) else {
        return;
    };
    let row = &report["rows"][0];
    assert_eq!((count(row, "tokens"), count(row, "batch")), (16, 1), "{report}");
    for key in ["kernels", "pipeline", "queue", "queue_of_one", "tokens_per_s"] {
        assert!(number(row, key) > 0.0, "{key}: {report}");
    }
    let check = &report["checks"][0];
    assert!(number(check, "largest_difference") <= number(check, "tolerance"), "{report}");
    let cold = &report["cold_starts"][0];
    assert!(number(cold, "first_result_s") > 0.0, "{report}");
    let phases = cold["phases"].as_array().unwrap().iter().map(|phase| phase[0].as_str().unwrap());
    assert_eq!(phases.collect::<Vec<_>>(), ["process", "weights", "warm-up", "tokenizer"]);
}

/// Runs the bench of devices on the processor, with a script of the shell in the place of python.
fn bench_beside(workplace: &Workplace, script: &str) -> Run {
    let _turn = TURN.read().unwrap_or_else(PoisonError::into_inner);
    let (python, temporary) = (workplace.path("python"), workplace.path("temporary"));
    std::fs::create_dir(&temporary).unwrap();
    std::fs::write(&python, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
    let args = ["gpu", "--device", "cpu", "--dtype", "f32", "--shapes", "tiny", "--tokens", "16"];
    let more = ["--batch-tokens", "16", "--seconds", "0.1", "--python", python.to_str().unwrap()];
    let mut command = workplace.command("ebb-bench", &[&args[..], &more].concat());
    run(command.env("TMPDIR", &temporary), "")
}

/// What the table has for torch, eager and compiled, and for the ratio to the latter.
#[track_caller]
fn torch_cells(ran: &Run) -> [&str; 3] {
    let row = ran.stdout.lines().find(|line| line.contains(" tiny |"));
    let cells: Vec<&str> = row.unwrap_or_else(|| panic!("{ran}")).split('|').collect();
    [8, 9, 13].map(|n| cells[n].trim())
}

#[test]
fn a_bench_whose_python_fails_has_dashes_and_says_why_and_leaves_nothing_behind() {
    let workplace = Workplace::new();
    let script = "mktemp > /dev/null\necho 'the library is broken' >&2\nexit 1";
    let ran = bench_beside(&workplace, script).ok();
    assert_eq!(torch_cells(&ran), ["-", "-", "-"], "{ran}");
    assert!(ran.stderr.contains("torch eager: not here: the library is broken"), "{ran}");
    let left: Vec<_> = std::fs::read_dir(workplace.path("temporary")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_bench_whose_peer_has_other_vectors_fails_once_it_has_printed_what_it_measured() {
    let peers = r#"{"peers": {"eager": {"version": "1"}, "compiled": {"missing": "no GPU"}}}"#;
    // Two forwards of one text, and its vector, which is not as long as ours.
    let answer = r#"{"seconds": 0.5, "vectors": [[0.25]]}"#;
    let script = format!("read ask; echo '{peers}'\nwhile read ask; do echo '{answer}'; done");
    let ran = bench_beside(&Workplace::new(), &script).failed();
    assert_eq!(torch_cells(&ran), ["4", "-", "-"], "{ran}");
    assert!(ran.stderr.contains("vectors differ from torch's, eager by inf"), "{ran}");
}

/// Ten jobs of three priorities in four minutes.
const TRACE: &str = "\
arrival_s,service_s,priority
1000,1.5,normal
1001,0.5,high
1001.5,2,low
1002,1,
1060,1,normal
1061,1,low
1120,3,normal
1120,1,normal
1121,1,high
1240,2,normal
";

#[test]
fn a_trace_of_ones_own_is_simulated_and_plotted() {
    let workplace = Workplace::new();
    let (trace, plots) = (workplace.path("mine.csv"), workplace.path("plots"));
    std::fs::write(&trace, TRACE).unwrap();
    let [trace, dir] = [&trace, &plots].map(|path| path.to_str().unwrap());
    let policies = "oracle,slo,waiting,jobs,fallback,scaled-job,unacked,kpa";
    let args = ["simulate", "--trace", trace, "--policies", policies, "--outage-s", "20"];
    let run = |more: &[&str]| {
        run(&mut workplace.command("ebb-bench", &[&args[..], more].concat()), "").ok()
    };

    let report = run(&["--json", "--svg", dir]).json();
    assert_eq!((count(&report, "outage_s"), &report["away"]), (20, &"broker".into()), "{report}");
    let rows = report["rows"].as_array().unwrap();
    // The oracle, Knative, 18 lengths, 12 kinds of ScaledJobs, and five more in two objects each.
    assert_eq!(rows.len(), 42, "{report}");
    for row in rows {
        assert_eq!((&row["trace"], count(row, "killed")), (&"mine".into(), 0), "{row}");
        assert!(number(row, "attainment") <= 1.0 && number(row, "gpu_seconds") > 0.0, "{row}");
        assert!(number(row, "p50_wait_s") <= number(row, "p99_wait_s"), "{row}");
        let plot = row["policy"].as_str().unwrap().replace('/', "-");
        let plot = std::fs::read_to_string(plots.join(format!("mine-{plot}.svg"))).unwrap();
        assert!(plot.starts_with("<svg") && plot.trim_end().ends_with("</svg>"), "{row}");
    }
    assert_eq!(std::fs::read_dir(&plots).unwrap().count(), rows.len() + 1);
    let verdict = &report["verdicts"][0];
    assert_eq!(verdict["trace"], "mine");
    for key in ["cheapest", "cheapest_default", "cheapest_same", "cheapest_same_default"] {
        let setting = verdict[key]["setting"].as_str();
        assert!(setting.is_some_and(|name| name.starts_with("unacked-")), "{key}: {verdict}");
    }

    let tables = run(&[]).stdout;
    for words in ["scaledjob-eager-waiting/default", "cheapest that reaches as much", "slo saves %"]
    {
        assert!(tables.contains(words), "{words}: {tables}");
    }
}
