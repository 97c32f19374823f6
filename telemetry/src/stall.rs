//! A connection whose client has to take what it is told: who lets it lie is cut off.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::talk::{Heard, Hears};

/// Bytes that a client has to take within the limit, or all there are: a byte now and then is none.
const LEAST: usize = 16 * 1024;

/// Of a large answer, which takes the memory of others until it is told, a client has to take this part
/// within the limit, and so all of it within as many limits.
const PART: usize = 10;

/// A connection that fails once its client has taken too little of what waits for it, for too long.
///
/// Whoever is told by it, a stream say, is dropped then, as where a client hangs up.
pub(crate) struct Heeded<C> {
    connection: C,
    limit: Duration,
    hears: Hears,
    /// Bytes that the client has to take within the limit, of what waits for it now.
    least: usize,
    /// From the first byte that had to wait until all are written, or enough of them.
    waits: Option<Waits>,
}

struct Waits {
    until: Pin<Box<Sleep>>,
    n_taken: usize,
}

impl<C> Heeded<C> {
    /// With so long a time in which the client has to take something.
    pub(crate) fn new(connection: C, limit: Duration, hears: Hears) -> Self {
        Self { connection, limit, hears, least: LEAST, waits: None }
    }

    /// What came of a try to write so many bytes.
    fn written(
        &mut self,
        context: &mut Context<'_>,
        n_bytes: usize,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(Ok(n)) => {
                let enough = |waits: &mut Waits| {
                    waits.n_taken += n;
                    waits.n_taken >= self.least
                };
                self.waits.take_if(enough);
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                self.least = self.least.max(n_bytes.div_ceil(PART));
                let begin = || Waits { until: Box::pin(sleep(self.limit)), n_taken: 0 };
                let waits = self.waits.get_or_insert_with(begin);
                if waits.until.as_mut().poll(context).is_ready() {
                    (self.hears)(Heard::Stalled);
                    let words = "the client does not take what it asked for";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, words)));
                }
            }
        }
        written
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Heeded<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_read(context, buffer)
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Heeded<C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.connection).poll_write(context, bytes);
        self.written(context, bytes.len(), written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.connection).poll_write_vectored(context, parts);
        let n_bytes = parts.iter().map(|part| part.len()).sum();
        self.written(context, n_bytes, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }

    /// Called once all is written that there is.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        (self.waits, self.least) = (None, LEAST);
        Pin::new(&mut self.connection).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    /// A connection with room for so many bytes on their way, and its client.
    fn connection(room: usize) -> (Heeded<DuplexStream>, DuplexStream) {
        let (ours, client) = duplex(room);
        (Heeded::new(ours, LIMIT, Arc::new(|_| {})), client)
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_cut_off_when_the_time_is_over() {
        let (mut ours, _client) = connection(100);
        let begun = tokio::time::Instant::now();
        let error = ours.write_all(&[0; 101]).await.unwrap_err();
        assert_eq!((error.kind(), begun.elapsed()), (io::ErrorKind::TimedOut, LIMIT));
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_a_byte_now_and_then_is_cut_off_as_well() {
        let (mut ours, mut client) = connection(100);
        let reads = tokio::spawn(async move {
            while client.read_u8().await.is_ok() {
                sleep(Duration::from_secs(1)).await;
            }
        });
        let begun = tokio::time::Instant::now();
        let error = ours.write_all(&[0; 1000]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!((60..=61).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
        reads.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_answer_has_to_be_taken_in_ten_limits_at_most() {
        for (pause, is_slow) in [(Duration::from_secs(5), false), (Duration::from_secs(7), true)] {
            let (mut ours, mut client) = connection(16 * 1024);
            let reads = tokio::spawn(async move {
                let mut part = [0; 16 * 1024];
                // Either way far more than is enough of a small answer.
                while client.read_exact(&mut part).await.is_ok() {
                    sleep(pause).await;
                }
            });
            let begun = tokio::time::Instant::now();
            let written = ours.write_all(&vec![0; 100 * 16 * 1024]).await;
            let told = written.as_ref().err().map(io::Error::kind);
            assert_eq!(told, is_slow.then_some(io::ErrorKind::TimedOut), "{pause:?}");
            assert!(begun.elapsed() <= 10 * LIMIT, "{:?}", begun.elapsed());
            reads.abort();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_slow_and_goes_on_reading_gets_all_of_it() {
        let (mut ours, mut client) = connection(4096);
        let reads = tokio::spawn(async move {
            let (mut n_read, mut part) = (0, [0; 4096]);
            loop {
                match client.read(&mut part).await.unwrap() {
                    0 => return n_read,
                    n => n_read += n,
                }
                sleep(Duration::from_secs(10)).await;
            }
        });
        // Far longer than the limit, in all.
        ours.write_all(&[0; 40 * 4096]).await.unwrap();
        // What was written in full begins a time of its own.
        ours.flush().await.unwrap();
        sleep(2 * LIMIT).await;
        ours.write_all(&[0; 40 * 4096]).await.unwrap();
        ours.shutdown().await.unwrap();
        assert_eq!(reads.await.unwrap(), 80 * 4096);
    }
}
