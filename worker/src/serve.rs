//! Which queues a worker serves, and with which models.

use std::path::Path;
#[cfg(feature = "cpu")]
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, ensure};
#[cfg(feature = "cpu")]
use ebb_model::{DeviceChoice, ModelKind};
use ebb_queue::QueueUrl;

use crate::config::WorkerArgs;

/// The most pairs of `--serve`.
const MOST: usize = 32;

/// A queue, and a model for its jobs: `QUEUE=MODEL`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeEntry {
    /// The queue's name.
    pub queue: String,
    /// A directory, `sentinel` or `echo`.
    pub model: String,
}

impl FromStr for ServeEntry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((queue, model)) if !queue.is_empty() && !model.is_empty() => {
                Ok(Self { queue: queue.to_owned(), model: model.to_owned() })
            }
            _ => Err("use QUEUE=MODEL, such as embeddings=/models/minilm".to_owned()),
        }
    }
}

/// A queue to be served.
#[derive(Debug)]
pub(crate) struct QueuePlan {
    pub(crate) url: QueueUrl,
    /// The models by their names, of which no two are the same.
    pub(crate) models: Vec<(String, ModelChoice)>,
    /// Device and models, in words.
    pub(crate) words: String,
}

impl QueuePlan {
    /// Whether a model of it publishes alerts.
    pub(crate) fn alerts(&self) -> bool {
        self.models.iter().any(|(_, model)| model.alerts())
    }
}

/// Which model, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ModelChoice {
    Echo {
        batch: Duration,
        item: Duration,
        memory: Option<usize>,
    },
    /// `None` is the one that comes with Ebb.
    #[cfg(feature = "cpu")]
    Sentinel(Option<PathBuf>, DeviceChoice),
    #[cfg(feature = "cpu")]
    Encoder(PathBuf, DeviceChoice),
    #[cfg(feature = "cpu")]
    Classifier(PathBuf, DeviceChoice),
    #[cfg(feature = "cpu")]
    Reranker(PathBuf, DeviceChoice),
    #[cfg(feature = "cpu")]
    Tagger(PathBuf, DeviceChoice),
    #[cfg(feature = "cpu")]
    Generator(PathBuf, DeviceChoice),
}

impl ModelChoice {
    /// Whether it publishes alerts.
    pub(crate) fn alerts(&self) -> bool {
        match self {
            Self::Echo { .. } => false,
            #[cfg(feature = "cpu")]
            Self::Encoder(..)
            | Self::Classifier(..)
            | Self::Reranker(..)
            | Self::Tagger(..)
            | Self::Generator(..) => false,
            #[cfg(feature = "cpu")]
            Self::Sentinel(..) => true,
        }
    }
}

impl WorkerArgs {
    /// The pairs of `--serve`; one without a queue for a `--model`.
    pub(crate) fn entries(&self) -> anyhow::Result<Vec<(Option<&str>, &str)>> {
        let missing = "--model is missing; use a model's directory, sentinel or echo";
        // One that is set to nothing, as a patch of a ConfigMap may do it, is none.
        match self.model.as_deref().filter(|model| !model.is_empty()) {
            Some(model) => {
                ensure!(
                    self.serve.is_empty(),
                    "--model and --serve are both given; name every model with --serve QUEUE=MODEL"
                );
                Ok(vec![(None, model)])
            }
            None => {
                ensure!(!self.serve.is_empty(), missing);
                ensure!(self.serve.len() <= MOST, "--serve is given more than {MOST} times");
                let pairs = self.serve.iter();
                Ok(pairs.map(|one| (Some(one.queue.as_str()), one.model.as_str())).collect())
            }
        }
    }

