//! The caches on disk: the hub's `models--org--name/{blobs,refs,snapshots}`, and Ebb's own.

use std::path::{Path, PathBuf};

use super::{Known, Places, PullError, Repository, io};
use crate::bert::{self, MODULES, SENTENCE_CONFIG, Settings, Task};
use crate::catalog::TOKENIZER;
use crate::{ModelKind, catalog, causal, checkpoint};

/// Where the hub's tools note which files a commit does not have.
const ABSENT: &str = ".no_exist";

/// Files that every repository has, and that nobody fetches who only reads a transformer.
const OF_ALL: [&str; 2] = ["README.md", ".gitattributes"];

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

/// A file that a whole snapshot lacks, and that the model may have on the hub: whoever fetched only what a
/// transformer is read from leaves it out, and without it the model runs and may be another.
pub(super) fn unsettled(snapshot: &Path) -> Option<&'static str> {
    let settings = Settings::read(snapshot).ok()?;
    let name = match settings.task() {
        Task::Embedding => MODULES,
        // What becomes of its number, and whether it compares pairs.
        Task::Classification | Task::Reranking if settings.labels().len() == 1 => SENTENCE_CONFIG,
        _ => return None,
    };
    let is_all_there = OF_ALL.iter().any(|name| snapshot.join(name).exists());
    let is_settled =
        is_all_there || snapshot.join(name).exists() || absent(snapshot)?.join(name).exists();
    (!is_settled).then_some(name)
}

/// The same, where most models have the file: an encoder's says how it is pooled. Most rerankers have
/// none, and nobody notes so who never asks for it.
pub(super) fn needed(snapshot: &Path) -> Option<&'static str> {
    unsettled(snapshot).filter(|name| *name == MODULES)
}

/// Notes that a commit does not have these files.
pub(super) fn note_absent<'a>(
    snapshot: &Path,
    names: impl Iterator<Item = &'a str>,
) -> Result<(), PullError> {
    let folder = absent(snapshot).expect("it lies in a folder of the cache");
    std::fs::create_dir_all(&folder).map_err(io(&folder))?;
    for path in names.map(|name| folder.join(name)).filter(|path| !path.exists()) {
        std::fs::write(&path, "").map_err(io(&path))?;
    }
    Ok(())
}

/// The folder of what a commit does not have.
fn absent(snapshot: &Path) -> Option<PathBuf> {
    Some(snapshot.parent()?.parent()?.join(ABSENT).join(snapshot.file_name()?))
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
            Ok(_) => Settings::read(dir).is_ok_and(|settings| {
                let tokenizer = bert::tokenizer_file(dir).ok().flatten().unwrap_or(TOKENIZER);
                let mut all = settings.module_files().iter().map(String::as_str).chain([tokenizer]);
                all.all(|name| dir.join(name).is_file())
            }),
            Err(_) => false,
        };
    complete && known.is_none_or(|known| known.is_in(dir))
}

/// Whether a mirror's copy is, and no file of it is another than in the package.
pub(super) fn is_whole_copy(dir: &Path, known: &Known) -> bool {
    is_whole(dir, Some(known)) && known.check_small(dir).is_ok()
}
