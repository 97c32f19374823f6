//! Where a pull makes things before they get their names: each pull in folders and files of its own.
//! The number of its process would not tell them apart, for those of containers are often the same.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tempfile::{Builder, NamedTempFile, TempDir};

use super::{PullError, io};

const PREFIX: &str = ".ebb-pull-";
/// Ends the name of a download that is not all here.
pub(super) const PARTIAL: &str = "ebb-incomplete";

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Nobody works any more on what is as old as this: it is there for the small files of a model, or for
/// one package.
const DEAD: Duration = DAY;
/// Nobody will go on with a download that was left for so long.
const FORGOTTEN: Duration = DAY.saturating_mul(7);

/// A new folder in `parent`, which goes with the value.
pub(super) fn folder(parent: &Path) -> Result<TempDir, PullError> {
    remove_dead(parent);
    // As any other that a process makes: others may read the cache.
    let mode = Permissions::from_mode(0o777);
    Builder::new().prefix(PREFIX).permissions(mode).tempdir_in(parent).map_err(io(parent))
}

/// A new file in `parent`, which goes with the value unless it is given a name.
pub(super) fn file(parent: &Path) -> Result<NamedTempFile, PullError> {
    remove_dead(parent);
    let mode = Permissions::from_mode(0o666);
    Builder::new().prefix(PREFIX).permissions(mode).tempfile_in(parent).map_err(io(parent))
}

/// A download to go on with, once it is nobody else's.
pub(super) fn turn(partial: &Path) -> Result<File, PullError> {
    loop {
        let mut options = File::options();
        let file = options.read(true).append(true).create(true).open(partial);
        let file = file.map_err(io(partial))?;
        file.lock().map_err(io(partial))?;
        // Whoever had it may have named or removed it: what is waited for then is not what lies here.
        let own = file.metadata().map_err(io(partial))?;
        let is_same = |there: fs::Metadata| (there.dev(), there.ino()) == (own.dev(), own.ino());
        if fs::metadata(partial).is_ok_and(is_same) {
            return Ok(file);
        }
    }
}

/// Removes what pulls left that were killed.
fn remove_dead(parent: &Path) {
    for path in unchanged_for(DEAD, parent) {
        let name = path.file_name().unwrap_or_default();
        if name.to_string_lossy().starts_with(PREFIX) {
            let is_dir = path.is_dir();
            let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            note(&path, removed);
        }
    }
}

/// Removes downloads that were broken off long ago.
pub(super) fn remove_forgotten(blobs: &Path) {
    for path in unchanged_for(FORGOTTEN, blobs) {
        if path.extension().is_none_or(|ending| ending != PARTIAL) {
            continue;
        }
        let Ok(file) = File::options().append(true).open(&path) else { continue };
        // Whoever waits for its next byte has it locked.
        if file.try_lock().is_ok() {
            note(&path, fs::remove_file(&path));
        }
    }
}

/// What lies in a folder and was last changed as long ago as this, or longer.
fn unchanged_for(age: Duration, parent: &Path) -> impl Iterator<Item = PathBuf> {
    let now = SystemTime::now();
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let is_old = move |entry: &fs::DirEntry| {
        let modified = entry.metadata().and_then(|it| it.modified());
        modified.is_ok_and(|at| now.duration_since(at).is_ok_and(|passed| passed >= age))
    };
    entries.filter(is_old).map(|entry| entry.path())
}

/// What stays is tried again by the next pull.
fn note(path: &Path, removed: std::io::Result<()>) {
    if let Err(error) = removed {
        tracing::debug!(path = %path.display(), %error, "what a killed pull left stays");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(path: &Path, modified: SystemTime) {
        File::create(path).unwrap().set_modified(modified).unwrap();
    }

    #[test]
    fn what_killed_pulls_left_goes_when_it_is_old_and_nothing_else_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let now = SystemTime::now();
        for (name, modified) in [
            (".ebb-pull-killed", now - 2 * DAY),
            (".ebb-pull-live", now - DAY / 2),
            // The clock of a server may be another one.
            (".ebb-pull-ahead", now + 2 * DAY),
            ("0123", now - 2 * DAY),
        ] {
            fs::create_dir(path(name)).unwrap();
            fs::write(path(name).join("config.json"), "{}").unwrap();
            File::open(path(name)).unwrap().set_modified(modified).unwrap();
        }
        make(&path(".ebb-pull-file"), now - 2 * DAY);
        let made = folder(dir.path()).unwrap();
        let file = file(dir.path()).unwrap();
        assert!(made.path().is_dir() && file.path().is_file());
        for gone in [".ebb-pull-killed", ".ebb-pull-file"] {
            assert!(!path(gone).exists(), "{gone}");
        }
        for there in [".ebb-pull-live", ".ebb-pull-ahead", "0123"] {
            assert!(path(there).join("config.json").exists(), "{there}");
        }
    }

    #[test]
    fn a_download_is_forgotten_when_it_is_old_and_nobody_is_at_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let now = SystemTime::now();
        for (name, modified) in [
            ("forgotten.ebb-incomplete", now - 8 * DAY),
            ("slow.ebb-incomplete", now - 8 * DAY),
            ("broken-off.ebb-incomplete", now - 6 * DAY),
            ("whole", now - 8 * DAY),
        ] {
            make(&path(name), modified);
        }
        let slow = File::options().append(true).open(path("slow.ebb-incomplete")).unwrap();
        slow.lock().unwrap();
        remove_forgotten(dir.path());
        assert!(!path("forgotten.ebb-incomplete").exists());
        for there in ["slow.ebb-incomplete", "broken-off.ebb-incomplete", "whole"] {
            assert!(path(there).exists(), "{there}");
        }
    }
}
