//! From none to one, to all and back: KEDA, our scaler and our workers on real jobs.
//!
//! The pods are those of the cluster, which its scheduler is told to leave alone; for each of them
//! the test runs a worker, from its beginning to its end, as a node would.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use e2e::{Process, Workplace, eventually, run, wait_for};
use ebb_servers::{Nats, NatsOptions, Sync};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::cluster::Cluster;
use crate::pods::list;
use crate::render::{Object, overlays};
use crate::run::{address, environment};

/// Jobs of half a second: more than all workers of the overlay are to have at once, and so many that
/// they still are when the autoscaler looks for the second time.
const N_JOBS: usize = 200;

/// The objects of the pool of an overlay, in a namespace of the test's own.
fn pool(objects: &[Object], namespace: &str, scaler: &str) -> Vec<Object> {
    let of_the_pool = |one: &&Object| {
        one.namespace() == "ebb-workers" || one.is("PriorityClass", "", "ebb-worker")
    };
    let mut pool: Vec<Object> = objects.iter().filter(of_the_pool).cloned().collect();
    for object in &mut pool {
        let kind = object.kind().to_owned();
        let value = &mut object.0;
        match &*kind {
            // One for the cluster, which may have another.
            "PriorityClass" => value["metadata"]["name"] = json!(namespace),
            "Deployment" => {
                let spec = &mut value["spec"]["template"]["spec"];
                spec["priorityClassName"] = json!(namespace);
                spec["schedulingGates"] = json!([{"name": "ebb/process"}]);
            }
            "RoleBinding" => value["subjects"][0]["namespace"] = json!(namespace),
            "ScaledObject" => {
                value["spec"]["triggers"][0]["metadata"]["scalerAddress"] = json!(scaler);
            }
            _ => {}
        }
        if kind != "PriorityClass" {
            value["metadata"]["namespace"] = json!(namespace);
        }
    }
    pool
}

/// A pool and its workers.
struct Scene {
    cluster: Cluster,
    namespace: String,
    workplace: Workplace,
    environment: BTreeMap<String, String>,
    workers: BTreeMap<String, Process>,
    /// What `replicas` has been, without repetition.
    replicas: Vec<u64>,
}

impl Scene {
    /// Looks at the pool once: workers begin and end with their pods.
    fn look(&mut self) {
        let args = ["get", "deployments,pods", "-o", "json", "-n", &self.namespace];
        let found = self.cluster.run(&args, "").ok();
        let found: Value = serde_json::from_str(&found.stdout).unwrap();
        let items: Vec<Object> = list(&found, "/items").iter().cloned().map(Object).collect();
        let deployment = items.iter().find(|one| one.kind() == "Deployment").unwrap();
        let replicas = deployment.0["spec"]["replicas"].as_u64().unwrap();
        if self.replicas.last() != Some(&replicas) {
            self.replicas.push(replicas);
        }
        let pods = items.iter().filter(|one| one.kind() == "Pod");
        let pods = pods.filter(|one| one.0["metadata"].get("deletionTimestamp").is_none());
        let pods: Vec<&str> = pods.map(Object::name).collect();
        for name in &pods {
            if !self.workers.contains_key(*name) {
                let mut command = self.workplace.command("ebb", &["worker"]);
                let worker = Process::start(command.envs(&self.environment));
                self.workers.insert((*name).to_owned(), worker);
            }
        }
        let gone = self.workers.keys().filter(|name| !pods.contains(&name.as_str()));
        for name in gone.cloned().collect::<Vec<_>>() {
            let mut worker = self.workers.remove(&name).unwrap();
            assert!(worker.runs(), "{name} ended by itself: {}", worker.output());
            worker.signal(Signal::SIGTERM);
            assert!(worker.ends().success(), "{name}: {}", worker.output());
        }
    }

    #[track_caller]
    fn until(&mut self, what: &str, patience: Duration, mut holds: impl FnMut(&Self) -> bool) {
        let held = eventually(patience, || {
            self.look();
            holds(self).then_some(())
        });
        if held.is_none() {
            let args = ["get", "events,scaledobjects", "-n", &self.namespace];
            let told = self.cluster.run(&args, "");
            panic!("{what}: not within {patience:?}; replicas were {:?}\n{told}", self.replicas);
        }
    }
}

