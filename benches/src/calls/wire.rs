//! As much of HTTP/2 as calls with one answer need: a client of gRPC takes half a processor of the
//! two that the bench has.
//!
//! Requests name their fields in full once and by number from then on (RFC 7541, 6.1 and 6.2.1), as
//! KEDA's client does; of the answers' fields nothing is read, and a call without a message has
//! failed. The streams and the connection's window that the server allows are kept to (RFC 9113,
//! 5.1.2 and 5.2; messages are small beside any frame and any stream's window); its own window is
//! opened once, as wide as can be, and lasts for 2 GiB.

use std::collections::{HashMap, VecDeque};
use std::io::ErrorKind;

use anyhow::{Context, bail, ensure};
use bytes::{Buf, BytesMut};
use prost::Message;
use tokio::io::Interest;
use tokio::net::TcpStream;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER: usize = 9;
/// What a window is at first, and what it may be at most.
const WINDOW: u32 = 65_535;
const WIDEST: u32 = (1 << 31) - 1;
/// The largest frame that everybody takes.
const MAX_FRAME: usize = 16_384;
/// Before each message: whether it is compressed, and its length.
const MESSAGE_HEADER: usize = 5;

mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PING: u8 = 6;
    pub(super) const GOAWAY: u8 = 7;
    pub(super) const WINDOW_UPDATE: u8 = 8;
}

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const MAX_CONCURRENT_STREAMS: u16 = 3;

/// One connection, and the calls that are under way on it.
pub(super) struct Wire {
    socket: TcpStream,
    fields: Fields,
    /// What the socket has not taken yet.
    out: BytesMut,
    /// Of frames that are not whole yet.
    input: BytesMut,
    next: u32,
    /// What has come of each answer so far.
    open: HashMap<u32, Vec<u8>>,
    /// Calls that the server's window or its limit of streams has no room for.
    held: VecDeque<(u32, &'static str, Vec<u8>)>,
    window: i64,
    max_open: usize,
}

/// The end of a call.
pub(super) struct Answer {
    pub(super) call: u32,
    /// None when the call failed.
    pub(super) message: Option<Vec<u8>>,
}

impl Wire {
    pub(super) async fn connect(address: &str) -> anyhow::Result<Self> {
        let socket = TcpStream::connect(address).await;
        let socket = socket.with_context(|| format!("nobody answers on {address}"))?;
        socket.set_nodelay(true)?;
        let mut out = BytesMut::from(PREFACE);
        frame(&mut out, kind::SETTINGS, 0, 0, &[]);
        frame(&mut out, kind::WINDOW_UPDATE, 0, 0, &(WIDEST - WINDOW).to_be_bytes());
        Ok(Self {
            socket,
            fields: Fields { authority: address.to_owned(), known: Vec::new() },
            out,
            input: BytesMut::new(),
            next: 1,
            open: HashMap::new(),
            held: VecDeque::new(),
            window: WINDOW.into(),
            max_open: usize::MAX,
        })
    }

    /// Begins a call, and says by which number its answer will be known.
    pub(super) fn call(&mut self, path: &'static str, message: &impl Message) -> u32 {
        let call = self.next;
        self.next += 2;
        let message = message.encode_to_vec();
        let mut body = Vec::with_capacity(MESSAGE_HEADER + message.len());
        body.push(0);
        body.extend((message.len() as u32).to_be_bytes());
        body.extend(message);
        debug_assert!(body.len() <= MAX_FRAME, "a message of {} bytes", body.len());
        self.held.push_back((call, path, body));
        self.release();
        call
    }

    /// Hands on what there is room for.
    fn release(&mut self) {
        while let Some((_, _, body)) = self.held.front() {
            let room = self.open.len() < self.max_open && body.len() as i64 <= self.window;
            let Some((call, path, body)) = self.held.pop_front_if(|_| room) else { return };
            frame(&mut self.out, kind::HEADERS, END_HEADERS, call, &self.fields.block(path));
            frame(&mut self.out, kind::DATA, END_STREAM, call, &body);
            self.window -= body.len() as i64;
            self.open.insert(call, Vec::new());
        }
    }

    /// Sends what has been begun, waits until something comes, and returns the calls that ended by
    /// it. May be dropped at any time.
    pub(super) async fn exchange(&mut self) -> anyhow::Result<Vec<Answer>> {
        self.write()?;
        let both = Interest::READABLE | Interest::WRITABLE;
        let interest = if self.out.is_empty() { Interest::READABLE } else { both };
        self.socket.ready(interest).await?;
        self.write()?;
        self.read()?;
        let mut answers = Vec::new();
        while self.take(&mut answers)? {}
        self.release();
        Ok(answers)
    }

