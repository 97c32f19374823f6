//! What the containers run: our binaries, their flags and variables as they tell them themselves.

use std::collections::BTreeSet;

use e2e::{Workplace, run};
use regex::Regex;
use serde_json::Value;

use crate::pods::Container;

/// A command of ours, as its help tells it.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) flags: BTreeSet<String>,
    pub(crate) variables: BTreeSet<String>,
    defaults: Vec<(String, String)>,
}

impl Program {
    fn of(workplace: &Workplace, binary: &str, words: &[&str]) -> Self {
        let args = [words, &["--help"]].concat();
        let page = run(&mut workplace.command(binary, &args), "").ok().stdout;
        let all = |pattern: &str| -> BTreeSet<String> {
            let pattern = Regex::new(pattern).unwrap();
            pattern.captures_iter(&page).map(|found| found[1].to_owned()).collect()
        };
        let default = Regex::new(r"\[env: (\w+)[^\]]*\]\s+\[default: ([^\]]+)\]").unwrap();
        let defaults = default.captures_iter(&page);
        let defaults = defaults.map(|found| (found[1].to_owned(), found[2].to_owned())).collect();
        Self {
            flags: all(r"(?m)^ +(?:-\w, |    )(--[a-z][a-z-]+)"),
            variables: all(r"\[env: (\w+)"),
            defaults,
        }
    }

    pub(crate) fn default(&self, variable: &str) -> Option<&str> {
        let found = self.defaults.iter().find(|(name, _)| name == variable);
        found.map(|(_, value)| value.as_str())
    }
}

/// The commands that images of ours run.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) worker: Program,
    pub(crate) scaler: Program,
    model_pull: Program,
    queue_init: Program,
    split: Program,
    gateway: Program,
}

impl Programs {
    pub(crate) fn load() -> Self {
        let workplace = Workplace::new();
        Self {
            worker: Program::of(&workplace, "ebb", &["worker"]),
            scaler: Program::of(&workplace, "ebb-scaler", &[]),
            model_pull: Program::of(&workplace, "ebb", &["model", "pull"]),
            queue_init: Program::of(&workplace, "ebb", &["queue", "init"]),
            split: Program::of(&workplace, "ebb", &["split"]),
            gateway: Program::of(&workplace, "ebb", &["gateway"]),
        }
    }

    /// What a container of ours runs; none for images of others.
    pub(crate) fn of(&self, container: &Container<'_>) -> Option<Result<&Program, String>> {
        let args: Vec<&str> = container.value["args"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let own_entry = container.value.get("command").is_none();
        match (container.image(), own_entry) {
            ("ebb-scaler", true) => Some(Ok(&self.scaler)),
            ("ebb-worker" | "ebb-worker-cuda", true) => Some(match args[..] {
                ["worker", ..] => Ok(&self.worker),
                ["model", "pull", ..] => Ok(&self.model_pull),
                ["queue", "init", ..] => Ok(&self.queue_init),
                ["split", ..] => Ok(&self.split),
                ["gateway", ..] => Ok(&self.gateway),
                _ => Err(format!("no test knows the command {args:?}")),
            }),
            // A script of the image's shell.
            ("ebb-worker" | "ebb-worker-cuda", false) => Some(Ok(&self.model_pull)),
            (name, _) if name.starts_with("ebb") => Some(Err(format!("no stage makes `{name}`"))),
            _ => None,
        }
    }
}

/// The flags and variables that a container gives to its program and that it does not know.
pub(crate) fn unknown(
    program: &Program,
    container: &Container<'_>,
    variables: &[&str],
) -> Vec<String> {
    let mut found = Vec::new();
    let args = container.value["args"].as_array().into_iter().flatten();
    if container.value.get("command").is_none() {
        let flags = args.filter_map(Value::as_str).filter(|word| word.starts_with("--"));
        for flag in flags.map(|flag| flag.split('=').next().unwrap_or(flag)) {
            if !program.flags.contains(flag) {
                found.push(format!("there is no flag {flag}"));
            }
        }
    }
    for name in variables.iter().filter(|name| name.starts_with("EBB_")) {
        if !program.variables.contains(*name) {
            found.push(format!("there is no variable {name}"));
        }
    }
    found
}
