//! HTTP/2 by hand, for what no client does that means well.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
pub(crate) const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;
/// The setting of how much a stream may send before it is read.
const INITIAL_WINDOW_SIZE: [u8; 2] = [0, 4];

/// A connection.
pub(crate) struct Wire(TcpStream);

/// A frame, without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
}

impl Frame {
    /// Whether nothing more comes on its stream.
    pub(crate) fn is_end(self) -> bool {
        self.kind == RST_STREAM || (self.kind <= HEADERS && self.flags & END_STREAM != 0)
    }
}

impl Wire {
    /// Begins a connection whose streams may send so much before they are read.
    pub(crate) async fn connect(address: SocketAddr, window: u32) -> Self {
        let mut wire = Self(TcpStream::connect(address).await.unwrap());
        wire.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let window = [&INITIAL_WINDOW_SIZE[..], &window.to_be_bytes()].concat();
        wire.write(SETTINGS, 0, 0, &window).await;
        wire
    }

    /// Begins a call of KEDA's on a stream, and sends these bytes of its message.
    pub(crate) async fn call(&mut self, method: &str, stream: u32, body: &[u8], is_all: bool) {
        let path = format!("/externalscaler.ExternalScaler/{method}");
        // `:method POST` and `:scheme http` are in the table of HPACK, and so is the name `:path`.
        let mut headers = vec![0x83, 0x86, 0x04];
        literal(&mut headers, &path);
        for (name, value) in
            [(":authority", "test"), ("content-type", "application/grpc"), ("te", "trailers")]
        {
            headers.push(0);
            literal(&mut headers, name);
            literal(&mut headers, value);
        }
        self.write(HEADERS, END_HEADERS, stream, &headers).await;
        self.write(DATA, if is_all { END_STREAM } else { 0 }, stream, body).await;
    }

    /// The next frame; none where the connection has ended.
    pub(crate) async fn read(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        if kind == SETTINGS && flags & ACK == 0 {
            self.write(SETTINGS, ACK, 0, &[]).await;
        }
        Some(Frame { kind, flags, stream: u32::from_be_bytes(stream) })
    }

    async fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.0.write_all(&frame).await.unwrap();
    }
}

/// A short text without the code of Huffman.
fn literal(headers: &mut Vec<u8>, text: &str) {
    headers.push(u8::try_from(text.len()).unwrap());
    headers.extend(text.as_bytes());
}
