//! Holds the arrows between the packages and the rules that no compiler knows.
//!
//! Each test is one rule of ARCHITECTURE.md or CONTRIBUTING.md and names the places that break it.

#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};
use e2e::{Source, run, sources, workspace_root};
use regex::Regex;

/// Who may depend on whom: the table of ARCHITECTURE.md.
const ARROWS: &[(&str, &[&str])] = &[
    ("ebb-proto", &[]),
    ("ebb-telemetry", &[]),
    ("ebb-model", &[]),
    ("ebb-queue", &["ebb-proto"]),
    ("ebb-worker", &["ebb-proto", "ebb-queue", "ebb-model", "ebb-telemetry"]),
    ("ebb-scaler", &["ebb-proto", "ebb-queue", "ebb-telemetry"]),
    ("ebb-split", &["ebb-queue", "ebb-telemetry"]),
    ("ebb-gateway", &["ebb-queue", "ebb-telemetry"]),
    (
        "ebb",
        &[
            "ebb-proto",
            "ebb-queue",
            "ebb-model",
            "ebb-worker",
            "ebb-scaler",
            "ebb-split",
            "ebb-gateway",
            "ebb-telemetry",
        ],
    ),
];

/// Packages that check and measure: they may depend on anything, and nothing on them.
const TOOLS: &[&str] = &["e2e", "ebb-bench", SERVERS];

/// The real brokers of the tests: any test may start one, and nothing that is shipped.
const SERVERS: &str = "ebb-servers";

/// Names under which brokers' clients are published.
const BROKER_CLIENTS: &[&str] = &[
    "rusqlite",
    "libsqlite3-sys",
    "sqlx",
    "async-nats",
    "nats",
    "lapin",
    "amqprs",
    "amqp",
    "redis",
    "fred",
    "deadpool-redis",
    "deadpool-lapin",
    "bb8-redis",
];

/// Files that decide, and get time and chance as arguments.
const PURE: &[&str] = &[
    "model/src/causal/engine.rs",
    "model/src/causal/groups.rs",
    "model/src/causal/letters.rs",
    "model/src/causal/plan.rs",
    "model/src/causal/sampler.rs",
    "model/src/causal/stops.rs",
    "model/src/causal/transcript.rs",
    "worker/src/batcher.rs",
    "worker/src/bisect.rs",
    "worker/src/deletion/cost.rs",
    "worker/src/fit.rs",
    "worker/src/lanes.rs",
    "scaler/src/trigger/mod.rs",
    "scaler/src/trigger/given.rs",
    "scaler/src/trigger/options.rs",
    "scaler/src/decision.rs",
    "scaler/src/conformance/numbers.rs",
    "scaler/src/conformance/rule.rs",
    "scaler/src/activation.rs",
    "scaler/src/value.rs",
    "scaler/src/learn/mod.rs",
    "scaler/src/learn/arrivals.rs",
    "scaler/src/learn/evidence.rs",
    "scaler/src/learn/fleet.rs",
    "scaler/src/learn/history.rs",
    "scaler/src/file.rs",
    "scaler/src/policy.rs",
    "scaler/src/profiles.rs",
    "scaler/src/readiness.rs",
    "queue/src/retry.rs",
    "telemetry/src/text.rs",
    "gateway/src/envelope.rs",
    "gateway/src/file.rs",
    "gateway/src/ids.rs",
    "gateway/src/keys.rs",
    "gateway/src/local.rs",
    "gateway/src/openai.rs",
    "gateway/src/prefer.rs",
    "gateway/src/rate.rs",
    "gateway/src/sse.rs",
    "split/src/file.rs",
    "split/src/splitter/window.rs",
    "split/src/weights.rs",
    "cli/src/autoscaler/behavior.rs",
    "cli/src/autoscaler/fallback.rs",
    "cli/src/autoscaler/hpa.rs",
    "cli/src/autoscaler/keda.rs",
    "cli/src/autoscaler/object.rs",
    "cli/src/autoscaler/scaledjob.rs",
];

/// Files that turn generated types into ours and back.
const EDGES: &[&str] = &[
    "proto/src/lib.rs",
    "queue/src/wire.rs",
    "worker/src/codec.rs",
    "scaler/src/service.rs",
    "scaler/src/server.rs",
    "scaler/src/conformance.rs",
    "cli/src/autoscaler/driver.rs",
];

