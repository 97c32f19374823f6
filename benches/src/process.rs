//! Processes of ours: finding the binary, starting it, and waiting until it is ready.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use ebb_queue::{Phase, Queue};
use ebb_servers::Watched;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use crate::broker::Place;

/// Which binary a bench runs.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct EbbArgs {
    /// The `ebb` binary that is run [default: the one beside ebb-bench]
    #[arg(long, env = "EBB_BENCH_EBB", hide_env_values = true, value_name = "PATH")]
    ebb: Option<PathBuf>,
}

impl EbbArgs {
    /// The `ebb` binary to run.
    pub(crate) fn find(&self) -> anyhow::Result<PathBuf> {
        if let Some(path) = &self.ebb {
            anyhow::ensure!(path.is_file(), "--ebb {}: there is no such file", path.display());
            return Ok(path.clone());
        }
        let here = std::env::current_exe().context("cannot tell where ebb-bench lies")?;
        let beside = here.with_file_name(format!("ebb{}", std::env::consts::EXE_SUFFIX));
        if beside.is_file() {
            return Ok(beside);
        }
        bail!(
            "there is nothing to run at {}; build it with `cargo build --release -p ebb`, or \
             name it with --ebb PATH",
            beside.display()
        )
    }
}

/// What ends in peace has done so by then.
const PEACE: Duration = Duration::from_secs(10);

/// `ebb` on this queue.
pub(crate) fn command(ebb: &Path, place: &Place) -> Command {
    let mut command = Command::new(ebb);
    let names = std::env::vars_os().map(|(name, _)| name);
    forget(&mut command, names);
    place.name_to(&mut command);
    command
}

/// What is set for the daily work must not change what is measured.
fn forget(command: &mut Command, names: impl Iterator<Item = OsString>) {
    for name in names {
        let text = name.to_string_lossy();
        // Traces cost time, and go to who knows whom.
        if text.starts_with("EBB_") || text.starts_with("OTEL_") {
            command.env_remove(name);
        }
    }
}

/// `ebb worker` with the echo model on this queue.
pub(crate) fn worker_command(ebb: &Path, place: &Place, name: &str) -> Command {
    let mut command = command(ebb, place);
    command.args(["worker", "--model", "echo"]);
    command.args(["--id", name, "--listen", "127.0.0.1:0", "--stop-with-stdin"]);
    command
}

/// Starts a process that ends when its standard input does, and so with this one; its words to
/// `log`. One that does not is for [`watch`].
pub(crate) fn start(mut command: Command, log: &Path) -> anyhow::Result<Child> {
    let file = appended(log)?;
    let errors = file.try_clone().context("cannot share the log among processes")?;
    command.stdin(Stdio::piped()).stdout(file).stderr(errors).kill_on_drop(true);
    command.spawn().with_context(|| format!("cannot start {command:?}"))
}

/// Starts a process that knows nothing of its standard input, and ends it with this one all the same;
/// its words to `log`.
pub(crate) fn watch(command: &Command, log: &Path) -> anyhow::Result<Watched> {
    let watched = Watched::start(command.as_std(), appended(log)?, None);
    watched.with_context(|| format!("cannot start {command:?}"))
}

fn appended(log: &Path) -> anyhow::Result<File> {
    let file = File::options().create(true).append(true).open(log);
    file.with_context(|| format!("cannot write {}", log.display()))
}

/// Waits until a worker on this queue says that it is ready.
pub(crate) async fn ready(queue: &Queue, child: &mut Child, log: &Path) -> anyhow::Result<()> {
    let limit = Instant::now() + Duration::from_secs(30);
    loop {
        let workers = queue.workers().await?;
        if workers.iter().any(|worker| worker.phase == Phase::Idle) {
            return Ok(());
        }
        if let Some(status) = child.try_wait()? {
            bail!("the worker ended before it was ready ({status}): {}", tail(log));
        }
        if Instant::now() > limit {
            bail!("the worker was not ready within 30 s: {}", tail(log));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Asks a process to end, and makes it end when it does not.
pub(crate) async fn stop(mut child: Child) -> anyhow::Result<()> {
    if let Some(pid) = child.id() {
        let pid = Pid::from_raw(i32::try_from(pid).context("a process id out of range")?);
        kill(pid, Signal::SIGTERM).context("cannot signal the process")?;
    }
    if tokio::time::timeout(PEACE, child.wait()).await.is_err() {
        child.kill().await.context("cannot kill the process")?;
    }
    Ok(())
}

/// The same of one that is watched.
pub(crate) async fn end(mut watched: Watched) -> anyhow::Result<()> {
    if watched.ended()?.is_none() {
        watched.terminate().context("cannot signal the process")?;
    }
    let limit = Instant::now() + PEACE;
    while watched.ended()?.is_none() && Instant::now() < limit {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// The last lines of a log.
pub(crate) fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}

/// The processor time that a process has used; `None` where the system does not tell.
pub(crate) fn cpu_time(pid: u32) -> Option<Duration> {
    /// Ticks of a second in `/proc`, the same on all of Linux.
    const TICKS: u64 = 100;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // After the name, which may hold anything, the times are the twelfth and the thirteenth.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut time = || fields.next()?.parse::<u64>().ok();
    let ticks = time()? + time()?;
    Some(Duration::from_millis(ticks * 1_000 / TICKS))
}

/// The most memory that a process has had at once, in MiB; `None` where the system does not tell.
pub(crate) fn peak_mib(pid: u32) -> Option<f64> {
    Some(memory_kib(pid, "VmHWM:")? / 1024.0)
}

/// The memory that a process has now, in KiB; `None` where the system does not tell.
pub(crate) fn rss_kib(pid: u32) -> Option<f64> {
    memory_kib(pid, "VmRSS:")
}

fn memory_kib(pid: u32, what: &str) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(what))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// The word behind a mark in what a process says, once it is whole.
pub(crate) fn after(words: &str, mark: &str) -> Option<String> {
    let rest = &words[words.find(&format!(" {mark}"))? + mark.len() + 1..];
    let end = rest.find(char::is_whitespace)?;
    Some(rest[..end].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_knows_nothing_of_what_is_set_for_the_daily_work() {
        let mut command = Command::new("ebb");
        let set = ["EBB_TRACES", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_SDK_DISABLED", "PATH"];
        forget(&mut command, set.into_iter().map(OsString::from));
        let envs: Vec<_> = command.as_std().get_envs().collect();
        assert_eq!(
            envs,
            [(set[0].as_ref(), None), (set[1].as_ref(), None), (set[2].as_ref(), None)]
        );
    }
}
