//! Waits for results: one follower for each job that somebody waits for now.
//!
//! Who follows is told by the broker, and looks by himself every few seconds at most, see
//! [`ebb_queue::ResultStore::follow`]: so a thousand requests that wait are no thousand polls. Of the
//! jobs of one request only the first few that have no answer are followed at a time: they run in
//! their order, near enough, and those behind cost one look each when it is their turn.

use std::time::Duration;

use bytes::Bytes;
use ebb_queue::claim::lies_elsewhere;
use ebb_queue::{Error, Frame, JobId, JobResult, Outcome, Queue, Result};
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use prometheus::IntGauge;
use tokio::time::sleep;
use tracing::warn;

use crate::memory::{Full, Held};
use crate::metrics::Metrics;

/// Jobs of one request that are followed at a time.
const FOLLOWED: usize = 16;

/// From one try to reach a broker that is away to the next.
const PAUSE: Duration = Duration::from_millis(500);

/// Behind all pieces: who wants the whole does not need them.
const BEHIND: u64 = 1 << 40;

/// What becomes of a job.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum News {
    /// A piece of its answer.
    Piece {
        /// Which one.
        place: Place,
        /// What it says.
        body: Bytes,
    },
    /// What was told before is void: another attempt begins.
    Void,
    /// It has ended; nothing follows.
    End(End),
}

/// Which piece: the attempt that made it, and its number from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) attempt: u32,
    pub(crate) seq: u64,
}

/// How a job has ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum End {
    /// With this result.
    Result(JobResult),
    /// With an answer that lies in a store of payloads which the gateway does not have.
    Elsewhere,
    /// With none that could still come: it was purged, or its result is forgotten.
    Gone,
}

impl From<JobResult> for End {
    fn from(result: JobResult) -> Self {
        if lies_elsewhere(&result) {
            warn!(
                id = %result.id,
                "the answer lies in a store of payloads; give the gateway --payloads, as its workers have it"
            );
            return Self::Elsewhere;
        }
        Self::Result(result)
    }
}

impl End {
    /// How large an answer is.
    pub(crate) fn n_bytes(&self) -> usize {
        match self {
            Self::Result(result) => n_bytes(result),
            _ => 0,
        }
    }
}

/// How large the answer of a result is.
pub(crate) fn n_bytes(result: &JobResult) -> usize {
    match &result.outcome {
        Outcome::Completed { body, .. } => body.len(),
        Outcome::Failed(_) | Outcome::Cancelled => 0,
    }
}

/// Waits for jobs of one queue.
#[derive(Clone)]
pub(crate) struct Waiting {
    queue: Queue,
    metrics: Metrics,
}

impl Waiting {
    /// Metrics show for how many jobs somebody waits.
    pub(crate) fn new(queue: Queue, metrics: Metrics) -> Self {
        Self { queue, metrics }
    }

    /// What becomes of a job from now on, with its pieces behind this one.
    ///
    /// Goes on where a broker that was away is back; ends with an error that no later try would mend.
    pub(crate) fn news(
        &self,
        id: JobId,
        behind: Option<Place>,
    ) -> BoxStream<'static, Result<News>> {
        self.follow(id, behind, |heard| heard.map_or(0, |place| place.seq.saturating_add(1)))
    }

    /// How a job ends.
    pub(crate) async fn end(&self, id: JobId) -> Result<End> {
        let mut news = self.follow(id, None, |_| BEHIND);
        while let Some(news) = news.try_next().await? {
            if let News::End(end) = news {
                return Ok(end);
            }
        }
        Ok(End::Gone)
    }

    /// How jobs end, in their order; or why there is no room to hold all answers.
    pub(crate) async fn ends(
        &self,
        ids: &[JobId],
        held: &mut Held,
    ) -> Result<std::result::Result<Vec<End>, Full>> {
        let ends = stream::iter(ids.to_vec()).map(|id| self.end(id));
        let mut ends = std::pin::pin!(ends.buffered(FOLLOWED));
        let (mut all, mut n_bytes) = (Vec::new(), 0_usize);
        while let Some(end) = ends.try_next().await? {
            n_bytes = n_bytes.saturating_add(end.n_bytes());
            if let Err(full) = held.grow_to(n_bytes) {
                return Ok(Err(full));
            }
            all.push(end);
        }
        Ok(Ok(all))
    }

    fn follow(
        &self,
        id: JobId,
        behind: Option<Place>,
        from: fn(Option<Place>) -> u64,
    ) -> BoxStream<'static, Result<News>> {
        let (queue, waits) = (self.queue.clone(), Waits::new(&self.metrics.waiting));
        let metrics = self.metrics.clone();
        let news = async_stream::try_stream! {
            let _waits = waits;
            let mut heard = behind;
            loop {
                let mut frames = match queue.follow(&id, from(heard)).await {
                    Ok(frames) => frames,
                    Err(error) => {
                        pause(&metrics, error).await?;
                        continue;
                    }
                };
                let is_lost = loop {
                    match frames.next().await {
                        Some(Ok(Frame::Chunk { attempt, seq, body })) => {
                            let place = Place { attempt, seq };
                            if heard.is_some_and(|heard| heard.attempt != attempt) {
                                heard = None;
                                yield News::Void;
                                if seq > 0 {
                                    // Its beginning was missed.
                                    break true;
                                }
                            }
                            heard = Some(place);
                            yield News::Piece { place, body };
                        }
                        Some(Ok(Frame::Final(result))) => {
                            if heard.is_some_and(|heard| heard.attempt != result.attempt) {
                                yield News::Void;
                            }
                            yield News::End(End::from(result));
                            return;
                        }
                        Some(Err(error)) => {
                            pause(&metrics, error).await?;
                            break true;
                        }
                        None => break false,
                    }
                };
                if !is_lost {
                    yield News::End(End::Gone);
                    return;
                }
            }
        };
        news.boxed()
    }
}

/// Waits for a broker that may come back.
async fn pause(metrics: &Metrics, error: Error) -> Result<()> {
    metrics.failed("follow", &error);
    if !error.kind().heals() {
        return Err(error);
    }
    sleep(PAUSE).await;
    Ok(())
}

/// Somebody waits for a job, until this is dropped.
struct Waits(IntGauge);

impl Waits {
    fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.dec();
    }
}
