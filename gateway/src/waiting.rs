//! Waits for results: one follower for each job that somebody waits for now.
//!
//! Who follows is told by the broker, and looks by himself every few seconds at most, see
//! [`ebb_queue::ResultStore::follow`]: so a thousand requests that wait are no thousand polls. Of the
//! jobs of one request only the first few that have no answer are followed at a time: they run in
//! their order, near enough, and those behind cost one look each when it is their turn.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ebb_queue::claim::lies_elsewhere;
use ebb_queue::{
    Error, Failure, FailureKind, Frame, JobId, JobResult, JobState, Outcome, Queue, Result,
    Timestamp,
};
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use prometheus::IntGauge;
use tokio::time::sleep;
use tracing::warn;

use crate::memory::{Full, Held};
use crate::metrics::Metrics;
use crate::models::Model;

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
    model: Arc<Model>,
    queue: Queue,
    /// Jobs that were there before somebody waited for them.
    met: Arc<HashSet<JobId>>,
    metrics: Metrics,
}

impl Waiting {
    /// Of these jobs, that were there before, some may be dead letters whose results are forgotten.
    /// Metrics show for how many jobs somebody waits.
    pub(crate) fn new(
        (model, queue): (Arc<Model>, Queue),
        met: impl IntoIterator<Item = JobId>,
        metrics: &Metrics,
    ) -> Self {
        let met = Arc::new(met.into_iter().collect());
        Self { model, queue, met, metrics: metrics.clone() }
    }

    /// What becomes of a job from now on, with its pieces behind this one.
    ///
    /// Goes on where a broker that was away is back; ends with an error that no later try would mend.
    pub(crate) fn news(
        &self,
        id: JobId,
        behind: Option<Place>,
    ) -> BoxStream<'static, Result<News>> {
        // From the first one on: those of another attempt are seen wherever that one has come to.
        self.follow(id, behind, 0)
    }

    /// How a job ends.
    pub(crate) async fn end(&self, id: JobId) -> Result<End> {
        let mut news = self.follow(id, None, BEHIND);
        while let Some(news) = news.try_next().await? {
            if let News::End(end) = news {
                return Ok(end);
            }
        }
        Ok(End::Gone)
    }

    /// How jobs end, in their order; or why there is no room to hold all answers, of which each counts as
    /// soon as it is there.
    pub(crate) async fn ends(
        &self,
        ids: &[JobId],
        held: &mut Held,
    ) -> Result<std::result::Result<Vec<End>, Full>> {
        let ends = stream::iter(ids.iter().cloned().enumerate());
        let ends = ends.map(async |(nth, id)| Ok::<_, Error>((nth, self.end(id).await?)));
        let mut ends = std::pin::pin!(ends.buffer_unordered(FOLLOWED));
        let (mut all, mut n_bytes) = (vec![None; ids.len()], 0_usize);
        while let Some((nth, end)) = ends.try_next().await? {
            n_bytes = n_bytes.saturating_add(end.n_bytes());
            if let Err(full) = held.grow_to(n_bytes) {
                return Ok(Err(full));
            }
            all[nth] = Some(end);
        }
        Ok(Ok(all.into_iter().flatten().collect()))
    }

    /// How a job has ended that is a dead letter without a result: nothing follows, unless it is put back.
    async fn died(&self, id: &JobId) -> Result<Option<End>> {
        if !self.met.contains(id) {
            return Ok(None);
        }
        let is_dead = self.queue.state(id).await? == Some(JobState::Dead);
        if !is_dead || self.queue.get(id).await?.is_some() {
            return Ok(None);
        }
        let unread = || {
            let words = "the job is among the dead letters, and nobody runs it";
            let outcome = Outcome::Failed(Failure::new(FailureKind::Other, words));
            // Nobody is told when.
            let finished_at = Timestamp::UNIX_EPOCH;
            JobResult { id: id.clone(), attempt: 0, outcome, finished_at, queue: None }
        };
        Ok(Some(End::Result(self.model.letter(id).await.unwrap_or_else(unread))))
    }

    /// What is to come of a job, or how it has ended where nothing is.
    async fn frames(
        &self,
        id: &JobId,
        from: u64,
    ) -> Result<std::result::Result<BoxStream<'static, Result<Frame>>, End>> {
        match self.died(id).await {
            Ok(Some(end)) => Ok(Err(end)),
            Err(error) if error.kind().heals() => Err(error),
            // Who may not look, or finds what cannot be read, may be answered all the same.
            Ok(None) | Err(_) => Ok(Ok(self.queue.follow(id, from).await?)),
        }
    }

    fn follow(
        &self,
        id: JobId,
        behind: Option<Place>,
        from: u64,
    ) -> BoxStream<'static, Result<News>> {
        let (waiting, waits) = (self.clone(), Waits::new(&self.metrics.waiting));
        let news = async_stream::try_stream! {
            let _waits = waits;
            let mut heard = behind;
            loop {
                let mut frames = match waiting.frames(&id, from).await {
                    Ok(Ok(frames)) => frames,
                    Ok(Err(end)) => {
                        yield News::End(end);
                        return;
                    }
                    Err(error) => {
                        pause(&waiting.metrics, error).await?;
                        continue;
                    }
                };
                let is_lost = loop {
                    match frames.next().await {
                        Some(Ok(Frame::Chunk { attempt, seq, body })) => {
                            let place = Place { attempt, seq };
                            let before = heard.replace(place);
                            if before.is_some_and(|before| before.attempt != attempt) {
                                yield News::Void;
                            } else if let Some(before) = before.filter(|before| seq <= before.seq) {
                                heard = Some(before);
                                continue;
                            }
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
                            pause(&waiting.metrics, error).await?;
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

#[cfg(test)]
mod tests {
    use ebb_queue::faulty::{Faults, Faulty};
    use ebb_queue::memory::MemoryQueue;
    use ebb_queue::{Behavior, Broker, Job, OpenOptions};
    use tokio::time::Instant;

    use super::*;

    fn model() -> Arc<Model> {
        Arc::new(Model::of_tests("m", None))
    }

    #[tokio::test(start_paused = true)]
    async fn that_a_job_is_dead_is_found_out_though_its_broker_was_away_at_first() {
        let memory = MemoryQueue::new(&Behavior::default(), OpenOptions::default());
        let job = Job::new("x", Timestamp::UNIX_EPOCH);
        let id = job.id.clone();
        memory.publish(vec![job]).await.unwrap();
        let delivery =
            memory.receive(1.try_into().unwrap(), Duration::ZERO).await.unwrap().remove(0);
        let failure = Failure::new(FailureKind::Model, "no such model");
        memory.settle(&[delivery.reject(failure.clone())]).await.unwrap();
        let is_away = Faults { fail_before: 1.0, ..Faults::NONE };
        let broker = Faulty::new(Arc::new(memory), is_away, 7);
        let (model, queue): (_, Queue) = (model(), Arc::new(broker.clone()));
        model.open(Arc::clone(&queue));
        let waiting = Waiting::new((model, queue), [id.clone()], &Metrics::default());
        let start = Instant::now();
        let back = async {
            sleep(Duration::from_millis(1_200)).await;
            broker.set(Faults::NONE);
        };
        let ends = tokio::time::timeout(Duration::from_secs(60), waiting.end(id));
        let (end, ()) = tokio::join!(ends, back);
        let End::Result(result) = end.expect("nothing more can come").unwrap() else { panic!() };
        assert_eq!(result.outcome, Outcome::Failed(failure));
        assert_eq!(start.elapsed(), 3 * PAUSE);
    }
}
