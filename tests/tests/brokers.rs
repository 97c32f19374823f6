//! Ebb on real brokers: jobs of plain clients in another language, answers as messages, a broker
//! that is killed, and the words that a person reads when something is wrong.

#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::process::Command;
use std::time::{Duration, Instant};

use e2e::{Process, Run, Workplace, get, run, wait_for, workspace_root};
use ebb_proto::keda::external_scaler_client::ExternalScalerClient;
use ebb_proto::keda::{GetMetricsRequest, ScaledObjectRef};
use ebb_servers::{
    Nats, NatsOptions, Persistence, RabbitMq, RabbitMqOptions, Redis, RedisOptions, Sync,
};
use serde_json::{Value, json};
use tokio::runtime::{Handle, Runtime};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// A broker of our own, at the setting that loses nothing.
enum Broker {
    Nats(Nats),
    Amqp(RabbitMq),
    Redis(Redis),
}

impl Broker {
    async fn nats() -> Self {
        let options = NatsOptions { sync: Sync::Always, ..NatsOptions::default() };
        Self::Nats(Nats::start(options).await.unwrap())
    }

    async fn amqp() -> Self {
        Self::Amqp(RabbitMq::start(RabbitMqOptions::default()).await.unwrap())
    }

    async fn redis() -> Self {
        let options = RedisOptions { persistence: Persistence::Always, ..RedisOptions::default() };
        Self::Redis(Redis::start(options).await.unwrap())
    }

    fn url(&self) -> String {
        match self {
            Self::Nats(nats) => nats.url(),
            Self::Amqp(amqp) => amqp.url(),
            Self::Redis(redis) => redis.url(),
        }
    }

    fn kill(&mut self) {
        match self {
            Self::Nats(nats) => nats.kill(),
            Self::Amqp(amqp) => amqp.kill(),
            Self::Redis(redis) => redis.kill(),
        }
    }

    async fn restart(&mut self) {
        match self {
            Self::Nats(nats) => nats.restart().await,
            Self::Amqp(amqp) => amqp.restart().await,
            Self::Redis(redis) => redis.restart().await,
        }
        .unwrap();
    }
}

/// A broker with a queue, a worker on it, and a folder to work in.
struct Scene {
    worker: Process,
    probes: String,
    workplace: Workplace,
    broker: Broker,
    /// Servers are started and killed on it.
    runtime: Runtime,
}

impl Scene {
    fn new(start: impl AsyncFnOnce() -> Broker) -> Self {
        let runtime = Runtime::new().unwrap();
        let broker = runtime.block_on(start());
        let workplace = Workplace::new();
        let queue = format!("{}?queue=jobs&lease=30s", broker.url());
        // RabbitMQ keeps no answers.
        let results = matches!(broker, Broker::Amqp(_)).then(|| workplace.queue());
        let workplace = workplace.on(queue, results);
        workplace.ebb(&["queue", "init"]).ok();
        let args = ["worker", "--model", "echo", "--listen", "127.0.0.1:0", "--no-create"];
        let mut worker = workplace.start(&args);
        let probes = worker.says("its address", |said| {
            let (_, rest) = said.split_once("address=")?;
            rest.split_once(char::is_whitespace).map(|(address, _)| address.to_owned())
        });
        Self { worker, probes, workplace, broker, runtime }
    }

