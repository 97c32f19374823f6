//! Worker processes: as many as are wanted, started, watched, and stopped in peace.
//!
//! A worker holds the read end of a pipe whose write end is ours, and stops when it closes: however
//! this process ends, no worker outlives it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use ebb_queue::{Phase, Queue, QueueUrl, WorkerStatus};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::autoscaler::driver::View as Wanted;

/// A log longer than this begins anew with the next worker.
const LONGEST_LOG: u64 = 8 << 20;

/// How workers are started and stopped.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The binary.
    pub(crate) program: PathBuf,
    /// Its arguments; the worker's name and address come behind them.
    pub(crate) args: Vec<OsString>,
    /// Where its jobs are. Told by the environment: other users may read arguments.
    pub(crate) queue: QueueUrl,
    /// Where its answers go, when not there.
    pub(crate) results: Option<QueueUrl>,
    /// Where the workers' logs go, one file per place in the pool.
    pub(crate) logs: PathBuf,
    /// The workers' logs go to our own standard error instead.
    pub(crate) verbose: bool,
    /// How long a worker may take to stop before it is killed.
    pub(crate) grace: Duration,
}

/// The state of the pool.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// The processes that run, stopping ones included.
    pub(crate) members: Vec<Member>,
    /// The most that ran at once.
    pub(crate) peak: usize,
    /// Workers started in all.
    pub(crate) started: u64,
    /// Workers that ended though nobody had asked them to, or could not be started.
    pub(crate) crashed: u64,
    /// Why the last one did.
    pub(crate) failure: Option<String>,
}

/// A worker process.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    /// The name under which it reports.
    pub(crate) id: String,
    /// Where its probes and metrics are.
    pub(crate) listen: SocketAddr,
    /// When its process was started.
    pub(crate) started: std::time::Instant,
    /// It has been asked to stop.
    pub(crate) stopping: bool,
}

/// What the names of all workers of this process begin with.
#[must_use]
pub(crate) fn name_prefix() -> String {
    format!("local-{}-", std::process::id())
}

/// Keeps as many workers as are wanted until told to stop; then none are left.
///
/// # Errors
/// When no worker can be started at all.
pub(crate) async fn run(
    settings: Settings,
    queue: Queue,
    mut wanted: watch::Receiver<Wanted>,
    view: watch::Sender<View>,
    stop: CancellationToken,
) -> Result<()> {
    std::fs::create_dir_all(&settings.logs)
        .with_context(|| format!("cannot make the folder of logs {}", settings.logs.display()))?;
    let mut pool = Pool {
        settings,
        queue,
        members: BTreeMap::new(),
        ends: JoinSet::new(),
        backoff: Backoff::default(),
        hold: None,
        view,
    };
    loop {
        let n_wanted = wanted.borrow_and_update().replicas as usize;
        pool.reconcile(n_wanted).await?;
        tokio::select! {
            () = stop.cancelled() => break,
            changed = wanted.changed() => if changed.is_err() { break },
            Some(end) = pool.ends.join_next() => pool.ended(end)?,
            () = sleep_until(pool.hold.unwrap_or_else(Instant::now)), if pool.hold.is_some() => {
                pool.hold = None;
            }
        }
    }
    pool.drain().await
}

struct Pool {
    settings: Settings,
    queue: Queue,
    /// By place, from 1; the smallest free place is taken first.
    members: BTreeMap<usize, Running>,
    ends: JoinSet<(usize, std::io::Result<ExitStatus>)>,
    backoff: Backoff,
    /// No worker is started before this moment.
    hold: Option<Instant>,
    view: watch::Sender<View>,
}

struct Running {
    member: Member,
    stop: CancellationToken,
    log: PathBuf,
    /// Where in the log this worker's own lines begin.
    log_begin: u64,
}

impl Pool {
    async fn reconcile(&mut self, n_wanted: usize) -> Result<()> {
        let n_kept = self.members.values().filter(|running| !running.member.stopping).count();
        if n_kept < n_wanted && self.hold.is_none() {
            for _ in n_kept..n_wanted {
                let Err(error) = self.start() else { continue };
                // A system short of something for a moment is no reason to end those that work.
                if self.view.borrow().started == 0 {
                    return Err(error);
                }
                self.failed(&format!("a worker was not started: {error:#}"), Duration::ZERO);
                break;
            }
        } else if n_kept > n_wanted {
            // A queue that does not answer is no reason to keep workers that nobody wants.
            let statuses = self.queue.workers().await.unwrap_or_default();
            for place in self.victims(n_kept - n_wanted, &statuses) {
                self.stop(place);
            }
        }
        self.show();
        Ok(())
    }

