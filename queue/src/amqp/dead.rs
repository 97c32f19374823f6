//! Jobs that failed for good. A queue can be read from its head only, so whoever looks for one of
//! them takes all, and gives back what stays.

use std::collections::HashSet;
use std::time::Duration;

use futures::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicNackOptions, BasicQosOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use super::core::Core;
use super::errors;
use super::names::Lane;
use super::parcel::Parcel;
use super::session::{Posted, Session};
use crate::{DeadLetter, JobId, Purged, Result, Timestamp};

/// Dead letters that are looked through at once, the oldest ones.
const MAX_LETTERS: u64 = 50_000;
/// How long to wait for letters that were there a moment ago.
const SOON: Duration = Duration::from_millis(500);
/// The same while the broker says that they are there still.
const STALL: Duration = Duration::from_secs(8);
/// How long the broker may take to show what was given back, and how often to look.
const BACK: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(5);
/// What becomes of letters of which none is removed.
const LOOKED_AT: &str = "looked at";
/// Jobs that are put back in one go.
const STEP: usize = 256;

/// Letters that are deleted in one go since they are old; how long that may take, how many bytes of them
/// may come along, and how many of others are held meanwhile.
const OLD: u64 = 100;
const STEP_TIME: Duration = Duration::from_secs(2);
const STEP_BYTES: usize = 32 << 20;
const STRANGE: usize = 8;
/// How long the broker may take for each of them.
const PATIENCE: Duration = Duration::from_secs(5);

/// A walk through the dead letters, the oldest first. One that is dropped gives all back as well:
/// the broker closes the channel.
struct Walk<'a> {
    core: &'a Core,
    session: &'a Session,
    channel: Channel,
    consumer: Option<Consumer>,
    n_left: u64,
    n_held: u64,
    n_removed: u64,
}

/// A dead letter that is held.
struct Letter {
    parcel: Parcel,
    tag: u64,
}

impl<'a> Walk<'a> {
    async fn begin(core: &'a Core, session: &'a Session) -> Result<Self> {
        let dead = core.names.dead();
        let n_left = count(core, session).await?.min(MAX_LETTERS);
        let opening = async {
            let channel = session.intake.create_channel().await?;
            let prefetch = u16::try_from(n_left).unwrap_or(u16::MAX);
            let mut consumer = None;
            if n_left > 0 {
                channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
                let options = BasicConsumeOptions::default();
                let consuming =
                    channel.basic_consume(dead.as_str().into(), "".into(), options, none());
                consumer = Some(consuming.await?);
            }
            Ok((channel, consumer))
        };
        let (channel, consumer) = session.patiently("read dead letters", opening).await?;
        Ok(Self { core, session, channel, consumer, n_left, n_held: 0, n_removed: 0 })
    }

    async fn next(&mut self) -> Result<Option<Letter>> {
        let Some(consumer) = self.consumer.as_mut().filter(|_| self.n_left > 0) else {
            return Ok(None);
        };
        let (end, mut is_all) = (Instant::now() + STALL, false);
        let delivery = loop {
            match timeout(SOON, consumer.next()).await {
                Ok(Some(Ok(delivery))) => break delivery,
                Ok(_) => return Err(errors::down()),
                // Somebody else looks at the rest at this moment.
                Err(_) if is_all => return Ok(None),
                Err(_) if Instant::now() < end => {
                    is_all = has_handed_over(self.core, self.session, &self.channel).await?;
                }
                Err(_) => return Err(errors::late("hand over its dead letters")),
            }
        };
        self.n_left -= 1;
        self.n_held += 1;
        let now = self.core.clock.now();
        let (parcel, _) = Parcel::read(&delivery.properties, delivery.data, now);
        Ok(Some(Letter { parcel, tag: delivery.delivery_tag }))
    }

    async fn remove(&mut self, tag: u64) -> Result<()> {
        let acked = self.channel.basic_ack(tag, BasicAckOptions::default());
        self.session.patiently("remove dead letters", acked).await?;
        self.n_held -= 1;
        self.n_removed += 1;
        Ok(())
    }

    /// Gives back what was not removed, also where the walk was cut off: what was done by then, in a word,
    /// is told with the error.
    async fn end<T>(self, walked: Result<T>, done: &str) -> Result<T> {
        let ended = if walked.is_ok() {
            let gave_back = self.session.patiently("put dead letters back", self.give_back()).await;
            match gave_back {
                Ok(()) => see_back(self.core, self.session, self.n_held).await,
                Err(error) => Err(error),
            }
        } else {
            // What is wrong already says more than what comes of that.
            if in_time(self.give_back()).await.is_ok() {
                see_old_back(self.core, self.session, self.n_held).await;
            }
            Ok(())
        };
        walked.and_then(|done| ended.map(|()| done)).map_err(|error| match self.n_removed {
            0 => error,
            n_removed => {
                error.and(format_args!("dead letters that were {done} before: {n_removed}"))
            }
        })
    }