    fn write(&mut self) -> anyhow::Result<()> {
        while !self.out.is_empty() {
            match self.socket.try_write(&self.out) {
                Ok(n_bytes) => self.out.advance(n_bytes),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("the connection broke"),
            }
        }
        Ok(())
    }

    fn read(&mut self) -> anyhow::Result<()> {
        loop {
            self.input.reserve(MAX_FRAME);
            match self.socket.try_read_buf(&mut self.input) {
                Ok(0) => bail!("the server has closed the connection"),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("the connection broke"),
            }
        }
    }

    /// Takes a frame; false when none is whole.
    fn take(&mut self, answers: &mut Vec<Answer>) -> anyhow::Result<bool> {
        let Some(&[a, b, c, kind, flags, d, e, f, g]) = self.input.first_chunk() else {
            return Ok(false);
        };
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        if self.input.len() < FRAME_HEADER + length {
            return Ok(false);
        }
        self.input.advance(FRAME_HEADER);
        let payload = self.input.split_to(length);
        let call = u32::from_be_bytes([d, e, f, g]) & WIDEST;
        match kind {
            kind::DATA => {
                let data =
                    if flags & PADDED == 0 { Some(&payload[..]) } else { unpadded(&payload) };
                let data = data.context("a frame is shorter than its padding")?;
                self.open.get_mut(&call).context("data of no call")?.extend(data);
            }
            // It may come after the answer as well.
            kind::RST_STREAM if self.open.remove(&call).is_some() => {
                answers.push(Answer { call, message: None });
            }
            kind::SETTINGS if flags & ACK == 0 => {
                for setting in payload.chunks_exact(6) {
                    let (name, value) = ((&setting[..2]).get_u16(), (&setting[2..]).get_u32());
                    if name == MAX_CONCURRENT_STREAMS {
                        self.max_open = value as usize;
                    }
                }
                frame(&mut self.out, kind::SETTINGS, ACK, 0, &[]);
            }
            kind::PING if flags & ACK == 0 => frame(&mut self.out, kind::PING, ACK, 0, &payload),
            kind::GOAWAY => bail!("the server ends the connection"),
            kind::WINDOW_UPDATE if call == 0 => {
                ensure!(payload.len() == 4, "a window update is of {} bytes", payload.len());
                self.window += i64::from((&payload[..]).get_u32() & WIDEST);
            }
            _ => {}
        }
        let may_end = kind == kind::DATA || kind == kind::HEADERS;
        if may_end && flags & END_STREAM != 0 {
            let mut body = self.open.remove(&call).context("the end of no call")?;
            let message = (body.len() >= MESSAGE_HEADER).then(|| body.split_off(MESSAGE_HEADER));
            answers.push(Answer { call, message });
        }
        Ok(true)
    }
}

fn unpadded(payload: &[u8]) -> Option<&[u8]> {
    let (n_padding, rest) = payload.split_first()?;
    rest.get(..rest.len().checked_sub(usize::from(*n_padding))?)
}

fn frame(out: &mut BytesMut, kind: u8, flags: u8, call: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&call.to_be_bytes());
    out.extend_from_slice(payload);
}

/// The fields of a request.
struct Fields {
    authority: String,
    /// Those that the server keeps, oldest first: what is said again is said by number.
    known: Vec<String>,
}

/// A field's name: its number in the table that everybody has, or in words.
enum Name {
    Known(u8),
    Words(&'static str),
}

impl Fields {
    fn block(&mut self, path: &str) -> Vec<u8> {
        // `:method: POST` and `:scheme: http`.
        let mut block = vec![0x83, 0x86];
        // No two have the same value, and none is longer than 126 bytes.
        for (name, value) in [
            (Name::Known(1), &*self.authority),
            (Name::Known(4), path),
            (Name::Words("te"), "trailers"),
            (Name::Known(31), "application/grpc"),
        ] {
            // Behind the 61 of the table that everybody has; the newest comes first.
            if let Some(place) = self.known.iter().position(|known| known == value) {
                block.push(0x80 | (61 + self.known.len() - place) as u8);
                continue;
            }
            match name {
                Name::Known(number) => block.push(0x40 | number),
                Name::Words(words) => {
                    block.push(0x40);
                    text(&mut block, words);
                }
            }
            text(&mut block, value);
            self.known.push(value.to_owned());
        }
        block
    }
}

fn text(block: &mut Vec<u8>, text: &str) {
    block.push(text.len() as u8);
    block.extend(text.as_bytes());
}
