//! Rings when a job becomes ready. A queue of our own gets a copy of what is published, of which it
//! keeps one; it does so only while somebody listens, since it costs the producers time.
//!
//! A broker that finds this queue gone between the copy and the job tells the producer that it did not
//! take the job, which it has stored. So what is bound to the queue goes first, and the queue itself a
//! while later, also where the handle is dropped or the session given up. A process that ends within that
//! while, or is killed, and a broker that does not answer within a second leave a bound queue, which goes
//! with the connection: a producer whose job is refused in that moment is told that the job may be stored.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::try_join_all;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Consumer};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::debug;

use super::core::Core;
use super::names::{EXCHANGE, LANES, Names};
use super::parcel::long;
use super::session::{PATIENCE, Session};
use super::{errors, line};
use crate::Result;

/// What comes within this time is told as one.
const HOLD: Duration = Duration::from_millis(15);
/// How long to listen on when nobody wants to hear: workers wait again and again.
const LINGER: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(200);
/// A copy comes by before the queue itself has the job, which waits for the disk: whoever looks at
/// once may see nothing, so it is told again after each of these. A disk may take seconds.
const ECHOES: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(60),
    Duration::from_millis(240),
    Duration::from_millis(700),
    Duration::from_millis(2_000),
];
/// How long who closes, or a session that is over, waits for the broker to send no more copies.
const FAREWELL: Duration = Duration::from_millis(500);
/// By then a job whose copy was on its way when the last copies were bound is confirmed.
const QUIET: Duration = Duration::from_millis(500);

/// Rung for all who listen.
#[derive(Debug, Default)]
pub(super) struct Bell {
    ring: watch::Sender<u64>,
    listeners: watch::Sender<Listeners>,
    /// Whether what is published is heard.
    is_armed: watch::Sender<bool>,
}

/// Who wants to hear, and what is done for them: changed in one step, so that nothing begins for a handle
/// that is closed.
#[derive(Debug, Default)]
struct Listeners {
    n: usize,
    /// The handle is closed or gone: whoever listens hears no more.
    is_closed: bool,
    /// Whether the broker may send copies.
    is_bound: bool,
    /// When it sent copies last, at the latest.
    unbound_at: Option<Instant>,
}

impl Listeners {
    fn are_there(&self) -> bool {
        self.n > 0 && !self.is_closed
    }
}

/// Somebody who listens.
#[derive(Debug)]
pub(super) struct Listener {
    core: Arc<Core>,
    ring: watch::Receiver<u64>,
}

impl Bell {
    pub(super) fn ring(&self) {
        self.ring.send_modify(|n_rings| *n_rings += 1);
    }

    /// Rings from now on, as far as they come here without anybody's listening on the broker.
    pub(super) fn rings(&self) -> watch::Receiver<u64> {
        self.ring.subscribe()
    }

    /// Listens no more: what the broker does for that ends soon, whether or not anybody waits for it.
    pub(super) fn hang_up(&self) {
        self.listeners.send_modify(|listeners| listeners.is_closed = true);
    }

    /// Listens no more, and waits until the queue of the copies may go, as far as the broker answers:
    /// whoever closes may end the connection next.
    pub(super) async fn close(&self) {
        self.hang_up();
        let mut listeners = self.listeners.subscribe();
        timeout(FAREWELL, listeners.wait_for(|listeners| !listeners.is_bound)).await.ok();
        self.quiet().await;
    }

    /// Waits until no job is unconfirmed whose copy was sent.
    async fn quiet(&self) {
        let unbound_at = self.listeners.borrow().unbound_at;
        if let Some(unbound_at) = unbound_at {
            sleep_until(unbound_at + QUIET).await;
        }
    }

    fn is_wanted(&self) -> bool {
        self.listeners.borrow().are_there()
    }

    /// Waits until somebody listens; false where the handle is closed.
    async fn wanted(&self) -> bool {
        let mut listeners = self.listeners.subscribe();
        let is_told = |listeners: &Listeners| listeners.is_closed || listeners.are_there();
        // The bell lives as long as this, so it goes on.
        listeners.wait_for(is_told).await.is_ok_and(|listeners| listeners.are_there())
    }

    /// Waits until the handle is closed.
    async fn closed(&self) {
        self.listeners.subscribe().wait_for(|listeners| listeners.is_closed).await.ok();
    }

    /// The broker may send copies from now on; false where nobody wants to hear any more.
    fn bind(&self) -> bool {
        self.listeners.send_if_modified(|listeners| {
            let is_wanted = listeners.are_there();
            listeners.is_bound |= is_wanted;
            is_wanted
        })
    }

    /// The broker sends no more copies.
    fn unbind(&self) {
        self.listeners.send_if_modified(|listeners| {
            if listeners.is_bound {
                listeners.unbound_at = Some(Instant::now());
            }
            std::mem::take(&mut listeners.is_bound)
        });
    }
}

impl Listener {
    /// Begins to listen; what is published from when the bell is armed is heard.
    pub(super) fn new(core: &Arc<Core>) -> Self {
        core.bell.listeners.send_modify(|listeners| listeners.n += 1);
        Self { core: core.clone(), ring: core.bell.ring.subscribe() }
    }

