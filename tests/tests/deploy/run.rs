//! What the manifests say, done for real: the scaler reads the triggers, programs start with the
//! environment of their pods, the broker takes its configuration, and a model is pulled once.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use e2e::{Process, Run, Workplace, get, run, skipped, wait_for};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::assert_none;
use crate::network::urls;
use crate::pods::{Pods, list, pods, text};
use crate::render::{Object, overlays};

/// Every queue that a trigger names.
fn queues(objects: &[Object]) -> Vec<String> {
    let triggers = objects.iter().flat_map(|one| list(&one.0, "/spec/triggers"));
    let queues = triggers.map(|one| text(one, "/metadata/queue").to_owned());
    queues.filter(|queue| !queue.is_empty()).collect()
}

/// The scaler's configuration on a file of the test's own, with every queue that triggers name.
fn configuration(workplace: &Workplace, objects: &[Object]) -> std::path::PathBuf {
    let file = format!("sqlite:{}", workplace.path("queue.db").display());
    // The profile's own, too.
    let named = queues(objects).into_iter().map(|queue| format!("{file}?queue={queue}"));
    for url in named.chain([file.clone()]) {
        workplace.ebb(&["queue", "init", "--queue", &url]).ok();
    }
    let config = objects.iter().find(|one| one.is("ConfigMap", "ebb", "ebb-scaler")).unwrap();
    let mut config = config.text("/data/scaler.toml").to_owned();
    for url in urls(&config) {
        config = config.replace(&url, &file);
    }
    let path = workplace.path("scaler.toml");
    fs::write(&path, config).unwrap();
    path
}

/// What the real scaler says of the triggers among the objects.
pub(crate) fn checked(objects: &[Object]) -> Run {
    let workplace = Workplace::new();
    let config = configuration(&workplace, objects);
    let scaled = objects.iter().filter(|one| one.kind().starts_with("Scaled"));
    let pages: Vec<String> = scaled.map(|one| one.0.to_string()).collect();
    let path = workplace.path("objects.yaml");
    fs::write(&path, pages.join("\n---\n")).unwrap();
    let config = config.to_str().unwrap();
    let args = ["scaler", "check", "--json", "--config", config, "--scaledobject"];
    let mut command = workplace.command("ebb", &args);
    run(command.arg(&path).env_remove("EBB_QUEUE"), "")
}

#[test]
fn the_scaler_takes_every_trigger_that_we_ship() {
    let Some(all) = overlays("the_scaler_takes_every_trigger_that_we_ship") else { return };
    let mut broken = Vec::new();
    let mut n_triggers = 0;
    for (overlay, objects) in all {
        let checked = checked(objects);
        if !checked.status.success() {
            broken.push(format!("{overlay}: {checked}"));
            continue;
        }
        n_triggers += checked.json()["triggers"].as_array().map_or(0, Vec::len);
    }
    assert_none("the scaler reads a trigger and may answer it", broken);
    assert!(n_triggers >= all.len(), "only {n_triggers} triggers were answered");
}

/// The arguments and the environment of the first container of an image of ours that runs this
/// command; an image of one program has none.
pub(crate) fn environment(
    objects: &[Object],
    image: &str,
    command: Option<&str>,
) -> Option<(Vec<String>, BTreeMap<String, String>)> {
    pods(objects).iter().find_map(|pods| {
        let containers = pods.containers();
        let container = containers.iter().find(|one| {
            let runs = list(one.value, "/args").first().and_then(Value::as_str);
            !one.first && one.image().starts_with(image) && runs == command
        })?;
        let args = list(container.value, "/args").iter().filter_map(Value::as_str);
        Some((args.map(str::to_owned).collect(), container.environment(pods, objects)))
    })
}

pub(crate) fn address(said: &str, mark: &str) -> Option<String> {
    let rest = said.split(mark).nth(1)?;
    let end = rest.find(|c: char| c.is_whitespace() || c == '"' || c == ',')?;
    Some(rest[..end].to_owned())
}

