//! What has to flow may flow, and nothing else may.

use std::collections::{BTreeMap, BTreeSet};

use e2e::workspace_root;
use ebb_queue::QueueUrl;
use serde_json::Value;

use crate::pods::{Container, Pods, list, pods, selects, text};
use crate::render::Object;

/// Ports that are open without an address of a broker: DNS, the Kubernetes API, HTTPS, OTLP.
const COMMON: [u64; 6] = [53, 443, 4317, 6443, 8443, 9090];

/// Where servers of the Kubernetes API listen, behind their Service: those of kubeadm and kind, and
/// minikube's.
const KUBERNETES: [u64; 3] = [443, 6443, 8443];

/// Where somebody connects to.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Target {
    service: String,
    namespace: String,
    port: u64,
}

/// The hosts of a URL of a queue, which stand in `SERVICE.NAMESPACE.svc`.
pub(crate) fn targets(url: &str) -> Result<Vec<Target>, String> {
    let parsed: QueueUrl = url.parse().map_err(|error| format!("{url}: {error}"))?;
    let shown = parsed.to_string();
    let authority = shown.split("://").nth(1).unwrap_or_default();
    let authority = authority.split(['/', '?']).next().unwrap_or_default();
    let hosts = authority.rsplit('@').next().unwrap_or_default();
    hosts.split(',').map(target).collect()
}

fn target(host: &str) -> Result<Target, String> {
    let (name, port) = host.rsplit_once(':').ok_or_else(|| format!("{host} has no port"))?;
    let words: Vec<&str> = name.split('.').collect();
    let [service, namespace, "svc", ..] = words[..] else {
        return Err(format!("{host} is not SERVICE.NAMESPACE.svc"));
    };
    let port = port.parse().map_err(|_| format!("{host} has no port"))?;
    Ok(Target { service: service.to_owned(), namespace: namespace.to_owned(), port })
}

/// The URLs in the configuration of a scaler or a gateway.
pub(crate) fn urls(config: &str) -> Vec<String> {
    let url = regex::Regex::new(r#"(?m)^(?:url|queue|results) = "([^"]+)""#).unwrap();
    url.captures_iter(config).map(|found| found[1].to_owned()).collect()
}

/// Whether a mesh puts a sidecar beside the containers.
fn in_mesh(pods: &Pods<'_>) -> bool {
    pods.labels["sidecar.istio.io/inject"] == "true"
}

/// The URLs of brokers that a container is given.
fn given(all: &[Object], pods: &Pods<'_>, container: &Container<'_>) -> Vec<String> {
    let configured = |name: &str, file: &str| {
        let config = all.iter().find(|one| one.is("ConfigMap", pods.namespace, name));
        config.map(|config| urls(config.text(file))).unwrap_or_default()
    };
    match (container.image(), text(container.value, "/args/0")) {
        ("ebb-scaler", _) => configured("ebb-scaler", "/data/scaler.toml"),
        ("ebb-worker", "gateway") => configured("ebb-gateway", "/data/gateway.toml"),
        ("ebb-worker" | "ebb-worker-cuda", _) => {
            let environment = container.environment(pods, all);
            let named = ["EBB_QUEUE", "EBB_RESULTS"].iter();
            named.filter_map(|name| environment.get(*name).cloned()).collect()
        }
        _ => Vec::new(),
    }
}

/// A queue is made by the options of whoever opens it first, and others are refused: of a broker all
/// have the same.
pub(crate) fn options(all: &[Object]) -> Vec<String> {
    let (mut first, mut found) = (BTreeMap::new(), Vec::new());
    for pods in &pods(all) {
        for container in pods.containers().iter().filter(|one| !one.first) {
            for url in given(all, pods, container) {
                let (broker, options) = url.split_once('?').unwrap_or((&url, ""));
                let options = options.split('&').filter(|one| !one.starts_with("queue="));
                let options: BTreeSet<String> = options.map(str::to_owned).collect();
                let before = first.entry(broker.to_owned()).or_insert_with(|| options.clone());
                if *before != options {
                    let owner = pods.owner;
                    let words = "others open the same broker by other options";
                    found.push(format!("{owner}: {words} than {options:?}: {before:?}"));
                }
            }
        }
    }
    found
}

/// Who connects where: workers and scalers to their brokers, sidecars to what rules them.
fn flows<'a>(all: &[Object], every: &'a [Pods<'a>]) -> (Vec<(&'a Pods<'a>, Target)>, Vec<String>) {
    let (mut flows, mut broken) = (Vec::new(), Vec::new());
    for pods in every {
        if in_mesh(pods) {
            let (service, namespace) = ("istiod".to_owned(), "istio-system".to_owned());
            flows.push((pods, Target { service, namespace, port: 15012 }));
        }
        for container in pods.containers().iter().filter(|one| !one.first) {
            let urls = given(all, pods, container);
            if urls.is_empty() && container.image().starts_with("ebb-") {
                broken.push(format!("{}: no broker is named", pods.owner));
            }
            for url in urls {
                match targets(&url) {
                    Ok(found) => flows.extend(found.into_iter().map(|target| (pods, target))),
                    Err(what) => broken.push(format!("{}: {what}", pods.owner)),
                }
            }
        }
    }
    (flows, broken)
}

/// The rules of the policies that mean some pods, in one direction.
pub(crate) fn policies<'a>(
    all: &'a [Object],
    pods: &'a Pods<'a>,
    way: &'a str,
) -> impl Iterator<Item = &'a Value> {
    let here = all.iter().filter(|one| one.kind() == "NetworkPolicy");
    let here = here.filter(|one| one.namespace() == pods.namespace);
    here.filter(|one| pods.chosen_by(&one.0["spec"]["podSelector"]))
        .flat_map(move |one| list(&one.0, way))
}

