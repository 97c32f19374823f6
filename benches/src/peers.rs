//! Peers in a Python process of their own, which answers each line of JSON with another.
//!
//! The scripts, `benches/*_peers.py`, say what is asked for and told; `benches/peers.py` comes before each.
//! Whatever fails there, the bench goes on without: its figures are dashes, and it is told why.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ebb_model::bert::Tokens;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::tail;
use crate::report::{median, progress};
use crate::rounds::order;

/// A script that speaks for two peers.
pub(crate) struct Script {
    /// What comes before.
    before: &'static str,
    /// What is in its file in `benches`.
    text: &'static str,
    /// In the order of their columns.
    pub(crate) peers: [&'static str; 2],
}

impl Script {
    /// A script in Python of two peers, in the order of their columns.
    pub(crate) const fn python(text: &'static str, peers: [&'static str; 2]) -> Self {
        Self { before: BEFORE, text, peers }
    }
}

/// The peers, and what each of them said of itself: a `version`, or why it is `missing`. The first
/// `error` of one that failed later on is beside that.
pub(crate) struct Peers {
    /// `None` where there is none, or it has ended.
    python: Option<Python>,
    script: &'static Script,
    pub(crate) said: [Value; 2],
}

/// The process; it ends when this is dropped.
struct Python {
    child: Child,
    answers: BufReader<ChildStdout>,
    /// What it writes, and what it says on standard error. Gone after the process.
    folder: TempDir,
}

#[derive(Deserialize)]
pub(crate) struct Forward {
    pub(crate) seconds: f64,
    /// A script may have them of a single forward only.
    pub(crate) vectors: Option<Vec<Vec<f32>>>,
}

const ERRORS: &str = "errors.log";

/// What lets a script end with its bench, in the middle of its work too.
const BEFORE: &str = include_str!("../peers.py");

/// Between two turns, so that a peer's threads, which spin a while for more to do, take nothing from the
/// next side.
pub(crate) const REST: Duration = Duration::from_millis(300);

impl Peers {
    /// Starts the process, which writes what it does into `folder`, and has it load the peers, as `ask`
    /// says.
    pub(crate) fn load(python: &Path, script: &'static Script, folder: &Path, ask: &Value) -> Self {
        let started = Python::start(python, script, folder).and_then(|mut python| {
            let answer = python.call(ask)?;
            Ok((python, answer))
        });
        match started {
            Ok((python, answer)) => {
                let said = script.peers.map(|peer| answer["peers"][peer].clone());
                Self { python: Some(python), script, said }
            }
            Err(error) => {
                let missing = json!({ "missing": format!("{error:#}") });
                Self { python: None, script, said: [missing.clone(), missing] }
            }
        }
    }

    pub(crate) fn is_here(&self, peer: usize) -> bool {
        self.python.is_some() && self.said[peer].get("version").is_some()
    }

    /// Has a peer compute a batch so many times; `None` where it cannot.
    pub(crate) fn forward(
        &mut self,
        peer: usize,
        batch: &[Vec<Tokens>],
        times: usize,
    ) -> Option<Forward> {
        let ids: Vec<&[u32]> = batch.iter().flatten().map(Tokens::ids).collect();
        self.ask(peer, json!({"ids": ids, "times": times}))
    }

    /// Has a peer do something; `None` where it cannot, and then it is told why.
    pub(crate) fn ask<T: DeserializeOwned>(&mut self, peer: usize, mut ask: Value) -> Option<T> {
        if !self.is_here(peer) {
            return None;
        }
        ask["peer"] = self.script.peers[peer].into();
        let why = match self.python.as_mut()?.call(&ask) {
            Ok(answer) => match answer["error"].as_str() {
                Some(error) => error.to_owned(),
                None => match serde_json::from_value(answer) {
                    Ok(answer) => return Some(answer),
                    Err(error) => format!("it tells something else: {error}"),
                },
            },
            Err(error) => {
                // With the process the other peer is gone as well.
                self.python = None;
                self.failed(1 - peer, "its process is gone");
                format!("{error:#}")
            }
        };
        self.failed(peer, &why);
        None
    }

    fn failed(&mut self, peer: usize, why: &str) {
        progress(format_args!("{} failed: {why}", self.script.peers[peer]));
        let said = &mut self.said[peer];
        if said["error"].is_null() && said.is_object() {
            said["error"] = why.into();
        }
    }