const LINES_OF_A_FILE: usize = 400;

fn metadata() -> Metadata {
    let of = |reach: &[&str]| {
        let mut command = MetadataCommand::new();
        command.manifest_path(workspace_root().join("Cargo.toml"));
        let host = host();
        let options = ["--locked", "--filter-platform", &host].into_iter().chain(reach.to_vec());
        command.other_options(options.map(str::to_owned).collect::<Vec<_>>());
        command.exec()
    };
    // It wants crates that only features bring which are off here, and that may not be there;
    // `tests/run` fetches them before it builds.
    let found = of(&["--offline"]).or_else(|_| of(&[]));
    found.expect("cargo metadata works where the tests were built")
}

/// The platform that this is built for, as rustc names it.
fn host() -> String {
    let output = std::process::Command::new("rustc").arg("-vV").output().expect("rustc is here");
    let page = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = page.lines().find_map(|line| line.strip_prefix("host: "));
    host.expect("rustc -vV names its host").to_owned()
}

#[track_caller]
fn assert_none(rule: &str, broken: impl IntoIterator<Item = String>) {
    let broken: Vec<String> = broken.into_iter().collect();
    assert!(broken.is_empty(), "{rule}; broken by\n  {}", broken.join("\n  "));
}

fn is_tool(package: &Package) -> bool {
    TOOLS.contains(&package.name.as_str())
}

/// All that a package links, however far away.
fn reach(metadata: &Metadata, name: &str) -> BTreeSet<String> {
    let resolve = metadata.resolve.as_ref().expect("metadata was asked for dependencies");
    let nodes: BTreeMap<_, _> = resolve.nodes.iter().map(|node| (&node.id, node)).collect();
    let start = metadata.workspace_packages().into_iter().find(|p| p.name.as_str() == name);
    let mut open = vec![&start.unwrap_or_else(|| panic!("there is no package {name}")).id];
    let mut seen = BTreeSet::new();
    while let Some(id) = open.pop() {
        if !seen.insert(id) {
            continue;
        }
        let linked = |dep: &&cargo_metadata::NodeDep| {
            dep.dep_kinds.iter().any(|kind| kind.kind != DependencyKind::Development)
        };
        open.extend(nodes[id].deps.iter().filter(linked).map(|dep| &dep.pkg));
    }
    seen.iter().map(|id| metadata[id].name.to_string()).collect()
}

#[test]
fn packages_of_ours_depend_on_each_other_only_as_the_architecture_says() {
    let metadata = metadata();
    let arrows: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let mut broken = Vec::new();
    for package in metadata.workspace_packages() {
        let name = package.name.as_str();
        let Some(allowed) = arrows.get(name) else {
            if !is_tool(package) {
                broken.push(format!("{}: {name} is not in the table", package.manifest_path));
            }
            continue;
        };
        let ours =
            |dependency: &&str| arrows.contains_key(dependency) || TOOLS.contains(dependency);
        // Development dependencies count too: an arrow in a test is an arrow.
        let is_arrow = |dependency: &&cargo_metadata::Dependency| {
            dependency.name != SERVERS || dependency.kind != DependencyKind::Development
        };
        let all = package.dependencies.iter().filter(is_arrow);
        let all = all.map(|dependency| dependency.name.as_str());
        let wrong = all.filter(ours).filter(|dependency| !allowed.contains(dependency));
        broken.extend(wrong.map(|other| format!("{}: {name} -> {other}", package.manifest_path)));
    }
    assert_none("a package depends only on what the table of ARCHITECTURE.md allows", broken);
}

#[test]
fn every_package_of_the_table_exists() {
    let metadata = metadata();
    let members: BTreeSet<_> =
        metadata.workspace_packages().iter().map(|package| package.name.to_string()).collect();
    let expected = ARROWS.iter().map(|(name, _)| *name).chain(TOOLS.iter().copied());
    let missing = expected.filter(|name| !members.contains(*name)).map(str::to_owned);
    assert_none("the table of this test follows the workspace", missing);
}

