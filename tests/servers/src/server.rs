//! A server as a process: watched, killed, stopped and continued.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::time::Instant;

use crate::home::Home;
use crate::{Error, Result};

/// Far longer than a start takes, since tests share few cores.
const PATIENCE: Duration = Duration::from_secs(90);

/// Runs a server in a session of its own until it ends or the owner does, which is when our
/// standard input ends: that needs no signal, and no thread of the owner to live on.
const WATCH: &str = r#"
exec 3<&0
setsid "$@" </dev/null >&2 3<&- &
server=$!
echo "$server"
exec >/dev/null
{
  read -r _ <&3
  : >"$EBB_SERVER_HOME/orphaned"
  kill -KILL "-$server" "$server"
} 2>/dev/null &
watcher=$!
wait "$server"
status=$?
# What it started goes with it.
kill -KILL "-$server" 2>/dev/null
if [ -e "$EBB_SERVER_HOME/orphaned" ]; then
  rm -rf "$EBB_SERVER_HOME"
else
  kill -KILL "$watcher" 2>/dev/null
fi
exit "$status"
"#;

/// A server that runs, or did.
#[derive(Debug)]
pub(crate) struct Server {
    /// Before the folder, so that the server is gone when that is removed.
    watched: Option<Watched>,
    home: Home,
}

#[derive(Debug)]
struct Watched {
    watch: Child,
    /// The process and the group of the server.
    group: Pid,
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
        let mut watch = Command::new("/bin/sh");
        watch.args(["-c", WATCH, "watch"]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            watch.env(name, value.unwrap_or_default());
        }
        watch.env("EBB_SERVER_HOME", self.home.path()).current_dir(self.home.path());
        // The keys that end a test at a terminal are not for the watch: it cleans up.
        watch.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut watch = watch.spawn().map_err(failed)?;
        let mut line = String::new();
        let told = watch.stdout.take().expect("it was asked for");
        BufReader::new(told).read_line(&mut line).map_err(failed)?;
        let group = line.trim().parse().map_err(|_| Error(self.words(&program)))?;
        self.watched = Some(Watched { watch, group: Pid::from_raw(group) });
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
            if !matches!(watched.watch.try_wait(), Ok(None)) {
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
        self.watched.as_ref().map(|watched| watched.group.as_raw().cast_unsigned())
    }

    /// Ends it and all that it started, as a loss of power would.
    pub(crate) fn kill(&mut self) {
        let Some(mut watched) = self.watched.take() else { return };
        // One that has ended by itself cannot be signalled, and need not be.
        // One that was started this very moment may have no group yet.
        killpg(watched.group, Signal::SIGKILL).unwrap_or_default();
        kill(watched.group, Signal::SIGKILL).unwrap_or_default();
        // The watch ends when the server has; without its input it would do so by itself.
        let input = watched.watch.stdin.take();
        drop(watched.watch.wait());
        drop(input);
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

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn last_lines(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
