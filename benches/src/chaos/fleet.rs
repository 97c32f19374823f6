//! The worker processes of a chaos run: started, killed with -9, and started again.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;

use anyhow::{Context, ensure};
use ebb_queue::Queue;
use futures::future::try_join_all;
use nix::sys::signal::Signal;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use tokio::process::Child;

use super::MAX_ATTEMPTS;
use super::patience::patiently;
use super::plan::{Kill, Target};
use crate::broker::Place;
use crate::process::{start, stop, tail, worker_command};
use crate::report::progress;

/// How the workers of a run are started.
#[derive(Debug, Clone)]
pub(super) struct Recipe {
    /// The `ebb` binary.
    pub(super) ebb: PathBuf,
    /// The queue they serve, and where they store.
    pub(super) place: Place,
    /// Their largest batch: small, so that many batches are cut in two by a kill.
    pub(super) max_items: usize,
    /// The folder where their words go, a file for each.
    pub(super) logs: PathBuf,
}

/// A fixed number of workers, whatever happens to them.
#[derive(Debug)]
pub(super) struct Fleet {
    recipe: Recipe,
    workers: Vec<Worker>,
    n_started: usize,
    crashes: Crashes,
}

/// Workers that ended and were not killed.
#[derive(Debug, Default)]
pub(super) struct Crashes {
    /// How many.
    pub(super) n: usize,
    /// Which was the first, and its last words.
    pub(super) first: String,
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
        let (workers, crashes) = (Vec::new(), Crashes::default());
        let mut fleet = Self { recipe, workers, n_started: 0, crashes };
        for _ in 0..n_workers {
            let worker = fleet.spawn()?;
            fleet.workers.push(worker);
        }
        Ok(fleet)
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
            if let Some(status) = self.workers[n].child.try_wait()? {
                let fresh = self.spawn()?;
                let worker = std::mem::replace(&mut self.workers[n], fresh);
                self.crashed(&worker.name, status)?;
            }
        }
        Ok(())
    }

    /// Ends all workers in peace, and tells which had ended by themselves by then.
    pub(super) async fn stop(mut self) -> anyhow::Result<Crashes> {
        self.mend()?;
        try_join_all(self.workers.into_iter().map(|worker| stop(worker.child))).await?;
        Ok(self.crashes)
    }

    /// Takes note of a worker that ended and was not killed.
    fn crashed(&mut self, name: &str, status: ExitStatus) -> anyhow::Result<()> {
        let words = format!("{name} ended by itself with {status}: {}", tail(&self.log(name)));
        progress(&words);
        self.crashes.n += 1;
        ensure!(self.crashes.n <= MAX_CRASHES, "workers end by themselves, the last one: {words}");
        if self.crashes.n == 1 {
            self.crashes.first = words;
        }
        Ok(())
    }

    fn log(&self, name: &str) -> PathBuf {
        self.recipe.logs.join(format!("{name}.log"))
    }

    fn spawn(&mut self) -> anyhow::Result<Worker> {
        self.n_started += 1;
        let name = format!("chaos-{}", self.n_started);
        let mut command = worker_command(&self.recipe.ebb, &self.recipe.place, &name);
        command.args(["--max-items", &self.recipe.max_items.to_string()]);
        command.args(["--max-attempts", &MAX_ATTEMPTS.to_string()]);
        let child = start(command, &self.log(&name))?;
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
        if !killed {
            self.crashed(&worker.name, status)?;
        }
        Ok(killed)
    }
}
