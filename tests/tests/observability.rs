//! Dashboard, rules and monitors ask for what the processes show, and alerts fire when they should.
//!
//! What there is stands in docs/metrics.md. The crates' own tests compare that page with their
//! code, and a test here with what the real processes show; everything else is compared with the
//! page, so that a metric that is renamed breaks all of it.

#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::process::Command;

use e2e::{Asked, Process, Workplace, get, run, skipped, wait_for, workspace_root};
use ebb_proto::keda::external_scaler_client::ExternalScalerClient;
use ebb_proto::keda::{GetMetricsRequest, ScaledObjectRef};
use ebb_servers::Port;
use regex::Regex;
use serde_json::Value;

/// Labels that Prometheus and its operator add to whatever a target shows.
const OF_TARGETS: [&str; 7] =
    ["namespace", "pod", "container", "service", "endpoint", "job", "instance"];

/// Metrics of Prometheus itself.
const OF_PROMETHEUS: [&str; 1] = ["up"];

/// Metrics of ours that a worker, a split, a gateway and a scaler without trouble, GPU and TLS do not
/// show, and why.
/// That they exist and what they are called is compared by the tests of their crates.
const NOT_SHOWN: [(&str, &str); 21] = [
    ("worker_gpu_memory_used_bytes", "needs a GPU"),
    ("worker_gpu_memory_total_bytes", "needs a GPU"),
    ("worker_gpu_utilization_ratio", "needs a GPU"),
    ("worker_broker_errors_total", "needs a broker that fails"),
    ("worker_replies_total", "needs a job with ebb-reply-to"),
    ("worker_chunks_total", "needs a job that asks for pieces"),
    ("scaler_look_errors_total", "needs a broker that fails"),
    ("scaler_connections_refused_total", "needs clients that are not let in"),
    ("scaler_config_reloads_total", "needs a configuration that changes"),
    ("scaler_tls_reloads_total", "needs a certificate that changes"),
    ("scaler_tls_expiry_timestamp_seconds", "needs a certificate"),
    ("scaler_queue_throughput_per_second", "needs a backlog of many seconds"),
    ("split_spilled_total", "needs a queue that is full"),
    ("split_full_total", "needs a queue that is full"),
    ("split_dead_total", "needs a job that expires"),
    ("split_weights_reloads_total", "needs weights that change"),
    ("split_broker_errors_total", "needs a broker that fails"),
    ("gateway_first_piece_seconds", "needs a generator"),
    ("gateway_streams_total", "needs a stream"),
    ("gateway_broker_errors_total", "needs a broker that fails"),
    ("gateway_keys_reloads_total", "needs keys that change"),
];

#[track_caller]
fn assert_none(rule: &str, broken: impl IntoIterator<Item = String>) {
    let broken: Vec<String> = broken.into_iter().collect();
    assert!(broken.is_empty(), "{rule}; broken by\n  {}", broken.join("\n  "));
}

fn read(path: &str) -> String {
    std::fs::read_to_string(workspace_root().join(path)).unwrap_or_else(|_| panic!("no {path}"))
}

fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("not a list: {value}"))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value}"))
}

/// What the page tells of a metric.
#[derive(Debug, Clone, Default)]
struct Told {
    kind: String,
    labels: BTreeSet<String>,
    /// The values of its last label, where there are only these.
    values: Option<(String, BTreeSet<String>)>,
}

/// The metrics of the page.
fn page() -> BTreeMap<String, Told> {
    let label = Regex::new("`([^`]+)`").unwrap();
    let mut told = BTreeMap::new();
    for row in read("docs/metrics.md").lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches(['|', ' ']).split(" | ").collect();
        let [name, kind, labels, _] = cells[..] else { panic!("not four cells: {row}") };
        let (labels, values) = labels.split_once(": ").unwrap_or((labels, ""));
        let all = || label.captures_iter(labels).map(|found| found[1].to_owned());
        let values: BTreeSet<String> =
            values.split(", ").filter(|value| !value.is_empty()).map(str::to_owned).collect();
        let values = (!values.is_empty()).then(|| (all().last().unwrap(), values));
        let one = Told { kind: kind.to_owned(), labels: all().collect(), values };
        told.insert(name.trim_matches('`').to_owned(), one);
    }
    let version = BTreeSet::from(["version".to_owned()]);
    told.insert("build_info".into(), Told { kind: "gauge".into(), labels: version, values: None });
    assert!(told.len() > 30, "the page's tables were not found");
    told
}

