//! What lies in `deploy/` is what Kubernetes, KEDA and our programs take, and is safe to apply.
//!
//! Every overlay is rendered by the real program, and its objects are held against schemas, each
//! other and the code. What is looked for is found: each rule is shown a mistake.

#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

mod cluster;
mod cycle;
mod hardening;
mod images;
mod life;
mod mistakes;
mod models;
mod moves;
mod network;
mod pods;
mod program;
mod render;
mod rules;
mod run;
mod scaling;
mod schema;
mod second;

use std::collections::{BTreeMap, BTreeSet};

use e2e::workspace_root;
use render::{Object, Tree, overlays};
use schema::Schemas;

#[track_caller]
fn assert_none(rule: &str, broken: impl IntoIterator<Item = String>) {
    let broken: Vec<String> = broken.into_iter().collect();
    assert!(broken.is_empty(), "{rule}; broken by\n  {}", broken.join("\n  "));
}

/// What a rule finds in each overlay, said with its overlay.
fn each(
    overlays: &BTreeMap<String, Vec<Object>>,
    rule: impl Fn(&[Object]) -> Vec<String>,
) -> Vec<String> {
    let found = |(overlay, objects): (&String, &Vec<Object>)| {
        rule(objects).into_iter().map(|what| format!("{overlay}: {what}")).collect::<Vec<_>>()
    };
    overlays.iter().flat_map(found).collect()
}

fn schema(schemas: &Schemas, objects: &[Object]) -> Vec<String> {
    let of_one = |object: &Object| {
        let found = schemas.objections(&object.0).into_iter();
        found.map(|what| format!("{object}: {what}")).collect::<Vec<_>>()
    };
    objects.iter().flat_map(of_one).collect()
}

#[test]
fn objects_have_the_fields_that_their_schemas_tell() {
    let Some(all) = overlays("objects_have_the_fields_that_their_schemas_tell") else { return };
    let schemas = Schemas::load();
    assert_none("an object fits its schema", each(all, |objects| schema(&schemas, objects)));
}

#[test]
fn objects_find_each_other() {
    let Some(all) = overlays("objects_find_each_other") else { return };
    assert_none("an object stands once, where it belongs", each(all, rules::places));
    assert_none("what an object names is there", each(all, rules::references));
    assert_none("selectors mean pods, ports are theirs", each(all, rules::selectors));
    assert_none("KEDA's certificate is let in", each(all, rules::certificates));
}

#[test]
fn workers_find_the_models_that_they_are_told_to_run() {
    let Some(all) = overlays("workers_find_the_models_that_they_are_told_to_run") else { return };
    assert_none("a model comes to where a worker looks for it", each(all, models::models));
    assert_none("versions of a model have one name", each(all, models::versions));
}

#[test]
fn pods_are_locked_in_and_roles_are_small() {
    let Some(all) = overlays("pods_are_locked_in_and_roles_are_small") else { return };
    assert_none("pods keep the standard `restricted`", each(all, hardening::hardening));
    assert_none("roles hold what is used", each(all, hardening::roles));
    assert_none("a worker patches workers", each(all, hardening::neighbours));
    let page = std::fs::read_to_string(workspace_root().join("docs/security.md")).unwrap();
    for words in ["with the component `canary` its split", "the `image` of their containers"] {
        assert!(page.contains(words), "docs/security.md tells what a worker may patch: {words}");
    }
}

#[test]
fn our_programs_know_what_they_are_told_and_answer_what_they_are_asked() {
    let test = "our_programs_know_what_they_are_told_and_answer_what_they_are_asked";
    let Some(all) = overlays(test) else { return };
    let programs = program::Programs::load();
    assert!(programs.worker.variables.contains("EBB_GRACE"), "{:?}", programs.worker);
    assert!(programs.scaler.flags.contains("--max-age"), "{:?}", programs.scaler);
    assert_none("variables, flags and probes are ours", each(all, |o| life::life(o, &programs)));
    assert_none("probes look at ports", each(all, life::ports));
    assert_none("threads are as many as processors", each(all, life::threads));
    assert_none("bodies have room", each(all, life::bodies));
    assert_none("what needs time has it", each(all, life::patience));
    let version = env!("CARGO_PKG_VERSION");
    assert_none("images are of this version", each(all, |o| life::images(o, version)));
}

