//! A queue of one run, with the store of its answers where the broker keeps none.

use std::time::Duration;

use anyhow::Context;
use ebb_queue::{OpenOptions, Queue, QueueUrl, Results, TypedUrl};
use tokio::process::Command;

/// A queue, and where its answers go when not to the same broker.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// The queue of the jobs.
    pub(crate) queue: QueueUrl,
    /// The store of their answers, where it is another one.
    pub(crate) results: Option<QueueUrl>,
}

/// A place as it is named to a process of ours: by the environment, since it may hold a password.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PlaceArgs {
    /// The queue.
    #[arg(long, env = "EBB_QUEUE", hide_env_values = true, value_name = "URL")]
    queue: TypedUrl,

    /// Where answers go.
    #[arg(long, env = "EBB_RESULTS", hide_env_values = true, value_name = "URL")]
    results: Option<TypedUrl>,
}

impl PlaceArgs {
    /// The place.
    pub(crate) fn read(&self) -> anyhow::Result<Place> {
        let results = self.results.as_ref().map(|url| url.read("--results")).transpose()?;
        Ok(Place { queue: self.queue.read("--queue")?, results })
    }
}

impl Place {
    /// Opens the queue under a name that says who has it open.
    pub(crate) async fn open(&self, who: &str) -> anyhow::Result<Queue> {
        let worker = format!("bench-{who}-{}", std::process::id());
        let mut options = OpenOptions {
            worker,
            // A broker that is being restarted is not there for a while.
            connect_timeout: Duration::from_secs(30),
            ..OpenOptions::default()
        };
        if let Some(url) = &self.results {
            options.results = Some(Results(open(url, options.clone()).await?));
        }
        open(&self.queue, options).await
    }

    /// Names it to a process that takes `--queue` and `--results`.
    pub(crate) fn name_to(&self, command: &mut Command) {
        command.env("EBB_QUEUE", self.queue.with_secrets());
        match &self.results {
            Some(results) => command.env("EBB_RESULTS", results.with_secrets()),
            None => command.env_remove("EBB_RESULTS"),
        };
    }
}

async fn open(url: &QueueUrl, options: OpenOptions) -> anyhow::Result<Queue> {
    ebb_queue::open(url, options).await.with_context(|| format!("cannot open {url}"))
}
