//! Connections that are cut so that neither side hears of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ebb_queue::QueueUrl;
use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::{eventually, handle, hush, job, server};

/// Passes on what it gets, but for connections of listeners once it forgets them, as a NAT does
/// with those on which nothing came for long.
#[derive(Default)]
struct Nat {
    /// Listeners that it has seen.
    n_listeners: AtomicUsize,
    /// How many of the first of these it has forgotten.
    n_forgotten: AtomicUsize,
}

impl Nat {
    async fn start(to: u16) -> (Arc<Self>, u16) {
        let nat = Arc::new(Self::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let passing = nat.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                tokio::spawn(passing.clone().pass(client, server));
            }
        });
        (nat, port)
    }

    fn has_forgotten(&self, listener: Option<usize>) -> bool {
        listener.is_some_and(|number| number < self.n_forgotten.load(Ordering::SeqCst))
    }

    async fn pass(self: Arc<Self>, mut client: TcpStream, mut server: TcpStream) {
        let (mut up, mut down) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        let mut number = None;
        loop {
            tokio::select! {
                n = client.read(&mut up) => {
                    let Ok(n @ 1..) = n else { return };
                    if number.is_none() && up[..n].windows(9).any(|word| word == b"SUBSCRIBE") {
                        number = Some(self.n_listeners.fetch_add(1, Ordering::SeqCst));
                    }
                    if !self.has_forgotten(number) {
                        server.write_all(&up[..n]).await.unwrap();
                    }
                }
                n = server.read(&mut down) => {
                    let Ok(n @ 1..) = n else { return };
                    if !self.has_forgotten(number) {
                        client.write_all(&down[..n]).await.unwrap();
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn a_listener_that_is_cut_unseen_listens_anew() {
    let server = server("").await;
    let (nat, port) = Nat::start(server.port()).await;
    let url: QueueUrl = format!("redis://127.0.0.1:{port}").parse().unwrap();
    let queue = handle(&url).await;
    let mut told = queue.arrivals().await.unwrap();
    hush(&mut told, Duration::from_millis(300)).await;
    assert_eq!(nat.n_listeners.load(Ordering::SeqCst), 1);
    nat.n_forgotten.store(1, Ordering::SeqCst);
    let listens = async || nat.n_listeners.load(Ordering::SeqCst) > 1;
    eventually("it listens anew", listens).await;
    hush(&mut told, Duration::from_millis(300)).await;
    queue.publish(vec![job("a")]).await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), told.next()).await.unwrap().unwrap();
}
