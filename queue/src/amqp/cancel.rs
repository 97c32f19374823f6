//! Jobs that somebody cancels: RabbitMQ finds none of them, so that is stored as their result and whoever
//! receives one looks there first.
//!
//! That costs a look for each job, so there is one only while a note in the store of results says that
//! some job was cancelled lately, of whichever queue: a split may have passed it on. The note is a result
//! itself, whose name says the hour, or the minute where results are not kept for hours: a store keeps it as
//! long as the results that it is about, and does not put a newer one in its place. So who cancels and who
//! receives name it alike, for however long each keeps results.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;
use tracing::debug;

use super::AmqpQueue;
use super::core::Core;
use super::voice;
use crate::cancel;
use crate::{Cancelled, JobId, Queue, Result, Timestamp};

/// From one look at the notes to the next.
const PERIOD: Duration = Duration::from_secs(1);

const MINUTE: i64 = 60;
const HOUR: i64 = 3600;

/// Where results are kept for less than these seconds a note is about a minute.
const SHORT: i64 = 4 * HOUR;

/// Notes are looked for that are as old as this, in seconds, though results be kept for less here.
const LONG: i64 = 48 * HOUR;

/// Notes that are looked for at the same time.
const AT_ONCE: usize = 64;

/// Hints that wait to be heard.
const HINTS: usize = 1024;

/// What a handle knows of cancelled jobs.
#[derive(Debug)]
pub(super) struct Cancels {
    told: broadcast::Sender<JobId>,
    looked: Mutex<Looked>,
}

/// What was found of the notes.
#[derive(Debug, Clone, Default)]
struct Looked {
    /// Until when nobody looks again.
    fresh_until: Option<Instant>,
    has_found: bool,
    /// One that was there.
    note: Option<JobId>,
    /// When there was none, by the clock that they are named by.
    none_at: Option<Timestamp>,
}

impl Default for Cancels {
    fn default() -> Self {
        Self { told: broadcast::Sender::new(HINTS), looked: Mutex::default() }
    }
}

impl Cancels {
    /// Some job was cancelled.
    fn note_one(&self) {
        let mut looked = self.looked();
        looked.fresh_until = Some(Instant::now() + PERIOD);
        looked.has_found = true;
    }

    /// Somebody says that a job was cancelled.
    pub(super) fn hear(&self, body: &[u8]) {
        self.note_one();
        let id = std::str::from_utf8(body).ok().and_then(|id| id.parse().ok());
        // Where no worker runs nobody listens.
        id.map(|id| self.told.send(id).ok());
    }

    /// Whether a job may have been cancelled.
    pub(super) async fn may_be(&self, now: Timestamp, results: &Queue) -> Result<bool> {
        let looked = self.looked().clone();
        if looked.fresh_until.is_some_and(|until| Instant::now() < until) {
            return Ok(looked.has_found);
        }
        let (mut note, mut since) = (looked.note, looked.none_at);
        if let Some(known) = note.take() {
            // Others came since, and were not looked for as long as this one was there.
            since = None;
            note = results.get(&known).await?.map(|_| known);
        }
        if note.is_none() {
            note = find(results, notes(now, since, results.result_ttl())).await?;
        }
        let (fresh_until, has_found) = (Some(Instant::now() + PERIOD), note.is_some());
        let none_at = note.is_none().then_some(now);
        *self.looked() = Looked { fresh_until, has_found, note, none_at };
        Ok(has_found)
    }

