//! Whether the models that workers are told to run come to where they look for them.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::network::policies;
use crate::pods::{Container, Pods, list, pods, text};
use crate::render::Object;

/// A directory on a volume that begins empty is brought by a container that runs first.
pub(crate) fn models(all: &[Object]) -> Vec<String> {
    let mut found = Vec::new();
    for pods in pods(all) {
        let containers = pods.containers();
        for container in containers.iter().filter(|one| runs_a_worker(one)) {
            let environment = container.environment(&pods, all);
            let Some(model) = environment.get("EBB_MODEL").filter(|path| path.starts_with('/'))
            else {
                continue;
            };
            let Some((volume, at)) = mounted(container, model) else { continue };
            if pods.volume(volume).is_none_or(|one| one.get("persistentVolumeClaim").is_none()) {
                continue;
            }
            let mut first = containers.iter().filter(|one| one.first);
            if !first.any(|one| brings(one, &pods, all, volume, &model[at.len()..])) {
                found.push(format!("{}: nothing brings {model}", pods.owner));
            } else if !reaches_the_hub(all, &pods) {
                found.push(format!("{}: no policy lets it to the hub of models", pods.owner));
            }
        }
    }
    found
}

/// The versions behind a split go by one name, since a job may name its model (`ebb-model`) and goes
/// to either: the last part of their paths.
pub(crate) fn versions(all: &[Object]) -> Vec<String> {
    let every = pods(all);
    let splits = every
        .iter()
        .filter(|pods| pods.containers().iter().any(|one| text(one.value, "/args/0") == "split"));
    let name = |pods: &Pods<'_>| {
        let containers = pods.containers();
        let worker = containers.iter().find(|one| runs_a_worker(one))?;
        let model = worker.environment(pods, all).remove("EBB_MODEL")?;
        Some(model.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned())
    };
    let mut found = Vec::new();
    for split in splits {
        let here = every.iter().filter(|pods| pods.namespace == split.namespace);
        let names: BTreeSet<String> = here.filter_map(name).collect();
        if names.len() > 1 {
            found.push(format!("{}: its versions have several names: {names:?}", split.owner));
        }
    }
    found
}

fn runs_a_worker(container: &Container<'_>) -> bool {
    !container.first && text(container.value, "/args/0") == "worker"
}

/// The volume in which a path lies, and where it is mounted.
fn mounted<'a>(container: &Container<'a>, path: &str) -> Option<(&'a str, &'a str)> {
    let mounts = list(container.value, "/volumeMounts").iter();
    let mounts = mounts.map(|one| (text(one, "/name"), text(one, "/mountPath")));
    let above = |at: &str| path.strip_prefix(at).is_some_and(|rest| rest.starts_with('/'));
    mounts.filter(|(_, at)| above(at)).max_by_key(|(_, at)| at.len())
}

/// Whether a container puts this directory into a volume that it may write to.
fn brings(
    container: &Container<'_>,
    of: &Pods<'_>,
    all: &[Object],
    volume: &str,
    rest: &str,
) -> bool {
    let environment = container.environment(of, all);
    let is = |name: &str, value: &str| environment.get(name).is_some_and(|one| one == value);
    let mut mounts = list(container.value, "/volumeMounts").iter();
    let writes = mounts.any(|one| one["name"] == volume && one["readOnly"] != true);
    let claim = of.volume(volume).map_or(&Value::Null, |one| &one["persistentVolumeClaim"]);
    writes
        && claim["readOnly"] != true
        && is("MODEL", rest.trim_start_matches('/'))
        && environment.contains_key("MODEL_SOURCE")
}

fn reaches_the_hub(all: &[Object], from: &Pods<'_>) -> bool {
    policies(all, from, "/spec/egress").any(|rule| {
        let web = list(rule, "/ports").contains(&json!({"protocol": "TCP", "port": 443}));
        web && list(rule, "/to").iter().any(|peer| text(peer, "/ipBlock/cidr") == "0.0.0.0/0")
    })
}
