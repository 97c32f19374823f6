//! A client of the gateway on a connection of its own: as little of HTTP as it takes.

use anyhow::{Context, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A connection that is kept from one request to the next.
pub(super) struct Client {
    connection: TcpStream,
    request: Vec<u8>,
    read: Vec<u8>,
}

impl Client {
    /// Connects, to ask for the same each time.
    pub(super) async fn connect(address: &str, body: &str) -> anyhow::Result<Self> {
        let connection = TcpStream::connect(address).await.context("cannot reach the gateway")?;
        connection.set_nodelay(true)?;
        let request = format!(
            "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        Ok(Self { connection, request: request.into(), read: Vec::new() })
    }

    /// Asks, and waits for the answer.
    pub(super) async fn ask(&mut self) -> anyhow::Result<()> {
        self.begin().await?;
        self.read.clear();
        let n_head = loop {
            let end = self.read.windows(4).position(|bytes| bytes == b"\r\n\r\n");
            match end {
                Some(end) => break end + 4,
                None => self.more().await?,
            }
        };
        let head = String::from_utf8_lossy(&self.read[..n_head]).into_owned();
        let n_body = content_length(&head).with_context(|| format!("no length in {head}"))?;
        while self.read.len() < n_head + n_body {
            self.more().await?;
        }
        let said = || String::from_utf8_lossy(&self.read);
        ensure!(self.read.len() == n_head + n_body, "more was said than was asked for: {}", said());
        ensure!(head.starts_with("HTTP/1.1 200 "), "not answered: {}", said());
        let body = &self.read[n_head..];
        ensure!(body.starts_with(br#"{"object":"list","data":["#), "no vectors: {}", said());
        Ok(())
    }

    /// Asks, and does not wait.
    pub(super) async fn begin(&mut self) -> anyhow::Result<()> {
        self.connection.write_all(&self.request).await.context("the gateway takes no request")
    }

    async fn more(&mut self) -> anyhow::Result<()> {
        let n = self.connection.read_buf(&mut self.read).await?;
        ensure!(n > 0, "the gateway hangs up: {}", String::from_utf8_lossy(&self.read));
        Ok(())
    }
}

/// How long a body is, as the head of a response says.
fn content_length(head: &str) -> Option<usize> {
    head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok())
}
