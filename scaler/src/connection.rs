//! Connections from the port to the service: as many as are allowed, of each address and of all,
//! encrypted where that is wanted, and each with room for so many streams, of which its client has
//! as many as one may.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use prometheus::IntGauge;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::error::Elapsed;
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::client::{Client, Clients};
use crate::metrics::{Metrics, Refused};

/// A client that has not introduced itself by then is gone or means no good.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(10);

/// The length of what every HTTP/2 client begins with.
const PREFACE: usize = 24;

/// The system is out of something, such as file descriptors, and needs time.
const PAUSE: Duration = Duration::from_millis(100);

/// How connections are taken.
pub(crate) struct Welcome {
    /// Missing where connections are not encrypted.
    pub(crate) tls: Option<watch::Receiver<Arc<ServerConfig>>>,
    /// How long the two ends may take to agree.
    pub(crate) handshake: Duration,
    pub(crate) max_connections: usize,
    /// Long-lived streams on one connection.
    pub(crate) max_streams: usize,
    /// What one client may have on all its connections, and how many of these.
    pub(crate) clients: Clients,
    pub(crate) metrics: Metrics,
}

/// A connection that is ready for HTTP/2.
pub(crate) struct Connection {
    io: Io,
    /// Until when the client must have begun, and how many bytes of that are missing.
    greeting: Option<(Pin<Box<Sleep>>, usize)>,
    peer: Peer,
    /// Among all connections, and among those of its address.
    _room: [OwnedSemaphorePermit; 2],
    _counted: Counted,
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What the service may know of the other end.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    streams: Arc<Semaphore>,
    /// Shared by all connections of the client.
    of_client: Arc<Semaphore>,
    /// The same for calls that are not read yet, and for those that wait for room among them.
    unread: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    /// The same for calls until their answers are read.
    unanswered: Arc<Semaphore>,
}

/// Room for one long-lived stream: on its connection, and among those of its client.
pub(crate) type Room = [OwnedSemaphorePermit; 2];

/// Why there is no room for a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    /// The connection has as many as it may have.
    #[error("this connection has too many streams; raise --max-streams, or use more connections")]
    Connection,
    /// All connections of the client have.
    #[error(
        "the connections of this client have too many streams together; raise \
         --max-streams-per-client"
    )]
    Client,
    /// It sends more calls than it lets us read.
    #[error("this client has too many calls that are not sent whole; send less at once")]
    Calls,
    /// It asks more than it reads answers to.
    #[error("this client has too many calls whose answers it does not read; ask less at once")]
    Answers,
}

impl Peer {
    /// Room for one more long-lived stream, while there is any.
    pub(crate) fn room_for_a_stream(&self) -> Result<Room, Full> {
        let room = |streams: &Arc<Semaphore>| Arc::clone(streams).try_acquire_owned();
        let on_connection = room(&self.streams).map_err(|_| Full::Connection)?;
        let of_client = room(&self.of_client).map_err(|_| Full::Client)?;
        Ok([on_connection, of_client])
    }

    /// Room for a call until its answer is read, while there is any.
    pub(crate) fn room_for_an_answer(&self) -> Result<OwnedSemaphorePermit, Full> {
        Arc::clone(&self.unanswered).try_acquire_owned().map_err(|_| Full::Answers)
    }

    /// Room for a call until it is read, as soon as there is any.
    pub(crate) async fn room_for_a_call(&self) -> Result<OwnedSemaphorePermit, Full> {
        if let Ok(room) = Arc::clone(&self.unread).try_acquire_owned() {
            return Ok(room);
        }
        let _waits = self.waiting.try_acquire().map_err(|_| Full::Calls)?;
        Ok(Arc::clone(&self.unread).acquire_owned().await.expect("it is never closed"))
    }
}

/// The part of all connections that handshakes may be beside them, and that one address may have: so
/// that it takes several to keep the others out.
const PART_OF_HANDSHAKES: usize = 2;
const PART_OF_ADDRESS: usize = 4;

/// How many of so many connections one address may have.
pub(crate) fn of_one_address(max_connections: usize) -> usize {
    (max_connections / PART_OF_ADDRESS).max(1)
}

/// Room for what comes in.
struct Doors {
    connections: Arc<Semaphore>,
    /// Apart from those: who has not shown who it is takes the room of nobody who has.
    handshakes: Arc<Semaphore>,
}

impl Doors {
    fn new(max_connections: usize) -> Self {
        let room = |n: usize| Arc::new(Semaphore::new(n.max(1)));
        Self {
            connections: room(max_connections),
            handshakes: room(max_connections / PART_OF_HANDSHAKES),
        }
    }
}

