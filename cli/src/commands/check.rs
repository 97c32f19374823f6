//! `ebb scaler check`: tries a configuration before anybody depends on it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use ebb_queue::TypedUrl;
use ebb_scaler::{Asking, CheckArgs, Checkup, Problem, ProblemKind, ProfileCheck, TriggerCheck};
use serde::Deserialize;
use serde_json::Value;

use crate::exit::{Exit, usage};
use crate::options::default_queue;
use crate::output::{self, Output, note};

/// What is tried.
#[derive(Debug, Args)]
pub(crate) struct CheckFlags {
    /// The configuration file: connection profiles, their options, and who may use them
    #[arg(long, env = "EBB_SCALER_CONFIG", hide_env_values = true, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The profile `default`, unless the file has one
    #[arg(long, env = "EBB_QUEUE", hide_env_values = true, value_name = "URL")]
    queue: Option<TypedUrl>,

    /// Files with ScaledObjects and ScaledJobs, YAML or JSON; `-` is standard input
    ///
    /// Objects of other kinds in them are passed over. The variable names one file.
    #[arg(long, env = "EBB_SCALER_SCALEDOBJECT", hide_env_values = true, value_name = "FILE")]
    #[arg(num_args = 1..)]
    scaledobject: Vec<PathBuf>,

    /// The namespace of objects that name none
    #[arg(long, env = "EBB_SCALER_NAMESPACE", hide_env_values = true, value_name = "NAME")]
    #[arg(default_value = "default")]
    namespace: String,
}

pub(crate) const HELP: &str = "\
Creates nothing. A trigger is read by the scaler's own parser and judged by its policy; what it
takes from an environment (a key that ends in FromEnv) is known to the cluster alone, and left out;
where it says what is looked at, or must be there, there is no answer, and that is no failure.

Exit codes: 0 when every profile answers and every other trigger has an answer; 2 when a file or a
trigger is wrong or denied, or no trigger is for such a scaler; 69 when a broker does not answer; 1
when a queue is missing or does not fit.

Examples:
  ebb scaler check --config scaler.toml
  ebb scaler check --config scaler.toml --scaledobject pool.yaml
  kubectl get so,sj -A -o yaml | ebb scaler check --config scaler.toml --scaledobject -";

/// Runs the command.
///
/// # Errors
/// When a file cannot be read, or the configuration is wrong.
pub(crate) async fn run(flags: CheckFlags, output: Output) -> Result<Exit> {
    let CheckFlags { config, queue, scaledobject, namespace } = flags;
    let queue = match queue {
        Some(typed) => Some(typed.read("--queue")?),
        None if config.is_none() => Some(default_queue()?),
        None => None,
    };
    let mut objects = Vec::new();
    for path in &scaledobject {
        let shown = format!("--scaledobject: {}", path.display());
        let wrong = |words: String| usage(format!("{shown}: {words}"));
        let text = read(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
        let (found, passed) = asking(&text, &namespace).map_err(wrong)?;
        objects.extend(found);
        passed.iter().for_each(note);
    }
    let checked = ebb_scaler::check(CheckArgs { config, queue, objects }).await;
    let found = checked.map_err(|error| usage(format!("{error:#}")))?;
    if output.json {
        output.json(&found)?;
    } else {
        output.line(in_words(&found))?;
    }
    if !scaledobject.is_empty() && found.triggers.is_empty() {
        return Err(usage("no trigger was tried: none is of the type external or external-push"));
    }
    Ok(exit(&found))
}

fn read(path: &Path) -> std::io::Result<String> {
    if path.as_os_str() == "-" {
        return std::io::read_to_string(std::io::stdin());
    }
    std::fs::read_to_string(path)
}

#[derive(Deserialize)]
struct Document {
    kind: String,
    metadata: Metadata,
    spec: Spec,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    namespace: Option<String>,
}

#[derive(Deserialize)]
struct Spec {
    triggers: Vec<Trigger>,
}

#[derive(Deserialize)]
struct Trigger {
    r#type: String,
    #[serde(default)]
    metadata: BTreeMap<String, Value>,
}

/// The objects in a file that have triggers for a scaler such as this one, and what is said of
/// triggers for others.
fn asking(text: &str, namespace: &str) -> Result<(Vec<Asking>, Vec<String>), String> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)
        .map_err(|error| format!("this is not YAML: {}", first_line(&error.to_string())))?;
    let (mut objects, mut passed) = (Vec::new(), Vec::new());
    for document in documents.into_iter().flat_map(members) {
        let kind = document["kind"].as_str().unwrap_or_default();
        if !["ScaledObject", "ScaledJob"].contains(&kind) {
            continue;
        }
        let document: Document = serde_json::from_value(document.clone())
            .map_err(|error| format!("this is no {kind}: {error}"))?;
        objects.push(object(document, namespace, &mut passed)?);
    }
    if objects.is_empty() {
        return Err("there is no ScaledObject and no ScaledJob in it".to_owned());
    }
    Ok((objects, passed))
}

