//! Real models in real worker processes: an encoder, a detector of anomalies, and where they come
//! from.

#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::fmt::Write;
use std::path::{Path, PathBuf};

use e2e::{FileServer, Process, Workplace, get, run, wait_for, workspace_root};
use serde_json::{Value, json};

/// Largest difference to the vectors that sentence-transformers made, per number.
const TOLERANCE: f64 = 1e-5;

fn tiny_bert() -> PathBuf {
    workspace_root().join("model/tests/data/tiny-bert")
}

fn worker(workplace: &Workplace, model: &str) -> Process {
    workplace.start(&["worker", "--model", model, "--listen", "127.0.0.1:0"])
}

/// Enqueues bodies as they are and waits for the results, failed ones too.
fn answers(workplace: &Workplace, bodies: &[Value]) -> Vec<Value> {
    let mut lines = String::new();
    for body in bodies {
        writeln!(lines, "{}", json!({ "body": body })).unwrap();
    }
    let mut enqueue = workplace.command("ebb", &["enqueue", "-", "--wait", "--timeout", "120s"]);
    let results = run(&mut enqueue, &lines).lines();
    assert_eq!(results.len(), bodies.len());
    results
}

fn vector(result: &Value, at: usize) -> Vec<f64> {
    assert_eq!(result["outcome"], "completed", "{result}");
    let numbers = result["body"]["data"][at]["embedding"].as_array();
    let numbers = numbers.unwrap_or_else(|| panic!("no embedding {at} in {result}"));
    numbers.iter().map(|number| number.as_f64().unwrap()).collect()
}

fn assert_near(found: &[f64], expected: &Value, what: &str) {
    let expected: Vec<f64> =
        expected.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect();
    assert_eq!(found.len(), expected.len(), "{what}");
    let far = found.iter().zip(&expected).map(|(l, r)| (l - r).abs()).fold(0.0, f64::max);
    assert!(far < TOLERANCE, "{what} is off by {far}");
}

#[test]
fn embeddings_through_the_worker_are_those_of_sentence_transformers() {
    let workplace = Workplace::new();
    let _worker = worker(&workplace, tiny_bert().to_str().unwrap());
    let reference = std::fs::read_to_string(tiny_bert().with_extension("json")).unwrap();
    let reference: Value = serde_json::from_str(&reference).unwrap();
    let text = |case: &Value| {
        case["text"].as_str().unwrap().repeat(case["repeat"].as_u64().unwrap() as usize)
    };
    let texts: Vec<String> = reference["cases"].as_array().unwrap().iter().map(text).collect();
    assert!(texts.len() > 5, "the reference has cases");

    // One text a job, all in the batches of the moment; then all texts in one job.
    let one_each: Vec<Value> = texts.iter().map(|text| json!({ "input": text })).collect();
    let results = answers(&workplace, &one_each);
    let together = &answers(&workplace, &[json!({ "input": texts })])[0];
    for (n, result) in results.iter().enumerate() {
        let expected = &reference["mean_normalised"][n];
        assert_near(&vector(result, 0), expected, &format!("text {n} in a job of its own"));
        assert_near(&vector(together, n), expected, &format!("text {n} of one job"));
        let tokens = &reference["cases"][n]["tokens"];
        assert_eq!(&result["body"]["usage"]["total_tokens"], tokens, "text {n}");
    }
}

#[test]
fn bad_bodies_among_good_ones_are_refused_alone_and_told_why() {
    let workplace = Workplace::new();
    let _worker = worker(&workplace, tiny_bert().to_str().unwrap());
    let bodies = [
        json!({"input": "a good one"}),
        json!("no JSON"),
        json!({"inputs": "misspelt"}),
        json!({"input": 7}),
        json!({"input": ["two", "texts"]}),
        json!({"input": "another good one"}),
    ];
    let results = answers(&workplace, &bodies);
    let good = [true, false, false, false, true, true];
    for ((result, good), body) in results.iter().zip(good).zip(&bodies) {
        let expected = if good { "completed" } else { "failed" };
        assert_eq!(result["outcome"], expected, "{body}: {result}");
        let told = result["error"].as_str().unwrap_or("");
        assert_eq!(told.contains("body") || told.contains("input"), !good, "{body}: {told}");
    }
    workplace.comes_to("dead", 3);
}

/// A worker of a tiny model beside the tests of the models, and its answers.
fn answers_of(model: &str, bodies: &[Value]) -> Vec<Value> {
    let workplace = Workplace::new();
    let dir = workspace_root().join("model/tests/data").join(model);
    let _worker = worker(&workplace, dir.to_str().unwrap());
    answers(&workplace, bodies)
}

