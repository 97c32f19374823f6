//! Asks a server whether it is there, in its own protocol.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Whether somebody listens there.
pub(crate) async fn is_open(port: u16) -> bool {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_ok()
}

/// Says something to a port and returns the beginning of the answer.
pub(crate) async fn ask(port: u16, words: &[u8]) -> Option<Vec<u8>> {
    let asked = async {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.write_all(words).await?;
        let mut answer = vec![0; 4096];
        let n_bytes = stream.read(&mut answer).await?;
        answer.truncate(n_bytes);
        std::io::Result::Ok(answer)
    };
    timeout(Duration::from_secs(2), asked).await.ok()?.ok()
}
