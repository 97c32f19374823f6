//! Of several hosts in the URL, those that are dead keep nobody from the one that lives.

use std::time::Duration;

use ebb_queue::{ErrorKind, OpenOptions, QueueUrl, open};
use ebb_servers::{RabbitMq, RabbitMqOptions};
use futures::StreamExt;
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::{depth, job, until};

/// A host that takes connections, and never says a word.
async fn hung() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[tokio::test]
async fn hosts_that_never_answer_are_passed_over_in_the_time_that_a_scaler_has() {
    let mut server = RabbitMq::start(RabbitMqOptions::default()).await.unwrap();
    let ((_one, one), (_other, other)) = (hung().await, hung().await);
    let dead = format!("127.0.0.1:{one},127.0.0.1:{other}");
    let url = format!("amqp://guest:guest@{dead},127.0.0.1:{}?queue=jobs", server.port());
    let url: QueueUrl = url.parse().unwrap();
    // The scaler waits 5 s; this machine may be busy, and a host in turn would take 10 s each.
    let answer = Duration::from_secs(9);
    let opened = open(&url, OpenOptions::default());
    let queue = timeout(answer, opened).await.expect("it is opened in time").unwrap();
    let mut told = timeout(answer, queue.arrivals()).await.expect("it listens in time").unwrap();
    queue.publish(vec![job("a")]).await.unwrap();
    timeout(answer, told.next()).await.expect("an arrival is told").unwrap();
    // Also when the connection is made anew.
    server.kill();
    until("the loss is noticed", async || !queue.link().is_up()).await;
    server.restart().await.unwrap();
    until("the link is back", async || queue.link().is_up()).await;
    depth(&queue).await;
}

#[tokio::test]
async fn when_no_host_answers_each_is_named_with_its_reason() {
    let (_listener, silent) = hung().await;
    let closed = hung().await.1;
    let url = format!("amqp://127.0.0.1:{silent},127.0.0.1:{closed}?queue=jobs");
    let connect_timeout = Duration::from_secs(1);
    let options = OpenOptions { connect_timeout, ..OpenOptions::default() };
    let Err(error) = open(&url.parse().unwrap(), options).await else { panic!("nobody is there") };
    let words = error.to_string();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{words}");
    assert!(words.contains(&format!("127.0.0.1:{silent} did not answer in time")), "{words}");
    assert!(words.contains(&format!("127.0.0.1:{closed}")), "{words}");
    assert!(words.contains("refused"), "{words}");
}