fn in_namespace(peer: &Value, namespace: &str) -> bool {
    let labels = serde_json::json!({"kubernetes.io/metadata.name": namespace});
    peer.get("namespaceSelector").is_some_and(|selector| selects(selector, &labels))
}

fn sends(all: &[Object], from: &Pods<'_>, to: &Target) -> bool {
    policies(all, from, "/spec/egress").any(|rule| {
        let port = list(rule, "/ports").iter().any(|one| one["port"] == to.port);
        port && list(rule, "/to").iter().any(|peer| in_namespace(peer, &to.namespace))
    })
}

fn takes(all: &[Object], to: &Pods<'_>, port: u64, namespace: &str, labels: &Value) -> bool {
    let number = |one: &Value| to.containers().iter().find_map(|c| c.port(one));
    policies(all, to, "/spec/ingress").any(|rule| {
        let open = list(rule, "/ports").iter().any(|one| number(&one["port"]) == Some(port));
        open && list(rule, "/from").iter().any(|peer| {
            let these = peer.get("podSelector").is_none_or(|selector| selects(selector, labels));
            in_namespace(peer, namespace) && these
        })
    })
}

/// The policies, in both directions.
pub(crate) fn network(all: &[Object]) -> Vec<String> {
    let every = pods(all);
    let (flows, mut found) = flows(all, &every);
    for (from, to) in &flows {
        if !sends(all, from, to) {
            let Target { namespace, port, .. } = to;
            found.push(format!("{}: no policy lets it to {namespace}:{port}", from.owner));
        }
        found.extend(arrives(all, &every, from, to));
    }
    // KEDA's operator reaches every scaler, and others do not.
    let keda = serde_json::json!({"app": "keda-operator"});
    for trigger in all.iter().flat_map(|one| list(&one.0, "/spec/triggers")) {
        let Ok(to) = target(text(trigger, "/metadata/scalerAddress")) else {
            found.push(format!("the address in {trigger} leads nowhere"));
            continue;
        };
        let service = all.iter().find(|one| one.is("Service", &to.namespace, &to.service));
        let Some(service) = service else {
            found.push(format!("there is no Service {}/{}", to.namespace, to.service));
            continue;
        };
        let chosen = every.iter().filter(|pods| pods.namespace == to.namespace);
        for pods in chosen.filter(|pods| pods.chosen_by(&service.0["spec"]["selector"])) {
            let Some(port) = behind(service, pods, to.port) else {
                found.push(format!("{service}: has no port {}", to.port));
                continue;
            };
            if !takes(all, pods, port, "keda", &keda) {
                found.push(format!("{}: KEDA does not reach it", pods.owner));
            }
            if takes(all, pods, port, "default", &keda) {
                found.push(format!("{}: everybody reaches it", pods.owner));
            }
        }
    }
    found.extend(every.iter().flat_map(|pods| clients(all, pods)));
    found.extend(doors(all, &every, &flows));
    found.extend(every.iter().flat_map(|pods| mesh(all, pods)));
    found.extend(every.iter().flat_map(|pods| names(all, pods)));
    found.extend(every.iter().flat_map(|pods| kubernetes(all, pods)));
    found.extend(all.iter().flat_map(streams));
    found.extend(all.iter().flat_map(patience));
    found
}