/// `kubectl get` makes a list of what it finds.
fn members(document: Value) -> Vec<Value> {
    match document.get("items").and_then(Value::as_array) {
        Some(items) => items.clone(),
        None => vec![document],
    }
}

fn object(document: Document, namespace: &str, passed: &mut Vec<String>) -> Result<Asking, String> {
    let Document { kind, metadata: Metadata { name, namespace: own }, spec } = document;
    let namespace = own.unwrap_or_else(|| namespace.to_owned());
    let mut triggers = Vec::new();
    for (at, trigger) in spec.triggers.into_iter().enumerate() {
        if !["external", "external-push"].contains(&trigger.r#type.as_str()) {
            passed.push(format!(
                "{kind} {namespace}/{name}, trigger {at}: passed over; its type is {:?}, not external \
                 or external-push",
                trigger.r#type
            ));
            continue;
        }
        let text = |(key, value): (String, Value)| match value {
            Value::String(text) => Ok((key, text)),
            other => Err(format!(
                "{name}: spec.triggers[{at}].metadata.{key}: Kubernetes wants a text; write \
                 \"{other}\""
            )),
        };
        triggers.push((at, trigger.metadata.into_iter().map(text).collect::<Result<_, _>>()?));
    }
    Ok(Asking { kind, namespace, name, triggers })
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn exit(found: &Checkup) -> Exit {
    let problems = found.profiles.iter().filter_map(|profile| profile.problem.as_ref());
    let problems = problems.chain(found.triggers.iter().filter_map(|t| t.problem.as_ref()));
    let kinds: Vec<_> = problems.map(|problem| problem.kind).collect();
    // What only a person can mend comes first.
    let ends = [
        (ProblemKind::Refused, Exit::Usage),
        (ProblemKind::Broken, Exit::Failed),
        (ProblemKind::Unavailable, Exit::Unavailable),
    ];
    let end = ends.into_iter().find(|(kind, _)| kinds.contains(kind));
    end.map_or(Exit::Done, |(_, exit)| exit)
}

fn in_words(found: &Checkup) -> String {
    let profiles = found.profiles.iter().map(profile_words);
    profiles.chain(found.triggers.iter().map(trigger_words)).collect::<Vec<_>>().join("\n")
}

fn profile_words(profile: &ProfileCheck) -> String {
    let ProfileCheck { name, url, seconds, server, warnings, problem } = profile;
    let took = output::seconds(*seconds);
    let mut lines = vec![format!("profile {name}: {url}")];
    lines.extend(match (server, problem) {
        (Some(server), _) => Some(format!("  answers  {server}, in {took}")),
        (None, None) => Some(format!("  answers  in {took}")),
        (None, Some(_)) => None,
    });
    lines.extend(warnings.iter().map(|one| format!("  warning  {}: {}", one.code, one.text)));
    lines.extend(problem.iter().map(|Problem { words, .. }| format!("  problem  {words}")));
    lines.join("\n")
}

fn trigger_words(check: &TriggerCheck) -> String {
    let TriggerCheck { kind, namespace, name, trigger, left_out, warning, answer, problem } = check;
    let mut lines = vec![format!("{kind} {namespace}/{name}, trigger {trigger}")];
    if let Some(answer) = answer {
        let replicas = (answer.value / answer.target).ceil();
        lines.push(format!("  asks     {} of profile {}", answer.looks_at, answer.profile));
        lines.push(format!(
            "  metric   {}: {} at {} for each replica, {replicas} replicas",
            answer.metric, answer.value, answer.target
        ));
        lines.push(format!("  value    {}", answer.basis));
        lines.push(format!("  {}", answer.why));
    }
    lines.extend(warning.iter().map(|words| format!("  warning  {words}")));
    if !left_out.is_empty() {
        lines.push(format!("  left out {}: only the cluster knows", left_out.join(", ")));
    }
    if answer.is_none() && problem.is_none() {
        lines.push("  unknown  what it asks for depends on what was left out".to_owned());
    }
    if let Some(Problem { kind, words }) = problem {
        let kind = if *kind == ProblemKind::Refused { "refused " } else { "problem " };
        lines.push(format!("  {kind} {words}"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: &str = "\
apiVersion: v1
kind: Service
spec:
  ports: [1]
---
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: pool
spec:
  scaleTargetRef:
    name: worker
  triggers:
  - type: cron
    metadata: {start: a}
  - type: external-push
    metadata:
      scalerAddress: ebb:6000
      jobsPerReplica: \"5\"
---
kind: ScaledJob
metadata: {name: batch, namespace: ml}
spec: {triggers: [{type: external, metadata: {mode: waiting}}]}
";

    #[test]
    fn objects_are_found_among_others_with_the_triggers_that_are_ours() {
        let (objects, passed) = asking(POOL, "default").unwrap();
        let own = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        let expected = [
            Asking {
                kind: "ScaledObject".into(),
                namespace: "default".into(),
                name: "pool".into(),
                triggers: vec![(
                    1,
                    [("scalerAddress", "ebb:6000"), ("jobsPerReplica", "5")].map(own).into(),
                )],
            },
            Asking {
                kind: "ScaledJob".into(),
                namespace: "ml".into(),
                name: "batch".into(),
                triggers: vec![(0, [("mode", "waiting")].map(own).into())],
            },
        ];
        assert_eq!(objects, expected);
        let told = "ScaledObject default/pool, trigger 0: passed over; its type is \"cron\"";
        assert!(passed.len() == 1 && passed[0].starts_with(told), "{passed:?}");
        let list = r#"{"kind": "List", "items": [{"kind": "ScaledJob",
            "metadata": {"name": "a"}, "spec": {"triggers": []}}]}"#;
        assert_eq!(asking(list, "default").unwrap().0[0].name, "a");
    }

    #[test]
    fn a_file_that_kubernetes_would_refuse_is_told_with_its_remedy() {
        for (text, told) in [
            ("kind: Service", "there is no ScaledObject"),
            ("a: [", "this is not YAML"),
            ("kind: ScaledObject", "this is no ScaledObject: missing field `metadata`"),
            (&POOL.replace("\"5\"", "5"), "jobsPerReplica: Kubernetes wants a text; write \"5\""),
        ] {
            let words = asking(text, "default").unwrap_err();
            assert!(words.contains(told), "{words}");
        }
    }

    fn found(kinds: &[ProblemKind]) -> Checkup {
        let problem = |kind| Problem { kind, words: "words".into() };
        let answer = ebb_scaler::Answer {
            profile: "night".into(),
            queue: "embeddings".into(),
            looks_at: "queue embeddings".into(),
            metric: "ebb-jobs-embeddings".into(),
            target: 5.0,
            value: 12.0,
            active: true,
            why: "active: 12 ready".into(),
            basis: "12 ready and 0 in flight".into(),
        };
        let profile = |problem: Option<Problem>| ProfileCheck {
            name: "night".into(),
            url: "redis://host:6379?queue=jobs".into(),
            seconds: 0.012,
            server: problem.is_none().then(|| "Redis 7.0.15".into()),
            warnings: Vec::new(),
            problem,
        };
        let trigger = |problem: Option<Problem>| TriggerCheck {
            kind: "ScaledObject".into(),
            namespace: "ml".into(),
            name: "pool".into(),
            trigger: 1,
            left_out: vec!["activationJobsFromEnv".into()],
            warning: problem.is_none().then(|| "activationJobs has no effect".into()),
            answer: problem.is_none().then(|| answer.clone()),
            problem,
        };
        let mut found = Checkup { profiles: vec![profile(None)], triggers: vec![trigger(None)] };
        for kind in kinds {
            match kind {
                ProblemKind::Refused => found.triggers.push(trigger(Some(problem(*kind)))),
                kind => found.profiles.push(profile(Some(problem(*kind)))),
            }
        }
        found
    }

    #[test]
    fn what_was_found_reads_well() {
        insta::assert_snapshot!(in_words(&found(&[
            ProblemKind::Unavailable,
            ProblemKind::Refused
        ])));
    }

    #[test]
    fn the_exit_code_says_who_can_mend_it() {
        use ProblemKind::{Broken, Refused, Unavailable};
        for (kinds, expected) in [
            (&[][..], Exit::Done),
            (&[Unavailable], Exit::Unavailable),
            (&[Unavailable, Broken], Exit::Failed),
            (&[Unavailable, Broken, Refused], Exit::Usage),
        ] {
            assert_eq!(exit(&found(kinds)), expected, "{kinds:?}");
        }
    }
}
