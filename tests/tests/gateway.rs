//! The gateway's real process before real workers: OpenAI's API on the embedded queue and on a broker.

#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::net::TcpStream;
use std::process::Command;

use e2e::{Answer, Process, Reading, Workplace, ask, get, run, skipped, wait_for, workspace_root};
use ebb_servers::{Nats, NatsOptions};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// What there is, and the tiny model that a worker has for it.
const MODELS: [(&str, &str); 4] = [
    ("chat", "tiny-llama"),
    ("vectors", "tiny-bert"),
    ("ranks", "tiny-rerank-bert"),
    ("labels", "tiny-classes-bert"),
];

/// A gateway, whose workers are there when a test wants them.
struct Scene {
    gateway: Process,
    address: String,
    workplace: Workplace,
    /// Its servers end after the gateway.
    _broker: Option<(Nats, tokio::runtime::Runtime)>,
}

impl Scene {
    fn embedded(more: &[&str]) -> Self {
        Self::new(Workplace::new(), None, more)
    }

    fn on_nats(lease: &str) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let nats = runtime.block_on(Nats::start(NatsOptions::default())).unwrap();
        let queue = format!("{}?lease={lease}", nats.url());
        Self::new(Workplace::new().on(queue, None), Some((nats, runtime)), &[])
    }

    fn new(
        workplace: Workplace,
        broker: Option<(Nats, tokio::runtime::Runtime)>,
        more: &[&str],
    ) -> Self {
        let table = |(queue, model): &(&str, &str)| {
            let url = format!("{}&queue={queue}", workplace.queue());
            format!("[models.{model}]\nqueue = \"{url}\"\naliases = [\"our-{queue}\"]\n")
        };
        let config: String = MODELS.iter().map(table).collect();
        std::fs::write(workplace.path("gateway.toml"), config).unwrap();
        let (gateway, address) = gateway(&workplace, more);
        Self { gateway, address, workplace, _broker: broker }
    }

    /// Kills the gateway; the next request meets another replica.
    fn lose_the_gateway(&mut self) {
        self.gateway.signal(Signal::SIGKILL);
        assert!(!self.gateway.ends().success());
        (self.gateway, self.address) = gateway(&self.workplace, &[]);
    }

    /// One worker for all models.
    fn worker(&self) -> Process {
        let serve = |(queue, model): &(&str, &str)| {
            let folder = workspace_root().join("model/tests/data").join(model);
            format!("{queue}={}", folder.display())
        };
        let serve: Vec<String> = MODELS.iter().map(serve).collect();
        self.workplace.start(&["worker", "--serve", &serve.join(",")])
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        let json = [("content-type", "application/json")];
        ask("POST", &self.address, path, &json, &body.to_string()).unwrap()
    }

    #[track_caller]
    fn answers(&self, path: &str, body: &Value) -> Value {
        let answer = self.post(path, body);
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        serde_json::from_str(&answer.body).unwrap()
    }

    /// The same job by the queue, without the gateway.
    fn enqueued(&self, queue: &str, body: &Value) -> Value {
        let url = format!("{}&queue={queue}", self.workplace.queue());
        let args = ["enqueue", &body.to_string(), "--queue", &url, "--wait", "--timeout", "60s"];
        let result = self.workplace.ebb(&args).ok().json();
        assert_eq!(result["outcome"], "completed", "{result}");
        result["body"].clone()
    }
}

/// Starts a gateway of what the workplace has, and says where it listens.
fn gateway(workplace: &Workplace, more: &[&str]) -> (Process, String) {
    let path = workplace.path("gateway.toml");
    let args = ["gateway", "--config", path.to_str().unwrap(), "--listen", "127.0.0.1:0"];
    let mut command = workplace.command("ebb", &[&args, more].concat());
    let mut gateway = Process::start(command.env_remove("EBB_QUEUE"));
    let address = gateway.says("its address", listening);
    (gateway, address)
}

/// Where a gateway says that it listens.
fn listening(said: &str) -> Option<String> {
    let (_, rest) = said.split_once("the gateway listens")?;
    let (_, rest) = rest.split_once("address=")?;
    rest.split_once(char::is_whitespace).map(|(address, _)| address.to_owned())
}

/// What the `data:` lines of a stream hold; of those that are JSON the object.
fn events(body: &str) -> (Vec<Value>, bool) {
    let data: Vec<&str> = body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let is_done = data.last() == Some(&"[DONE]");
    let objects = data.iter().filter(|data| **data != "[DONE]");
    (objects.map(|data| serde_json::from_str(data).unwrap()).collect(), is_done)
}

