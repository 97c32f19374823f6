//! What lies in `deploy/` is what Kubernetes, KEDA and our programs take, and is safe to apply.
//!
//! Every overlay is rendered by the real program, and its objects are held against schemas, each
//! other and the code. What is looked for is found: each rule is shown a mistake.

#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

mod hardening;
mod images;
mod life;
mod mistakes;
mod models;
mod network;
mod pods;
mod program;
mod render;
mod rules;
mod run;
mod scaling;
mod schema;

use std::collections::BTreeMap;

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
    let version = env!("CARGO_PKG_VERSION");
    assert_none("images are of this version", each(all, |o| life::images(o, version)));
}

#[test]
fn what_has_to_flow_may_flow_and_nothing_else_may() {
    let Some(all) = overlays("what_has_to_flow_may_flow_and_nothing_else_may") else { return };
    assert_none("policies fit the addresses", each(all, network::network));
}

#[test]
fn pools_grow_at_once_and_shrink_slowly_within_their_quota() {
    let Some(all) = overlays("pools_grow_at_once_and_shrink_slowly_within_their_quota") else {
        return;
    };
    assert_none("pools grow and shrink as they should", each(all, scaling::scaling));
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
