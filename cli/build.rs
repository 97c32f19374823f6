//! Collects the sentences that `ebb demo` runs on: a text of ours, the project's pages, and the
//! comments that document its code.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

#[path = "src/demo/split.rs"]
mod split;

fn main() -> io::Result<()> {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let root = here.parent().expect("the package lies in the workspace").to_owned();
    let mut texts = vec![read(&here.join("data/sentences.txt"))?];
    for page in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "benches/README.md"] {
        let path = root.join(page);
        if path.exists() {
            texts.push(read(&path)?);
        }
    }
    for package in ["queue", "model", "worker", "scaler", "telemetry", "cli"] {
        for source in sources(&root.join(package).join("src"))? {
            texts.push(comments(&read(&source)?));
        }
    }
    let mut seen = HashSet::new();
    let found = texts.iter().flat_map(|text| split::sentences(text));
    let distinct: Vec<String> = found.filter(|it| seen.insert(it.clone())).collect();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    fs::write(out.join("sentences.txt"), distinct.join("\n"))
}

fn read(path: &Path) -> io::Result<String> {
    println!("cargo:rerun-if-changed={}", path.display());
    fs::read_to_string(path)
}

/// The Rust files below a folder, in an order that does not depend on the file system.
fn sources(folder: &Path) -> io::Result<Vec<PathBuf>> {
    println!("cargo:rerun-if-changed={}", folder.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// What documents the code; a paragraph ends where the code goes on.
fn comments(source: &str) -> String {
    let line = |line: &str| {
        let line = line.trim();
        let text = line.strip_prefix("//!").or_else(|| line.strip_prefix("///"));
        text.map(str::trim).unwrap_or_default().to_owned()
    };
    source.lines().map(line).collect::<Vec<_>>().join("\n")
}
