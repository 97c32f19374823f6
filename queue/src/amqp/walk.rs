//! A walk through the dead letters. A queue can be read from its head only, so whoever looks for one of
//! them takes all, and gives back what stays.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt;
use futures::future::try_join_all;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::core::Core;
use super::counts::Unknown;
use super::pages::n_next;
use super::parcel::Parcel;
use super::session::Session;
use super::tags::{Acks, Tags};
use super::{aged, errors};
use crate::Result;

/// Dead letters that are looked through at once, the oldest ones.
const MAX_LETTERS: u64 = 50_000;
/// How long to wait for letters that were there a moment ago.
pub(super) const SOON: Duration = Duration::from_millis(500);
/// The same while the broker says that they are there still.
pub(super) const STALL: Duration = Duration::from_secs(8);
/// How long the broker may take to show what was given back, and how often to look.
const BACK: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(5);
/// Letters that a quorum queue puts back in their order where they are given back in one go: of more it
/// makes a map of Erlang without one.
const IN_ORDER: usize = 32;
/// How many times in one go before those are seen to be back, and how long that may take in all: the broker
/// makes one of all that it is given while 32 of them are not through (`rabbit_fifo_client`).
const GOES: usize = 16;
const IN_ORDER_TIME: Duration = Duration::from_secs(3);

/// A walk through the dead letters, the oldest first. One that is dropped gives all back as well:
/// the broker closes the channel.
pub(super) struct Walk<'a> {
    pub(super) core: &'a Core,
    pub(super) session: &'a Session,
    channel: Channel,
    /// Letters that are handed over at once, at most.
    longest_page: u64,
    page: Option<Page>,
    /// Whether a letter may be on its way here.
    has_asked: bool,
    n_counted: u64,
    n_left: u64,
    n_came: u64,
    held: BTreeSet<u64>,
    /// Those that are to be removed with their page.
    done: Vec<u64>,
    tags: Tags,
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
pub(super) struct Letter {
    pub(super) parcel: Parcel,
    pub(super) tag: u64,
}

