//! What all parts of a handle share.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use super::bell::Bell;
use super::cancel::Cancels;
use super::heard::Heard;
use super::ledger::{Ledger, MEND};
use super::line::{self, Sessions};
use super::names::{self, EXCHANGE, FIRST_LEVELS, Lane, Names};
use super::parcel::Parcel;
use super::session::{Message, Session};
use super::topology;
use super::voice::Hearing;
use crate::{Behavior, Clock, Error, ErrorKind, Link, Result, Results, WorkerId};

/// What all parts of a handle share.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) names: Names,
    pub(super) behavior: Behavior,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) worker: WorkerId,
    /// Tells this handle from all others.
    pub(super) handle: String,
    pub(super) sessions: Sessions,
    pub(super) link: Arc<Link>,
    pub(super) results: Option<Results>,
    pub(super) bell: Bell,
    pub(super) heard: Heard,
    ledger: Mutex<Ledger>,
    /// Notified when the ledger changed: for whoever watches leases, and whoever tells of them.
    pub(super) leases_changed: Notify,
    pub(super) counts_changed: Notify,
    last_place: AtomicI64,
    /// Levels that this handle made sure of, and in which session.
    made: tokio::sync::Mutex<(u64, u32)>,
    /// Levels that are there as far as is known.
    pub(super) n_levels: AtomicU32,
    /// The session that this is about, and the one in which they were looked for, plus one.
    levels_of: AtomicU64,
    levels_found_in: AtomicU64,
    /// Whether jobs come without being asked for; each burst of them rings the bell.
    pub(super) stands: AtomicBool,
    /// Whether nothing was in the queue at the last look.
    pub(super) was_empty: AtomicBool,
    /// What is known of cancelled jobs, and who is told of them.
    pub(super) cancels: Cancels,
    /// How many there must be when those are back that a look which broke off had taken.
    pub(super) letters_away: AtomicU64,
}

/// Levels that this handle made sure of in a session, and those that it told others of.
#[derive(Debug)]
struct Made {
    epoch: u64,
    n: u32,
    n_told: u32,
}

impl Made {
    /// A broker that was away may have come back without them.
    fn in_session(epoch: u64) -> Self {
        Self { epoch, n: FIRST_LEVELS, n_told: FIRST_LEVELS }
    }
}

/// Levels that are there as far as is known, and the session that this is about.
#[derive(Debug)]
struct Levels {
    epoch: u64,
    n: u32,
}

impl Levels {
    /// A broker that was away may have come back without them.
    fn in_session(epoch: u64) -> Self {
        Self { epoch, n: FIRST_LEVELS }
    }
    /// Who looks at the dead letters takes them for a while, so one looks after the other.
    pub(super) reading_dead: tokio::sync::Mutex<()>,
}

/// What it takes to make one.
pub(super) struct Parts {
    pub(super) names: Names,
    pub(super) behavior: Behavior,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) worker: WorkerId,
    pub(super) sessions: Sessions,
    pub(super) link: Arc<Link>,
    pub(super) results: Option<Results>,
}