    async fn give_back(&self) -> lapin::Result<()> {
        if let Some(consumer) = &self.consumer {
            self.channel.basic_cancel(consumer.tag(), Default::default()).await?;
        }
        if self.n_held > 0 {
            let options = BasicNackOptions { multiple: true, requeue: true };
            // Tag 0 means all of them.
            self.channel.basic_nack(0, options).await?;
        }
        self.channel.close(200, "done".into()).await
    }
}

/// How many dead letters there are that nobody looks at.
async fn count(core: &Core, session: &Session) -> Result<u64> {
    let counts = session.counts(&[core.names.dead()]).await?;
    Ok(counts.first().copied().unwrap_or(0))
}

/// Whether all that is ours has come by this channel: none waits, and what is on its way comes before the
/// answer to anything that is asked after that.
async fn has_handed_over(core: &Core, session: &Session, channel: &Channel) -> Result<bool> {
    let n_waiting = count(core, session).await?;
    let asked = channel.basic_qos(u16::MAX, BasicQosOptions::default());
    session.patiently("read dead letters", asked).await?;
    Ok(n_waiting == 0)
}

/// Waits until what was given back is seen to be there, for whoever looks next.
async fn see_back(core: &Core, session: &Session, n_letters: u64) -> Result<()> {
    let end = Instant::now() + BACK;
    while Instant::now() < end {
        if count(core, session).await? >= n_letters {
            break;
        }
        sleep(LOOK).await;
    }
    Ok(())
}

fn none() -> FieldTable {
    FieldTable::default()
}

pub(super) async fn list(core: &Core, max: usize) -> Result<Vec<DeadLetter>> {
    let _alone = core.reading_dead.lock().await;
    let session = core.session().await?;
    let mut walk = Walk::begin(core, &session).await?;
    let found = newest(&mut walk, max).await;
    let (found, now) = (walk.end(found, LOOKED_AT).await?, core.clock.now());
    Ok(found.into_iter().map(|parcel| parcel.into_dead_letter(now)).collect())
}

async fn newest(walk: &mut Walk<'_>, max: usize) -> Result<Vec<Parcel>> {
    let mut newest: Vec<(u64, Parcel)> = Vec::new();
    let keep_newest = |newest: &mut Vec<(u64, Parcel)>| {
        let died_at = |parcel: &Parcel| parcel.death.as_ref().map(|(_, at)| *at);
        newest.sort_by_key(|(tag, parcel)| std::cmp::Reverse((died_at(parcel), *tag)));
        newest.truncate(max);
    };
    while let Some(Letter { parcel, tag }) = walk.next().await? {
        newest.push((tag, parcel));
        // Bodies may be large, so no more of them are kept than are wanted, or thereabouts.
        if newest.len() > max.saturating_mul(2).max(64) {
            keep_newest(&mut newest);
        }
    }
    keep_newest(&mut newest);
    Ok(newest.into_iter().map(|(_, parcel)| parcel).collect())
}

pub(super) async fn show(core: &Core, id: &JobId) -> Result<Option<DeadLetter>> {
    let _alone = core.reading_dead.lock().await;
    let session = core.session().await?;
    let mut walk = Walk::begin(core, &session).await?;
    let found = find(&mut walk, id).await;
    let found = walk.end(found, LOOKED_AT).await?;
    Ok(found.map(|parcel| parcel.into_dead_letter(core.clock.now())))
}

async fn find(walk: &mut Walk<'_>, id: &JobId) -> Result<Option<Parcel>> {
    while let Some(Letter { parcel, .. }) = walk.next().await? {
        if parcel.job.id == *id {
            return Ok(Some(parcel));
        }
    }
    Ok(None)
}

pub(super) async fn redrive(core: &Core, ids: Option<&[JobId]>) -> Result<u64> {
    let _alone = core.reading_dead.lock().await;
    let session = core.session().await?;
    let mut walk = Walk::begin(core, &session).await?;
    let put_back = put_back(&mut walk, ids).await;
    walk.end(put_back, "put back").await
}

async fn put_back(walk: &mut Walk<'_>, ids: Option<&[JobId]>) -> Result<u64> {
    let wanted: Option<HashSet<&JobId>> = ids.map(|ids| ids.iter().collect());
    let mut step = Vec::new();
    while let Some(letter) = walk.next().await? {
        if wanted.as_ref().is_none_or(|wanted| wanted.contains(&letter.parcel.job.id)) {
            step.push(letter);
        }
        // All go in the order in which they lie, so this many at a time will do.
        if wanted.is_none() && step.len() == STEP {
            revive(walk, std::mem::take(&mut step)).await?;
        }
    }
    if let Some(ids) = ids {
        let position = |id: &JobId| ids.iter().position(|named| named == id);
        step.sort_by_cached_key(|letter| position(&letter.parcel.job.id));
    }
    revive(walk, step).await?;
    Ok(walk.n_removed)
}

