//! The words that a person reads when a broker is down, locked, full or not what it should be.

#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::collections::BTreeSet;

use e2e::{Process, Workplace, run};
use ebb_servers::{Nats, NatsOptions, Port, RabbitMq, RabbitMqOptions, Redis, RedisOptions};
use serde_json::Value;

/// Runs `ebb` against a URL, which fails with this code; what it says, with the port left out.
#[track_caller]
fn complaint(url: &str, args: &[&str], input: &str, code: i32) -> String {
    let workplace = Workplace::new();
    let results = workplace.queue();
    workplace.ebb(&["queue", "init"]).ok();
    let more = ["--queue", url, "--results", &results, "--connect-timeout", "15s"];
    let ran = run(&mut workplace.command("ebb", &[args, &more].concat()), input).failed();
    assert_eq!(ran.status.code(), Some(code), "{ran}");
    let port = url.rsplit_once(':').unwrap().1;
    let port: String = port.chars().take_while(char::is_ascii_digit).collect();
    // The clients of brokers are silent: what is told is ours, and once.
    assert!(!ran.stderr.contains("lapin") && !ran.stderr.contains("async_nats"), "{ran}");
    let told = ran.stderr.lines().find(|line| line.starts_with("error: "));
    told.unwrap_or_else(|| panic!("{ran}")).replace(&port, "PORT")
}

fn depth(url: &str, code: i32) -> String {
    complaint(url, &["queue", "depth"], "", code)
}

