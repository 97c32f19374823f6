//! Who is at the other end of connections, and room for the streams of all of these together.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::Semaphore;
use tokio_rustls::rustls::pki_types::CertificateDer;

/// Whom connections count for.
#[derive(Debug, PartialEq, Eq, Hash)]
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

/// Room for streams by client, kept while a client has a connection or a stream.
pub(crate) struct Clients {
    max_streams: usize,
    rooms: Mutex<HashMap<Client, Weak<Semaphore>>>,
}

impl Clients {
    /// Room for so many streams of each client.
    pub(crate) fn new(max_streams: usize) -> Self {
        Self { max_streams, rooms: Mutex::default() }
    }

    /// The room that all connections of a client share.
    pub(crate) fn room(&self, client: Client) -> Arc<Semaphore> {
        // Each change is a single step, so the map is whole even if its holder panicked.
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(room) = rooms.get(&client).and_then(Weak::upgrade) {
            return room;
        }
        // Who is gone takes no room; there are no more clients than connections.
        rooms.retain(|_, room| room.strong_count() > 0);
        let room = Arc::new(Semaphore::new(self.max_streams));
        rooms.insert(client, Arc::downgrade(&room));
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
        let clients = Clients::new(3);
        let room = |certificate: Option<&'static [u8]>, address: &str| {
            let certificate = certificate.map(CertificateDer::from);
            clients.room(Client::of(certificate.as_ref(), address.parse().unwrap()))
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
        let clients = Clients::new(3);
        for nth in 0..1000u32 {
            let address = std::net::Ipv4Addr::from(nth);
            drop(clients.room(Client::Address(address.into())));
        }
        assert_eq!(clients.rooms.lock().unwrap().len(), 1);
    }
}
