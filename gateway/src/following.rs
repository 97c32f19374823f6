//! A stream to a client, step by step: news of its job, silence, or the end of patience.

use std::time::Duration;

use ebb_queue::{JobId, Result};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::memory::Held;
use crate::refusal::Refusal;
use crate::waiting::{End, News};

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
    /// The broker fails and no later try would mend it, or there is no room for the answer.
    Failed(Refusal),
}

impl Step {
    /// Whether nobody follows any more, for no fault of the job: it has ended, or is to go on.
    pub(crate) fn leaves_the_job(&self) -> bool {
        matches!(self, Self::News(News::End(_)) | Self::Closing | Self::Failed(_))
    }

    /// The step, once there is room to hold the piece or the answer that it has beside so many bytes that
    /// are kept; and else that there is none.
    pub(crate) fn held_by(self, held: &mut Held, n_kept: usize, ids: &[JobId]) -> Self {
        let n_bytes = match &self {
            Self::News(News::Piece { body, .. }) => body.len(),
            Self::News(News::End(end)) => end.n_bytes(),
            _ => return self,
        };
        match held.hold(n_kept.saturating_add(n_bytes)) {
            Ok(()) => self,
            Err(_) => Self::Failed(Refusal::no_room_for_answers(ids)),
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
}

impl Following {
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
