//! What all parts of a handle share.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::bell::Bell;
use super::cancel::Cancels;
use super::counts::Unknown;
use super::errors;
use super::heard::Heard;
use super::ledger::Ledger;
use super::line::{self, Sessions};
use super::names::{self, EXCHANGE, FIRST_LEVELS, Lane, Names};
use super::parcel::Parcel;
use super::session::{Message, Session};
use super::topology;
use super::voice::Hearing;
use crate::{Behavior, Clock, Error, ErrorKind, Link, Missing, Result, Results, WorkerId};

/// What all parts of a handle share.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) names: Names,
    /// What becomes of parts of the queue that are not there.
    pub(super) missing: Missing,
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
    /// For who publishes: when what waits was counted last, and how much that was with all that is published
    /// on the strength of it.
    pub(super) counted: tokio::sync::Mutex<Option<(Instant, u64)>>,
    /// Notified when the ledger changed: for whoever watches leases, and whoever tells of them.
    pub(super) leases_changed: Notify,
    pub(super) counts_changed: Notify,
    last_place: AtomicI64,
    made: tokio::sync::Mutex<Made>,
    levels: Mutex<Levels>,
    /// How often this handle has ceased to hear others, and so may have missed what was told.
    n_deaf: AtomicU64,
    /// Whether jobs come without being asked for; each burst of them rings the bell.
    pub(super) stands: AtomicBool,
    /// Whether nothing was in the queue at the last look.
    pub(super) was_empty: AtomicBool,
    /// What is known of cancelled jobs, and who is told of them.
    pub(super) cancels: Cancels,
    /// Who looks at the dead letters takes them for a while, so one looks after the other.
    pub(super) reading_dead: tokio::sync::Mutex<()>,
    /// Who closes the channel by which a look that broke off had taken some, and how many there must be when
    /// those are back.
    letters_away: Mutex<Option<(AbortHandle, u64)>>,
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
    /// How often others had ceased to be heard when levels were looked for in this session.
    found_after: Option<u64>,
}

impl Levels {
    /// A broker that was away may have come back without them.
    fn in_session(epoch: u64) -> Self {
        Self { epoch, n: FIRST_LEVELS, found_after: None }
    }
}

/// What it takes to make one.
pub(super) struct Parts {
    pub(super) names: Names,
    pub(super) missing: Missing,
    pub(super) behavior: Behavior,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) worker: WorkerId,
    pub(super) sessions: Sessions,
    pub(super) link: Arc<Link>,
    pub(super) results: Option<Results>,
}

impl Core {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { names, missing, behavior, clock, worker, sessions, link, results } = parts;
        Self {
            names,
            missing,
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
            counted: tokio::sync::Mutex::default(),
            leases_changed: Notify::new(),
            counts_changed: Notify::new(),
            last_place: AtomicI64::new(0),
            made: tokio::sync::Mutex::new(Made::in_session(0)),
            levels: Mutex::new(Levels::in_session(0)),
            n_deaf: AtomicU64::new(0),
            stands: AtomicBool::new(false),
            was_empty: AtomicBool::new(false),
            cancels: Cancels::default(),
            reading_dead: tokio::sync::Mutex::default(),
            letters_away: Mutex::default(),
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
        if made.epoch != session.epoch {
            *made = Made::in_session(session.epoch);
        }
        if n_levels > made.n {
            let channel = session.intake.create_channel();
            let channel = session.patiently("open a channel", channel).await?;
            topology::levels(&channel, &self.names, made.n..n_levels).await?;
            // What is left open is closed with the session.
            channel.close(200, "done".into()).await.ok();
            made.n = n_levels;
        }
        self.note_levels(session.epoch, made.n);
        // Whoever has not heard of a level does not count what waits there.
        if made.n > made.n_told && super::voice::tell_of_delay(self, session).await {
            made.n_told = made.n;
        }
        Ok(())
    }

    /// What a look at dead letters that broke off had taken.
    pub(super) fn letters_away(&self) -> MutexGuard<'_, Option<(AbortHandle, u64)>> {
        self.letters_away.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn levels(&self) -> MutexGuard<'_, Levels> {
        self.levels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many levels there are, as far as is known.
    pub(super) fn n_levels(&self) -> u32 {
        self.levels().n
    }

    /// Notes that there are so many levels at least; those of a session before may be gone.
    pub(super) fn note_levels(&self, epoch: u64, n_levels: u32) {
        let mut levels = self.levels();
        if epoch > levels.epoch {
            *levels = Levels::in_session(epoch);
        }
        if epoch == levels.epoch {
            levels.n = levels.n.max(n_levels);
        }
    }

