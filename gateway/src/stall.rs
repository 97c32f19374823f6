//! A connection whose client has to take what it is told: who lets it lie is cut off.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::metrics::{Closed, Metrics};

/// Bytes that a client has to take within the limit, or all there are: a byte now and then is none.
const LEAST: usize = 16 * 1024;

/// A connection that fails once its client has taken too little of what waits for it, for too long.
///
/// Whoever is told by it, a stream say, is dropped then, as where a client hangs up.
pub(crate) struct Heeded<C> {
    connection: C,
    limit: Duration,
    metrics: Metrics,
    /// From the first byte that had to wait until all are written, or enough of them.
    waits: Option<Waits>,
}

struct Waits {
    until: Pin<Box<Sleep>>,
    n_taken: usize,
}

impl<C> Heeded<C> {
    /// With so long a time in which the client has to take something.
    pub(crate) fn new(connection: C, limit: Duration, metrics: Metrics) -> Self {
        Self { connection, limit, metrics, waits: None }
    }

    /// What came of a try to write.
    fn written(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(Ok(n)) => {
                let enough = |waits: &mut Waits| {
                    waits.n_taken += n;
                    waits.n_taken >= LEAST
                };
                self.waits.take_if(enough);
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                let begin = || Waits { until: Box::pin(sleep(self.limit)), n_taken: 0 };
                let waits = self.waits.get_or_insert_with(begin);
                if waits.until.as_mut().poll(context).is_ready() {
                    self.metrics.closed(Closed::Stalled);
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
        self.written(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.connection).poll_write_vectored(context, parts);
        self.written(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }

    /// Called once all is written that there is.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.waits = None;
        Pin::new(&mut self.connection).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    /// A connection with room for so many bytes on their way, and its client.
    fn connection(room: usize) -> (Heeded<DuplexStream>, DuplexStream) {
        let (ours, client) = duplex(room);
        (Heeded::new(ours, LIMIT, Metrics::default()), client)
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
