//! From one overlay to another: what stays in the cluster is named on the pages, with the commands that
//! delete it, and who runs already goes by what is new.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use e2e::workspace_root;

use crate::assert_none;
use crate::render::{Object, Tree, overlays};

/// Namespace, kind in small letters, and name.
type Name = (String, String, String);

fn names(objects: &[Object]) -> BTreeSet<Name> {
    let name = |one: &Object| {
        (one.namespace().to_owned(), one.kind().to_lowercase(), one.name().to_owned())
    };
    objects.iter().map(name).collect()
}

/// A section of a page, without those that follow.
fn section(page: &str, title: &str) -> String {
    let page = fs::read_to_string(workspace_root().join(page)).unwrap();
    let level = title.split(' ').next().unwrap_or_default();
    let (_, rest) = page.split_once(&format!("{title}\n")).unwrap_or_default();
    rest.split(&format!("\n{level} ")).next().unwrap_or_default().to_owned()
}

/// What commands delete, by the comment above them.
fn deleted(section: &str) -> BTreeMap<String, BTreeSet<Name>> {
    let (mut found, mut what) = (BTreeMap::<_, BTreeSet<_>>::new(), String::new());
    for line in section.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            what = comment.split(':').next().unwrap_or_default().to_owned();
        }
        let Some((kubectl, objects)) = line.split_once(" delete ") else { continue };
        if !kubectl.starts_with("kubectl") {
            continue;
        }
        let namespace = kubectl.split_once("-n ").map_or("", |(_, namespace)| namespace.trim());
        let names = objects.split_whitespace().map(|object| {
            let (kind, name) = object.split_once('/').unwrap_or((object, ""));
            (namespace.to_owned(), kind.to_owned(), name.to_owned())
        });
        found.entry(what.clone()).or_default().extend(names);
    }
    found
}

/// What the page has deleted when a component comes or goes.
fn told() -> BTreeMap<String, BTreeSet<Name>> {
    let mut told = deleted(&section("deploy/README.md", "## From one overlay to another"));
    let of_canary = deleted(&section("docs/canary.md", "### End it"));
    told.insert("canary goes".to_owned(), of_canary.into_values().flatten().collect());
    told
}

/// What lies in a namespace goes with it.
fn without_those_of(namespaces: &BTreeSet<Name>, names: BTreeSet<Name>) -> BTreeSet<Name> {
    let goes = |namespace: &str| {
        namespaces.iter().any(|(_, kind, name)| kind == "namespace" && name == namespace)
    };
    names.into_iter().filter(|(namespace, ..)| !goes(namespace)).collect()
}

#[test]
fn what_stays_when_a_component_comes_or_goes_is_deleted_by_the_commands_of_the_page() {
    let test = "what_stays_when_a_component_comes_or_goes_is_deleted_by_the_commands_of_the_page";
    let Some(tree) = Tree::new(test) else { return };
    let told = told();
    let folder = |component: &&str| match *component {
        "observability" => (*component).to_owned(),
        component => format!("components/{component}"),
    };
    let render = |name: &str, components: &[&str]| {
        let components: Vec<String> = components.iter().map(folder).collect();
        let components: Vec<&str> = components.iter().map(String::as_str).collect();
        names(&tree.render(&tree.overlay(name, &components, "")))
    };
    let components = fs::read_dir(tree.path("components")).unwrap();
    let components = components.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let components = components.chain(["observability".to_owned()]);
    let mut broken = Vec::new();
    for component in components {
        let others: &[&str] = match component.as_str() {
            "nats" => &["redis"],
            "rabbitmq" | "redis" => &[],
            "gateway-rabbitmq" => &["rabbitmq", "gateway"],
            "warm-pool-placeholder" => &["nats", "gpu"],
            _ => &["nats"],
        };
        let with = render("with", &[others, &[&component]].concat());
        let without = match component.as_str() {
            // Workers go by the same way to the answers of either.
            "rabbitmq" => render("without", &["redis"]),
            "redis" => render("without", &["rabbitmq"]),
            _ => render("without", others),
        };
        for (word, leaves, stays) in [("goes", &with, &without), ("comes", &without, &with)] {
            let of_broker = word == "comes" && ["nats", "rabbitmq", "redis"].contains(&&*component);
            let title = format!("{component} {word}");
            let named = told.get(&title).cloned().unwrap_or_default();
            let left = without_those_of(&named, leaves - stays);
            if left != named && !of_broker {
                broken.push(format!("{title}: what is left is {left:?}; it deletes {named:?}"));
            }
        }
    }
    assert_none("what is left is named, and nothing else", broken);
}