#[test]
fn what_has_to_flow_may_flow_and_nothing_else_may() {
    let Some(all) = overlays("what_has_to_flow_may_flow_and_nothing_else_may") else { return };
    assert_none("policies fit the addresses", each(all, network::network));
    assert_none("a broker's URLs agree", each(all, network::options));
}

#[test]
fn pools_grow_at_once_and_shrink_slowly_within_their_quota() {
    let Some(all) = overlays("pools_grow_at_once_and_shrink_slowly_within_their_quota") else {
        return;
    };
    assert_none("pools grow and shrink as they should", each(all, scaling::scaling));
}

/// The URL of a queue, and that of the results where the broker keeps none, in a pod's settings.
fn settings<'a>(objects: &'a [Object], name: &str) -> (&'a str, &'a str) {
    let config = objects.iter().find(|one| one.is("ConfigMap", "ebb-workers", name)).unwrap();
    (config.text("/data/EBB_QUEUE"), config.text("/data/EBB_RESULTS"))
}

#[test]
fn a_canary_goes_with_every_broker_by_the_patches_that_its_component_names() {
    let test = "a_canary_goes_with_every_broker_by_the_patches_that_its_component_names";
    let Some(tree) = Tree::new(test) else { return };
    let (schemas, programs) = (Schemas::load(), program::Programs::load());
    let mut broken = Vec::new();
    for broker in ["nats", "rabbitmq", "redis"] {
        let broker = format!("components/{broker}");
        let plain = tree.render(&tree.overlay("plain", &[&broker], ""));
        let (url, results) = settings(&plain, "ebb-worker");
        let config = |name: &str, queue: &str| {
            let url = url.replace("queue=jobs", &format!("queue={queue}"));
            format!(
                "- patch: |\n    apiVersion: v1\n    kind: ConfigMap\n    metadata: {{name: {name}, \
                 namespace: ebb-workers}}\n    data: {{EBB_QUEUE: \"{url}\"}}\n"
            )
        };
        let results = if results.is_empty() {
            String::new()
        } else {
            format!(", {{name: EBB_RESULTS, value: \"{results}\"}}")
        };
        let split = format!(
            "- patch: |\n    apiVersion: apps/v1\n    kind: Deployment\n    metadata: {{name: \
             ebb-split, namespace: ebb-workers}}\n    spec: {{template: {{spec: {{containers: \
             [{{name: split, env: [{{name: EBB_QUEUE, value: \"{url}\"}}{results}]}}]}}}}}}\n"
        );
        let stable = config("ebb-worker", "jobs-stable");
        let canary = config("ebb-worker-canary", "jobs-canary");
        let patches = format!("patches:\n{stable}{canary}{split}");
        let with = tree.overlay("with-canary", &[&broker, "components/canary"], &patches);
        let said = mistakes::said(&tree.render(&with), &schemas, &programs);
        broken.extend(said.into_iter().map(|what| format!("{broker}: {what}")));
    }
    assert_none("an overlay of a canary keeps all rules", broken);
}

#[test]
fn a_canary_scales_as_the_pool_beside_it() {
    let Some(all) = overlays("a_canary_scales_as_the_pool_beside_it") else { return };
    let scaling = |overlay: &str, name: &str, replicas: u64, queue: &str| {
        let objects = all[overlay].iter();
        let mut found = objects.filter(|one| one.is("ScaledObject", "ebb-workers", name));
        let mut spec = found.next().expect("there is a ScaledObject").0["spec"].clone();
        assert_eq!(spec["maxReplicaCount"], replicas, "{name}");
        assert_eq!(spec["triggers"][0]["metadata"]["queue"], queue, "{name}");
        spec["maxReplicaCount"] = 0.into();
        spec["scaleTargetRef"] = serde_json::Value::Null;
        spec["triggers"][0]["metadata"]["queue"] = serde_json::Value::Null;
        spec
    };
    let alone = scaling("overlays/nats-gpu", "ebb-worker", 8, "jobs");
    let overlay = "overlays/nats-gpu-canary";
    assert_eq!(scaling(overlay, "ebb-worker", 8, "jobs-stable"), alone);
    assert_eq!(scaling(overlay, "ebb-worker-canary", 2, "jobs-canary"), alone);
}

