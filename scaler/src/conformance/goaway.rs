//! Whether a connection is told that it ends: HTTP/2 by hand, since clients keep that to
//! themselves.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
/// What a server may send to who has said nothing else.
const MAX_FRAME: usize = 16_384;

/// A connection without a call on it.
pub(super) struct Idle(TcpStream);

struct Frame {
    kind: u8,
    flags: u8,
    payload: Vec<u8>,
}

impl Idle {
    /// Connects, and waits for the server's first word.
    pub(super) async fn connect(address: &str, patience: Duration) -> io::Result<Self> {
        timeout(patience, async {
            let mut idle = Self(TcpStream::connect(address).await?);
            idle.0.write_all(PREFACE).await?;
            idle.write(SETTINGS, 0, &[]).await?;
            let first = idle.read().await?;
            if first.kind != SETTINGS {
                return Err(io::Error::other("this is not HTTP/2"));
            }
            idle.answer(&first).await?;
            Ok(idle)
        })
        .await?
    }

    /// True when GOAWAY came before the end; false when the connection just ended.
    pub(super) async fn told(mut self, limit: Duration) -> io::Result<bool> {
        timeout(limit, async {
            loop {
                match self.read().await {
                    Ok(frame) if frame.kind == GOAWAY => return Ok(true),
                    Ok(frame) => self.answer(&frame).await?,
                    Err(_) => return Ok(false),
                }
            }
        })
        .await?
    }

    async fn answer(&mut self, frame: &Frame) -> io::Result<()> {
        match (frame.kind, frame.flags & ACK) {
            (SETTINGS, 0) => self.write(SETTINGS, ACK, &[]).await,
            (PING, 0) => self.write(PING, ACK, &frame.payload).await,
            _ => Ok(()),
        }
    }

    async fn write(&mut self, kind: u8, flags: u8, payload: &[u8]) -> io::Result<()> {
        // All that is written here is short.
        let length = u8::try_from(payload.len()).map_err(io::Error::other)?;
        let head = [0, 0, length, kind, flags, 0, 0, 0, 0];
        self.0.write_all(&[&head, payload].concat()).await
    }

    async fn read(&mut self) -> io::Result<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        if length > MAX_FRAME {
            return Err(io::Error::other("a frame is larger than was agreed"));
        }
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).await?;
        Ok(Frame { kind: head[3], flags: head[4], payload })
    }
}