    /// The queues in the order in which they are named first, each with its models.
    pub(crate) fn queue_plans(
        &self,
        url: &QueueUrl,
        entries: Vec<(Option<&str>, &str)>,
    ) -> anyhow::Result<Vec<QueuePlan>> {
        let mut plans: Vec<QueuePlan> = Vec::new();
        for (queue, model) in entries {
            let flag = if queue.is_some() { "--serve" } else { "--model" };
            let url = queue.map_or_else(|| Ok(url.clone()), |name| url.with_queue(name));
            let url = url.with_context(|| format!("{flag} {}", queue.unwrap_or_default()))?;
            let place = plans.iter().position(|plan| plan.url == url).unwrap_or_else(|| {
                plans.push(QueuePlan { url, models: Vec::new(), words: String::new() });
                plans.len() - 1
            });
            let (name, choice) = (name_of(model.as_ref()), self.choose(flag, model)?);
            let plan = &mut plans[place];
            ensure!(
                plan.models.iter().all(|(other, _)| *other != name),
                "{flag}: queue {} has two models called {name}; a job could not choose",
                plan.url.queue
            );
            plan.models.push((name, choice));
        }
        for plan in &mut plans {
            let names: Vec<&str> = plan.models.iter().map(|(name, _)| name.as_str()).collect();
            plan.words = format!("{} on {}", names.join(", "), self.device.device);
        }
        Ok(plans)
    }

    fn choose(&self, flag: &str, model: &str) -> anyhow::Result<ModelChoice> {
        match model {
            "echo" => Ok(ModelChoice::Echo {
                batch: self.echo_batch,
                item: self.echo_item,
                memory: self.echo_memory,
            }),
            #[cfg(feature = "cpu")]
            "sentinel" => Ok(ModelChoice::Sentinel(None, self.device.choice()?)),
            other => self.model_in(flag, Path::new(other)),
        }
    }

    #[cfg(feature = "cpu")]
    fn model_in(&self, flag: &str, dir: &Path) -> anyhow::Result<ModelChoice> {
        let shown = dir.display();
        ensure!(dir.is_dir(), "{flag} {shown}: no such directory; fetch it with ebb model pull");
        let device = self.device.choice()?;
        match ebb_model::recognise(dir).with_context(|| format!("{flag} {shown}"))? {
            ModelKind::Encoder => Ok(ModelChoice::Encoder(dir.to_owned(), device)),
            ModelKind::Classifier => Ok(ModelChoice::Classifier(dir.to_owned(), device)),
            ModelKind::Reranker => Ok(ModelChoice::Reranker(dir.to_owned(), device)),
            ModelKind::Tagger => Ok(ModelChoice::Tagger(dir.to_owned(), device)),
            ModelKind::Generator => Ok(ModelChoice::Generator(dir.to_owned(), device)),
            ModelKind::Sentinel => Ok(ModelChoice::Sentinel(Some(dir.to_owned()), device)),
            other => anyhow::bail!("{flag} {shown}: this worker cannot run a {other}"),
        }
    }

    #[cfg(not(feature = "cpu"))]
    fn model_in(&self, flag: &str, dir: &Path) -> anyhow::Result<ModelChoice> {
        anyhow::bail!("{flag} {}: this build has only echo", dir.display())
    }
}

/// What a model is called: the last part of its path as it was given, whatever a link leads to. In
/// the caches of `ebb model pull` and of the hub, whose last part may be a revision, it is the name
/// that the model has in the hub, without its owner.
pub(crate) fn name_of(model: &Path) -> String {
    // `.` and `..` are nobody's name.
    let place = if model.file_name().is_none() { model.canonicalize().ok() } else { None };
    let place = place.as_deref().unwrap_or(model);
    let name = place.file_name().unwrap_or(model.as_os_str()).to_string_lossy();
    let repository = repository_of(place);
    without_owner(repository.as_deref().unwrap_or(&name)).to_owned()
}

/// `OWNER--NAME` of `models--OWNER--NAME/snapshots/REVISION`.
fn repository_of(snapshot: &Path) -> Option<String> {
    let snapshots = snapshot.parent().filter(|parent| parent.ends_with("snapshots"))?;
    let repository = snapshots.parent()?.file_name()?.to_str()?;
    repository.strip_prefix("models--").map(str::to_owned)
}

/// The name in `OWNER--NAME`, as directories are called that hold a model of a hub.
fn without_owner(directory: &str) -> &str {
    match directory.split_once("--") {
        Some((owner, name)) if !owner.is_empty() && !name.is_empty() => name,
        _ => directory,
    }
}

