//! Peers in a Python process of their own, which answers each line of JSON with another.
//!
//! The scripts, `benches/*_peers.py`, say what is asked for and told.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result};
use ebb_model::bert::Tokens;
use serde::Deserialize;
use serde_json::{Value, json};

/// A script that speaks for two peers.
pub(crate) struct Script {
    /// Its name in `benches`.
    pub(crate) name: &'static str,
    pub(crate) text: &'static str,
    /// In the order of their columns.
    pub(crate) peers: [&'static str; 2],
}

/// The Python process, and what each peer in it said of itself: a version, or why it is missing.
pub(crate) struct Peers {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
    script: &'static Script,
    pub(crate) said: [Value; 2],
}

#[derive(Deserialize)]
pub(crate) struct Forward {
    pub(crate) seconds: f64,
    /// A script may have them of a single forward only.
    pub(crate) vectors: Option<Vec<Vec<f32>>>,
}

impl Peers {
    /// Starts the process and has it load the peers, as `ask` says.
    pub(crate) fn load(python: &Path, script: &'static Script, ask: &Value) -> Result<Self> {
        let mut child = Command::new(python)
            .args(["-c", script.text])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| {
                format!("{} does not start; name one with --python", python.display())
            })?;
        let pipe = child.stdin.take().context("no pipe to python")?;
        let answers = BufReader::new(child.stdout.take().context("no pipe from python")?);
        let mut peers = Self { child, ask: pipe, answers, script, said: Default::default() };
        let answer = peers.call(ask)?;
        peers.said = script.peers.map(|peer| answer["peers"][peer].clone());
        Ok(peers)
    }

    pub(crate) fn is_here(&self, peer: usize) -> bool {
        self.said[peer].get("version").is_some()
    }

    pub(crate) fn forward(
        &mut self,
        peer: usize,
        batch: &[Vec<Tokens>],
        times: usize,
    ) -> Result<Forward> {
        let (peer, ids) = (self.script.peers[peer], batch.iter().flatten().map(Tokens::ids));
        let ids: Vec<&[u32]> = ids.collect();
        let answer = self.call(&json!({"peer": peer, "ids": ids, "times": times}))?;
        serde_json::from_value(answer).with_context(|| format!("{peer} tells something else"))
    }

    pub(crate) fn call(&mut self, ask: &Value) -> Result<Value> {
        writeln!(self.ask, "{ask}")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let name = self.script.name;
        serde_json::from_str(&line).with_context(|| {
            format!("python ended; try `python3 benches/{name}` by hand to see why")
        })
    }

    /// Ends the process.
    pub(crate) fn end(self) -> Result<()> {
        let Self { mut child, ask, .. } = self;
        drop(ask);
        child.wait().context("python did not end")?;
        Ok(())
    }
}
