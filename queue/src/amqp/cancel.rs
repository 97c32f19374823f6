//! Jobs that somebody cancels: RabbitMQ finds none of them, so that is stored as their result and whoever
//! receives one looks there first.
//!
//! That costs a look for each job, so there is one only while a note in the store of results says that
//! some job was cancelled lately, of whichever queue: a split may have passed it on. The note is a result
//! itself, and as old as its name says: a store keeps it as long as the results that it is about, and does
//! not put a newer one in its place.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

use super::AmqpQueue;
use super::core::Core;
use super::voice;
use crate::cancel;
use crate::{Cancelled, JobId, Queue, Result, Timestamp};

/// From one look at the notes to the next.
const PERIOD: Duration = Duration::from_secs(1);

/// Notes that are looked at: one for each quarter of the time for which a result is kept.
const QUARTERS: i64 = 4;

/// Hints that wait to be heard.
const HINTS: usize = 1024;

/// What a handle knows of cancelled jobs.
#[derive(Debug)]
pub(super) struct Cancels {
    told: broadcast::Sender<JobId>,
    looked: Mutex<Option<Looked>>,
}

/// What the last look at the notes found.
#[derive(Debug, Clone, Copy)]
struct Looked {
    at: Instant,
    has_found: bool,
}

impl Default for Cancels {
    fn default() -> Self {
        Self { told: broadcast::Sender::new(HINTS), looked: Mutex::default() }
    }
}

impl Cancels {
    /// Somebody says that a job was cancelled.
    pub(super) fn hear(&self, body: &[u8]) {
        self.note(true);
        let id = std::str::from_utf8(body).ok().and_then(|id| id.parse().ok());
        // Where no worker runs nobody listens.
        id.map(|id| self.told.send(id).ok());
    }

    /// Whether a job may have been cancelled.
    pub(super) async fn may_be(&self, core: &Core, results: &Queue) -> Result<bool> {
        let looked = *self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(looked) = looked.filter(|looked| looked.at.elapsed() < PERIOD) {
            return Ok(looked.has_found);
        }
        let now = core.clock.now();
        for ago in 0..=QUARTERS {
            let Some(note) = note_of(results.result_ttl(), now, ago) else { continue };
            if results.get(&note).await?.is_some() {
                self.note(true);
                return Ok(true);
            }
        }
        self.note(false);
        Ok(false)
    }

    fn note(&self, has_found: bool) {
        let looked = Some(Looked { at: Instant::now(), has_found });
        *self.looked.lock().unwrap_or_else(PoisonError::into_inner) = looked;
    }
}

/// What the note is called of the quarter so many quarters ago.
fn note_of(ttl: Duration, now: Timestamp, ago: i64) -> Option<JobId> {
    let quarter = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX) / QUARTERS;
    let nth = now.as_millisecond() / quarter.max(1) - ago;
    format!("ebb-cancelled-{nth}").parse().ok()
}

pub(super) async fn cancel(core: &Core, results: &Queue, id: &JobId) -> Result<Cancelled> {
    // A failure is that of a dead letter, or of a job that is about to be one.
    if results.get(id).await?.is_some() {
        return Ok(Cancelled::Ended);
    }
    let now = core.clock.now();
    // Before its result: with that alone nobody would look for it.
    if let Some(note) = note_of(results.result_ttl(), now, 0) {
        cancel::put(&**results, &note, now).await?;
    }
    if !cancel::put(&**results, id, now).await? {
        return Ok(Cancelled::Ended);
    }
    let session = core.session().await?;
    session.publish(vec![core.note("cancelled", id.to_string())]).await?;
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
