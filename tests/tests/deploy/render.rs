//! What `kubectl apply -k` would send: every overlay, and every component that no overlay has.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use e2e::{Run, run, skipped, tracked_files, workspace_root};
use serde_json::Value;
use tempfile::TempDir;

/// A copy of `deploy/`, in which a test may change what it likes.
#[derive(Debug)]
pub(crate) struct Tree {
    folder: TempDir,
    kubectl: PathBuf,
}

/// An object of an overlay.
#[derive(Debug, Clone)]
pub(crate) struct Object(pub(crate) Value);

impl Object {
    pub(crate) fn text(&self, pointer: &str) -> &str {
        self.0.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    pub(crate) fn kind(&self) -> &str {
        self.text("/kind")
    }

    pub(crate) fn name(&self) -> &str {
        self.text("/metadata/name")
    }

    pub(crate) fn namespace(&self) -> &str {
        self.text("/metadata/namespace")
    }

    pub(crate) fn is(&self, kind: &str, namespace: &str, name: &str) -> bool {
        self.kind() == kind && self.namespace() == namespace && self.name() == name
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = [self.namespace(), "/"].concat();
        write!(f, "{} {}{}", self.kind(), place.trim_start_matches('/'), self.name())
    }
}

/// The program that renders; it knows components since its version 1.21.
pub(crate) fn kubectl() -> Option<PathBuf> {
    let path = std::env::var_os("EBB_TEST_KUBECTL").unwrap_or_else(|| "kubectl".into());
    let version = Command::new(&path).args(["version", "--client", "-o", "json"]).output().ok()?;
    let version: Value = serde_json::from_slice(&version.stdout).ok()?;
    let kustomize = version["kustomizeVersion"].as_str()?.trim_start_matches('v');
    let major: u32 = kustomize.split('.').next()?.parse().ok()?;
    (major >= 5).then(|| path.into())
}

impl Tree {
    /// None, with words about it, where nothing can render.
    pub(crate) fn new(test: &str) -> Option<Self> {
        let Some(kubectl) = kubectl() else {
            let remedy = "name a kubectl with kustomize 5 in EBB_TEST_KUBECTL, as tests/run does";
            skipped(test, remedy);
            return None;
        };
        let folder = tempfile::Builder::new().prefix("ebb-deploy-").tempdir().unwrap();
        let files = tracked_files().into_iter().filter(|path| path.starts_with("deploy/"));
        for file in files {
            let to = folder.path().join(&file);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(workspace_root().join(&file), to).unwrap();
        }
        Some(Self { folder, kubectl })
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join("deploy").join(path)
    }

    /// Replaces a text that must be there.
    pub(crate) fn edit(&self, path: &str, from: &str, to: &str) {
        let page = fs::read_to_string(self.path(path)).unwrap();
        assert!(page.contains(from), "{path} has no {from:?}");
        fs::write(self.path(path), page.replace(from, to)).unwrap();
    }

    pub(crate) fn try_render(&self, folder: &Path) -> Run {
        run(Command::new(&self.kubectl).arg("kustomize").arg(folder), "")
    }

    #[track_caller]
    pub(crate) fn render(&self, overlay: &str) -> Vec<Object> {
        let rendered = self.try_render(&self.path(overlay)).ok();
        // Kustomize says here what it takes for a mistake and does all the same.
        assert_eq!(rendered.stderr, "", "{overlay}");
        objects(&rendered.stdout)
    }

    /// Folders whose kustomization is of this kind, below `deploy/`.
    pub(crate) fn folders(&self, kind: &str) -> BTreeSet<String> {
        let mark = format!("kind: {kind}\n");
        let files = tracked_files().into_iter();
        let files = files.filter_map(|file| Some(file.strip_prefix("deploy/")?.to_owned()));
        let folders =
            files.filter_map(|file| Some(file.strip_suffix("/kustomization.yaml")?.to_owned()));
        let of_kind = |folder: &String| {
            let page = fs::read_to_string(self.path(folder).join("kustomization.yaml"));
            page.is_ok_and(|page| page.contains(&mark))
        };
        folders.filter(of_kind).collect()
    }

    /// The folders that a kustomization is made of, however deep.
    pub(crate) fn parts(&self, folder: &str) -> BTreeSet<String> {
        let mut open = vec![self.path(folder)];
        let mut seen = BTreeSet::new();
        while let Some(path) = open.pop() {
            let Ok(page) = fs::read_to_string(path.join("kustomization.yaml")) else { continue };
            let page: Value = serde_saphyr::from_str(&page).unwrap();
            for list in ["resources", "components"] {
                for part in page[list].as_array().into_iter().flatten() {
                    let part = path.join(part.as_str().unwrap()).canonicalize().unwrap();
                    if part.is_dir() {
                        open.push(part);
                    }
                }
            }
            let root = self.path("").canonicalize().unwrap();
            let path = path.canonicalize().unwrap();
            seen.insert(path.strip_prefix(root).unwrap().to_string_lossy().into_owned());
        }
        seen
    }

    /// An overlay of the test's own for each component that no overlay of ours has.
    fn strays(&self) -> BTreeMap<String, String> {
        let overlays = self.folders("Kustomization");
        let used: BTreeSet<String> =
            overlays.iter().flat_map(|overlay| self.parts(overlay)).collect();
        let mut made = BTreeMap::new();
        for component in self.folders("Component").into_iter().filter(|c| !used.contains(c)) {
            let name = format!("with-{}", component.replace('/', "-"));
            let components = ["components/nats", "components/nats-server", &*component];
            made.insert(self.overlay(&name, &components, ""), component);
        }
        made
    }

    /// An overlay of the test's own: the base with components and patches.
    pub(crate) fn overlay(&self, name: &str, components: &[&str], patches: &str) -> String {
        let folder = format!("overlays/{name}");
        fs::create_dir_all(self.path(&folder)).unwrap();
        let components: Vec<String> = components.iter().map(|one| format!("../../{one}")).collect();
        let page = format!(
            "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: \
             [../../base]\ncomponents: [{}]\n{patches}",
            components.join(", ")
        );
        fs::write(self.path(&folder).join("kustomization.yaml"), page).unwrap();
        folder
    }

    /// Every overlay with its objects.
    fn all(&self) -> BTreeMap<String, Vec<Object>> {
        let overlays = self.folders("Kustomization").into_iter();
        let mut overlays: Vec<String> = overlays.filter(|o| o.starts_with("overlays/")).collect();
        overlays.extend(self.strays().into_keys());
        std::thread::scope(|scope| {
            let spawn =
                |overlay: String| scope.spawn(move || (overlay.clone(), self.render(&overlay)));
            let running: Vec<_> = overlays.into_iter().map(spawn).collect();
            running.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }
}

pub(crate) fn objects(page: &str) -> Vec<Object> {
    let read: Vec<Value> = serde_saphyr::from_multiple(page).expect("kubectl writes YAML");
    read.into_iter().map(Object).collect()
}

/// Every overlay, rendered once for all tests.
pub(crate) fn overlays(test: &str) -> Option<&'static BTreeMap<String, Vec<Object>>> {
    static ALL: OnceLock<BTreeMap<String, Vec<Object>>> = OnceLock::new();
    let tree = Tree::new(test)?;
    let all = ALL.get_or_init(|| tree.all());
    assert!(all.len() >= 9, "the overlays were not found: {:?}", all.keys());
    Some(all)
}
