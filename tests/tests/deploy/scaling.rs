//! How pools grow and shrink, and whether the cluster leaves them the room.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::pods::{Pods, list, pods, text};
use crate::render::Object;

fn ours(object: &Object) -> bool {
    let of_ours = |trigger: &Value| text(trigger, "/type").starts_with("external");
    list(&object.0, "/spec/triggers").iter().any(of_ours)
}

/// Up from one to all at once, down slowly; and nobody but KEDA sets replicas.
pub(crate) fn scaling(all: &[Object]) -> Vec<String> {
    let mut found = Vec::new();
    for object in all.iter().filter(|one| ours(one)) {
        let mut wrong = |what: String| found.push(format!("{object}: {what}"));
        if object.kind() == "ScaledJob" {
            of_jobs(all, object).into_iter().for_each(&mut wrong);
            continue;
        }
        let types = list(&object.0, "/spec/triggers").iter().map(|one| text(one, "/type"));
        if types.clone().any(|one| one != "external-push") {
            wrong("is not woken by the push of an external-push trigger".to_owned());
        }
        let spec = &object.0["spec"];
        let stays = spec["minReplicaCount"].as_u64().is_some_and(|least| least > 0);
        for field in ["cooldownPeriod", "pollingInterval"] {
            if stays && spec.get("idleReplicaCount").is_none() && spec.get(field).is_some() {
                wrong(format!("never goes to zero, for which KEDA warns of its {field}"));
            }
        }
        let most = spec["maxReplicaCount"].as_u64().unwrap_or(100);
        let at = "/spec/advanced/horizontalPodAutoscalerConfig/behavior";
        let behavior = object.0.pointer(at).unwrap_or(&Value::Null);
        let pods_in = |way: &str| {
            let policies = list(behavior, &format!("/{way}/policies")).iter();
            let by_pods = policies.filter(|one| one["type"] == "Pods");
            by_pods.filter_map(|one| Some((one["value"].as_u64()?, one["periodSeconds"].as_u64()?)))
        };
        if !pods_in("scaleUp").any(|(value, _)| value + 1 >= most) {
            wrong(format!("does not grow from 1 to {most} in one step"));
        }
        if behavior["scaleUp"]["stabilizationWindowSeconds"] != 0 {
            wrong("waits before it grows".to_owned());
        }
        let slow = |(value, period): (u64, u64)| value * 4 <= most.max(4) && period >= 30;
        let calm = behavior["scaleDown"]["stabilizationWindowSeconds"].as_u64();
        if !pods_in("scaleDown").all(slow) || pods_in("scaleDown").count() == 0 {
            wrong("shrinks fast".to_owned());
        }
        if calm.is_none_or(|seconds| seconds < 60) {
            wrong("shrinks at the first quiet moment".to_owned());
        }
        let target = object.text("/spec/scaleTargetRef/name");
        let kind = object.text("/spec/scaleTargetRef/kind");
        let kind = if kind.is_empty() { "Deployment" } else { kind };
        let target = all.iter().find(|one| one.is(kind, object.namespace(), target));
        if target.is_some_and(|one| one.0["spec"].get("replicas").is_some()) {
            wrong(format!("its {kind} sets replicas, which are KEDA's"));
        }
    }
    found.extend(room(all));
    found.extend(precedence(all));
    found.extend(reserve(all));
    found
}

/// A ScaledJob has no push, and must count as its strategy does.
fn of_jobs(all: &[Object], object: &Object) -> Vec<String> {
    let mut found = Vec::new();
    let strategy = object.text("/spec/scalingStrategy/strategy");
    for trigger in list(&object.0, "/spec/triggers") {
        if trigger["type"] != "external" {
            found.push("has a trigger that pushes, which KEDA ignores".to_owned());
        }
        let waiting = trigger["metadata"]["mode"] == "waiting";
        if waiting != (strategy == "accurate") {
            found.push("the strategy `accurate` and the mode `waiting` go together".to_owned());
        }
    }
    // Else KEDA takes a Job for served once its container runs, and makes another with each poll
    // until the model is loaded.
    let pending = &object.0["spec"]["scalingStrategy"]["pendingPodConditions"];
    if strategy == "accurate" && *pending != serde_json::json!(["Ready"]) {
        found.push("makes more Jobs while the first ones load their model".to_owned());
    }
    let of_it = pods(all).into_iter().find(|pods| std::ptr::eq(pods.owner, object));
    let spec = of_it.as_ref().map_or(&Value::Null, |pods| pods.spec);
    if spec["restartPolicy"] != "Never" {
        found.push("its pods are restarted".to_owned());
    }
    let containers = of_it.iter().flat_map(Pods::containers);
    let mut ports = containers.flat_map(|one| list(one.value, "/ports"));
    if ports.any(|port| port.get("protocol").is_none()) {
        found.push("a port names no protocol, which KEDA's definition wants".to_owned());
    }
    let args = list(spec, "/containers/0/args");
    if !args.iter().any(|word| word == "--exit-when-empty") {
        found.push("its workers never end: --exit-when-empty is missing".to_owned());
    }
    found
}