async fn revive(walk: &mut Walk<'_>, letters: Vec<Letter>) -> Result<()> {
    let core = walk.core;
    let now = core.clock.now();
    let mut messages = Vec::with_capacity(letters.len());
    let mut tags = Vec::with_capacity(letters.len());
    for Letter { mut parcel, tag } in letters {
        parcel.revive(now, core.next_place());
        core.ledger().forget(&parcel.job.id);
        messages.push(core.to_lane(&parcel, Lane::New(parcel.job.headers.priority)));
        tags.push(tag);
    }
    let Posted { is_stored, failed } = walk.session.post(messages).await;
    for (tag, is_stored) in tags.into_iter().zip(is_stored) {
        if is_stored {
            walk.remove(tag).await?;
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Deletes the oldest of those that died longer ago than this. Only they are taken, and the one behind
/// them: whoever looks at the same moment misses one letter that stays. A few that do not say when they
/// died are of somebody else, and stay too.
///
/// Nobody waits for it, so it ends soon, and what the broker does not answer costs no more than its
/// channel: to give up the session would end all leases. Of no body it is known that it is needed no more:
/// a letter may be back among the jobs, where the acknowledgement of a redrive was lost.
pub(super) async fn purge_old(core: &Core, ttl: Duration) -> Result<Purged> {
    let _alone = core.reading_dead.lock().await;
    let session = core.session().await?;
    let last = core.clock.now() - ttl;
    let channel = in_time(session.intake.create_channel()).await?;
    let mut step = Step { core, channel: &channel, n_jobs: 0, n_held: 0, n_strange: 0, n_bytes: 0 };
    let end = Instant::now() + STEP_TIME;
    let mut failed = None;
    while step.may_go_on() && Instant::now() < end {
        match step.purge_next(last).await {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    let Step { n_jobs, n_held, .. } = step;
    // Whatever is not acknowledged goes back to where it was, also where this is not answered.
    let closed = in_time(channel.close(200, "done".into())).await;
    match failed.or(closed.err()) {
        Some(error) if n_jobs == 0 => return Err(error),
        Some(error) => debug!(%error, "a step of a purge was cut off"),
        None => see_old_back(core, &session, n_held).await,
    }
    Ok(Purged { n_jobs, ..Purged::default() })
}

/// What a step over old letters has done.
struct Step<'a> {
    core: &'a Core,
    channel: &'a Channel,
    n_jobs: u64,
    n_held: u64,
    /// Of those that are held, the ones that do not say when they died.
    n_strange: usize,
    n_bytes: usize,
}

impl Step<'_> {
    fn may_go_on(&self) -> bool {
        self.n_jobs < OLD && self.n_strange <= STRANGE && self.n_bytes < STEP_BYTES
    }

    /// Deletes the next letter if it is old; false where there is none, or it is young.
    async fn purge_next(&mut self, last: Timestamp) -> Result<bool> {
        let (dead, options) = (self.core.names.dead(), BasicGetOptions::default());
        let got = in_time(self.channel.basic_get(dead.as_str().into(), options)).await?;
        let Some(got) = got else { return Ok(false) };
        let Delivery { delivery_tag, properties, data, .. } = got.delivery;
        self.n_bytes += data.len();
        self.n_held += 1;
        let (Parcel { job, death, .. }, _) = Parcel::read(&properties, data, self.core.clock.now());
        let Some((_, died_at)) = death else {
            self.n_strange += 1;
            return Ok(true);
        };
        if died_at > last {
            return Ok(false);
        }
        in_time(self.channel.basic_ack(delivery_tag, BasicAckOptions::default())).await?;
        self.core.ledger().forget(&job.id);
        self.n_held -= 1;
        self.n_jobs += 1;
        Ok(true)
    }
}

/// What the broker answers in the time that it has for it; else the channel is given up, and no more.
async fn in_time<T>(answer: impl Future<Output = lapin::Result<T>>) -> Result<T> {
    let what = "delete old dead letters";
    match timeout(PATIENCE, answer).await {
        Ok(answered) => answered.map_err(|error| errors::op(&error, what)),
        Err(_) => Err(errors::late(what)),
    }
}

/// The same as [`see_back`], but gives nothing up.
async fn see_old_back(core: &Core, session: &Session, n_letters: u64) {
    let end = Instant::now() + BACK;
    while Instant::now() < end {
        match timeout(BACK, session.count_if_there(core.names.dead())).await {
            Ok(Ok(Some(n_there))) if n_there < n_letters => sleep(LOOK).await,
            _ => break,
        }
    }
}

pub(super) async fn purge(core: &Core, ids: Option<&[JobId]>) -> Result<u64> {
    let _alone = core.reading_dead.lock().await;
    let session = core.session().await?;
    let mut walk = Walk::begin(core, &session).await?;
    let deleted = delete(&mut walk, ids).await;
    walk.end(deleted, "deleted").await
}

async fn delete(walk: &mut Walk<'_>, ids: Option<&[JobId]>) -> Result<u64> {
    let wanted: Option<HashSet<&JobId>> = ids.map(|ids| ids.iter().collect());
    while let Some(Letter { parcel, tag }) = walk.next().await? {
        let id = &parcel.job.id;
        if wanted.as_ref().is_none_or(|wanted| wanted.contains(id)) {
            walk.remove(tag).await?;
            walk.core.ledger().forget(id);
        }
    }
    Ok(walk.n_removed)
}