/// Pods of ours find names, of the servers in kube-system or of NodeLocal DNSCache, which listens on
/// the node itself.
fn names(all: &[Object], pods: &Pods<'_>) -> Vec<String> {
    let mut found = Vec::new();
    if !pods.containers().iter().any(|one| one.image().starts_with("ebb-")) {
        return found;
    }
    let rules = policies(all, pods, "/spec/egress");
    let rules = rules.filter(|rule| list(rule, "/ports").iter().any(|one| one["port"] == 53));
    let peers: Vec<&Value> = rules.flat_map(|rule| list(rule, "/to")).collect();
    if !peers.iter().any(|peer| in_namespace(peer, "kube-system")) {
        found.push(format!("{}: finds no name by kube-system", pods.owner));
    }
    if !peers.iter().any(|peer| text(peer, "/ipBlock/cidr") == "169.254.20.10/32") {
        found.push(format!("{}: finds no name by the node's cache", pods.owner));
    }
    found
}

/// Pods with a token reach the Kubernetes API.
fn kubernetes(all: &[Object], pods: &Pods<'_>) -> Vec<String> {
    if pods.spec["automountServiceAccountToken"] == false {
        return Vec::new();
    }
    let reaches = |port: u64| {
        policies(all, pods, "/spec/egress").any(|rule| {
            let mut peers = list(rule, "/to").iter();
            let open = list(rule, "/ports").iter().any(|one| one["port"] == port);
            open && peers.any(|peer| peer.get("ipBlock").is_some())
        })
    };
    let shut = KUBERNETES.into_iter().filter(|port| !reaches(*port));
    shut.map(|port| format!("{}: does not reach the Kubernetes API at {port}", pods.owner))
        .collect()
}

/// A gateway is reached from namespaces that are named its clients, and from no others.
fn clients(all: &[Object], pods: &Pods<'_>) -> Vec<String> {
    let Some(port) = pods.containers().iter().find_map(|one| one.port(&"api".into())) else {
        return Vec::new();
    };
    let lets = |labels: &Value| {
        let rules = policies(all, pods, "/spec/ingress").filter(|rule| {
            let number = |one: &Value| pods.containers().iter().find_map(|c| c.port(&one["port"]));
            list(rule, "/ports").iter().any(|one| number(one) == Some(port))
        });
        let mut peers = rules.flat_map(|rule| list(rule, "/from"));
        peers.any(|peer| peer.get("namespaceSelector").is_some_and(|it| selects(it, labels)))
    };
    let mut found = Vec::new();
    if !lets(&serde_json::json!({"ebb/client": "true"})) {
        found.push(format!("{}: clients do not reach it", pods.owner));
    }
    if lets(&serde_json::json!({"kubernetes.io/metadata.name": "default"})) {
        found.push(format!("{}: everybody reaches it", pods.owner));
    }
    found
}