#[test]
fn texts_get_labels_documents_an_order_and_words_their_entities() {
    let results = answers_of("tiny-classes-bert", &[json!({"input": "the pump"}), json!({})]);
    let scores = results[0]["body"]["data"][0]["scores"].as_array().unwrap();
    let sum: f64 = scores.iter().map(|scored| scored["score"].as_f64().unwrap()).sum();
    assert!(scores.len() == 3 && (sum - 1.0).abs() < TOLERANCE, "{}", results[0]);
    assert_eq!(results[1]["outcome"], "failed", "{}", results[1]);

    let body = json!({"query": "how warm is the pump?", "documents": ["a fox jumps", "pump"]});
    let result = &answers_of("tiny-rerank-bert", &[body])[0];
    let score = |n: usize| result["body"]["results"][n]["relevance_score"].as_f64().unwrap();
    assert!(score(0) >= score(1), "the best first: {result}");

    let result = &answers_of("tiny-tags-bert", &[json!({"input": "Ada Lovelace"})])[0];
    assert_eq!(result["body"]["data"][0]["truncated"], false, "{result}");
}

/// Enqueues lines for a queue of the workplace's broker, and waits for the results.
fn answers_on(workplace: &Workplace, queue: &str, lines: &[Value]) -> Vec<Value> {
    let url = format!("{}&queue={queue}", workplace.queue());
    let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let args = ["enqueue", "-", "--wait", "--timeout", "120s", "--queue", &url];
    run(&mut workplace.command("ebb", &args), &lines).lines()
}

#[test]
fn one_worker_serves_two_queues_with_three_models_and_mixes_none() {
    let workplace = Workplace::new();
    let dir = |model: &str| workspace_root().join("model/tests/data").join(model);
    let pair = |queue: &str, model: &str| format!("{queue}={}", dir(model).display());
    let pairs = [
        pair("embeddings", "tiny-bert"),
        pair("labels", "tiny-classes-bert"),
        pair("labels", "tiny-rerank-bert"),
    ];
    let serve = pairs.join(",");
    let args = ["worker", "--serve", &serve, "--listen", "127.0.0.1:0"];
    let mut worker = workplace.start(&args);
    let address = worker.says("its address", |said| {
        let (address, _) = said.split_once("address=")?.1.split_once(char::is_whitespace)?;
        Some(address.to_owned())
    });

    let texts = |n: usize| json!({"body": {"input": format!("the pump hums {n}")}});
    let embedded = answers_on(&workplace, "embeddings", &(0..40).map(texts).collect::<Vec<_>>());
    assert_eq!(embedded.len(), 40);
    assert!(embedded.iter().all(|one| vector(one, 0).len() == 32), "{}", embedded[0]);

    let rerank = json!({"query": "how warm?", "documents": ["a fox jumps", "pump"]});
    let asking = |model: &str, body: &Value| json!({"headers": {"ebb-model": model}, "body": body});
    let mut lines: Vec<Value> = (0..20).map(texts).collect();
    lines.extend((0..20).map(|_| asking("tiny-rerank-bert", &rerank)));
    lines.push(asking("tiny-tags-bert", &rerank));
    let results = answers_on(&workplace, "labels", &lines);
    for result in &results[..20] {
        assert_eq!(result["body"]["data"][0]["scores"].as_array().unwrap().len(), 3, "{result}");
    }
    for result in &results[20..40] {
        assert_eq!(result["body"]["results"].as_array().unwrap().len(), 2, "{result}");
        let usage = &result["body"]["usage"];
        let share = usage["batch_share"].as_f64().unwrap();
        assert!(share > 0.0 && share <= 1.0, "{usage}");
        assert!(usage["device_seconds"].as_f64().unwrap() > 0.0, "{usage}");
    }
    let told = results[40]["error"].as_str().unwrap();
    assert!(told.contains("here are tiny-classes-bert, tiny-rerank-bert"), "{told}");

    let page = get(&address, "/metrics").unwrap().body;
    for (model, n) in [("tiny-bert", 40), ("tiny-classes-bert", 20), ("tiny-rerank-bert", 20)] {
        let batched = format!("worker_batch_items_sum{{model=\"{model}\"}} {n}");
        assert!(page.lines().any(|line| line == batched), "{batched} in {page}");
        let phase = format!("worker_cold_start_seconds{{phase=\"{model} weights\"}}");
        assert!(page.contains(&phase), "{phase} in {page}");
    }
}

/// A window of sound readings of a simulated machine that has run for a while.
fn readings(workplace: &Workplace) -> Vec<[f64; 3]> {
    let file = workplace.path("sound.csv");
    let file = file.to_str().unwrap();
    let args = ["train", "sentinel", "--generate", "232", "--anomalies", "0", "--data", file];
    workplace.ebb(&args).ok();
    let table = std::fs::read_to_string(file).unwrap();
    let row = |line: &str| {
        let mut cells = line.split(',').map(|cell| cell.parse::<f64>().unwrap());
        std::array::from_fn(|_| cells.next().unwrap())
    };
    table.lines().skip(201).map(row).collect()
}

