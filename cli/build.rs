//! Collects the sentences that `ebb demo` runs on: a text of ours, and the project's pages.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

#[path = "src/demo/split.rs"]
mod split;

const PAGES: [&str; 5] =
    ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "benches/README.md"];

fn main() -> io::Result<()> {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let root = here.parent().expect("the package lies in the workspace");
    let mut texts = vec![read(&here.join("data/sentences.txt"))?];
    for page in PAGES {
        texts.push(read(&root.join(page))?);
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
