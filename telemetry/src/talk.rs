//! A connection of a client who speaks HTTP/1.1, and how long it may keep a server waiting.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use futures::future::BoxFuture;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::TcpKeepalive;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::stall::Heeded;

/// Bytes of the headers of a request, and of a response that wait for their client here: whoever
/// connects can make a server hold them.
const BUFFER: usize = 16 * 1024;

/// Bytes that wait for their client in the kernel, beyond those on their way: who reads nothing is
/// noticed soon, and holds no megabytes.
#[cfg(target_os = "linux")]
const UNSENT: u32 = 64 * 1024;

/// How long nothing is heard of a connection until its client is asked for a sign of life, by the kernels:
/// an answer may take minutes, in which balancers forget a connection that is quiet, and clients go without
/// a word.
const QUIET: Duration = Duration::from_secs(30);

/// From one try to take a connection to the next, where the machine has no room for another.
const PAUSE: Duration = Duration::from_secs(1);

/// How long a client has for the rest of its first headers, once no more requests are taken.
const LAST: Duration = Duration::from_secs(1);

/// What clients may ask of a server's patience.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// From a connection to the end of the headers of its first request. No longer than `idle`.
    pub headers: Duration,
    /// From an answer to the end of the headers of the next request.
    pub idle: Duration,
    /// How long a client may take nothing of what waits for it, or too little.
    pub stall: Duration,
}

/// What is heard of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// It asks for something.
    Asks,
    /// There is an answer for it.
    Answered,
    /// The headers of its first request were not there in time: it is cut off.
    Late,
    /// It does not take what it asked for: it is cut off.
    Stalled,
}

/// Hears of a client; nobody waits meanwhile, so it must be quick.
pub type Hears = Arc<dyn Fn(Heard) + Send + Sync>;

/// How the clients of a server are answered.
#[derive(Clone)]
pub struct Talk {
    /// What there is.
    pub pages: Router,
    /// How long they are waited for.
    pub patience: Patience,
    /// Who hears of them.
    pub hears: Hears,
    /// Once this is cancelled they have the answers that they wait for, and no more.
    pub drained: CancellationToken,
}

impl std::fmt::Debug for Talk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Talk").field("patience", &self.patience).finish_non_exhaustive()
    }
}

/// The next connection. Waits where the machine has no room for one.
pub async fn accept(listener: &TcpListener) -> TcpStream {
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

impl Talk {
    /// Answers the requests of one connection, until it ends or its client is cut off. Dropped, it cuts the
    /// client off.
    // Boxed here: an `async fn` is compiled in each crate that awaits it, with all that it awaits.
    #[inline(never)]
    pub fn with(self, connection: TcpStream) -> BoxFuture<'static, ()> {
        Box::pin(self.answer(connection))
    }

    async fn answer(self, connection: TcpStream) {
        let Self { pages, patience, hears, drained } = self;
        if let Err(error) = set_up(&connection) {
            debug!(%error, "a connection keeps the kernel's settings");
        }
        let has_asked = AtomicBool::new(false);
        let pages = TowerToHyperService::new(pages);
        let service = service_fn(|request| {
            has_asked.store(true, Ordering::Relaxed);
            hears(Heard::Asks);
            let (answer, hears) = (pages.call(request), Arc::clone(&hears));
            async move {
                let answer = answer.await;
                hears(Heard::Answered);
                answer
            }
        });
        let io = TokioIo::new(Heeded::new(connection, patience.stall, Arc::clone(&hears)));
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
                            hears(Heard::Late);
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
}

/// Lets what is told go out at once, and little of it wait; and notices who has gone without a word while
/// there is nothing to tell.
fn set_up(connection: &TcpStream) -> io::Result<()> {
    // A piece of an answer is small, and is not to wait for the next.
    connection.set_nodelay(true)?;
    let connection = socket2::SockRef::from(connection);
    connection.set_tcp_keepalive(&TcpKeepalive::new().with_time(QUIET).with_interval(QUIET))?;
    #[cfg(target_os = "linux")]
    connection.set_tcp_notsent_lowat(UNSENT)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_that_is_quiet_is_kept_alive_and_found_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, served) = tokio::join!(TcpStream::connect(address), accept(&listener));
        set_up(&served).unwrap();
        let served = socket2::SockRef::from(&served);
        assert!(served.keepalive().unwrap() && served.tcp_nodelay().unwrap());
        assert_eq!(served.tcp_keepalive_time().unwrap(), QUIET);
        drop(client);
    }
}