/// All that can be asked for: the page's metrics, the parts of histograms, what the rules record.
fn known() -> BTreeMap<String, Told> {
    let mut known = page();
    for (name, told) in known.clone() {
        if told.kind == "histogram" {
            let le = Told { labels: &told.labels | &BTreeSet::from(["le".into()]), ..told.clone() };
            known.insert(format!("{name}_bucket"), le);
            known.insert(format!("{name}_sum"), told.clone());
            known.insert(format!("{name}_count"), told);
            known.remove(&name);
        }
    }
    let by = Regex::new(r"by \(([^)]*)\)").unwrap();
    for rule in rules() {
        let Some(name) = rule["record"].as_str() else { continue };
        let expression = text(&rule["expr"]);
        let labels = by.captures(expression).expect("a recorded rule groups by labels");
        let labels = labels[1].split(", ").map(str::to_owned).collect();
        let source = &Asked::read(expression).metrics[0].0;
        let values = known.get(source).and_then(|told| told.values.clone());
        known.insert(name.to_owned(), Told { kind: "gauge".into(), labels, values });
    }
    let up = OF_PROMETHEUS.map(|name| (name.to_owned(), Told::default()));
    known.extend(up);
    known
}

fn rules() -> Vec<Value> {
    let groups = yaml("deploy/observability/rules.yaml")["spec"]["groups"].clone();
    list(&groups).iter().flat_map(|group| list(&group["rules"]).to_vec()).collect()
}

fn alerts() -> Vec<Value> {
    let alerts: Vec<Value> = rules().into_iter().filter(|rule| rule["alert"].is_string()).collect();
    assert!(alerts.len() > 10, "the alerts were not found");
    alerts
}

fn dashboard() -> Value {
    serde_json::from_str(&read("deploy/observability/dashboard.json")).unwrap()
}

/// The panels that show something, each with its title.
fn panels(dashboard: &Value) -> Vec<(&str, &Value)> {
    let all = list(&dashboard["panels"]).iter();
    let panels: Vec<_> = all
        .filter(|panel| panel["type"] != "row")
        .map(|panel| (text(&panel["title"]), panel))
        .collect();
    assert!(panels.len() > 20, "the panels were not found");
    panels
}

/// An expression with values in place of Grafana's variables.
fn substituted(expression: &str) -> String {
    let variable = Regex::new(r"\$\{?\w+\}?").unwrap();
    let spans = expression.replace("$__rate_interval", "5m").replace("$__range", "1h");
    let spans = spans.replace("$profile", ".*").replace("$queue", ".*");
    variable.replace_all(&spans, "jobs").into_owned()
}

/// What an expression asks for and nobody shows.
fn objections(expression: &str, known: &BTreeMap<String, Told>) -> Vec<String> {
    let asked = Asked::read(expression);
    let mut broken = Vec::new();
    let mut labels: BTreeSet<&str> = OF_TARGETS.into();
    if asked.metrics.is_empty() {
        broken.push("it asks for no metric".to_owned());
    }
    for (name, matchers) in &asked.metrics {
        let Some(told) = known.get(name) else {
            broken.push(format!("there is no metric {name}"));
            continue;
        };
        labels.extend(told.labels.iter().map(String::as_str));
        for matcher in matchers {
            let label = matcher.label.as_str();
            if !told.labels.contains(label) && !OF_TARGETS.contains(&label) {
                broken.push(format!("{name} has no label {label}"));
            }
            let closed = told.values.as_ref().filter(|(of, _)| of == label);
            let values = matcher.value.split('|');
            let strange =
                |(_, values): &(String, BTreeSet<String>), value: &str| !values.contains(value);
            if let Some(closed) = closed {
                let strange = values.filter(|value| strange(closed, value));
                broken.extend(strange.map(|value| format!("{name}: {label} is never {value}")));
            }
        }
    }
    let unknown = asked.labels.iter().filter(|label| !labels.contains(label.as_str()));
    broken.extend(unknown.map(|label| format!("nothing in it has the label {label}")));
    broken
}

#[test]
fn a_metric_that_was_renamed_or_a_label_that_is_not_there_is_found() {
    let known = known();
    assert_eq!(objections("sum by (outcome) (rate(worker_jobs_total[5m]))", &known), [""; 0]);
    for wrong in [
        "worker_job_total",
        "sum by (reason) (worker_jobs_total)",
        "worker_jobs_total{state=\"ready\"}",
        "worker_jobs_total{outcome=\"failed\"}",
        "worker_jobs_total{outcome=~\"completed|failed\"}",
        "rate(worker_job_seconds[5m])",
        "worker_infer_seconds_total",
        "queue:worker_jobs:rate5m{tenant=\"a\"}",
        "time() > 5",
    ] {
        assert_eq!(objections(wrong, &known).len(), 1, "{wrong}");
    }
}

