//! What handles tell each other: AMQP says how much waits and nothing of what is held, so each
//! handle tells how much it holds, and workers how they are, to all who listen.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Consumer};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tracing::debug;

use super::core::Core;
use super::parcel::long;
use super::session::{Message, Session};
use super::{errors, line};
use crate::{Result, STATUS_TTL, WorkerId, WorkerStatus};

/// How long others have to answer when somebody begins to listen.
const ANSWER: Duration = Duration::from_millis(200);
const PAUSE: Duration = Duration::from_millis(200);
/// From one word on what we hold to the next: under load it changes with every batch, and each word
/// costs the broker as much as a few jobs. Shorter than the doubt of who finds the queue empty.
const REST: Duration = Duration::from_millis(20);
/// How long to wait for the echo of one's own voice.
const ECHO: Duration = Duration::from_secs(3);
/// Messages of others that wait for us at most.
const MAX_WAITING: i64 = 10_000;

/// What a handle holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Holding {
    handle: String,
    held: u64,
    ahead: u64,
}

/// What was heard of all handles.
#[derive(Debug, Default)]
pub(super) struct Heard {
    said: Mutex<Said>,
    /// Where we are heard by ourselves, and from when on all others have been.
    ear: watch::Sender<Option<Ear>>,
    n_echoes: AtomicU64,
    echo: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Said {
    holdings: HashMap<String, (Holding, Instant)>,
    workers: HashMap<WorkerId, (WorkerStatus, Instant)>,
    /// What the worker of this handle said last.
    own: Option<(WorkerStatus, Instant)>,
}

#[derive(Debug, Clone)]
struct Ear {
    epoch: u64,
    queue: String,
    complete_at: Instant,
}

impl Heard {
    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What other handles hold, and what they fetched and handed to nobody.
    pub(super) fn holdings(&self) -> (u64, u64) {
        let (mut said, now) = (self.said(), Instant::now());
        said.holdings.retain(|_, (_, at)| now - *at < STATUS_TTL);
        let holdings = said.holdings.values();
        holdings.fold((0, 0), |(held, ahead), (one, _)| (held + one.held, ahead + one.ahead))
    }

    pub(super) fn workers(&self) -> Vec<WorkerStatus> {
        let (mut said, now) = (self.said(), Instant::now());
        said.workers.retain(|_, (_, at)| now - *at < STATUS_TTL);
        said.workers.values().map(|(status, _)| status.clone()).collect()
    }

    /// Notes what a worker says; true when it is in another phase than before.
    fn note_worker(&self, status: WorkerStatus, at: Instant) -> bool {
        let phase = status.phase;
        let mut said = self.said();
        let before = said.workers.get(&status.id).filter(|(_, before)| at - *before < STATUS_TTL);
        let is_new = before.is_none_or(|(before, _)| before.phase != phase);
        said.workers.insert(status.id.clone(), (status, at));
        is_new
    }
}

/// Waits until everything that was said before has been heard.
pub(super) async fn catch_up(core: &Core, session: &Session) -> Result<()> {
    let mut ear = core.heard.ear.subscribe();
    let here = |ear: &Option<Ear>| ear.as_ref().is_some_and(|ear| ear.epoch == session.epoch);
    let ear = timeout(ECHO, ear.wait_for(here)).await;
    let ear = ear.ok().and_then(std::result::Result::ok).and_then(|ear| ear.clone());
    let ear = ear.ok_or_else(|| errors::late("let us hear what is held"))?;
    sleep_until(ear.complete_at).await;
    let n_echo = core.heard.n_echoes.fetch_add(1, Ordering::SeqCst) + 1;
    let properties = BasicProperties::default().with_type("echo".into());
    let body = n_echo.to_string().into();
    let (exchange, key) = (String::new(), ear.queue);
    session.say(Message { exchange, key, properties, body, must_arrive: false }).await?;
    let mut echo = core.heard.echo.subscribe();
    let heard = timeout(ECHO, echo.wait_for(|heard| *heard >= n_echo)).await;
    heard.map(drop).map_err(|_| errors::late("let us hear what is held"))
}

/// Tells all how the worker of this handle is.
pub(super) async fn report(core: &Core, status: &WorkerStatus) -> Result<()> {
    let session = core.session().await?;
    let now = Instant::now();
    core.heard.said().own = Some((status.clone(), now));
    if core.heard.note_worker(status.clone(), now) {
        core.bell.ring();
    }
    session.publish(vec![worker_note(core, status, Duration::ZERO)]).await
}

fn worker_note(core: &Core, status: &WorkerStatus, age: Duration) -> Message {
    let mut note = core.note("worker", status.encode());
    let mut headers = FieldTable::default();
    let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
    headers.insert("ebb-age-ms".into(), AMQPValue::LongLongInt(age));
    note.properties = note.properties.with_headers(headers);
    note
}

/// Tells all that a delay begins, which nobody sees otherwise, and how many levels there are.
pub(super) async fn tell_of_delay(core: &Core, session: &Session) {
    let n_levels = core.n_levels.load(Ordering::SeqCst).to_string();
    if let Err(error) = session.say(core.note("delay", n_levels)).await {
        debug!(%error, "nobody was told that a delay began");
    }
}

/// Listens to all, and tells what this handle holds: when that changes, when somebody new asks,
/// and each second.
pub(super) async fn keep(core: Arc<Core>) {
    loop {
        if let Ok(session) = line::session(&core.sessions).await
            && let Err(error) = converse(&core, &session).await
        {
            debug!(%error, "cannot hear what is held");
        }
        core.heard.ear.send_replace(None);
        sleep(PAUSE).await;
    }
}

async fn converse(core: &Core, session: &Session) -> Result<()> {
    let listening = listen(core, session);
    let (channel, mut consumer) = session.patiently("let us hear what is held", listening).await?;
    let queue = consumer.queue().as_str().to_owned();
    session.say(core.note("hello", core.handle.clone())).await?;
    let ear = Ear { epoch: session.epoch, queue, complete_at: Instant::now() + ANSWER };
    core.heard.ear.send_replace(Some(ear));
    let mut each_second = interval(Duration::from_secs(1));
    each_second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = (0, 0);
    let (mut is_stale, mut rested_at) = (false, Instant::now());
    loop {
        let counts = |core: &Core| {
            let ledger = core.ledger();
            (ledger.n_held(), ledger.n_ahead)
        };
        tokio::select! {
            heard = consumer.next() => {
                let Some(Ok(heard)) = heard else { return Err(errors::down()) };
                hear(core, session, &heard).await?;
                let acked = channel.basic_ack(heard.delivery_tag, BasicAckOptions::default());
                session.patiently("let us hear what is held", acked).await?;
            }
            () = core.counts_changed.notified(), if !is_stale => is_stale = true,
            () = sleep_until(rested_at), if is_stale => {
                is_stale = false;
                if counts(core) != told {
                    told = counts(core);
                    tell_holding(core, session, told).await?;
                    rested_at = Instant::now() + REST;
                }
            }
            _ = each_second.tick() => {
                if told != (0, 0) || counts(core) != told {
                    told = counts(core);
                    tell_holding(core, session, told).await?;
                }
            }
        }
    }
}

async fn listen(core: &Core, session: &Session) -> lapin::Result<(Channel, Consumer)> {
    let channel = session.intake.create_channel().await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), long("classic"));
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(MAX_WAITING));
    let options = QueueDeclareOptions::exclusive().auto_delete();
    let queue = channel.queue_declare("".into(), options, arguments).await?;
    let exchange = core.names.status().as_str().into();
    let (options, none) = (QueueBindOptions::default(), FieldTable::default());
    channel.queue_bind(queue.name().clone(), exchange, "".into(), options, none).await?;
    channel.basic_qos(256, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions { exclusive: true, ..BasicConsumeOptions::default() };
    let consumer = channel
        .basic_consume(queue.name().clone(), "".into(), options, FieldTable::default())
        .await?;
    Ok((channel, consumer))
}