fn answers_openais_api(scene: &Scene) {
    let body = json!({"model": "tiny-llama", "messages": [{"role": "user", "content": "the pump"}],
        "max_tokens": 30, "temperature": 0, "user": "ada"});
    // Nobody is there yet: the request is held until a worker has started.
    let (said, worker) = std::thread::scope(|scope| {
        let asked = scope.spawn(|| scene.answers("/v1/chat/completions", &body));
        let url = format!("{}&queue=chat", scene.workplace.queue());
        wait_for("a job that waits", || {
            let depth = scene.workplace.ebb(&["queue", "depth", "--json", "--queue", &url]);
            (depth.status.success() && depth.json()["ready"] == 1).then_some(())
        });
        let worker = scene.worker();
        (asked.join().unwrap(), worker)
    });
    let mut job = body.clone();
    job.as_object_mut().unwrap().remove("user");
    let own = scene.enqueued("chat", &job);
    assert_eq!(said["choices"][0]["message"]["content"], own["choices"][0]["message"]["content"]);
    assert_eq!(
        (&said["model"], &said["object"]),
        (&json!("tiny-llama"), &json!("chat.completion"))
    );
    assert_eq!(said["usage"]["completion_tokens"], own["usage"]["completion_tokens"]);

    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": true});
    let answer = scene.post("/v1/chat/completions", &streamed);
    let (objects, is_done) = events(&answer.body);
    assert!(answer.status == 200 && is_done, "{}", answer.body);
    let texts = objects.iter().filter_map(|it| it["choices"][0]["delta"]["content"].as_str());
    assert_eq!(said["choices"][0]["message"]["content"], texts.collect::<String>());
    // But for what the first has left to be taken over.
    let taken = |said: &Value| {
        [&said["usage"]["prompt_tokens"], &said["usage"]["completion_tokens"]].map(Value::clone)
    };
    assert_eq!(taken(objects.last().unwrap()), taken(&said), "{objects:?}");

    let texts = ["the pump is warm", "a valve", "the tide turns"];
    let body = json!({"model": "our-vectors", "input": texts});
    let vectors = scene.answers("/v1/embeddings", &body);
    assert_eq!(vectors["data"].as_array().unwrap().len(), 3);
    for (index, text) in texts.iter().enumerate() {
        let own = scene.enqueued("vectors", &json!({"input": text}));
        assert_eq!(vectors["data"][index]["index"], index);
        assert_alike(&vectors["data"][index]["embedding"], &own["data"][0]["embedding"]);
    }
    let ranked = json!({"model": "our-ranks", "query": "a pump", "documents": texts, "top_n": 2});
    let own = scene.enqueued("ranks", &json!({"query": "a pump", "documents": texts, "top_n": 2}));
    assert_eq!(scene.answers("/v1/rerank", &ranked)["results"], own["results"]);
    let labelled =
        scene.answers("/v1/classify", &json!({"model": "our-labels", "inputs": "a pump"}));
    let own = scene.enqueued("labels", &json!({"input": "a pump"}));
    assert_eq!(
        labelled.as_array().unwrap().len(),
        own["data"][0]["scores"].as_array().unwrap().len()
    );
    assert_eq!(labelled[0]["label"], own["data"][0]["label"]);
    refuses(scene);
    drop(worker);
}

/// Vectors of the same text in batches of others.
#[track_caller]
fn assert_alike(one: &Value, other: &Value) {
    let (one, other) = (one.as_array().unwrap(), other.as_array().unwrap());
    assert_eq!(one.len(), other.len());
    for (one, other) in one.iter().zip(other) {
        assert!((one.as_f64().unwrap() - other.as_f64().unwrap()).abs() < 1e-4);
    }
}

fn refuses(scene: &Scene) {
    let long = "pump ".repeat(600);
    let chat = |content: &str| json!([{"role": "user", "content": content}]);
    for (path, body, status, param) in [
        ("/v1/embeddings", json!({"model": "tiny-bert", "input": ["a", [1, 2]]}), 400, "input[1]"),
        // The worker's own reason, with the place that the client knows.
        (
            "/v1/embeddings",
            json!({"model": "tiny-bert", "input": ["a", long], "truncate": false}),
            400,
            "input[1]",
        ),
        (
            "/v1/embeddings",
            json!({"model": "tiny-bert", "input": "a", "dimensions": 9999}),
            400,
            "dimensions",
        ),
        ("/v1/embeddings", json!({"model": "tiny-llama", "input": "a"}), 400, "model"),
        ("/v1/embeddings", json!({"model": "no-such", "input": "a"}), 404, "model"),
        (
            "/v1/chat/completions",
            json!({"model": "tiny-llama", "messages": chat("a"), "tools": [1]}),
            400,
            "tools",
        ),
        (
            "/v1/chat/completions",
            json!({"model": "tiny-llama", "messages": chat("a"), "max_tokens": 100_000}),
            400,
            "max_tokens",
        ),
    ] {
        let answer = scene.post(path, &body);
        assert_eq!(answer.status, status, "{path}: {}", answer.body);
        let error: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(error["error"]["param"], param, "{path}: {error}");
    }
}