#[test]
fn rules_and_dashboard_ask_only_for_what_there_is() {
    let known = known();
    let mut broken = Vec::new();
    for rule in rules() {
        let name = rule["alert"].as_str().or(rule["record"].as_str()).unwrap();
        let objections = objections(text(&rule["expr"]), &known);
        broken.extend(objections.into_iter().map(|why| format!("rule {name}: {why}")));
    }
    let dashboard = dashboard();
    let legend = Regex::new(r"\{\{(\w+)\}\}").unwrap();
    for (title, panel) in panels(&dashboard) {
        for target in list(&panel["targets"]) {
            let expression = substituted(text(&target["expr"]));
            let objections = objections(&expression, &known);
            broken.extend(objections.into_iter().map(|why| format!("panel {title}: {why}")));
            let asked = Asked::read(&expression);
            let metrics = asked.metrics.iter().filter_map(|(name, _)| known.get(name));
            let labels: BTreeSet<&str> =
                metrics.flat_map(|told| told.labels.iter().map(String::as_str)).collect();
            for shown in legend.captures_iter(text(&target["legendFormat"])) {
                if !labels.contains(&shown[1]) && !OF_TARGETS.contains(&&shown[1]) {
                    broken.push(format!("panel {title}: no series has {}", &shown[0]));
                }
            }
        }
    }
    let values = Regex::new(r"^label_values\((.*), (\w+)\)$").unwrap();
    for variable in list(&dashboard["templating"]["list"]) {
        let Some(query) = variable["query"]["query"].as_str() else { continue };
        let found = values.captures(query).unwrap_or_else(|| panic!("variable: {query}"));
        let expression = format!("sum by ({}) ({})", &found[2], substituted(&found[1]));
        let objections = objections(&expression, &known);
        broken.extend(objections.into_iter().map(|why| format!("variable {query}: {why}")));
    }
    assert_none("what is asked for is in docs/metrics.md", broken);
}

#[test]
fn the_pages_name_only_metrics_that_there_are() {
    let known = known();
    let metric = Regex::new(r"`((?:worker|scaler|split|gateway)_[a-z_]+)[`{]").unwrap();
    let mut broken = Vec::new();
    for page in e2e::tracked_files().into_iter().filter(|path| path.ends_with(".md")) {
        for found in metric.captures_iter(&read(&page)) {
            let name = &found[1];
            let histogram = known.contains_key(&format!("{name}_bucket"));
            if !known.contains_key(name) && !histogram {
                broken.push(format!("{page}: {name}"));
            }
        }
    }
    assert_none("a metric on a page is in docs/metrics.md", broken);
}

#[test]
fn the_page_tells_of_every_metric_of_a_split_and_of_a_gateway() {
    let page = page();
    for of in ["split", "gateway"] {
        let metric = Regex::new(&format!(r#""({of}_[a-z_]+)""#)).unwrap();
        let code = read(&format!("{of}/src/metrics.rs"));
        let code: BTreeSet<&str> =
            metric.captures_iter(&code).map(|found| found.get(1).unwrap().as_str()).collect();
        assert!(code.len() > 5, "the metrics were not found: {code:?}");
        let told = page.keys().map(String::as_str);
        let told: BTreeSet<&str> =
            told.filter(|name| name.starts_with(&format!("{of}_"))).collect();
        assert_eq!(told, code);
    }
}

#[test]
fn every_panel_says_what_it_shows_in_which_unit_and_in_a_place_of_its_own() {
    let dashboard = dashboard();
    let mut broken = Vec::new();
    let mut taken: HashMap<(u64, u64), String> = HashMap::new();
    let ids: BTreeSet<u64> =
        list(&dashboard["panels"]).iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), list(&dashboard["panels"]).len(), "each panel has an id of its own");
    for (title, panel) in panels(&dashboard) {
        let unit = panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap_or("");
        let description = panel["description"].as_str().unwrap_or("");
        if unit.is_empty() || !description.ends_with('.') || list(&panel["targets"]).is_empty() {
            broken.push(format!("{title}: unit {unit:?}, description {description:?}"));
        }
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        if at("x") + at("w") > 24 {
            broken.push(format!("{title}: wider than the page"));
        }
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                if let Some(other) = taken.insert((x, y), title.to_owned()) {
                    broken.push(format!("{title}: lies over {other}"));
                }
            }
        }
    }
    assert_none("a panel can be read by who did not make it", broken);
}

#[test]
fn the_dashboard_has_what_was_asked_of_it_and_compares_two_versions() {
    let dashboard = dashboard();
    let rows = list(&dashboard["panels"]).iter().filter(|panel| panel["type"] == "row");
    let rows: Vec<&str> = rows.map(|row| text(&row["title"])).collect();
    for topic in
        ["Queue", "Replicas", "Batches", "Latency", "Cold starts", "GPU", "Cost per tenant"]
    {
        assert!(rows.contains(&topic), "{topic}: {rows:?}");
    }
    for variable in ["stable", "candidate"] {
        let asks = format!("queue=\"${variable}\"");
        let panels = panels(&dashboard).into_iter();
        let n = panels
            .filter(|(_, panel)| panel["targets"].to_string().contains(&asks.replace('"', "\\\"")));
        assert!(n.count() >= 5, "panels compare ${variable}");
    }
}

