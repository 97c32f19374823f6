//! The Dockerfile: what it builds is there, and what it builds runs with what its stages have.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use cargo_metadata::{Metadata, MetadataCommand};
use e2e::{Process, Workplace, binary, get, run, skipped, tracked_files, workspace_root};
use regex::Regex;

use crate::assert_none;

/// What `debian:12-slim` and the CUDA image have of what a program of ours is linked with.
const LIBRARIES: [&str; 4] = ["libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2"];

fn dockerfile() -> String {
    let page = std::fs::read_to_string(workspace_root().join("Dockerfile")).unwrap();
    let whole = page.replace("\\\n", " ");
    let lines = whole.lines().filter(|line| !line.trim_start().starts_with('#'));
    lines.collect::<Vec<_>>().join("\n")
}

/// The instructions of each stage, by its name.
fn stages() -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut name = String::new();
    for line in dockerfile().lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Some((_, stage)) = line.strip_prefix("FROM ").and_then(|l| l.split_once(" AS ")) {
            name = stage.to_owned();
        }
        found.entry(name.clone()).or_default().push(line.to_owned());
    }
    found
}

fn metadata() -> Metadata {
    let mut command = MetadataCommand::new();
    command.manifest_path(workspace_root().join("Cargo.toml")).no_deps();
    command.other_options(["--locked", "--offline"].map(str::to_owned)).exec().unwrap()
}

/// The `cargo build` of each stage that has one, as words.
fn builds() -> Vec<(String, Vec<String>)> {
    let build = Regex::new(r"cargo build ([^&]*)").unwrap();
    let mut found = Vec::new();
    for (stage, lines) in stages() {
        for line in lines.iter().filter(|line| line.starts_with("RUN")) {
            for one in build.captures_iter(line) {
                let words = one[1].replace('"', "");
                let words = words.split_whitespace().map(str::to_owned).collect();
                found.push((stage.clone(), words));
            }
        }
    }
    found
}

fn after<'a>(words: &'a [String], flag: &str) -> Option<&'a str> {
    let at = words.iter().position(|word| word == flag)?;
    words.get(at + 1).map(String::as_str)
}

#[test]
fn the_dockerfile_builds_what_the_workspace_has() {
    let metadata = metadata();
    let manifest = std::fs::read_to_string(workspace_root().join("Cargo.toml")).unwrap();
    let builds = builds();
    assert_eq!(builds.len(), 3, "{builds:?}");
    let mut broken = Vec::new();
    for (stage, words) in &builds {
        let package = after(words, "-p").unwrap_or_default();
        let Some(package) = metadata.packages.iter().find(|one| one.name.as_str() == package)
        else {
            broken.push(format!("{stage}: there is no package `{package}`"));
            continue;
        };
        let wanted = after(words, "--bin").unwrap_or_default();
        if !package.targets.iter().any(|one| one.is_bin() && one.name == wanted) {
            broken.push(format!("{stage}: {} has no binary `{wanted}`", package.name));
        }
        if !words.iter().any(|word| word == "--locked") {
            broken.push(format!("{stage}: builds what is not locked"));
        }
        let profile = after(words, "--profile").unwrap_or("release");
        if !manifest.contains(&format!("[profile.{profile}]")) {
            broken.push(format!("{stage}: there is no profile `{profile}`"));
        }
        let features = after(words, "--features").unwrap_or_default().split(',');
        for feature in features.filter(|feature| !feature.is_empty()) {
            if !package.features.contains_key(feature) {
                broken.push(format!("{stage}: {} has no feature `{feature}`", package.name));
            }
        }
        let made = format!("/{}/{wanted} ", if profile == "release" { "release" } else { profile });
        let lines = &stages()[stage];
        let copied = lines.iter().any(|line| line.replace('"', " ").contains(&made));
        if !copied {
            broken.push(format!("{stage}: does not keep {made}"));
        }
    }
    assert_none("what is built exists", broken);
}