#[test]
fn openais_api_is_answered_from_the_embedded_queue_and_waits_for_the_first_worker() {
    let mut scene = Scene::embedded(&[]);
    answers_openais_api(&scene);
    scene.gateway.signal(Signal::SIGTERM);
    assert!(scene.gateway.ends().success(), "{}", scene.gateway.output());
}

#[test]
fn openais_api_is_answered_from_nats_and_waits_for_the_first_worker() {
    answers_openais_api(&Scene::on_nats("60s"));
}

/// What the deltas of a chat tell so far.
fn deltas(heard: &str) -> String {
    let (objects, _) = events(heard);
    objects.iter().filter_map(|it| it["choices"][0]["delta"]["content"].as_str()).collect()
}

/// The result of a job as its client finds it, which is none while the job goes on.
fn stored(scene: &Scene, id: &str) -> Option<Value> {
    let found = get(&scene.address, &format!("/v1/jobs/{id}")).unwrap();
    (found.status == 200).then(|| serde_json::from_str(&found.body).unwrap())
}

/// The stream of a chat whose worker was stopped when it had said something and not all, and the id
/// of its job; none where the worker was done before it was stopped.
fn stopped_midway(scene: &Scene, worker: &Process, seed: u64) -> Option<(Reading, String)> {
    let body = json!({"model": "tiny-llama", "messages": [{"role": "user", "content": "the pump"}],
        "temperature": 1, "seed": seed, "max_tokens": 200, "stream": true});
    let (path, body) = ("/v1/chat/completions", body.to_string());
    let mut reading = Reading::begin("POST", &scene.address, path, &body).unwrap();
    let id = reading.until("its job", |heard| {
        let (_, rest) = heard.split_once("ebb-id: ")?;
        rest.split_once("\r\n").map(|(id, _)| id.to_owned())
    });
    reading.until("a text", |heard| {
        (heard.ends_with('\n') && !deltas(heard).is_empty()).then_some(())
    });
    worker.pause();
    if stored(scene, &id).is_none() {
        return Some((reading, id));
    }
    worker.signal(Signal::SIGCONT);
    reading.rest();
    None
}

/// Hears out a chat whose worker was killed, which must be whole; whether another attempt went on with
/// what was said before.
fn goes_on(scene: &Scene, mut reading: Reading, id: &str) -> bool {
    let before = reading.until("what was said", |heard| Some(deltas(heard)));
    let heard = reading.rest();
    let (objects, is_done) = events(&heard);
    let whole = stored(scene, id).unwrap();
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(is_done, "{heard}");
    assert_eq!(deltas(&heard), text, "nothing is missing or doubled: {heard}");
    let n_roles = objects.iter().filter(|it| it["choices"][0]["delta"]["role"].is_string()).count();
    assert_eq!(n_roles, 1, "{heard}");
    let url = format!("{}&queue=chat", scene.workplace.queue());
    let result = scene.workplace.ebb(&["result", id, "--queue", &url]).ok().json();
    result["attempt"] == 2 && text.len() > before.len()
}

#[test]
fn a_chat_whose_worker_is_killed_midway_goes_on_behind_what_was_said() {
    goes_on_after_a_kill(&Scene::new(Workplace::new().with_short_leases(), None, &[]));
}

#[test]
fn a_chat_on_nats_whose_worker_is_killed_midway_goes_on_behind_what_was_said() {
    goes_on_after_a_kill(&Scene::on_nats("8s"));
}

fn goes_on_after_a_kill(scene: &Scene) {
    let mut worker = scene.worker();
    for seed in 0..50 {
        let Some((reading, id)) = stopped_midway(scene, &worker, seed) else { continue };
        worker.signal(Signal::SIGKILL);
        assert!(!worker.ends().success());
        worker = scene.worker();
        // Else its answer was on its way into the store.
        if goes_on(scene, reading, &id) {
            return;
        }
    }
    panic!("no worker is killed midway");
}