#[test]
fn the_table_of_the_architecture_page_says_what_is_checked_here() {
    let page = read("ARCHITECTURE.md");
    let row = Regex::new(r"(?m)^\| `\w+` \| `([\w-]+)` \|.*\| ([^|]*) \|$").unwrap();
    let mut told = BTreeMap::new();
    for found in row.captures_iter(&page) {
        let ours: BTreeSet<String> = match found[2].trim() {
            "-" => BTreeSet::new(),
            "anything" => continue,
            "all of the above" => told.keys().cloned().collect(),
            list => list.split(", ").map(|short| format!("ebb-{short}")).collect(),
        };
        told.insert(found[1].to_owned(), ours);
    }
    for (name, allowed) in ARROWS {
        let allowed: BTreeSet<String> = allowed.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(told.get(*name), Some(&allowed), "ARCHITECTURE.md, row of {name}");
    }
}

#[test]
fn the_scaler_reaches_neither_the_worker_nor_a_model_however_far() {
    let metadata = metadata();
    let reached = reach(&metadata, "ebb-scaler");
    assert!(reached.contains("ebb-queue"), "the walk went nowhere");
    let forbidden = |name: &String| {
        ["ebb-worker", "ebb-model", "ebb"].contains(&name.as_str()) || is_burn(name)
    };
    assert_none("ebb-scaler links no worker and no model", reached.into_iter().filter(forbidden));
}

fn is_burn(name: &str) -> bool {
    name == "burn" || name.starts_with("burn-") || name.starts_with("cubecl")
}

#[test]
fn only_the_model_package_knows_burn() {
    let metadata = metadata();
    let mut broken = Vec::new();
    for package in metadata.workspace_packages() {
        if package.name.as_str() == "ebb-model" {
            assert!(package.dependencies.iter().any(|d| is_burn(&d.name)), "burn has a new name");
            continue;
        }
        let burn = package.dependencies.iter().filter(|dependency| is_burn(&dependency.name));
        broken.extend(burn.map(|dep| format!("{}: {}", package.manifest_path, dep.name)));
    }
    for name in ["ebb-proto", "ebb-queue", "ebb-telemetry", "e2e"] {
        let burn = reach(&metadata, name).into_iter().filter(|name| is_burn(name));
        broken.extend(burn.map(|burn| format!("{name} links {burn}")));
    }
    assert_none("only ebb-model depends on burn", broken);
}

/// Crates of the CUDA form alone.
const CUDA: [&str; 5] = ["burn-cubecl", "burn-cuda", "cubecl-cuda", "cubecl-llvm", "cudarc"];

#[test]
fn the_form_for_gpus_is_built_only_where_it_is_asked_for() {
    // Not from the metadata: those name what a feature that is off would bring as well.
    for name in ["ebb", "ebb-bench", "ebb-worker"] {
        let mut tree = std::process::Command::new(env!("CARGO"));
        tree.current_dir(workspace_root()).args(["tree", "--locked", "--target", &host()]);
        tree.args(["--prefix", "none", "--edges", "normal,build", "--format", "{p}"]);
        let crates = run(tree.args(["--package", name]), "").ok().stdout;
        assert!(crates.lines().any(|line| line.starts_with("burn-flex ")), "{crates}");
        let cuda = CUDA
            .into_iter()
            .filter(|name| crates.lines().any(|line| line.split(' ').next() == Some(name)));
        let cuda = cuda.map(str::to_owned);
        assert_none(&format!("{name} is built without CUDA by default"), cuda);
    }
}

#[test]
fn the_form_for_gpus_downloads_no_llvm() {
    let lock = read("Cargo.lock");
    let (_, ours) = lock.split_once("name = \"cubecl-llvm\"").expect("the CUDA form is locked");
    let (ours, _) = ours.split_once("[[package]]").expect("it is not the last");
    assert!(!ours.contains("source ="), "cubecl-llvm is the one under patches/: {ours}");
    let llvm = ["tracel-llvm-bundler", "llvm-sys", "pliron-llvm"];
    let named = |name: &str| lock.contains(&format!("name = \"{name}\""));
    let named = llvm.into_iter().filter(|name| named(name)).map(str::to_owned);
    assert_none("no crate in Cargo.lock brings LLVM", named);
}

#[test]
fn only_the_queue_package_knows_a_brokers_client() {
    let mut broken = Vec::new();
    for package in metadata().workspace_packages() {
        if package.name.as_str() == "ebb-queue" || is_tool(package) {
            continue;
        }
        let clients = package.dependencies.iter().filter(|d| BROKER_CLIENTS.contains(&&*d.name));
        broken.extend(clients.map(|client| format!("{}: {}", package.manifest_path, client.name)));
    }
    assert_none("only ebb-queue depends on a broker's client", broken);
}