/// promtool in a folder with the rules as rules.yaml; none where it is not installed.
fn promtool(test: &str, folder: &Path, args: &[&str]) -> Option<()> {
    let installed = Command::new("promtool").arg("--version").output().is_ok();
    if !installed {
        skipped(test, "install promtool, which Debian has in its package prometheus");
        return None;
    }
    let rules = read("deploy/observability/rules.yaml");
    let (_, spec) = rules.split_once("\nspec:\n").expect("a PrometheusRule has a spec");
    let spec: String =
        spec.lines().map(|line| format!("{}\n", line.get(2..).unwrap_or(""))).collect();
    std::fs::write(folder.join("rules.yaml"), spec).unwrap();
    let ran = run(Command::new("promtool").args(args).current_dir(folder), "").ok();
    assert!(!ran.stdout.contains("FAILED") && !ran.stderr.contains("FAILED"), "{ran}");
    Some(())
}

#[test]
fn prometheus_takes_the_rules_and_every_query_of_the_dashboard() {
    let folder = Workplace::new();
    let test = "prometheus_takes_the_rules_and_every_query_of_the_dashboard";
    let mut queries = String::from("groups:\n- name: dashboard\n  rules:\n");
    let dashboard = dashboard();
    let all = panels(&dashboard).into_iter();
    for (n, target) in all.flat_map(|(_, panel)| list(&panel["targets"])).enumerate() {
        let expression = Value::from(substituted(text(&target["expr"])));
        queries.push_str(&format!("  - record: query:{n}\n    expr: {expression}\n"));
    }
    std::fs::write(folder.path("queries.yaml"), queries).unwrap();
    promtool(test, folder.folder(), &["check", "rules", "rules.yaml", "queries.yaml"]);
}

#[test]
fn every_alert_fires_when_it_should_and_is_silent_when_it_should_be() {
    let folder = Workplace::new();
    let test = "every_alert_fires_when_it_should_and_is_silent_when_it_should_be";
    let tests = yaml("tests/promtool/alerts.yaml");
    let (mut fires, mut is_silent) = (BTreeSet::new(), BTreeSet::new());
    for check in list(&tests["tests"]).iter().flat_map(|test| list(&test["alert_rule_test"])) {
        let expected = check["exp_alerts"].as_array().is_some_and(|alerts| !alerts.is_empty());
        let seen = if expected { &mut fires } else { &mut is_silent };
        seen.insert(text(&check["alertname"]).to_owned());
    }
    let names: BTreeSet<String> =
        alerts().iter().map(|alert| text(&alert["alert"]).to_owned()).collect();
    assert_eq!((&fires, &is_silent), (&names, &names), "alerts with a test of each kind");
    std::fs::copy(workspace_root().join("tests/promtool/alerts.yaml"), folder.path("alerts.yaml"))
        .unwrap();
    promtool(test, folder.folder(), &["test", "rules", "alerts.yaml"]);
}

/// The query of a panel, named by its title, and by that of its row where several have the same.
fn query(dashboard: &Value, check: &Value) -> String {
    let (mut row, mut found) = ("", None);
    for panel in list(&dashboard["panels"]) {
        let title = text(&panel["title"]);
        match panel["type"] == "row" {
            true => row = title,
            false if check["panel"] == title && check["of"].as_str().is_none_or(|of| of == row) => {
                found = found.or(Some(panel));
            }
            false => {}
        }
    }
    let panel = found.unwrap_or_else(|| panic!("there is no panel of {check}"));
    let nth = check["nth"].as_u64().unwrap_or(0) as usize;
    substituted(text(&panel["targets"][nth]["expr"]))
}

#[test]
fn panels_show_what_workers_and_gateways_did() {
    let folder = Workplace::new();
    let mut page = yaml("tests/promtool/panels.yaml");
    let dashboard = dashboard();
    let tests = page["tests"].as_array_mut().unwrap().iter_mut();
    for check in tests.flat_map(|test| test["promql_expr_test"].as_array_mut().unwrap()) {
        let expression = query(&dashboard, check);
        let check = check.as_object_mut().unwrap();
        check.retain(|key, _| !["panel", "nth", "of"].contains(&key.as_str()));
        check.insert("expr".into(), expression.into());
    }
    // What is JSON is YAML.
    std::fs::write(folder.path("panels.yaml"), page.to_string()).unwrap();
    let test = "panels_show_what_workers_and_gateways_did";
    promtool(test, folder.folder(), &["test", "rules", "panels.yaml"]);
}