    fn looked(&self) -> MutexGuard<'_, Looked> {
        self.looked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first of these notes that is there.
async fn find(results: &Queue, notes: Vec<JobId>) -> Result<Option<JobId>> {
    let looks = notes.into_iter().map(|note| {
        let results = results.clone();
        async move { Ok(results.get(&note).await?.map(|_| note)) }
    });
    let found = stream::iter(looks).buffered(AT_ONCE);
    found.try_filter_map(|found| std::future::ready(Ok(found))).boxed().try_next().await
}

/// The notes that may have been written since there was none, the newest first: also by somebody whose
/// clock is not quite this one.
fn notes(now: Timestamp, none_at: Option<Timestamp>, ttl: Duration) -> Vec<JobId> {
    let now = now.as_second();
    let ttl = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
    let since = |span: i64| none_at.map_or(now - span, |at| at.as_second().max(now - span));
    let of = |step: i64, span: i64| {
        let (first, last) = (since(span) / step - 1, now / step + 1);
        (first..=last).rev().filter_map(move |nth| note_of(step, nth))
    };
    // Whoever keeps results for longer looks as far back as that, but not for ever.
    of(MINUTE, SHORT).chain(of(HOUR, ttl.clamp(LONG, 20 * LONG))).collect()
}

/// What the note of such a step of so many seconds is called.
fn note_of(step: i64, nth: i64) -> Option<JobId> {
    format!("ebb-cancelled-{step}-{nth}").parse().ok()
}

/// The note of now, of who keeps results for so long.
fn note_now(now: Timestamp, ttl: Duration) -> Option<JobId> {
    let is_short = i64::try_from(ttl.as_secs()).is_ok_and(|ttl| ttl < SHORT);
    let step = if is_short { MINUTE } else { HOUR };
    note_of(step, now.as_second() / step)
}

pub(super) async fn cancel(core: &Core, results: &Queue, id: &JobId) -> Result<Cancelled> {
    // A failure is that of a dead letter, or of a job that is about to be one. Whoever cancelled it before
    // has left all there is to find.
    if results.get(id).await?.is_some() {
        return Ok(Cancelled::Ended);
    }
    let now = core.clock.now();
    // Before its result: with that alone nobody would look for it.
    if let Some(note) = note_now(now, results.result_ttl()) {
        cancel::put(&**results, &note, now, false).await?;
    }
    if !cancel::put(&**results, id, now, false).await? {
        return Ok(Cancelled::Ended);
    }
    // Our own word comes back to us a moment later than it is said.
    core.cancels.note_one();
    // What is stored counts. Not by the channel of the jobs, which the broker closes where nothing is there
    // that it could be said to.
    let said = async { core.session().await?.say(core.note("cancelled", id.to_string())).await };
    if let Err(error) = said.await {
        debug!(job.id = %id, %error, "nobody was told that a job was cancelled");
    }
    Ok(Cancelled::Marked)
}

pub(super) async fn told(queue: &AmqpQueue) -> Result<BoxStream<'static, JobId>> {
    let (core, session) = (queue.core(), queue.core().session().await?);
    let told = core.cancels.told.subscribe();
    // Others are heard from then on.
    voice::catch_up(core, &session).await?;
    let told = stream::unfold((told, queue.clone()), |(mut told, queue)| async move {
        loop {
            match told.recv().await {
                Ok(id) => return Some((id, (told, queue))),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    });
    Ok(told.boxed())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::memory::MemoryQueue;
    use crate::{Behavior, OpenOptions, TokioClock};

    const DAY: Duration = Duration::from_secs(86_400);

    fn store(ttl: Duration) -> Queue {
        let clock = Arc::new(TokioClock::starting_at("2030-01-31T12:59:59Z".parse().unwrap()));
        let behavior = Behavior { result_ttl: ttl, ..Behavior::default() };
        Arc::new(MemoryQueue::new(&behavior, OpenOptions { clock, ..OpenOptions::default() }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_note_is_found_by_who_keeps_results_for_longer_or_less_and_by_a_clock_of_its_own() {
        for (ttl, other) in [(DAY, DAY / 24), (DAY / 24, DAY), (DAY, DAY * 30), (DAY, DAY)] {
            for behind in [0, 2, -2] {
                let results = store(other);
                let now: Timestamp = "2030-01-31T12:59:59Z".parse().unwrap();
                let cancels = Cancels::default();
                assert!(!cancels.may_be(now, &results).await.unwrap());
                tokio::time::advance(PERIOD).await;
                let note = note_now(now, ttl).unwrap();
                assert!(cancel::put(&*results, &note, now, false).await.unwrap());
                let then = Timestamp::from_second(now.as_second() + behind).unwrap();
                assert!(cancels.may_be(then, &results).await.unwrap(), "{ttl:?} {other:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_note_that_came_while_another_was_known_is_found_once_that_one_is_gone() {
        let results = store(DAY);
        let now = |hours: i64| Timestamp::from_second(2_000_000_000 + hours * HOUR).unwrap();
        let cancels = Cancels::default();
        for hours in [0, 20] {
            let note = note_now(now(hours), DAY).unwrap();
            assert!(cancel::put(&*results, &note, now(hours), false).await.unwrap());
            assert!(cancels.may_be(now(hours), &results).await.unwrap());
            tokio::time::advance(DAY * 20 / 24).await;
        }
        assert!(cancels.may_be(now(40), &results).await.unwrap(), "the second is there");
        tokio::time::advance(DAY).await;
        assert!(!cancels.may_be(now(64), &results).await.unwrap());
    }
}