    fn start(&mut self) -> Result<()> {
        let place = (1..).find(|place| !self.members.contains_key(place));
        let place = place.expect("there are more numbers than processes");
        let n_started = self.view.borrow().started + 1;
        let id = format!("{}{n_started}", name_prefix());
        let listen = free_address().context("no free port for a worker's probes")?;
        let log = self.settings.logs.join(format!("worker-{place}.log"));
        let stop = CancellationToken::new();
        let log_begin = std::fs::metadata(&log).map_or(0, |file| file.len());
        let child = self.settings.spawn(&id, listen, &log)?;
        info!(worker = id, pid = child.id(), "worker started");
        let (grace, told) = (self.settings.grace, stop.clone());
        self.ends.spawn(async move { (place, tend(child, told, grace).await) });
        let member = Member { id, listen, started: std::time::Instant::now(), stopping: false };
        self.members.insert(place, Running { member, stop, log, log_begin });
        self.view.send_modify(|view| view.started = n_started);
        Ok(())
    }

    fn stop(&mut self, place: usize) {
        if let Some(running) = self.members.get_mut(&place) {
            running.member.stopping = true;
            running.stop.cancel();
        }
    }

    fn victims(&self, n: usize, statuses: &[WorkerStatus]) -> Vec<usize> {
        let kept = self.members.iter().filter(|(_, running)| !running.member.stopping);
        let candidates = kept.map(|(place, running)| {
            let status = statuses.iter().find(|status| status.id == running.member.id);
            Candidate {
                place: *place,
                phase: status.map(|status| status.phase),
                in_flight: status.map_or(0, |status| status.in_flight),
                started: running.member.started,
            }
        });
        cheapest(candidates.collect(), n)
    }

    fn ended(
        &mut self,
        end: Result<(usize, std::io::Result<ExitStatus>), tokio::task::JoinError>,
    ) -> Result<()> {
        let (place, status) = end.context("the watch over a worker failed")?;
        let Some(running) = self.members.remove(&place) else { return Ok(()) };
        if running.member.stopping {
            info!(worker = running.member.id, "worker stopped");
            return Ok(());
        }
        let lived = running.member.started.elapsed();
        let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        let said = self.settings.last_words(&running.log, running.log_begin);
        let words = format!("a worker ended by itself ({how}): {said}");
        let lived_seconds = lived.as_secs_f64();
        info!(worker = running.member.id, lived_seconds, "worker ended by itself");
        self.failed(&words, lived);
        Ok(())
    }

    /// A worker was lost after so long; told in words by whoever shows the view.
    fn failed(&mut self, words: &str, lived: Duration) {
        self.hold = Some(Instant::now() + self.backoff.after_crash(lived));
        self.view.send_modify(|view| {
            view.crashed += 1;
            view.failure = Some(words.to_owned());
        });
    }

    fn show(&self) {
        self.view.send_modify(|view| {
            view.members = self.members.values().map(|running| running.member.clone()).collect();
            view.peak = view.peak.max(view.members.len());
        });
    }

    async fn drain(mut self) -> Result<()> {
        let places: Vec<usize> = self.members.keys().copied().collect();
        places.into_iter().for_each(|place| self.stop(place));
        while let Some(end) = self.ends.join_next().await {
            self.ended(end)?;
            self.show();
        }
        self.show();
        Ok(())
    }
}

impl Settings {
    fn spawn(&self, id: &str, listen: SocketAddr, log: &Path) -> Result<Child> {
        let mut command = Command::new(&self.program);
        command.args(&self.args).arg("--id").arg(id).arg("--listen").arg(listen.to_string());
        command.env("EBB_QUEUE", self.queue.with_secrets());
        match &self.results {
            Some(results) => command.env("EBB_RESULTS", results.with_secrets()),
            None => command.env_remove("EBB_RESULTS"),
        };
        // Several workers in one pod: none may speak for it.
        command.env("EBB_POD_DELETION_COST", "off");
        // A group of its own: Ctrl-C on the terminal is for us, and we stop the workers in order.
        command.stdin(Stdio::piped()).process_group(0).kill_on_drop(true);
        if self.verbose {
            command.stdout(Stdio::null()).stderr(Stdio::inherit());
        } else {
            let file = open_log(log).with_context(|| format!("cannot write {}", log.display()))?;
            command.stdout(file.try_clone()?).stderr(file);
        }
        command.spawn().with_context(|| format!("cannot start {}", self.program.display()))
    }