/// A scaler for the queues of this broker, where the cluster reaches it, and its address.
fn scaler(workplace: &Workplace, broker: &str, namespace: &str) -> (Process, String) {
    let host = std::env::var("EBB_TEST_HOST").unwrap_or_else(|_| "127.0.0.1".to_owned());
    let config = workplace.path("scaler.toml");
    let page = format!(
        "[profiles.default]\nurl = \"{broker}\"\n[[policy]]\nnamespaces = [\"{namespace}\"]\n\
         profiles = [\"default\"]\n"
    );
    fs::write(&config, page).unwrap();
    let mut command = workplace.command("ebb-scaler", &["--http-listen", "127.0.0.1:0"]);
    command.arg("--listen").arg(format!("{host}:0")).arg("--config").arg(config);
    let mut scaler = Process::start(command.env_remove("EBB_QUEUE"));
    let grpc = scaler.says("its address", |said| address(said, "listen="));
    (scaler, grpc)
}

/// The pool in a namespace as the base makes it.
fn make(cluster: &mut Cluster, objects: &[Object], namespace: &str, scaler: &str) {
    let home = objects.iter().find(|one| one.is("Namespace", "", "ebb-workers"));
    let mut home = home.unwrap().clone();
    home.0["metadata"]["name"] = json!(namespace);
    cluster.make(&home);
    let (classes, pool): (Vec<_>, Vec<_>) =
        pool(objects, namespace, scaler).into_iter().partition(|one| one.kind() == "PriorityClass");
    classes.iter().for_each(|class| cluster.make(class));
    assert_eq!(cluster.apply(&pool, &[]).ok().stderr, "");
}

#[test]
fn keda_takes_a_pool_from_none_to_one_to_all_and_back() {
    let test = "keda_takes_a_pool_from_none_to_one_to_all_and_back";
    let Some(mut cluster) = Cluster::named(test) else { return };
    let Some(all) = overlays(test) else { return };
    let objects = &all["overlays/nats-cpu"];
    let namespace = format!("ebb-test-{}", std::process::id());

    let runtime = Runtime::new().unwrap();
    let options = NatsOptions { sync: Sync::Always, ..NatsOptions::default() };
    let nats = runtime.block_on(Nats::start(options)).unwrap();
    let workplace = Workplace::new().on(format!("{}?queue=jobs", nats.url()), None);
    workplace.ebb(&["queue", "init"]).ok();
    let (mut scaler, grpc) = scaler(&workplace, &nats.url(), &namespace);
    make(&mut cluster, objects, &namespace, &grpc);
    let (_, mut environment) = environment(objects, "ebb-worker", Some("worker")).unwrap();
    for (name, value) in [
        ("EBB_QUEUE", workplace.queue().as_str()),
        ("EBB_MODEL", "echo"),
        ("EBB_ECHO_ITEM", "500ms"),
        ("EBB_LISTEN", "127.0.0.1:0"),
    ] {
        environment.insert(name.to_owned(), value.to_owned());
    }
    let (workers, replicas) = (BTreeMap::new(), Vec::new());
    let mut scene = Scene { cluster, namespace, workplace, environment, workers, replicas };
    // A Deployment without `replicas` begins with one.
    let minutes = |n: u64| Duration::from_secs(60 * n);
    scene.until("an idle pool of none", minutes(2), |scene| scene.replicas.last() == Some(&0));
    scene.replicas = vec![0];

    let jobs: Vec<String> =
        (0..N_JOBS).map(|n| json!({"input": n.to_string()}).to_string()).collect();
    let mut command = scene.workplace.command("ebb", &["enqueue", "--file", "-"]);
    let published = run(&mut command, &jobs.join("\n")).ok().stdout;
    let ids: Vec<&str> = published.lines().collect();
    assert_eq!(ids.len(), N_JOBS);
    let depth = |scene: &Scene| {
        let depth = scene.workplace.depth();
        ["ready", "in_flight", "delayed", "dead"].map(|state| depth[state].as_u64().unwrap())
    };
    scene.until("all workers", minutes(2), |scene| scene.replicas.last() == Some(&3));
    assert_eq!(scene.replicas, [0, 1, 3], "from none to one, and to all in one step");
    scene.until("the end of all jobs", minutes(5), |scene| depth(scene) == [0; 4]);
    assert_eq!(scene.replicas, [0, 1, 3], "nobody goes while jobs wait or run");
    scene.until("a pool of none", minutes(3), |scene| scene.workers.is_empty());
    assert_eq!(scene.replicas, [0, 1, 3, 0]);

    for (n, id) in ids.into_iter().enumerate() {
        let result = scene.workplace.ebb(&["result", id, "--json"]).ok().json();
        assert_eq!(result["body"]["output"], n.to_string(), "{result}");
        assert_eq!(result["attempt"], 1, "{result}");
    }
    scaler.signal(Signal::SIGTERM);
    wait_for("the end of the scaler", || (!scaler.runs()).then_some(()));
}