async fn hear(core: &Core, session: &Session, message: &Delivery) -> Result<()> {
    let kind = message.properties.kind().as_ref().map(ShortString::as_str);
    let number = || std::str::from_utf8(&message.data).ok()?.parse::<u64>().ok();
    match kind {
        Some("held") => {
            // Others may be of a newer version: what cannot be read is passed over.
            let holding = serde_json::from_slice::<Holding>(&message.data).ok();
            if let Some(holding) = holding.filter(|holding| holding.handle != core.handle) {
                let entry = (holding.handle.clone(), (holding, Instant::now()));
                core.heard.said().holdings.extend([entry]);
            }
        }
        Some("worker") => {
            let headers = message.properties.headers().as_ref();
            let age = headers.and_then(|headers| headers.inner().get("ebb-age-ms"));
            let age = age.and_then(AMQPValue::as_long_long_int).unwrap_or(0).clamp(0, 60_000);
            let at = Instant::now().checked_sub(Duration::from_millis(age.unsigned_abs()));
            if let (Ok(status), Some(at)) = (WorkerStatus::decode(&message.data), at)
                && core.heard.note_worker(status, at)
            {
                core.bell.ring();
            }
        }
        Some("delay") => {
            let n_levels = number().and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
            core.n_levels.fetch_max(n_levels.min(64), Ordering::SeqCst);
            core.bell.ring();
        }
        Some("echo") => {
            let n_echo = number().unwrap_or(0);
            core.heard.echo.send_modify(|heard| *heard = n_echo.max(*heard));
        }
        Some("hello") => answer(core, session).await?,
        _ => {}
    }
    Ok(())
}

/// Tells who is new what there is to know of us.
async fn answer(core: &Core, session: &Session) -> Result<()> {
    let holding = {
        let ledger = core.ledger();
        (ledger.n_held(), ledger.n_ahead)
    };
    if holding != (0, 0) {
        tell_holding(core, session, holding).await?;
    }
    let own = core.heard.said().own.clone();
    if let Some((status, at)) = own.filter(|(_, at)| at.elapsed() < STATUS_TTL) {
        session.say(worker_note(core, &status, at.elapsed())).await?;
    }
    Ok(())
}

async fn tell_holding(core: &Core, session: &Session, (held, ahead): (u64, u64)) -> Result<()> {
    let holding = Holding { handle: core.handle.clone(), held, ahead };
    // A plain struct has nothing in it that JSON cannot say.
    session.say(core.note("held", serde_json::to_vec(&holding).unwrap_or_default())).await
}