#[test]
fn the_guide_builds_every_image_and_lists_every_overlay_for_gpus() {
    let test = "the_guide_builds_every_image_and_lists_every_overlay_for_gpus";
    let Some(all) = overlays(test) else { return };
    let page = std::fs::read_to_string(workspace_root().join("docs/install.md")).unwrap();
    let mut missing = BTreeSet::new();
    for (overlay, objects) in all {
        let name = overlay.trim_start_matches("overlays/");
        let of_ours = !name.starts_with("with-") && !name.ends_with("-cpu");
        if of_ours && !page.contains(&format!("| `{name}` |")) {
            missing.insert(name.to_owned());
        }
        for pods in pods::pods(objects) {
            for container in pods.containers() {
                let image = pods::text(container.value, "/image");
                if !image.starts_with("registry.example.com/") {
                    continue;
                }
                let target = container.image().trim_start_matches("ebb-").to_owned();
                let build = format!("docker build --target {target} -t {image} .");
                let push = format!("docker push {image}");
                let lines = [build, push].into_iter();
                missing.extend(lines.filter(|line| !page.lines().any(|one| one == line)));
            }
        }
    }
    assert_none("docs/install.md tells of it", missing);
}

#[test]
fn the_page_lists_what_there_is() {
    let test = "the_page_lists_what_there_is";
    let Some(tree) = Tree::new(test) else { return };
    let page = std::fs::read_to_string(workspace_root().join("deploy/README.md")).unwrap();
    let there = ["overlays", "components"].map(|folder| {
        let entries = std::fs::read_dir(tree.path(folder)).unwrap();
        entries.map(move |entry| entry.unwrap().file_name().into_string().unwrap())
    });
    let there = there.into_iter().flatten().filter(|name| !page.contains(&format!("`{name}`")));
    assert_none("deploy/README.md tells of each overlay and component", there);
    assert!(network::by_hand(), "the page tells how the Secret is made by hand");
}

#[test]
fn the_guide_makes_an_overlay_that_needs_no_store_of_secrets() {
    let test = "the_guide_makes_an_overlay_that_needs_no_store_of_secrets";
    let Some(tree) = Tree::new(test) else { return };
    let page = std::fs::read_to_string(workspace_root().join("docs/install.md")).unwrap();
    let mut blocks = page.split("```yaml\n").filter_map(|rest| rest.split("```").next());
    let patches = blocks.find(|block| block.contains("$patch: delete")).expect("the guide has it");
    let mut n_stores = 0;
    for overlay in tree.folders("Kustomization").iter().filter(|one| one.starts_with("overlays/")) {
        let is_store = |object: &Object| object.kind() == "ExternalSecret";
        if !tree.render(overlay).iter().any(is_store) {
            continue;
        }
        n_stores += 1;
        let mine = tree.path("overlays/mine");
        std::fs::create_dir_all(&mine).unwrap();
        let page = format!("resources: [../../{overlay}]\n{patches}");
        std::fs::write(mine.join("kustomization.yaml"), page).unwrap();
        let objects = tree.render("overlays/mine");
        assert!(!objects.iter().any(is_store), "{overlay}");
        assert_none("its pods find what they name", rules::references(&objects));
    }
    assert!(n_stores > 3, "overlays have a store of secrets");
    for name in ["`platform`", "`ebb/broker`", "`ebb/results`"] {
        assert!(page.contains(name), "the guide names {name}");
    }
}

#[test]
fn the_example_of_a_secret_holds_placeholders_and_the_keys_that_are_read() {
    let page =
        std::fs::read_to_string(workspace_root().join("deploy/secret.example.yaml")).unwrap();
    let schemas = Schemas::load();
    let objects = render::objects(&page);
    assert_none("an object fits its schema", schema(&schemas, &objects));
    for object in &objects {
        assert!(object.is("Secret", object.namespace(), "ebb-broker"), "{object}");
        let values = object.0["stringData"].as_object().unwrap();
        assert!(values.contains_key("password"), "{object}");
        assert!(values.values().all(|value| value == "replace-me"), "{object}");
    }
    let namespaces: Vec<_> = objects.iter().map(Object::namespace).collect();
    assert_eq!(namespaces, ["ebb", "ebb-workers", "nats"]);
}
