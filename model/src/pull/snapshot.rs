//! Snapshots in the hub's layout: staged link by link, and published when they are whole.

use std::fs;
use std::io::Write;
use std::path::Path;

use tempfile::TempDir;

use super::{Known, PullError, cache, io, staging};
use crate::checkpoint::{INDEX, SINGLE};

/// A file of a snapshot: a link to where its content lies.
pub(super) struct Link {
    pub(super) name: String,
    pub(super) blob: String,
}

impl Link {
    /// Puts it into a folder of `snapshots`.
    pub(super) fn put(&self, dir: &Path) -> Result<(), PullError> {
        let Self { name, blob } = self;
        let link = dir.join(name);
        if let Some((folder, _)) = name.rsplit_once('/') {
            let folder = dir.join(folder);
            fs::create_dir_all(&folder).map_err(io(&folder))?;
        }
        // From snapshots/COMMIT/NAME back to the repository's folder.
        let up = "../".repeat(2 + name.matches('/').count());
        std::os::unix::fs::symlink(format!("{up}blobs/{blob}"), &link).map_err(io(&link))
    }
}

/// A snapshot of these files that nobody else sees. It is there for a moment or for the small files:
/// a wait for weights may be longer than what is left behind is kept.
pub(super) fn stage(repository: &Path, links: &[Link]) -> Result<TempDir, PullError> {
    let staging = staging::folder(&repository.join("snapshots"))?;
    links.iter().try_for_each(|link| link.put(staging.path()))?;
    Ok(staging)
}

/// Makes a snapshot of these files visible, if it is whole: in one step, or, where a part of it is
/// already, link by link with the weights last.
pub(super) fn publish(
    repository: &Path,
    commit: &str,
    links: &[Link],
    known: Option<&'static Known>,
) -> Result<(), PullError> {
    let target = repository.join("snapshots").join(commit);
    let staging = stage(repository, links)?;
    if !cache::is_whole(staging.path(), known) {
        return Err(PullError::Removed(repository.to_owned()));
    }
    let Err(error) = fs::rename(staging.path(), &target) else { return Ok(()) };
    if !target.is_dir() {
        return Err(io(&target)(error));
    }
    let mut names: Vec<_> = links.iter().map(|link| &link.name).collect();
    names.sort_by_key(|name| turn(name));
    for name in names {
        let to = target.join(name);
        let parent = to.parent().expect("below the target");
        fs::create_dir_all(parent).map_err(io(parent))?;
        fs::rename(staging.path().join(name), &to).map_err(io(&to))?;
    }
    Ok(())
}

/// When a file is published: what makes a model of the others comes last.
fn turn(name: &str) -> u8 {
    match name {
        SINGLE | INDEX => 2,
        _ if name.ends_with(".safetensors") => 1,
        _ => 0,
    }
}

/// Lets a revision mean this commit.
pub(super) fn refer(repository: &Path, revision: &str, commit: &str) -> Result<(), PullError> {
    let refs = repository.join("refs");
    fs::create_dir_all(&refs).map_err(io(&refs))?;
    let mut file = staging::file(&refs)?;
    file.write_all(commit.as_bytes()).map_err(io(file.path()))?;
    let reference = refs.join(revision);
    file.persist(&reference).map_err(|error| io(&reference)(error.error))?;
    Ok(())
}
