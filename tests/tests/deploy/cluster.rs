//! What a real API server says of the overlays, on the cluster that `EBB_TEST_KUBECONFIG` names.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use e2e::{Run, run, skipped};
use regex::Regex;
use serde_json::{Value, json};

use crate::mistakes::{Mistake, made};
use crate::render::{Object, kubectl, overlays};
use crate::{assert_none, each};

/// Groups of kinds that a cluster has from somebody else, and from whom.
const MAKERS: [(&str, &str); 6] = [
    ("agents.x-k8s.io", "agent-sandbox 0.5 with extensions"),
    ("cert-manager.io", "cert-manager"),
    ("external-secrets.io", "the External Secrets Operator"),
    ("istio.io", "Istio"),
    ("keda.sh", "KEDA"),
    ("monitoring.coreos.com", "the Prometheus Operator"),
];

/// A cluster, and what a test has made in it, which goes with the test.
#[derive(Debug)]
pub(crate) struct Cluster {
    kubectl: PathBuf,
    kubeconfig: OsString,
    made: Vec<String>,
}

impl Cluster {
    /// None, with words about it, where no cluster is named.
    pub(crate) fn named(test: &str) -> Option<Self> {
        let Some(kubeconfig) = std::env::var_os("EBB_TEST_KUBECONFIG") else {
            let remedy = "EBB_TEST_KUBECONFIG names the file that leads to a cluster with KEDA";
            skipped(test, remedy);
            return None;
        };
        // Without one the overlays are not rendered either, which says so.
        let cluster = Self { kubectl: kubectl()?, kubeconfig, made: Vec::new() };
        cluster.run(&["get", "--raw", "/readyz"], "").ok();
        Some(cluster)
    }

    pub(crate) fn run(&self, args: &[&str], stdin: &str) -> Run {
        let mut command = Command::new(&self.kubectl);
        run(command.arg("--kubeconfig").arg(&self.kubeconfig).args(args), stdin)
    }

    /// Makes what is not there yet, and takes it away with itself.
    #[track_caller]
    pub(crate) fn make(&mut self, object: &Object) {
        let name = format!("{}/{}", object.kind(), object.name());
        let there = self.run(&["get", &name, "--ignore-not-found", "-o", "name"], "").ok();
        if there.stdout.is_empty() {
            self.apply(std::slice::from_ref(object), &[]).ok();
            self.made.push(name);
        }
    }

    pub(crate) fn apply(&self, objects: &[Object], flags: &[&str]) -> Run {
        let items: Vec<&Value> = objects.iter().map(|one| &one.0).collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        self.run(&[&["apply", "-f", "-"], flags].concat(), &list.to_string())
    }

    /// Errors and warnings of the API server about objects that it keeps none of.
    fn objections(&self, objects: &[Object]) -> Vec<String> {
        let said = self.apply(objects, &["--dry-run=server"]);
        let missing = Regex::new(r#"no matches for kind "(\w+)" in version "([^"]+)""#).unwrap();
        let remedy = |line: &str| {
            let found = missing.captures(line)?;
            let (kind, group) = (&found[1], found[2].split('/').next()?);
            let maker = MAKERS.iter().find(|(of, _)| group.ends_with(of));
            let maker = maker.map_or("what brings it", |(_, maker)| *maker);
            Some(format!("the cluster lacks the kind {kind} of {group}: install {maker} there"))
        };
        let lines = said.stderr.lines().filter(|line| *line != "ensure CRDs are installed first");
        let lines = lines.map(|line| remedy(line).unwrap_or_else(|| line.to_owned()));
        let mut lines: Vec<String> = lines.collect::<BTreeSet<_>>().into_iter().collect();
        if lines.is_empty() && !said.status.success() {
            lines.push(said.to_string());
        }
        lines
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for name in self.made.iter().rev() {
            drop(self.run(&["delete", name, "--ignore-not-found", "--timeout=120s"], ""));
        }
    }
}

/// Every namespace in which an object lies: ours as we make it, those of others plain.
fn namespaces(all: &[&Object]) -> Vec<Object> {
    let names: BTreeSet<&str> = all.iter().map(|one| one.namespace()).collect();
    let make = |name: &str| {
        let ours = all.iter().find(|one| one.is("Namespace", "", name));
        ours.map(|one| (*one).clone()).unwrap_or_else(|| {
            Object(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))
        })
    };
    names.into_iter().filter(|name| !name.is_empty()).map(make).collect()
}

#[test]
fn an_api_server_takes_every_overlay_without_a_word() {
    let test = "an_api_server_takes_every_overlay_without_a_word";
    let Some(mut cluster) = Cluster::named(test) else { return };
    let Some(all) = overlays(test) else { return };
    for namespace in namespaces(&all.values().flatten().collect::<Vec<_>>()) {
        cluster.make(&namespace);
    }
    let said = each(all, |objects| cluster.objections(objects));
    assert_none("an API server has no error and no warning", said);

    let container = "/spec/template/spec/containers/0";
    let mistakes: [Mistake; 4] = [
        (
            "Deployment ebb-workers/ebb-worker",
            "/spec/template/spec/hostNetwork",
            json!(true),
            "Warning: would violate PodSecurity",
        ),
        (
            "Deployment ebb/ebb-scaler",
            "/spec/template/spec/terminationGracePeriod",
            json!(15),
            "unknown field",
        ),
        (
            "Deployment ebb/ebb-scaler",
            format!("{container}/resources/requests/memory").leak(),
            json!("64MB"),
            "quantities must match",
        ),
        (
            "ScaledObject ebb-workers/ebb-worker",
            "/apiVersion",
            json!("keda.sh/v9"),
            "the cluster lacks the kind ScaledObject of keda.sh: install KEDA there",
        ),
    ];
    for mistake in mistakes {
        let said = cluster.objections(&made(&all["overlays/nats-cpu"], &mistake));
        assert!(said.iter().any(|line| line.contains(mistake.3)), "{mistake:?}: {said:?}");
    }
}
