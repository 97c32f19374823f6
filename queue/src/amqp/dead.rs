//! Jobs that failed for good. A queue can be read from its head only, so whoever looks for one of
//! them takes all, and gives back what stays.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use futures::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::core::Core;
use super::counts::Unknown;
use super::names::Lane;
use super::pages::n_next;
use super::parcel::Parcel;
use super::session::{Posted, Session};
use super::{aged, errors};
use crate::{DeadLetter, JobId, Result};

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
/// Letters that a quorum queue puts back in their order where they are given back in one go: of more it
/// makes a map of Erlang without one.
const IN_ORDER: usize = 32;
/// How many times in one go before those are seen to be back, and how long that may take in all: the broker
/// makes one of all that it is given while 32 of them are not through (`rabbit_fifo_client`).
const GOES: usize = 16;
const IN_ORDER_TIME: Duration = Duration::from_secs(3);

/// A walk through the dead letters, the oldest first. One that is dropped gives all back as well:
/// the broker closes the channel.
struct Walk<'a> {
    core: &'a Core,
    session: &'a Session,
    channel: Channel,
    page: Option<Page>,
    /// Whether a letter may be on its way here.
    has_asked: bool,
    n_counted: u64,
    n_left: u64,
    n_came: u64,
    held: BTreeSet<u64>,
    n_removed: u64,
    is_back: bool,
}

/// Letters that the broker hands over at once, and how many of them have not been seen yet. The client keeps
/// what it is handed in memory.
struct Page {
    consumer: Consumer,
    n_letters: u64,
    n_left: u64,
    /// How many bytes the largest of those has that were seen.
    n_largest: u64,
}

/// A dead letter that is held.
struct Letter {
    parcel: Parcel,
    tag: u64,
}

impl<'a> Walk<'a> {
    async fn begin(core: &'a Core, session: &'a Session) -> Result<Self> {
        // Those of a walk that broke are on their way back, and nobody else looked since.
        let away = core.letters_away().clone();
        if let Some((closing, n_away)) = away {
            // They may not even have left: what was asked for on a channel is done before it is closed.
            let end = Instant::now() + BACK;
            while !closing.is_finished() && Instant::now() < end {
                sleep(LOOK).await;
            }
            see_back(core, session, n_away).await;
            *core.letters_away() = None;
        }
        let n_counted = count(core, session).await?;
        let opening = session.intake.create_channel();
        let channel = session.patiently("read dead letters", opening).await?;
        Ok(Self {
            core,
            session,
            channel,
            page: None,
            has_asked: false,
            n_counted,
            n_left: n_counted.min(MAX_LETTERS),
            n_came: 0,
            held: BTreeSet::new(),
            n_removed: 0,
            is_back: false,
        })
    }

    async fn next(&mut self) -> Result<Option<Letter>> {
        if self.n_left == 0 {
            return Ok(None);
        }
        if self.page.as_ref().is_none_or(|page| page.n_left == 0) {
            self.has_asked = true;
            let turning = self.turn();
            let page = self.session.patiently("read dead letters", turning).await?;
            self.page = Some(page);
        }
        let Some(page) = &mut self.page else { return Ok(None) };
        let (end, mut is_all) = (Instant::now() + STALL, false);
        let delivery = loop {
            match timeout(SOON, page.consumer.next()).await {
                Ok(Some(Ok(delivery))) => break delivery,
                Ok(_) => return Err(errors::down()),
                // Somebody else looks at the rest at this moment.
                Err(_) if is_all => {
                    (page.n_left, self.n_left) = (0, 0);
                    return Ok(None);
                }
                Err(_) if Instant::now() < end => {
                    is_all = has_handed_over(self.core, self.session, &self.channel).await?;
                }
                Err(_) => return Err(errors::late("hand over its dead letters")),
            }
        };
        page.n_left -= 1;
        self.n_left -= 1;
        self.n_came += 1;
        page.n_largest = page.n_largest.max(delivery.data.len() as u64);
        self.held.insert(delivery.delivery_tag);
        let now = self.core.clock.now();
        let (parcel, _) = Parcel::read(&delivery.properties, delivery.data, now);
        Ok(Some(Letter { parcel, tag: delivery.delivery_tag }))
    }

