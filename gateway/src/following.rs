//! A stream to a client, step by step: news of its job, silence, or the end of patience.

use std::time::Duration;

use ebb_queue::{JobId, Result};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::memory::{Bound, Full, Held};
use crate::refusal::Refusal;
use crate::waiting::{End, News};

/// From one try to find room for a piece to the next.
const PAUSE: Duration = Duration::from_millis(50);

/// Bytes of what may wait for room, which count nowhere meanwhile. All behind it lies with the broker.
const SMALL: usize = 64 * 1024;

/// What to tell a client next.
#[derive(Debug)]
pub(crate) enum Step {
    /// This has become of the job.
    News(News),
    /// Nothing, for a while.
    Quiet,
    /// Nothing came in time.
    Late,
    /// The gateway ends.
    Closing,
    /// The broker fails and no later try would mend it, or there is no room for what comes.
    Failed(Refusal),
}

impl Step {
    /// Whether nobody follows any more, for no fault of the job: it has ended, or is to go on.
    pub(crate) fn leaves_the_job(&self) -> bool {
        matches!(self, Self::News(News::End(_)) | Self::Closing | Self::Failed(_))
    }

    /// Bytes of the piece or the answer that it has.
    fn n_bytes(&self) -> usize {
        match self {
            Self::News(News::Piece { body, .. }) => body.len(),
            Self::News(News::End(end)) => end.n_bytes(),
            _ => 0,
        }
    }
}

/// Follows a job for one client.
pub(crate) struct Following {
    pub(crate) news: BoxStream<'static, Result<News>>,
    /// How long a silence is.
    pub(crate) keep_alive: Duration,
    /// Until when something has to come.
    pub(crate) until: Instant,
    /// After something came, so long from then on: a long answer is no late one.
    pub(crate) limit: Duration,
    /// The gateway ends when this is cancelled.
    pub(crate) closing: CancellationToken,
    /// What came, and waits for room.
    pub(crate) waits: Option<Step>,
    /// Whether the client has had a piece: then the stream may have all the room there is.
    pub(crate) is_begun: bool,
}

impl Following {
    /// Waits for what comes next, and for room to hold it beside so many bytes that are kept.
    ///
    /// Where there is none in time, or something large comes, the step says so.
    pub(crate) async fn next_held(
        &mut self,
        held: &mut Held,
        n_kept: usize,
        ids: &[JobId],
    ) -> Step {
        let step = match self.waits.take() {
            Some(step) => step,
            None => self.next().await,
        };
        let (n_bytes, quiet_at) = (step.n_bytes(), Instant::now() + self.keep_alive);
        if n_bytes == 0 {
            return step;
        }
        loop {
            let bound = if self.is_begun { Bound::All } else { Bound::Key };
            match held.hold(n_kept.saturating_add(n_bytes), bound) {
                Ok(()) => {
                    self.is_begun = true;
                    return step;
                }
                Err(Full::Never) => return Step::Failed(Refusal::never_fits(ids)),
                Err(_) if n_bytes > SMALL || Instant::now() >= self.until => {
                    return Step::Failed(Refusal::no_room_for_stream(ids));
                }
                Err(_) => {}
            }
            // The client has taken what came before: whoever else waits may have the room of that.
            held.hold(n_kept, Bound::All).ok();
            tokio::select! { biased;
                () = self.closing.cancelled() => return Step::Closing,
                () = sleep_until(quiet_at) => {
                    self.waits = Some(step);
                    return Step::Quiet;
                }
                () = sleep(PAUSE) => {}
            }
        }
    }

    /// Waits for what comes next.
    pub(crate) async fn next(&mut self) -> Step {
        tokio::select! { biased;
            news = self.news.next() => match news {
                Some(Ok(news)) => {
                    self.until = Instant::now() + self.limit;
                    Step::News(news)
                }
                Some(Err(error)) => {
                    warn!(call = "follow", %error, kind = %error.kind(), "the broker failed");
                    Step::Failed(error.into())
                }
                None => Step::News(News::End(End::Gone)),
            },
            () = self.closing.cancelled() => Step::Closing,
            () = sleep_until(self.until) => Step::Late,
            () = sleep(self.keep_alive) => Step::Quiet,
        }
    }
}
