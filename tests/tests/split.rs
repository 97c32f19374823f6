//! A split of one queue over two versions, as producers and operators see it: on each broker, with
//! the real binaries, weights that change, and `kill -9`.

#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use e2e::{Process, Workplace, eventually, get, wait_for};
use ebb_servers::{
    Nats, NatsOptions, Persistence, RabbitMq, RabbitMqOptions, Redis, RedisOptions, Sync,
};
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tokio::runtime::Runtime;

const VERSIONS: [&str; 2] = ["jobs-stable", "jobs-canary"];

/// A lease that nobody loses for having to wait for a processor.
const LONG: &str = "60s";
/// One whose end a test can wait for.
const SHORT: &str = "2s";

/// A broker, and whether it knows ids that it has seen.
struct Scene {
    workplace: Workplace,
    url: String,
    lease: &'static str,
    knows_ids: bool,
    _servers: Box<dyn std::any::Any>,
    _runtime: Runtime,
}

impl Scene {
    fn sqlite(lease: &'static str) -> Self {
        let workplace = Workplace::new();
        let url = format!("sqlite:{}", workplace.path("queue.db").display());
        Self::new(workplace, (url, lease), Box::new(()), Runtime::new().unwrap())
    }

    fn nats(lease: &'static str) -> Self {
        let runtime = Runtime::new().unwrap();
        let options = NatsOptions { sync: Sync::Always, ..NatsOptions::default() };
        let nats = runtime.block_on(Nats::start(options)).unwrap();
        Self::new(Workplace::new(), (nats.url(), lease), Box::new(nats), runtime)
    }

    fn redis(lease: &'static str) -> Self {
        let runtime = Runtime::new().unwrap();
        let options = RedisOptions { persistence: Persistence::Always, ..RedisOptions::default() };
        let redis = runtime.block_on(Redis::start(options)).unwrap();
        Self::new(Workplace::new(), (redis.url(), lease), Box::new(redis), runtime)
    }

    fn amqp(lease: &'static str) -> Self {
        let runtime = Runtime::new().unwrap();
        let amqp = runtime.block_on(RabbitMq::start(RabbitMqOptions::default())).unwrap();
        Self::new(Workplace::new(), (amqp.url(), lease), Box::new(amqp), runtime)
    }

