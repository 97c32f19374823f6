//! PyTorch in a process of its own, as `benches/gpu_peers.py` speaks.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result};
use ebb_model::bert::Tokens;
use serde::Deserialize;
use serde_json::{Value, json};

/// The peers, in the order of their columns.
pub(super) const PEERS: [&str; 2] = ["eager", "compiled"];
const SCRIPT: &str = include_str!("../../gpu_peers.py");

/// The Python process, and what each peer in it said of itself: a version, or why it is missing.
pub(super) struct Peers {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
    pub(super) said: [Value; 2],
}

#[derive(Deserialize)]
pub(super) struct Forward {
    pub(super) seconds: f64,
    /// Of a single forward only.
    pub(super) vectors: Option<Vec<Vec<f32>>>,
}

impl Peers {
    pub(super) fn start(python: &Path, dir: &Path, device: &str, dtype: &str) -> Result<Self> {
        let mut child = Command::new(python)
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| {
                format!("{} does not start; name one with --python", python.display())
            })?;
        let ask = child.stdin.take().context("no pipe to python")?;
        let answers = BufReader::new(child.stdout.take().context("no pipe from python")?);
        let mut peers = Self { child, ask, answers, said: [Value::Null, Value::Null] };
        let answer = peers.call(&json!({"model": dir, "device": device, "dtype": dtype}))?;
        peers.said = PEERS.map(|peer| answer["peers"][peer].clone());
        Ok(peers)
    }

    pub(super) fn is_here(&self, peer: usize) -> bool {
        self.said[peer].get("version").is_some()
    }

    pub(super) fn forward(
        &mut self,
        peer: usize,
        batch: &[Vec<Tokens>],
        times: usize,
    ) -> Result<Forward> {
        let ids: Vec<&[u32]> = batch.iter().flatten().map(Tokens::ids).collect();
        let answer = self.call(&json!({"peer": PEERS[peer], "ids": ids, "times": times}))?;
        Ok(serde_json::from_value(answer)?)
    }

    fn call(&mut self, ask: &Value) -> Result<Value> {
        writeln!(self.ask, "{ask}")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let hint = "python ended; try `python3 benches/gpu_peers.py` by hand to see why";
        serde_json::from_str(&line).context(hint)
    }

    /// Ends the process.
    pub(super) fn end(self) -> Result<()> {
        let Self { mut child, ask, .. } = self;
        drop(ask);
        child.wait().context("python did not end")?;
        Ok(())
    }
}