/// A client whose gateway is killed while it waits comes again to another replica with the same key.
fn is_answered_once_by_another_replica(mut scene: Scene) {
    let body = json!({"model": "tiny-bert", "input": ["the pump", "a valve"]}).to_string();
    let headers = [("content-type", "application/json"), ("idempotency-key", "the-same")];
    let address = scene.address.clone();
    let url = format!("{}&queue=vectors", scene.workplace.queue());
    let depth = |scene: &Scene| {
        let depth = scene.workplace.ebb(&["queue", "depth", "--json", "--queue", &url]);
        depth.status.success().then(|| depth.json())
    };
    let first = std::thread::scope(|scope| {
        let asked = scope.spawn(|| ask("POST", &address, "/v1/embeddings", &headers, &body));
        wait_for("jobs that wait", || (depth(&scene)?["ready"] == 2).then_some(()));
        scene.lose_the_gateway();
        asked.join().unwrap()
    });
    assert_eq!(first, None, "its gateway is gone before there is an answer");
    let (second, _worker) = std::thread::scope(|scope| {
        let scene = &scene;
        let again =
            scope.spawn(|| ask("POST", &scene.address, "/v1/embeddings", &headers, &body).unwrap());
        let worker = scene.worker();
        (again.join().unwrap(), worker)
    });
    assert_eq!(second.status, 200, "{}", second.body);
    let third = ask("POST", &scene.address, "/v1/embeddings", &headers, &body).unwrap();
    let vectors = |answer: &str| serde_json::from_str::<Value>(answer).unwrap()["data"].clone();
    assert_eq!(vectors(&second.body), vectors(&third.body), "it is the one answer");
    let left = depth(&scene).unwrap();
    assert_eq!((&left["ready"], &left["dead"]), (&json!(0), &json!(0)), "no other job was made");
}

#[test]
fn who_comes_again_with_its_key_after_its_gateway_was_killed_gets_the_one_answer() {
    is_answered_once_by_another_replica(Scene::embedded(&[]));
}

#[test]
fn who_comes_again_on_nats_with_its_key_after_its_gateway_was_killed_gets_the_one_answer() {
    is_answered_once_by_another_replica(Scene::on_nats("60s"));
}

#[test]
fn a_gateway_has_room_for_its_connections_where_a_process_begins_with_few_files() {
    let workplace = Workplace::new();
    let ebb = workplace.command("ebb", &[]);
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -S -n 64 && exec \"$0\" \"$@\""]).arg(ebb.get_program());
    command.args(["gateway", "--listen", "127.0.0.1:0", "--queue", &workplace.queue()]);
    let mut gateway = Process::start(&mut command);
    let address = gateway.says("its address", listening);
    let kept: Vec<_> = (0..200).map(|_| TcpStream::connect(&address).unwrap()).collect();
    assert_eq!(get(&address, "/v1/models").map(|answer| answer.status), Some(200));
    drop(kept);
}

/// What named server-sent events tell: their names and their data.
fn told(heard: &str) -> Vec<(String, String)> {
    let (_, body) = heard.split_once("\r\n\r\n").unwrap();
    let field = |event: &str, name: &str| {
        let lines = event.lines().filter_map(|line| line.strip_prefix(name));
        lines.collect::<Vec<_>>().join("\n")
    };
    let events = body.split("\n\n").filter(|event| event.contains("event: "));
    events.map(|event| (field(event, "event: "), field(event, "data: "))).collect()
}

#[test]
fn who_reads_events_is_told_that_an_attempt_begins_anew_after_kill_9_and_gets_the_whole() {
    let scene = Scene::new(Workplace::new().with_short_leases(), None, &[]);
    let url = format!("{}&queue=vectors", scene.workplace.queue());
    let worker = || scene.workplace.start(&["worker", "--model", "echo", "--queue", &url]);
    let text: String = (0..60).map(|word| format!("word-{word}.\n")).collect();
    let body = json!({ "input": text, "stream": true, "turn_ms": 100 });
    let mut first = worker();
    let job = scene.post("/v1/jobs?queue=vectors", &body);
    assert_eq!(job.status, 202, "{}", job.body);
    let job: Value = serde_json::from_str(&job.body).unwrap();
    let id = job["id"].as_str().unwrap();
    let path = format!("/v1/jobs/{id}/events");
    let mut reading = Reading::begin("GET", &scene.address, &path, "").unwrap();
    reading.until("word 5", |heard| heard.contains("word-5.").then_some(()));
    first.signal(Signal::SIGKILL);
    assert!(!first.ends().success());
    let _second = worker();

    let heard = reading.rest();
    let events = told(&heard);
    let pieces = |events: &[(String, String)]| {
        assert!(events.iter().all(|(name, _)| name == "piece"), "{heard}");
        events.iter().map(|(_, data)| data.as_str()).collect::<String>()
    };
    let void = events.iter().position(|(name, _)| name == "void");
    let void = void.unwrap_or_else(|| panic!("no attempt begins anew: {heard}"));
    let (end, answer) = events.split_last().unwrap();
    assert!(text.starts_with(&pieces(&answer[..void])), "{heard}");
    assert_eq!(pieces(&answer[void + 1..]), text, "the whole, and nothing twice: {heard}");
    let result: Value = serde_json::from_str(&end.1).unwrap();
    assert_eq!((end.0.as_str(), &result["result"]["output"]), ("end", &json!(text)), "{heard}");
}

