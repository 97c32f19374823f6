//! The worker processes of a chaos run: started, killed with -9, and started again.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;

use anyhow::{Context, bail};
use ebb_queue::Queue;
use futures::future::try_join_all;
use nix::sys::signal::Signal;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use tokio::process::Child;

use super::patience::patiently;
use super::plan::{Kill, Target};
use crate::broker::Place;
use crate::process::{start, stop, tail, worker_command};

/// How the workers of a run are started.
#[derive(Debug, Clone)]
pub(super) struct Recipe {
    /// The `ebb` binary.
    pub(super) ebb: PathBuf,
    /// The queue they serve, and where they store.
    pub(super) place: Place,
    /// Their largest batch: small, so that many batches are cut in two by a kill.
    pub(super) max_items: usize,
    /// Where their words go.
    pub(super) log: PathBuf,
}

/// A fixed number of workers, whatever happens to them.
#[derive(Debug)]
pub(super) struct Fleet {
    recipe: Recipe,
    workers: Vec<Worker>,
    n_started: usize,
    n_crashed: usize,
}

#[derive(Debug)]
struct Worker {
    name: String,
    child: Child,
}

/// A worker that ends this often without being killed is broken, and no run of ours.
const MAX_CRASHES: usize = 20;

impl Fleet {
    /// Starts `n_workers`.
    pub(super) fn start(recipe: Recipe, n_workers: usize) -> anyhow::Result<Self> {
        let mut fleet = Self { recipe, workers: Vec::new(), n_started: 0, n_crashed: 0 };
        for _ in 0..n_workers {
            let worker = fleet.spawn()?;
            fleet.workers.push(worker);
        }
        Ok(fleet)
    }

    /// Workers that ended without being killed.
    pub(super) fn n_crashed(&self) -> usize {
        self.n_crashed
    }

    /// Kills one worker as asked and sees to it that as many run as before.
    ///
    /// False when the worker had ended by itself just before.
    pub(super) async fn kill(
        &mut self,
        kill: Kill,
        queue: &Queue,
        rng: &mut StdRng,
    ) -> anyhow::Result<bool> {
        if kill.target == Target::Starting {
            // One more than the fleet needs, killed before or after it has opened the queue.
            let worker = self.spawn()?;
            tokio::time::sleep(kill.wait).await;
            return self.end(worker).await;
        }
        tokio::time::sleep(kill.wait).await;
        self.mend()?;
        let victim = match kill.target {
            Target::Holding => self.holding(queue, rng).await?,
            Target::Any | Target::Starting => None,
        };
        let victim = victim.unwrap_or_else(|| rng.random_range(0..self.workers.len()));
        let fresh = self.spawn()?;
        let worker = std::mem::replace(&mut self.workers[victim], fresh);
        self.end(worker).await
    }

    /// Starts those again that ended without being killed.
    pub(super) fn mend(&mut self) -> anyhow::Result<()> {
        for n in 0..self.workers.len() {
            let Some(status) = self.workers[n].child.try_wait()? else {
                continue;
            };
            self.n_crashed += 1;
            if self.n_crashed > MAX_CRASHES {
                let log = tail(&self.recipe.log);
                bail!("workers end by themselves, the last one with {status}:\n{log}");
            }
            self.workers[n] = self.spawn()?;
        }
        Ok(())
    }

    /// Ends all workers in peace.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        try_join_all(self.workers.into_iter().map(|worker| stop(worker.child))).await.map(drop)
    }

    fn spawn(&mut self) -> anyhow::Result<Worker> {
        self.n_started += 1;
        let name = format!("chaos-{}", self.n_started);
        let mut command = worker_command(&self.recipe.ebb, &self.recipe.place, &name);
        command.args(["--max-items", &self.recipe.max_items.to_string()]);
        let child = start(command, &self.recipe.log)?;
        Ok(Worker { name, child })
    }

    /// One that said last that it holds jobs.
    async fn holding(&self, queue: &Queue, rng: &mut StdRng) -> anyhow::Result<Option<usize>> {
        let statuses = patiently(|| queue.workers()).await?;
        let holds = |worker: &Worker| {
            statuses.iter().any(|status| status.id == worker.name && status.in_flight > 0)
        };
        let held = self.workers.iter().enumerate().filter(|(_, worker)| holds(worker));
        Ok(held.map(|(n, _)| n).choose(rng))
    }

    /// Kills a worker; one that had ended by itself counts as crashed, not as killed.
    async fn end(&mut self, mut worker: Worker) -> anyhow::Result<bool> {
        worker.child.start_kill().context("cannot kill a worker")?;
        let status = worker.child.wait().await?;
        let killed = status.signal() == Some(Signal::SIGKILL as i32);
        self.n_crashed += usize::from(!killed);
        Ok(killed)
    }
}
