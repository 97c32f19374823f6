//! What the Pod Security Standard `restricted` asks for, and what this house asks for beyond it.

use serde_json::Value;

use crate::pods::{Pods, list, pods, text};
use crate::render::Object;

/// The kinds of volumes of the standard.
const VOLUMES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

/// Pods are locked in, and their namespaces see to it.
pub(crate) fn hardening(all: &[Object]) -> Vec<String> {
    let mut found = Vec::new();
    for pods in pods(all) {
        let mut wrong = |what: String| found.push(format!("{}: {what}", pods.owner));
        if let Some(namespace) = all.iter().find(|one| one.is("Namespace", "", pods.namespace)) {
            let level = &namespace.0["metadata"]["labels"]["pod-security.kubernetes.io/enforce"];
            if level != "restricted" {
                wrong(format!("its namespace enforces {level}"));
            }
        }
        of_pods(all, &pods, &mut wrong);
        of_containers(&pods, &mut wrong);
    }
    found
}

fn of_pods(all: &[Object], pods: &Pods<'_>, wrong: &mut impl FnMut(String)) {
    let spec = pods.spec;
    for field in ["hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"] {
        if spec[field] == true {
            wrong(format!("has {field}"));
        }
    }
    let context = &spec["securityContext"];
    if context["runAsNonRoot"] != true || context["runAsUser"].as_u64().is_none_or(|id| id == 0) {
        wrong("may run as root".to_owned());
    }
    if context["seccompProfile"]["type"] != "RuntimeDefault" {
        wrong("has no seccomp profile".to_owned());
    }
    for volume in list(spec, "/volumes") {
        let kinds = volume.as_object().into_iter().flatten().map(|(kind, _)| kind.as_str());
        for kind in kinds.filter(|kind| *kind != "name" && !VOLUMES.contains(kind)) {
            wrong(format!("has a volume of the kind {kind}"));
        }
        if volume.get("emptyDir").is_some_and(|dir| dir.get("sizeLimit").is_none()) {
            wrong(format!("volume {} may fill the node", volume["name"]));
        }
        let modes = ["/secret/defaultMode", "/configMap/defaultMode"];
        for mode in modes.iter().filter_map(|at| volume.pointer(at)?.as_u64()) {
            if mode & 0o007 != 0 {
                wrong(format!("volume {} is for everybody", volume["name"]));
            }
        }
    }
    // A token only for who has a role.
    let account = text(spec, "/serviceAccountName");
    let bound = all.iter().filter(|one| one.kind().ends_with("RoleBinding"));
    let bound = bound.flat_map(|one| list(&one.0, "/subjects")).any(|subject| {
        text(subject, "/name") == account && text(subject, "/namespace") == pods.namespace
    });
    let has_token = spec["automountServiceAccountToken"] != false;
    if has_token != bound {
        let words = if bound { "has a role and no token" } else { "has a token and no role" };
        wrong(words.to_owned());
    }
}

fn of_containers(pods: &Pods<'_>, wrong: &mut impl FnMut(String)) {
    for container in pods.containers() {
        let (name, value) = (container.name(), container.value);
        let context = &value["securityContext"];
        for (field, expected) in [
            ("allowPrivilegeEscalation", Value::from(false)),
            ("readOnlyRootFilesystem", Value::from(true)),
        ] {
            if context[field] != expected {
                wrong(format!("{name}: {field} is not {expected}"));
            }
        }
        if context["privileged"] == true || context["runAsUser"] == 0 {
            wrong(format!("{name}: is privileged"));
        }
        let capabilities = &context["capabilities"];
        if capabilities["drop"] != serde_json::json!(["ALL"]) || capabilities.get("add").is_some() {
            wrong(format!("{name}: has capabilities"));
        }
        for amount in ["/requests/cpu", "/requests/memory", "/limits/memory"] {
            if value["resources"].pointer(amount).is_none() {
                wrong(format!("{name}: resources{} is missing", amount.replace('/', ".")));
            }
        }
        let image = text(value, "/image");
        let last = image.rsplit('/').next().unwrap_or_default();
        let tag = last.split_once(':').map(|(_, tag)| tag);
        if !image.contains("@sha256:") && tag.is_none_or(|tag| tag == "latest") {
            wrong(format!("{name}: the image {image} is not pinned"));
        }
    }
}

/// Whose pods may stand beside a role that patches pods, as docs/security.md tells.
const NEIGHBOURS: [&str; 3] = ["ebb-worker", "ebb-worker-canary", "ebb-split"];

/// A worker may patch all pods of its namespace: there are none but workers, and their split.
pub(crate) fn neighbours(all: &[Object]) -> Vec<String> {
    let patches = |binding: &&Object| {
        let of = binding.namespace();
        let role = all.iter().find(|one| one.is("Role", of, binding.text("/roleRef/name")));
        binding.kind() == "RoleBinding"
            && role.is_some_and(|role| role.0["rules"].to_string().contains("\"patch\""))
    };
    let namespaces: Vec<&str> = all.iter().filter(patches).map(Object::namespace).collect();
    let beside = pods(all).into_iter().filter(|pods| namespaces.contains(&pods.namespace));
    let strange = beside.filter(|pods| !NEIGHBOURS.contains(&pods.owner.name()));
    strange.map(|pods| format!("{}: a worker may patch its pods", pods.owner)).collect()
}

/// Roles hold what their pods use, and nothing else.
pub(crate) fn roles(all: &[Object]) -> Vec<String> {
    let worker =
        serde_json::json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["patch"]}]);
    let mut found = Vec::new();
    for role in all.iter().filter(|one| ["Role", "ClusterRole"].contains(&one.kind())) {
        if role.name() == "ebb-worker" && role.0["rules"] != worker {
            found.push(format!("{role}: a worker patches pods and does nothing else"));
        }
        let words = role.0["rules"].to_string();
        for word in ["\"*\"", "secrets", "escalate", "impersonate"] {
            if words.contains(word) {
                found.push(format!("{role}: allows {word}"));
            }
        }
    }
    found
}