    /// What a worker said last, or where.
    fn last_words(&self, log: &Path, begin: u64) -> String {
        if self.verbose { "its last words stand above".to_owned() } else { last_words(log, begin) }
    }
}

/// Waits for the end of a worker, and brings it about when told to.
async fn tend(
    mut child: Child,
    stop: CancellationToken,
    grace: Duration,
) -> std::io::Result<ExitStatus> {
    // Held until the end: waiting for a child closes the pipe that stayed in it.
    let _pipe = child.stdin.take();
    tokio::select! {
        status = child.wait() => return status,
        () = stop.cancelled() => {}
    }
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    // One that cannot be signalled has ended just now, and the wait below says how.
    if pid.is_none_or(|pid| kill(pid, Signal::SIGTERM).is_err()) {
        return child.wait().await;
    }
    if let Ok(status) = timeout(grace, child.wait()).await {
        return status;
    }
    child.kill().await?;
    child.wait().await
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    place: usize,
    /// None before its first report.
    phase: Option<Phase>,
    in_flight: u64,
    started: std::time::Instant,
}

/// The workers whose end costs least: those that are not ready yet, then idle ones, then those that
/// hold fewest jobs; the newest among equals. What `pod-deletion-cost` does on a cluster.
fn cheapest(mut candidates: Vec<Candidate>, n: usize) -> Vec<usize> {
    candidates.sort_by_key(|candidate| {
        let rank = match candidate.phase {
            None | Some(Phase::Starting | Phase::Draining) => 0,
            Some(Phase::Idle) => 1,
            Some(Phase::Busy) => 2,
        };
        (rank, candidate.in_flight, std::cmp::Reverse(candidate.started))
    });
    candidates.into_iter().take(n).map(|candidate| candidate.place).collect()
}

/// How long to wait before a worker is started after one crashed.
#[derive(Debug, Default)]
struct Backoff {
    crashes: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(500);
    const LONGEST: Duration = Duration::from_secs(30);
    /// One that lived this long had begun well.
    const SOUND: Duration = Duration::from_secs(60);

    fn after_crash(&mut self, lived: Duration) -> Duration {
        if lived >= Self::SOUND {
            self.crashes = 0;
        }
        let delay = Self::FIRST * 2u32.pow(self.crashes.min(10));
        self.crashes += 1;
        delay.min(Self::LONGEST)
    }
}

