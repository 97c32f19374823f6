//! Rings when a job becomes ready. A queue of our own gets a copy of what is published, of which it
//! keeps one; it does so only while somebody listens, since it costs the producers time.
//!
//! A broker that finds this queue gone between the copy and the job tells the producer that it did not
//! take the job, which it has stored. So what is bound to the queue goes first, and the queue itself goes
//! with the connection.

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
use tokio::time::{sleep, timeout};
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
/// once may see nothing, so it is told again after each of these.
const ECHOES: [Duration; 3] =
    [Duration::ZERO, Duration::from_millis(60), Duration::from_millis(240)];
/// How long who closes waits for the broker to send no more copies.
const FAREWELL: Duration = Duration::from_millis(500);

/// Rung for all who listen.
#[derive(Debug, Default)]
pub(super) struct Bell {
    ring: watch::Sender<u64>,
    listeners: watch::Sender<Listeners>,
    /// Whether what is published is heard.
    is_armed: watch::Sender<bool>,
    /// Whether the broker may send copies.
    is_bound: watch::Sender<bool>,
}

/// Who wants to hear.
#[derive(Debug, Default)]
struct Listeners {
    n: usize,
    /// The handle is closed: whoever listens hears no more.
    is_closed: bool,
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

    /// Listens no more, and waits until the broker knows that as far as it answers: whoever closes may end
    /// the connection next.
    pub(super) async fn close(&self) {
        self.listeners.send_modify(|listeners| listeners.is_closed = true);
        let mut is_bound = self.is_bound.subscribe();
        timeout(FAREWELL, is_bound.wait_for(|is_bound| !is_bound)).await.ok();
    }

    fn is_wanted(&self) -> bool {
        self.listeners.borrow().are_there()
    }

    /// Waits until somebody listens.
    async fn wanted(&self) {
        // The bell lives as long as this, so it goes on.
        self.listeners.subscribe().wait_for(Listeners::are_there).await.ok();
    }

    /// Waits until the handle is closed.
    async fn closed(&self) {
        self.listeners.subscribe().wait_for(|listeners| listeners.is_closed).await.ok();
    }
}

impl Listener {
    /// Begins to listen; what is published from when the bell is armed is heard.
    pub(super) fn new(core: &Arc<Core>) -> Self {
        core.bell.listeners.send_modify(|listeners| listeners.n += 1);
        Self { core: core.clone(), ring: core.bell.ring.subscribe() }
    }

    /// Waits until what is published is heard.
    pub(super) async fn armed(&self) -> Result<()> {
        let mut is_armed = self.core.bell.is_armed.subscribe();
        let armed = timeout(PATIENCE, is_armed.wait_for(|is_armed| *is_armed)).await;
        armed.map(drop).map_err(|_| errors::late("let us listen"))
    }

    /// Waits for the next ring.
    pub(super) async fn hear(&mut self) {
        // The bell lives as long as this does, so it goes on.
        self.ring.changed().await.ok();
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.core.bell.listeners.send_modify(|listeners| listeners.n -= 1);
    }
}

/// Listens on the broker while anybody listens here.
pub(super) async fn keep(core: Arc<Core>) {
    let bell = &core.bell;
    loop {
        bell.wanted().await;
        if let Ok(session) = line::session(&core.sessions).await
            && let Err(error) = listen(&core, &session).await
        {
            debug!(%error, "cannot listen for new jobs");
            sleep(PAUSE).await;
        }
        bell.is_armed.send_replace(false);
        bell.is_bound.send_replace(false);
    }
}

/// Listens whenever somebody wants to hear, until the session is over.
async fn listen(core: &Core, session: &Session) -> Result<()> {
    let (bell, opening) = (&core.bell, Copies::open(session));
    let mut copies = session.patiently("let us listen", opening).await?;
    loop {
        bell.wanted().await;
        if session.end().is_some() {
            return Ok(());
        }
        bell.is_bound.send_replace(true);
        session.patiently("let us listen", copies.bind(&core.names)).await?;
        attend(core, session, &mut copies).await?;
        session.patiently("listen no more", copies.unbind(&core.names)).await?;
        bell.is_bound.send_replace(false);
    }
}

/// Hears what comes until nobody listens.
async fn attend(core: &Core, session: &Session, copies: &mut Copies) -> Result<()> {
    let bell = &core.bell;
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
