//! A Hugging Face hub: which files a revision has, and a snapshot of them in the cache.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::client::{Client, Promise, check};
use super::{Known, Places, Progress, PullError, Repository, cache, io};
use crate::bert::Settings;
use crate::checkpoint::{self, INDEX, SINGLE};
use crate::{ModelKind, catalog};

const SMALL_FILES: [&str; 9] = [
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "README.md",
];

#[derive(Deserialize)]
struct Revision {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// Weights are fetched last, and only if the rest says that the model can be run.
fn is_wanted(name: &str) -> bool {
    // A module of its own folder: `1_Pooling/config.json`.
    let of_module = name.split_once('/').is_some_and(|(folder, file)| {
        file == "config.json"
            && folder.starts_with(|c: char| c.is_ascii_digit())
            && folder.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    });
    of_module || SMALL_FILES.contains(&name)
}

pub(super) fn pull(
    places: &Places,
    repository: &Repository<'_>,
    known: Option<&'static Known>,
    progress: &mut dyn FnMut(&Progress),
) -> Result<PathBuf, PullError> {
    let client = Client::new(places, repository.name, known.is_some());
    let hub = Hub { repository, known, client };
    let revision = hub.revision()?;
    let folder = cache::folder(places, repository.name);
    let target = folder.join("snapshots").join(&revision.sha);
    if !cache::is_whole(&target, known) {
        for name in ["blobs", "refs", "snapshots"] {
            let path = folder.join(name);
            fs::create_dir_all(&path).map_err(io(&path))?;
        }
        let name = format!(".{}-{}", revision.sha, std::process::id());
        let staging = folder.join("snapshots").join(name);
        let result = hub
            .stage(&revision, &folder, &staging, progress)
            .and_then(|()| publish(&staging, &target));
        if staging.exists() {
            fs::remove_dir_all(&staging).map_err(io(&staging))?;
        }
        result?;
    }
    let reference = folder.join("refs").join(repository.revision);
    let unfinished = reference.with_extension(std::process::id().to_string());
    fs::write(&unfinished, &revision.sha).map_err(io(&unfinished))?;
    fs::rename(&unfinished, &reference).map_err(io(&reference))?;
    Ok(target)
}

/// Makes the staged snapshot visible: in one step, or, where another tool left a part of it,
/// link by link with the weights last.
fn publish(staging: &Path, target: &Path) -> Result<(), PullError> {
    if !target.exists() {
        return fs::rename(staging, target).map_err(io(target));
    }
    let mut files = Vec::new();
    for folder in fs::read_dir(staging).map_err(io(staging))?.flatten() {
        if folder.path().is_dir() {
            files.extend(fs::read_dir(folder.path()).map_err(io(staging))?.flatten());
        } else {
            files.push(folder);
        }
    }
    files.sort_by_key(|file| turn(&file.file_name().to_string_lossy()));
    for file in files {
        let path = file.path();
        let to = target.join(path.strip_prefix(staging).expect("listed in it"));
        let parent = to.parent().expect("below the target");
        fs::create_dir_all(parent).map_err(io(parent))?;
        fs::rename(&path, &to).map_err(io(&to))?;
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

struct Hub<'a> {
    repository: &'a Repository<'a>,
    known: Option<&'static Known>,
    client: Client<'a>,
}

impl Hub<'_> {
    /// The commit that the revision means, and its files.
    fn revision(&self) -> Result<Revision, PullError> {
        let Repository { name, revision } = self.repository;
        let endpoint = self.client.endpoint();
        let url = format!("{endpoint}/api/models/{name}/revision/{revision}");
        let (_, mut answer) = self.client.get(&url, 0, Duration::from_secs(30))?;
        let wrong = |message: String| PullError::Answer { url: url.clone(), message };
        let text = answer.body_mut().with_config().limit(10 << 20).read_to_string();
        let text = text.map_err(|error| wrong(format!("cut short: {error}")))?;
        let revision: Revision = serde_json::from_str(&text)
            .map_err(|error| wrong(format!("not a hub's answer: {error}; check HF_ENDPOINT")))?;
        if revision.sha.is_empty() || !revision.sha.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Err(wrong(format!("sha is {:?}, not a commit", revision.sha)));
        }
        Ok(revision)
    }

