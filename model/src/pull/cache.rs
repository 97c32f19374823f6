//! The caches on disk: the hub's `models--org--name/{blobs,refs,snapshots}`, and Ebb's own.

use std::path::{Path, PathBuf};

use super::{Known, Places, Repository};
use crate::bert::Settings;
use crate::catalog::TOKENIZER;
use crate::{ModelKind, catalog, causal, checkpoint};

/// The folder of a repository in the hub's layout.
pub(super) fn folder(places: &Places, name: &str) -> PathBuf {
    places.hub_cache.join(format!("models--{}", name.replace('/', "--")))
}

/// The snapshot a revision points to, if there is one.
pub(super) fn snapshot(places: &Places, repository: &Repository<'_>) -> Option<PathBuf> {
    let folder = folder(places, repository.name);
    let commit = std::fs::read_to_string(folder.join("refs").join(repository.revision));
    let commit = commit.as_deref().map_or(repository.revision, str::trim);
    let dir = folder.join("snapshots").join(commit);
    dir.is_dir().then_some(dir)
}

/// Where a mirror's copy of a known model lies.
pub(super) fn own(places: &Places, known: &Known) -> PathBuf {
    places.ebb_cache.join("models").join(known.name.replace('/', "--"))
}

/// Whether everything is there that running the model reads, and what is pinned is unaltered.
///
/// Hashing takes a fraction of a second, so it is done every time rather than remembered.
pub(super) fn is_whole(dir: &Path, known: Option<&Known>) -> bool {
    let complete = checkpoint::files(dir)
        .is_ok_and(|weights| weights.iter().all(|name| dir.join(name).is_file()))
        && match catalog::recognise(dir) {
            Ok(ModelKind::Sentinel) => true,
            Ok(ModelKind::Generator) => {
                causal::Settings::read(dir).is_ok() && dir.join(TOKENIZER).is_file()
            }
            // The settings name the files they need.
            Ok(_) => Settings::read(dir).is_ok() && dir.join(TOKENIZER).is_file(),
            Err(_) => false,
        };
    let Some(known) = known else { return complete };
    complete
        && known.files.iter().all(|file| dir.join(file).is_file())
        && catalog::hash(&dir.join(checkpoint::SINGLE))
            .is_ok_and(|(_, hash)| hash == known.weights_sha256)
}
