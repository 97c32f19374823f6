//! What the guides show as YAML is YAML, and the real scaler takes each trigger in it.

#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::collections::HashMap;

use e2e::{Workplace, run, tracked_files, workspace_root};
use ebb_proto::keda::ScaledObjectRef;
use ebb_proto::keda::external_scaler_client::ExternalScalerClient;
use serde_json::Value;

/// A fenced block of a page.
struct Block {
    place: String,
    text: String,
}

/// The blocks of a language on all pages of `docs`.
fn blocks(language: &str) -> Vec<Block> {
    let mut found = Vec::new();
    for page in tracked_files().into_iter().filter(|path| path.starts_with("docs/")) {
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
    let mut scaler = workplace.start(&["scaler", "--listen", local, "--http-listen", local]);
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
    let mut command = std::process::Command::new("sh");
    let result = run(command.args(["-euc", &job]).env("EBB_QUEUE", workplace.queue()), "").ok();
    assert_eq!(result.json()["outcome"], "completed", "{place}");
}
