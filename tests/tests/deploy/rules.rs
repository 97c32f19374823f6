//! The rules that the objects of an overlay keep among themselves. Each returns what breaks it.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::pods::{Pods, list, pods, selects, text};
use crate::render::Object;

/// Namespaces of others, with what an overlay may expect in them.
const OF_OTHERS: [&str; 4] = ["cert-manager", "istio-system", "keda", "monitoring"];

/// Secrets that a person makes by the guides' words, with their keys.
const BY_HAND: [(&str, &[&str]); 2] = [
    ("ebb-broker", &["password", "results-password"]),
    ("ebb-gateway", &["keys.toml", "id-secret"]),
];

/// Classes that come with what they are classes of.
const CLASSES: [&str; 1] = ["nvidia"];

/// Kinds that lie in no namespace.
const OF_THE_CLUSTER: [&str; 7] = [
    "ClusterIssuer",
    "ClusterRole",
    "ClusterRoleBinding",
    "ClusterTriggerAuthentication",
    "Namespace",
    "PriorityClass",
    "StorageClass",
];

/// Every object has a name of its own, and a namespace that is there.
pub(crate) fn places(all: &[Object]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for object in all {
        let group = object.text("/apiVersion").split('/').next().unwrap_or_default();
        if !seen.insert((group, object.kind(), object.namespace(), object.name())) {
            found.push(format!("{object}: stands there twice"));
        }
        let namespace = object.namespace();
        let there = all.iter().any(|one| one.is("Namespace", "", namespace));
        if OF_THE_CLUSTER.contains(&object.kind()) {
            if !namespace.is_empty() {
                found.push(format!("{object}: has a namespace and belongs to the cluster"));
            }
        } else if !there && !OF_OTHERS.contains(&namespace) {
            found.push(format!("{object}: there is no namespace `{namespace}`"));
        }
    }
    found
}

fn there(all: &[Object], kind: &str, namespace: &str, name: &str) -> bool {
    all.iter().any(|one| one.is(kind, namespace, name))
}

/// The keys that a Secret will have, if something makes it.
fn keys_of_secret(all: &[Object], namespace: &str, name: &str) -> Option<BTreeSet<String>> {
    let own = |keys: &[&str]| Some(keys.iter().map(|key| (*key).to_owned()).collect());
    for one in all.iter().filter(|one| one.namespace() == namespace) {
        match one.kind() {
            "Secret" if one.name() == name => {
                let maps = ["/data", "/stringData"].map(|at| one.0.pointer(at));
                let maps = maps.into_iter().flatten().filter_map(Value::as_object);
                return Some(maps.flat_map(|map| map.keys().cloned()).collect());
            }
            "Certificate" if one.text("/spec/secretName") == name => {
                return own(&["ca.crt", "tls.crt", "tls.key"]);
            }
            "ExternalSecret" if one.text("/spec/target/name") == name => {
                let keys = list(&one.0, "/spec/data").iter();
                return Some(keys.map(|key| text(key, "/secretKey").to_owned()).collect());
            }
            _ => {}
        }
    }
    BY_HAND.iter().find(|(one, _)| *one == name).and_then(|(_, keys)| own(keys))
}

/// What pods name is there: accounts, configuration, secrets and their keys, volumes, classes.
pub(crate) fn references(all: &[Object]) -> Vec<String> {
    let mut found = Vec::new();
    for pods in pods(all) {
        let mut missing = |what: String| found.push(format!("{}: {what}", pods.owner));
        let account = text(pods.spec, "/serviceAccountName");
        if !account.is_empty() && !there(all, "ServiceAccount", pods.namespace, account) {
            missing(format!("there is no ServiceAccount `{account}`"));
        }
        let class = text(pods.spec, "/priorityClassName");
        if !class.is_empty() && !there(all, "PriorityClass", "", class) {
            missing(format!("there is no PriorityClass `{class}`"));
        }
        let class = text(pods.spec, "/runtimeClassName");
        if !class.is_empty() && !CLASSES.contains(&class) {
            missing(format!("nobody knows the RuntimeClass `{class}`"));
        }
        volumes(all, &pods, &mut missing);
        environments(all, &pods, &mut missing);
        files(all, &pods, &mut missing);
    }
    found.extend(all.iter().flat_map(|object| of_object(all, object)));
    found
}

