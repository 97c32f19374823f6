//! `ebb up`: the whole system on one machine, from nothing to work and back, and nothing left over.

#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use e2e::{Process, Workplace, processes_that_mention, wait_for};
use ebb_servers::{Redis, RedisOptions};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// The system with the model that returns its input, quick to sleep again.
fn up(workplace: &Workplace) -> Process {
    up_with(workplace, &[])
}

/// The same with further flags.
fn up_with(workplace: &Workplace, flags: &[&str]) -> Process {
    let args = [
        "up",
        "--json",
        "--model",
        "echo",
        "--max-replicas",
        "2",
        "--jobs-per-replica",
        "10",
        "--polling-interval",
        "250ms",
        "--sync-interval",
        "500ms",
        "--cooldown",
        "1s",
        "--stabilization",
        "1s",
    ];
    workplace.start(&[&args[..], flags].concat())
}

/// The last state that `ebb up` has told.
fn state(up: &Process) -> Option<Value> {
    let said = up.output();
    let whole = said.rfind('\n').map_or("", |end| &said[..end]);
    // Lines of the log are objects too.
    let is_state = |line: &Value| line["replicas"].is_u64();
    whole.lines().rev().find_map(|line| serde_json::from_str(line).ok().filter(is_state))
}

fn running(up: &Process) -> Option<u64> {
    state(up)?["running"].as_u64()
}

/// The processes of this test's own folder, `ebb up` itself left out.
fn workers(workplace: &Workplace, up: &Process) -> Vec<u32> {
    let folder = workplace.folder().to_str().unwrap();
    processes_that_mention(folder).into_iter().filter(|pid| *pid != up.pid()).collect()
}

fn asleep(up: &Process) {
    wait_for("a pool of none", || {
        let state = state(up)?;
        (state["running"] == 0 && state["replicas"] == 0).then_some(())
    });
}