#[test]
fn what_is_summed_over_workers_counts_those_that_ended_in_its_span() {
    let dashboard = dashboard();
    let of_panels = panels(&dashboard).into_iter().flat_map(|(title, panel)| {
        let targets = list(&panel["targets"]).iter();
        targets.map(move |target| (title.to_owned(), text(&target["expr"]).to_owned()))
    });
    let of_rules = rules().into_iter().map(|rule| {
        let name = rule["alert"].as_str().or(rule["record"].as_str()).unwrap().to_owned();
        (name, text(&rule["expr"]).to_owned())
    });
    let span = Regex::new(r"(rate|increase)\(worker_").unwrap();
    let now = Regex::new(r"group_left\s*\(queue\)\s*worker_info").unwrap();
    let broken = of_panels.chain(of_rules).filter(|(_, expression)| {
        // An average is one over those that are there: who ended would count as idle.
        span.is_match(expression) && now.is_match(expression) && !expression.starts_with("avg")
    });
    assert_none(
        "it joins with the workers of its span",
        broken.map(|(name, expression)| format!("{name}: {expression}")),
    );
}

#[test]
fn every_alert_says_what_it_means_and_has_a_section_in_the_runbooks() {
    let runbooks = read("docs/runbooks.md");
    let sections: BTreeSet<&str> = runbooks
        .lines()
        .filter_map(|line| line.strip_prefix("## Ebb").map(|_| &line[3..]))
        .collect();
    let mut broken = Vec::new();
    let mut names = BTreeSet::new();
    let alerts = alerts();
    for alert in &alerts {
        let name = text(&alert["alert"]);
        names.insert(name);
        let annotations = &alert["annotations"];
        let severity = text(&alert["labels"]["severity"]);
        let anchor = format!("docs/runbooks.md#{}", name.to_lowercase());
        let words = ["summary", "description"].map(|key| annotations[key].as_str().unwrap_or(""));
        let well = ["critical", "warning", "info"].contains(&severity)
            && words.iter().all(|words| !words.is_empty())
            && annotations["runbook_url"] == *anchor;
        if !well {
            broken.push(format!("{name}: {severity}, {annotations}"));
        }
        if !sections.contains(name) {
            broken.push(format!("{name}: docs/runbooks.md has no section"));
        }
    }
    let stale = sections.iter().filter(|section| !names.contains(*section));
    broken.extend(stale.map(|section| format!("docs/runbooks.md: there is no alert {section}")));
    assert_none("an alert tells its reader what to do", broken);
    for section in runbooks.split("\n## Ebb").skip(1) {
        for part in ["**Means.**", "**See.**", "**Do.**"] {
            assert!(section.contains(part), "{part} is missing in: {section}");
        }
    }
}

/// What kubectl renders, or none where there is none that knows components.
fn rendered(test: &str, folder: &str) -> Option<Vec<Value>> {
    let kubectl = std::env::var_os("EBB_TEST_KUBECTL").unwrap_or_else(|| "kubectl".into());
    let version = Command::new(&kubectl).args(["version", "--client"]).output();
    let version = version.map(|ran| String::from_utf8_lossy(&ran.stdout).into_owned());
    if !version.is_ok_and(|version| version.contains("Kustomize Version: v5")) {
        skipped(test, "name a kubectl with Kustomize 5 in EBB_TEST_KUBECTL, as tests/run does");
        return None;
    }
    let folder = workspace_root().join(folder);
    let page = run(Command::new(&kubectl).arg("kustomize").arg(folder), "").ok().stdout;
    Some(serde_saphyr::from_multiple(&page).unwrap())
}

#[test]
fn the_component_holds_the_monitors_the_rules_and_the_dashboard_for_the_sidecar() {
    let test = "the_component_holds_the_monitors_the_rules_and_the_dashboard_for_the_sidecar";
    let Some(objects) = rendered(test, "deploy/observability") else { return };
    let kinds: BTreeSet<(&str, &str)> = objects
        .iter()
        .map(|object| (text(&object["kind"]), text(&object["metadata"]["name"])))
        .collect();
    let expected = BTreeSet::from([
        ("ConfigMap", "ebb-dashboard"),
        ("PodMonitor", "ebb-worker"),
        ("PrometheusRule", "ebb"),
        ("ServiceMonitor", "ebb-scaler"),
    ]);
    assert_eq!(kinds, expected);
    let config = objects.iter().find(|object| object["kind"] == "ConfigMap").unwrap();
    assert_eq!(config["metadata"]["labels"]["grafana_dashboard"], "1");
    let shown: Value = serde_json::from_str(text(&config["data"]["ebb.json"])).unwrap();
    assert_eq!(shown, dashboard());
}

#[test]
fn the_monitors_find_the_pods_and_ports_of_the_manifests() {
    let test = "the_monitors_find_the_pods_and_ports_of_the_manifests";
    if !workspace_root().join("deploy/base/kustomization.yaml").exists() {
        return skipped(test, "merge the manifests of deploy/base");
    }
    let Some(objects) = rendered(test, "deploy/base") else { return };
    let of_kind = |kind: &'static str| objects.iter().filter(move |object| object["kind"] == kind);
    let monitor = yaml("deploy/observability/scaler.yaml")["spec"].clone();
    let labels = monitor["selector"]["matchLabels"].as_object().expect("a selector by labels");
    let service = of_kind("Service").find(|service| {
        labels.iter().all(|(key, value)| service["metadata"]["labels"][key] == *value)
            && list(&service["spec"]["ports"])
                .iter()
                .any(|port| port["name"] == monitor["endpoints"][0]["port"])
    });
    assert!(service.is_some(), "a Service with the labels and the port of the ServiceMonitor");
    let scraped = scraped(&objects);
    assert!(scraped.contains("ebb-worker"), "{scraped:?}");
}

