//! How a gateway ends.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser;
use ebb_gateway::GatewayArgs;
use ebb_queue::{Backlog, JSON, JobResult, OpenOptions, Outcome, Queue, QueueUrl, Timestamp};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

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

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    gateway: GatewayArgs,
}

/// A gateway of this queue until it is stopped, and its two addresses.
async fn started(
    url: &QueueUrl,
    more: &[&str],
) -> (SocketAddr, SocketAddr, CancellationToken, tokio::task::JoinHandle<anyhow::Result<()>>) {
    let (listen, admin) = (free().await, free().await);
    let own = ["gateway", "--queue", &url.to_string(), "--listen", &listen.to_string()];
    let flags = own.into_iter().chain(more.iter().copied()).chain(["--admin-listen"]);
    let flags = flags.map(str::to_owned).chain([admin.to_string()]);
    let stop = CancellationToken::new();
    let gateway = tokio::spawn(ebb_gateway::run(Cli::parse_from(flags).gateway, stop.clone()));
    until_ready(admin).await;
    (listen, admin, stop, gateway)
}

/// An address that was free a moment ago.
async fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// Sends a request on a connection of its own, and reads the response to its end.
async fn ask(address: SocketAddr, request: String) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut page = String::new();
    stream.read_to_string(&mut page).await?;
    Ok(page)
}

fn page(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
}

async fn until_ready(address: SocketAddr) {
    loop {
        let told = ask(address, page("/readyz")).await;
        if told.is_ok_and(|page| page.starts_with("HTTP/1.1 200")) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
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
    let (listen, admin, stop, gateway) = started(&url, &[]).await;
    let body = r#"{"model": "jobs", "input": "a"}"#;
    let request = format!(
        "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let waits = tokio::spawn(ask(listen, request));
    while queue.depth().await.unwrap().ready == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.cancel();
    while ask(admin, page("/readyz")).await.unwrap().starts_with("HTTP/1.1 200") {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(ask(listen, page("/v1/models")).await.is_err(), "nobody new is let in");
    answer_one(&queue).await;
    let reply = waits.await.unwrap().unwrap();
    assert!(reply.starts_with("HTTP/1.1 200") && reply.contains("[7]"), "{reply}");
    gateway.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_know_yet_that_the_gateway_ends_is_still_answered() {
    let folder = tempfile::tempdir().unwrap();
    let url = QueueUrl::sqlite(folder.path().join("queue.db"));
    let (listen, admin, stop, gateway) = started(&url, &["--linger", "2s"]).await;
    stop.cancel();
    while ask(admin, page("/readyz")).await.unwrap().starts_with("HTTP/1.1 200") {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let told = ask(listen, page("/v1/models")).await.unwrap();
    assert!(told.starts_with("HTTP/1.1 200"), "{told}");
    while ask(listen, page("/v1/models")).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    gateway.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_gateway_that_is_stopped_while_it_opens_its_queues_ends() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let queue = format!("nats://{}?queue=q", silent.local_addr().unwrap());
    let listen = free().await.to_string();
    let args = Cli::parse_from(["gateway", "--queue", &queue, "--listen", &listen]).gateway;
    let stop = CancellationToken::new();
    let gateway = tokio::spawn(ebb_gateway::run(args, stop.clone()));
    drop(silent.accept().await.unwrap());
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(5), gateway).await.unwrap().unwrap().unwrap();
}
