//! Rings when a job becomes ready. A queue of our own gets a copy of what is published, of which it
//! keeps one; it is there only while somebody listens, since it costs the producers time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Consumer};
use tokio::sync::{Notify, watch};
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

/// Rung for all who listen.
#[derive(Debug, Default)]
pub(super) struct Bell {
    ring: watch::Sender<u64>,
    is_armed: watch::Sender<bool>,
    n_listeners: AtomicUsize,
    wanted: Notify,
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
}

impl Listener {
    /// Begins to listen; what is published from when the bell is armed is heard.
    pub(super) fn new(core: &Arc<Core>) -> Self {
        let bell = &core.bell;
        bell.n_listeners.fetch_add(1, Ordering::SeqCst);
        bell.wanted.notify_one();
        Self { core: core.clone(), ring: bell.ring.subscribe() }
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
        self.core.bell.n_listeners.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Listens on the broker while anybody listens here.
pub(super) async fn keep(core: Arc<Core>) {
    loop {
        while core.bell.n_listeners.load(Ordering::SeqCst) == 0 {
            core.bell.wanted.notified().await;
        }
        if let Ok(session) = line::session(&core.sessions).await
            && let Err(error) = listen(&core, &session).await
        {
            debug!(%error, "cannot listen for new jobs");
            sleep(PAUSE).await;
        }
        core.bell.is_armed.send_replace(false);
    }
}

async fn listen(core: &Core, session: &Session) -> Result<()> {
    let arming = arm(&core.names, session);
    let (channel, mut consumer) = session.patiently("let us listen", arming).await?;
    core.bell.is_armed.send_replace(true);
    // What came before is seen by whoever looks now.
    core.bell.ring();
    let mut echoes = [].iter();
    while core.bell.n_listeners.load(Ordering::SeqCst) > 0 {
        let echo = echoes.next();
        let Ok(copy) = timeout(echo.copied().unwrap_or(LINGER), consumer.next()).await else {
            if echo.is_some() {
                core.bell.ring();
            }
            continue;
        };
        let Some(Ok(copy)) = copy else { return Err(errors::down()) };
        core.bell.ring();
        // Mostly the job is there a moment later.
        sleep(HOLD / 4).await;
        core.bell.ring();
        sleep(HOLD * 3 / 4).await;
        echoes = ECHOES.iter();
        let acked = channel.basic_ack(copy.delivery_tag, BasicAckOptions::default());
        session.patiently("let us listen", acked).await?;
    }
    // The queue goes with its consumer.
    let closed = channel.close(200, "done".into());
    session.patiently("close a channel", closed).await
}

async fn arm(names: &Names, session: &Session) -> lapin::Result<(Channel, Consumer)> {
    let channel = session.intake.create_channel().await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), long("classic"));
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(1));
    arguments.insert("x-overflow".into(), long("drop-head"));
    let options = QueueDeclareOptions::exclusive().auto_delete();
    let queue = channel.queue_declare("".into(), options, arguments).await?;
    let sources = LANES.into_iter().map(|lane| (EXCHANGE.to_owned(), names.lane(lane)));
    // Delayed jobs come by there when their time has come.
    for (exchange, key) in sources.chain([(names.due(), "#".to_owned())]) {
        let (exchange, key) = (exchange.as_str().into(), key.as_str().into());
        let options = QueueBindOptions::default();
        let bound =
            channel.queue_bind(queue.name().clone(), exchange, key, options, FieldTable::default());
        bound.await?;
    }
    channel.basic_qos(1, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions { exclusive: true, ..BasicConsumeOptions::default() };
    let consumer = channel
        .basic_consume(queue.name().clone(), "".into(), options, FieldTable::default())
        .await?;
    Ok((channel, consumer))
}