#[test]
fn programs_start_with_the_environment_of_their_pods_and_answer_their_probes() {
    let test = "programs_start_with_the_environment_of_their_pods_and_answer_their_probes";
    let Some(all) = overlays(test) else { return };
    // What differs between overlays, each once.
    let mut seen = Vec::new();
    for (overlay, objects) in all {
        let worker = environment(objects, "ebb-worker", Some("worker"));
        let Some((args, mut environment)) = worker else { continue };
        let workplace = Workplace::new();
        // The place of the queue, the model, the device and the port are this machine's.
        environment.insert("EBB_QUEUE".to_owned(), workplace.queue());
        environment.insert("EBB_MODEL".to_owned(), "echo".to_owned());
        environment.insert("EBB_LISTEN".to_owned(), "127.0.0.1:0".to_owned());
        environment.remove("EBB_RESULTS");
        if environment.remove("EBB_DEVICE").is_some_and(|device| device != "cpu") {
            environment.remove("EBB_DTYPE");
            environment.remove("EBB_KERNEL_CACHE");
        }
        let mut key = environment.clone();
        key.remove("EBB_QUEUE");
        if seen.contains(&(args.clone(), key.clone())) {
            continue;
        }
        seen.push((args.clone(), key));
        let ends_alone = args.iter().any(|word| word == "--exit-when-empty");
        let words: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut command = workplace.command("ebb", &words);
        let mut worker = Process::start(command.envs(&environment));
        if ends_alone {
            assert!(worker.ends().success(), "{overlay}: {}", worker.output());
            continue;
        }
        let http = worker.says("its address", |said| {
            address(said, "\"address\":\"").or_else(|| address(said, "address="))
        });
        wait_for("readiness", || get(&http, "/readyz").filter(|page| page.status == 200));
        for path in ["/livez", "/startupz"] {
            assert_eq!(get(&http, path).unwrap().status, 200, "{overlay}: {path}");
        }
        worker.signal(Signal::SIGTERM);
        assert!(worker.ends().success(), "{overlay}: {}", worker.output());
    }
    assert!(!seen.is_empty(), "no worker was started");

    let objects = &all["overlays/nats-cpu"];
    let (_, mut environment) = environment_of_scaler(objects);
    let workplace = Workplace::new();
    let config = configuration(&workplace, objects);
    environment.insert("EBB_SCALER_CONFIG".to_owned(), config.to_str().unwrap().to_owned());
    for listen in ["EBB_SCALER_LISTEN", "EBB_SCALER_HTTP_LISTEN"] {
        environment.insert(listen.to_owned(), "127.0.0.1:0".to_owned());
    }
    let mut command = workplace.command("ebb-scaler", &[]);
    let mut scaler = Process::start(command.env_remove("EBB_QUEUE").envs(&environment));
    let http = scaler.says("its address", |said| {
        address(said, "\"http\":\"").or_else(|| address(said, "http="))
    });
    for path in ["/livez", "/readyz", "/startupz"] {
        assert_eq!(get(&http, path).unwrap().status, 200, "{path}");
    }
    scaler.signal(Signal::SIGTERM);
    assert!(scaler.ends().success(), "{}", scaler.output());
}

fn environment_of_scaler(objects: &[Object]) -> (Vec<String>, BTreeMap<String, String>) {
    environment(objects, "ebb-scaler", None).expect("there is a scaler")
}

#[test]
fn a_split_starts_with_the_environment_of_its_pod_and_its_weights() {
    let test = "a_split_starts_with_the_environment_of_its_pod_and_its_weights";
    let Some(all) = overlays(test) else { return };
    let objects = &all["overlays/nats-gpu-canary"];
    let (args, mut environment) =
        environment(objects, "ebb-worker", Some("split")).expect("there is a split");
    let weights =
        objects.iter().find(|one| one.is("ConfigMap", "ebb-workers", "ebb-split-weights"));
    let weights = weights.expect("it has weights").text("/data/weights.toml");
    let workplace = Workplace::new();
    let path = workplace.path("weights.toml");
    fs::write(&path, weights).unwrap();
    environment.insert("EBB_SPLIT_WEIGHTS".to_owned(), path.to_str().unwrap().to_owned());
    environment.insert("EBB_QUEUE".to_owned(), workplace.queue());
    environment.insert("EBB_LISTEN".to_owned(), "127.0.0.1:0".to_owned());
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut split = Process::start(workplace.command("ebb", &words).envs(&environment));
    let http = split.says("its address", |said| address(said, "\"address\":\""));
    wait_for("readiness", || get(&http, "/readyz").filter(|page| page.status == 200));
    assert_eq!(get(&http, "/livez").unwrap().status, 200);
    split.signal(Signal::SIGTERM);
    assert!(split.ends().success(), "{}", split.output());
}

