//! How a gateway ends.

use std::time::Duration;

use clap::Parser;
use ebb_queue::{Backlog, JSON, JobResult, OpenOptions, Outcome, Queue, QueueUrl, Timestamp};
use ebb_servers::Port;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::running::{Cli, Running, ask, at, page};
use crate::scene::{Events, Scene, Setting, get, post};

#[tokio::test(start_paused = true)]
async fn who_waits_when_the_time_is_over_is_told_the_job_which_stays() {
    let scene = Scene::new(Setting::default());
    let body = json!({"model": "m", "input": "a"}).to_string();
    let waits = scene.begin(post("/v1/embeddings", body));
    tokio::time::sleep(Duration::from_millis(10)).await;
    let chat = json!({"stream": true, "messages": [{"role": "user", "content": "a"}]}).to_string();
    let stream = scene.send(post("/v1/chat/completions", chat)).await;
    let mut events = Events::of(stream);
    scene.closing.cancel();
    let reply = waits.await.unwrap();
    assert_eq!(reply.error(), (503, "gateway_ends".to_owned()));
    let last = events.rest().await.pop().unwrap();
    assert!(last.contains("gateway_ends"), "{last}");
    assert_eq!(scene.queue.depth().await.unwrap().ready, 2);
    let id = reply.header("ebb-id").unwrap();
    assert_eq!(scene.ask(get(&format!("/v1/jobs/{id}"))).await.json()["state"], "waiting");
}

async fn answer_one(queue: &Queue) {
    let max = 1.try_into().unwrap();
    let delivery = loop {
        if let Some(one) = queue.receive(max, Duration::from_secs(5)).await.unwrap().pop() {
            break one;
        }
    };
    let body = r#"{"data":[{"embedding":[7]}],"usage":{"prompt_tokens":1,"total_tokens":1}}"#;
    let outcome = Outcome::Completed { content_type: JSON.to_owned(), body: body.into() };
    let id = delivery.job.id.clone();
    let finished_at = Timestamp::now();
    queue.put(&JobResult { id, attempt: 1, outcome, finished_at, queue: None }).await.unwrap();
    queue.settle(&[delivery.ack()]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn at_sigterm_who_waits_is_answered_first() {
    let folder = tempfile::tempdir().unwrap();
    let url = QueueUrl::sqlite(folder.path().join("queue.db"));
    let queue = ebb_queue::open(&url, OpenOptions::default()).await.unwrap();
    let running = Running::start(&url, &[]).await;
    let body = r#"{"model": "jobs", "input": "a"}"#;
    let request = format!(
        "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let waits = tokio::spawn(ask(running.listen, request));
    while queue.depth().await.unwrap().ready == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    running.close().await;
    running.refuses().await;
    assert!(!waits.is_finished(), "who waits is not let down");
    answer_one(&queue).await;
    let reply = waits.await.unwrap().unwrap();
    assert!(reply.starts_with("HTTP/1.1 200") && reply.contains("[7]"), "{reply}");
    running.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_know_yet_that_the_gateway_ends_is_still_answered() {
    let folder = tempfile::tempdir().unwrap();
    let url = QueueUrl::sqlite(folder.path().join("queue.db"));
    // A slow machine may come too late: then with more time.
    for linger in ["2s", "10s", "30s"] {
        let running = Running::start(&url, &["--linger", linger]).await;
        running.close().await;
        let told = ask(running.listen, page("/v1/models")).await;
        running.refuses().await;
        running.ends().await;
        if told.is_ok_and(|page| page.starts_with("HTTP/1.1 200")) {
            return;
        }
    }
    panic!("nobody is answered once the gateway is not ready any more");
}

#[tokio::test]
async fn a_gateway_that_is_stopped_while_it_opens_its_queues_ends() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let queue = format!("nats://{}?queue=q", silent.local_addr().unwrap());
    let port = Port::draw().unwrap();
    let listen = at(&port).to_string();
    let args = Cli::parse_from(["gateway", "--queue", &queue, "--listen", &listen]).gateway;
    let stop = CancellationToken::new();
    let gateway = tokio::spawn(ebb_gateway::run(args, stop.clone()));
    drop(silent.accept().await.unwrap());
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(20), gateway).await.unwrap().unwrap().unwrap();
}