fn volumes(all: &[Object], pods: &Pods<'_>, missing: &mut impl FnMut(String)) {
    let mut mounted = BTreeSet::new();
    let claims = list(&pods.owner.0, "/spec/volumeClaimTemplates");
    for container in pods.containers() {
        for mount in list(container.value, "/volumeMounts") {
            let name = text(mount, "/name");
            mounted.insert(name);
            let claimed = claims.iter().any(|claim| text(claim, "/metadata/name") == name);
            if pods.volume(name).is_none() && !claimed {
                missing(format!("{} mounts `{name}`, which is no volume", container.name()));
            }
        }
    }
    for volume in list(pods.spec, "/volumes") {
        let name = text(volume, "/name");
        if !mounted.contains(name) {
            missing(format!("nobody mounts the volume `{name}`"));
        }
        let config = text(volume, "/configMap/name");
        if !config.is_empty() && !there(all, "ConfigMap", pods.namespace, config) {
            missing(format!("there is no ConfigMap `{config}`"));
        }
        let secret = text(volume, "/secret/secretName");
        if !secret.is_empty() && keys_of_secret(all, pods.namespace, secret).is_none() {
            missing(format!("nothing makes the Secret `{secret}`"));
        }
        let claim = text(volume, "/persistentVolumeClaim/claimName");
        if !claim.is_empty() && !there(all, "PersistentVolumeClaim", pods.namespace, claim) {
            missing(format!("there is no PersistentVolumeClaim `{claim}`"));
        }
    }
}

fn environments(all: &[Object], pods: &Pods<'_>, missing: &mut impl FnMut(String)) {
    for container in pods.containers() {
        for from in list(container.value, "/envFrom") {
            let name = text(from, "/configMapRef/name");
            if !there(all, "ConfigMap", pods.namespace, name) {
                missing(format!("there is no ConfigMap `{name}`"));
            }
        }
        for one in list(container.value, "/env") {
            let Some(from) = one.pointer("/valueFrom/secretKeyRef") else { continue };
            let (name, key) = (text(from, "/name"), text(from, "/key"));
            let keys = keys_of_secret(all, pods.namespace, name);
            if from["optional"] != true && !keys.is_some_and(|keys| keys.contains(key)) {
                missing(format!("nothing makes the key `{key}` of the Secret `{name}`"));
            }
        }
    }
}

/// Files that an environment or a configuration names lie in a volume that has them.
fn files(all: &[Object], pods: &Pods<'_>, missing: &mut impl FnMut(String)) {
    let path = regex::Regex::new(r"/(?:run|etc|models|var)/[\w./-]+").unwrap();
    for container in pods.containers().into_iter().filter(|one| one.image().starts_with("ebb")) {
        let mut texts: Vec<String> = container.environment(pods, all).into_values().collect();
        // What begins as a path is one, wherever it leads.
        for file in texts.iter().filter(|text| text.starts_with('/')) {
            if let Some(what) = no_such_file(all, pods, container.value, file) {
                missing(format!("{}: {file}: {what}", container.name()));
            }
        }
        for mount in list(container.value, "/volumeMounts") {
            let config =
                pods.volume(text(mount, "/name")).and_then(|v| v.pointer("/configMap/name"));
            let config = config.and_then(Value::as_str);
            let config = config
                .and_then(|name| all.iter().find(|one| one.is("ConfigMap", pods.namespace, name)));
            let data = config.and_then(|config| config.0["data"].as_object());
            texts.extend(
                data.into_iter().flatten().filter_map(|(_, v)| v.as_str()).map(str::to_owned),
            );
        }
        for text in &texts {
            for file in path.find_iter(text).map(|found| found.as_str()) {
                if let Some(what) = no_such_file(all, pods, container.value, file) {
                    missing(format!("{}: {file}: {what}", container.name()));
                }
            }
        }
    }
}

