//! HTTP/2 by hand, for what no client does that means well.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
pub(crate) const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;
/// The setting of how much a stream may send before it is read.
const INITIAL_WINDOW_SIZE: [u8; 2] = [0, 4];

const WINDOW_UPDATE: u8 = 8;
/// What both may send before anything else is agreed.
const FIRST_WINDOW: u32 = 65_535;

/// A connection.
pub(crate) struct Wire(TcpStream);

/// How much a client may send before any of it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Windows {
    pub(crate) stream: u32,
    pub(crate) connection: u32,
}

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
        let path = format!("externalscaler.ExternalScaler/{method}");
        self.ask(&path, stream, body, is_all).await;
    }

    /// The same of any service.
    pub(crate) async fn ask(&mut self, method: &str, stream: u32, body: &[u8], is_all: bool) {
        // `:method POST` and `:scheme http` are in the table of HPACK, and so is the name `:path`.
        let mut headers = vec![0x83, 0x86, 0x04];
        literal(&mut headers, &format!("/{method}"));
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

    /// What the server lets a client send, as it says until it has agreed to our settings.
    pub(crate) async fn windows(&mut self) -> Windows {
        let mut windows = Windows { stream: FIRST_WINDOW, connection: FIRST_WINDOW };
        let (mut is_agreed, mut is_told) = (false, false);
        while !(is_agreed && is_told) {
            let (frame, payload) = self.read_whole().await.expect("the connection goes on");
            is_agreed |= frame.kind == SETTINGS && frame.flags & ACK != 0;
            let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
            for setting in payload.chunks(6).filter(|_| frame.kind == SETTINGS) {
                if setting[..2] == INITIAL_WINDOW_SIZE {
                    windows.stream = number(&setting[2..]);
                }
            }
            if frame.kind == WINDOW_UPDATE && frame.stream == 0 {
                windows.connection += number(&payload);
                is_told = true;
            }
        }
        windows
    }

    /// The next frame; none where the connection has ended.
    pub(crate) async fn read(&mut self) -> Option<Frame> {
        Some(self.read_whole().await?.0)
    }

    /// The same with its payload.
    async fn read_whole(&mut self) -> Option<(Frame, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        if kind == SETTINGS && flags & ACK == 0 {
            self.write(SETTINGS, ACK, 0, &[]).await;
        }
        Some((Frame { kind, flags, stream: u32::from_be_bytes(stream) }, payload))
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
