//! A folder for one test, with a queue and caches of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::{Process, Run, binary, offline, run, wait_for};

/// A folder for one test, with a queue and caches of its own; gone with the test.
#[derive(Debug)]
pub struct Workplace {
    folder: TempDir,
    /// A queue elsewhere, and where its answers go when not there.
    elsewhere: Option<(String, Option<String>)>,
    /// Of the test's own queue.
    lease: &'static str,
}

impl Workplace {
    /// An empty folder.
    #[allow(clippy::new_without_default, reason = "a default that makes a folder would surprise")]
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("ebb-e2e-").tempdir();
        let folder = folder.expect("a temporary folder can be made");
        // So long that nobody loses a job for having to wait for a processor.
        Self { folder, elsewhere: None, lease: "60s" }
    }

    /// The same folder with leases that a test can wait for the end of.
    #[must_use]
    pub fn with_short_leases(self) -> Self {
        Self { lease: "8s", ..self }
    }

    /// The same folder with a queue on a broker, and a store of answers when that keeps none.
    #[must_use]
    pub fn on(self, queue: String, results: Option<String>) -> Self {
        Self { elsewhere: Some((queue, results)), ..self }
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The URL of the test's own queue.
    pub fn queue(&self) -> String {
        if let Some((queue, _)) = &self.elsewhere {
            return queue.clone();
        }
        format!("sqlite:{}?lease={}", self.path("queue.db").display(), self.lease)
    }

    /// A built binary that sees this folder instead of the user's, and no network.
    pub fn command(&self, name: &str, args: &[&str]) -> Command {
        let mut command = binary(name);
        offline(&mut command);
        if let Some((_, Some(results))) = &self.elsewhere {
            command.env("EBB_RESULTS", results);
        }
        command
            .args(args)
            .env("EBB_QUEUE", self.queue())
            .env("HOME", self.path("home"))
            .env("XDG_DATA_HOME", self.path("data"))
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("HF_HOME", self.path("hub"))
            .env_remove("HF_HUB_CACHE")
            .env_remove("HF_TOKEN");
        command
    }

    /// Runs `ebb` to its end.
    #[track_caller]
    pub fn ebb(&self, args: &[&str]) -> Run {
        run(&mut self.command("ebb", args), "")
    }

    /// Starts `ebb` in the background.
    pub fn start(&self, args: &[&str]) -> Process {
        Process::start(&mut self.command("ebb", args))
    }

    /// Waits until so many jobs are in a state: a result is there before its job is settled.
    #[track_caller]
    pub fn comes_to(&self, state: &str, n_jobs: u64) {
        wait_for(&format!("{n_jobs} jobs {state}"), || {
            (self.depth()[state] == n_jobs).then_some(())
        });
    }

    /// The depth of the queue, as JSON. Who looks makes no queue, so this does where nobody has.
    #[track_caller]
    pub fn depth(&self) -> Value {
        let look = || self.ebb(&["queue", "depth", "--json"]);
        let depth = look();
        if depth.status.code() == Some(2) && depth.stderr.contains("ebb queue init") {
            self.ebb(&["queue", "init"]).ok();
            return look().ok().json();
        }
        depth.ok().json()
    }
}
