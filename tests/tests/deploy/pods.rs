//! Pods, wherever in an object their template lies.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::render::Object;

/// The template of some pods.
#[derive(Debug)]
pub(crate) struct Pods<'a> {
    /// What makes them.
    pub(crate) owner: &'a Object,
    pub(crate) namespace: &'a str,
    pub(crate) labels: &'a Value,
    pub(crate) spec: &'a Value,
}

/// A container, and what it is for.
#[derive(Debug)]
pub(crate) struct Container<'a> {
    pub(crate) value: &'a Value,
    /// Runs before the others.
    pub(crate) first: bool,
}

/// The list at a place, empty where there is none.
pub(crate) fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The text at a place, empty where there is none.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// All pods that an overlay's objects make.
pub(crate) fn pods(objects: &[Object]) -> Vec<Pods<'_>> {
    objects.iter().filter_map(template).collect()
}

fn template(owner: &Object) -> Option<Pods<'_>> {
    let place = match owner.kind() {
        "Deployment" | "StatefulSet" | "DaemonSet" | "Job" => "/spec/template",
        "CronJob" => "/spec/jobTemplate/spec/template",
        "ScaledJob" => "/spec/jobTargetRef/template",
        "SandboxTemplate" => "/spec/podTemplate",
        "Pod" => "",
        _ => return None,
    };
    let template = owner.0.pointer(place)?;
    let labels = &template["metadata"]["labels"];
    Some(Pods { owner, namespace: owner.namespace(), labels, spec: &template["spec"] })
}

impl<'a> Pods<'a> {
    pub(crate) fn containers(&self) -> Vec<Container<'a>> {
        let first = list(self.spec, "/initContainers").iter();
        let first = first.map(|value| Container { value, first: true });
        let others = list(self.spec, "/containers").iter();
        first.chain(others.map(|value| Container { value, first: false })).collect()
    }

    /// Whether a selector of the same namespace means them.
    pub(crate) fn chosen_by(&self, selector: &Value) -> bool {
        selects(selector, self.labels)
    }

    pub(crate) fn volume(&self, name: &str) -> Option<&'a Value> {
        list(self.spec, "/volumes").iter().find(|volume| volume["name"] == name)
    }
}

/// Whether a LabelSelector, or the plain labels of a Service, mean what has these labels.
pub(crate) fn selects(selector: &Value, labels: &Value) -> bool {
    let structured =
        selector.get("matchLabels").is_some() || selector.get("matchExpressions").is_some();
    let plain = if structured { &selector["matchLabels"] } else { selector };
    let has = |(key, value): (&String, &Value)| labels.get(key) == Some(value);
    plain.as_object().is_none_or(|plain| plain.iter().all(has))
        && list(selector, "/matchExpressions").iter().all(|one| fits(one, labels))
}

fn fits(one: &Value, labels: &Value) -> bool {
    let found = labels.get(text(one, "/key"));
    let among = found.is_some_and(|value| list(one, "/values").contains(value));
    match text(one, "/operator") {
        "In" => among,
        "NotIn" => !among,
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        _ => false,
    }
}

impl Container<'_> {
    pub(crate) fn name(&self) -> &str {
        text(self.value, "/name")
    }

    /// The image without its registry and its tag.
    pub(crate) fn image(&self) -> &str {
        let image = text(self.value, "/image").rsplit('/').next().unwrap_or_default();
        image.split([':', '@']).next().unwrap_or_default()
    }

    /// The number of a port, by its name or its number.
    pub(crate) fn port(&self, port: &Value) -> Option<u64> {
        let named = |one: &&Value| one["name"] == *port || one["containerPort"] == *port;
        list(self.value, "/ports").iter().find(named)?["containerPort"].as_u64()
    }

    /// Its plain environment: what stands in it, and what comes out of ConfigMaps.
    pub(crate) fn environment(&self, of: &Pods<'_>, all: &[Object]) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        let config = |name: &str| {
            all.iter().find(|one| one.is("ConfigMap", of.namespace, name)).map(|one| &one.0["data"])
        };
        for from in list(self.value, "/envFrom") {
            let data = config(text(from, "/configMapRef/name")).and_then(Value::as_object);
            for (key, value) in data.into_iter().flatten() {
                found.insert(key.clone(), value.as_str().unwrap_or_default().to_owned());
            }
        }
        for one in list(self.value, "/env") {
            if let Some(value) = one["value"].as_str() {
                found.insert(text(one, "/name").to_owned(), value.to_owned());
            }
        }
        found
    }
}
