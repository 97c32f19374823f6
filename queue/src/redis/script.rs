//! The scripts, and how one is called.

use std::borrow::Cow;
use std::sync::LazyLock;
use std::time::Duration;

use redis::Cmd;

/// A script and its name on the server.
#[derive(Debug)]
pub(super) struct Script(LazyLock<Source>);

#[derive(Debug)]
struct Source {
    code: String,
    hash: String,
    keys: Keys,
}

/// Which keys a call declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keys {
    /// The stream of plain producers, and one beside it that is never there. Where the slot of a queue moves
    /// to another node of a cluster, the server looks for what is declared before a script begins, and sends
    /// the call away when a key is missing. Else it would end the script midway, at the first key that is not
    /// there, and keep what was done until then.
    OfTheQueue,
    /// The one that all is about.
    One,
}

const COMMON: &str = include_str!("scripts/common.lua");
const ADMIT: &str = include_str!("scripts/admit.lua");

impl Script {
    const fn new(source: fn() -> Source) -> Self {
        Self(LazyLock::new(source))
    }
}

impl Source {
    /// One that knows the keys of a queue.
    fn of(parts: &[&str]) -> Self {
        let layout = format!("local LAYOUT = {}", super::LAYOUT);
        let code = [&[layout.as_str(), COMMON], parts].concat().join("\n");
        Self { keys: Keys::OfTheQueue, ..Self::alone(&code) }
    }

    /// One that knows nothing of a queue.
    fn alone(code: &str) -> Self {
        let hash = redis::Script::new(code).get_hash().to_owned();
        Self { code: code.to_owned(), hash, keys: Keys::One }
    }
}

pub(super) static LAYOUT: Script =
    Script::new(|| Source::of(&[include_str!("scripts/layout.lua")]));
pub(super) static PUBLISH: Script =
    Script::new(|| Source::of(&[ADMIT, include_str!("scripts/publish.lua")]));
pub(super) static CLAIM: Script =
    Script::new(|| Source::of(&[ADMIT, include_str!("scripts/claim.lua")]));
pub(super) static SETTLE: Script =
    Script::new(|| Source::of(&[include_str!("scripts/settle.lua")]));
pub(super) static EXTEND: Script =
    Script::new(|| Source::of(&[include_str!("scripts/extend.lua")]));
pub(super) static DEPTH: Script = Script::new(|| Source::of(&[include_str!("scripts/depth.lua")]));
pub(super) static DEAD: Script = Script::new(|| Source::of(&[include_str!("scripts/dead.lua")]));
pub(super) static STATE: Script = Script::new(|| Source::of(&[include_str!("scripts/state.lua")]));
pub(super) static CANCEL: Script =
    Script::new(|| Source::of(&[include_str!("scripts/cancel.lua")]));
pub(super) static PURGE: Script = Script::new(|| Source::of(&[include_str!("scripts/purge.lua")]));
pub(super) static PUT: Script = Script::new(|| Source::of(&[include_str!("scripts/put.lua")]));
pub(super) static CHUNK: Script = Script::new(|| Source::of(&[include_str!("scripts/chunk.lua")]));
pub(super) static FRAMES: Script =
    Script::new(|| Source::of(&[include_str!("scripts/frames.lua")]));
pub(super) static REPORT: Script =
    Script::new(|| Source::of(&[include_str!("scripts/report.lua")]));
pub(super) static WORKERS: Script =
    Script::new(|| Source::of(&[include_str!("scripts/workers.lua")]));

pub(super) static REPLY: Script = Script::new(|| Source::alone(include_str!("scripts/reply.lua")));
pub(super) static GROUP: Script = Script::new(|| Source::alone(include_str!("scripts/group.lua")));

/// One call of a script, with its arguments in order.
#[derive(Debug)]
pub(super) struct Call<'a> {
    script: &'static Script,
    is_reading: bool,
    args: Vec<Cow<'a, [u8]>>,
}

impl<'a> Call<'a> {
    pub(super) fn new(script: &'static Script) -> Self {
        Self { script, is_reading: false, args: Vec::new() }
    }

    pub(super) fn text(self, text: impl Into<String>) -> Self {
        self.bytes(text.into().into_bytes())
    }

    pub(super) fn bytes(mut self, bytes: impl Into<Cow<'a, [u8]>>) -> Self {
        self.args.push(bytes.into());
        self
    }

    pub(super) fn number(self, number: impl std::fmt::Display) -> Self {
        self.text(number.to_string())
    }

    /// A number that may be missing.
    pub(super) fn maybe(self, number: Option<impl std::fmt::Display>) -> Self {
        self.text(number.map(|number| number.to_string()).unwrap_or_default())
    }

    /// A span, in milliseconds.
    pub(super) fn span(self, span: Duration) -> Self {
        // A thousand years are as good as for ever, and scripts can count to there.
        self.number(span.as_millis().min(1 << 45))
    }

    /// The same, for a script that only reads: the server holds it to that.
    pub(super) fn reading(mut self) -> Self {
        self.is_reading = true;
        self
    }

    /// The command that names the script, which the server may not know yet.
    pub(super) fn by_name(&self, inbox: &str) -> Cmd {
        let verb = if self.is_reading { "EVALSHA_RO" } else { "EVALSHA" };
        self.command(verb, &self.script.0.hash, inbox)
    }

    /// The command that brings the script along.
    pub(super) fn in_full(&self, inbox: &str) -> Cmd {
        let verb = if self.is_reading { "EVAL_RO" } else { "EVAL" };
        self.command(verb, &self.script.0.code, inbox)
    }

    fn command(&self, verb: &str, script: &str, inbox: &str) -> Cmd {
        let mut command = redis::cmd(verb);
        match self.script.0.keys {
            Keys::OfTheQueue => command.arg(script).arg(2).arg(inbox).arg(format!("{inbox}:none")),
            Keys::One => command.arg(script).arg(1).arg(inbox),
        };
        for arg in &self.args {
            command.arg(&**arg);
        }
        command
    }
}
