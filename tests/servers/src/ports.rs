//! Ports for servers that bind them later, each held for one owner on this machine.

use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use crate::{Error, Result};

/// Below those that the system hands out to clients, so that a server that is restarted finds its
/// port as it left it.
const NUMBERS: std::ops::Range<u16> = 20_000..32_000;

/// A port of the loopback that no other owner of a [`Port`] gets while this one lives.
///
/// A server binds its port long after it was found free, and lets it go while it is killed. So the
/// number is held by a name of its own, which ends with the process of the owner at the latest.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _name: UnixListener,
}

impl Port {
    /// A port that nobody listens on.
    ///
    /// # Errors
    /// When there is none.
    pub fn draw() -> Result<Self> {
        let drawn = (0..1000).find_map(|_| Self::claim(rand::random_range(NUMBERS)));
        let words = format!("no free port between {} and {}", NUMBERS.start, NUMBERS.end - 1);
        drawn.ok_or(Error(words))
    }

    fn claim(number: u16) -> Option<Self> {
        let name = SocketAddr::from_abstract_name(format!("ebb-test-port-{number}")).ok()?;
        let name = UnixListener::bind_addr(&name).ok()?;
        // Somebody else's server may listen there.
        TcpListener::bind((Ipv4Addr::LOCALHOST, number)).ok()?;
        Some(Self { number, _name: name })
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }
}

/// So many ports that nobody listens on.
pub(crate) fn draw<const N: usize>() -> Result<[Port; N]> {
    let ports = (0..N).map(|_| Port::draw()).collect::<Result<Vec<_>>>()?;
    Ok(ports.try_into().expect("so many were drawn"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_has_one_owner_until_that_is_gone() {
        let port = Port::draw().unwrap();
        assert!(Port::claim(port.number()).is_none());
        let number = port.number();
        drop(port);
        assert!(Port::claim(number).is_some());
    }

    #[test]
    fn a_port_on_which_somebody_listens_is_nobodys() {
        let listener = NUMBERS
            .rev()
            .find_map(|number| TcpListener::bind((Ipv4Addr::LOCALHOST, number)).ok())
            .unwrap();
        assert!(Port::claim(listener.local_addr().unwrap().port()).is_none());
    }

    #[test]
    fn all_that_are_drawn_differ_and_the_server_can_have_them() {
        let ports: [Port; 6] = draw().unwrap();
        let listeners: Vec<_> = ports
            .iter()
            .map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port.number())))
            .collect();
        assert!(listeners.iter().all(std::io::Result::is_ok), "{listeners:?}");
    }
}