#[test]
fn a_gateway_starts_with_the_environment_of_its_pod_and_lets_only_keys_in() {
    let test = "a_gateway_starts_with_the_environment_of_its_pod_and_lets_only_keys_in";
    let Some(all) = overlays(test) else { return };
    let objects = &all["overlays/nats-gpu-gateway"];
    let (args, mut environment) =
        environment(objects, "ebb-worker", Some("gateway")).expect("there is a gateway");
    let config = objects.iter().find(|one| one.is("ConfigMap", "ebb", "ebb-gateway"));
    let mut config = config.expect("it has models").text("/data/gateway.toml").to_owned();
    let workplace = Workplace::new();
    for url in urls(&config) {
        config = config.replace(&url, &workplace.queue());
    }
    let keys = format!("[keys.team]\nsha256 = \"{}\"\n", "0".repeat(64));
    let secret = "0123456789abcdef".repeat(4);
    for (variable, text) in [
        ("EBB_GATEWAY_CONFIG", config),
        ("EBB_GATEWAY_KEYS", keys),
        ("EBB_GATEWAY_ID_SECRET_FILE", secret),
    ] {
        let path = workplace.path(variable);
        fs::write(&path, text).unwrap();
        environment.insert(variable.to_owned(), path.to_str().unwrap().to_owned());
    }
    for listen in ["EBB_GATEWAY_LISTEN", "EBB_LISTEN"] {
        environment.insert(listen.to_owned(), "127.0.0.1:0".to_owned());
    }
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut command = workplace.command("ebb", &words);
    let mut gateway = Process::start(command.env_remove("EBB_QUEUE").envs(&environment));
    let mut listens = |what: &str| {
        gateway.says("its address", |said| {
            let line = said.lines().find(|line| line.contains(what))?;
            address(line, "\"address\":\"")
        })
    };
    let (http, api) = (listens("probes"), listens("the gateway listens"));
    wait_for("readiness", || get(&http, "/readyz").filter(|page| page.status == 200));
    assert_eq!(get(&http, "/livez").unwrap().status, 200);
    assert_eq!(get(&api, "/v1/models").unwrap().status, 401);
    gateway.signal(Signal::SIGTERM);
    assert!(gateway.ends().success(), "{}", gateway.output());
}

#[test]
fn nats_takes_the_configuration_of_its_component() {
    let test = "nats_takes_the_configuration_of_its_component";
    let Some(all) = overlays(test) else { return };
    let Some(server) = std::env::var_os("EBB_NATS_SERVER") else {
        return skipped(test, "name a nats-server in EBB_NATS_SERVER, as tests/run does");
    };
    let objects = &all["overlays/nats-cpu"];
    let config = objects.iter().find(|one| one.is("ConfigMap", "nats", "nats")).unwrap();
    let config = config.text("/data/nats.conf");
    assert!(config.contains("sync_interval: always"), "{config}");
    let folder = tempfile::tempdir().unwrap();
    let config = config.replace("/data", folder.path().join("data").to_str().unwrap());
    let path = folder.path().join("nats.conf");
    fs::write(&path, config).unwrap();
    let check = |with: bool| {
        let mut command = Command::new(&server);
        command.arg("-t").arg("-c").arg(&path).env_remove("EBB_BROKER_PASSWORD");
        if with {
            command.env("EBB_BROKER_PASSWORD", "a-password");
        }
        run(&mut command, "")
    };
    check(true).ok();
    // Without its password it does not start, rather than let everybody in.
    check(false).failed();
}

/// The script of the container that fetches a model.
fn script(objects: &[Object]) -> String {
    let pods = pods(objects);
    let of_model = pods.iter().flat_map(Pods::containers).find(|one| one.name() == "model");
    let container = of_model.expect("a container fetches a model");
    assert_eq!(container.value["command"], serde_json::json!(["/bin/sh", "-euc"]));
    text(container.value, "/args/0").to_owned()
}

/// A volume of models, and what the container that fills it runs.
struct Volume {
    folder: tempfile::TempDir,
    script: String,
}