/// Prometheus gets its metrics of a mesh as well, though it shows no certificate; and nobody else
/// gets in without one.
fn mesh(all: &[Object], pods: &Pods<'_>) -> Vec<String> {
    let mut found = Vec::new();
    let of_kind = |kind: &'static str| {
        let here = all.iter().filter(move |one| one.kind() == kind);
        let here = here.filter(|one| one.namespace() == pods.namespace);
        here.filter(|one| pods.chosen_by(&one.0["spec"]["selector"])).map(|one| &one.0["spec"])
    };
    let number = |name: &str| pods.containers().iter().find_map(|one| one.port(&name.into()));
    let Some(pages) = number("http").filter(|_| in_mesh(pods)) else { return found };
    let Some(modes) = of_kind("PeerAuthentication").next() else {
        return vec![format!("{}: the mesh takes whoever comes", pods.owner)];
    };
    let mode = |port: u64| {
        let of_port = modes["portLevelMtls"][port.to_string()].get("mode");
        of_port.unwrap_or(&modes["mtls"]["mode"])
    };
    if mode(pages) != "PERMISSIVE" {
        found.push(format!("{}: the mesh keeps Prometheus out", pods.owner));
    }
    if number("grpc").is_some_and(|port| mode(port) != "STRICT") {
        found.push(format!("{}: calls need no certificate", pods.owner));
    }
    let rules: Vec<&Value> =
        of_kind("AuthorizationPolicy").flat_map(|spec| list(spec, "/rules")).collect();
    let anybodys = rules.iter().filter(|rule| rule.get("from").is_none());
    let operations = anybodys.flat_map(|rule| list(rule, "/to")).map(|to| &to["operation"]);
    let open = serde_json::json!({"ports": [pages.to_string()], "paths": ["/metrics"]});
    if operations.collect::<Vec<_>>() != [&open] {
        found.push(format!("{}: the mesh opens other pages than /metrics", pods.owner));
    }
    found
}

/// KEDA's push streams are open for as long as they like. Without a `timeout` the mesh has none,
/// and Istio's definition takes no 0s.
fn streams(object: &Object) -> Vec<String> {
    let routes = list(&object.0, "/spec/http").iter();
    let of_streams = |route: &&Value| {
        let prefixes = list(route, "/match").iter().map(|one| text(one, "/uri/prefix"));
        prefixes.into_iter().any(|prefix| prefix.ends_with("/Stream"))
    };
    let limited = routes.filter(of_streams).filter(|route| route.get("timeout").is_some());
    limited
        .map(|route| format!("{object}: cuts streams off: timeout {}", route["timeout"]))
        .collect()
}

/// A scaler that tells of its broker's outage is well, and is given the time that its first look at a
/// queue takes.
fn patience(object: &Object) -> Vec<String> {
    const FIRST_ANSWER_SECONDS: f64 = 3.0;
    let mut found = Vec::new();
    if let Some(outliers) = object.0.pointer("/spec/trafficPolicy/outlierDetection") {
        let counts = |field: &str| outliers.get(field).is_none_or(|errors| *errors != 0);
        if counts("consecutiveGatewayErrors") || counts("consecutive5xxErrors") {
            found.push(format!("{object}: puts a scaler out for what it says of its broker"));
        }
        if outliers["splitExternalLocalOriginErrors"] != true {
            found.push(format!("{object}: takes answers for failures of the connection"));
        }
    }
    for route in list(&object.0, "/spec/http") {
        for limit in ["/timeout", "/retries/perTryTimeout"].map(|at| text(route, at)) {
            let seconds = limit.strip_suffix('s').and_then(|number| number.parse::<f64>().ok());
            if seconds.is_some_and(|seconds| seconds < FIRST_ANSWER_SECONDS) {
                found.push(format!("{object}: gives a first answer only {limit}"));
            }
        }
    }
    found
}