#[test]
fn an_anomaly_is_found_and_its_alert_is_a_job_of_its_own() {
    let workplace = Workplace::new();
    let _worker = worker(&workplace, "sentinel");
    let sound = readings(&workplace);
    let mut shaken = sound.clone();
    for reading in &mut shaken[20..24] {
        reading[0] += 8.0;
    }
    let bodies = [
        json!({"machine": "pump-1", "readings": sound}),
        json!({"machine": "pump-2", "readings": shaken}),
        json!({"machine": "pump-3", "readings": sound}),
    ];
    let results = answers(&workplace, &bodies);
    let found: Vec<&Value> = results.iter().map(|result| &result["body"]["anomaly"]).collect();
    assert_eq!(found, [false, true, false], "{results:?}");
    assert_eq!(results[1]["body"]["driver"], "vibration", "{}", results[1]);
    let score = |n: usize| results[n]["body"]["score"].as_f64().unwrap();
    assert!(score(1) > score(0), "{results:?}");

    let alerts = format!("{}&queue=alerts", workplace.queue());
    let depth = wait_for("the alert", || {
        let depth = workplace.ebb(&["queue", "depth", "--json", "--queue", &alerts]).ok().json();
        (depth["ready"].as_u64()? > 0).then_some(depth)
    });
    assert_eq!(depth["ready"], 1, "one anomaly, one alert: {depth}");
    // An alert is a job like any other: a worker on that queue gets it.
    let args = ["worker", "--model", "echo", "--listen", "127.0.0.1:0", "--queue", &alerts];
    let _reader = workplace.start(&args);
    let letter = wait_for("the alert in the hands of a worker", || {
        let list = workplace.ebb(&["dlq", "list", "--json", "--queue", &alerts]).ok().json();
        // The echo takes texts: an alert is none, and so it can be looked at.
        list.get(0).cloned()
    });
    let body: Value = serde_json::from_str(letter["job"]["body"].as_str().unwrap()).unwrap();
    assert_eq!(body["machine"], "pump-2", "{letter}");
    assert_eq!(body["driver"], "vibration", "{letter}");
}

#[test]
fn a_detector_of_ones_own_is_trained_with_a_score_and_runs() {
    let workplace = Workplace::new();
    let (data, model) = (workplace.path("readings.csv"), workplace.path("mine"));
    let (data, model) = (data.to_str().unwrap(), model.to_str().unwrap());
    let args = ["train", "sentinel", "--generate", "3000", "--data", data, "--out", model];
    let more = ["--epochs", "3", "--seed", "7", "--json"];
    let report = workplace.ebb(&[args.as_slice(), &more].concat()).ok().json();
    assert!(report["report"].is_object(), "{report}");
    let info = workplace.ebb(&["model", "info", model]).ok();
    assert!(info.stdout.contains("sentinel"), "{info}");
    let _worker = worker(&workplace, model);
    let window = readings(&workplace);
    let result = &answers(&workplace, &[json!({"machine": "mine", "readings": window})])[0];
    assert!(result["body"]["score"].as_f64().is_some_and(|score| score > 0.0), "{result}");
}

/// A hub with one model, served from a folder of its own.
fn hub(workplace: &Workplace, name: &str, altered: bool) -> FileServer {
    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    let root = workplace.path("served");
    let files = root.join(name).join("resolve").join(COMMIT);
    let mut names = Vec::new();
    copy(&tiny_bert(), &files, "", &mut names);
    if altered {
        let weights = files.join("model.safetensors");
        let mut bytes = std::fs::read(&weights).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&weights, bytes).unwrap();
    }
    let siblings: Vec<Value> = names.iter().map(|name| json!({ "rfilename": name })).collect();
    let answer = root.join("api/models").join(name).join("revision");
    std::fs::create_dir_all(&answer).unwrap();
    let page = json!({"id": name, "sha": COMMIT, "siblings": siblings});
    std::fs::write(answer.join("main"), page.to_string()).unwrap();
    FileServer::start(root)
}

fn copy(from: &Path, to: &Path, below: &str, names: &mut Vec<String>) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let path = format!("{below}{name}");
        if entry.path().is_dir() {
            copy(&entry.path(), &to.join(name), &format!("{path}/"), names);
        } else {
            std::fs::copy(entry.path(), to.join(name)).unwrap();
            names.push(path);
        }
    }
}