fn no_such_file(all: &[Object], pods: &Pods<'_>, container: &Value, file: &str) -> Option<String> {
    let under = |mount: &&Value| {
        let at = text(mount, "/mountPath");
        file == at || file.strip_prefix(at).is_some_and(|rest| rest.starts_with('/'))
    };
    let mounts = list(container, "/volumeMounts").iter().filter(under);
    let Some(mount) = mounts.max_by_key(|mount| text(mount, "/mountPath").len()) else {
        return Some("no volume is mounted there".to_owned());
    };
    let key = file[text(mount, "/mountPath").len()..].trim_start_matches('/');
    let volume = pods.volume(text(mount, "/name"))?;
    let secret = text(volume, "/secret/secretName");
    let config = text(volume, "/configMap/name");
    let known = if !secret.is_empty() {
        keys_of_secret(all, pods.namespace, secret)?.contains(key)
    } else if !config.is_empty() {
        let config = all.iter().find(|one| one.is("ConfigMap", pods.namespace, config))?;
        config.0["data"].get(key).is_some()
    } else {
        true
    };
    (!known).then(|| format!("its volume `{}` has no `{key}`", text(mount, "/name")))
}

/// What objects other than pods name is there.
fn of_object(all: &[Object], object: &Object) -> Vec<String> {
    let namespace = object.namespace();
    let mut named: Vec<(&str, &str, &str)> = Vec::new();
    match object.kind() {
        "RoleBinding" | "ClusterRoleBinding" => {
            let role = object.text("/roleRef/kind");
            let of = if role == "Role" { namespace } else { "" };
            named.push((role, of, object.text("/roleRef/name")));
            for subject in list(&object.0, "/subjects") {
                let of = text(subject, "/namespace");
                named.push((text(subject, "/kind"), of, text(subject, "/name")));
            }
        }
        "ScaledObject" => {
            let kind = object.text("/spec/scaleTargetRef/kind");
            let kind = if kind.is_empty() { "Deployment" } else { kind };
            named.push((kind, namespace, object.text("/spec/scaleTargetRef/name")));
        }
        "SandboxWarmPool" => {
            let name = object.text("/spec/sandboxTemplateRef/name");
            named.push(("SandboxTemplate", namespace, name));
        }
        "StatefulSet" => named.push(("Service", namespace, object.text("/spec/serviceName"))),
        "Certificate" => {
            let kind = object.text("/spec/issuerRef/kind");
            let of = if kind == "ClusterIssuer" { "" } else { namespace };
            named.push((kind, of, object.text("/spec/issuerRef/name")));
        }
        _ => {}
    }
    for trigger in list(&object.0, "/spec/triggers") {
        let Some(how) = trigger.get("authenticationRef") else { continue };
        let kind = how["kind"].as_str().unwrap_or("TriggerAuthentication");
        let of = if kind == "TriggerAuthentication" { namespace } else { "" };
        named.push((kind, of, text(how, "/name")));
    }
    let named = named.into_iter().filter(|(kind, of, name)| !there(all, kind, of, name));
    let mut found: Vec<String> =
        named.map(|(kind, _, name)| format!("{object}: there is no {kind} `{name}`")).collect();
    found.extend(secrets(all, object));
    found
}

/// The Secrets that issuers and authentications read, each in its own place.
fn secrets(all: &[Object], object: &Object) -> Vec<String> {
    let mut read = Vec::new();
    if object.kind() == "ClusterIssuer" && object.0.pointer("/spec/ca").is_some() {
        read.push(("cert-manager", object.text("/spec/ca/secretName"), "tls.key"));
    }
    let of =
        if object.kind() == "ClusterTriggerAuthentication" { "keda" } else { object.namespace() };
    if object.kind().ends_with("TriggerAuthentication") {
        for one in list(&object.0, "/spec/secretTargetRef") {
            read.push((of, text(one, "/name"), text(one, "/key")));
        }
    }
    let missing = read.into_iter().filter(|(of, name, key)| {
        !keys_of_secret(all, of, name).is_some_and(|keys| keys.contains(*key))
    });
    let words =
        |(of, name, key)| format!("{object}: nothing makes `{key}` of the Secret {of}/{name}");
    missing.map(words).collect()
}