#[test]
fn openais_own_client_gets_what_it_asks_for_and_raises_what_it_should() {
    let test = "openais_own_client_gets_what_it_asks_for_and_raises_what_it_should";
    let python = std::env::var("EBB_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let found = Command::new(&python).args(["-c", "import openai"]).output();
    if !found.is_ok_and(|found| found.status.success()) {
        return skipped(test, "name a Python with openai in EBB_TEST_PYTHON, as tests/run does");
    }
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys.toml");
    let key = |name: &str, sha256: &str, more: &str| {
        format!("[keys.{name}]\nsha256 = \"{sha256}\"\n{more}\n")
    };
    // Of the words `the-key` and `the-limited-key`.
    let text = [
        key("team", THE_KEY, "models = [\"tiny-llama\", \"tiny-bert\"]"),
        key("limited", THE_LIMITED_KEY, "requests_per_minute = 1"),
    ];
    std::fs::write(&keys, text.concat()).unwrap();
    let secret = folder.path().join("id-secret");
    std::fs::write(&secret, "a secret of the test that is long enough").unwrap();
    let flags = ["--keys", keys.to_str().unwrap(), "--id-secret-file", secret.to_str().unwrap()];
    let scene = Scene::embedded(&flags);
    assert_eq!(get(&scene.address, "/v1/models").unwrap().status, 401);
    let _worker = scene.worker();
    let script = workspace_root().join("tests/python/openai_client.py");
    let base = format!("http://{}/v1", scene.address);
    let mut client = Command::new(python);
    client.arg(script).args([&*base, "the-key", "the-limited-key", "tiny-llama", "tiny-bert"]);
    e2e::offline(&mut client);
    let report = run(&mut client, "").ok().json();
    assert_eq!(report["models"], json!(["our-chat", "our-vectors", "tiny-bert", "tiny-llama"]));
    assert_eq!(report["model"], "tiny-llama");
    vectors_are_the_same_in_both_formats(&report["vectors"]);
    let answers = &report["answers"];
    assert_ne!(answers[0]["choices"][0], answers[0]["choices"][1], "{answers}");
    // The second answer to a seed is the first one to the next.
    assert_eq!(answers[0]["choices"][1], answers[1]["choices"][0], "{answers}");
    assert_eq!(answers[0]["object"], "chat.completion");
    let streamed = &report["streamed"];
    assert_eq!(streamed["text"], answers[0]["choices"][0], "{report}");
    assert_eq!(streamed["role"], "assistant");
    assert!(streamed["chunks"].as_u64() > Some(3) && streamed["tokens"].as_u64() > Some(0));
    assert!(["stop", "length"].contains(&streamed["reason"].as_str().unwrap()), "{streamed}");
    assert_eq!(report["completion"], json!([0, 1]));
    let expected = json!({
        "unknown model": {"class": "NotFoundError", "param": "model", "code": "model_not_found"},
        "tools": {"class": "BadRequestError", "param": "tools", "code": "unsupported_parameter"},
        "too warm": {"class": "BadRequestError", "param": "temperature", "code": "invalid_value"},
        "unknown key": {"class": "AuthenticationError", "param": null, "code": "invalid_api_key"},
        "too often": {"class": "RateLimitError", "param": null, "code": "rate_limit_exceeded"},
    });
    assert_eq!(report["refused"], expected);
}

const THE_KEY: &str = "ad44dc8e51cfbfa55e81ddbb626b466241069045066846e7e4cd096131505290";
const THE_LIMITED_KEY: &str = "7f78f251371f7cad4348119e4f2f81c60eb4b990b35ca8df476a08af48bdc166";

fn vectors_are_the_same_in_both_formats(vectors: &Value) {
    assert_eq!(vectors["default"].as_array().unwrap().len(), 3);
    for index in 0..3 {
        assert_alike(&vectors["default"][index], &vectors["floats"][index]);
    }
    assert_eq!(vectors["short"].as_array().unwrap().len(), 8);
    assert!(vectors["tokens"].as_u64() > Some(3), "{vectors}");
}