    /// Fetches the files and links them below `staging`; the weights last, in one file or in the
    /// shards of an index, and only if the rest says that the model can be run.
    fn stage(
        &self,
        revision: &Revision,
        folder: &Path,
        staging: &Path,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<(), PullError> {
        let has = |name: &str| revision.siblings.iter().any(|it| it.rfilename == name);
        let check = |file: &str| {
            if has(file) {
                return Ok(());
            }
            let (repository, file) = (self.repository.name.to_owned(), file.to_owned());
            Err(PullError::Lacks { repository, file })
        };
        // What is pinned by its hash is one file.
        let is_sharded = !has(SINGLE) && has(INDEX) && self.known.is_none();
        let weights = if is_sharded { INDEX } else { SINGLE };
        check("config.json").and_then(|()| check(weights))?;
        fs::create_dir_all(staging).map_err(io(staging))?;
        let names = revision.siblings.iter().map(|it| it.rfilename.as_str());
        for name in names.filter(|name| is_wanted(name)) {
            self.link(revision, folder, staging, name, progress)?;
        }
        if catalog::recognise(staging)? != ModelKind::Sentinel {
            Settings::read(staging)?;
        }
        self.link(revision, folder, staging, weights, progress)?;
        let files = checkpoint::files(staging)?;
        let shards = || files.iter().filter(|name| *name != weights);
        shards().try_for_each(|shard| check(shard))?;
        shards().try_for_each(|shard| self.link(revision, folder, staging, shard, progress))
    }

    fn link(
        &self,
        revision: &Revision,
        folder: &Path,
        staging: &Path,
        name: &str,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<(), PullError> {
        let blob = self.blob(revision, &folder.join("blobs"), name, progress)?;
        let link = staging.join(name);
        let parent = link.parent().expect("below the staging folder");
        fs::create_dir_all(parent).map_err(io(parent))?;
        // From snapshots/COMMIT/NAME back to the repository's folder.
        let up = "../".repeat(2 + name.matches('/').count());
        std::os::unix::fs::symlink(format!("{up}blobs/{blob}"), &link).map_err(io(&link))
    }

    /// Makes sure that a file's blob is there, whole; its name.
    fn blob(
        &self,
        revision: &Revision,
        blobs: &Path,
        name: &str,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<String, PullError> {
        let mut promise = self.promise(revision, name)?;
        if let Some(known) = self.known.filter(|_| name == SINGLE) {
            known.weights_sha256.clone_into(&mut promise.etag);
        }
        let blob = blobs.join(&promise.etag);
        // Two pulls of the same file take turns, and the second finds it there.
        let partial = blobs.join(format!("{}.ebb-incomplete", promise.etag));
        let mut file = File::options()
            .read(true)
            .append(true)
            .create(true)
            .open(&partial)
            .map_err(io(&partial))?;
        file.lock().map_err(io(&partial))?;
        let is_there = blob.exists() && check(&blob, name, &promise).is_ok();
        if !is_there {
            self.client.download(&promise, &mut file, name, progress)?;
            if let Err(error) = check(&partial, name, &promise) {
                fs::remove_file(&partial).map_err(io(&partial))?;
                return Err(error);
            }
            file.sync_all().map_err(io(&partial))?;
            fs::rename(&partial, &blob).map_err(io(&blob))?;
        } else if partial.exists() {
            fs::remove_file(&partial).map_err(io(&partial))?;
        }
        Ok(promise.etag)
    }

    /// Asks for a file's hash and size without the file.
    fn promise(&self, revision: &Revision, name: &str) -> Result<Promise, PullError> {
        let endpoint = self.client.endpoint();
        let url = format!("{endpoint}/{}/resolve/{}/{name}", self.repository.name, revision.sha);
        let (url, answer) = self.client.head(&url)?;
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let etag = header("x-linked-etag").or_else(|| header("etag")).unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"');
        if etag.is_empty() || !etag.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
            let message = format!("etag is {etag:?}, which names no content; check HF_ENDPOINT");
            return Err(PullError::Answer { url, message });
        }
        let bytes = header("x-linked-size").or_else(|| header("content-length"));
        let bytes = bytes.and_then(|bytes| bytes.parse().ok());
        Ok(Promise { etag: etag.to_owned(), bytes, url })
    }
}