impl Volume {
    fn new(objects: &[Object]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let script = script(objects);
        let models = folder.path().join("models");
        let script = script.replace("/models/", &format!("{}/", models.display()));
        let volume = Self { folder, script };
        volume.fill();
        volume
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A cache with a model, and what stands for `ebb`.
    fn fill(&self) {
        for name in ["models", "hub", "bin"] {
            fs::create_dir(self.path(name)).unwrap();
        }
        fs::write(self.path("hub/config.json"), "{}").unwrap();
        fs::write(self.path("hub/blob"), "weights").unwrap();
        std::os::unix::fs::symlink("blob", self.path("hub/model.safetensors")).unwrap();
        // Stands for the real `ebb model pull`, which another test runs against a hub.
        let count = self.path("count");
        let program = format!(
            "#!/bin/sh\n[ \"$1 $2 $3\" = 'model pull org/name' ] || exit 9\necho x >> {}\necho {}\n",
            count.display(),
            self.path("hub").display()
        );
        fs::write(self.path("bin/ebb"), program).unwrap();
        fs::set_permissions(self.path("bin/ebb"), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The container.
    fn start(&self) -> Command {
        let mut shell = Command::new("/bin/sh");
        let search = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        shell.args(["-euc", &self.script]).env("PATH", search);
        shell.env("MODEL", "name").env("MODEL_SOURCE", "org/name");
        shell
    }

    /// Two of it at once, as when a pool goes from none to many.
    fn start_two(&self) {
        let mut both = [Process::start(&mut self.start()), Process::start(&mut self.start())];
        for one in &mut both {
            assert!(one.ends().success(), "{}", one.output());
        }
    }

    /// How often something was pulled.
    fn n_pulls(&self) -> usize {
        fs::read_to_string(self.path("count")).unwrap().lines().count()
    }
}

#[test]
fn a_model_is_pulled_once_and_is_whole_or_not_there() {
    let Some(all) = overlays("a_model_is_pulled_once_and_is_whole_or_not_there") else { return };
    let volume = Volume::new(&all["overlays/nats-gpu"]);
    volume.start_two();
    let pulled = volume.n_pulls();
    assert!((1..=2).contains(&pulled), "{pulled}");
    run(&mut volume.start(), "").ok();
    assert_eq!(volume.n_pulls(), pulled, "it is there already");
    let weights = volume.path("models/name/model.safetensors");
    assert!(!weights.is_symlink(), "a link into the cache would lead nowhere");
    assert_eq!(fs::read_to_string(weights).unwrap(), "weights");
    assert_eq!(entries(&volume.path("models")), ["name"], "no half of a copy is left");

    // A version lies in a folder of its own.
    run(volume.start().env("MODEL", "v2/name"), "").ok();
    assert!(volume.path("models/v2/name/config.json").is_file());
    assert_eq!(entries(&volume.path("models/v2")), ["name"]);
    // Which is no model itself, and no part of one.
    run(volume.start().env("MODEL", "v2"), "").failed();
    assert!(volume.path("models/v2/name/config.json").is_file());
    fs::remove_dir_all(volume.path("models/v2")).unwrap();

    // A part of a model, whoever left it, is replaced.
    fs::remove_file(volume.path("models/name/config.json")).unwrap();
    volume.start_two();
    assert!(volume.path("models/name/config.json").is_file());
    fs::remove_file(volume.path("models/.lock")).unwrap();
    assert_eq!(entries(&volume.path("models")), ["name"], "neither the part nor a copy is left");
}

#[test]
fn what_is_no_whole_model_is_not_left_on_the_volume() {
    let Some(all) = overlays("what_is_no_whole_model_is_not_left_on_the_volume") else { return };
    let volume = Volume::new(&all["overlays/nats-gpu"]);
    // What a killed container left goes when it is old.
    for (name, age) in [(".copy.killed", 2), (".copy.live", 0)] {
        fs::create_dir(volume.path("models").join(name)).unwrap();
        let modified = SystemTime::now() - Duration::from_secs(age * 24 * 3600);
        fs::File::open(volume.path("models").join(name)).unwrap().set_modified(modified).unwrap();
    }
    run(&mut volume.start(), "").ok();
    let mut left = entries(&volume.path("models"));
    left.sort();
    assert_eq!(left, [".copy.live", "name"]);
    fs::remove_dir(volume.path("models/.copy.live")).unwrap();

    // Weights alone are no model, and take no model's place.
    fs::remove_dir_all(volume.path("models/name")).unwrap();
    fs::rename(volume.path("hub/config.json"), volume.path("config.json")).unwrap();
    let failed = run(&mut volume.start(), "").failed();
    assert!(failed.stderr.contains("has no config.json"), "{failed}");
    assert_eq!(entries(&volume.path("models")), Vec::<String>::new());
    fs::rename(volume.path("config.json"), volume.path("hub/config.json")).unwrap();

    // A pull that fails leaves nothing, and says so by its end.
    fs::write(volume.path("bin/ebb"), "#!/bin/sh\nexit 69\n").unwrap();
    run(&mut volume.start(), "").failed();
    assert_eq!(entries(&volume.path("models")), Vec::<String>::new());
}

fn entries(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
