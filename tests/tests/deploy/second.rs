//! A second pool beside the first, as the page tells it.

use std::fs;

use e2e::workspace_root;

use crate::mistakes::said;
use crate::program::Programs;
use crate::render::{Object, Tree};
use crate::run::checked;
use crate::schema::Schemas;

/// The overlay that the page shows.
fn shown() -> String {
    let page = fs::read_to_string(workspace_root().join("deploy/README.md")).unwrap();
    let (_, block) = page.split_once("```yaml\n").expect("the page shows an overlay");
    block.split("```").next().unwrap_or_default().to_owned()
}

/// The first overlay of the page and the second pool in one build, which is stricter than two.
fn both(tree: &Tree) -> Vec<Object> {
    let write = |name: &str, page: &str| {
        fs::create_dir_all(tree.path(name)).unwrap();
        fs::write(tree.path(name).join("kustomization.yaml"), page).unwrap();
    };
    write("overlays/pool-b", &shown());
    write(
        "overlays/both",
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [../nats-cpu, \
         ../pool-b]\n",
    );
    tree.render("overlays/both")
}

#[test]
fn a_second_pool_stands_beside_the_first_as_the_page_says() {
    let test = "a_second_pool_stands_beside_the_first_as_the_page_says";
    let Some(tree) = Tree::new(test) else { return };
    let (schemas, programs) = (Schemas::load(), Programs::load());
    let shut = "does not let Deployment ebb-pool-b/ebb-worker in";
    let found = said(&both(&tree), &schemas, &programs);
    assert!(found.iter().any(|words| words.contains(shut)), "{found:?}");
    // What the page names beside the overlay: the way to the broker, and the scaler's policy.
    tree.edit(
        "components/nats-server/network-policy.yaml",
        "              kubernetes.io/metadata.name: ebb-workers\n",
        "              kubernetes.io/metadata.name: ebb-workers\n        - namespaceSelector:\n            \
         matchLabels:\n              kubernetes.io/metadata.name: ebb-pool-b\n",
    );
    let objects = both(&tree);
    crate::assert_none("two pools keep all rules", said(&objects, &schemas, &programs));
    let queues = ["ebb-workers", "ebb-pool-b"].map(|namespace| {
        let pool = objects.iter().find(|one| one.is("ScaledObject", namespace, "ebb-worker"));
        pool.expect("each pool is scaled").text("/spec/triggers/0/metadata/queue")
    });
    assert_ne!(queues[0], queues[1]);
    let refused = checked(&objects).failed();
    assert!(refused.to_string().contains("ebb-pool-b"), "{refused}");
    tree.edit(
        "components/nats/scaler/config.yaml",
        "    queues = [\"jobs\", \"jobs-*\"]\n",
        "    queues = [\"jobs\", \"jobs-*\"]\n\n    [[policy]]\n    namespaces = [\"ebb-pool-b\"]\n    \
         profiles = [\"default\"]\n    queues = [\"jobs-b\"]\n",
    );
    let taken = checked(&both(&tree)).ok();
    assert_eq!(taken.json()["triggers"].as_array().map(Vec::len), Some(2), "{taken}");
}