    /// Sends jobs by the broker's ordinary Python client.
    fn produce(&self, args: &[&str]) -> Run {
        let python = std::env::var("EBB_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let mut command = Command::new(python);
        command.arg(workspace_root().join("tests/python/producer.py"));
        run(command.arg(self.broker.url()).arg("jobs").args(args), "").ok()
    }

    /// The result of a job as the broker's ordinary Python client reads it, if there is one.
    fn read(&self, id: &str, more: &[&str]) -> Option<Value> {
        let python = std::env::var("EBB_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let mut command = Command::new(python);
        command.arg(workspace_root().join("tests/python/results.py"));
        let read = run(command.arg(self.broker.url()).args(["jobs", id]).args(more), "").ok();
        (!read.stdout.is_empty()).then(|| read.json())
    }

    /// One figure of the worker's metrics page.
    fn metric(&self, name: &str) -> Option<f64> {
        let page = get(&self.probes, "/metrics")?.body;
        let line = page.lines().find(|line| line.starts_with(name))?;
        line.rsplit_once(' ')?.1.parse().ok()
    }

    fn completed(&self) -> f64 {
        self.metric("worker_jobs_total{model=\"echo\",outcome=\"completed\"}").unwrap_or(0.0)
    }

    fn ready(&self) -> Option<u16> {
        Some(get(&self.probes, "/readyz")?.status)
    }

    fn answers(&self, texts: &[&str]) {
        let mut args = vec!["enqueue", "--wait", "--timeout", "60s", "--json"];
        args.extend(texts);
        let results = self.workplace.ebb(&args).ok().lines();
        let outputs: Vec<_> = results.iter().map(|one| &one["body"]["output"]).collect();
        assert_eq!(outputs, texts, "{results:?}");
    }
}

fn plain_messages_are_jobs(scene: &Scene) {
    scene.produce(&["one", "two", "three"]);
    wait_for("three jobs of a plain client", || (scene.completed() >= 3.0).then_some(()));

    let replies = scene.produce(&["four", "five", "--reply-to", "replies"]).lines();
    let mut outputs: Vec<String> = Vec::new();
    for reply in &replies {
        let body: Value = serde_json::from_str(reply["body"].as_str().unwrap()).unwrap();
        outputs.push(body["output"].as_str().unwrap().to_owned());
        let headers = &reply["headers"];
        assert_eq!(headers["ebb-outcome"], "completed", "{reply}");
        assert_eq!(headers["content-type"], "application/json", "{reply}");
        assert!(!headers["ebb-id"].as_str().unwrap().is_empty(), "{reply}");
    }
    outputs.sort();
    assert_eq!(outputs, ["five", "four"]);

    scene.produce(&["six", "--header", "ebb-id=job-6", "--header", "ebb-tenant=t"]);
    let result = ["result", "job-6", "--follow", "--timeout", "60s", "--json"];
    let result = scene.workplace.ebb(&result).ok().json();
    assert_eq!(result["body"]["output"], "six");
}

fn a_plain_client_reads_results_by_their_ids(scene: &Scene) {
    scene.produce(&["seven", "--header", "ebb-id=job.7"]);
    let result = ["result", "job.7", "--follow", "--timeout", "60s", "--json"];
    scene.workplace.ebb(&result).ok();
    let result = scene.read("job.7", &[]).expect("a result");
    let body: Value = serde_json::from_str(result["body"].as_str().unwrap()).unwrap();
    assert_eq!(body["output"], "seven", "{result}");
    assert_eq!(result["outcome"], "completed", "{result}");
    assert_eq!(
        (&result["attempt"], &result["content_type"]),
        (&json!(1), &json!("application/json"))
    );

    scene.produce(&["late", "--header", "ebb-id=job-8", "--header", "ebb-ttl=1ms"]);
    let failed = wait_for("a failed result", || scene.read("job-8", &[]));
    assert_eq!((&failed["outcome"], &failed["reason"]), (&json!("failed"), &json!("expired")));
    assert_eq!(failed["kind"], "expired", "{failed}");
    assert_eq!(scene.read("job-9", &[]), None);
}

fn a_plain_client_reads_the_pieces_of_an_answer(scene: &Scene) {
    let line = r#"{"id": "job.10", "body": {"input": "a b c", "stream": true, "turn_ms": 50}}"#;
    let file = scene.workplace.path("stream.jsonl");
    std::fs::write(&file, line).unwrap();
    assert_eq!(scene.read("job.10", &["--pieces"]), None);
    scene.workplace.ebb(&["enqueue", "--file", file.to_str().unwrap()]).ok();
    let followed = ["result", "job.10", "--follow", "--timeout", "60s"];
    assert_eq!(scene.workplace.ebb(&followed).ok().stdout, "a b c\n");
    let told = scene.read("job.10", &["--pieces"]).expect("pieces");
    let pieces: Vec<&str> =
        told["pieces"].as_array().unwrap().iter().map(|piece| piece.as_str().unwrap()).collect();
    assert_eq!((pieces.concat().as_str(), &told["attempt"]), ("a b c", &json!(1)), "{told}");
}

fn garbage_harms_nobody_else(scene: &Scene) {
    scene.produce(&["bad", "--header", "ebb-priority=urgent", "--header", "ebb-id=bad-1"]);
    scene.produce(&["good", "--header", "ebb-id=good-1"]);
    let result = ["result", "good-1", "--follow", "--timeout", "60s", "--json"];
    scene.workplace.ebb(&result).ok();
    let letter = wait_for("a dead letter", || {
        let list = ["dlq", "list", "--kind", "lost,invalid", "--json"];
        let letters = scene.workplace.ebb(&list).ok().json();
        letters.as_array()?.first().cloned()
    });
    let reason = letter["reason"].as_str().unwrap();
    assert_eq!(reason, "ebb-priority: \"urgent\" is not valid; use high, normal or low");
    assert_eq!(letter["job"]["id"], "bad-1");
    let others = ["dlq", "list", "--kind", "expired,attempts,model,lost,other", "--json"];
    assert_eq!(scene.workplace.ebb(&others).ok().json(), json!([]));
    let letter = scene.workplace.ebb(&["dlq", "show", "bad-1", "--json"]).ok().json();
    assert_eq!(letter["job"]["body"], "{\"input\": \"bad\"}", "{letter}");
}

fn a_broker_that_is_killed_comes_back_to_a_worker_that_waits(scene: &mut Scene) {
    scene.answers(&["before"]);
    assert_eq!(scene.metric("worker_broker_up"), Some(1.0));
    scene.broker.kill();
    wait_for("readiness to end", || (scene.ready()? == 503).then_some(()));
    wait_for("the loss in the metrics", || {
        (scene.metric("worker_broker_up")? == 0.0).then_some(())
    });
    assert!(scene.worker.runs(), "an outage ends no worker");

    scene.runtime.block_on(scene.broker.restart());
    wait_for("readiness to return", || (scene.ready()? == 200).then_some(()));
    scene.answers(&["after"]);
    assert_eq!(scene.metric("worker_broker_up"), Some(1.0));
    assert!(scene.metric("worker_broker_losses_total").unwrap() >= 1.0);
    for words in ["the connection to the broker is lost", "the connection to the broker is back"] {
        scene.worker.says(words, |said| said.find(words));
    }
}

/// How long the last look counts in the test of an outage.
const MAX_AGE: Duration = Duration::from_secs(3);

/// A scaler process, asked as KEDA asks.
struct Asked {
    client: ExternalScalerClient<Channel>,
    runtime: Handle,
}

impl Asked {
    /// The value of the metric and whether the pool is active; none while it is unknown.
    fn look(&self) -> Option<(i64, bool)> {
        let object =
            ScaledObjectRef { name: "o".into(), namespace: "n".into(), ..Default::default() };
        let request = GetMetricsRequest {
            scaled_object_ref: Some(object.clone()),
            metric_name: "ebb-jobs-other".into(),
        };
        let mut client = self.client.clone();
        let answer = self.runtime.block_on(async {
            let value = client.get_metrics(request).await?.into_inner().metric_values[0].clone();
            let active = client.is_active(object).await?.into_inner().result;
            Ok::<_, Status>((value.metric_value, active))
        });
        match answer {
            Ok(answer) => Some(answer),
            Err(status) if status.code() == Code::Unavailable => None,
            Err(status) => panic!("{status}"),
        }
    }
}

fn the_scaler_never_takes_an_outage_for_an_empty_queue(scene: &mut Scene) {
    let queue = format!("{}?queue=other", scene.broker.url());
    let args = ["scaler", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
    let args = [&args[..], &["--max-age", "3s", "--queue", &queue]].concat();
    let mut scaler = scene.workplace.start(&args);
    let mut word = |name: &str| {
        scaler.says(name, |said| {
            let (_, rest) = said.split_once(name)?;
            rest.split_once(char::is_whitespace).map(|(word, _)| word.to_owned())
        })
    };
    let (grpc, http) = (word("listen="), word("http="));
    let up = || {
        let page = get(&http, "/metrics")?.body;
        Some(page.contains("scaler_broker_up{profile=\"default\",queue=\"other\"} 1"))
    };
    let runtime = scene.runtime.handle().clone();
    let client = runtime.block_on(ExternalScalerClient::connect(format!("http://{grpc}"))).unwrap();
    let asked = Asked { client, runtime };
    wait_for("the first look", || (asked.look()? == (0, false)).then_some(()));
    let jobs: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    let jobs = jobs.iter().map(String::as_str);
    let enqueue: Vec<&str> = ["enqueue", "--queue", &queue].into_iter().chain(jobs).collect();
    scene.workplace.ebb(&enqueue).ok();
    wait_for("activity", || (asked.look()? == (20, true)).then_some(()));

    scene.broker.kill();
    let killed = Instant::now();
    wait_for("the end of what is known", || match asked.look() {
        Some(answer) => {
            assert_eq!(answer, (20, true), "an outage changes no answer");
            None
        }
        None => Some(()),
    });
    let known = killed.elapsed();
    assert!(known < MAX_AGE + Duration::from_secs(8), "what was seen counts for {known:?}");
    wait_for("the loss in the metrics", || (!up()?).then_some(()));
    let unknown = Instant::now();
    while unknown.elapsed() < Duration::from_secs(3) {
        assert_eq!(asked.look(), None, "an outage is nothing but unknown");
    }

    scene.runtime.block_on(scene.broker.restart());
    let back = Instant::now();
    wait_for("the broker to be seen again", || match asked.look() {
        Some(answer) => {
            assert_eq!(answer, (20, true), "what was there is there");
            Some(())
        }
        None => None,
    });
    let blind = back.elapsed();
    assert!(blind < Duration::from_secs(30), "the broker was back for {blind:?}");
    wait_for("the return in the metrics", || (up()?).then_some(()));
}

fn the_whole_story(start: impl AsyncFnOnce() -> Broker) {
    let mut scene = Scene::new(start);
    plain_messages_are_jobs(&scene);
    garbage_harms_nobody_else(&scene);
    // RabbitMQ keeps no answers.
    if !matches!(scene.broker, Broker::Amqp(_)) {
        a_plain_client_reads_results_by_their_ids(&scene);
        a_plain_client_reads_the_pieces_of_an_answer(&scene);
    }
    a_broker_that_is_killed_comes_back_to_a_worker_that_waits(&mut scene);
    the_scaler_never_takes_an_outage_for_an_empty_queue(&mut scene);
}

#[test]
fn on_nats() {
    the_whole_story(Broker::nats);
}

#[test]
fn on_rabbitmq() {
    the_whole_story(Broker::amqp);
}

#[test]
fn on_redis() {
    the_whole_story(Broker::redis);
}

#[test]
fn a_queue_that_lacks_a_part_on_rabbitmq_is_made_whole_by_who_enqueues() {
    // Nobody asks for it by name when the queue is looked for.
    const PART: [&str; 2] = ["delete_queue", "ebb:jobs:delay-3"];
    let runtime = Runtime::new().unwrap();
    let server = runtime.block_on(RabbitMq::start(RabbitMqOptions::default())).unwrap();
    let workplace = Workplace::new().on(format!("{}?queue=jobs", server.url()), None);
    let made = workplace.ebb(&["enqueue", "a"]).ok();
    assert!(made.stderr.contains("made queue jobs"), "{made}");
    for _ in 0..2 {
        // It would say that it is not there.
        server.control(&PART).unwrap();
        server.control(&PART).unwrap_err();
        assert_eq!(workplace.ebb(&["enqueue", "b"]).ok().stderr, "");
    }
}
