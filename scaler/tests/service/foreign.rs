//! Streams that others laid out, on their real servers, and workers that are not Ebb's.

use std::collections::BTreeMap;
use std::time::Duration;

use ebb_proto::keda::ScaledObjectRef;
use ebb_scaler::{Asking, CheckArgs, ProblemKind, ScalerArgs, check};
use ebb_servers::{Nats, NatsOptions, Redis, RedisOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tonic::Code;

use crate::kit::{Kit, args, falls_silent, object, page, pauses, said};

/// A client that knows nothing of Ebb, and little of its server.
struct Wire(TcpStream);

impl Wire {
    async fn to(port: u16) -> Self {
        Self(TcpStream::connect(("127.0.0.1", port)).await.unwrap())
    }

    /// Sends lines, and reads until the answer says this.
    async fn say(&mut self, lines: &str, answer: &str) -> String {
        self.0.write_all(lines.replace('\n', "\r\n").as_bytes()).await.unwrap();
        let mut told = String::new();
        let mut part = vec![0; 64 << 10];
        while !told.contains(answer) {
            let read = timeout(Duration::from_secs(20), self.0.read(&mut part)).await;
            let n = read.unwrap_or_else(|_| panic!("{lines}: {told}")).unwrap();
            assert!(n > 0, "{lines}: {told}");
            told.push_str(&String::from_utf8_lossy(&part[..n]));
        }
        told
    }

    /// Asks JetStream.
    async fn ask(&mut self, what: &str, request: &str) {
        let n = request.len();
        let lines = format!("PUB $JS.API.{what} reply.to {n}\n{request}\n");
        let told = self.say(&lines, "\"type\"").await;
        assert!(!told.contains("\"error\""), "{told}");
    }
}

/// Asks until the object has this value, and is active or not.
async fn comes_to(kit: &Kit, object: &ScaledObjectRef, value: i64, active: bool) {
    let since = Instant::now();
    loop {
        let seen = (kit.known_value(object).await, kit.is_active(object).await.unwrap());
        if seen == (value, active) {
            return;
        }
        assert!(since.elapsed() < Duration::from_secs(20), "{seen:?} is not {value} {active}");
    }
}

#[tokio::test]
async fn a_pool_of_others_wakes_at_once_stays_while_it_works_and_sleeps_when_it_is_done() {
    let redis = Redis::start(RedisOptions::default()).await.unwrap();
    let mut client = Wire::to(redis.port()).await;
    client.say("XGROUP CREATE work embedders $ MKSTREAM\n", "OK").await;
    // An idle stream is looked at by itself every five seconds; whoever waits for that is too late.
    let refresh = Duration::from_secs(1);
    let queue = Some(redis.url().parse().unwrap());
    let kit = Kit::start_on_brokers(ScalerArgs { queue, refresh, ..args() }).await;
    let of =
        |group: &str| object(&[("stream", "work"), ("consumerGroup", group), ("lagCount", "5")]);
    let pool = of("embedders");
    comes_to(&kit, &pool, 0, false).await;
    let mut stream = kit.stream(&pool).await;
    let since = Instant::now();
    client.say("XADD work * body x\n", "-").await;
    assert_eq!(said(&mut stream).await, Some(true));
    assert!(since.elapsed() < Duration::from_secs(4), "{:?}", since.elapsed());
    // Nobody took it yet.
    let pauses = pauses(&mut stream, 3).await;
    comes_to(&kit, &pool, 1, true).await;

    // Taken by whom nobody knows: it is in flight, and the repetition ends.
    let taken = client.say("XREADGROUP GROUP embedders w1 STREAMS work >\n", "body").await;
    let id = taken.lines().find(|line| line.contains('-')).unwrap().trim().to_owned();
    falls_silent(&mut stream, pauses).await;
    comes_to(&kit, &pool, 1, true).await;

    let told = page(kit.http, "/explain/ml/encoder?format=text").await;
    for part in [
        "stream work, which Ebb did not lay out, as embedders reads it",
        "0 ready, 1 in flight; ",
        "workers: not Ebb's, so not known",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let json = page(kit.http, "/explain/ml/encoder").await;
    assert!(json.contains("\"in_flight\":1"), "{json}");
    // Nobody knows these, which is not that there are none.
    for unknown in ["delayed", "dead"] {
        assert!(!told.contains(unknown) && !json.contains(&format!("\"{unknown}\"")), "{json}");
    }
    shows_what_is_known(&kit).await;
    // Another object on the same group looks through the same observer.
    let clients = client.say("CLIENT LIST\n", "id=").await.matches("id=").count();
    let other = ScaledObjectRef { name: "other".into(), ..pool.clone() };
    comes_to(&kit, &other, 1, true).await;
    let now = client.say("CLIENT LIST\n", "id=").await.matches("id=").count();
    assert_eq!(now, clients);

    client.say(&format!("XACK work embedders {id}\n"), ":1").await;
    comes_to(&kit, &pool, 0, false).await;
    let told = kit.value(&of("nobody")).await.unwrap_err();
    assert_eq!(told.code(), Code::Unavailable);
    let words = "consumerGroup: the stream \"work\" of redis has no consumer group \"nobody\"";
    assert!(told.message().contains(words), "{told}");
    shows_no_secret(&kit).await;
    drop(stream);
    kit.stop().await;
}

async fn shows_what_is_known(kit: &Kit) {
    let metrics = page(kit.http, "/metrics").await;
    assert!(!metrics.contains("no_push"), "arrivals are told: {metrics}");
    assert!(metrics.contains("scaler_queue_depth{profile="), "{metrics}");
    for unknown in ["scaler_queue_workers{", "state=\"delayed\"", "state=\"dead\""] {
        assert!(!metrics.contains(unknown), "{unknown}: {metrics}");
    }
}

/// A secret that was named by mistake is in nothing that KEDA or a person is told.
async fn shows_no_secret(kit: &Kit) {
    let hidden = object(&[("streamFromEnv", "hunter2"), ("consumerGroup", "embedders")]);
    let told = kit.value(&hidden).await.unwrap_err();
    assert!(told.message().contains("the stream that streamFromEnv names"), "{told}");
    let explained = page(kit.http, "/explain/ml/encoder").await;
    assert!(explained.contains("the name that streamFromEnv finds"), "{explained}");
    for told in [told.message(), &*explained] {
        assert!(!told.contains("hunter2"), "{told}");
    }
}

fn asking(triggers: &[&[(&str, &str)]]) -> Asking {
    let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    let metadata = |pairs: &&[(&str, &str)]| pairs.iter().map(own).collect::<BTreeMap<_, _>>();
    Asking {
        kind: "ScaledObject".into(),
        namespace: "ml".into(),
        name: "pool".into(),
        triggers: triggers.iter().map(metadata).enumerate().collect(),
    }
}

#[tokio::test]
async fn a_check_tells_what_is_looked_at_and_needs_no_queue_of_ebb() {
    let nats = Nats::start(NatsOptions::default()).await.unwrap();
    let mut client = Wire::to(nats.port()).await;
    client.say("CONNECT {\"verbose\":false}\nSUB reply.to 1\nPING\n", "PONG").await;
    client.ask("STREAM.CREATE.WORK", r#"{"name":"WORK","subjects":["work.>"]}"#).await;
    let config = r#"{"durable_name":"embedder","name":"embedder","ack_policy":"explicit"}"#;
    let consumer = format!(r#"{{"stream_name":"WORK","config":{config}}}"#);
    client.ask("CONSUMER.CREATE.WORK.embedder", &consumer).await;
    client.say("PUB work.a 1\nx\nPUB work.b 1\nx\nPING\n", "PONG").await;

    let (stream, reader) = (("stream", "WORK"), ("consumer", "embedder"));
    let drain = [stream, reader, ("mode", "drain"), ("drainSeconds", "1")];
    let objects = vec![asking(&[
        &[stream, reader, ("lagThreshold", "1")],
        &drain,
        &[stream, ("consumer", "nobody")],
        &[stream, ("consumerGroup", "embedder")],
    ])];
    let queue = Some(nats.url().parse().unwrap());
    let found = check(CheckArgs { queue, objects, ..CheckArgs::default() }).await.unwrap();
    let [profile] = &found.profiles[..] else { panic!("{found:?}") };
    assert!(profile.problem.is_none() && profile.server.is_some(), "{profile:?}");
    assert_eq!(profile.warnings.last().unwrap().code, "no_queue");
    let [jobs, drain, missing, wrong] = &found.triggers[..] else { panic!("{found:?}") };
    let answer = jobs.answer.as_ref().unwrap();
    assert_eq!(answer.looks_at, "stream WORK as embedder reads it");
    assert_eq!((answer.value, answer.target, answer.active), (2.0, 1.0, true));
    let basis = &drain.answer.as_ref().unwrap().basis;
    assert!(
        basis.contains("serviceSeconds and slotsPerReplica count as they are given"),
        "{basis}"
    );
    let problem = missing.problem.as_ref().unwrap();
    assert_eq!(problem.kind, ProblemKind::Broken);
    assert!(problem.words.contains("has no consumer \"nobody\""), "{problem:?}");
    let problem = wrong.problem.as_ref().unwrap();
    assert_eq!(problem.kind, ProblemKind::Refused);
    assert!(problem.words.contains("use consumer"), "{problem:?}");
}
