//! A generator in a real worker process: what it is asked, and what it says whole and in pieces.

#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::path::PathBuf;

use e2e::{Process, Workplace, workspace_root};
use serde_json::{Value, json};

fn tiny_llama() -> PathBuf {
    workspace_root().join("model/tests/data/tiny-llama")
}

/// What transformers made of the same model.
fn reference() -> Value {
    let text = std::fs::read_to_string(tiny_llama().with_extension("json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn worker(workplace: &Workplace) -> Process {
    workplace.start(&["worker", "--model", tiny_llama().to_str().unwrap()])
}

/// The answer to a job that does not ask for pieces.
fn whole(workplace: &Workplace, body: &Value) -> Value {
    let args = ["enqueue", &body.to_string(), "--wait", "--timeout", "60s"];
    let result = workplace.ebb(&args).ok().json();
    assert_eq!(result["outcome"], "completed", "{result}");
    result["body"].clone()
}

/// What somebody who follows the same job reads.
fn followed(workplace: &Workplace, body: &Value) -> String {
    let mut body = body.clone();
    body["stream"] = true.into();
    let args = ["enqueue", &body.to_string(), "--follow", "--timeout", "60s"];
    workplace.ebb(&args).ok().stdout
}

#[test]
fn a_conversation_is_read_as_transformers_reads_it_and_answered_whole_and_in_pieces() {
    let workplace = Workplace::new();
    let _worker = worker(&workplace);
    for chat in reference()["chats"].as_array().unwrap() {
        let body = json!({"messages": chat["messages"], "max_tokens": 40});
        let answer = whole(&workplace, &body);
        assert_eq!(answer["object"], "chat.completion");
        let n_prompt = chat["ids"].as_array().unwrap().len();
        assert_eq!(answer["usage"]["prompt_tokens"], n_prompt, "{answer}");
        let choice = &answer["choices"][0];
        let text = choice["message"]["content"].as_str().unwrap();
        // A line of a terminal ends behind it.
        assert_eq!(followed(&workplace, &body), format!("{text}\n"));
        let n_said = answer["usage"]["completion_tokens"].as_u64().unwrap();
        assert_eq!(choice["finish_reason"] == "length", n_said == 40, "{answer}");
    }
}

#[test]
fn the_likeliest_tokens_are_those_of_transformers_however_many_answers_grow_at_once() {
    let workplace = Workplace::new();
    let _worker = worker(&workplace);
    let reference = reference();
    let prompts = reference["prompts"].as_array().unwrap();
    let bodies = prompts.iter().map(|prompt| json!({"prompt": prompt["text"], "max_tokens": 80}));
    let bodies: Vec<Value> = bodies.collect();
    let alone: Vec<Value> = bodies.iter().map(|body| whole(&workplace, body)).collect();
    for (answer, prompt) in alone.iter().zip(prompts) {
        let usage = &answer["usage"];
        assert_eq!(usage["prompt_tokens"], prompt["ids"].as_array().unwrap().len(), "{answer}");
        let n_said = prompt["greedy"].as_array().unwrap().len() as u64;
        let is_whole = usage["completion_tokens"] == n_said;
        assert!(is_whole || answer["choices"][0]["finish_reason"] == "stop", "{answer}");
    }
    let lines: String = (0..12).map(|n| format!("{}\n", json!({"body": bodies[n % 4]}))).collect();
    let mut enqueue = workplace.command("ebb", &["enqueue", "-", "--wait", "--timeout", "60s"]);
    let results = e2e::run(&mut enqueue, &lines).ok().lines();
    assert_eq!(results.len(), 12);
    for (n, result) in results.iter().enumerate() {
        assert_eq!(result["body"]["choices"], alone[n % 4]["choices"], "{result}");
    }
}

#[test]
fn chance_repeats_itself_by_its_seed_and_a_wrong_field_is_refused_by_name() {
    let workplace = Workplace::new();
    let _worker = worker(&workplace);
    let said = |seed: u64| {
        let body =
            json!({"prompt": "the pump", "temperature": 1.2, "seed": seed, "max_tokens": 30});
        whole(&workplace, &body)["choices"][0]["text"].clone()
    };
    let first = said(7);
    assert_eq!(said(7), first);
    assert!((8..12).any(|seed| said(seed) != first), "chance says one thing only");

    let messages = json!([{"role": "user", "content": "hello"}]);
    for (body, told) in [
        (json!({"messages": messages, "temperature": -1}), "temperature"),
        (json!({"messages": messages, "max_tokens": 0}), "max_tokens"),
        (json!({"messages": []}), "messages"),
        (json!({"prompt": ["a", "b"]}), "prompt"),
    ] {
        let args = ["enqueue", &body.to_string(), "--wait", "--timeout", "60s"];
        let result = workplace.ebb(&args).failed().json();
        let reason = result["error"].as_str().unwrap();
        assert!(reason.contains(told), "{body}: {reason}");
    }
}
