//! Ports that are free.

use std::net::{Ipv4Addr, TcpListener};

use crate::{Error, Result};

/// So many free ports of the loopback, all different.
///
/// Below those that the system hands out to clients, so that a server that is restarted finds its
/// port as it left it.
pub(crate) fn free<const N: usize>() -> Result<[u16; N]> {
    let mut held = Vec::with_capacity(N);
    for _ in 0..1000 {
        if held.len() == N {
            break;
        }
        let port = rand::random_range(20_000..32_000);
        held.extend(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok().map(|open| (port, open)));
    }
    let ports: Vec<u16> = held.iter().map(|(port, _)| *port).collect();
    let words = "no free port between 20000 and 32000 on the loopback";
    ports.try_into().map_err(|_| Error(words.to_owned()))
}
