//! Connections of clients: how many there are at once, and how long each may keep the gateway waiting.

use std::io::{self, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::metrics::{Closed, Metrics};
use crate::openai::Refused;
use crate::stall::Heeded;

/// Bytes of the headers of a request, and of a response that wait for their client here: whoever
/// connects can make the gateway hold them, without a key.
const BUFFER: usize = 16 * 1024;

/// Bytes that wait for their client in the kernel, beyond those on their way: who reads nothing is
/// noticed soon, and holds no megabytes.
#[cfg(target_os = "linux")]
const UNSENT: u32 = 64 * 1024;

/// From one try to take a connection to the next, where the machine has no room for another.
const PAUSE: Duration = Duration::from_secs(1);

/// How long a client that is refused is heard.
const HEARD: Duration = Duration::from_secs(1);

/// Clients that are refused and heard at once. Each is an open file.
pub(crate) const REFUSED: usize = 256;

/// How long a client has for the rest of its first headers, once no more requests are taken.
const LAST: Duration = Duration::from_secs(1);

/// What clients may ask of the gateway's patience.
#[derive(Debug, Clone)]
pub(crate) struct Patience {
    /// Connections at once.
    pub(crate) max_connections: usize,
    /// From a connection to the end of the headers of its first request.
    pub(crate) headers: Duration,
    /// From an answer to the end of the headers of the next request.
    pub(crate) idle: Duration,
    /// How long a client may take nothing of what waits for it.
    pub(crate) stall: Duration,
}

/// Answers requests until `drained` is cancelled, and then those that are there. Dropped, it cuts off
/// whoever is left.
pub(crate) async fn serve(
    listener: TcpListener,
    pages: Router,
    (patience, metrics): (Patience, Metrics),
    drained: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(patience.max_connections.min(Semaphore::MAX_PERMITS)));
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
        let (pages, patience) = (pages.clone(), patience.clone());
        let (metrics, drained) = (metrics.clone(), drained.clone());
        connections.spawn(async move {
            let _permit = permit;
            talk(accepted, pages, (&patience, &metrics), drained).await;
        });
    }
    // Nobody waits in vain for an answer of ours.
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// The next connection.
async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((connection, _)) => return connection,
            Err(error) if is_the_clients(&error) => debug!(%error, "a client has gone already"),
            Err(error) => {
                warn!(%error, "no connection can be taken; trying again");
                sleep(PAUSE).await;
            }
        }
    }
}

fn is_the_clients(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
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

/// Answers the requests of one connection.
async fn talk(
    connection: TcpStream,
    pages: Router,
    (patience, metrics): (&Patience, &Metrics),
    drained: CancellationToken,
) {
    let _open = metrics.connection();
    if let Err(error) = hasten(&connection) {
        debug!(%error, "a connection keeps the kernel's settings");
    }
    let has_asked = AtomicBool::new(false);
    let pages = TowerToHyperService::new(pages);
    let service = service_fn(|request| {
        has_asked.store(true, Ordering::Relaxed);
        pages.call(request)
    });
    let io = TokioIo::new(Heeded::new(connection, patience.stall, metrics.clone()));
    let mut talk = http1::Builder::new();
    talk.timer(TokioTimer::new()).header_read_timeout(patience.idle).max_buf_size(BUFFER);
    let mut talk = std::pin::pin!(talk.serve_connection(io, service));
    let mut late = std::pin::pin!(sleep(patience.headers));
    let (mut is_first, mut is_drained) = (true, false);
    loop {
        tokio::select! { biased;
            // Before the talk, whose own timer may end at the same time and is not counted.
            () = &mut late, if is_first => {
                is_first = false;
                if !has_asked.load(Ordering::Relaxed) {
                    if !is_drained {
                        metrics.closed(Closed::Late);
                    }
                    return;
                }
            }
            ended = talk.as_mut() => {
                if let Err(error) = ended {
                    debug!(%error, "a connection ended otherwise than it should");
                }
                return;
            }
            () = drained.cancelled(), if !is_drained => {
                is_drained = true;
                talk.as_mut().graceful_shutdown();
                // Where a part of the first headers is there, the talk waits for all of them.
                let last = late.deadline().min(Instant::now() + LAST);
                late.as_mut().reset(last);
            }
        }
    }
}

/// Lets what is told go out at once, and little of it wait.
fn hasten(connection: &TcpStream) -> io::Result<()> {
    // A piece of an answer is small, and is not to wait for the next.
    connection.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(connection).set_tcp_notsent_lowat(UNSENT)?;
    Ok(())
}