/// Takes connections from the port for as long as it is read.
///
/// A handshake keeps nobody else waiting, and ends with this stream.
pub(crate) fn incoming(
    listener: TcpListener,
    welcome: Welcome,
) -> impl Stream<Item = io::Result<Connection>> {
    let doors = Doors::new(welcome.max_connections);
    async_stream::stream! {
        let mut handshakes = JoinSet::new();
        loop {
            let ready = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((tcp, address)) => welcome.take(tcp, address, &doors, &mut handshakes),
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be taken");
                        sleep(PAUSE).await;
                        None
                    }
                },
                Some(Ok(shaken)) = handshakes.join_next() => welcome.shaken(shaken, &doors),
            };
            if let Some(connection) = ready {
                yield Ok(connection);
            }
        }
    }
}

/// How a handshake ended, with whom, and the room that it holds among the connections of its address.
type Shaken = (Result<io::Result<TlsStream<TcpStream>>, Elapsed>, SocketAddr, OwnedSemaphorePermit);

impl Welcome {
    /// Begins with a connection; it is ready at once where it is not encrypted.
    fn take(
        &self,
        tcp: TcpStream,
        address: SocketAddr,
        doors: &Doors,
        handshakes: &mut JoinSet<Shaken>,
    ) -> Option<Connection> {
        let of_address = self.clients.connections(address);
        let of_address = self.room(&of_address, address, "too many connections of this address")?;
        // Answers are small and must not wait for one another.
        drop(tcp.set_nodelay(true));
        let Some(tls) = &self.tls else {
            return self.connection(Io::Plain(tcp), address, of_address, doors);
        };
        let begun = self.room(&doors.handshakes, address, "too many handshakes")?;
        let acceptor = TlsAcceptor::from(Arc::clone(&tls.borrow()));
        let time = self.handshake;
        handshakes.spawn(async move {
            let shaken = timeout(time, acceptor.accept(tcp)).await;
            drop(begun);
            (shaken, address, of_address)
        });
        None
    }

    fn shaken(&self, (shaken, address, of_address): Shaken, doors: &Doors) -> Option<Connection> {
        match shaken {
            Ok(Ok(tls)) => {
                return self.connection(Io::Tls(Box::new(tls)), address, of_address, doors);
            }
            Ok(Err(error)) => self.refuse(Refused::Handshake, address, error),
            Err(late) => self.refuse(Refused::Timeout, address, late),
        }
        None
    }

    fn connection(
        &self,
        io: Io,
        address: SocketAddr,
        of_address: OwnedSemaphorePermit,
        doors: &Doors,
    ) -> Option<Connection> {
        let room = [self.room(&doors.connections, address, "too many connections")?, of_address];
        let certificate = match &io {
            Io::Plain(_) => None,
            Io::Tls(tls) => tls.get_ref().1.peer_certificates().and_then(<[_]>::first),
        };
        let client = Client::of(certificate, address);
        let peer = Peer {
            streams: Arc::new(Semaphore::new(self.max_streams)),
            of_client: self.clients.streams(client.clone()),
            unread: self.clients.unread(client.clone()),
            waiting: self.clients.waiting(client.clone()),
            unanswered: self.clients.unanswered(client),
        };
        let gauge = self.metrics.connections();
        gauge.inc();
        let greeting = Some((Box::pin(sleep(self.handshake)), PREFACE));
        Some(Connection { io, greeting, peer, _room: room, _counted: Counted(gauge) })
    }

    fn room(
        &self,
        room: &Arc<Semaphore>,
        address: SocketAddr,
        full: &str,
    ) -> Option<OwnedSemaphorePermit> {
        let room = Arc::clone(room).try_acquire_owned();
        room.inspect_err(|_| self.refuse(Refused::Full, address, full)).ok()
    }

    fn refuse(&self, refused: Refused, address: SocketAddr, why: impl std::fmt::Display) {
        self.metrics.refused(refused);
        tracing::debug!(%address, %why, "connection refused");
    }
}

