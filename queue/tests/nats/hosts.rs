//! Of several hosts in the URL, those that are dead keep nobody from the one that lives.

use std::time::Duration;

use ebb_queue::{ErrorKind, OpenOptions, open};
use ebb_servers::{Nats, NatsOptions};
use futures::StreamExt;
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::{block_on, job, try_open_within, until};

/// The scaler waits 5 s for each answer; this machine may be busy, and a host in turn would take 5 s
/// each.
const ANSWER: Duration = Duration::from_secs(15);

/// A host that takes connections, and never says a word.
async fn hung() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[test]
fn hosts_that_never_answer_are_passed_over_in_the_time_that_a_scaler_has() {
    block_on(async {
        let mut server = Nats::start(NatsOptions::default()).await.unwrap();
        let mut silent = Vec::new();
        for _ in 0..8 {
            silent.push(hung().await);
        }
        let dead: String = silent.iter().map(|(_, port)| format!("127.0.0.1:{port},")).collect();
        // Hosts are called in any order, so that one time may be luck.
        for _ in 0..3 {
            let url = format!("nats://{dead}127.0.0.1:{}", server.port()).parse().unwrap();
            let opened = timeout(ANSWER, open(&url, OpenOptions::default()));
            opened.await.expect("it is opened in time").unwrap();
        }
        let url = format!("nats://{dead}127.0.0.1:{}", server.port()).parse().unwrap();
        let queue = open(&url, OpenOptions::default()).await.unwrap();
        let mut told = queue.arrivals().await.unwrap();
        queue.publish(vec![job("a")]).await.unwrap();
        timeout(ANSWER, told.next()).await.expect("an arrival is told").unwrap();
        // Also when the connection is made anew.
        server.kill();
        until("the loss is noticed", async || !queue.link().is_up()).await;
        server.restart().await.unwrap();
        until("the link is back", async || queue.link().is_up()).await;
        assert_eq!(queue.depth().await.unwrap().ready, 1);
    });
}

#[test]
fn when_no_host_answers_each_is_named() {
    block_on(async {
        let ((_listener, silent), closed) = (hung().await, hung().await.1);
        let url = format!("nats://127.0.0.1:{silent},127.0.0.1:{closed}");
        let opened = try_open_within(Duration::from_secs(1), &url).await;
        let error = opened.err().expect("nobody is there");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        for port in [silent, closed] {
            assert!(error.to_string().contains(&format!("127.0.0.1:{port}")), "{error}");
        }
    });
}