/// Whether a model goes by this name; a name as it stands in a hub, with its owner, will do.
pub(crate) fn is_called(asked: &str, name: &str) -> bool {
    let last = asked.rsplit_once('/').map_or(asked, |(_, last)| last);
    [asked, last, without_owner(last)].contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::check;

    const QUEUE: &[&str] = &["--queue", "sqlite:/tmp/q.db?queue=first&lease=20s"];

    #[test]
    fn queues_keep_the_options_of_the_one_url_and_models_the_order_of_the_flags() {
        let flags = ["--serve", "a=echo,b=echo"];
        let plan = check(&[QUEUE, &flags].concat()).unwrap();
        let urls: Vec<_> = plan.queues.iter().map(|queue| queue.url.to_string()).collect();
        assert_eq!(urls.len(), 2);
        for (url, name) in urls.iter().zip(["a", "b"]) {
            assert!(
                url.contains(&format!("queue={name}")) && url.contains("lease=20000ms"),
                "{url}"
            );
        }
        let plan = check(&[QUEUE, &["--model", "echo"]].concat()).unwrap();
        assert_eq!(plan.queues[0].url.queue.as_str(), "first");
    }

    #[test]
    fn a_model_is_called_as_its_path_says_and_in_a_cache_as_in_the_hub() {
        for (path, name) in [
            ("echo", "echo"),
            ("/models/v1/minilm", "minilm"),
            ("models/v2/minilm/", "minilm"),
            ("models/sentence-transformers--all-MiniLM-L6-v2", "all-MiniLM-L6-v2"),
            ("hub/models--org--tiny/snapshots/0f1e2d3c", "tiny"),
            ("hub/models--gpt2/snapshots/0f1e2d3c", "gpt2"),
            ("snapshots/0f1e2d3c", "0f1e2d3c"),
            ("--tiny", "--tiny"),
        ] {
            assert_eq!(name_of(path.as_ref()), name, "{path}");
        }
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("2024-11-01"), folder.path().join("stable"));
        std::fs::create_dir(&target).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert_eq!(name_of(&link), "stable", "whatever a link leads to");
        assert_eq!(name_of(&target.join("../2024-11-01/.")), "2024-11-01");
        let inner = target.join("weights");
        std::fs::create_dir(&inner).unwrap();
        assert_eq!(name_of(&inner.join("..")), "2024-11-01");
    }

    #[test]
    fn a_job_may_name_the_owner_too() {
        for asked in ["tiny", "org/tiny", "org--tiny", "hub/org/tiny"] {
            assert!(is_called(asked, "tiny"), "{asked}");
        }
        for asked in ["", "tin", "tiny/", "tiny--large"] {
            assert!(!is_called(asked, "tiny"), "{asked}");
        }
    }

    #[test]
    fn an_empty_model_is_none() {
        let plan = check(&[QUEUE, &["--model", "", "--serve", "a=echo"]].concat()).unwrap();
        assert_eq!(plan.queues[0].url.queue.as_str(), "a");
        let error = check(&[QUEUE, &["--model", ""]].concat()).unwrap_err();
        assert!(error.contains("--model is missing"), "{error}");
    }

    #[test]
    fn what_is_wrong_with_a_pair_is_named() {
        for (pair, says) in [
            ("=echo", "use QUEUE=MODEL"),
            ("a=", "use QUEUE=MODEL"),
            ("a queue=echo", "--serve a queue"),
            ("a=echo,a=echo", "queue a has two models called echo"),
            ("a=/no/such/model", "--serve /no/such/model"),
        ] {
            let error = check(&[QUEUE, &["--serve", pair]].concat()).expect_err(says);
            assert!(error.contains(says), "{pair}: {error}");
        }
        let many = vec!["a=echo"; 33].join(",");
        let error = check(&[QUEUE, &["--serve", &many]].concat()).unwrap_err();
        assert!(error.contains("more than 32 times"), "{error}");
    }
}