/// An amount as Kubernetes writes it.
pub(crate) fn amount(value: &Value) -> Option<f64> {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let at = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let unit = match &text[at..] {
        "" => 1.0,
        "m" => 0.001,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    Some(text[..at].parse::<f64>().ok()? * unit)
}

/// What the containers of a pod take together, by the names of a quota.
fn takes(pods: &Pods<'_>) -> BTreeMap<String, f64> {
    let mut sum = BTreeMap::new();
    for container in pods.containers().into_iter().filter(|one| !one.first) {
        for side in ["requests", "limits"] {
            let amounts = container.value["resources"][side].as_object();
            for (name, value) in amounts.into_iter().flatten() {
                *sum.entry(format!("{side}.{name}")).or_insert(0.0) +=
                    amount(value).unwrap_or(f64::MAX);
            }
        }
    }
    sum.insert("pods".to_owned(), 1.0);
    sum
}

/// The quota of a namespace holds the pool at its largest.
fn room(all: &[Object]) -> Vec<String> {
    let mut found = Vec::new();
    for object in all.iter().filter(|one| ours(one)) {
        let most = object.0["spec"]["maxReplicaCount"].as_f64().unwrap_or(100.0);
        let quotas = all.iter().filter(|one| one.kind() == "ResourceQuota");
        let hard = quotas.filter(|one| one.namespace() == object.namespace());
        let hard: Vec<&Value> = hard.map(|one| &one.0["spec"]["hard"]).collect();
        let name = object.text("/spec/scaleTargetRef/name");
        let name = if name.is_empty() { object.name() } else { name };
        let its =
            |pods: &&Pods<'_>| pods.namespace == object.namespace() && pods.owner.name() == name;
        for pods in pods(all).iter().filter(its) {
            for (name, each) in takes(pods) {
                let limits = hard.iter().filter_map(|hard| amount(hard.get(&name)?));
                for limit in limits.filter(|limit| each * most > *limit) {
                    found.push(format!("{object}: {most} of them take more {name} than {limit}"));
                }
            }
        }
        if hard.is_empty() {
            found.push(format!("{object}: nothing bounds its namespace"));
        }
    }
    found
}

/// The value of the class of pods; those without one are at 0.
fn priority(all: &[Object], pods: &Pods<'_>) -> i64 {
    let class = text(pods.spec, "/priorityClassName");
    let class = all.iter().find(|one| one.is("PriorityClass", "", class));
    class.map_or(0, |class| class.0["value"].as_i64().unwrap_or(0))
}

/// Workers go after all that has no class, since it is anybody's; what stands between people and
/// workers goes before it, and the scaler before that.
fn precedence(all: &[Object]) -> Vec<String> {
    const ORDER: [&[&str]; 4] =
        [&["ebb-placeholder"], &["ebb-worker"], &["ebb-gateway", "ebb-split"], &["ebb-scaler"]];
    let every = pods(all);
    let ranked = |pods: &Pods<'_>| {
        let of = |names: &&[&str]| names.iter().any(|name| pods.owner.name().starts_with(name));
        ORDER.iter().position(of)
    };
    let mut found = Vec::new();
    for (pods, rank) in every.iter().filter_map(|pods| Some((pods, ranked(pods)?))) {
        let value = priority(all, pods);
        let is_worker = rank < 2;
        if is_worker && value >= 0 {
            found.push(format!("{}: may put out what has no class", pods.owner));
        }
        if !is_worker && value <= 0 {
            found.push(format!("{}: may be put out by anything", pods.owner));
        }
        // What is lower is expendable to a cluster autoscaler.
        if value < -10 {
            found.push(format!("{}: no node is made for it", pods.owner));
        }
        let higher = every.iter().filter(|other| ranked(other).is_some_and(|its| its > rank));
        for other in higher.filter(|other| priority(all, other) <= value) {
            found.push(format!("{}: goes before {}", pods.owner, other.owner));
        }
    }
    found
}

/// A placeholder leaves a worker the room.
fn reserve(all: &[Object]) -> Vec<String> {
    let every = pods(all);
    let named =
        |name: &'static str| every.iter().filter(move |pods| pods.owner.name().starts_with(name));
    let mut found = Vec::new();
    for placeholder in named("ebb-placeholder") {
        for worker in named("ebb-worker") {
            let holds = takes(placeholder);
            for (name, each) in takes(worker) {
                if holds.get(&name).is_none_or(|held| *held < each) {
                    found.push(format!("{}: holds less {name} than a worker", placeholder.owner));
                }
            }
            for field in ["nodeSelector", "tolerations"] {
                if placeholder.spec[field] != worker.spec[field] {
                    found.push(format!("{}: another {field}", placeholder.owner));
                }
            }
        }
    }
    found
}