fn free_address() -> std::io::Result<SocketAddr> {
    // Free until somebody else takes it: the worker then ends, and the next one gets another.
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

fn open_log(path: &Path) -> std::io::Result<File> {
    let long = std::fs::metadata(path).is_ok_and(|file| file.len() > LONGEST_LOG);
    if long {
        return File::create(path);
    }
    OpenOptions::new().create(true).append(true).open(path)
}

/// The last error in what a worker wrote to its log, else its last line that says something; and
/// where the rest is.
fn last_words(log: &Path, begin: u64) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    // A log that is shorter now was begun anew.
    let own = usize::try_from(begin).ok().and_then(|begin| text.get(begin..)).unwrap_or(&text);
    let text = String::from_utf8_lossy(own);
    let lines = || text.lines().rev();
    // Behind an error about flags there are hints on help.
    let error = lines().find(|line| line.starts_with("error:"));
    let line = error.or_else(|| lines().find(|line| !line.trim().is_empty()));
    let line = line.unwrap_or("it said nothing");
    format!("{line} (log: {})", log.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(folder: &Path, program: &Path) -> Settings {
        Settings {
            program: program.to_owned(),
            args: Vec::new(),
            queue: ebb_queue::QueueUrl::sqlite(folder.join("queue.db")),
            results: None,
            logs: folder.join("logs"),
            verbose: false,
            grace: Duration::from_secs(10),
        }
    }

    #[test]
    fn those_that_cost_least_go_first() {
        let now = std::time::Instant::now();
        let candidate = |place, phase, in_flight, second| Candidate {
            place,
            phase,
            in_flight,
            started: now + Duration::from_secs(second),
        };
        let all = vec![
            candidate(1, Some(Phase::Busy), 64, 0),
            candidate(2, Some(Phase::Idle), 0, 1),
            candidate(3, Some(Phase::Busy), 3, 2),
            candidate(4, Some(Phase::Idle), 0, 3),
            candidate(5, None, 0, 4),
            candidate(6, Some(Phase::Starting), 0, 5),
        ];
        assert_eq!(cheapest(all.clone(), 6), [6, 5, 4, 2, 3, 1]);
        assert_eq!(cheapest(all, 1), [6]);
    }

    #[test]
    fn the_last_words_of_a_worker_are_its_own_and_its_error_before_any_other() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("worker-1.log");
        let before = "error: of the one before\n";
        for (own, words) in [
            ("", "it said nothing"),
            ("loading\nstarted\n\n", "started"),
            (
                "loading\nerror: no such flag\n\nFor more information, try '--help'.\n",
                "error: no such flag",
            ),
        ] {
            std::fs::write(&log, [before, own].concat()).unwrap();
            let told = last_words(&log, before.len() as u64);
            assert!(told.starts_with(&format!("{words} (log: ")), "{told}");
        }
        assert!(last_words(&log, 1 << 30).starts_with("error: no such flag"));
    }

    #[test]
    fn crashes_slow_the_pool_down_and_a_long_life_forgives_them() {
        let mut backoff = Backoff::default();
        let young = Duration::from_secs(1);
        let delays: Vec<u128> = (0..8).map(|_| backoff.after_crash(young).as_millis()).collect();
        assert_eq!(delays, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        assert_eq!(backoff.after_crash(Backoff::SOUND), Backoff::FIRST);
    }

    #[test]
    fn a_worker_whose_log_is_shown_has_no_file_that_could_be_named() {
        let dir = tempfile::tempdir().unwrap();
        let settings = |verbose| Settings { verbose, ..settings(dir.path(), Path::new("ebb")) };
        let log = dir.path().join("worker-1.log");
        assert_eq!(settings(true).last_words(&log, 0), "its last words stand above");
        std::fs::write(&log, "error: no such flag\n").unwrap();
        assert!(settings(false).last_words(&log, 0).starts_with("error: no such flag (log: "));
    }

    #[tokio::test]
    async fn a_process_that_ends_when_asked_is_not_killed() {
        let mut command = Command::new("sleep");
        let child = command.arg("60").stdin(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let stop = CancellationToken::new();
        stop.cancel();
        let status = tend(child, stop, Duration::from_secs(30)).await.unwrap();
        let signal = std::os::unix::process::ExitStatusExt::signal(&status);
        assert_eq!(signal, Some(Signal::SIGTERM as i32));
    }

    #[tokio::test]
    async fn a_process_that_does_not_end_is_killed() {
        let mut command = Command::new("sh");
        // It says so once the signal is ignored, so that the test does not come too early.
        command.args(["-c", "trap '' TERM; echo deaf; while :; do sleep 1; done"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut said = tokio::io::BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        tokio::io::AsyncBufReadExt::read_line(&mut said, &mut line).await.unwrap();
        let stop = CancellationToken::new();
        stop.cancel();
        let status = tend(child, stop, Duration::from_millis(50)).await.unwrap();
        let signal = std::os::unix::process::ExitStatusExt::signal(&status);
        assert_eq!(signal, Some(Signal::SIGKILL as i32));
    }

    #[tokio::test]
    async fn workers_that_share_a_pod_leave_its_deletion_cost_alone() {
        let dir = tempfile::tempdir().unwrap();
        let args = ["-c", r#"test "$EBB_POD_DELETION_COST" = off"#].map(Into::into).into();
        let settings = Settings { args, ..settings(dir.path(), Path::new("/bin/sh")) };
        let listen = "127.0.0.1:0".parse().unwrap();
        let mut child = settings.spawn("worker", listen, &dir.path().join("log")).unwrap();
        assert!(child.wait().await.unwrap().success());
    }

    #[tokio::test]
    async fn a_worker_that_cannot_be_started_does_not_end_those_that_run() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("worker");
        std::fs::write(&program, "#!/bin/sh\nexec sleep 60\n").unwrap();
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, executable).unwrap();
        let settings = settings(dir.path(), &program);
        let options = ebb_queue::OpenOptions::default();
        let queue = ebb_queue::open(&settings.queue, options).await.unwrap();
        let (want, wanted) = watch::channel(Wanted { replicas: 1, ..Wanted::default() });
        let (view, mut seen) = watch::channel(View::default());
        let stop = CancellationToken::new();
        let pool = tokio::spawn(run(settings, queue, wanted, view, stop.clone()));
        seen.wait_for(|view| view.members.len() == 1).await.unwrap();

        std::fs::remove_file(&program).unwrap();
        want.send_modify(|wanted| wanted.replicas = 2);
        let view = seen.wait_for(|view| view.crashed == 1).await.unwrap().clone();
        assert_eq!(view.members.len(), 1);
        assert!(view.failure.unwrap().starts_with("a worker was not started: "));
        stop.cancel();
        pool.await.unwrap().unwrap();
    }
}
