//! A process that ends with whoever started it, however that ends.

use std::fs::File;
use std::io::{BufRead, BufReader, Error, Result};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// The folder that goes with a process whose owner is gone.
const HOME: &str = "EBB_SERVER_HOME";

/// Runs a process in a session of its own until it ends or the owner does, which is when our
/// standard input ends: that needs no signal, and no thread of the owner to live on.
const WATCH: &str = r#"
exec 3<&0
setsid "$@" </dev/null >&2 3<&- &
server=$!
echo "$server"
exec >/dev/null
{
  read -r _ <&3
  if [ -n "$EBB_SERVER_HOME" ]; then
    : >"$EBB_SERVER_HOME/orphaned"
  fi
  kill -KILL "-$server" "$server"
} 2>/dev/null &
watcher=$!
wait "$server"
status=$?
# What it started goes with it.
kill -KILL "-$server" 2>/dev/null
if [ -n "$EBB_SERVER_HOME" ] && [ -e "$EBB_SERVER_HOME/orphaned" ]; then
  rm -rf "$EBB_SERVER_HOME"
else
  kill -KILL "$watcher" 2>/dev/null
fi
exit "$status"
"#;

/// A process in a session of its own, and what it started there. It is killed when this is dropped,
/// and when whoever started it ends, even by a signal that nobody hears.
#[derive(Debug)]
pub struct Watched {
    watch: Child,
    /// The process and its group.
    group: Pid,
}

impl Watched {
    /// Starts the command, without input and with both of its outputs to `log`; in `home`, if there is
    /// one, which is removed as well where it is the owner that ends.
    ///
    /// # Errors
    /// When no process can be started, or it is not told which one it is.
    pub fn start(command: &Command, log: File, home: Option<&Path>) -> Result<Self> {
        let mut watch = Command::new("/bin/sh");
        watch.args(["-c", WATCH, "watch"]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => watch.env(name, value),
                None => watch.env_remove(name),
            };
        }
        match home {
            Some(home) => watch.env(HOME, home).current_dir(home),
            None => watch.env_remove(HOME),
        };
        // The keys that end a test at a terminal are not for the watch: it cleans up.
        watch.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut watch = watch.spawn()?;
        let mut line = String::new();
        let told = watch.stdout.take().expect("it was asked for");
        BufReader::new(told).read_line(&mut line)?;
        let group = line.trim().parse().map_err(|_| Error::other("it was not started"))?;
        Ok(Self { watch, group: Pid::from_raw(group) })
    }

    /// Its process, and the group of what it started.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.group.as_raw().cast_unsigned()
    }

    /// How it ended, if it has: with the status that a shell gives for it.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.watch.try_wait()
    }

    /// Asks it to end. Not to be used once it has.
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub fn terminate(&self) -> Result<()> {
        Ok(kill(self.group, Signal::SIGTERM)?)
    }
}

impl Drop for Watched {
    /// Ends it and all that it started, as a loss of power would.
    fn drop(&mut self) {
        if !matches!(self.watch.try_wait(), Ok(Some(_))) {
            // One that was started this very moment may have no group yet.
            killpg(self.group, Signal::SIGKILL).unwrap_or_default();
            kill(self.group, Signal::SIGKILL).unwrap_or_default();
        }
        // The watch ends when the process has; without its input it would do so by itself.
        let input = self.watch.stdin.take();
        drop(self.watch.wait());
        drop(input);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn log() -> File {
        tempfile::tempfile().unwrap()
    }

    fn runs(pid: u32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.starts_with(" Z"))
    }

    async fn end_of(watched: &mut Watched) -> ExitStatus {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = watched.ended().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "it does not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_process_ends_when_the_input_of_its_watch_does_and_its_home_goes_with_it() {
        let home = tempfile::tempdir().unwrap().keep();
        let mut sleep = Command::new("sleep");
        sleep.arg("600");
        for home in [None, Some(home.as_path())] {
            let mut watched = Watched::start(&sleep, log(), home).unwrap();
            assert!(runs(watched.pid()) && watched.ended().unwrap().is_none());
            // As where this process is killed.
            drop(watched.watch.stdin.take());
            end_of(&mut watched).await;
            assert!(!runs(watched.pid()));
        }
        assert!(!home.exists());
        assert!(!Path::new("/orphaned").exists());
    }

    #[tokio::test]
    async fn a_process_has_the_variables_of_its_command_and_no_others_of_ours() {
        let mut command = Command::new("/bin/sh");
        let words = r#"test -z "${HOME+set}" && test -z "${EBB_SERVER_HOME+set}" && test "$A" = b"#;
        command.args(["-c", words]).env("A", "b").env_remove("HOME");
        let mut watched = Watched::start(&command, log(), None).unwrap();
        assert!(end_of(&mut watched).await.success());
    }

    #[tokio::test]
    async fn a_process_ends_when_it_is_asked_to_and_when_its_handle_is_dropped() {
        let mut sleep = Command::new("sleep");
        sleep.arg("600");
        let mut watched = Watched::start(&sleep, log(), None).unwrap();
        watched.terminate().unwrap();
        assert_eq!(end_of(&mut watched).await.code(), Some(128 + Signal::SIGTERM as i32));
        let watched = Watched::start(&sleep, log(), None).unwrap();
        let pid = watched.pid();
        assert!(runs(pid));
        drop(watched);
        assert!(!runs(pid));
    }
}