#[test]
fn a_plain_prometheus_gets_the_labels_that_the_operator_would_add() {
    let folder = Workplace::new();
    let page = read("docs/install.md");
    let mut blocks = page.split("```yaml\n").filter_map(|rest| rest.split("```").next());
    let block = blocks.find(|block| block.contains("relabel_configs")).expect("the guide has it");
    // Debian builds it without a way to ask Kubernetes.
    let static_block = block
        .replace("kubernetes_sd_configs:\n      - role: pod", "static_configs: [{targets: []}]");
    assert_ne!(static_block, block);
    std::fs::write(folder.path("prometheus.yaml"), static_block).unwrap();
    let test = "a_plain_prometheus_gets_the_labels_that_the_operator_would_add";
    promtool(test, folder.folder(), &["check", "config", "prometheus.yaml"]);

    let config: Value = serde_saphyr::from_str(block).unwrap();
    let steps = list(&config["scrape_configs"][0]["relabel_configs"]);
    let target = |step: &Value| step["target_label"].as_str().map(str::to_owned);
    let labels: BTreeSet<String> = steps.iter().filter_map(target).collect();
    assert_eq!(labels, ["job", "namespace", "pod"].map(str::to_owned).into());
    let monitor = yaml("deploy/observability/worker.yaml");
    let of_pods = list(&monitor["spec"]["selector"]["matchExpressions"][0]["values"]);
    let kept = Regex::new(&format!("^(?:{})$", text(&steps[0]["regex"]))).unwrap();
    for name in of_pods.iter().map(text).chain(["ebb-scaler"]) {
        assert!(kept.is_match(&format!("{name};http")), "{name}");
    }
    assert!(!kept.is_match("ebb-scaler;grpc") && !kept.is_match("nats;http"));
}

#[test]
fn the_guide_names_what_decides_which_monitors_and_rules_prometheus_takes() {
    let page = read("docs/install.md");
    for of in ["serviceMonitor", "podMonitor", "rule"] {
        for by in ["NamespaceSelector", "Selector"] {
            assert!(page.contains(&format!("`{of}{by}`")), "{of}{by}");
        }
    }
}

/// The Deployments whose pods the PodMonitor finds, and asks at a port that they have.
fn scraped(objects: &[Value]) -> BTreeSet<&str> {
    let monitor = yaml("deploy/observability/worker.yaml")["spec"].clone();
    let by = list(&monitor["selector"]["matchExpressions"]);
    let [one] = by else { panic!("a selector by one label: {by:?}") };
    assert_eq!(one["operator"], "In");
    let port = &monitor["podMetricsEndpoints"][0]["port"];
    let is_found = |pod: &Value| {
        let label = &pod["metadata"]["labels"][text(&one["key"])];
        let containers = list(&pod["spec"]["containers"]).iter();
        let mut ports = containers.flat_map(|one| one["ports"].as_array().into_iter().flatten());
        list(&one["values"]).contains(label) && ports.any(|shown| shown["name"] == *port)
    };
    let all = objects.iter().filter(|object| object["kind"] == "Deployment");
    let found = all.filter(|deployment| is_found(&deployment["spec"]["template"]));
    found.map(|deployment| text(&deployment["metadata"]["name"])).collect()
}

#[test]
fn the_monitors_find_both_versions_and_the_split_of_a_canary() {
    let test = "the_monitors_find_both_versions_and_the_split_of_a_canary";
    let Some(objects) = rendered(test, "deploy/overlays/nats-gpu-canary") else { return };
    let expected = BTreeSet::from(["ebb-split", "ebb-worker", "ebb-worker-canary"]);
    assert_eq!(scraped(&objects), expected, "alerts and pages ask for the metrics of each");
}

#[test]
fn the_monitors_find_a_gateway() {
    let test = "the_monitors_find_a_gateway";
    let Some(objects) = rendered(test, "deploy/overlays/nats-gpu-gateway") else { return };
    assert_eq!(scraped(&objects), BTreeSet::from(["ebb-gateway", "ebb-worker"]));
}

