//! Processes that end with the test which started them.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::wait::{eventually, wait_for};

/// What a command left behind.
#[derive(Debug)]
pub struct Run {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// How it ended.
    pub status: ExitStatus,
}

/// Runs a command to its end, with `stdin` as its standard input.
pub fn run(command: &mut Command, stdin: &str) -> Run {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut input = child.stdin.take().expect("it was piped");
    let stdin = stdin.to_owned();
    let writer = std::thread::spawn(move || {
        // A command that fails early does not read its input.
        drop(input.write_all(stdin.as_bytes()));
    });
    let output = child.wait_with_output().expect("a child can be awaited");
    writer.join().expect("the writer does not panic");
    Run {
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        status: output.status,
    }
}

impl Run {
    /// Itself, after making sure that the command succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.status.success(), "failed: {self}");
        self
    }

    /// Itself, after making sure that the command failed with an exit code.
    #[track_caller]
    pub fn failed(self) -> Self {
        assert!(self.status.code().is_some_and(|code| code != 0), "did not fail: {self}");
        self
    }

    /// Standard output as JSON lines.
    #[track_caller]
    pub fn lines(&self) -> Vec<Value> {
        let parse = |line: &str| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line:?}: {self}"))
        };
        self.stdout.lines().filter(|line| !line.trim().is_empty()).map(parse).collect()
    }

    /// The JSON value on the last line of standard output.
    #[track_caller]
    pub fn json(&self) -> Value {
        let line = self.stdout.lines().rfind(|line| !line.trim().is_empty());
        let line = line.unwrap_or_else(|| panic!("no output: {self}"));
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line:?}: {self}"))
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { stdout, stderr, status } = self;
        write!(f, "{status}\n--- stdout\n{stdout}\n--- stderr\n{stderr}")
    }
}

/// A process in the background; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    output: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    /// Starts the command and keeps what it says.
    pub fn start(command: &mut Command) -> Self {
        Self::start_on(command, Stdio::null())
    }

    /// The same with a pipe to its standard input.
    pub fn start_fed(command: &mut Command) -> (Self, ChildStdin) {
        let mut process = Self::start_on(command, Stdio::piped());
        let pipe = process.child.stdin.take().expect("it was piped");
        (process, pipe)
    }

    fn start_on(command: &mut Command, stdin: Stdio) -> Self {
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let output = Arc::new(Mutex::new(String::new()));
        let stdout = child.stdout.take().expect("it was piped");
        let stderr = child.stderr.take().expect("it was piped");
        let readers = vec![keep(stdout, &output), keep(stderr, &output)];
        Self { child, output, readers }
    }

    /// All it has said so far, on both outputs.
    pub fn output(&self) -> String {
        self.output.lock().expect("a reader does not panic").clone()
    }

    /// Waits until what it says has an answer for `look`; panics when it ends before.
    #[track_caller]
    pub fn says<T>(&mut self, what: &str, mut look: impl FnMut(&str) -> Option<T>) -> T {
        let found = eventually(crate::PATIENCE, || {
            // Asked first: what it said before its end is read after that.
            let ended = !self.runs();
            if ended {
                self.hear_out();
            }
            match look(&self.output()) {
                Some(answer) => Some(Some(answer)),
                None => ended.then_some(None),
            }
        });
        found.flatten().unwrap_or_else(|| panic!("never said {what}; it said:\n{}", self.output()))
    }

    /// Waits for its last words, but not for those of a process that it started and left behind.
    fn hear_out(&self) {
        let heard = || self.readers.iter().all(JoinHandle::is_finished).then_some(());
        eventually(Duration::from_secs(10), heard);
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process id fits");
        kill(Pid::from_raw(pid), signal).expect("the child has not been reaped yet");
    }

    /// Stops it where it is, and waits until it does nothing more; [`Signal::SIGCONT`] lets it go on.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
        let tasks = format!("/proc/{}/task", self.child.id());
        wait_for("all threads to be stopped", || {
            let tasks = std::fs::read_dir(&tasks).expect("these tests run where there is /proc");
            let is_stopped = |task: std::fs::DirEntry| {
                let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                // The name before it may hold anything.
                stat.rsplit_once(')').is_none_or(|(_, rest)| rest.starts_with(" T "))
            };
            tasks.flatten().all(is_stopped).then_some(())
        });
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().expect("a child can be asked").is_none()
    }

    /// Waits for its end, and for its last words.
    #[track_caller]
    pub fn ends(&mut self) -> ExitStatus {
        let end = || self.child.try_wait().expect("a child can be asked");
        let status = wait_for("the end of a process", end);
        self.hear_out();
        status
    }
}

impl Drop for Process {
    #[allow(clippy::print_stderr, reason = "a test that fails shows what its processes said")]
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
        self.hear_out();
        if std::thread::panicking() {
            eprintln!("--- process {} said:\n{}", self.child.id(), self.output());
        }
    }
}

fn keep(pipe: impl Read + Send + 'static, output: &Arc<Mutex<String>>) -> JoinHandle<()> {
    let output = Arc::clone(output);
    std::thread::spawn(move || {
        let mut lines = BufReader::new(pipe);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&line);
            output.lock().expect("a reader does not panic").push_str(&text);
            line.clear();
        }
    })
}

/// Process ids whose command line or environment mentions the text; zombies do not count.
///
/// A test that works in a folder of its own finds with it what its processes left running.
pub fn processes_that_mention(text: &str) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").expect("these tests run where there is /proc");
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| *pid != std::process::id() && mentions(*pid, text)).collect()
}

fn mentions(pid: u32, text: &str) -> bool {
    let holds = |file: &str| {
        let page = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        page.windows(text.len()).any(|window| window == text.as_bytes())
    };
    // Both files of a zombie are empty.
    holds("cmdline") || holds("environ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_keeps_both_outputs_and_the_exit_code() {
        let ran = run(Command::new("sh").args(["-c", "cat; echo no >&2; exit 3"]), "{\"a\": 1}\n");
        let ran = ran.failed();
        assert_eq!((ran.stderr.as_str(), ran.status.code()), ("no\n", Some(3)));
        assert_eq!(ran.json()["a"], 1);
    }

    #[test]
    fn who_waits_for_the_end_of_a_process_has_its_last_words() {
        // Another holds the pipe, so that they come when it has ended.
        let script = "(sleep 1; echo last) & exit 3";
        let mut process = Process::start(Command::new("sh").args(["-c", script]));
        assert_eq!((process.ends().code(), process.output().as_str()), (Some(3), "last\n"));
    }

    #[test]
    fn a_process_is_found_by_what_it_mentions_and_ends_with_its_handle() {
        let mark = format!("ebb-mark-{}", std::process::id());
        let mut command = Command::new("sh");
        command.args(["-c", "echo up; exec sleep 600"]).env("EBB_E2E_MARK", &mark);
        let mut process = Process::start(&mut command);
        assert_eq!(process.says("up", |said| said.find("up")), 0);
        assert_eq!(processes_that_mention(&mark), [process.pid()]);
        assert!(process.runs());
        drop(process);
        assert_eq!(processes_that_mention(&mark), Vec::<u32>::new());
    }
}