#[test]
fn the_pages_name_whatever_stays_from_one_overlay_to_another() {
    let test = "the_pages_name_whatever_stays_from_one_overlay_to_another";
    let Some(all) = overlays(test) else { return };
    let named: BTreeSet<Name> = told().into_values().flatten().collect();
    let mut broken = BTreeSet::new();
    for (from, before) in all {
        for (to, after) in all {
            let left = without_those_of(&named, &names(before) - &names(after));
            let missing = left.difference(&named);
            broken.extend(missing.map(|what| format!("{what:?}, from {from} to {to}")));
        }
    }
    assert_none("what is left is named", broken);
}

/// Whether the commands of this title are for who goes from these parts of an overlay to those.
fn is_due(title: &str, from: &BTreeSet<String>, to: &BTreeSet<String>) -> bool {
    let is_in = |name: &str, parts: &BTreeSet<String>| {
        parts.contains(name) || parts.contains(&format!("components/{name}"))
    };
    let goes = |name: &str| is_in(name, from) && !is_in(name, to);
    let neither = title.strip_prefix("neither ").and_then(|it| it.strip_suffix(" is left"));
    if let Some((one, other)) = neither.and_then(|names| names.split_once(" nor ")) {
        return (goes(one) || goes(other)) && !is_in(one, to) && !is_in(other, to);
    }
    match title.split_once(' ') {
        Some((name, "goes")) => goes(name),
        Some((name, "comes")) => is_in(name, to) && !is_in(name, from),
        _ => panic!("nobody knows when to do what stands below {title:?}"),
    }
}

#[test]
fn the_commands_for_a_move_delete_all_that_is_left_and_nothing_that_the_new_overlay_has() {
    let test =
        "the_commands_for_a_move_delete_all_that_is_left_and_nothing_that_the_new_overlay_has";
    let (Some(tree), Some(all)) = (Tree::new(test), overlays(test)) else { return };
    let told = told();
    let ours: Vec<_> = all.iter().filter(|(overlay, _)| tree.path(overlay).is_dir()).collect();
    assert!(ours.len() >= 9, "the overlays were not found: {ours:?}");
    let mut broken = BTreeSet::new();
    for (from, before) in &ours {
        for (to, after) in &ours {
            let (before, after) = (names(before), names(after));
            let (from_parts, to_parts) = (tree.parts(from), tree.parts(to));
            let due = told.iter().filter(|(title, _)| is_due(title, &from_parts, &to_parts));
            let deleted: BTreeSet<Name> = due.flat_map(|(_, names)| names).cloned().collect();
            let needed = deleted.intersection(&after);
            broken.extend(needed.map(|what| format!("{from} to {to}: {what:?} is needed")));
            let left = without_those_of(&deleted, &before - &after);
            let missing = left.difference(&deleted);
            broken.extend(missing.map(|what| format!("{from} to {to}: {what:?} is left")));
        }
    }
    assert_none("the commands do what the title says", broken);
}

