//! What the guides show as YAML is YAML, and the real scaler takes each trigger in it; what they show
//! as commands and programs runs.

#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::collections::HashMap;
use std::process::Command;

use e2e::{Workplace, run, tracked_files, workspace_root};
use ebb_proto::keda::ScaledObjectRef;
use ebb_proto::keda::external_scaler_client::ExternalScalerClient;
use ebb_servers::{Nats, NatsOptions};
use serde_json::Value;

/// A fenced block of a page.
struct Block {
    place: String,
    text: String,
}

/// The blocks of a language in the README and on all pages of `docs`.
fn blocks(language: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let is_guide = |path: &String| path.starts_with("docs/") || path == "README.md";
    for page in tracked_files().into_iter().filter(is_guide) {
        let text = std::fs::read_to_string(workspace_root().join(&page)).unwrap();
        let mut open: Option<Block> = None;
        for (at, line) in text.lines().enumerate() {
            let fence = line.trim_start().strip_prefix("```");
            match (fence, &mut open) {
                (Some(_), Some(_)) => found.extend(open.take()),
                (Some(of), None) => {
                    let place = format!("{page}:{}", at + 1);
                    let language = if of == language { "" } else { "other" };
                    open = Some(Block { place, text: language.to_owned() });
                }
                (None, Some(block)) if !block.text.starts_with("other") => {
                    block.text.push_str(line);
                    block.text.push('\n');
                }
                _ => {}
            }
        }
    }
    found.retain(|block| block.text != "other");
    found
}

