//! A server as a process: watched, killed, stopped and continued.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::Instant;

use crate::home::Home;
use crate::watched::Watched;
use crate::{Error, Result};

/// Far longer than a start takes, since tests share few cores.
const PATIENCE: Duration = Duration::from_secs(90);

/// A server that runs, or did.
#[derive(Debug)]
pub(crate) struct Server {
    /// Before the folder, so that the server is gone when that is removed.
    watched: Option<Watched>,
    home: Home,
}

impl Server {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { watched: None, home: Home::new()? })
    }

    pub(crate) fn home(&self) -> &Home {
        &self.home
    }

    /// Starts the command in the folder of the server.
    pub(crate) fn launch(&mut self, command: &Command) -> Result<()> {
        let program = command.get_program().to_string_lossy().into_owned();
        let failed = |error| Error::because(&format!("cannot start {program}"), error);
        let log = File::options().create(true).append(true).open(self.log()).map_err(failed)?;
        let watched = Watched::start(command, log, Some(self.home.path())).map_err(failed)?;
        self.watched = Some(watched);
        Ok(())
    }

    /// Waits until it answers; an error when it ends or takes far too long.
    pub(crate) async fn until(
        &mut self,
        what: &str,
        answers: impl AsyncFn() -> bool,
    ) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let answered = answers().await;
            let watched =
                self.watched.as_mut().ok_or_else(|| Error(format!("{what} is killed")))?;
            // Asked after the answer, which may have come from whoever else has the port.
            if !matches!(watched.ended(), Ok(None)) {
                return Err(Error(self.words(what)));
            }
            if answered {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(Error(format!("{} within {PATIENCE:?}", self.words(what))));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.watched.as_ref().map(Watched::pid)
    }

    /// Ends it and all that it started, as a loss of power would.
    pub(crate) fn kill(&mut self) {
        drop(self.watched.take());
    }

    /// Sends a signal to one process of the server.
    pub(crate) fn signal(&self, pid: Option<u32>, signal: Signal) -> Result<()> {
        let pid = pid.and_then(|pid| i32::try_from(pid).ok());
        let pid = pid.ok_or_else(|| Error("the server does not run".to_owned()))?;
        kill(Pid::from_raw(pid), signal)
            .map_err(|error| Error::because("cannot signal the server", error))
    }

    fn log(&self) -> std::path::PathBuf {
        self.home.path().join("server.log")
    }

    /// What did not come up, and the end of what it said.
    fn words(&self, what: &str) -> String {
        let text = last_lines(&self.log());
        format!("{what} did not come up; the end of what it said:\n{text}\n")
    }
}

fn last_lines(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