#[test]
fn workers_are_replaced_when_a_canary_comes_and_when_it_goes() {
    let test = "workers_are_replaced_when_a_canary_comes_and_when_it_goes";
    let Some(tree) = Tree::new(test) else { return };
    let workers = |components: &[&str]| {
        let objects = tree.render(&tree.overlay("mine", components, ""));
        let of = |kind: &str| {
            let mut found = objects.iter().filter(|one| one.is(kind, "ebb-workers", "ebb-worker"));
            found.next().expect("the base has it").0.clone()
        };
        (of("ConfigMap")["data"].clone(), of("Deployment")["spec"]["template"].clone())
    };
    let before = workers(&["components/nats"]);
    let with = workers(&["components/nats", "components/canary"]);
    assert_ne!(before.0, with.0, "they take from another queue");
    assert_ne!(before.1, with.1, "and nobody would tell them");
}

#[test]
fn every_file_with_a_url_of_the_broker_is_named_where_its_options_are_told() {
    let test = "every_file_with_a_url_of_the_broker_is_named_where_its_options_are_told";
    let Some(tree) = Tree::new(test) else { return };
    let head = fs::read_to_string(tree.path("components/nats/kustomization.yaml")).unwrap();
    let files = e2e::tracked_files().into_iter();
    let files: Vec<String> = files
        .filter(|path| path.starts_with("deploy/components/") && path.ends_with(".yaml"))
        .filter(|path| fs::read_to_string(workspace_root().join(path)).unwrap().contains("nats://"))
        .collect();
    assert!(files.len() > 4, "the files were not found: {files:?}");
    let missing = files.into_iter().filter(|path| {
        let path = path.trim_start_matches("deploy/components/");
        let (component, file) = path.split_once('/').unwrap_or_default();
        let component = format!("`{component}`");
        !head.contains(file) || (component != "`nats`" && !head.contains(&component))
    });
    assert_none("its URL has the same options", missing);

    // As somebody does who reads of two URLs alone; the rule finds the others.
    let replicas = |file: &str| tree.edit(file, "queue=jobs", "replicas=3&queue=jobs");
    replicas("components/nats/scaler/config.yaml");
    replicas("components/nats/worker/config.yaml");
    let said = |overlay: &str| crate::network::options(&tree.render(overlay));
    assert!(said("overlays/nats-gpu").is_empty(), "{:?}", said("overlays/nats-gpu"));
    for overlay in ["overlays/nats-gpu-canary", "overlays/nats-gpu-gateway"] {
        assert!(!said(overlay).is_empty(), "{overlay}");
    }
    for file in ["stable-config", "canary-config", "split"] {
        replicas(&format!("components/canary/{file}.yaml"));
    }
    replicas("components/gateway/config.yaml");
    for overlay in ["overlays/nats-gpu-canary", "overlays/nats-gpu-gateway"] {
        assert_none("all URLs agree", said(overlay));
    }
}

#[test]
fn triggers_of_a_worker_of_several_queues_show_the_scaler_a_certificate_as_the_page_says() {
    let test =
        "triggers_of_a_worker_of_several_queues_show_the_scaler_a_certificate_as_the_page_says";
    let Some(tree) = Tree::new(test) else { return };
    let page = fs::read_to_string(workspace_root().join("docs/worker.md")).unwrap();
    let mut blocks = page.split("```yaml\n").filter_map(|rest| rest.split("```").next());
    let patch = blocks.find(|block| block.contains("  EBB_SERVE: ")).expect("the page has it");
    let said = |patch: &str| {
        fs::create_dir_all(tree.path("overlays/mine")).unwrap();
        fs::write(tree.path("overlays/mine/patch.yaml"), patch).unwrap();
        let overlay = "resources: [../nats-gpu-mtls]\npatches: [{path: patch.yaml}]\n";
        fs::write(tree.path("overlays/mine/kustomization.yaml"), overlay).unwrap();
        crate::rules::certificates(&tree.render("overlays/mine"))
    };
    assert_eq!(said(patch).len(), 2, "neither shows one");
    let reference = "authenticationRef: {kind: ClusterTriggerAuthentication, name: ebb-scaler}";
    assert!(page.contains(&format!("`{reference}`")), "the page says what they need");
    let metadata = "      metadata: {scalerAddress";
    let with = patch.replace(metadata, &format!("      {reference}\n{metadata}"));
    assert_none("both show one", said(&with));
}
