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
}

impl ModelChoice {
    /// Whether it publishes alerts.
    pub(crate) fn alerts(&self) -> bool {
        match self {
            Self::Echo { .. } => false,
            #[cfg(feature = "cpu")]
            Self::Encoder(..) | Self::Classifier(..) | Self::Reranker(..) | Self::Tagger(..) => {
                false
            }
            #[cfg(feature = "cpu")]
            Self::Sentinel(..) => true,
        }
    }
}

impl WorkerArgs {
    /// The pairs of `--serve`; one without a queue for a `--model`.
    pub(crate) fn entries(&self) -> anyhow::Result<Vec<(Option<&str>, &str)>> {
        let missing = "--model is missing; use a model's directory, sentinel or echo";
        match &self.model {
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
            ModelKind::Sentinel => Ok(ModelChoice::Sentinel(Some(dir.to_owned()), device)),
            other => anyhow::bail!("{flag} {shown}: this worker cannot run a {other}"),
        }
    }

    #[cfg(not(feature = "cpu"))]
    fn model_in(&self, flag: &str, dir: &Path) -> anyhow::Result<ModelChoice> {
        anyhow::bail!("{flag} {}: this build has only echo", dir.display())
    }
}

/// What a model is called: the last part of its path.
pub(crate) fn name_of(model: &Path) -> String {
    let canonical = model.canonicalize();
    let name = canonical.as_deref().unwrap_or(model).file_name();
    name.unwrap_or(model.as_os_str()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
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
