//! Who is at the other end of connections, and room for all that one of these has together.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::Semaphore;
use tokio_rustls::rustls::pki_types::CertificateDer;

/// Whom connections count for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Client {
    /// Whoever showed this certificate.
    Certificate(CertificateDer<'static>),
    /// Whoever is at this address, where nobody has to show one.
    Address(IpAddr),
}

impl Client {
    /// By the certificate that was shown, which is verified by now, and else by the address.
    pub(crate) fn of(certificate: Option<&CertificateDer<'_>>, address: SocketAddr) -> Self {
        match certificate {
            Some(certificate) => Self::Certificate(certificate.clone().into_owned()),
            None => Self::Address(address.ip().to_canonical()),
        }
    }
}

/// Calls of one client that have come in and were not read to their end yet. KEDA's are read as they
/// come; one that is sent by halves holds as much as a message may be large.
const MAX_UNREAD: usize = 1024;

/// Calls of one client that may wait for that. Nothing of them is read, and what they have sent by then
/// takes room too.
const MAX_WAITING: usize = 2048;

/// Calls of one client whose answers it has not read to their end. KEDA reads them as they come, and asks
/// two or three things at once about each of its objects; one that reads nothing lets none of them end.
const MAX_UNANSWERED: usize = 16_384;

/// What each client may have.
pub(crate) struct Clients {
    /// Long-lived streams on all its connections.
    streams: Rooms<Client>,
    /// Calls that are not read yet.
    unread: Rooms<Client>,
    /// Calls that wait to be read.
    waiting: Rooms<Client>,
    /// Calls from their first byte to the last one of their answer.
    unanswered: Rooms<Client>,
    /// Connections of an address, which is all that is known before a handshake.
    connections: Rooms<IpAddr>,
}

impl Clients {
    /// Room for so many streams of each client, and so many connections of each address.
    pub(crate) fn new(max_streams: usize, max_connections: usize) -> Self {
        Self {
            streams: Rooms::new(max_streams),
            unread: Rooms::new(MAX_UNREAD),
            waiting: Rooms::new(MAX_WAITING),
            unanswered: Rooms::new(MAX_UNANSWERED),
            connections: Rooms::new(max_connections),
        }
    }

    /// The room for streams that all connections of a client share.
    pub(crate) fn streams(&self, client: Client) -> Arc<Semaphore> {
        self.streams.of(client)
    }

    /// The same for calls that are not read yet.
    pub(crate) fn unread(&self, client: Client) -> Arc<Semaphore> {
        self.unread.of(client)
    }

    /// The same for calls that wait to be read.
    pub(crate) fn waiting(&self, client: Client) -> Arc<Semaphore> {
        self.waiting.of(client)
    }

    /// The same for calls whose answers it has not read.
    pub(crate) fn unanswered(&self, client: Client) -> Arc<Semaphore> {
        self.unanswered.of(client)
    }

    /// The room for connections from an address.
    pub(crate) fn connections(&self, address: SocketAddr) -> Arc<Semaphore> {
        self.connections.of(address.ip().to_canonical())
    }
}

/// Room for as much of each, kept while it has any.
struct Rooms<Of> {
    each: usize,
    rooms: Mutex<HashMap<Of, Weak<Semaphore>>>,
}

impl<Of: Hash + Eq> Rooms<Of> {
    fn new(each: usize) -> Self {
        Self { each, rooms: Mutex::default() }
    }

    fn of(&self, whom: Of) -> Arc<Semaphore> {
        // Each change is a single step, so the map is whole even if its holder panicked.
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(room) = rooms.get(&whom).and_then(Weak::upgrade) {
            return room;
        }
        // Who is gone takes no room; there are no more of them than connections.
        rooms.retain(|_, room| room.strong_count() > 0);
        let room = Arc::new(Semaphore::new(self.each));
        rooms.insert(whom, Arc::downgrade(&room));
        room
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio_rustls::rustls::pki_types::CertificateDer;

    use super::{Client, Clients};

    #[test]
    fn a_client_is_its_certificate_and_else_its_address() {
        let clients = Clients::new(3, 1);
        let room = |certificate: Option<&'static [u8]>, address: &str| {
            let certificate = certificate.map(CertificateDer::from);
            clients.streams(Client::of(certificate.as_ref(), address.parse().unwrap()))
        };
        let one = room(None, "10.0.0.1:1000");
        assert_eq!(one.available_permits(), 3);
        assert!(Arc::ptr_eq(&one, &room(None, "10.0.0.1:2000")));
        assert!(Arc::ptr_eq(&one, &room(None, "[::ffff:10.0.0.1]:2000")));
        assert!(!Arc::ptr_eq(&one, &room(None, "10.0.0.2:1000")));
        let keda = room(Some(b"keda"), "10.0.0.1:1000");
        assert!(!Arc::ptr_eq(&one, &keda));
        assert!(Arc::ptr_eq(&keda, &room(Some(b"keda"), "10.0.0.2:1000")));
        assert!(!Arc::ptr_eq(&keda, &room(Some(b"other"), "10.0.0.1:1000")));
    }

    #[test]
    fn clients_that_are_gone_are_forgotten() {
        let clients = Clients::new(3, 1);
        for nth in 0..1000u32 {
            let address = std::net::Ipv4Addr::from(nth);
            drop(clients.streams(Client::Address(address.into())));
        }
        assert_eq!(clients.streams.rooms.lock().unwrap().len(), 1);
    }
}