/// A scaler that asks for certificates lets in by its name the one that KEDA shows, and no other.
pub(crate) fn certificates(all: &[Object]) -> Vec<String> {
    let mut found = Vec::new();
    for pods in pods(all) {
        for container in pods.containers() {
            let environment = container.environment(&pods, all);
            if !environment.contains_key("EBB_SCALER_TLS_CLIENT_CA") {
                continue;
            }
            let let_in = environment.get("EBB_SCALER_TLS_CLIENT_NAME");
            let Some(let_in) = let_in else {
                found.push(format!("{}: lets in whoever has a certificate", pods.owner));
                continue;
            };
            found.extend(uncertified(all));
            let shown = all.iter().filter(|one| one.kind() == "ClusterTriggerAuthentication");
            let shown = shown.flat_map(|one| list(&one.0, "/spec/secretTargetRef"));
            let shown = shown.filter(|one| text(one, "/parameter") == "tlsClientCert");
            let shown: BTreeSet<&str> = shown.map(|one| text(one, "/name")).collect();
            for certificate in all.iter().filter(|one| one.kind() == "Certificate") {
                let names = list(&certificate.0, "/spec/dnsNames");
                let has_name = names.iter().any(|name| *name == **let_in);
                if has_name != shown.contains(certificate.text("/spec/secretName")) {
                    found.push(format!("{certificate}: `{let_in}` is the name that is let in"));
                }
            }
        }
    }
    found
}

/// Triggers by which KEDA would come without a certificate.
fn uncertified(all: &[Object]) -> Vec<String> {
    let of_object = |object: &Object| {
        let triggers = list(&object.0, "/spec/triggers").iter().enumerate();
        let to_scaler = triggers
            .filter(|(_, one)| text(one, "/metadata/scalerAddress").starts_with("ebb-scaler."));
        let without = to_scaler.filter(|(_, one)| one.get("authenticationRef").is_none());
        let said = |(nth, _)| format!("{object}: trigger {nth} shows the scaler no certificate");
        without.map(said).collect::<Vec<_>>()
    };
    all.iter().flat_map(of_object).collect()
}

/// Selectors mean pods that are there, and ports are ports of theirs.
pub(crate) fn selectors(all: &[Object]) -> Vec<String> {
    let pods = pods(all);
    let mut found = Vec::new();
    let chosen = |namespace: &str, selector: &Value| -> Vec<&Pods<'_>> {
        let here = pods.iter().filter(|pods| pods.namespace == namespace);
        here.filter(|pods| pods.chosen_by(selector)).collect()
    };
    for object in all {
        let of = object.namespace();
        let spec = &object.0["spec"];
        match object.kind() {
            "Deployment" | "StatefulSet" | "DaemonSet"
                if !selects(&spec["selector"], &spec["template"]["metadata"]["labels"]) =>
            {
                found.push(format!("{object}: its selector does not mean its own pods"));
            }
            "PodDisruptionBudget" if chosen(of, &spec["selector"]).is_empty() => {
                found.push(format!("{object}: means no pods"));
            }
            "NetworkPolicy" => {
                let all_pods =
                    spec["podSelector"].as_object().is_some_and(serde_json::Map::is_empty);
                if !all_pods && chosen(of, &spec["podSelector"]).is_empty() {
                    found.push(format!("{object}: means no pods"));
                }
            }
            "Service" if spec.get("selector").is_some() => {
                let chosen = chosen(of, &spec["selector"]);
                if chosen.is_empty() {
                    found.push(format!("{object}: means no pods"));
                }
                for (pods, port) in chosen
                    .iter()
                    .flat_map(|pods| list(spec, "/ports").iter().map(move |port| (pods, port)))
                {
                    let target = port.get("targetPort").unwrap_or(&port["port"]);
                    if !pods.containers().iter().any(|one| one.port(target).is_some()) {
                        found.push(format!("{object}: {} has no port {target}", pods.owner));
                    }
                }
            }
            _ => {}
        }
    }
    for pods in &pods {
        let spread = list(pods.spec, "/topologySpreadConstraints").iter();
        let anti = "/affinity/podAntiAffinity/preferredDuringSchedulingIgnoredDuringExecution";
        let apart = list(pods.spec, anti).iter().map(|one| &one["podAffinityTerm"]);
        for selector in spread.chain(apart).map(|one| &one["labelSelector"]) {
            if !pods.chosen_by(selector) {
                found.push(format!("{}: spreads pods that are not its own", pods.owner));
            }
        }
    }
    found
}
