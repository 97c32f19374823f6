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

use super::core::Core;
use super::names::Lane;
use super::parcel::Parcel;
use super::session::{Posted, Session};
use crate::{DeadLetter, Elsewhere, JobId, Purged, Result};

/// Dead letters that are looked through at once, the oldest ones.
const MAX_LETTERS: u64 = 50_000;
/// How long to wait for letters that were there a moment ago.
const SOON: Duration = Duration::from_millis(500);
/// How long the broker may take to show what was given back, and how often to look.
const BACK: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(5);
/// Jobs that are put back in one go.
const STEP: usize = 256;

/// Letters that are deleted in one go since they are old.
const OLD: u64 = 100;

/// A walk through the dead letters, the oldest first. One that is dropped gives all back as well:
/// the broker closes the channel.
struct Walk<'a> {
    core: &'a Core,
    session: &'a Session,
    channel: Channel,
    consumer: Option<Consumer>,
    n_left: u64,
    n_held: u64,
}

/// A dead letter that is held.
struct Letter {
    parcel: Parcel,
    tag: u64,
}

impl<'a> Walk<'a> {
    async fn begin(core: &'a Core, session: &'a Session) -> Result<Self> {
        let dead = core.names.dead();
        let counts = session.counts(std::slice::from_ref(&dead)).await?;
        let n_left = counts.first().copied().unwrap_or(0).min(MAX_LETTERS);
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
        Ok(Self { core, session, channel, consumer, n_left, n_held: 0 })
    }

    async fn next(&mut self) -> Option<Letter> {
        let consumer = self.consumer.as_mut().filter(|_| self.n_left > 0)?;
        // Somebody else may look at the rest at this moment.
        let delivery = timeout(SOON, consumer.next()).await.ok()??.ok()?;
        self.n_left -= 1;
        self.n_held += 1;
        let now = self.core.clock.now();
        let (parcel, _) = Parcel::read(&delivery.properties, delivery.data, now);
        Some(Letter { parcel, tag: delivery.delivery_tag })
    }

    async fn remove(&mut self, tag: u64) -> Result<()> {
        let acked = self.channel.basic_ack(tag, BasicAckOptions::default());
        self.session.patiently("remove dead letters", acked).await?;
        self.n_held -= 1;
        Ok(())
    }

    /// Gives back what was not removed.
    async fn end(&self) -> Result<()> {
        let ending = async {
            if let Some(consumer) = &self.consumer {
                self.channel.basic_cancel(consumer.tag(), Default::default()).await?;
            }
            if self.n_held > 0 {
                let options = BasicNackOptions { multiple: true, requeue: true };
                // Tag 0 means all of them.
                self.channel.basic_nack(0, options).await?;
            }
            self.channel.close(200, "done".into()).await
        };
        self.session.patiently("put dead letters back", ending).await?;
        see_back(self.core, self.session, self.n_held).await
    }
}