    /// Waits until what is published is heard, or the handle is closed.
    pub(super) async fn armed(&self) -> Result<()> {
        let bell = &self.core.bell;
        let mut is_armed = bell.is_armed.subscribe();
        let armed = async {
            tokio::select! {
                () = bell.closed() => {}
                // The bell lives as long as this does, so it goes on.
                armed = is_armed.wait_for(|is_armed| *is_armed) => drop(armed),
            }
        };
        timeout(PATIENCE, armed).await.map_err(|_| errors::late("let us listen"))
    }

    /// Waits for the next ring.
    pub(super) async fn hear(&mut self) {
        // The bell lives as long as this does, so it goes on.
        self.ring.changed().await.ok();
    }

    /// The same, but there is none once the handle is closed.
    pub(super) async fn next(&mut self) -> Option<()> {
        let core = Arc::clone(&self.core);
        tokio::select! { biased;
            () = core.bell.closed() => None,
            () = self.hear() => Some(()),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.core.bell.listeners.send_modify(|listeners| listeners.n -= 1);
    }
}

/// Listens on the broker while anybody listens here, until the handle is closed or gone. It ends by itself
/// then, with all that belongs to it.
pub(super) async fn keep(core: Arc<Core>) {
    let given_up = async {
        core.bell.closed().await;
        // The jobs of a handle that is gone come back with its connection, whatever the broker does.
        sleep(FAREWELL + QUIET).await;
    };
    tokio::select! {
        () = listen_while_wanted(&core) => {}
        () = given_up => {}
    }
}

async fn listen_while_wanted(core: &Core) {
    let bell = &core.bell;
    while bell.wanted().await {
        if let Ok(session) = line::session(&core.sessions).await
            && let Err(error) = listen(core, &session).await
        {
            debug!(%error, "cannot listen for new jobs");
            sleep(PAUSE).await;
        }
        bell.is_armed.send_replace(false);
        bell.unbind();
    }
}

/// Listens whenever somebody wants to hear, until the session is over or the handle closed.
async fn listen(core: &Core, session: &Session) -> Result<()> {
    // Before its connection is closed.
    let _copies = session.copies.lock().await;
    let (bell, opening) = (&core.bell, Copies::open(session));
    let mut copies = session.patiently("let us listen", opening).await?;
    loop {
        let is_wanted = tokio::select! {
            is_wanted = bell.wanted() => is_wanted,
            // Nobody may listen for long, and nothing of a session that is over is to stay until then.
            () = line::over(&core.sessions, session.epoch) => false,
        };
        if !is_wanted || session.end().is_some() {
            // The queue goes with the copies.
            bell.quiet().await;
            return Ok(());
        }
        if !bell.bind() {
            continue;
        }
        session.patiently("let us listen", copies.bind(&core.names)).await?;
        attend(core, session, &mut copies).await?;
        unbind(core, session, &copies).await?;
        bell.unbind();
    }
}

/// Has the broker send no more copies; a session that is over does not last until it answers.
async fn unbind(core: &Core, session: &Session, copies: &Copies) -> Result<()> {
    let late = async {
        line::over(&core.sessions, session.epoch).await;
        sleep(FAREWELL).await;
    };
    tokio::select! {
        unbound = session.patiently("listen no more", copies.unbind(&core.names)) => unbound,
        () = late => Err(errors::down()),
    }
}

/// Hears what comes until nobody listens, or the session is over.
async fn attend(core: &Core, session: &Session, copies: &mut Copies) -> Result<()> {
    let bell = &core.bell;
    let mut over = pin!(line::over(&core.sessions, session.epoch));
    loop {
        bell.is_armed.send_replace(true);
        // What came before is seen by whoever looks now.
        bell.ring();
        let mut echoes = [].iter();
        while bell.is_wanted() {
            let echo = echoes.next();
            let span = echo.copied().unwrap_or(LINGER);
            let copy = tokio::select! {
                copy = timeout(span, copies.consumer.next()) => copy,
                () = bell.closed() => break,
                () = &mut over => {
                    bell.is_armed.send_replace(false);
                    return Ok(());
                }
            };
            let Ok(copy) = copy else {
                if echo.is_some() {
                    bell.ring();
                }
                continue;
            };
            let Some(Ok(copy)) = copy else { return Err(errors::down()) };
            bell.ring();
            // Mostly the job is there a moment later.
            sleep(HOLD / 4).await;
            bell.ring();
            sleep(HOLD * 3 / 4).await;
            echoes = ECHOES.iter();
            let acked = copies.channel.basic_ack(copy.delivery_tag, BasicAckOptions::default());
            session.patiently("let us listen", acked).await?;
        }
        bell.is_armed.send_replace(false);
        // Whoever came in between may have found it armed.
        if !bell.is_wanted() {
            return Ok(());
        }
    }
}

/// The queue of the copies.
struct Copies {
    channel: Channel,
    queue: ShortString,
    consumer: Consumer,
}

impl Copies {
    async fn open(session: &Session) -> lapin::Result<Self> {
        let channel = session.intake.create_channel().await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), long("classic"));
        arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(1));
        arguments.insert("x-overflow".into(), long("drop-head"));
        let options = QueueDeclareOptions::exclusive().auto_delete();
        let queue = channel.queue_declare("".into(), options, arguments).await?.name().clone();
        channel.basic_qos(1, BasicQosOptions::default()).await?;
        let options = BasicConsumeOptions { exclusive: true, ..BasicConsumeOptions::default() };
        let consumer =
            channel.basic_consume(queue.clone(), "".into(), options, FieldTable::default()).await?;
        Ok(Self { channel, queue, consumer })
    }

    async fn bind(&self, names: &Names) -> lapin::Result<()> {
        let bound = sources(names).map(|(exchange, key)| {
            let (options, none) = (QueueBindOptions::default(), FieldTable::default());
            self.channel.queue_bind(self.queue.clone(), exchange, key, options, none)
        });
        try_join_all(bound).await.map(drop)
    }

    async fn unbind(&self, names: &Names) -> lapin::Result<()> {
        let unbound = sources(names).map(|(exchange, key)| {
            self.channel.queue_unbind(self.queue.clone(), exchange, key, FieldTable::default())
        });
        try_join_all(unbound).await.map(drop)
    }
}