    /// Has the broker hand over the next page. What came before stays held.
    async fn turn(&self) -> lapin::Result<Page> {
        if let Some(Page { consumer, .. }) = &self.page {
            // All that it may bring has come, so nobody need wait.
            let options = BasicCancelOptions { nowait: true };
            self.channel.basic_cancel(consumer.tag(), options).await?;
        }
        let before = self.page.as_ref().map(|page| (page.n_letters, page.n_largest));
        let n_letters = n_next(before).min(self.n_left);
        let prefetch = u16::try_from(n_letters).unwrap_or(u16::MAX);
        self.channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
        // The broker gives back by the names of consumers, in their order.
        let name = format!("{:05}", self.n_came);
        let (dead, options) = (self.core.names.dead(), BasicConsumeOptions::default());
        let consuming =
            self.channel.basic_consume(dead.as_str().into(), name.as_str().into(), options, none());
        Ok(Page { consumer: consuming.await?, n_letters, n_left: n_letters, n_largest: 0 })
    }

    async fn remove(&mut self, tag: u64) -> Result<()> {
        let acked = self.channel.basic_ack(tag, BasicAckOptions::default());
        self.session.patiently("remove dead letters", acked).await?;
        self.held.remove(&tag);
        self.n_removed += 1;
        Ok(())
    }

    /// Gives back what was not removed, also where the walk was cut off: what was done by then, in a word,
    /// is told with the error.
    async fn end<T>(mut self, walked: Result<T>, done: &str) -> Result<T> {
        let session = self.session;
        let (gave_back, n_letters) = if walked.is_ok() {
            let n_there = count_there(self.core, session).await;
            let gave_back = session.patiently("put dead letters back", self.give_back()).await;
            (gave_back, n_there + self.held.len() as u64)
        } else {
            // What is wrong already says more than what comes of that.
            (aged::in_time(self.give_back()).await, self.n_to_come())
        };
        if gave_back.is_ok() {
            see_back(self.core, self.session, n_letters).await;
            self.is_back = true;
        }
        let n_removed = self.n_removed;
        walked.and_then(|done| gave_back.map(|()| done)).map_err(|error| match n_removed {
            0 => error,
            n_removed => {
                error.and(format_args!("dead letters that were {done} before: {n_removed}"))
            }
        })
    }

    /// How many there are once all are back, as far as nobody else does anything.
    fn n_to_come(&self) -> u64 {
        self.n_counted.saturating_sub(self.n_removed)
    }

    async fn give_back(&mut self) -> lapin::Result<()> {
        if let Some(Page { consumer, .. }) = &mut self.page {
            self.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await?;
            // What came and was not looked at, to its end.
            while let Some(Ok(delivery)) = consumer.next().await {
                self.held.insert(delivery.delivery_tag);
            }
        }
        let options = BasicNackOptions { multiple: true, requeue: true };
        let held: Vec<u64> = self.held.iter().copied().collect();
        let (mut n_back, end) =
            (count_there(self.core, self.session).await, Instant::now() + IN_ORDER_TIME);
        for goes in held.chunks(IN_ORDER * GOES) {
            for last in goes.chunks(IN_ORDER).filter_map(<[u64]>::last) {
                self.channel.basic_nack(*last, options).await?;
            }
            n_back += goes.len() as u64;
            see_back_by(self.core, self.session, n_back, end).await;
        }
        self.channel.close(200, "done".into()).await
    }
}

impl Drop for Walk<'_> {
    fn drop(&mut self) {
        if self.has_asked && !self.is_back {
            let (channel, n_letters) = (self.channel.clone(), self.n_to_come());
            // Without a runtime nobody looks again.
            if let Ok(runtime) = Handle::try_current() {
                let closing = async move { channel.close(200, "done".into()).await.ok() };
                let closing = runtime.spawn(closing).abort_handle();
                *self.core.letters_away() = Some((closing, n_letters));
            }
        }
    }
}

/// How many dead letters there are that nobody looks at.
async fn count(core: &Core, session: &Session) -> Result<u64> {
    let counts = session.counts(&[core.names.dead()], Unknown::IsAnError).await?;
    Ok(counts.first().copied().unwrap_or(0))
}

/// The same as far as the broker says.
async fn count_there(core: &Core, session: &Session) -> u64 {
    session.count_if_there(core.names.dead()).await.ok().flatten().unwrap_or(0)
}

/// Whether all that is ours has come by this channel: none waits, and what is on its way comes before the
/// answer to anything that is asked after that.
async fn has_handed_over(core: &Core, session: &Session, channel: &Channel) -> Result<bool> {
    let n_waiting = count(core, session).await?;
    let asked = channel.basic_qos(u16::MAX, BasicQosOptions::default());
    session.patiently("read dead letters", asked).await?;
    Ok(n_waiting == 0)
}

/// Waits until what was given back is seen to be there, for whoever looks next; gives nothing up.
pub(super) async fn see_back(core: &Core, session: &Session, n_letters: u64) {
    see_back_by(core, session, n_letters, Instant::now() + BACK).await;
}