#[test]
fn images_are_pinned_small_and_locked_in() {
    let page = dockerfile();
    let base = Regex::new(r"(?m)^ARG \w+_IMAGE=(\S+)$").unwrap();
    let bases: Vec<String> = base.captures_iter(&page).map(|found| found[1].to_owned()).collect();
    assert_eq!(bases.len(), 3, "{bases:?}");
    let tag = Regex::new(r"^docker\.io/[\w/-]+:\d+\.\d+[\w.-]*(@sha256:[0-9a-f]{64})?$").unwrap();
    assert_none("a base has an exact tag", bases.into_iter().filter(|base| !tag.is_match(base)));
    assert!(!page.contains("HEALTHCHECK"), "probes are Kubernetes'");
    let version = env!("CARGO_PKG_VERSION");
    for (name, lines) in stages().iter().filter(|(name, _)| !name.contains("build")) {
        let has = |start: &str| lines.iter().any(|line| line.starts_with(start));
        if ["", "toolchain"].contains(&name.as_str()) {
            continue;
        }
        assert!(has("USER 65532:65532"), "{name} runs as root");
        assert!(has(&format!("ARG VERSION={version}")), "{name} has another version");
        let labels = lines.iter().find(|line| line.starts_with("LABEL")).unwrap();
        for label in ["title", "description", "licenses", "version", "revision"] {
            assert!(
                labels.contains(&format!("org.opencontainers.image.{label}=")),
                "{name}: {label}"
            );
        }
        let entry = if name == "scaler" { "ebb-scaler" } else { "ebb" };
        assert!(has(&format!("ENTRYPOINT [\"/usr/local/bin/{entry}\"]")), "{name}");
        let copied = lines.iter().filter(|line| line.starts_with("COPY"));
        let from_build = copied.filter(|line| !line.contains("--from=")).count();
        assert_eq!(from_build, 0, "{name} takes files of the context along");
    }
}

/// What `.dockerignore` keeps out, as far as this test reads its patterns.
fn ignored(path: &str) -> bool {
    let page = std::fs::read_to_string(workspace_root().join(".dockerignore")).unwrap();
    let mut patterns = page.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let name = path.rsplit('/').next().unwrap_or(path);
    patterns.any(|pattern| match pattern.strip_prefix("**/") {
        Some(glob) => match glob.split_once('*') {
            Some((start, end)) => name.starts_with(start) && name.ends_with(end),
            None => name == glob,
        },
        None => path == pattern || path.starts_with(&format!("{pattern}/")),
    })
}

#[test]
fn the_build_context_has_what_the_build_reads_and_no_secrets() {
    assert!(ignored("target/release/ebb") && ignored(".git/config") && ignored("a/tls.key"));
    let reads = Regex::new(r#"include_(?:str|bytes)!\(\s*"([^"]+)""#).unwrap();
    let mut broken = Vec::new();
    let files = tracked_files();
    for path in files.iter().filter(|path| path.ends_with(".rs") || path.ends_with("Cargo.toml")) {
        if ignored(path) {
            broken.push(format!("{path} is ignored"));
        }
        let text = std::fs::read_to_string(workspace_root().join(path)).unwrap();
        // What only tests read is not there.
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        let folder = Path::new(path).parent().unwrap();
        for found in reads.captures_iter(text) {
            let target = workspace_root().join(folder).join(&found[1]).canonicalize().unwrap();
            let target = target.strip_prefix(workspace_root().canonicalize().unwrap()).unwrap();
            let target = target.to_string_lossy();
            if ignored(&target) {
                broken.push(format!("{path} reads {target}, which is ignored"));
            }
        }
    }
    for page in
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "benches/README.md"]
    {
        if ignored(page) {
            broken.push(format!("{page}, which cli/build.rs reads, is ignored"));
        }
    }
    assert_none("the context is enough for the build", broken);
    let secrets = files.iter().filter(|path| path.ends_with(".pem") || path.ends_with(".key"));
    assert_none("no key is kept here", secrets.cloned());
}

/// The libraries that the loader finds for a program: its name for each, and where it lies.
fn libraries(program: &Path) -> Vec<(String, PathBuf)> {
    let told = run(Command::new("ldd").arg(program), "").stdout;
    let mut found = Vec::new();
    for line in told.lines().map(str::trim) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [name, "=>", path, ..] => found.push((name.to_owned(), path.into())),
            [path, _] if path.starts_with('/') => {
                let name = path.rsplit('/').next().unwrap_or(path);
                found.push((name.to_owned(), path.into()));
            }
            _ => {}
        }
    }
    found
}

/// A command in another root, without being root where that works.
fn within(root: &Path, program: &str, args: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "chroot"]).arg(root).arg(program).args(args);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

/// Whether that works here at all, with a program that is not ours.
fn can_change_root() -> bool {
    let shell = Path::new("/bin/sh");
    let root = root_with(shell, &libraries(shell));
    within(root.path(), "/usr/local/bin/program", &["-c", "exit 0"])
        .output()
        .is_ok_and(|output| output.status.success())
}

