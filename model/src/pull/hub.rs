//! A Hugging Face hub: which files a revision has, and a snapshot of them in the cache.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::client::{Client, Promise, check};
use super::snapshot::{self, Link};
use super::staging::{self, PARTIAL};
use super::{Known, Places, Progress, PullError, Repository, cache, io};
use crate::bert::{self, module_files};
use crate::catalog::{FILES, TOKENIZER};
use crate::checkpoint::{self, INDEX, SINGLE};
use crate::{ModelKind, catalog, causal};

/// Files that Python's tools, which share the cache, want beside those that are read of any model.
const OTHERS: [&str; 2] = [bert::WORDS, "README.md"];

#[derive(Deserialize)]
struct Revision {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Revision {
    fn has(&self, name: &str) -> bool {
        self.siblings.iter().any(|it| it.rfilename == name)
    }
}

pub(super) fn pull(
    places: &Places,
    repository: &Repository<'_>,
    known: Option<&'static Known>,
    progress: &mut dyn FnMut(&Progress),
) -> Result<PathBuf, PullError> {
    let client = Client::new(places, repository.name, known.is_some());
    let folder = cache::folder(places, repository.name);
    let hub = Hub { repository, known, client, folder: &folder };
    let revision = hub.revision()?;
    let target = folder.join("snapshots").join(&revision.sha);
    // Somebody else may have fetched a part of it: a model may run without what the rest says of it.
    let lacks = |name: &str| revision.has(name) && !target.join(name).exists();
    if !cache::is_whole(&target, known) || FILES.into_iter().any(lacks) {
        let blobs = folder.join("blobs");
        for path in [&blobs, &folder.join("snapshots")] {
            fs::create_dir_all(path).map_err(io(path))?;
        }
        let links = hub.files(&revision, progress)?;
        snapshot::publish(&folder, &revision.sha, &links, known)?;
        staging::remove_forgotten(&blobs);
    }
    cache::note_absent(&target, FILES.into_iter().filter(|name| !revision.has(name)))?;
    snapshot::refer(&folder, repository.revision, &revision.sha)?;
    Ok(target)
}

struct Hub<'a> {
    repository: &'a Repository<'a>,
    known: Option<&'static Known>,
    client: Client<'a>,
    /// The repository in the cache.
    folder: &'a Path,
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

    /// Fetches a model's files; the weights last, in one file or in the shards of an index, and only
    /// if the rest says that the model can be run.
    fn files(
        &self,
        revision: &Revision,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Vec<Link>, PullError> {
        // What is pinned by its hash is one file.
        let is_sharded = !revision.has(SINGLE) && revision.has(INDEX) && self.known.is_none();
        let weights = if is_sharded { INDEX } else { SINGLE };
        let pinned = self.known.map_or(&[][..], |known| known.files).iter().map(|(name, _)| *name);
        let mut needed = ["config.json", weights].into_iter().chain(pinned);
        needed.try_for_each(|name| self.need(revision, name))?;
        let mut links = self.small_files(revision, progress)?;
        links.push(self.link(revision, weights, progress)?);
        if is_sharded {
            let files = checkpoint::files(snapshot::stage(self.folder, &links)?.path())?;
            let shards = || files.iter().filter(|name| *name != INDEX);
            shards().try_for_each(|shard| self.need(revision, shard))?;
            for shard in shards() {
                links.push(self.link(revision, shard, progress)?);
            }
        }
        Ok(links)
    }

    /// Fetches all but the weights, and holds it against what the code can run.
    fn small_files(
        &self,
        revision: &Revision,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Vec<Link>, PullError> {
        let mut links = Vec::new();
        for name in FILES.into_iter().chain(OTHERS).filter(|name| revision.has(name)) {
            links.push(self.link(revision, name, progress)?);
        }
        let staging = snapshot::stage(self.folder, &links)?;
        let kind = catalog::recognise(staging.path())?;
        if kind == ModelKind::Sentinel {
            return Ok(links);
        }
        if kind == ModelKind::Generator || bert::tokenizer_file(staging.path())?.is_none() {
            self.need(revision, TOKENIZER)?;
        }
        if kind == ModelKind::Generator {
            causal::check_texts(staging.path())?;
            return Ok(links);
        }
        let modules = match kind {
            ModelKind::Encoder => module_files(staging.path())?,
            _ => Vec::new(),
        };
        for name in modules {
            if links.iter().any(|link| link.name == name) {
                continue;
            }
            self.need(revision, &name)?;
            let link = self.link(revision, &name, progress)?;
            link.put(staging.path())?;
            links.push(link);
        }
        bert::check_texts(staging.path())?;
        Ok(links)
    }

    /// Refuses a revision that lacks a file.
    fn need(&self, revision: &Revision, file: &str) -> Result<(), PullError> {
        if revision.has(file) {
            return Ok(());
        }
        let (repository, file) = (self.repository.name.to_owned(), file.to_owned());
        Err(PullError::Lacks { repository, file })
    }

    fn link(
        &self,
        revision: &Revision,
        name: &str,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Link, PullError> {
        let blob = self.blob(revision, name, progress)?;
        Ok(Link { name: name.to_owned(), blob })
    }

    /// Makes sure that a file's blob is there, whole; its name.
    fn blob(
        &self,
        revision: &Revision,
        name: &str,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<String, PullError> {
        let mut promise = self.promise(revision, name)?;
        if let Some(known) = self.known.filter(|_| name == SINGLE) {
            known.weights_sha256.clone_into(&mut promise.etag);
        }
        let blobs = self.folder.join("blobs");
        let blob = blobs.join(&promise.etag);
        // Two pulls of the same file take turns, and the second finds it there.
        let partial = blobs.join(format!("{}.{PARTIAL}", promise.etag));
        let mut file = staging::turn(&partial)?;
        let is_there = blob.exists() && check(&blob, name, &promise).is_ok();
        if !is_there {
            self.client.download(&promise, &mut file, name, progress)?;
            if let Err(error) = check(&partial, name, &promise) {
                fs::remove_file(&partial).map_err(io(&partial))?;
                return Err(error);
            }
            file.sync_all().map_err(io(&partial))?;
            fs::rename(&partial, &blob).map_err(io(&blob))?;
        } else if let Err(error) = fs::remove_file(&partial)
            // A third pull may be as far.
            && error.kind() != ErrorKind::NotFound
        {
            return Err(io(&partial)(error));
        }
        Ok(promise.etag)
    }

    /// Asks for a file's hash and size without the file.
    fn promise(&self, revision: &Revision, name: &str) -> Result<Promise, PullError> {
        let endpoint = self.client.endpoint();
        let (repository, path) = (self.repository.name, escaped(name));
        let url = format!("{endpoint}/{repository}/resolve/{}/{path}", revision.sha);
        let (url, answer) = self.client.head(&url)?;
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let etag = header("x-linked-etag").or_else(|| header("etag")).unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"');
        if etag.is_empty() || !etag.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
            let message = format!("etag is {etag:?}, which names no content; check HF_ENDPOINT");
            return Err(PullError::Answer { url, message });
        }
        // The length of an answer that leads elsewhere is its own.
        let own = header("content-length").filter(|_| answer.status() == 200);
        let bytes = header("x-linked-size").or(own).and_then(|bytes| bytes.parse().ok());
        let promise = Promise { etag: etag.to_owned(), bytes, url };
        promise.check(name)?;
        Ok(promise)
    }
}

/// A file's name as a part of a URL: the folder of a module may be called anything.
fn escaped(name: &str) -> String {
    let letter = |byte: u8| match byte {
        b'/' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        _ if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    name.bytes().map(letter).collect()
}