#[test]
fn jobs_of_another_process_wake_the_pool_and_it_goes_back_to_none() {
    let workplace = Workplace::new();
    let mut up = up(&workplace);
    asleep(&up);
    assert_eq!(workers(&workplace, &up), Vec::<u32>::new(), "nothing runs where nothing waits");

    let texts: Vec<String> =
        (0..60).map(|n| format!(r#"{{"input": "text {n}", "sleep_ms": 150}}"#)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let args = [&["enqueue"], texts.as_slice(), &["--wait", "--json"]].concat();
    let results = workplace.ebb(&args).ok().lines();
    assert_eq!(results.len(), 60);
    for (n, result) in results.iter().enumerate() {
        assert_eq!(result["body"]["output"], format!("text {n}"), "{result}");
    }
    let said = up.output();
    let most = said
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok()?["running"].as_u64());
    assert_eq!(most.max(), Some(2), "60 jobs at 10 each want more than the 2 allowed");

    asleep(&up);
    wait_for("the last worker's end", || workers(&workplace, &up).is_empty().then_some(()));
    let depth = workplace.depth();
    assert_eq!(
        (&depth["ready"], &depth["in_flight"], &depth["dead"]),
        (&0.into(), &0.into(), &0.into())
    );

    // And again from none.
    workplace.ebb(&["enqueue", "once more", "--wait"]).ok();
    up.signal(Signal::SIGTERM);
    assert!(up.ends().success(), "{}", up.output());
    assert_eq!(workers(&workplace, &up), Vec::<u32>::new());
}

/// Starts the system with a job that takes long, and waits until a worker is on it.
fn busy(workplace: &Workplace, sleep_ms: u64) -> Process {
    let up = up(workplace);
    let body = format!(r#"{{"input": "slow", "sleep_ms": {sleep_ms}}}"#);
    workplace.ebb(&["enqueue", &body]).ok();
    wait_for("a worker at work", || {
        (workplace.depth()["in_flight"] == 1 && running(&up)? > 0).then_some(())
    });
    assert!(!workers(workplace, &up).is_empty(), "workers are found by their folder");
    up
}

#[test]
fn sigterm_lets_the_workers_finish_and_leaves_none_behind() {
    let workplace = Workplace::new();
    let mut up = busy(&workplace, 6000);
    up.signal(Signal::SIGTERM);
    assert!(up.ends().success(), "{}", up.output());
    assert_eq!(workers(&workplace, &up), Vec::<u32>::new());
    let depth = workplace.depth();
    assert_eq!((&depth["ready"], &depth["in_flight"]), (&0.into(), &0.into()), "it was finished");
}

#[test]
fn kill_9_leaves_no_worker_behind_and_loses_no_job() {
    let workplace = Workplace::new().with_short_leases();
    let mut first = busy(&workplace, 6000);
    first.signal(Signal::SIGKILL);
    first.ends();
    wait_for("the end of the orphans", || workers(&workplace, &first).is_empty().then_some(()));
    // Finished by the orphan before it ended, or still there: never gone.
    let depth = workplace.depth();
    assert_eq!(depth["dead"], 0, "{depth}");
    workplace.ebb(&["enqueue", "another"]).ok();
    let second = up(&workplace);
    wait_for("all done", || {
        let depth = workplace.depth();
        (depth["ready"] == 0 && depth["in_flight"] == 0 && depth["delayed"] == 0).then_some(())
    });
    assert_eq!(workplace.depth()["dead"], 0);
    asleep(&second);
}

#[test]
fn ctrl_c_ends_the_system_while_its_model_is_fetched() {
    let workplace = Workplace::new();
    // A hub that takes connections and never answers.
    let hub = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = workplace.command("ebb", &["up"]);
    command.env("HF_ENDPOINT", format!("http://{}", hub.local_addr().unwrap()));
    let mut up = Process::start(&mut command);
    up.says("that it fetches", |said| said.find("fetching"));
    let signalled = Instant::now();
    up.signal(Signal::SIGINT);
    assert_eq!(up.ends().signal(), Some(Signal::SIGINT as i32), "{}", up.output());
    assert!(signalled.elapsed() < Duration::from_secs(5), "{:?}", signalled.elapsed());
}

#[test]
fn a_demo_that_is_interrupted_says_what_it_waits_for_and_a_second_ctrl_c_ends_that() {
    let workplace = Workplace::new();
    let args = ["demo", "--model", "echo", "--jobs", "50000", "--max-replicas", "1"];
    let mut command = workplace.command("ebb", &args);
    let mut demo = Process::start(command.env("TMPDIR", workplace.folder()));
    demo.says("that a worker runs", |said| said.find("replicas 1/1"));
    let [worker] = workers(&workplace, &demo)[..] else { panic!("{}", demo.output()) };
    // One that is stopped where it is heeds no SIGTERM.
    kill(Pid::from_raw(worker.try_into().unwrap()), Signal::SIGSTOP).unwrap();
    demo.signal(Signal::SIGINT);
    demo.says("what it waits for", |said| said.find("finishing what is held"));
    let hurried = Instant::now();
    demo.signal(Signal::SIGINT);
    assert_eq!(demo.ends().code(), Some(130), "{}", demo.output());
    // A worker has 40 seconds.
    assert!(hurried.elapsed() < Duration::from_secs(20), "{:?}", hurried.elapsed());
    wait_for("the worker's end", || workers(&workplace, &demo).is_empty().then_some(()));
}

#[test]
fn a_pool_whose_workers_crash_says_so_and_does_not_spin() {
    let workplace = Workplace::new();
    // Known by its configuration, so that workers are started, and without weights, so that none can load it.
    let model = workplace.path("tiny-bert");
    std::fs::create_dir(&model).unwrap();
    let whole = e2e::workspace_root().join("model/tests/data/tiny-bert/config.json");
    std::fs::copy(whole, model.join("config.json")).unwrap();
    workplace.ebb(&["enqueue", "x"]).ok();
    let mut up = workplace.start(&["up", "--json", "--model", model.to_str().unwrap()]);
    let crash = "a worker ended by itself";
    let n_crashes = |said: &str| said.matches(crash).count();
    up.says("that it tries again", |said| (n_crashes(said) > 1).then_some(()));
    // Each pause is twice as long as the one before, so there is no eighth within a minute.
    let spins = || (n_crashes(&up.output()) > 7).then_some(());
    let spun = e2e::eventually(std::time::Duration::from_secs(5), spins);
    assert!(spun.is_none() && up.runs(), "{}", up.output());
}

#[test]
fn jobs_that_wait_are_left_alone_where_no_encoder_can_be_had() {
    let workplace = Workplace::new();
    workplace.ebb(&["enqueue", "a text"]).ok();
    let mut command = workplace.command("ebb", &["up"]);
    // Without a hub, and without the Python whose pip would ask an index.
    let mut up = Process::start(command.env("HF_HUB_OFFLINE", "1").env("PATH", workplace.folder()));
    assert_eq!(up.ends().code(), Some(69), "{}", up.output());
    let said = up.output();
    assert!(said.contains("name --model sentinel if you mean it"), "{said}");
    let depth = workplace.depth();
    assert_eq!((&depth["ready"], &depth["dead"]), (&1.into(), &0.into()), "{depth}");
}

/// Nothing is waiting, nothing runs, and the broker dies: the scaler says UNAVAILABLE once its last
/// look counts no more, and each poll after that is a failure.
#[test]
fn with_a_fallback_the_pool_is_there_when_the_broker_comes_back() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut redis = runtime.block_on(Redis::start(RedisOptions::default())).unwrap();
    let workplace = Workplace::new().on(format!("{}?queue=jobs", redis.url()), None);
    let fallback = ["--fallback-replicas", "2", "--fallback-after", "1"];
    let up = up_with(&workplace, &fallback);
    asleep(&up);
    redis.kill();
    wait_for("as many workers as the fallback has", || {
        (workers(&workplace, &up).len() == 2).then_some(())
    });
    runtime.block_on(redis.restart()).unwrap();
    // The scaler answers again, and there is still nothing to do.
    asleep(&up);
    wait_for("the last worker's end", || workers(&workplace, &up).is_empty().then_some(()));
}