    fn new(
        workplace: Workplace,
        (url, lease): (String, &'static str),
        servers: Box<dyn std::any::Any>,
        runtime: Runtime,
    ) -> Self {
        let keeps_none = url.starts_with("amqp");
        // RabbitMQ keeps no answers.
        let results = keeps_none.then(|| workplace.queue());
        let workplace = workplace.on(format!("{url}?queue=jobs&lease={lease}"), results);
        let (knows_ids, _servers, _runtime) = (!keeps_none, servers, runtime);
        let scene = Self { workplace, url, lease, knows_ids, _servers, _runtime };
        for queue in ["jobs", "jobs-stable", "jobs-canary"] {
            scene.workplace.ebb(&["queue", "init", "--queue", &scene.queue(queue)]).ok();
        }
        scene
    }

    fn queue(&self, name: &str) -> String {
        format!("{}?queue={name}&lease={}", self.url, self.lease)
    }

    fn worker(&self, version: &str) -> Process {
        self.workplace.start(&["worker", "--model", "echo", "--queue", &self.queue(version)])
    }

    fn weigh(&self, stable: u32, canary: u32) {
        let text = format!("[weights]\njobs-stable = {stable}\njobs-canary = {canary}\n");
        std::fs::write(self.workplace.path("weights.toml"), text).unwrap();
    }

    /// Starts a split by the file of weights, and says where its probes are.
    fn split(&self, more: &[&str]) -> (Process, String) {
        let file = self.workplace.path("weights.toml");
        let args = ["split", "--weights", file.to_str().unwrap(), "--reload", "100ms"];
        let args = [&args[..], &["--listen", "127.0.0.1:0"], more].concat();
        let mut split = self.workplace.start(&args);
        let probes = split.says("its address", |said| {
            let (_, rest) = said.split_once("address=")?;
            rest.split_once(char::is_whitespace).map(|(address, _)| address.to_owned())
        });
        (split, probes)
    }

    /// Writes jobs with these names as JSON lines.
    fn file(&self, name: &str, ids: impl Iterator<Item = String>) -> String {
        let mut lines = String::new();
        for id in ids {
            writeln!(lines, r#"{{"id": "{id}", "body": {{"input": "{id}"}}}}"#).unwrap();
        }
        let path = self.workplace.path(name);
        std::fs::write(&path, lines).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn enqueue(&self, prefix: &str, n: usize, more: &[&str]) -> Vec<Value> {
        let file = self.file("jobs.jsonl", (0..n).map(|nth| format!("{prefix}-{nth}")));
        let args = ["enqueue", "--file", &file, "--wait", "--timeout", "60s"];
        self.workplace.ebb(&[&args[..], more].concat()).ok().lines()
    }

    fn depth(&self, queue: &str) -> BTreeMap<String, u64> {
        let args = ["queue", "depth", "--json", "--queue", &self.queue(queue)];
        let depth = self.workplace.ebb(&args).ok().json();
        let states = ["ready", "in_flight", "delayed", "dead"];
        states.into_iter().map(|state| (state.into(), depth[state].as_u64().unwrap())).collect()
    }

    /// The same jobs for ever: those of this share by the function that the library has.
    fn versions(&self, results: &[Value]) -> BTreeMap<String, usize> {
        let mut found = BTreeMap::new();
        for (nth, result) in results.iter().enumerate() {
            assert_eq!(result["outcome"], "completed", "{result}");
            assert_eq!(result["body"]["output"], result["id"], "{nth}: {result}");
            *found.entry(result["queue"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        found
    }
}

fn metric(probes: &str, name: &str) -> Option<f64> {
    let page = get(probes, "/metrics")?.body;
    let line = page.lines().find(|line| line.starts_with(name))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

fn results_are_found_where_the_job_was_published(scene: &Scene) {
    scene.weigh(60, 40);
    let (mut split, probes) = scene.split(&["--no-create"]);
    let _workers = VERSIONS.map(|version| scene.worker(version));
    let results = scene.enqueue("first", 40, &[]);
    let found = scene.versions(&results);
    assert_eq!(found.keys().collect::<Vec<_>>(), ["jobs-canary", "jobs-stable"], "{found:?}");
    let later = ["result", "first-7", "--json"];
    assert_eq!(scene.workplace.ebb(&later).ok().json(), results[7], "also later");
    for (version, n) in &found {
        let name = format!("split_jobs_total{{to=\"{version}\"}}");
        wait_for(&name, || (metric(&probes, &name)? == *n as f64).then_some(()));
    }
    assert_eq!(get(&probes, "/readyz").unwrap().status, 200);

    // A queue that cannot be opened holds up nothing; a file of SQLite has whatever queue is named.
    let n_meanwhile = if scene.url.starts_with("sqlite") { 0 } else { 5 };
    if n_meanwhile > 0 {
        let typo = "[weights]\njobs-stable = 0\njobs-typo = 1\n";
        std::fs::write(scene.workplace.path("weights.toml"), typo).unwrap();
        split.says("that it is not there", |said| said.find("a queue of new weights cannot be"));
        let meanwhile = scene.versions(&scene.enqueue("meanwhile", n_meanwhile, &[]));
        assert!(!meanwhile.contains_key("jobs-typo"), "{meanwhile:?}");
    }

    // Promoted while it runs; what is broken changes nothing.
    std::fs::write(scene.workplace.path("weights.toml"), "[weights]\njobs-stable = x\n").unwrap();
    split.says("that the file is broken", |said| said.find("weights are broken"));
    scene.weigh(0, 1);
    let ratio = "split_weight_ratio{to=\"jobs-canary\"}";
    wait_for("the new weights", || (metric(&probes, ratio)? > 0.99).then_some(()));
    let promoted = scene.versions(&scene.enqueue("second", 10, &[]));
    assert_eq!(promoted, BTreeMap::from([("jobs-canary".to_owned(), 10)]));

    // At publication the same function chooses, and the answers are found the same way.
    let direct = ["--split", "jobs-stable=60,jobs-canary=40", "--split-by", "id"];
    let direct = scene.versions(&scene.enqueue("third", 20, &direct));
    assert_eq!(direct.len(), 2, "{direct:?}");

    // What is published again goes where it went, and whoever watches is told.
    if scene.knows_ids {
        let again = scene.versions(&scene.enqueue("third", 20, &[]));
        assert_eq!(again, direct, "by the records, and not by the weights of now");
        split.says("that a queue has no weight", |said| said.find("that has no weight"));
    }

    let versions = ["split", "compare", "jobs-stable", "jobs-canary", "--json"];
    let rows = scene.workplace.ebb(&versions).ok().json();
    assert_eq!((&rows[0]["queue"], &rows[0]["workers"]), (&"jobs-stable".into(), &1.into()));
    wait_for("the jobs in the comparison", || {
        let rows = scene.workplace.ebb(&versions).ok().json();
        let sum: u64 = (0..2).map(|nth| rows[nth]["completed"].as_u64().unwrap()).sum();
        (sum == 70 + n_meanwhile as u64).then_some(())
    });

    split.signal(Signal::SIGTERM);
    assert!(split.ends().success(), "{}", split.output());
}

/// Splits that are killed with -9 while they pass jobs on, and weights that change in between.
fn nothing_is_lost_or_doubled_by_kill_9(scene: &Scene) {
    const N: usize = 1200;
    let mut dice = StdRng::seed_from_u64(7);
    let file = scene.file("many.jsonl", (0..N).map(|nth| format!("many-{nth}")));
    scene.workplace.ebb(&["enqueue", "--file", &file]).ok();
    let mut n_midway = 0;
    for canary in [10, 50, 90, 30, 70] {
        scene.weigh(100 - canary, canary);
        let (mut split, probes) = scene.split(&["--window", "8"]);
        let forwarded = || {
            let of = |version| metric(&probes, &format!("split_jobs_total{{to=\"{version}\"}}"));
            Some(of("jobs-stable")? + of("jobs-canary")?)
        };
        // Jobs of a former life come back after their lease.
        eventually(Duration::from_secs(5), || forwarded().filter(|n| *n > 0.0));
        std::thread::park_timeout(Duration::from_millis(dice.random_range(0..40)));
        split.signal(Signal::SIGKILL);
        split.ends();
        let jobs = scene.depth("jobs");
        n_midway += usize::from(jobs["ready"] + jobs["in_flight"] > 0);
    }
    assert!(n_midway > 0, "it was killed too late to prove anything");
    let (split, _) = scene.split(&[]);
    wait_for("an empty intake", || {
        let jobs = scene.depth("jobs");
        (jobs["ready"] + jobs["in_flight"] + jobs["delayed"] == 0).then_some(())
    });
    drop(split);
    // Some brokers count late.
    let waiting = wait_for("all jobs in the queues of the versions", || {
        let waiting: u64 = VERSIONS.iter().map(|version| scene.depth(version)["ready"]).sum();
        (waiting >= N as u64).then_some(waiting)
    });
    if scene.knows_ids {
        assert_eq!(waiting, N as u64, "each job is in one queue, once");
    }
    assert_eq!(scene.depth("jobs")["dead"], 0);
    let _workers = VERSIONS.map(|version| scene.worker(version));
    for nth in (0..N).step_by(80) {
        let id = format!("many-{nth}");
        let result = ["result", &id, "--follow", "--timeout", "60s", "--json"];
        let result = scene.workplace.ebb(&result).ok().json();
        assert_eq!(result["body"]["output"], id, "{result}");
    }
}

#[test]
fn on_sqlite() {
    results_are_found_where_the_job_was_published(&Scene::sqlite(LONG));
    nothing_is_lost_or_doubled_by_kill_9(&Scene::sqlite(SHORT));
}

#[test]
fn on_nats() {
    results_are_found_where_the_job_was_published(&Scene::nats(LONG));
    nothing_is_lost_or_doubled_by_kill_9(&Scene::nats(SHORT));
}

#[test]
fn on_redis() {
    results_are_found_where_the_job_was_published(&Scene::redis(LONG));
    nothing_is_lost_or_doubled_by_kill_9(&Scene::redis(SHORT));
}

#[test]
fn on_rabbitmq() {
    results_are_found_where_the_job_was_published(&Scene::amqp(LONG));
    nothing_is_lost_or_doubled_by_kill_9(&Scene::amqp(SHORT));
}