/// The port of the pods behind a port of a Service.
fn behind(service: &Object, pods: &Pods<'_>, port: u64) -> Option<u64> {
    let one = list(&service.0, "/spec/ports").iter().find(|one| one["port"] == port)?;
    let target = one.get("targetPort").unwrap_or(&one["port"]);
    pods.containers().iter().find_map(|container| container.port(target))
}

/// Whether a broker of the same overlay lets them in.
fn arrives(all: &[Object], every: &[Pods<'_>], from: &Pods<'_>, to: &Target) -> Vec<String> {
    if !all.iter().any(|one| one.is("Namespace", "", &to.namespace)) {
        return Vec::new();
    }
    let Some(service) = all.iter().find(|one| one.is("Service", &to.namespace, &to.service)) else {
        return vec![format!("{}: there is no Service {}", from.owner, to.service)];
    };
    let behind_it = every.iter().filter(|pods| pods.namespace == to.namespace);
    let behind_it = behind_it.filter(|pods| pods.chosen_by(&service.0["spec"]["selector"]));
    let let_in = |pods: &&Pods<'_>| {
        behind(service, pods, to.port)
            .is_some_and(|port| takes(all, pods, port, from.namespace, from.labels))
    };
    let shut = behind_it.filter(|pods| !let_in(pods));
    shut.map(|pods| format!("{}: does not let {} in", pods.owner, from.owner)).collect()
}

/// Every namespace with pods denies by default, and policies open no port without a reason.
fn doors(all: &[Object], every: &[Pods<'_>], flows: &[(&Pods<'_>, Target)]) -> Vec<String> {
    let mut found = Vec::new();
    let namespaces: BTreeSet<&str> = every.iter().map(|pods| pods.namespace).collect();
    for namespace in namespaces {
        let denies = |one: &&Object| {
            let spec = &one.0["spec"];
            one.kind() == "NetworkPolicy"
                && one.namespace() == namespace
                && spec["podSelector"] == serde_json::json!({})
                && spec["policyTypes"] == serde_json::json!(["Ingress", "Egress"])
                && spec.get("ingress").is_none()
                && spec.get("egress").is_none()
        };
        if !all.iter().any(|one| denies(&one)) {
            found.push(format!("namespace {namespace}: nothing is denied by default"));
        }
    }
    let wanted: BTreeSet<u64> = flows.iter().map(|(_, to)| to.port).chain(COMMON).collect();
    for policy in all.iter().filter(|one| one.kind() == "NetworkPolicy") {
        for rule in list(&policy.0, "/spec/egress") {
            let ports = list(rule, "/ports");
            let odd =
                ports.iter().find(|one| one["port"].as_u64().is_none_or(|p| !wanted.contains(&p)));
            if ports.is_empty() || list(rule, "/to").is_empty() {
                found.push(format!("{policy}: lets everything out"));
            }
            found.extend(
                odd.map(|one| format!("{policy}: nobody connects to port {}", one["port"])),
            );
        }
        for rule in list(&policy.0, "/spec/ingress") {
            if list(rule, "/ports").is_empty() || list(rule, "/from").is_empty() {
                found.push(format!("{policy}: lets everything in"));
            }
            for port in list(rule, "/ports") {
                let chosen = every.iter().filter(|pods| pods.namespace == policy.namespace());
                let mut chosen = chosen.filter(|p| p.chosen_by(&policy.0["spec"]["podSelector"]));
                let has = |pods: &Pods<'_>| {
                    pods.containers().iter().any(|c| c.port(&port["port"]).is_some())
                };
                if !chosen.any(has) {
                    found.push(format!("{policy}: its pods have no port {}", port["port"]));
                }
            }
        }
    }
    found
}

/// The words of the guide that make a Secret by hand.
pub(crate) fn by_hand() -> bool {
    let page = std::fs::read_to_string(workspace_root().join("docs/install.md")).unwrap();
    page.contains("create secret generic ebb-broker")
}