/// An empty root with a program, its libraries, and a folder to write to.
fn root_with(program: &Path, libraries: &[(String, PathBuf)]) -> tempfile::TempDir {
    let root = tempfile::Builder::new().prefix("ebb-root-").tempdir().unwrap();
    let put = |from: &Path, to: &str| {
        let to = root.path().join(to.trim_start_matches('/'));
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(from, to).unwrap();
    };
    put(program, "/usr/local/bin/program");
    libraries.iter().for_each(|(_, path)| put(path, path.to_str().unwrap()));
    std::fs::create_dir(root.path().join("tmp")).unwrap();
    root
}

#[test]
fn the_worker_runs_with_the_libraries_of_its_stage_and_no_others() {
    let test = "the_worker_runs_with_the_libraries_of_its_stage_and_no_others";
    let program = PathBuf::from(binary("ebb").get_program());
    let libraries = libraries(&program);
    let names: BTreeSet<&str> = libraries.iter().map(|(name, _)| name.as_str()).collect();
    let odd = names.iter().filter(|name| !LIBRARIES.contains(name)).map(ToString::to_string);
    assert_none("the stage `worker` has what the program is linked with", odd);
    assert!(names.contains("libc.so.6"), "ldd told {names:?}");

    let root = root_with(&program, &libraries);
    if !can_change_root() {
        return skipped(test, "let it use `unshare --user` and `chroot`, or run it as root");
    }
    let ebb = |args: &[&str]| run(&mut within(root.path(), "/usr/local/bin/program", args), "");
    let queue = ["--queue", "sqlite:/tmp/queue.db"];
    ebb(&[&["enqueue", "hello"], &queue[..]].concat()).ok();
    let worker = ["worker", "--model", "echo", "--exit-when-empty"];
    ebb(&[&worker[..], &queue[..]].concat()).ok();
    let depth = ebb(&[&["queue", "depth", "--json"], &queue[..]].concat()).ok().json();
    assert_eq!(depth["ready"], 0, "{depth}");
}

#[test]
fn the_stages_build_and_their_programs_run_alone() {
    let test = "the_stages_build_and_their_programs_run_alone";
    if std::env::var_os("EBB_TEST_IMAGES").is_none() {
        return skipped(test, "EBB_TEST_IMAGES=1 builds the static scaler, which takes minutes");
    }
    let (_, words) = builds().into_iter().find(|(stage, _)| stage == "build-scaler").unwrap();
    let machine = std::env::consts::ARCH;
    let target = format!("{machine}-unknown-linux-musl");
    // What the shell would put in place of it.
    let words = words.join(" ").replace("$(uname -m)", machine);
    let words: Vec<&str> = words.split(' ').collect();
    let folder = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace_root().join("target"), PathBuf::from);
    let mut cargo = Command::new("cargo");
    cargo.arg("build").args(words).current_dir(workspace_root());
    run(cargo.env("CARGO_TARGET_DIR", &folder), "").ok();
    let program = folder.join(&target).join("release/ebb-scaler");
    let size = std::fs::metadata(&program).unwrap().len();
    assert!(size < 30 << 20, "the scaler has {size} bytes");
    let told = run(Command::new("ldd").arg(&program), "");
    let told = [told.stdout, told.stderr].concat();
    assert!(told.contains("statically linked") || told.contains("not a dynamic"), "{told}");

    let root = root_with(&program, &[]);
    assert!(can_change_root(), "this needs `unshare --user` or root");
    let workplace = Workplace::new();
    let queue = format!("sqlite:{}", root.path().join("tmp/queue.db").display());
    workplace.ebb(&["queue", "init", "--queue", &queue]).ok();
    let args = ["--queue", "sqlite:/tmp/queue.db", "--listen", "127.0.0.1:0"];
    let args = [&args[..], &["--http-listen", "127.0.0.1:0"]].concat();
    let mut scaler = Process::start(&mut within(root.path(), "/usr/local/bin/program", &args));
    let http = scaler.says("its address", |said| {
        let rest = said.split("http=").nth(1)?;
        rest.split_whitespace().next().map(str::to_owned)
    });
    for path in ["/livez", "/readyz", "/startupz", "/metrics"] {
        assert_eq!(get(&http, path).unwrap().status, 200, "{path}");
    }
    docker_builds(test);
}

/// The images themselves, where a Docker answers.
fn docker_builds(test: &str) {
    let answers = Command::new("docker").args(["info", "--format", "{{.ServerVersion}}"]).output();
    if !answers.is_ok_and(|output| output.status.success()) {
        return skipped(&format!("{test}, the images"), "there is no Docker that answers");
    }
    for target in ["scaler", "worker"] {
        let mut docker = Command::new("docker");
        docker.args(["build", "--target", target, "--tag"]).arg(format!("ebb-{target}:test"));
        run(docker.arg(".").current_dir(workspace_root()).env("DOCKER_BUILDKIT", "1"), "").ok();
    }
}