impl<'a> Walk<'a> {
    /// Begins one that has so many letters handed over at once, at most.
    pub(super) async fn begin(
        core: &'a Core,
        session: &'a Session,
        longest_page: u64,
    ) -> Result<Self> {
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
            longest_page,
            page: None,
            has_asked: false,
            n_counted,
            n_left: n_counted.min(MAX_LETTERS),
            n_came: 0,
            held: BTreeSet::new(),
            done: Vec::new(),
            tags: Tags::default(),
            n_removed: 0,
            is_back: false,
        })
    }

    pub(super) async fn next(&mut self) -> Result<Option<Letter>> {
        if self.n_left == 0 {
            return Ok(None);
        }
        if self.page.as_ref().is_none_or(|page| page.n_left == 0) {
            self.has_asked = true;
            let (session, turning) = (self.session, self.turn());
            session.patiently("read dead letters", turning).await?;
        }
        let Some(page) = &mut self.page else { return Ok(None) };
        let (end, mut is_all) = (Instant::now() + STALL, false);
        let delivery = loop {
            match timeout(SOON, page.consumer.next()).await {
                Ok(Some(Ok(delivery))) => break delivery,
                Ok(_) => {
                    // It has no other end that could be awaited.
                    self.page = None;
                    return Err(errors::down());
                }
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

    /// Whether all of this page was looked at.
    pub(super) fn is_at_end_of_page(&self) -> bool {
        self.page.as_ref().is_some_and(|page| page.n_left == 0)
    }

    /// Has the broker hand over the next page. What came before stays held, unless it is done.
    async fn turn(&mut self) -> lapin::Result<()> {
        let before = self.page.as_ref().map(|page| (page.n_letters, page.n_largest));
        self.close_page().await?;
        let n_letters = n_next(before).min(self.longest_page).min(self.n_left);
        let prefetch = u16::try_from(n_letters).unwrap_or(u16::MAX);
        self.channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
        // The broker gives back by the names of consumers, in their order.
        let name = format!("{:05}", self.n_came);
        let (dead, options) = (self.core.names.dead(), BasicConsumeOptions::default());
        let consuming =
            self.channel.basic_consume(dead.as_str().into(), name.as_str().into(), options, none());
        let consumer = consuming.await?;
        self.page = Some(Page { consumer, n_letters, n_left: n_letters, n_largest: 0 });
        Ok(())
    }

    /// Has the broker hand over no more of this page, and then removes what is done of it: for each that is
    /// removed before, it would hand over another, at which nobody looks.
    async fn close_page(&mut self) -> lapin::Result<()> {
        if let Some(Page { mut consumer, .. }) = self.page.take() {
            self.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await?;
            // What came and was not looked at, to its end.
            while let Some(Ok(delivery)) = consumer.next().await {
                self.held.insert(delivery.delivery_tag);
            }
        }
        self.remove_done().await
    }

    async fn remove_done(&mut self) -> lapin::Result<()> {
        let done = std::mem::take(&mut self.done);
        acknowledge(&self.channel, self.tags.settle(&done)).await?;
        self.n_removed += done.len() as u64;
        Ok(())
    }

    /// Removes this one with its page.
    pub(super) fn remove(&mut self, tag: u64) {
        self.held.remove(&tag);
        self.done.push(tag);
    }

    /// Removes all that is done; how many that are.
    pub(super) async fn removed(&mut self) -> Result<u64> {
        let (session, closing) = (self.session, self.close_page());
        session.patiently("remove dead letters", closing).await?;
        Ok(self.n_removed)
    }

    /// Gives back what was not removed, also where the walk was cut off: what was done by then, in a word,
    /// is told with the error.
    pub(super) async fn end<T>(mut self, walked: Result<T>, done: &str) -> Result<T> {
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
        // Not only once the broker hands over no more, to which it may not answer: what was put back would
        // be there twice. What it hands over instead goes back with the rest.
        self.remove_done().await?;
        self.close_page().await?;
        let options = BasicNackOptions { multiple: true, requeue: true };
        let held: Vec<u64> = self.held.iter().copied().collect();
        let (mut n_back, end) =
            (count_there(self.core, self.session).await, Instant::now() + IN_ORDER_TIME);
        // What is removed one by one is kept back first of all, and through once the first of them is back.
        let (first, rest) = held.split_at(held.len().min(1));
        for goes in std::iter::once(first).chain(rest.chunks(IN_ORDER * GOES)) {
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
            let done = std::mem::take(&mut self.done);
            self.n_removed += done.len() as u64;
            let (acks, n_letters) = (self.tags.settle(&done), self.n_to_come());
            let channel = self.channel.clone();
            // Without a runtime nobody looks again.
            if let Ok(runtime) = Handle::try_current() {
                let closing = async move {
                    // Where that cannot be said there is nothing to be closed either.
                    acknowledge(&channel, acks).await.ok();
                    channel.close(200, "done".into()).await.ok()
                };
                let closing = runtime.spawn(closing).abort_handle();
                *self.core.letters_away() = Some((closing, n_letters));
            }
        }
    }
}

/// Has the broker remove these, in few words: of many the channel keeps some back, and forgets them when it
/// is closed. Said in one breath: whoever does not wait for it has said it all, as it is noted.
async fn acknowledge(channel: &Channel, Acks { up_to, single }: Acks) -> lapin::Result<()> {
    let multiple = up_to.map(|tag| (tag, true));
    let acks = multiple.into_iter().chain(single.into_iter().map(|tag| (tag, false)));
    let acked = acks.map(|(tag, multiple)| channel.basic_ack(tag, BasicAckOptions { multiple }));
    try_join_all(acked).await.map(drop)
}

/// How many dead letters there are that nobody looks at.
async fn count(core: &Core, session: &Session) -> Result<u64> {
    let counts = session.counts(&[core.names.dead()], Unknown::IsAnError).await?;
    Ok(counts.first().copied().unwrap_or(0))
}

/// The same as far as the broker says.
pub(super) async fn count_there(core: &Core, session: &Session) -> u64 {
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