/// The series of a metrics page: the kind of each family, and its samples' labels.
fn series(page: &str) -> BTreeMap<String, (String, Vec<BTreeMap<String, String>>)> {
    let sample = Regex::new(r#"^(\w+)(?:\{(.*)\})? \S+$"#).unwrap();
    let pair = Regex::new(r#"(\w+)="((?:[^"\\]|\\.)*)""#).unwrap();
    let mut families: BTreeMap<String, (String, Vec<_>)> = BTreeMap::new();
    let mut family = String::new();
    for line in page.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            family = name.to_owned();
            families.insert(family.clone(), (kind.to_owned(), Vec::new()));
        } else if let Some(found) = sample.captures(line) {
            let labels = found.get(2).map_or("", |labels| labels.as_str());
            let labels = pair.captures_iter(labels);
            let labels = labels.map(|pair| (pair[1].to_owned(), pair[2].to_owned()));
            let labels = labels.filter(|(label, _)| label != "le").collect();
            families.get_mut(&family).expect("a type comes first").1.push(labels);
        }
    }
    families
}

/// A scaler and a worker on one queue, with some jobs done and one dead, a split before it, and a
/// gateway.
struct Scene {
    _processes: [Process; 4],
    addresses: [String; 4],
}

impl Scene {
    async fn new(workplace: &Workplace) -> Self {
        let local = "127.0.0.1:0";
        let mut worker = workplace.start(&["worker", "--model", "echo", "--listen", local]);
        let mut scaler = workplace.start(&["scaler", "--listen", local, "--http-listen", local]);
        let after = |mark: &'static str| {
            move |said: &str| {
                let rest = said.split_once(mark)?.1;
                rest.split_once(char::is_whitespace).map(|(word, _)| word.to_owned())
            }
        };
        let intake = format!("{}&queue=intake", workplace.queue());
        workplace.ebb(&["queue", "init", "--queue", &intake]).ok();
        let to = ["--to", "jobs=1", "--queue", &intake, "--listen", local];
        let mut split = workplace.start(&[&["split"], &to[..]].concat());
        let mut gateway = workplace.start(&["gateway", "--listen", local, "--admin-listen", local]);
        let addresses = [
            worker.says("its address", after("address=")),
            scaler.says("its address", after("http=")),
            split.says("its address", after("address=")),
            gateway.says("its address", after("address=")),
        ];
        let front = gateway.says("where clients reach it", |said| {
            after("address=")(said.split_once("the gateway listens")?.1)
        });
        get(&front, "/v1/models").unwrap();
        let grpc = scaler.says("its address", after("listen="));
        workplace.ebb(&["enqueue", "--wait", "one", "two", "three"]).ok();
        workplace.ebb(&["enqueue", "--wait", r#"{"nothing": "to echo"}"#]).failed();
        let mut client = ExternalScalerClient::connect(format!("http://{grpc}")).await.unwrap();
        let options = [("mode", "slo"), ("sloSeconds", "60")];
        let options = options.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let object = ScaledObjectRef {
            name: "pool".to_owned(),
            namespace: "default".to_owned(),
            scaler_metadata: options.into(),
        };
        let specs = client.get_metric_spec(object.clone()).await.unwrap().into_inner();
        let metric_name = specs.metric_specs[0].metric_name.clone();
        let stream = client.stream_is_active(object.clone()).await.unwrap();
        workplace.ebb(&["enqueue", "--wait", "four"]).ok();
        let request = GetMetricsRequest { scaled_object_ref: Some(object), metric_name };
        client.get_metrics(request).await.unwrap();
        drop(stream);
        Self { _processes: [worker, scaler, split, gateway], addresses }
    }

    fn pages(&self) -> String {
        self.addresses.iter().map(|at| get(at, "/metrics").unwrap().body).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_tells_of_what_the_real_processes_show() {
    let workplace = Workplace::new();
    // Weaker than the promises, so that the warnings are seen.
    let url =
        format!("sqlite:{}?lease=60s&synchronous=normal", workplace.path("queue.db").display());
    let workplace = workplace.on(url, None);
    let told = page();
    let not_shown: BTreeSet<&str> = NOT_SHOWN.iter().map(|(name, _)| *name).collect();
    let expected: BTreeSet<&str> =
        told.keys().map(String::as_str).filter(|name| !not_shown.contains(name)).collect();
    let scene = Scene::new(&workplace).await;
    // Some come with the worker's next report, and the scaler's next look.
    let shown = e2e::eventually(e2e::PATIENCE, || {
        let shown = series(&scene.pages());
        expected.iter().all(|name| shown.contains_key(*name)).then_some(shown)
    });
    let shown = shown.unwrap_or_else(|| series(&scene.pages()));
    let missing = expected.iter().filter(|name| !shown.contains_key(**name));
    assert_none("what the page tells of is shown", missing.map(ToString::to_string));

    let mut broken = Vec::new();
    for (name, (kind, samples)) in &shown {
        let Some(told) = told.get(name) else {
            broken.push(format!("{name} is not on the page"));
            continue;
        };
        if *kind != told.kind {
            broken.push(format!("{name} is a {kind}"));
        }
        for labels in samples {
            if labels.keys().ne(told.labels.iter()) {
                broken.push(format!("{name} has {labels:?}"));
            }
            let strange = told.values.as_ref().filter(|(label, values)| {
                labels.get(label).is_some_and(|value| !values.contains(value))
            });
            broken.extend(strange.map(|_| format!("{name} has {labels:?}")));
        }
    }
    assert_none("what is shown is as the page tells", broken);
    let named: Vec<&str> = not_shown.into_iter().filter(|name| !told.contains_key(*name)).collect();
    assert!(named.is_empty(), "NOT_SHOWN names what is not on the page: {named:?}");
    // What happened is what the figures say: four jobs were answered, and one could not be read.
    for line in [
        "worker_jobs_total{model=\"echo\",outcome=\"completed\"} 4",
        "worker_jobs_total{model=\"echo\",outcome=\"rejected\"} 1",
        "worker_stage_seconds_count{stage=\"queue\"} 5",
        "worker_stage_seconds_count{stage=\"decode\"} 5",
        "worker_stage_seconds_count{stage=\"wait\"} 4",
        "worker_stage_seconds_count{stage=\"infer\"} 4",
        "worker_stage_seconds_count{stage=\"settle\"} 5",
        "worker_turnaround_seconds_count 4",
        "scaler_queue_objective_seconds{profile=\"default\",queue=\"jobs\"} 60",
    ] {
        // A result is there before its job is settled and counted.
        wait_for(line, || scene.pages().lines().any(|shown| shown == line).then_some(()));
    }
    wait_for("the dead letter in the depth", || {
        let dead = r#"scaler_queue_depth{profile="default",queue="jobs",state="dead"} 1"#;
        scene.pages().contains(dead).then_some(())
    });
}

/// A Prometheus that scrapes a scene each second, under the labels that its operator would add.
struct Prometheus {
    _process: Process,
    _port: Port,
    address: String,
}

impl Prometheus {
    fn start(workplace: &Workplace, scene: &Scene) -> Self {
        let [worker, scaler, split, gateway] = &scene.addresses;
        let job = |job: &str, pod: &str, address: &str| {
            format!(
                "- job_name: {job}\n  static_configs:\n  - targets: [\"{address}\"]\n    labels: \
                 {{namespace: ebb, pod: {pod}}}\n"
            )
        };
        let jobs = job("ebb-worker", "w-0", worker) + &job("ebb-scaler", "s-0", scaler);
        let jobs = jobs + &job("ebb-split", "p-0", split) + &job("ebb-gateway", "g-0", gateway);
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [rules.yaml]\n\
             scrape_configs:\n{jobs}"
        );
        std::fs::write(workplace.path("prometheus.yaml"), config).unwrap();
        let port = Port::draw().unwrap();
        let address = format!("127.0.0.1:{}", port.number());
        let mut command = Command::new("prometheus");
        command
            .current_dir(workplace.folder())
            .arg("--config.file=prometheus.yaml")
            .arg("--storage.tsdb.path=tsdb")
            .arg(format!("--web.listen-address={address}"));
        Self { _process: Process::start(&mut command), _port: port, address }
    }

    /// How many series an expression has now.
    fn count(&self, expression: &str) -> Option<f64> {
        let query: String =
            format!("count({expression})").bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = get(&self.address, &format!("/api/v1/query?query={query}"))?;
        let answer: Value = serde_json::from_str(&answer.body).ok()?;
        answer["data"]["result"][0]["value"][1].as_str()?.parse().ok()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dashboard_shows_the_figures_of_real_processes() {
    let test = "the_dashboard_shows_the_figures_of_real_processes";
    let workplace = Workplace::new();
    // Also writes the rules for the server.
    if promtool(test, workplace.folder(), &["check", "rules", "rules.yaml"]).is_none() {
        return;
    }
    if Command::new("prometheus").arg("--version").output().is_err() {
        return skipped(test, "install prometheus");
    }
    let scene = Scene::new(&workplace).await;
    let prometheus = Prometheus::start(&workplace, &scene);
    let dashboard = dashboard();
    let not_shown = NOT_SHOWN.map(|(name, _)| name);
    let mut awaited = Vec::new();
    for (title, panel) in panels(&dashboard) {
        for target in list(&panel["targets"]) {
            let expression = substituted(text(&target["expr"]));
            let asked = Asked::read(&expression);
            if !asked.metrics.iter().any(|(name, _)| not_shown.contains(&name.as_str())) {
                awaited.push((title, expression));
            }
        }
    }
    assert!(awaited.len() > 40, "the queries were not found");
    let end = e2e::eventually(e2e::PATIENCE, || {
        awaited.retain(|(_, expression)| prometheus.count(expression).is_none());
        awaited.is_empty().then_some(())
    });
    let empty = awaited.iter().map(|(title, expression)| format!("{title}: {expression}"));
    assert!(end.is_some(), "nothing to see in\n  {}", empty.collect::<Vec<_>>().join("\n  "));
}