#[test]
fn only_the_telemetry_package_knows_opentelemetry() {
    let mut broken = Vec::new();
    for package in metadata().workspace_packages() {
        if package.name.as_str() == "ebb-telemetry" || is_tool(package) {
            continue;
        }
        let exporters = package.dependencies.iter().filter(|d| d.name.starts_with("opentelemetry"));
        broken.extend(exporters.map(|dep| format!("{}: {}", package.manifest_path, dep.name)));
    }
    assert_none("only ebb-telemetry depends on OpenTelemetry", broken);
}

#[test]
fn all_packages_share_the_lints_and_none_is_published_by_accident() {
    let mut broken = Vec::new();
    for package in metadata().workspace_packages() {
        let manifest = std::fs::read_to_string(&package.manifest_path).unwrap();
        if !manifest.contains("[lints]\nworkspace = true") {
            broken.push(format!("{}: no `[lints] workspace = true`", package.manifest_path));
        }
        if package.publish.as_deref() != Some(&[]) {
            broken.push(format!("{}: no `publish.workspace = true`", package.manifest_path));
        }
    }
    assert_none("every package takes the workspace's lints and publish setting", broken);
}

/// Our sources that are not tests, without the packages that check and measure.
fn shipped() -> Vec<Source> {
    let all = sources().into_iter();
    let ours = |path: &str| !path.starts_with("tests/") && !path.starts_with("benches/");
    let shipped: Vec<Source> =
        all.filter(|source| ours(&source.path) && !source.is_test()).collect();
    assert!(shipped.len() > 10, "the sources were not found");
    shipped
}

/// The sources at these paths; a folder of the same name counts as the file.
fn at<'a>(paths: &'a [&str], all: &'a [Source]) -> impl Iterator<Item = &'a Source> {
    all.iter().filter(move |source| paths.iter().any(|path| is_at(&source.path, path)))
}

fn is_at(path: &str, listed: &str) -> bool {
    let folder = listed.trim_end_matches(".rs");
    path == listed || path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

fn broken_by<'a>(found: impl IntoIterator<Item = &'a Source>, pattern: &str) -> Vec<String> {
    let pattern = Regex::new(pattern).expect("a pattern of this file is valid");
    found.into_iter().flat_map(|source| source.matches(&pattern)).collect()
}

#[test]
fn the_files_named_here_exist() {
    let all = shipped();
    let listed = PURE.iter().chain(EDGES).copied();
    let missing = listed.filter(|path| at(&[path], &all).next().is_none());
    assert_none("PURE and EDGES name files that exist", missing.map(str::to_owned));
}

#[test]
fn pure_parts_read_no_clock_spawn_nothing_await_nothing_and_log_nothing() {
    let all = shipped();
    let clock = r"\b(Instant|SystemTime|Timestamp|Zoned)::now\b|\.elapsed\(\)|\bdyn Clock\b";
    let work = r"\btokio::|\basync\b|\.await\b|\bthread::|\bspawn\(|\bmpsc\b|\bMutex\b";
    let words = r"\btracing::|\b(trace|debug|info|warn|error|println|eprintln|print|dbg)!";
    let chance = r"\brand::(rng|random)\b|\bthread_rng\b|\bfrom_os_rng\b|\bOsRng\b";
    let world = r"\bstd::(env|fs|net|process)\b";
    let pattern = [clock, work, words, chance, world].join("|");
    let mut broken = broken_by(at(PURE, &all), &pattern);
    // The type of a moment, which stands still when a test pauses the time.
    broken.retain(|place| !place.ends_with(": use tokio::time::Instant;"));
    assert_none("time and chance are arguments, and effects are somebody else's", broken);
}

#[test]
fn a_log_line_holds_no_debug_text_of_rust() {
    let all = shipped();
    // `?field` and `field = ?value`; units stand in the names of fields, as in `stall_seconds`.
    let pattern = r"\b(trace|debug|info|warn|error)!\([^;]*?[=(,]\s*\?[A-Za-z&(]";
    let broken = broken_by(&all, pattern);
    assert_none("a field of a log line is a number, or text as people write it", broken);
}

