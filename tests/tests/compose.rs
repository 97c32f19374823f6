//! The brokers for a developer's machine are what their page says, and nobody else reaches them.

#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::ffi::OsString;
use std::process::Command;

use e2e::{run, skipped, workspace_root};
use ebb_queue::{Address, QueueUrl};
use regex::Regex;
use serde_json::Value;

/// The file as JSON, by a reader of YAML that is not ours.
fn compose(test: &str) -> Option<Value> {
    let Some(python) = std::env::var_os("EBB_TEST_PYTHON") else {
        skipped(test, "name a Python with pyyaml in EBB_TEST_PYTHON, as tests/run does");
        return None;
    };
    let program = "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))";
    let mut python = Command::new(python);
    python.args(["-c", program]).arg(workspace_root().join("deploy/compose.yaml"));
    Some(run(&mut python, "").ok().json())
}

fn texts(list: &Value) -> Vec<String> {
    let list = list.as_array().unwrap_or_else(|| panic!("not a list: {list}"));
    list.iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_page_names_the_versions_and_the_ports_of_the_file() {
    let Some(compose) = compose("the_page_names_the_versions_and_the_ports_of_the_file") else {
        return;
    };
    let page = std::fs::read_to_string(workspace_root().join("deploy/README.md")).unwrap();
    let row = r"(?m)^\| (\w+)[^|]* \| ([\d.]+) \| `([^`]+)` \| `([^`]+)` \| (?:`([^`]+)` )?\|$";
    let row = Regex::new(row).unwrap();
    let rows: Vec<_> = row.captures_iter(&page).collect();
    let services = compose["services"].as_object().unwrap();
    assert_eq!(rows.len(), services.len(), "a row for each broker");
    for row in rows {
        let service = &services[&row[1].to_lowercase()];
        let image = service["image"].as_str().unwrap();
        assert!(image.contains(&format!(":{}-", &row[2])), "{image}: {}", &row[0]);
        for started in row[3].split(' ') {
            assert!(services.contains_key(started), "{started}");
        }
        let url: QueueUrl = row[4].parse().unwrap();
        let port = url.to_string().rsplit_once(':').unwrap().1.to_owned();
        let port = port.split('?').next().unwrap();
        assert!(texts(&service["ports"]).contains(&format!("127.0.0.1:{port}:{port}")), "{port}");
        let environment = &service["environment"];
        if let Some(user) = environment["RABBITMQ_DEFAULT_USER"].as_str() {
            let password = environment["RABBITMQ_DEFAULT_PASS"].as_str().unwrap();
            assert!(row[4].contains(&format!("//{user}:{password}@")), "{}", &row[4]);
        }
        let keeps_no_results = matches!(url.address, Address::Amqp(_));
        assert_eq!(row.get(5).is_some(), keeps_no_results, "{}", &row[0]);
        if let Some(results) = row.get(5) {
            let results: QueueUrl = results.as_str().parse().unwrap();
            let started = row[3].split(' ').any(|name| results.to_string().starts_with(name));
            assert!(started, "the store of results is started too: {}", &row[0]);
        }
    }
}

#[test]
fn each_broker_is_pinned_watched_kept_and_on_the_loopback_alone() {
    let test = "each_broker_is_pinned_watched_kept_and_on_the_loopback_alone";
    let Some(compose) = compose(test) else { return };
    let pinned = Regex::new(r"^docker\.io/library/\w+:\d+\.\d+\.\d+[\w-]*$").unwrap();
    for (name, service) in compose["services"].as_object().unwrap() {
        assert!(pinned.is_match(service["image"].as_str().unwrap()), "{name}: {service}");
        let ports = texts(&service["ports"]);
        assert!(!ports.is_empty() && ports.iter().all(|port| port.starts_with("127.0.0.1:")));
        assert!(service["healthcheck"]["test"].is_array(), "{name} is watched");
        let volumes = texts(&service["volumes"]);
        for volume in &volumes {
            let (volume, _) = volume.split_once(':').unwrap();
            assert!(compose["volumes"].get(volume).is_some(), "{name} keeps {volume}");
        }
        assert_eq!(volumes.len(), 1, "{name} keeps its data");
    }
}

#[test]
fn nats_takes_the_configuration_in_the_file() {
    let test = "nats_takes_the_configuration_in_the_file";
    let Some(compose) = compose(test) else { return };
    let Some(server) = std::env::var_os("EBB_NATS_SERVER") else {
        return skipped(test, "name a nats-server in EBB_NATS_SERVER, as tests/run does");
    };
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let config = compose["configs"]["nats"]["content"].as_str().unwrap();
    assert!(config.contains("store_dir: /data\n"), "{config}");
    let config = config.replace("/data", data.to_str().unwrap());
    let path = folder.path().join("nats.conf");
    std::fs::write(&path, config).unwrap();
    let path = OsString::from(path);
    run(Command::new(server).arg("-t").arg("-c").arg(path), "").ok();
}
