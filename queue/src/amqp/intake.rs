//! Fetches jobs from the lanes. One task does it for the whole handle, so that a caller who does
//! not wait for its jobs loses none of them.
//!
//! Each fetch consumes as much as it was asked for and no more. Only where jobs are asked for again
//! and again without a pause, and many more wait, does the consumer stay and fetch ahead; what it
//! fetched and nobody asked for goes back, uncharged.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicQosOptions};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, warn};

use super::core::Core;
use super::fetched::{Catch, Caught, Coming, Fetched};
use super::names::Lane;
use super::session::{Posted, Session};
use super::standing::{self, Standing, consume};
use super::{coming, errors, fate, line};
use crate::Result;
use crate::aside::Aside;

/// As much as one fetch brings.
const MAX_FETCH: usize = 1_000;
/// How long to wait for more of what keeps coming.
const LINGER: Duration = Duration::from_millis(3);
/// Who asks again within this time is in a hurry.
const HURRY: Duration = Duration::from_millis(50);
/// After how long what was fetched ahead goes back. Who stores results waits for a disk that may be slow
/// for a while, and to give back and fetch again costs more than all else.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long the counts of the lanes are good enough for who is in a hurry.
const FRESH: Duration = Duration::from_millis(20);
/// Batches that have to wait before it pays to fetch ahead.
const DEEP: u64 = 8;

#[derive(Debug)]
enum Ask {
    Fetch { max: usize, reply: oneshot::Sender<Result<Caught>> },
    Close { reply: oneshot::Sender<Result<()>> },
}

/// How the task is asked.
#[derive(Debug, Clone)]
pub(super) struct Intake(mpsc::Sender<Ask>);

impl Intake {
    /// Jobs that are ready, at most so many.
    pub(super) async fn fetch(&self, max: usize) -> Result<Caught> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Ask::Fetch { max, reply }).await.map_err(|_| errors::down())?;
        answer.await.map_err(|_| errors::down())?
    }

    /// Gives back what was fetched ahead, and fetches nothing more.
    pub(super) async fn close(&self) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Ask::Close { reply }).await.map_err(|_| errors::down())?;
        answer.await.map_err(|_| errors::down())?
    }
}

/// How long a quorum queue is given to take the last acknowledgements.
const AFTERMATH: Duration = Duration::from_millis(800);

/// The task, and how it is asked.
pub(super) fn spawn(core: Arc<Core>) -> (Intake, line::Owned) {
    let (sender, asks) = mpsc::channel(16);
    let fetcher = Fetcher {
        core,
        epoch: 0,
        ahead: VecDeque::new(),
        standing: None,
        asked_at: None,
        counted_at: None,
        most: 0,
        aside: Aside::default(),
        is_closed: false,
    };
    (Intake(sender), line::Owned(tokio::spawn(fetcher.run(asks))))
}

struct Fetcher {
    core: Arc<Core>,
    epoch: u64,
    /// Fetched and handed to nobody.
    ahead: VecDeque<Fetched>,
    standing: Option<Standing>,
    asked_at: Option<Instant>,
    counted_at: Option<Instant>,
    /// The most that anybody asked for.
    most: usize,
    /// What plain clients put into the lane of normal jobs.
    aside: Aside,
    is_closed: bool,
}

impl Fetcher {
    async fn run(mut self, mut asks: mpsc::Receiver<Ask>) {
        loop {
            let idle_at = self.asked_at.map_or_else(Instant::now, |at| at + PATIENCE);
            let is_ahead = self.standing.is_some() || !self.ahead.is_empty();
            tokio::select! {
                ask = asks.recv() => match ask {
                    None => return,
                    Some(Ask::Fetch { max, reply }) => self.answer(max, reply).await,
                    Some(Ask::Close { reply }) => {
                        self.is_closed = true;
                        // Who closes and does not wait to hear of it has nothing to do about it.
                        reply.send(self.finish().await).ok();
                    }
                },
                delivery = standing::next(self.standing.as_mut()) => self.came(delivery),
                () = sleep_until(idle_at), if is_ahead => {
                    if let Err(error) = self.give_back().await {
                        warn!(%error, "cannot give back what was fetched ahead");
                        self.asked_at = Some(Instant::now());
                    }
                }
            }
        }
    }

    async fn answer(&mut self, max: usize, reply: oneshot::Sender<Result<Caught>>) {
        let caught = if self.is_closed { self.nothing() } else { self.fetch(max).await };
        self.asked_at = Some(Instant::now());
        if let Err(Ok(mut unwanted)) = reply.send(caught) {
            self.ahead.extend(unwanted.take());
        }
        self.count_ahead();
    }

