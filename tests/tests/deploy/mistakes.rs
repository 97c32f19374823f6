//! Mistakes as people make them, each of which a rule finds.

use serde_json::{Value, json};

use crate::program::Programs;
use crate::render::{Object, Tree, overlays};
use crate::schema::Schemas;
use crate::{hardening, life, models, network, rules, scaling, schema};

/// All that the rules say of an overlay.
pub(crate) fn said(objects: &[Object], schemas: &Schemas, programs: &Programs) -> Vec<String> {
    let mut said = schema(schemas, objects);
    for rule in [
        rules::places,
        rules::references,
        rules::selectors,
        rules::certificates,
        hardening::hardening,
        hardening::roles,
        hardening::neighbours,
        life::ports,
        life::threads,
        life::bodies,
        life::patience,
        network::network,
        network::options,
        models::models,
        models::versions,
        scaling::scaling,
    ] {
        said.extend(rule(objects));
    }
    said.extend(life::life(objects, programs));
    said.extend(life::images(objects, env!("CARGO_PKG_VERSION")));
    said
}

/// What is changed in which object: a place in it, what stands there then (nothing when it is taken
/// away), and words of the rule that finds it.
pub(crate) type Mistake = (&'static str, &'static str, Value, &'static str);

const WORKER: &str = "Deployment ebb-workers/ebb-worker";
const SCALER: &str = "Deployment ebb/ebb-scaler";
const POOL: &str = "ScaledObject ebb-workers/ebb-worker";
const SETTINGS: &str = "ConfigMap ebb-workers/ebb-worker";

#[allow(clippy::too_many_lines, reason = "it is a list")]
fn mistakes() -> Vec<Mistake> {
    let container = "/spec/template/spec/containers/0";
    let at = |rest: &str| -> &'static str { format!("{container}{rest}").leak() };
    vec![
        // Fields and their types.
        (WORKER, "/spec/template/spec/runtimeClas", json!("nvidia"), "there is no such field"),
        (WORKER, at("/imagePullPolicy"), json!("Sometimes"), "is no Words"),
        (POOL, "/spec/maxReplicaCount", json!("8"), "is no Whole"),
        (POOL, "/spec/triggers/0/metadat", json!({}), "there is no such field"),
        (POOL, "/spec/triggers/0/type", Value::Null, "is missing"),
        (POOL, "/kind", json!("ScaleObject"), "there is no `keda.sh/v1alpha1 ScaleObject`"),
        // Names.
        (WORKER, "/spec/template/spec/serviceAccountName", json!("worker"), "no ServiceAccount"),
        (WORKER, "/spec/template/spec/priorityClassName", json!("ebb"), "no PriorityClass"),
        (WORKER, at("/envFrom/0/configMapRef/name"), json!("ebb"), "there is no ConfigMap `ebb`"),
        (WORKER, at("/volumeMounts/0/name"), json!("borker"), "which is no volume"),
        (SCALER, "/metadata/namespace", json!("eb"), "there is no namespace"),
        (POOL, "/spec/scaleTargetRef/name", json!("worker"), "there is no Deployment `worker`"),
        (
            POOL,
            "/spec/triggers/0/authenticationRef",
            json!({"name": "ebb-scaler"}),
            "there is no TriggerAuthentication",
        ),
        (SCALER, "/spec/template/metadata/labels/app.kubernetes.io~1name", json!("x"), "own pods"),
        (
            "PodDisruptionBudget ebb/ebb-scaler",
            "/spec/selector/matchLabels/app.kubernetes.io~1name",
            json!("scaler"),
            "means no pods",
        ),
        ("Service ebb/ebb-scaler", "/spec/ports/0/targetPort", json!("gprc"), "has no port"),
        (SETTINGS, "/data/EBB_MODEL", json!("/modles/x"), "no volume is mounted there"),
        (
            SETTINGS,
            "/data/EBB_QUEUE",
            json!("nats://nats.nats.svc:4222?password_file=/run/secrets/ebb/pasword"),
            "has no `pasword`",
        ),
        // Our programs.
        (SETTINGS, "/data/EBB_GRACEFUL", json!("75s"), "there is no variable EBB_GRACEFUL"),
        (WORKER, at("/args"), json!(["worker", "--max-item=3"]), "there is no flag --max-item"),
        (WORKER, at("/args"), json!(["work"]), "no test knows the command"),
        (WORKER, at("/readinessProbe/httpGet/path"), json!("/ready"), "not at /readyz"),
        (WORKER, at("/livenessProbe/httpGet/path"), json!("/livez?x"), "not at /livez"),
        (SETTINGS, "/data/EBB_LISTEN", json!("0.0.0.0:9090"), "is listened on"),
        (SETTINGS, "/data/EBB_GRACE", json!("120s"), "cuts a grace of 120s off"),
        (SETTINGS, "/data/EBB_STALL", json!("5m"), "cuts a batch off"),
        (SETTINGS, "/data/EBB_THREADS", Value::Null, "computes with 0 threads"),
        (WORKER, "/spec/template/spec/terminationGracePeriodSeconds", Value::Null, "cuts a grace"),
        (WORKER, at("/image"), json!("ebb-worker:latest"), "is not pinned"),
        (WORKER, at("/image"), json!("ebb-worker:0.0.9"), "is not of version"),
        (WORKER, at("/image"), json!("ebb-wroker:0.1.0"), "no stage makes `ebb-wroker`"),
        // Locks.
        (WORKER, "/spec/template/spec/hostNetwork", json!(true), "has hostNetwork"),
        (SCALER, "/metadata/namespace", json!("ebb-workers"), "a worker may patch its pods"),
        (WORKER, "/spec/template/spec/securityContext/runAsUser", json!(0), "may run as root"),
        (SCALER, at("/securityContext/readOnlyRootFilesystem"), Value::Null, "is not true"),
        (SCALER, at("/securityContext/capabilities/drop"), json!(["NET_RAW"]), "has capabilities"),
        (SCALER, "/spec/template/spec/automountServiceAccountToken", json!(true), "no role"),
        (
            "Namespace ebb",
            "/metadata/labels/pod-security.kubernetes.io~1enforce",
            json!("privileged"),
            "its namespace enforces",
        ),
        (SCALER, "/spec/minReadySeconds", Value::Null, "its replicas are replaced at once"),
        (
            "StatefulSet nats/nats",
            at("/startupProbe/failureThreshold"),
            json!(120),
            "has no time to read its disk",
        ),
        ("Role ebb-workers/ebb-worker", "/rules/0/verbs", json!(["patch", "*"]), "allows"),
        (WORKER, at("/resources/limits/memory"), Value::Null, "resources.limits.memory is missing"),
        // The network.
        ("NetworkPolicy ebb/default-deny", "", Value::Null, "nothing is denied by default"),
        ("NetworkPolicy ebb/scaler-from-keda", "", Value::Null, "KEDA does not reach it"),
        ("NetworkPolicy ebb/scaler-to-nats", "", Value::Null, "no policy lets it to nats:4222"),
        (
            "NetworkPolicy ebb-workers/worker-to-nats",
            "/spec/egress/0/ports/0/port",
            json!(4223),
            "nobody connects to port 4223",
        ),
        (
            "NetworkPolicy ebb-workers/worker-to-kubernetes",
            "/spec/egress/0/ports/2/port",
            json!(443),
            "does not reach the Kubernetes API at 8443",
        ),
        (
            "NetworkPolicy ebb-workers/dns",
            "/spec/egress/0/to/1",
            json!({"podSelector": {}}),
            "finds no name by the node's cache",
        ),
        (
            "NetworkPolicy nats/nats-from-clients",
            "/spec/ingress/0/from/1",
            json!({"podSelector": {}}),
            "does not let Deployment ebb-workers/ebb-worker in",
        ),
        (
            "NetworkPolicy ebb/scaler-from-keda",
            "/spec/ingress/0/from",
            json!([{"namespaceSelector": {}}]),
            "everybody reaches it",
        ),
        (
            POOL,
            "/spec/triggers/0/metadata/scalerAddress",
            json!("scaler.ebb.svc:6000"),
            "no Service",
        ),
        // Scaling.
        (POOL, "/spec/maxReplicaCount", json!(200), "in one step"),
        (POOL, "/spec/maxReplicaCount", json!(33), "take more pods than 32"),
        (POOL, "/spec/triggers/0/type", json!("external"), "is not woken by the push"),
        (
            POOL,
            "/spec/advanced/horizontalPodAutoscalerConfig/behavior/scaleDown",
            Value::Null,
            "shrinks fast",
        ),
        (WORKER, "/spec/replicas", json!(1), "sets replicas"),
        ("PriorityClass ebb-worker", "/value", json!(2_000_000), "goes before"),
        ("PriorityClass ebb-worker", "/value", json!(1000), "may put out what has no class"),
        ("PriorityClass ebb-worker", "/value", json!(-11), "no node is made for it"),
    ]
}

/// The overlays that mistakes are made in.
const OVERLAYS: [&str; 9] = [
    "overlays/nats-cpu",
    "overlays/nats-gpu-canary",
    "overlays/nats-gpu-gateway",
    "overlays/nats-gpu-mtls",
    "overlays/nats-gpu-scaledjob",
    "overlays/rabbitmq-gpu-gateway",
    "overlays/warm-pool-placeholder",
    "overlays/warm-pool-sandbox",
    "overlays/with-components-istio",
];

/// Mistakes in an overlay that has what they are about.
fn mistakes_in(overlay: &str) -> Vec<Mistake> {
    const JOBS: &str = "ScaledJob ebb-workers/ebb-worker";
    match overlay {
        "overlays/nats-cpu" => mistakes(),
        "overlays/nats-gpu-scaledjob" => vec![
            (JOBS, "/spec/triggers/0/metadata/mode", json!("jobs"), "go together"),
            (JOBS, "/spec/scalingStrategy/pendingPodConditions", Value::Null, "makes more Jobs"),
            (
                JOBS,
                "/spec/jobTargetRef/template/spec/containers/0/ports/0/protocol",
                Value::Null,
                "names no protocol",
            ),
        ],
        "overlays/warm-pool-sandbox" => vec![
            (POOL, "/spec/cooldownPeriod", json!(600), "warns of its cooldownPeriod"),
            (POOL, "/spec/pollingInterval", json!(15), "warns of its pollingInterval"),
        ],
        "overlays/warm-pool-placeholder" => {
            vec![("PriorityClass ebb-placeholder", "/value", json!(-5), "goes before")]
        }
        "overlays/nats-gpu-canary" => mistakes_of_a_canary(),
        "overlays/nats-gpu-mtls" => mistakes_of_certificates(),
        "overlays/nats-gpu-gateway" => mistakes_of_a_gateway(),
        "overlays/rabbitmq-gpu-gateway" => vec![
            (
                "NetworkPolicy ebb/gateway-to-redis",
                "",
                Value::Null,
                "no policy lets it to redis:6379",
            ),
            (
                "ExternalSecret ebb/ebb-broker",
                "/spec/data/1/secretKey",
                json!("result-password"),
                "has no `results-password`",
            ),
        ],
        "overlays/with-components-istio" => mistakes_of_a_mesh(),
        _ => Vec::new(),
    }
}

fn mistakes_of_a_canary() -> Vec<Mistake> {
    const CANARY: &str = "Deployment ebb-workers/ebb-worker-canary";
    vec![
        (
            "Deployment ebb-workers/ebb-split",
            "/spec/template/spec/priorityClassName",
            Value::Null,
            "may be put out by anything",
        ),
        (
            "Deployment ebb-workers/ebb-split",
            "/spec/template/spec/containers/0/resources/limits/memory",
            json!("128Mi"),
            "leaves no room beside",
        ),
        (
            "ConfigMap ebb-workers/ebb-worker",
            "/data/EBB_QUEUE",
            json!(
                "nats://nats.nats.svc:4222?queue=jobs-stable&replicas=3\
                 &password_file=/run/secrets/ebb/password"
            ),
            "others open the same broker by other options",
        ),
        (CANARY, "/spec/template/spec/initContainers", Value::Null, "nothing brings"),
        (
            CANARY,
            "/spec/template/spec/initContainers/0/env/0/value",
            json!("v1/minilm"),
            "nothing brings",
        ),
        (
            "ConfigMap ebb-workers/ebb-worker-canary",
            "/data/EBB_MODEL",
            json!("/models/v2/all-MiniLM-L12-v2"),
            "its versions have several names",
        ),
        (
            "NetworkPolicy ebb-workers/worker-to-hub",
            "/spec/podSelector",
            json!({"matchLabels": {"app.kubernetes.io/name": "ebb-worker"}}),
            "no policy lets it to the hub",
        ),
    ]
}

fn mistakes_of_a_mesh() -> Vec<Mistake> {
    const MESH: &str = "PeerAuthentication ebb/ebb-scaler";
    const ROUTES: &str = "VirtualService ebb/ebb-scaler";
    const OUTLIERS: &str = "DestinationRule ebb/ebb-scaler";
    vec![
        ("NetworkPolicy ebb/scaler-to-istiod", "", Value::Null, "lets it to istio-system:15012"),
        (MESH, "/spec/portLevelMtls", Value::Null, "the mesh keeps Prometheus out"),
        (MESH, "/spec/mtls/mode", json!("PERMISSIVE"), "calls need no certificate"),
        (MESH, "", Value::Null, "the mesh takes whoever comes"),
        (
            "AuthorizationPolicy ebb/ebb-scaler",
            "/spec/rules/2/to/0/operation/paths/0",
            json!("/*"),
            "opens other pages than /metrics",
        ),
        (ROUTES, "/spec/http/0/timeout", json!("0s"), "cuts streams off"),
        (ROUTES, "/spec/http/1/retries/perTryTimeout", json!("1s"), "a first answer only 1s"),
        (
            OUTLIERS,
            "/spec/trafficPolicy/outlierDetection/consecutiveGatewayErrors",
            json!(5),
            "out for",
        ),
        (
            OUTLIERS,
            "/spec/trafficPolicy/outlierDetection/splitExternalLocalOriginErrors",
            Value::Null,
            "takes answers for failures",
        ),
    ]
}

fn mistakes_of_certificates() -> Vec<Mistake> {
    const CLIENT: &str = "Certificate keda/ebb-scaler-client";
    vec![
        (CLIENT, "/spec/dnsNames", Value::Null, "is the name that is let in"),
        (CLIENT, "/spec/secretName", json!("other"), "is the name that is let in"),
        (
            POOL,
            "/spec/triggers/0/authenticationRef",
            Value::Null,
            "shows the scaler no certificate",
        ),
        (
            SCALER,
            "/spec/template/spec/containers/0/env/3/name",
            json!("EBB_SCALER_TLS_CLIENTS"),
            "lets in whoever has a certificate",
        ),
    ]
}

fn mistakes_of_a_gateway() -> Vec<Mistake> {
    const GATEWAY: &str = "Deployment ebb/ebb-gateway";
    vec![
        (
            "NetworkPolicy ebb/scaler-to-nats",
            "/spec/podSelector",
            json!({"matchLabels": {"app.kubernetes.io/name": "ebb-scaler"}}),
            "Deployment ebb/ebb-gateway: no policy lets it to nats:4222",
        ),
        ("ConfigMap ebb/ebb-gateway", "/data/gateway.toml", json!(""), "no broker is named"),
        (GATEWAY, "/spec/template/spec/priorityClassName", Value::Null, "be put out by anything"),
        (GATEWAY, "/spec/template/spec/terminationGracePeriodSeconds", json!(29), "cuts a grace"),
        (
            GATEWAY,
            "/spec/template/spec/containers/0/env/0/name",
            json!("EBB_GATEWAY_CONFIGURATION"),
            "there is no variable EBB_GATEWAY_CONFIGURATION",
        ),
        (
            "NetworkPolicy ebb/gateway-from-clients",
            "/spec/ingress/0/from",
            json!([{"namespaceSelector": {}}]),
            "everybody reaches it",
        ),
        ("NetworkPolicy ebb/gateway-from-clients", "", Value::Null, "clients do not reach it"),
        ("Service ebb/ebb-gateway", "/spec/ports/0/targetPort", json!(8001), "has no port 8001"),
    ]
}

pub(crate) fn made(objects: &[Object], mistake: &Mistake) -> Vec<Object> {
    let (object, place, value, _) = mistake;
    let mut objects = objects.to_vec();
    let at = objects.iter().position(|one| one.to_string() == *object);
    let at = at.unwrap_or_else(|| panic!("there is no {object}"));
    let Some((above, last)) = place.rsplit_once('/') else {
        objects.remove(at);
        return objects;
    };
    let last = last.replace("~1", "/");
    let parent = objects[at].0.pointer_mut(above).unwrap_or_else(|| panic!("{object}: {above}"));
    match (parent, value) {
        (Value::Object(fields), Value::Null) => {
            fields.remove(&last).unwrap_or_else(|| panic!("{object}: {place}"));
        }
        (Value::Object(fields), value) => {
            fields.insert(last, value.clone());
        }
        (Value::Array(items), value) => items[last.parse::<usize>().unwrap()] = value.clone(),
        (other, _) => panic!("{object}: {above} is {other}"),
    }
    objects
}

#[test]
fn every_mistake_is_found() {
    let Some(all) = overlays("every_mistake_is_found") else { return };
    let (schemas, programs) = (Schemas::load(), Programs::load());
    let mut missed = Vec::new();
    let unknown = OVERLAYS.iter().filter(|overlay| !all.contains_key(**overlay));
    let unknown = unknown.map(ToString::to_string);
    crate::assert_none("there is an overlay of these mistakes", unknown);
    for (overlay, objects) in all {
        let mistakes = mistakes_in(overlay);
        assert_eq!(mistakes.is_empty(), !OVERLAYS.contains(&overlay.as_str()), "{overlay}");
        let before = if mistakes.is_empty() { vec![] } else { said(objects, &schemas, &programs) };
        assert!(before.is_empty(), "{overlay}: {before:#?}");
        for mistake in mistakes {
            let said = said(&made(objects, &mistake), &schemas, &programs);
            if !said.iter().any(|words| words.contains(mistake.3)) {
                missed.push(format!("{overlay}: {mistake:?}: {said:?}"));
            }
        }
    }
    crate::assert_none("a mistake is found", missed);
}

#[test]
fn a_mistake_in_a_file_reaches_the_objects_or_the_renderer() {
    let Some(tree) = Tree::new("a_mistake_in_a_file_reaches_the_objects_or_the_renderer") else {
        return;
    };
    let (schemas, programs) = (Schemas::load(), Programs::load());
    tree.edit("base/worker/deployment.yaml", "path: /readyz", "path: /healthz");
    tree.edit("components/nats/worker/config.yaml", "  EBB_QUEUE:", "  EBB_QUEEU:");
    let said = said(&tree.render("overlays/nats-cpu"), &schemas, &programs);
    for words in ["not at /readyz", "there is no variable EBB_QUEEU", "no broker is named"] {
        assert!(said.iter().any(|one| one.contains(words)), "{words}: {said:?}");
    }
    tree.edit("components/gpu/worker.yaml", "name: ebb-worker\n", "name: ebb-wroker\n");
    let refused = tree.try_render(&tree.path("overlays/nats-gpu")).failed();
    assert!(refused.stderr.contains("ebb-wroker"), "{refused}");
}