#[test]
fn generated_types_stay_in_the_edge_files() {
    let all = shipped();
    let inner = all.iter().filter(|source| !EDGES.iter().any(|edge| is_at(&source.path, edge)));
    let broken = broken_by(inner, r"\bebb_proto\b");
    assert_none("only edge files see generated types", broken);
}

#[test]
fn no_channel_is_unbounded() {
    let pattern =
        r"\bunbounded\w*\s*(::<[^()]*>)?\(|\bchannel\s*(::<[^()]*>)?\(\s*\)|\bUnbounded\w+";
    let all = sources();
    let broken = broken_by(all.iter().filter(|source| !source.is_test()), pattern);
    // `oneshot::channel()` and `watch` hold one value.
    let unbounded = broken.into_iter().filter(|place| !place.contains("oneshot::channel"));
    assert_none("every channel has a bound: that is our back-pressure", unbounded);
}

#[test]
fn there_is_no_global_state() {
    let all = shipped();
    // A static without a cell in it is a constant with an address.
    let cell = r"\bstatic\s+\w+\s*:[^=;]*\b(Mutex|RwLock|Atomic\w+|Once\w*|Lazy\w*|\w*Cell)\b";
    let pattern =
        [cell, r"\bstatic\s+(mut|ref)\b", r"\blazy_static!", r"\bthread_local!"].join("|");
    let broken = broken_by(&all, &pattern);
    assert_none("what a part needs is given to it", broken);
}

#[test]
fn unsafe_code_is_where_kernels_are_launched_and_files_mapped() {
    let own = ["model/src/bert/cuda/driver.rs", "model/src/mapped.rs"];
    let sources: Vec<_> = sources().into_iter().filter(|it| !own.contains(&&*it.path)).collect();
    let unsafe_code = broken_by(&sources, r"\bunsafe\b|allow\(\s*unsafe_code");
    assert_none("unsafe code lives in dependencies, and in two files of ours", unsafe_code);
}

#[test]
fn no_test_is_skipped_in_silence() {
    let pattern = Regex::new(r"#\[ignore\b").unwrap();
    let mut broken = Vec::new();
    for source in sources() {
        // Tests are blanked in the code of a source, so this one looks at the text.
        let lines = source.text.lines().enumerate();
        let ignored = lines.filter(|(_, line)| pattern.is_match(line.trim_start()));
        let ours = ignored.filter(|(_, line)| line.trim_start().starts_with("#["));
        broken.extend(ours.map(|(at, line)| format!("{}:{}: {line}", source.path, at + 1)));
    }
    assert_none("a test that does not run says so when it runs", broken);
}

#[test]
fn every_source_file_says_what_it_is_for() {
    let silent = sources().into_iter().filter(|source| !source.text.starts_with("//! "));
    let broken = silent.map(|source| format!("{}:1: no module doc", source.path));
    assert_none("a file begins with `//! ` and a sentence", broken);
}

#[test]
fn no_file_is_too_long_to_read() {
    let mut broken = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test()) {
        let lines = source.text.lines().count() - source.test_lines;
        if lines > LINES_OF_A_FILE {
            broken.push(format!("{}:{lines}: lines without its tests", source.path));
        }
    }
    assert_none(&format!("a file has at most {LINES_OF_A_FILE} lines without its tests"), broken);
}

#[test]
fn error_messages_are_lower_case_and_end_without_a_full_stop() {
    let mark = Regex::new(r#"#\[error\(\s*"((?:[^"\\]|\\.)*)""#).unwrap();
    let mut broken = Vec::new();
    for source in sources() {
        for found in mark.captures_iter(&source.text) {
            let words = &found[1];
            let first = words.chars().next().unwrap_or(' ');
            let acronym = words.chars().nth(1).is_some_and(char::is_uppercase);
            if (first.is_uppercase() && !acronym) || words.ends_with('.') {
                let start = found.get(0).map_or(0, |all| all.start());
                let line = source.text[..start].matches('\n').count() + 1;
                broken.push(format!("{}:{line}: {words}", source.path));
            }
        }
    }
    assert_none("an error message can stand in the middle of a sentence", broken);
}

fn read(path: &str) -> String {
    let bytes = std::fs::read(workspace_root().join(path)).expect("a tracked file can be read");
    String::from_utf8_lossy(&bytes).into_owned()
}