    fn nothing(&self) -> Result<Caught> {
        Ok(Caught::new(Vec::new(), Coming::new(self.core.clone())))
    }

    /// Says how much is here and nobody's, and whether more comes by itself.
    fn count_ahead(&self) {
        self.core.stands.store(self.standing.is_some(), Ordering::SeqCst);
        let n_ahead = self.ahead.len() as u64;
        let is_same = std::mem::replace(&mut self.core.ledger().n_ahead, n_ahead) == n_ahead;
        if !is_same {
            self.core.counts_changed.notify_one();
        }
    }

    /// Takes what came and all that came with it: to be woken costs more than to read one.
    fn came(&mut self, first: Option<Delivery>) {
        let mut came = Some(first);
        while let Some(one) = came {
            let (Some(delivery), Some(standing)) = (one, &self.standing) else {
                self.standing = None;
                break;
            };
            self.ahead.push_back(standing.read(delivery, self.core.clock.now()));
            came = standing::next(self.standing.as_mut()).now_or_never();
        }
        self.count_ahead();
        // Who found nothing looks again.
        self.core.bell.ring();
    }

    async fn fetch(&mut self, max: usize) -> Result<Caught> {
        let max = max.min(MAX_FETCH);
        self.most = self.most.max(max);
        let session = self.core.session().await?;
        if session.epoch != self.epoch {
            // What came by another session is the broker's again.
            self.ahead.clear();
            self.standing = None;
            self.epoch = session.epoch;
        }
        let now = Instant::now();
        let in_hurry = self.asked_at.is_some_and(|at| now - at < HURRY);
        let is_fresh = self.counted_at.is_some_and(|at| now - at < FRESH);
        let standing = self.standing.as_ref().map(|one| one.lane);
        let mut catch = Catch::new(max, now, Coming::new(self.core.clone()), &self.aside);
        let (lanes, mut counts) = (catch.lanes(), Vec::new());
        let n_above = lanes.iter().position(|lane| Some(*lane) == standing);
        let (above, rest) = lanes.split_at(n_above.unwrap_or(lanes.len()));
        if standing.is_none() || !is_fresh {
            (catch, counts) = self.pull(&session, above, catch).await?;
            self.counted_at = Some(now);
        }
        self.pull_standing(&mut catch).await;
        // The lane itself is not counted: it is busy, and its answer would be waited for.
        if !is_fresh && catch.room() > 0 {
            let below = rest.get(1..).unwrap_or_default();
            (catch, _) = self.pull(&session, below, catch).await?;
        }
        if in_hurry && catch.room() == 0 {
            self.stand(&session, &counts, max).await?;
        }
        Ok(catch.end())
    }

    /// What was fetched ahead, and what comes while more of it comes.
    async fn pull_standing(&mut self, catch: &mut Catch) {
        while catch.room() > 0 {
            if let Some(one) = self.ahead.pop_front() {
                catch.put(one, &mut self.aside);
                continue;
            }
            let Some(standing) = &mut self.standing else { return };
            if catch.is_far(standing.lane, &self.aside) {
                return;
            }
            match timeout(LINGER, standing.next()).await {
                Ok(Some(delivery)) => {
                    let one = standing.read(delivery, self.core.clock.now());
                    catch.put(one, &mut self.aside);
                }
                Ok(None) => self.standing = None,
                Err(_) => return,
            }
        }
    }

    /// Takes what is there from one lane after the other; how much was there in each.
    async fn pull(
        &mut self,
        session: &Session,
        lanes: &[Lane],
        mut catch: Catch,
    ) -> Result<(Catch, Vec<(Lane, u64)>)> {
        match self.pull_lanes(session, lanes, &mut catch).await {
            Ok(counts) => Ok((catch, counts)),
            Err(error) => {
                // What came from other lanes is not lost.
                self.ahead.extend(catch.give_up());
                Err(error)
            }
        }
    }

    async fn pull_lanes(
        &mut self,
        session: &Session,
        lanes: &[Lane],
        catch: &mut Catch,
    ) -> Result<Vec<(Lane, u64)>> {
        let queues: Vec<String> = lanes.iter().map(|lane| self.core.names.lane(*lane)).collect();
        let counts = session.counts_of_lanes(&queues).await?;
        let counts: Vec<_> = lanes.iter().copied().zip(counts).collect();
        for (lane, count) in &counts {
            let mut n_left = usize::try_from(*count).unwrap_or(usize::MAX);
            while n_left > 0 && catch.room() > 0 && !catch.is_far(*lane, &self.aside) {
                let n_wanted = n_left.min(catch.room());
                let came = self.pull_lane(session, *lane, n_wanted, &mut catch.coming).await?;
                n_left = if came.len() < n_wanted { 0 } else { n_left - n_wanted };
                came.into_iter().for_each(|one| catch.put(one, &mut self.aside));
            }
        }
        Ok(counts)
    }