    /// Ends the process.
    pub(crate) fn end(self) -> Result<()> {
        let Some(mut python) = self.python else { return Ok(()) };
        // Waiting closes its input, and so its script ends.
        python.child.wait().context("python did not end")?;
        Ok(())
    }
}

impl Python {
    fn start(python: &Path, script: &Script, folder: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("peers-").tempdir_in(folder);
        let folder = folder.context("no folder for what peers write")?;
        let errors = File::create(folder.path().join(ERRORS)).context("no room for errors")?;
        let mut child = Command::new(python)
            .arg("-c")
            .arg([script.before, script.text].join("\n"))
            // Whatever a library writes and leaves behind.
            .env("TMPDIR", folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .with_context(|| {
                format!("{} does not start; name one with --python", python.display())
            })?;
        let answers = child.stdout.take().map(BufReader::new);
        let answers = answers.expect("the standard output was asked for");
        Ok(Self { child, answers, folder })
    }

    fn call(&mut self, ask: &Value) -> Result<Value> {
        self.exchange(ask).with_context(|| {
            let words = tail(&self.folder.path().join(ERRORS));
            if words.is_empty() { "python said nothing".to_owned() } else { words }
        })
    }

    fn exchange(&mut self, ask: &Value) -> Result<Value> {
        let pipe = self.child.stdin.as_mut().expect("the standard input was asked for");
        writeln!(pipe, "{ask}").context("python ended")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(!line.is_empty(), "python ended");
        serde_json::from_str(&line).context("that is no JSON")
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        // Nobody writes into the folder when it goes. One that has ended already is as good.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What a peer said of itself, for people.
pub(crate) fn words(said: &Value) -> String {
    let text = |key: &str| said[key].as_str();
    let known = match text("version") {
        Some(version) => version.to_owned(),
        None => format!("not here: {}", text("missing").unwrap_or("no reason given")),
    };
    match text("error") {
        Some(error) => format!("{known}; failed: {error}"),
        None => known,
    }
}

/// The median rate of each side, ours first, over rounds in which all take their turn, after one that is
/// not counted. `turn` gets the round and the side; a side that has no rate in any of them has none.
pub(crate) fn in_turns(
    n_rounds: usize,
    mut turn: impl FnMut(usize, usize) -> Result<Option<f64>>,
) -> Result<[Option<f64>; 3]> {
    let mut present = vec![0, 1, 2];
    let mut rates: [Vec<f64>; 3] = Default::default();
    for round in 0..=n_rounds {
        let sides: Vec<usize> = order(round, present.len()).map(|n| present[n]).collect();
        for side in sides {
            match turn(round, side)? {
                Some(rate) if round > 0 => rates[side].push(rate),
                Some(_) => {}
                None => {
                    rates[side].clear();
                    present.retain(|other| *other != side);
                }
            }
        }
    }
    Ok(rates.map(|rates| (!rates.is_empty()).then(|| median(&rates))))
}

/// Has all sides idle for a moment.
#[allow(clippy::disallowed_methods, reason = "this thread does nothing else")]
pub(crate) fn rest() {
    std::thread::sleep(REST);
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Instant;

    use super::*;

    const PEERS: [&str; 2] = ["one", "two"];
    const SCRIPT: Script = Script { before: "", text: "", peers: PEERS };

    /// Peers that speak the language of the shell, which takes a script as python does.
    fn load(text: &str) -> Peers {
        let script = Script { before: "", text: Box::leak(text.into()), peers: PEERS };
        let (script, folder) = (Box::leak(Box::new(script)), std::env::temp_dir());
        Peers::load(Path::new("sh"), script, &folder, &json!({"model": "m"}))
    }

    /// Both peers, which are there.
    const HERE: &str =
        r#"read ask; echo '{"peers": {"one": {"version": "1"}, "two": {"version": "2"}}}'"#;

    #[test]
    fn a_python_that_ends_at_once_leaves_both_peers_out_and_its_words_are_told() {
        let mut peers = load("read ask; echo 'no such library' >&2; exit 1");
        for peer in [0, 1] {
            assert!(!peers.is_here(peer) && peers.forward(peer, &[], 1).is_none());
            let words = words(&peers.said[peer]);
            assert!(words.starts_with("not here") && words.contains("no such library"), "{words}");
        }
        peers.end().unwrap();
    }

    #[test]
    fn a_python_that_does_not_start_leaves_both_peers_out() {
        let folder = std::env::temp_dir();
        let peers = Peers::load(Path::new("/no/such/python"), &SCRIPT, &folder, &Value::Null);
        for said in &peers.said {
            let words = words(said);
            assert!(words.contains("/no/such/python") && words.contains("--python"), "{words}");
        }
    }

    #[test]
    fn a_peer_that_fails_once_is_told_of_and_asked_again() {
        let answers = [r#"{"error": "no room"}"#, r#"{"seconds": 2.5, "vectors": null}"#];
        let answers = answers.map(|answer| format!("read ask; echo '{answer}'\n")).concat();
        let mut peers = load(&format!("{HERE}\n{answers}read end"));
        assert!(peers.forward(0, &[], 1).is_none());
        assert_eq!(words(&peers.said[0]), "1; failed: no room");
        assert_eq!(peers.forward(0, &[], 1).unwrap().seconds, 2.5);
        assert_eq!(words(&peers.said[1]), "2");
        peers.end().unwrap();
    }

    #[test]
    fn a_python_that_ends_amid_its_work_takes_both_peers_with_it() {
        let mut peers = load(&format!("{HERE}\nread ask; echo 'killed by a bug' >&2; exit 7"));
        assert!(peers.is_here(0) && peers.is_here(1));
        assert!(peers.forward(0, &[], 1).is_none());
        assert!(!peers.is_here(0) && !peers.is_here(1));
        let words = [0, 1].map(|peer| words(&peers.said[peer]));
        assert!(words[0].contains("killed by a bug") && words[1].contains("gone"), "{words:?}");
        peers.end().unwrap();
    }

    #[test]
    fn a_python_ends_with_its_bench_whatever_it_is_at() {
        const TEXT: &str = r#"
print('{"peers": {}}' if sys.stdin.readline() else "", flush=True)
sys.stdin.readline(), print("1", flush=True)
while True: pass"#;
        const BUSY: Script = Script::python(TEXT, PEERS);
        let python = std::env::var_os("EBB_TEST_PYTHON").unwrap_or_else(|| "python3".into());
        let folder = std::env::temp_dir();
        let mut python = Python::start(Path::new(&python), &BUSY, &folder).unwrap();
        python.call(&Value::Null).unwrap();
        assert_eq!(python.call(&Value::Null).unwrap(), 1, "and it is busy from now on");
        drop(python.child.stdin.take());
        let (begin, mut ended) = (Instant::now(), None);
        while ended.is_none() && begin.elapsed() < Duration::from_secs(30) {
            ended = python.child.try_wait().unwrap();
            std::thread::yield_now();
        }
        assert!(ended.is_some_and(|ended| ended.success()), "{ended:?}");
    }

    #[test]
    fn what_a_peer_leaves_behind_is_gone_with_it() {
        let left = r#"read ask; left=$(mktemp -d); touch "$left/model"
            echo "{\"peers\": {\"one\": {\"version\": \"$left\"}}}"; cat > /dev/null"#;
        for is_ended in [true, false] {
            let peers = load(left);
            let left = PathBuf::from(peers.said[0]["version"].as_str().unwrap());
            assert!(left.join("model").exists(), "{left:?}");
            match is_ended {
                true => peers.end().unwrap(),
                false => drop(peers),
            }
            assert!(!left.exists(), "{left:?}");
        }
    }

    #[test]
    fn all_sides_take_their_turn_and_each_goes_first_in_some_rounds() {
        let mut turns = Vec::new();
        let rates = in_turns(3, |round, side| {
            turns.push((round, side));
            // The first is not counted.
            Ok((side != 1).then(|| if round == 0 { 1e9 } else { (10 * side + round) as f64 }))
        });
        assert_eq!(rates.unwrap(), [Some(2.0), None, Some(22.0)]);
        let counted = [(1, 2), (1, 0), (2, 0), (2, 2), (3, 2), (3, 0)];
        assert_eq!(turns, [&[(0, 0), (0, 1), (0, 2)][..], &counted].concat());
    }

    #[test]
    fn a_side_that_fails_in_a_later_round_has_no_rate() {
        let rates = in_turns(3, |round, side| Ok((side < 2 || round < 2).then_some(5.0)));
        assert_eq!(rates.unwrap(), [Some(5.0), Some(5.0), None]);
    }
}