/// Counts a connection while it lives.
struct Counted(IntGauge);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let n_before = buf.filled().len();
        let read = match &mut self.io {
            Io::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Io::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        };
        if let Some((deadline, n_missing)) = &mut self.greeting {
            *n_missing = n_missing.saturating_sub(buf.filled().len() - n_before);
            if *n_missing == 0 {
                self.greeting = None;
            } else if read.is_pending() && deadline.as_mut().poll(cx).is_ready() {
                // Nothing else ends the wait for a client that says nothing.
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Io::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Io::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(tcp) => tcp.is_write_vectored(),
            Io::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Io::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Io::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use futures::StreamExt;
    use prometheus::Registry;
    use rcgen::{CertificateParams, KeyPair};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpSocket, TcpStream};
    use tokio::sync::Semaphore;

    use super::{Full, Peer, Welcome, incoming, of_one_address};
    use crate::client::Clients;
    use crate::metrics::Metrics;
    use crate::tls::{Tls, TlsArgs};

    #[tokio::test]
    async fn a_client_that_never_introduces_itself_is_let_go_with_its_room() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(Vec::<String>::new()).unwrap().self_signed(&key).unwrap();
        std::fs::write(at("cert"), cert.pem()).unwrap();
        std::fs::write(at("key"), key.serialize_pem()).unwrap();
        let args =
            TlsArgs { tls_cert: Some(at("cert")), tls_key: Some(at("key")), ..TlsArgs::default() };
        let tls = Tls::load(args.files().unwrap().unwrap()).unwrap();
        let registry = Registry::new();
        let welcome = Welcome {
            tls: Some(tls.config()),
            handshake: Duration::from_millis(50),
            max_connections: 1,
            max_streams: 1,
            clients: Clients::new(1, 1),
            metrics: Metrics::register(&registry).unwrap(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let mut incoming = std::pin::pin!(incoming(listener, welcome));
            incoming.next().await.is_some()
        });
        let refused = |reason: &str| {
            let families = registry.gather();
            let all = families.iter().filter(|f| f.name() == "scaler_connections_refused_total");
            let all = all.flat_map(prometheus::proto::MetricFamily::get_metric);
            let mut of = all.filter(|metric| metric.get_label()[0].value() == reason);
            of.next().map_or(0.0, |metric| metric.get_counter().get_value())
        };
        // The second has room only once the first was let go; the others have none meanwhile.
        let mut silent = Vec::new();
        while refused("timeout") < 2.0 || refused("full") < 1.0 {
            silent.push(TcpStream::connect(address).await.unwrap());
            tokio::time::sleep(Duration::from_millis(5)).await;
            assert!(silent.len() < 4000, "nobody is let go, or too many are let in");
        }
        assert!(!server.is_finished());
        server.abort();
    }

    #[tokio::test]
    async fn a_call_waits_for_room_beside_so_many_and_one_more_is_refused() {
        let room = |n| Arc::new(Semaphore::new(n));
        let [streams, of_client, unread, waiting, unanswered] = [1; 5].map(room);
        let peer = Peer { streams, of_client, unread, waiting, unanswered };
        let first = peer.room_for_a_call().await.unwrap();
        let mut second = Box::pin(peer.room_for_a_call());
        assert!(futures::poll!(&mut second).is_pending());
        let third = peer.room_for_a_call().await;
        assert!(matches!(third, Err(Full::Calls)), "{third:?}");
        drop(first);
        let second = second.await.unwrap();
        // Who waits no more leaves room to wait.
        assert!(futures::poll!(Box::pin(peer.room_for_a_call())).is_pending());
        drop(second);
        assert!(peer.room_for_a_call().await.is_ok());
    }

    #[tokio::test]
    async fn one_address_has_a_quarter_of_the_connections_and_the_others_have_room() {
        let welcome = Welcome {
            tls: None,
            handshake: Duration::from_secs(60),
            max_connections: 8,
            max_streams: 1,
            clients: Clients::new(1, of_one_address(8)),
            metrics: Metrics::register(&Registry::new()).unwrap(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming = std::pin::pin!(incoming(listener, welcome));
        let connect = async |from: &str| {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(from.parse().unwrap()).unwrap();
            socket.connect(address).await.unwrap()
        };
        let mut silent = Vec::new();
        for _ in 0..8 {
            silent.push(connect("127.0.0.1:0").await);
        }
        let other = connect("127.0.0.2:0").await;
        let mut taken = Vec::new();
        for _ in 0..3 {
            taken.push(incoming.next().await.unwrap().unwrap());
        }
        // Two of the first, and the other, though eight came before it.
        let from = |connection: &super::Connection| match &connection.io {
            super::Io::Plain(tcp) => tcp.peer_addr().unwrap(),
            super::Io::Tls(_) => unreachable!("none is encrypted"),
        };
        assert_eq!(from(&taken[2]), other.local_addr().unwrap());
        // Who is let go leaves room.
        drop((taken, silent));
        let next = connect("127.0.0.1:0").await;
        let taken = incoming.next().await.unwrap().unwrap();
        assert_eq!(from(&taken), next.local_addr().unwrap());
    }

    #[tokio::test]
    async fn a_client_that_does_not_begin_is_let_go_without_tls_too() {
        let registry = Registry::new();
        let welcome = Welcome {
            tls: None,
            handshake: Duration::from_millis(50),
            max_connections: 1,
            max_streams: 1,
            clients: Clients::new(1, 1),
            metrics: Metrics::register(&registry).unwrap(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming = std::pin::pin!(incoming(listener, welcome));
        let mut client = TcpStream::connect(address).await.unwrap();
        let mut connection = incoming.next().await.unwrap().unwrap();
        // Half of what a client begins with is not enough.
        client.write_all(b"PRI * HTTP/2").await.unwrap();
        let error = connection.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    }
}