    async fn pull_lane(
        &self,
        session: &Session,
        lane: Lane,
        n: usize,
        coming: &mut Coming,
    ) -> Result<Vec<Fetched>> {
        let queue = self.core.names.lane(lane);
        let consuming = consume(&session.work, &queue, n);
        let mut consumer = session.patiently("consume jobs", consuming).await?;
        let is_any_left = || session.has_any(&queue);
        let noting = (&mut consumer).inspect(|_| coming.add());
        let came = coming::await_as_many(noting, n, is_any_left).await?;
        let read = |one| Fetched::read(one, lane, session, self.core.clock.now());
        let mut fetched: Vec<_> = came.into_iter().map(read).collect();
        // With as many as it may have unacknowledged nothing more comes, so nobody need wait.
        let nowait = fetched.len() == n;
        let cancelled = session.work.basic_cancel(consumer.tag(), BasicCancelOptions { nowait });
        session.patiently("cancel a consumer", cancelled).await?;
        while !nowait && let Some(Ok(delivery)) = consumer.next().await {
            fetched.push(read(delivery));
        }
        Ok(fetched)
    }

    /// Begins to fetch ahead where that pays, and ends it where more is asked for than before, to
    /// begin anew. That takes until all that is held is settled, so it is not done for being short
    /// of what is ahead: who holds so much waits for its results to be stored.
    async fn stand(
        &mut self,
        session: &Arc<Session>,
        counts: &[(Lane, u64)],
        max: usize,
    ) -> Result<()> {
        if let Some(standing) = &self.standing {
            return if standing.prefetch < 2 * max { self.sit().await } else { Ok(()) };
        }
        let Some((lane, _)) = counts.iter().find(|(_, count)| *count >= DEEP * max as u64) else {
            return Ok(());
        };
        let n_held = usize::try_from(self.core.ledger().n_held()).unwrap_or(usize::MAX);
        let prefetch = n_held.saturating_add(2 * self.most).min(usize::from(u16::MAX));
        let queue = self.core.names.lane(*lane);
        self.standing = Some(Standing::begin(session, (*lane, &queue), prefetch).await?);
        Ok(())
    }

    /// Ends fetching ahead; what is on its way comes still.
    async fn sit(&mut self) -> Result<()> {
        let Some(mut standing) = self.standing.take() else { return Ok(()) };
        let (mut came, now) = (Vec::new(), self.core.clock.now());
        let ended = standing.end(&mut came).await;
        self.ahead.extend(came.into_iter().map(|one| standing.read(one, now)));
        ended
    }

    /// Gives back what is here, and waits until the broker has read all acknowledgements, if there were
    /// any: whoever closes may end the connection next.
    async fn finish(&mut self) -> Result<()> {
        self.give_back().await?;
        let is_still = timeout(AFTERMATH, fate::still(&self.core)).await.is_ok();
        let session = self.core.session().await?;
        if is_still && !session.has_settled() {
            return Ok(());
        }
        let limit = session.work.basic_qos(1, BasicQosOptions::default());
        session.patiently("read what was acknowledged", limit).await?;
        // Read is not done: the channel hands acknowledgements on to the quorum queue, keeps them
        // back while that is busy, and forgets them with its connection. Nothing tells of the end.
        sleep(AFTERMATH).await;
        Ok(())
    }

    async fn give_back(&mut self) -> Result<()> {
        let session = self.core.session().await?;
        if session.epoch != self.epoch {
            self.ahead.clear();
            self.standing = None;
        }
        self.sit().await?;
        let back = self.ahead.iter().map(|one| self.core.to_lane(&one.parcel, Lane::Back));
        let Posted { is_stored, failed } = session.post(back.collect()).await;
        let (mut is_stored, mut tags) = (is_stored.into_iter(), Vec::new());
        self.ahead.retain(|one| {
            let is_back = is_stored.next() == Some(true);
            tags.extend(is_back.then_some(one.tag));
            !is_back
        });
        self.count_ahead();
        if !tags.is_empty() {
            session.ack(&tags).await?;
            debug!(n_jobs = tags.len(), "what was fetched ahead went back");
        }
        failed.map_or(Ok(()), Err)
    }
}
