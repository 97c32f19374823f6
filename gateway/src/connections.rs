//! Connections of clients: how many there are at once, and how long each may keep the gateway waiting.

use std::io::{self, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use ebb_telemetry::{Heard, Hears, Patience, Talk, accept};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::metrics::{Closed, Metrics};
use crate::openai::Refused;

/// How long a client that is refused is heard.
const HEARD: Duration = Duration::from_secs(1);

/// Clients that are refused and heard at once. Each is an open file.
pub(crate) const REFUSED: usize = 256;

/// Who is let in, and how long he is waited for.
#[derive(Debug, Clone)]
pub(crate) struct Welcome {
    /// Connections at once.
    pub(crate) max_connections: usize,
    pub(crate) patience: Patience,
}

/// Answers requests until `drained` is cancelled, and then those that are there. Dropped, it cuts off
/// whoever is left.
pub(crate) async fn serve(
    listener: TcpListener,
    pages: Router,
    (welcome, metrics): (Welcome, Metrics),
    drained: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(welcome.max_connections.min(Semaphore::MAX_PERMITS)));
    let hears = hears(metrics.clone());
    let talk = Talk { pages, patience: welcome.patience, hears, drained: drained.clone() };
    let (refusal, heard) = (refusal(), Arc::new(Semaphore::new(REFUSED)));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! { biased;
            () = drained.cancelled() => break,
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    warn!(%error, "a connection was lost");
                }
                continue;
            }
            accepted = accept(&listener) => accepted,
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            metrics.closed(Closed::Full);
            match (refuse(accepted, &refusal), Arc::clone(&heard).try_acquire_owned()) {
                (Ok(refused), Ok(permit)) => {
                    connections.spawn(async move {
                        let _permit = permit;
                        hear(refused).await;
                    });
                }
                // So many are refused at once that this one may not hear it.
                (Ok(_), Err(_)) => {}
                (Err(error), _) => debug!(%error, "who is refused does not hear why"),
            }
            continue;
        };
        let (open, talk) = (metrics.connection(), talk.clone());
        connections.spawn(async move {
            let (_permit, _open) = (permit, open);
            talk.with(accepted).await;
        });
    }
    // Nobody waits in vain for an answer of ours.
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Counts those who are cut off.
fn hears(metrics: Metrics) -> Hears {
    Arc::new(move |heard| match heard {
        Heard::Asks | Heard::Answered => {}
        Heard::Late => metrics.closed(Closed::Late),
        Heard::Stalled => metrics.closed(Closed::Stalled),
    })
}

/// What a client is told for whom there is no room, whatever it asks.
fn refusal() -> Vec<u8> {
    let words = "the gateway has as many connections as it takes; come again after retry-after";
    let body = Refused::new(503, "too_many_connections", words).body();
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nretry-after: 1\r\nconnection: close\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), &body].concat()
}

/// Tells a client that there is no room, without waiting for anything.
fn refuse(connection: TcpStream, refusal: &[u8]) -> io::Result<TcpStream> {
    let mut connection = connection.into_std()?;
    connection.write_all(refusal)?;
    connection.shutdown(Shutdown::Write)?;
    TcpStream::from_std(connection)
}

/// Reads what a refused client asks, until it has done or for a while: unread, or sent to a connection
/// that is closed, it would make the kernels take the answer back.
async fn hear(mut connection: TcpStream) {
    let mut part = [0; 4096];
    let reads = async { while matches!(connection.read(&mut part).await, Ok(1..)) {} };
    tokio::select! {
        () = reads => {}
        () = sleep(HEARD) => {}
    }
}