/// Waits until what was given back is seen to be there, for whoever looks next.
async fn see_back(core: &Core, session: &Session, n_letters: u64) -> Result<()> {
    let dead = [core.names.dead()];
    let end = Instant::now() + BACK;
    while Instant::now() < end {
        if session.counts(&dead).await?.first() >= Some(&n_letters) {
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
    let mut newest: Vec<(u64, Parcel)> = Vec::new();
    let keep_newest = |newest: &mut Vec<(u64, Parcel)>| {
        let died_at = |parcel: &Parcel| parcel.death.as_ref().map(|(_, at)| *at);
        newest.sort_by_key(|(tag, parcel)| std::cmp::Reverse((died_at(parcel), *tag)));
        newest.truncate(max);
    };
    while let Some(Letter { parcel, tag }) = walk.next().await {
        newest.push((tag, parcel));
        // Bodies may be large, so no more of them are kept than are wanted, or thereabouts.
        if newest.len() > max.saturating_mul(2).max(64) {
            keep_newest(&mut newest);
        }
    }
    keep_newest(&mut newest);
    walk.end().await?;
    let now = core.clock.now();
    Ok(newest.into_iter().map(|(_, parcel)| parcel.into_dead_letter(now)).collect())
}

pub(super) async fn show(core: &Core, id: &JobId) -> Result<Option<DeadLetter>> {
    let _alone = core.reading_dead.lock().await;
    let session = core.session().await?;
    let mut walk = Walk::begin(core, &session).await?;
    let mut found = None;
    while found.is_none()
        && let Some(letter) = walk.next().await
    {
        found = Some(letter.parcel).filter(|parcel| parcel.job.id == *id);
    }
    walk.end().await?;
    Ok(found.map(|parcel| parcel.into_dead_letter(core.clock.now())))
}

pub(super) async fn redrive(core: &Core, ids: Option<&[JobId]>) -> Result<u64> {
    let _alone = core.reading_dead.lock().await;
    let session = core.session().await?;
    let mut walk = Walk::begin(core, &session).await?;
    let wanted: Option<HashSet<&JobId>> = ids.map(|ids| ids.iter().collect());
    let (mut step, mut n_done) = (Vec::new(), 0);
    while let Some(letter) = walk.next().await {
        if wanted.as_ref().is_none_or(|wanted| wanted.contains(&letter.parcel.job.id)) {
            step.push(letter);
        }
        // All go in the order in which they lie, so this many at a time will do.
        if wanted.is_none() && step.len() == STEP {
            n_done += revive(core, &mut walk, std::mem::take(&mut step)).await?;
        }
    }
    if let Some(ids) = ids {
        let position = |id: &JobId| ids.iter().position(|named| named == id);
        step.sort_by_cached_key(|letter| position(&letter.parcel.job.id));
    }
    n_done += revive(core, &mut walk, step).await?;
    walk.end().await?;
    Ok(n_done)
}

async fn revive(core: &Core, walk: &mut Walk<'_>, letters: Vec<Letter>) -> Result<u64> {
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
    let mut n_done = 0;
    for (tag, is_stored) in tags.into_iter().zip(is_stored) {
        if is_stored {
            walk.remove(tag).await?;
            n_done += 1;
        }
    }
    failed.map_or(Ok(n_done), Err)
}

/// Deletes the oldest of those that died longer ago than this. Only they are taken, and the one behind
/// them: whoever looks at the same moment misses one letter that stays. One that does not say when it
/// died is of somebody else, and stays too.
pub(super) async fn purge_old(core: &Core, ttl: Duration, elsewhere: Elsewhere) -> Result<Purged> {
    let _alone = core.reading_dead.lock().await;
    let session = core.session().await?;
    let last = core.clock.now() - ttl;
    let (mut purged, mut n_held) = (Purged::default(), 0);
    let purging = async {
        let channel = session.intake.create_channel().await?;
        for _ in 0..OLD {
            let (dead, options) = (core.names.dead(), BasicGetOptions::default());
            let Some(got) = channel.basic_get(dead.as_str().into(), options).await? else { break };
            let Delivery { delivery_tag, properties, data, .. } = got.delivery;
            let (Parcel { job, death, .. }, _) = Parcel::read(&properties, data, core.clock.now());
            n_held += 1;
            let Some((_, died_at)) = death else { continue };
            if died_at > last || !elsewhere.lets_go(&job) {
                break;
            }
            channel.basic_ack(delivery_tag, BasicAckOptions::default()).await?;
            n_held -= 1;
            core.ledger().forget(&job.id);
            purged.n_jobs += 1;
            purged.referring.extend(Some(job).filter(|job| job.headers.body_ref.is_some()));
        }
        // Whatever is not acknowledged goes back to where it was.
        channel.close(200, "done".into()).await
    };
    session.patiently("delete old dead letters", purging).await?;
    see_back(core, &session, n_held).await?;
    Ok(purged)
}

pub(super) async fn purge(core: &Core, ids: Option<&[JobId]>) -> Result<u64> {
    let _alone = core.reading_dead.lock().await;
    let session = core.session().await?;
    let mut walk = Walk::begin(core, &session).await?;
    let wanted: Option<HashSet<&JobId>> = ids.map(|ids| ids.iter().collect());
    let mut n_done = 0;
    while let Some(Letter { parcel, tag }) = walk.next().await {
        let id = &parcel.job.id;
        if wanted.as_ref().is_none_or(|wanted| wanted.contains(id)) {
            walk.remove(tag).await?;
            core.ledger().forget(id);
            n_done += 1;
        }
    }
    walk.end().await?;
    Ok(n_done)
}