#[test]
fn a_broker_that_is_down_is_named() {
    let refused = "Connection refused (os error 111)";
    for (scheme, words) in [
        ("nats", "cannot reach a NATS server at 127.0.0.1:PORT: IO error"),
        ("amqp", "cannot reach RabbitMQ at 127.0.0.1:PORT"),
        (
            "redis",
            "redis at 127.0.0.1:PORT does not answer; is it running, and are host and port right?: \
             redis at 127.0.0.1:PORT: the connection failed",
        ),
    ] {
        let closed = Port::draw().unwrap();
        let told = depth(&format!("{scheme}://127.0.0.1:{}", closed.number()), 69);
        assert_eq!(told, format!("error: cannot open the queue: {words}: {refused}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_missing_is_named_with_the_remedy_and_not_made() {
    let nats = Nats::start(NatsOptions::default()).await.unwrap();
    let redis = Redis::start(RedisOptions::default()).await.unwrap();
    let rabbitmq = RabbitMq::start(RabbitMqOptions::default()).await.unwrap();
    for url in [nats.url(), redis.url(), rabbitmq.url()] {
        // The second look would find what the first one had made.
        for _ in 0..2 {
            let told = depth(&format!("{url}?queue=alerts"), 2);
            assert!(
                told.contains("?queue=alerts'`") && told.contains("`ebb queue init --queue '"),
                "{told}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_on_rabbitmq_ends_though_no_worker_meets_the_job_that_expired() {
    let rabbitmq = RabbitMq::start(RabbitMqOptions::default()).await.unwrap();
    let apart = Workplace::new();
    let workplace = Workplace::new().on(rabbitmq.url(), Some(apart.queue()));
    let late = workplace.ebb(&["enqueue", "anyone?", "--wait", "--ttl", "100ms"]);
    assert_eq!(late.status.code(), Some(1), "{late}");
    assert!(late.json()["error"].as_str().unwrap().starts_with("expired"), "{late}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_that_is_locked_or_has_no_jetstream_says_what_to_give_it() {
    let user = Some(("me".to_owned(), "right".to_owned()));
    let nats = Nats::start(NatsOptions { user, ..NatsOptions::default() }).await.unwrap();
    let at = format!("127.0.0.1:{}", nats.port());
    assert_eq!(
        depth(&format!("nats://{at}"), 2),
        "error: cannot open the queue: the NATS server at 127.0.0.1:PORT does not let in somebody \
         without a name; write nats://USER:PASSWORD@HOST or a token, or give creds or nkey: \
         authorization violation: nats: authorization violation"
    );
    let told = depth(&format!("nats://me:hunter2@{at}"), 2);
    assert!(told.contains("does not let in user me and its password"), "{told}");
    assert!(!told.contains("hunter2"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_that_is_locked_full_or_smaller_says_what_to_change() {
    let options = RedisOptions {
        password: Some("right".to_owned()),
        extra_config: "maxmemory 4mb\n".to_owned(),
        ..RedisOptions::default()
    };
    let redis = Redis::start(options).await.unwrap();
    let at = format!("127.0.0.1:{}", redis.port());
    let told = depth(&format!("redis://:hunter2@{at}"), 2);
    let words = "error: cannot open the queue: redis at 127.0.0.1:PORT: it does not know us; check \
                 user and password";
    assert!(told.starts_with(words) && !told.contains("hunter2"), "{told}");
    let told = depth(&format!("redis://:right@{at}/99"), 2);
    let words = "error: cannot open the queue: redis at 127.0.0.1:PORT: it has no such database; \
                 check the number in the URL";
    assert!(told.starts_with(words), "{told}");
    let line = format!("{{\"body\": {{\"input\": \"{}\"}}}}\n", "x".repeat(100_000));
    let url = format!("redis://:right@{at}");
    let told = complaint(&url, &["enqueue", "--file", "-"], &line.repeat(100), 69);
    let words = "redis at 127.0.0.1:PORT: its memory is full; let workers drain the queue, or \
                 raise maxmemory";
    assert!(told.contains(words), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_only_read_redis_is_told_that_there_is_no_result_yet() {
    let reader = "user reader on >secret %R~ebb:{jobs}* &ebb:{jobs}* +eval_ro +evalsha_ro +time \
                  +type +hexists +hget +hmget +hlen +zcard +zcount +zrange +zscore +xlen +xrange +xread \
                  +xinfo|stream +subscribe";
    let options = RedisOptions { extra_config: reader.to_owned(), ..RedisOptions::default() };
    let redis = Redis::start(options).await.unwrap();
    let url = |user: &str| format!("redis://{user}127.0.0.1:{}?queue=jobs", redis.port());
    let workplace = Workplace::new().on(url(""), None);
    let id = workplace.ebb(&["enqueue", "hello"]).ok().stdout;
    let result = ["result", id.trim(), "--queue", &url("reader:secret@")];
    let ran = workplace.ebb(&result).failed();
    let told = format!(
        "error: no result for {} yet: it is waiting for a worker; wait for it with --follow\n",
        id.trim()
    );
    assert_eq!((ran.status.code(), &*ran.stderr), (Some(66), &*told), "{ran}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_when_the_queue_goes_away_is_left_with_the_ids_of_the_jobs() {
    let mut redis = Redis::start(RedisOptions::default()).await.unwrap();
    let workplace = Workplace::new().on(redis.url(), None);
    let mut command = workplace.command("ebb", &["enqueue", "--wait", "--json", "one", "two"]);
    let mut waiting = Process::start(&mut command);
    workplace.comes_to("ready", 2);
    redis.kill();
    let id_of = |line: &str| {
        let line: Value = serde_json::from_str(line).ok()?;
        Some(line["id"].as_str()?.to_owned())
    };
    waiting.says("both ids", |said| {
        let ids: BTreeSet<String> = said.lines().filter_map(id_of).collect();
        (ids.len() == 2).then_some(())
    });
    assert_eq!(waiting.ends().code(), Some(69), "{}", waiting.output());
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_that_is_locked_or_has_no_such_host_says_what_to_check() {
    let user = Some(("me".to_owned(), "right".to_owned()));
    let options = RabbitMqOptions { user, ..RabbitMqOptions::default() };
    let rabbitmq = RabbitMq::start(options).await.unwrap();
    let at = format!("127.0.0.1:{}", rabbitmq.port());
    let told = depth(&format!("amqp://me:hunter2@{at}"), 2);
    assert!(told.contains("user") && told.contains("password"), "{told}");
    assert!(!told.contains("hunter2"), "{told}");
    let told = depth(&format!("amqp://me:right@{at}/nowhere"), 2);
    assert!(told.contains("does not let us use vhost \"nowhere\"; create it with"), "{told}");
    let apart = Workplace::new();
    let workplace = Workplace::new().on(format!("amqp://me:right@{at}"), Some(apart.queue()));
    workplace.ebb(&["queue", "init"]).ok();
    let healthy = workplace.ebb(&["queue", "depth"]).ok();
    assert_eq!(healthy.stderr, "", "what is probed on purpose is no error");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_may_create_nothing_says_how_the_queue_is_made() {
    let nats = Nats::start(NatsOptions::default()).await.unwrap();
    let workplace = Workplace::new().on(nats.url(), None);
    let ran = workplace.ebb(&["worker", "--model", "echo", "--no-create"]).failed();
    assert!(ran.stderr.contains("ebb queue init"), "{ran}");
    assert!(ran.stderr.contains("--queue"), "{ran}");
}