async fn see_back_by(core: &Core, session: &Session, n_letters: u64, end: Instant) {
    while Instant::now() < end {
        match timeout_at(end, session.count_if_there(core.names.dead())).await {
            Ok(Ok(Some(n_there))) if n_there < n_letters => sleep(LOOK).await,
            _ => break,
        }
    }
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
    let mut found = None;
    // To the end, though it may come soon: what is given back lies behind what was given back before.
    while let Some(Letter { parcel, .. }) = walk.next().await? {
        if found.is_none() && parcel.job.id == *id {
            found = Some(parcel);
        }
    }
    Ok(found)
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

#[cfg(test)]
mod tests {
    use super::super::AmqpQueue;
    use super::super::kit::{block_on, opened};
    use super::super::pages::FIRST_PAGE;
    use super::*;
    use crate::{DeadLetters, Job, Timestamp};

    /// A queue with so many dead letters, which are named by their numbers.
    async fn with_letters(queue: &str, n_letters: u64) -> AmqpQueue {
        let queue = opened(queue).await;
        let (core, now) = (queue.core(), Timestamp::now());
        let letter = |n: u64| {
            let job = Job { id: n.to_string().parse().unwrap(), ..Job::new("x", now) };
            let mut parcel = Parcel::new(job, 1);
            parcel.die(now, "bad".into());
            core.to_dead(&parcel)
        };
        let session = core.session().await.unwrap();
        session.publish((0..n_letters).map(letter).collect()).await.unwrap();
        see_back(core, &session, n_letters).await;
        queue
    }

    /// Looks at so many, and what their numbers are.
    async fn look(walk: &mut Walk<'_>, n_letters: usize) -> Vec<u64> {
        let mut seen = Vec::new();
        while seen.len() < n_letters
            && let Some(letter) = walk.next().await.unwrap()
        {
            seen.push(letter.parcel.job.id.as_str().parse().unwrap());
        }
        seen
    }

    #[test]
    fn letters_that_nobody_looks_at_yet_stay_at_the_broker_and_all_lie_as_they_lay_afterwards() {
        // More than the broker is given back without a word from it.
        const LETTERS: u64 = 4_000;
        block_on(async {
            let queue = with_letters("pages", LETTERS).await;
            let (core, all) = (queue.core(), (0..LETTERS).collect::<Vec<_>>());
            let session = core.session().await.unwrap();
            for _ in 0..2 {
                let mut walk = Walk::begin(core, &session).await.unwrap();
                assert_eq!(look(&mut walk, 1).await, [0]);
                // What it is to hand over it would have handed over by now.
                sleep(SOON).await;
                let there = session.count_if_there(core.names.dead()).await.unwrap();
                assert_eq!(there, Some(LETTERS - FIRST_PAGE));
                assert_eq!(look(&mut walk, usize::MAX).await, all[1..]);
                walk.end(Ok(()), LOOKED_AT).await.unwrap();
                // What is looked for comes soon, and lies where it lay.
                assert!(queue.show(&"3".parse().unwrap()).await.unwrap().is_some());
            }
        });
    }

    #[test]
    fn who_looks_after_a_look_that_broke_off_sees_all() {
        const LETTERS: usize = 50;
        block_on(async {
            let queue = with_letters("broken-off", LETTERS as u64).await;
            let core = queue.core();
            let session = core.session().await.unwrap();
            for _ in 0..5 {
                let mut walk = Walk::begin(core, &session).await.unwrap();
                assert_eq!(look(&mut walk, 20).await.len(), 20);
                drop(walk);
                assert_eq!(queue.list(LETTERS).await.unwrap().len(), LETTERS);
                // The same where it broke off as it began, mostly before the first page came.
                let mut walk = Walk::begin(core, &session).await.unwrap();
                timeout(Duration::ZERO, walk.next()).await.ok();
                drop(walk);
                assert!(core.letters_away().is_some());
                sleep(SOON).await;
                see_back(core, &session, LETTERS as u64).await;
                assert_eq!(count_there(core, &session).await, LETTERS as u64, "they stay away");
                assert_eq!(queue.list(LETTERS).await.unwrap().len(), LETTERS);
                // The same where it ended in order, and not with the last.
                let mut walk = Walk::begin(core, &session).await.unwrap();
                look(&mut walk, FIRST_PAGE as usize + 1).await;
                walk.end(Ok(()), LOOKED_AT).await.unwrap();
                assert_eq!(queue.list(LETTERS).await.unwrap().len(), LETTERS);
            }
        });
    }
}