#[test]
fn a_model_is_pulled_once_and_then_runs_without_its_hub() {
    let workplace = Workplace::new();
    let hub = hub(&workplace, "tiny/bert", false);
    let mut pull = workplace.command("ebb", &["model", "pull", "tiny/bert"]);
    let directory = run(pull.env("HF_ENDPOINT", hub.url()), "").ok().stdout;
    assert!(Path::new(directory.trim()).join("model.safetensors").is_file(), "{directory}");
    let asked = hub.asked();
    assert!(asked.iter().any(|path| path.ends_with("/model.safetensors")), "{asked:?}");

    // From here on there is no hub.
    let info = workplace.ebb(&["model", "info", "tiny/bert", "--json"]).ok();
    assert!(info.json().is_object(), "{info}");
    let _worker = worker(&workplace, "tiny/bert");
    let results = answers(&workplace, &[json!({"input": "a text"})]);
    assert!(!vector(&results[0], 0).is_empty());
}

/// Runs the demo and reads its verdict, the last line of its output.
fn demo(workplace: &Workplace, args: &[&str], hub: Option<&FileServer>) -> (Value, String) {
    let args = [&["demo", "--json", "--max-replicas", "2", "--jobs", "200"], args].concat();
    let mut demo = workplace.command("ebb", &args);
    if let Some(hub) = hub {
        demo.env("HF_ENDPOINT", hub.url());
    }
    let ran = run(&mut demo, "").ok();
    let verdict = ran.json();
    for (key, expected) in [
        ("enqueued", 200),
        ("completed", 200),
        ("lost", 0),
        ("duplicated", 0),
        ("failed", 0),
        ("final_workers", 0),
    ] {
        assert_eq!(verdict[key], expected, "{key}: {ran}");
    }
    assert!((1..=2).contains(&verdict["max_workers"].as_u64().unwrap()), "{ran}");
    let moment = |key: &str| {
        let spent = verdict[key].as_f64();
        spent.filter(|ms| *ms > 0.0).unwrap_or_else(|| panic!("{key}: {ran}"))
    };
    let active = moment("first_enqueue_to_active_ms");
    let result = moment("first_enqueue_to_first_result_ms");
    assert!(active < result, "nobody answers before the pool is awake: {ran}");
    (verdict, ran.stderr)
}

#[test]
fn the_demo_without_any_network_says_so_and_runs_what_it_ships() {
    let workplace = Workplace::new();
    let (verdict, said) = demo(&workplace, &[], None);
    assert_eq!(verdict["model"], "sentinel");
    let line = said.lines().find(|line| line.contains("sentinel") && line.contains("encoder"));
    assert!(line.is_some(), "one line says what it does instead:\n{said}");
}

#[test]
fn the_demo_pulls_the_encoder_it_is_asked_for_and_finds_it_again_in_the_cache() {
    let workplace = Workplace::new();
    let hub = hub(&workplace, "tiny/bert", false);
    let (verdict, _) = demo(&workplace, &["--model", "tiny/bert"], Some(&hub));
    assert_eq!(verdict["model"], "tiny/bert");
    assert!(!hub.asked().is_empty());
    let (verdict, _) = demo(&workplace, &["--model", "tiny/bert"], None);
    assert_eq!(verdict["model"], "tiny/bert");
}

#[test]
fn weights_that_are_not_the_pinned_ones_never_become_the_demos_model() {
    let workplace = Workplace::new();
    let hub = hub(&workplace, "sentence-transformers/all-MiniLM-L6-v2", true);
    let (verdict, said) = demo(&workplace, &[], Some(&hub));
    assert_eq!(verdict["model"], "sentinel");
    assert!(said.contains("altered"), "{said}");
    let info = workplace.ebb(&["model", "info", "sentence-transformers/all-MiniLM-L6-v2"]);
    assert_eq!(info.status.code(), Some(66), "nothing of it was kept: {info}");
}

#[test]
fn the_demo_runs_the_encoder_that_is_in_the_users_cache() {
    const ENCODER: &str = "sentence-transformers/all-MiniLM-L6-v2";
    let workplace = Workplace::new();
    // The user's own caches; the network stays away.
    let own = |args: &[&str]| {
        let mut command = workplace.command("ebb", args);
        for name in ["HOME", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "EBB_CACHE"] {
            match std::env::var_os(name) {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        run(&mut command, "")
    };
    if !own(&["model", "info", ENCODER]).status.success() {
        e2e::skipped(
            "the_demo_runs_the_encoder_that_is_in_the_users_cache",
            &format!("fetch it with `ebb model pull {ENCODER}`"),
        );
        return;
    }
    let ran = own(&["demo", "--json", "--jobs", "60", "--max-replicas", "1"]).ok();
    let verdict = ran.json();
    assert_eq!(verdict["model"], ENCODER, "{ran}");
    assert_eq!((&verdict["completed"], &verdict["lost"]), (&json!(60), &json!(0)), "{ran}");
}
