//! Of several hosts in the URL, those that are dead keep nobody from the one that lives.

use std::time::Duration;

use ebb_queue::{ErrorKind, OpenOptions, QueueUrl, open};
use ebb_servers::Redis;
use futures::StreamExt;
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::{eventually, job, refusal, server};

/// The scaler waits 5 s for each answer; this machine may be busy, and a host in turn would take 10 s.
const ANSWER: Duration = Duration::from_secs(9);

/// A host that takes connections, and never says a word.
async fn hung() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

fn behind(ports: &[u16], server: &Redis) -> QueueUrl {
    let dead: String = ports.iter().map(|port| format!("127.0.0.1:{port},")).collect();
    format!("redis://{dead}127.0.0.1:{}?lease=2s", server.port()).parse().unwrap()
}

#[tokio::test]
async fn hosts_that_never_answer_are_passed_over_in_the_time_that_a_scaler_has() {
    let mut server = server("").await;
    let ((_one, one), (_other, other)) = (hung().await, hung().await);
    let url = behind(&[one, other], &server);
    let opened = open(&url, OpenOptions::default());
    let queue = timeout(ANSWER, opened).await.expect("it is opened in time").unwrap();
    let mut told = timeout(ANSWER, queue.arrivals()).await.expect("it listens in time").unwrap();
    queue.publish(vec![job("a")]).await.unwrap();
    timeout(ANSWER, told.next()).await.expect("an arrival is told").unwrap();
    // Also when the connection is made anew.
    server.kill();
    eventually("the loss is noticed", async || !queue.link().is_up()).await;
    server.restart().await.unwrap();
    eventually("the link is back", async || queue.link().is_up()).await;
    queue.depth().await.unwrap();
}

#[tokio::test]
async fn when_no_host_answers_each_is_named_with_its_reason() {
    let mut ports = Vec::new();
    for _ in 0..2 {
        ports.push(hung().await.1);
    }
    let (one, other) = (ports[0], ports[1]);
    let url: QueueUrl = format!("redis://127.0.0.1:{one},127.0.0.1:{other}").parse().unwrap();
    let connect_timeout = Duration::from_secs(1);
    let options = OpenOptions { connect_timeout, ..OpenOptions::default() };
    let error = refusal(&url, options).await;
    let words = error.to_string();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{words}");
    for port in ports {
        assert!(words.contains(&format!("redis at 127.0.0.1:{port} does not answer")), "{words}");
    }
    assert_eq!(words.matches("refused").count(), 2, "{words}");
}