impl Core {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { names, behavior, clock, worker, sessions, link, results } = parts;
        Self {
            names,
            behavior,
            clock,
            worker,
            handle: crate::JobId::fresh().to_string(),
            sessions,
            link,
            results,
            bell: Bell::default(),
            heard: Heard::default(),
            ledger: Mutex::default(),
            leases_changed: Notify::new(),
            counts_changed: Notify::new(),
            last_place: AtomicI64::new(0),
            made: tokio::sync::Mutex::new((0, FIRST_LEVELS)),
            n_levels: AtomicU32::new(FIRST_LEVELS),
            levels_of: AtomicU64::new(0),
            levels_found_in: AtomicU64::new(0),
            stands: AtomicBool::new(false),
            letters_away: AtomicU64::new(0),
            was_empty: AtomicBool::new(false),
            cancels: Cancels::default(),
            reading_dead: tokio::sync::Mutex::default(),
        }
    }

    pub(super) async fn session(&self) -> Result<Arc<Session>> {
        line::session(&self.sessions).await
    }

    /// The ledger; never held while anything is awaited.
    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells those who watch that the ledger is not what it was.
    pub(super) fn ledger_changed(&self) {
        self.leases_changed.notify_one();
        self.counts_changed.notify_one();
    }

    /// A place behind all that this handle gave before.
    pub(super) fn next_place(&self) -> i64 {
        let now = self.clock.now().as_microsecond();
        let next = |last: i64| Some(now.max(last.saturating_add(1)));
        let order = Ordering::SeqCst;
        let last = self.last_place.fetch_update(order, order, next).unwrap_or(now);
        now.max(last.saturating_add(1))
    }

    /// A message that brings a job to a lane.
    pub(super) fn to_lane(&self, parcel: &Parcel, lane: Lane) -> Message {
        self.message(EXCHANGE.to_owned(), self.names.lane(lane), parcel)
    }

    /// A message that makes a dead letter of a job.
    pub(super) fn to_dead(&self, parcel: &Parcel) -> Message {
        self.message(String::new(), self.names.dead(), parcel)
    }

    /// A message that brings a job to a lane after a while; the levels on its way are there then.
    pub(super) async fn to_lane_after(
        &self,
        session: &Session,
        parcel: &Parcel,
        (lane, delay): (Lane, Duration),
    ) -> Result<Message> {
        if delay.is_zero() {
            return Ok(self.to_lane(parcel, lane));
        }
    /// How long a job that is done is not run again: no longer than its result is there to tell of it, after
    /// which another job may have its name.
    pub(super) fn mends_for(&self) -> Duration {
        let results = self.results.as_ref();
        results.map_or(MEND, |Results(results)| results.result_ttl().min(MEND))
    }

        let way = names::way(delay, lane).ok_or_else(|| {
            let days = names::longest().as_secs() / 86_400;
            let words = format!("a job on RabbitMQ cannot be delayed for more than {days} days");
            Error::new(ErrorKind::Invalid, words)
        })?;
        self.make_levels(session, way.level + 1).await?;
        Ok(self.message(self.names.level(way.level), way.key, parcel))
    }

    fn message(&self, exchange: String, key: String, parcel: &Parcel) -> Message {
        let (properties, body) = parcel.write();
        Message { exchange, key, properties, body, must_arrive: true }
    }

    async fn make_levels(&self, session: &Session, n_levels: u32) -> Result<()> {
        let mut made = self.made.lock().await;
        if made.0 != session.epoch {
            // A broker that was away may have come back without them.
            *made = (session.epoch, FIRST_LEVELS);
        }
        if n_levels > made.1 {
            let channel = session.intake.create_channel();
            let channel = session.patiently("open a channel", channel).await?;
            topology::levels(&channel, &self.names, made.1..n_levels).await?;
            // What is left open is closed with the session.
            channel.close(200, "done".into()).await.ok();
            made.1 = n_levels;
            self.n_levels.fetch_max(n_levels, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Looks for levels that others made before we listened; later ones are told of.
    pub(super) async fn find_levels(&self, session: &Session) -> Result<()> {
        if self.levels_found_in.load(Ordering::SeqCst) > session.epoch {
            return Ok(());
        }
        // A broker that was away may have come back without them.
        if self.levels_of.fetch_max(session.epoch, Ordering::SeqCst) < session.epoch {
            self.n_levels.store(FIRST_LEVELS, Ordering::SeqCst);
        }
        // Those made from here on are heard of.
        let hearing = super::voice::catch_up(self, session).await?;
        let mut level = self.n_levels.load(Ordering::SeqCst);
        while session.count_if_there(self.names.level(level)).await?.is_some() {
            level += 1;
        }
        self.n_levels.fetch_max(level, Ordering::SeqCst);
        if hearing == Hearing::All {
            self.levels_found_in.store(session.epoch + 1, Ordering::SeqCst);
        }
        Ok(())
    }

    /// A message that is gone when nobody listens.
    pub(super) fn note(&self, kind: &'static str, body: impl Into<Bytes>) -> Message {
        Message {
            exchange: self.names.status(),
            key: String::new(),
            properties: lapin::BasicProperties::default().with_type(kind.into()),
            body: body.into(),
            must_arrive: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
    use tokio::time::{Instant, sleep};

    use super::super::kit::{block_on, opened};
    use super::*;
    use crate::{Backlog, Broker, Job, Timestamp};

    #[test]
    fn jobs_are_counted_again_where_the_broker_has_come_back_with_nothing() {
        block_on(async {
            let queue = opened("emptied").await;
            let core = queue.core();
            let mut late = Job::new("late", Timestamp::now());
            late.set("ebb-delay", "10h").unwrap();
            queue.publish(vec![late]).await.unwrap();
            assert_eq!(queue.depth().await.unwrap().delayed, 1);
            let session = core.session().await.unwrap();
            let n_levels = core.n_levels.load(Ordering::SeqCst);
            assert!(n_levels > FIRST_LEVELS);
            let channel = session.intake.create_channel().await.unwrap();
            for level in FIRST_LEVELS..n_levels {
                let name = core.names.level(level).as_str().into();
                channel.queue_delete(name, QueueDeleteOptions::default()).await.unwrap();
                let name = core.names.level(level).as_str().into();
                channel.exchange_delete(name, ExchangeDeleteOptions::default()).await.unwrap();
            }
            session.give_up();
            let end = Instant::now() + std::time::Duration::from_secs(30);
            let mut counted = queue.depth().await;
            while counted.is_err() && Instant::now() < end {
                sleep(std::time::Duration::from_millis(100)).await;
                counted = queue.depth().await;
            }
            assert_eq!(counted.unwrap().delayed, 0);
        });
    }
}