/// Everything below a value that has the key.
fn with_key<'a>(value: &'a Value, key: &str) -> Vec<&'a Value> {
    match value {
        Value::Object(fields) => {
            let below = fields.values().flat_map(|field| with_key(field, key));
            fields.get(key).into_iter().chain(below).collect()
        }
        Value::Array(items) => items.iter().flat_map(|item| with_key(item, key)).collect(),
        _ => Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scaler_takes_every_trigger_of_the_guides() {
    let workplace = Workplace::new();
    let local = "127.0.0.1:0";
    // None of them is there: what a trigger asks for is read without its broker.
    let config = workplace.path("scaler.toml");
    let profiles = "[profiles.events]\nurl = \"nats://127.0.0.1:1\"\n\
                    [profiles.streams]\nurl = \"redis://127.0.0.1:1\"\n";
    std::fs::write(&config, profiles).unwrap();
    let config = config.to_str().unwrap();
    let listen = ["--listen", local, "--http-listen", local];
    let mut scaler = workplace.start(&[&["scaler", "--config", config], &listen[..]].concat());
    let address = scaler.says("its address", |said| {
        let rest = said.split_once("listen=")?.1;
        rest.split_once(char::is_whitespace).map(|(address, _)| address.to_owned())
    });
    let mut client = ExternalScalerClient::connect(format!("http://{address}")).await.unwrap();
    let mut n_triggers = 0;
    for Block { place, text } in blocks("yaml") {
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{place}: {error}"));
        let lists = documents.iter().flat_map(|document| with_key(document, "triggers"));
        for trigger in lists.flat_map(|list| list.as_array().unwrap()) {
            let kind = trigger["type"].as_str().unwrap();
            if !["external", "external-push"].contains(&kind) {
                continue;
            }
            let metadata = trigger["metadata"].as_object().unwrap();
            let metadata = metadata.iter().map(|(key, value)| {
                // KEDA's metadata are texts: a number without quotes is refused by the API server.
                let value = value.as_str().unwrap_or_else(|| panic!("{place}: {key} is no text"));
                (key.clone(), value.to_owned())
            });
            let object = ScaledObjectRef {
                name: "pool".to_owned(),
                namespace: "ebb-workers".to_owned(),
                scaler_metadata: metadata.collect::<HashMap<_, _>>(),
            };
            let answer = client.get_metric_spec(object).await;
            answer.unwrap_or_else(|refused| panic!("{place}: {}", refused.message()));
            n_triggers += 1;
        }
    }
    assert!(n_triggers >= 4, "the guides show triggers; found {n_triggers}");
}

#[test]
fn the_first_job_of_the_installation_is_one_that_the_workers_take() {
    let shell = blocks("sh").into_iter().find(|block| block.text.contains("enqueue --wait"));
    let Block { place, text } = shell.expect("a guide has a first job");
    let (_, job) = text.split_once("readings=").expect("it is a window of readings");
    let workplace = Workplace::new();
    let ebb = workplace.command("ebb", &[]);
    let ebb = ebb.get_program().to_str().expect("a path is text");
    let job = format!("readings={job}").replace("cargo run --release --", ebb);
    let _worker = workplace.start(&["worker", "--model", "sentinel"]);
    let mut command = Command::new("sh");
    let result = run(command.args(["-euc", &job]).env("EBB_QUEUE", workplace.queue()), "").ok();
    assert_eq!(result.json()["outcome"], "completed", "{place}");
    assert_eq!(result.json()["body"]["anomaly"], false, "{place}: nobody reads its alert");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_of_the_readme_gets_its_answer() {
    let python = blocks("python").into_iter().find(|block| block.text.contains("ebb-reply-to"));
    let Block { place, text } = python.expect("the README shows a program");
    let nats = Nats::start(NatsOptions::default()).await.unwrap();
    let workplace = Workplace::new().on(nats.url(), None);
    workplace.ebb(&["queue", "init"]).ok();
    let _worker = workplace.start(&["worker", "--model", "echo"]);
    let program = text.replace("nats://broker:4222", &nats.url());
    let python = std::env::var("EBB_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let said = run(Command::new(python).args(["-c", &program]), "").ok().stdout;
    assert_eq!(said.trim(), r#"completed {"output":"The tide turns."}"#, "{place}");
    let later = workplace.ebb(&["result", "tide-1"]).ok().json();
    assert_eq!(later["body"]["output"], "The tide turns.", "{place}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_of_the_installation_is_tried_with_the_commands_that_it_names() {
    let shell = blocks("sh").into_iter().find(|block| block.text.contains("> scaler.toml"));
    let Block { place, text } = shell.expect("a guide tries the configuration");
    let (rendering, commands) = text.split_once('\n').expect("the first line renders");
    assert!(rendering.starts_with("kubectl kustomize"), "{place}: {rendering}");
    let workplace = Workplace::new();
    let parts =
        ["deploy/components/nats/scaler/config.yaml", "deploy/base/worker/scaledobject.yaml"];
    let parts = parts.map(|part| std::fs::read_to_string(workspace_root().join(part)).unwrap());
    std::fs::write(workplace.path("all.yaml"), parts.join("---\n")).unwrap();
    std::fs::write(workplace.path("password"), "hunter2").unwrap();
    let token = Some("hunter2".to_owned());
    let nats = Nats::start(NatsOptions { token, ..NatsOptions::default() }).await.unwrap();
    let ebb = workplace.command("ebb", &[]);
    let ebb = ebb.get_program().to_str().expect("a path is text");
    let address = format!("127.0.0.1:{}", nats.port());
    let commands = commands
        .replace("\nebb ", &format!("\n{ebb} "))
        .replace("127.0.0.1:4222", &address)
        .replace("nats.nats.svc|127.0.0.1", &format!("nats.nats.svc:4222|{address}"));
    let mut shell = Command::new("sh");
    let ran = run(shell.args(["-euc", &commands]).current_dir(workplace.folder()), "").ok();
    assert!(
        ran.stdout.contains("ScaledObject ebb-workers/ebb-worker, trigger 0"),
        "{place}: {ran}"
    );
}

#[test]
fn a_trigger_with_a_misspelt_type_is_told_and_a_check_of_nothing_fails() {
    let workplace = Workplace::new();
    let object = workspace_root().join("deploy/base/worker/scaledobject.yaml");
    let text = std::fs::read_to_string(object).unwrap();
    let misspelt = workplace.path("pool.yaml");
    std::fs::write(&misspelt, text.replace("external-push", "externalpush")).unwrap();
    let check = ["scaler", "check", "--scaledobject", misspelt.to_str().unwrap()];
    let ran = workplace.ebb(&check);
    assert_eq!(ran.status.code(), Some(2), "{ran}");
    assert!(ran.stderr.contains("trigger 0: passed over; its type is \"externalpush\""), "{ran}");
    assert!(ran.stderr.contains("no trigger was tried"), "{ran}");
}