/// The exchanges where jobs come by, and their keys.
fn sources(names: &Names) -> impl Iterator<Item = (ShortString, ShortString)> {
    let lanes = LANES.into_iter().map(|lane| (EXCHANGE.to_owned(), names.lane(lane)));
    // Delayed jobs come by there when their time has come.
    let all = lanes.chain([(names.due(), "#".to_owned())]);
    all.map(|(exchange, key)| (exchange.as_str().into(), key.as_str().into()))
}

#[cfg(test)]
mod tests {
    use super::super::kit::{block_on, opened};
    use super::*;
    use crate::Backlog;

    const LONG: Duration = Duration::from_secs(30);

    /// A bell that somebody wants to hear.
    fn wanted() -> Bell {
        let bell = Bell::default();
        bell.listeners.send_modify(|listeners| listeners.n = 1);
        bell
    }

    #[tokio::test(start_paused = true)]
    async fn who_closes_waits_until_no_copy_can_be_on_its_way() {
        let bell = wanted();
        assert!(bell.bind());
        let (start, answer) = (Instant::now(), FAREWELL / 2);
        tokio::join!(bell.close(), async {
            sleep(answer).await;
            bell.unbind();
        });
        assert_eq!(start.elapsed(), answer + QUIET);
    }

    #[tokio::test(start_paused = true)]
    async fn who_closes_after_nobody_listened_for_a_while_waits_for_nothing() {
        let bell = wanted();
        assert!(bell.bind());
        bell.unbind();
        sleep(QUIET).await;
        bell.unbind();
        let start = Instant::now();
        bell.close().await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_does_not_answer_holds_up_who_closes_for_no_longer_than_said() {
        let bell = wanted();
        assert!(bell.bind());
        let start = Instant::now();
        bell.close().await;
        assert_eq!(start.elapsed(), FAREWELL);
    }

    #[tokio::test]
    async fn nothing_is_bound_for_a_handle_that_was_closed_meanwhile() {
        let bell = wanted();
        assert!(bell.wanted().await);
        bell.hang_up();
        assert!(!bell.bind());
        assert!(!bell.wanted().await);
        bell.close().await;
    }

    #[test]
    fn a_session_that_is_over_goes_though_nobody_listens() {
        block_on(async {
            let queue = opened("old-bells").await;
            drop(queue.arrivals().await.unwrap());
            let bell = &queue.core().bell;
            let unbound = bell.listeners.subscribe().wait_for(|one| !one.is_bound).await.map(drop);
            unbound.unwrap();
            let session = queue.core().session().await.unwrap();
            let old = Arc::downgrade(&session);
            session.give_up();
            drop(session);
            let end = Instant::now() + LONG;
            while old.strong_count() > 0 {
                assert!(Instant::now() < end, "{} hold it", old.strong_count());
                sleep(Duration::from_millis(20)).await;
            }
        });
    }

    #[test]
    fn a_session_that_is_given_up_is_closed_when_no_copy_can_be_on_its_way() {
        block_on(async {
            let queue = opened("given-up-bells").await;
            let _arrivals = queue.arrivals().await.unwrap();
            let session = queue.core().session().await.unwrap();
            session.give_up();
            let end = Instant::now() + LONG;
            while session.intake.status().connected() {
                assert!(Instant::now() < end, "it is not closed");
                sleep(Duration::from_millis(1)).await;
            }
            let unbound_at = queue.core().bell.listeners.borrow().unbound_at;
            assert!(unbound_at.is_some_and(|at| at.elapsed() >= QUIET), "it was bound");
            // Who listens goes on with the next.
            let next = async || queue.core().session().await.is_ok_and(|next| next.epoch == 1);
            while !(next().await && *queue.core().bell.is_armed.borrow()) {
                assert!(Instant::now() < end, "nobody listens any more");
                sleep(Duration::from_millis(20)).await;
            }
        });
    }
}
