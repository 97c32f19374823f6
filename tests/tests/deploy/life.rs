//! How pods of ours begin, live and end: variables, flags, probes, and the time to drain.

use std::time::Duration;

use serde_json::Value;

use crate::pods::{Container, Pods, list, pods, text};
use crate::program::{Programs, unknown};
use crate::render::Object;
use crate::scaling::amount;

/// Time that a process needs after its grace: its last spans, and its exit.
const LAST_WORDS: Duration = Duration::from_secs(5);

const PROBES: [(&str, &str); 3] =
    [("startupProbe", "/startupz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/livez")];

/// A span as our flags take it.
fn span(text: &str) -> Option<Duration> {
    let at = text.find(|c: char| c.is_alphabetic())?;
    let number: f64 = text[..at].parse().ok()?;
    let unit = match &text[at..] {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    Some(Duration::from_secs_f64(number * unit))
}

/// What our programs are told is what they know, and what Kubernetes asks of them they answer.
pub(crate) fn life(all: &[Object], programs: &Programs) -> Vec<String> {
    let mut found = Vec::new();
    for pods in pods(all) {
        for container in pods.containers() {
            let Some(program) = programs.of(&container) else { continue };
            let mut wrong =
                |what: String| found.push(format!("{}: {}: {what}", pods.owner, container.name()));
            let program = match program {
                Ok(program) => program,
                Err(what) => {
                    wrong(what);
                    continue;
                }
            };
            let environment = container.environment(&pods, all);
            let mut names: Vec<&str> = environment.keys().map(String::as_str).collect();
            let listed = list(container.value, "/env").iter().map(|one| text(one, "/name"));
            names.extend(listed.filter(|name| !environment.contains_key(*name)));
            unknown(program, &container, &names).into_iter().for_each(&mut wrong);
            if container.first || container.value.get("command").is_some() {
                continue;
            }
            let is_scaler = container.image() == "ebb-scaler";
            // The program of workers does other things as well, and then runs no batches.
            let prefix = match (is_scaler, text(container.value, "/args/0")) {
                (true, _) => "EBB_SCALER",
                (false, "split") => "EBB_SPLIT",
                (false, "gateway") => "EBB_GATEWAY",
                (false, _) => "EBB",
            };
            let value = |name: &str| {
                let given = environment.get(name).map(String::as_str);
                given.or_else(|| program.default(name)).unwrap_or_default().to_owned()
            };
            let listens = if is_scaler { "EBB_SCALER_HTTP_LISTEN" } else { "EBB_LISTEN" };
            probes(&container, &value(listens)).into_iter().for_each(&mut wrong);
            let grace = value(&format!("{prefix}_GRACE"));
            let batches = prefix == "EBB";
            drains(&pods, &grace, batches.then(|| value("EBB_STALL")))
                .into_iter()
                .for_each(&mut wrong);
        }
    }
    found
}

fn probes(container: &Container<'_>, listens: &str) -> Vec<String> {
    let port = listens.rsplit(':').next().and_then(|port| port.parse::<u64>().ok());
    let mut found = Vec::new();
    for (probe, path) in PROBES {
        let get = &container.value[probe]["httpGet"];
        if get["path"] != path {
            found.push(format!("{probe} looks at {}, not at {path}", get["path"]));
        }
        let asked = container.port(&get["port"]);
        if asked.is_none() || asked != port {
            found
                .push(format!("{probe} asks port {}, and {listens:?} is listened on", get["port"]));
        }
    }
    found
}

fn drains(pods: &Pods<'_>, grace: &str, stall: Option<String>) -> Vec<String> {
    let given = pods.spec["terminationGracePeriodSeconds"].as_u64().unwrap_or(30);
    let given = Duration::from_secs(given);
    let Some(grace) = span(grace) else { return vec![format!("{grace:?} is no grace")] };
    let mut found = Vec::new();
    if given < grace + LAST_WORDS {
        found
            .push(format!("terminationGracePeriodSeconds {given:?} cuts a grace of {grace:?} off"));
    }
    let stall = stall.map(|stall| span(&stall).unwrap_or(Duration::MAX));
    if let Some(stall) = stall.filter(|stall| *stall >= grace) {
        found.push(format!("a grace of {grace:?} cuts a batch off, which may take {stall:?}"));
    }
    found
}

/// Other programs' probes look at ports that they have.
pub(crate) fn ports(all: &[Object]) -> Vec<String> {
    let mut found = Vec::new();
    for pods in pods(all) {
        for container in pods.containers() {
            for probe in PROBES.map(|(probe, _)| probe) {
                let Some(get) = container.value[probe].get("httpGet") else { continue };
                if container.port(&get["port"]).is_none() {
                    let name = container.name();
                    found.push(format!("{}: {name}: {probe} asks no port of it", pods.owner));
                }
            }
            let serves = container.value.get("ports").is_some_and(Value::is_array);
            if serves && !container.first {
                let has = PROBES.iter().all(|(probe, _)| container.value.get(*probe).is_some());
                if !has {
                    found.push(format!("{}: {}: lacks a probe", pods.owner, container.name()));
                }
            }
        }
    }
    found
}

/// A worker computes with the processors that it asks for, by a limit or by its number of threads:
/// with neither it takes all of its node.
pub(crate) fn threads(all: &[Object]) -> Vec<String> {
    let mut found = Vec::new();
    for pods in pods(all) {
        for container in pods.containers() {
            let works = text(container.value, "/args/0") == "worker";
            if container.first || !works || !container.image().starts_with("ebb-worker") {
                continue;
            }
            let environment = container.environment(&pods, all);
            let named = environment.get("EBB_THREADS").map_or("0", String::as_str);
            let asked = text(container.value, "/resources/requests/cpu");
            let limited = container.value.pointer("/resources/limits/cpu").is_some();
            if named != asked && !(limited && named == "0") {
                let (owner, name) = (pods.owner, container.name());
                found.push(format!(
                    "{owner}: {name}: computes with {named} threads and asks for {asked:?} processors"
                ));
            }
        }
    }
    found
}

/// What needs its time gets it: a scaler to learn before the next is replaced, a broker to read its disk.
pub(crate) fn patience(all: &[Object]) -> Vec<String> {
    let mut found = Vec::new();
    for pods in pods(all) {
        let is_scaler = pods.containers().iter().any(|one| one.image() == "ebb-scaler");
        let seconds = pods.owner.0["spec"]["minReadySeconds"].as_u64().unwrap_or(0);
        if is_scaler && seconds < 60 {
            found.push(format!("{}: its replicas are replaced at once", pods.owner));
        }
        for container in pods.containers() {
            let probe = &container.value["startupProbe"];
            let number = |field: &str| probe[field].as_u64().unwrap_or(10);
            let keeps = list(&pods.owner.0, "/spec/volumeClaimTemplates");
            if !keeps.is_empty() && number("periodSeconds") * number("failureThreshold") < 600 {
                found.push(format!("{}: has no time to read its disk", pods.owner));
            }
        }
    }
    found
}

/// Bodies that are held have room beside all else, however often they are held at once.
pub(crate) fn bodies(all: &[Object]) -> Vec<String> {
    const TIMES: f64 = 4.0;
    let mut found = Vec::new();
    for pods in pods(all) {
        for container in pods.containers() {
            let prefix = match text(container.value, "/args/0") {
                "split" => "EBB_SPLIT",
                "gateway" => "EBB_GATEWAY",
                _ => continue,
            };
            let (owner, name) = (pods.owner, format!("{prefix}_BODY_MEMORY"));
            let environment = container.environment(&pods, all);
            let held = environment.get(&name).and_then(|bytes| bytes.parse::<f64>().ok());
            let limit = amount(&container.value["resources"]["limits"]["memory"]);
            match held.zip(limit) {
                Some((held, limit)) if held * TIMES <= limit => {}
                _ => found.push(format!("{owner}: {name} leaves no room beside {held:?} bytes")),
            }
        }
    }
    found
}

/// A container that fetches a model is of the image that runs it.
pub(crate) fn images(all: &[Object], version: &str) -> Vec<String> {
    let mut found = Vec::new();
    for pods in pods(all) {
        let containers = pods.containers();
        let ours = containers.iter().filter(|one| one.image().starts_with("ebb-"));
        let ours: Vec<&str> = ours.map(|one| text(one.value, "/image")).collect();
        if ours.windows(2).any(|pair| pair[0] != pair[1]) {
            found.push(format!("{}: a node pulls several images of ours: {ours:?}", pods.owner));
        }
        for image in ours {
            if !image.ends_with(&format!(":{version}")) {
                found.push(format!("{}: {image} is not of version {version}", pods.owner));
            }
        }
    }
    found
}