    /// Looks for levels that others made before we listened; later ones are told of.
    pub(super) async fn find_levels(&self, session: &Session) -> Result<()> {
        self.note_levels(session.epoch, FIRST_LEVELS);
        let n_deaf = Some(self.n_deaf.load(Ordering::SeqCst));
        if self.levels().found_after == n_deaf {
            return Ok(());
        }
        // Those made from here on are heard of.
        let hearing = super::voice::catch_up(self, session).await?;
        let n_levels = self.levels_from(session, self.n_levels()).await?;
        self.note_levels(session.epoch, n_levels);
        let mut levels = self.levels();
        if hearing == Hearing::All && levels.epoch == session.epoch {
            levels.found_after = n_deaf;
        }
        Ok(())
    }

    /// Notes that others are not heard any more: what they tell of meanwhile has to be looked for.
    pub(super) fn note_deaf(&self) {
        self.n_deaf.fetch_add(1, Ordering::SeqCst);
    }

    /// How many levels there are on the broker, of which so many are known.
    async fn levels_from(&self, session: &Session, n_known: u32) -> Result<u32> {
        let mut level = n_known;
        while session.count_if_there(self.names.level(level)).await?.is_some() {
            level += 1;
        }
        Ok(level)
    }

    /// Counts what waits, in the order of [`Names::waiting`], and in these queues after that.
    pub(super) async fn count_waiting(
        &self,
        session: &Session,
        more: &[String],
        unknown: Unknown,
    ) -> Result<Vec<u64>> {
        let queues = |n_levels| [&self.names.waiting(n_levels), more].concat();
        let n_levels = self.n_levels();
        match session.counts(&queues(n_levels), unknown).await {
            Err(error) if errors::is_of_missing(&error) => {
                // Others may tell of levels that were there before the broker came back without them.
                let n_there = self.levels_from(session, FIRST_LEVELS).await?;
                {
                    let mut levels = self.levels();
                    // What was heard of meanwhile is there.
                    if levels.n == n_levels {
                        levels.n = n_there;
                    }
                }
                session.counts(&queues(self.n_levels()), unknown).await
            }
            counted => counted,
        }
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
    use lapin::ExchangeKind;
    use lapin::options::{ExchangeDeclareOptions, ExchangeDeleteOptions, QueueDeleteOptions};
    use lapin::types::FieldTable;
    use tokio::time::sleep;

    use super::super::AmqpQueue;
    use ebb_servers::{RabbitMq, RabbitMqOptions};

    use super::super::kit::{block_on, opened, opened_on};
    use super::*;
    use crate::{Backlog, Broker, Job, Priority, Timestamp};

    /// A job that is delayed for longer than the first levels last, and a handle that has counted it.
    async fn with_a_long_delay(queue: &str) -> AmqpQueue {
        let queue = opened(queue).await;
        let mut late = Job::new("late", Timestamp::now());
        late.set("ebb-delay", "10h").unwrap();
        queue.publish(vec![late]).await.unwrap();
        assert_eq!(queue.depth().await.unwrap().delayed, 1);
        assert!(queue.core().n_levels() > FIRST_LEVELS);
        queue
    }

    /// Takes the levels away, as a broker that lost its data; how many there were.
    async fn delete_levels(core: &Core) -> u32 {
        let n_levels = core.n_levels();
        let session = core.session().await.unwrap();
        let channel = session.intake.create_channel().await.unwrap();
        for level in FIRST_LEVELS..n_levels {
            let name = core.names.level(level).as_str().into();
            channel.queue_delete(name, QueueDeleteOptions::default()).await.unwrap();
            let name = core.names.level(level).as_str().into();
            channel.exchange_delete(name, ExchangeDeleteOptions::default()).await.unwrap();
        }
        n_levels
    }

    #[test]
    fn jobs_are_counted_again_where_the_broker_has_come_back_with_nothing() {
        block_on(async {
            let queue = with_a_long_delay("emptied").await;
            let core = queue.core();
            delete_levels(core).await;
            core.session().await.unwrap().give_up();
            let end = Instant::now() + Duration::from_secs(30);
            let mut counted = queue.depth().await;
            while counted.is_err() && Instant::now() < end {
                sleep(Duration::from_millis(100)).await;
                counted = queue.depth().await;
            }
            assert_eq!(counted.unwrap().delayed, 0);
        });
    }

    #[test]
    fn a_level_that_was_told_of_while_nobody_could_hear_is_counted_later() {
        block_on(async {
            let (deaf, other) = (opened("deaf").await, opened("deaf").await);
            assert_eq!(deaf.depth().await.unwrap().delayed, 0);
            let session = other.core().session().await.unwrap();
            let channel = session.intake.create_channel().await.unwrap();
            let status = other.core().names.status();
            let options = ExchangeDeleteOptions::default();
            channel.exchange_delete(status.as_str().into(), options).await.unwrap();
            let mut late = Job::new("late", Timestamp::now());
            late.set("ebb-delay", "10h").unwrap();
            other.publish(vec![late]).await.unwrap();
            let end = Instant::now() + Duration::from_secs(10);
            while !deaf.depth().await.is_ok_and(|depth| depth.delayed == 1) {
                assert!(Instant::now() < end, "it is never counted");
                sleep(Duration::from_millis(100)).await;
            }
        });
    }

    #[test]
    fn a_level_that_was_told_of_where_another_had_made_the_exchange_again_is_counted_later() {
        block_on(async {
            let (deaf, other) = (opened("deaf-again").await, opened("deaf-again").await);
            assert_eq!(deaf.depth().await.unwrap().delayed, 0);
            tell_of_a_level_that_nobody_hears_of(other.core()).await;
            is_counted_within(&deaf, Duration::from_secs(15)).await;
        });
    }

    #[test]
    fn a_level_that_was_told_of_to_who_could_not_bind_for_long_is_counted_later() {
        // Whoever starts it has a runtime of its own.
        let mut server = tokio::runtime::Builder::new_multi_thread();
        let server = server.enable_all().build().unwrap();
        let server = server.block_on(RabbitMq::start(RabbitMqOptions::default())).unwrap();
        block_on(async {
            let (deaf, other) =
                (opened_on(&server, "deaf").await, opened_on(&server, "deaf").await);
            assert_eq!(deaf.depth().await.unwrap().delayed, 0);
            // Where bindings are kept, somebody else is at work as soon as those of the exchange are gone:
            // they are made when nobody waits for that any more.
            let lock = "spawn(fun() -> \
                Status = rabbit_misc:r(<<\"/\">>, exchange, <<\"ebb:deaf:status\">>), \
                Wait = fun(Again) -> case rabbit_binding:list_for_source(Status) of \
                    [] -> ok; _ -> timer:sleep(5), Again(Again) end end, \
                Wait(Wait), \
                mnesia:transaction(fun() -> mnesia:lock({table, rabbit_route}, write), \
                    timer:sleep(16000) end) end).";
            server.control(&["eval", lock]).unwrap();
            tell_of_a_level_that_nobody_hears_of(other.core()).await;
            is_counted_within(&deaf, Duration::from_secs(40)).await;
        });
    }

    /// Waits until the job that is delayed is counted.
    async fn is_counted_within(queue: &AmqpQueue, span: Duration) {
        let end = Instant::now() + span;
        while !queue.depth().await.is_ok_and(|depth| depth.delayed == 1) {
            assert!(Instant::now() < end, "it is never counted");
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Makes the exchange again by which all hear of each other, and before anybody looks a level with a
    /// job, of which it tells by that.
    async fn tell_of_a_level_that_nobody_hears_of(core: &Core) {
        let session = core.session().await.unwrap();
        let channel = session.intake.create_channel().await.unwrap();
        let lane = Lane::New(Priority::Normal);
        let way = names::way(Duration::from_secs(36_000), lane).unwrap();
        topology::levels(&channel, &core.names, FIRST_LEVELS..way.level + 1).await.unwrap();
        // All before anybody looks.
        let (status, options) = (core.names.status(), ExchangeDeleteOptions::default());
        channel.exchange_delete(status.as_str().into(), options).await.unwrap();
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let (kind, none) = (ExchangeKind::Fanout, FieldTable::default());
        channel.exchange_declare(status.as_str().into(), kind, options, none).await.unwrap();
        session.say(core.note("delay", (way.level + 1).to_string())).await.unwrap();
        let parcel = Parcel::new(Job::new("late", Timestamp::now()), 1);
        let late = core.message(core.names.level(way.level), way.key, &parcel);
        session.publish(vec![late]).await.unwrap();
    }

    #[test]
    fn levels_that_are_gone_and_that_others_tell_of_are_not_asked_for_again_and_again() {
        block_on(async {
            let queue = with_a_long_delay("emptied-company").await;
            let core = queue.core();
            let n_levels = delete_levels(core).await;
            let session = core.session().await.unwrap();
            for _ in 0..2 {
                assert_eq!(queue.depth().await.unwrap().delayed, 0);
                assert_eq!(core.n_levels(), FIRST_LEVELS);
                // Of one who knows no better.
                let note = core.note("delay", n_levels.to_string());
                session.say(note).await.unwrap();
                super::super::voice::catch_up(core, &session).await.unwrap();
                assert_eq!(core.n_levels(), n_levels);
            }
        });
    }

    #[test]
    fn who_publishes_to_a_broker_that_has_lost_its_levels_tells_nobody_of_them() {
        block_on(async {
            let queue = with_a_long_delay("emptied-producer").await;
            let core = queue.core();
            delete_levels(core).await;
            let old = core.session().await.unwrap();
            old.give_up();
            let end = Instant::now() + Duration::from_secs(30);
            while !core.session().await.is_ok_and(|session| session.epoch > old.epoch) {
                assert!(Instant::now() < end, "there is no next session");
                sleep(Duration::from_millis(20)).await;
            }
            let mut soon = Job::new("soon", Timestamp::now());
            soon.set("ebb-delay", "1m").unwrap();
            queue.publish(vec![soon]).await.unwrap();
            assert_eq!(core.n_levels(), FIRST_LEVELS);
        });
    }
}
