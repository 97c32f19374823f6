//! Keeps a connection for commands: makes it anew when it breaks, and sends commands through it.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, RedisError, Value};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tracing::debug;

use super::connect::{Dialed, Place};
use super::failure;
use super::script::Call;
use crate::server::distrusted;
use crate::{Error, ErrorKind, Link, Result};

/// A command waits no longer for a connection that is lost, and is not tried again after that.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often an idle connection is looked after.
const PULSE: Duration = Duration::from_secs(5);

/// The pauses between tries to connect.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Whether a command may be sent once more when nobody knows what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// Twice has the effect of once.
    Yes,
    /// The caller must know.
    No,
}

/// Which slot of a cluster a key is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    /// That of the queue: a server that does not have it is the wrong one.
    OfTheQueue,
    /// It may be another one, which may be on another node.
    Any,
}

/// A connection that stands, as far as is known.
#[derive(Debug, Clone)]
pub(super) struct Live {
    generation: u64,
    connection: MultiplexedConnection,
}

/// Sends commands, and has a task that connects anew; it ends with the keeper.
#[derive(Debug)]
pub(super) struct Keeper {
    place: Arc<Place>,
    link: Arc<Link>,
    version: String,
    live: watch::Receiver<Option<Live>>,
    broken: mpsc::Sender<u64>,
    task: AbortHandle,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Keeper {
    /// Connects for the first time; a server that is starting is waited for.
    pub(super) async fn open(place: Arc<Place>, limit: Duration) -> Result<Self> {
        let end = Instant::now() + limit;
        let mut pause = FIRST_PAUSE;
        let dialed = loop {
            let dialed = tokio::time::timeout_at(end, place.dial()).await.unwrap_or_else(|_| {
                let words = format!(
                    "redis at {} does not answer within {limit:?}; is it running, and are host \
                     and port right?",
                    place.shown()
                );
                Err(Error::new(ErrorKind::Unavailable, words))
            });
            // Time does not mend a certificate.
            match dialed.map_err(distrusted) {
                Err(error)
                    if error.kind() == ErrorKind::Unavailable && Instant::now() + pause < end =>
                {
                    debug!(%error, "redis does not answer yet");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                dialed => break dialed?,
            }
        };
        let Dialed { connection, version, .. } = dialed;
        let link = Arc::new(Link::new(format!("redis {}", place.shown())));
        let (lives, live) = watch::channel(Some(Live { generation: 0, connection }));
        let (broken, breaks) = mpsc::channel(16);
        let task = Task { place: place.clone(), link: link.clone(), lives, breaks };
        let task = tokio::spawn(task.keep()).abort_handle();
        Ok(Self { place, link, version, live, broken, task })
    }

    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// The version of the server that was met first.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// Tells whenever the connection was lost or is back.
    pub(super) fn watch(&self) -> watch::Receiver<Option<Live>> {
        self.live.clone()
    }

    /// Runs a script on the queue.
    pub(super) async fn run(&self, call: &Call<'_>, again: Again) -> Result<Value> {
        let answer = self.run_on(&self.place.inbox, call, again).await?;
        answer.map_err(|error| self.place.told(error))
    }

    /// Runs a script on a key, which may be of another slot than the queue; brings the script along
    /// where the server does not know it. What the server answers, be it that it refuses.
    pub(super) async fn run_on(
        &self,
        key: &str,
        call: &Call<'_>,
        again: Again,
    ) -> Result<Result<Value, RedisError>> {
        let slot = if key == self.place.inbox { Slot::OfTheQueue } else { Slot::Any };
        match self.send_to(slot, &call.by_name(key), again).await? {
            Err(error) if failure::is_unknown_script(&error) => {
                self.send_to(slot, &call.in_full(key), again).await
            }
            answer => Ok(answer),
        }
    }

    /// What the server answers to a command without a key, or with one of the queue.
    pub(super) async fn send(
        &self,
        command: &Cmd,
        again: Again,
    ) -> Result<Result<Value, RedisError>> {
        self.send_to(Slot::OfTheQueue, command, again).await
    }

    async fn send_to(
        &self,
        slot: Slot,
        command: &Cmd,
        again: Again,
    ) -> Result<Result<Value, RedisError>> {
        let end = Instant::now() + PATIENCE;
        loop {
            let Live { generation, mut connection } = self.live(end).await?;
            let error = match command.query_async(&mut connection).await {
                Ok(value) => return Ok(Ok(value)),
                Err(error) => error,
            };
            let is_late = Instant::now() >= end;
            if failure::is_for_later(&error) && !is_late {
                tokio::time::sleep(FIRST_PAUSE).await;
            } else if slot == Slot::Any
                && failure::is_elsewhere(&error)
                && self.has_queue(&mut connection).await
            {
                // It is the right server, and no other has both, unless one is moving.
                if !failure::is_moving(&error) || is_late {
                    return Ok(Err(error));
                }
                tokio::time::sleep(FIRST_PAUSE).await;
            } else if failure::is_broken(&error) {
                self.link.lost(&error);
                // A full channel holds the same news already.
                self.broken.try_send(generation).ok();
                // Nothing was done by a server that is not the right one.
                let is_undone = !error.is_io_error() && !error.is_unrecoverable_error();
                if is_late || (again == Again::No && !is_undone) {
                    return Err(self.place.told(error));
                }
                self.leave(generation, end).await;
            } else {
                return Ok(Err(error));
            }
        }
    }

    /// Whether the queue is still there, and not on another node by now.
    async fn has_queue(&self, connection: &mut MultiplexedConnection) -> bool {
        let answer = self.place.probe().query_async::<Value>(connection).await;
        !answer.is_err_and(|error| failure::is_broken(&error))
    }

    async fn live(&self, end: Instant) -> Result<Live> {
        let mut lives = self.live.clone();
        let found = tokio::time::timeout_at(end, lives.wait_for(Option::is_some)).await;
        if let Ok(Ok(live)) = &found
            && let Some(live) = &**live
        {
            return Ok(live.clone());
        }
        let why = self.link.last_error().unwrap_or_default();
        let words = format!("redis at {}: the connection is lost: {why}", self.place.shown());
        Err(Error::new(ErrorKind::Unavailable, words))
    }

    /// Waits until a connection that broke is not offered any more.
    async fn leave(&self, generation: u64, end: Instant) {
        let mut lives = self.live.clone();
        let gone = lives.wait_for(|live| live.as_ref().is_none_or(|l| l.generation > generation));
        tokio::time::timeout_at(end, gone).await.ok();
    }
}

struct Task {
    place: Arc<Place>,
    link: Arc<Link>,
    lives: watch::Sender<Option<Live>>,
    breaks: mpsc::Receiver<u64>,
}

impl Task {
    async fn keep(mut self) {
        let mut generation = 0;
        loop {
            if !self.wait_for_break(generation).await {
                return;
            }
            self.lives.send_replace(None);
            generation += 1;
            let connection = self.reconnect().await;
            self.lives.send_replace(Some(Live { generation, connection }));
            self.link.restored();
        }
    }

    /// Returns when the connection is lost, with false when nobody uses it any more.
    async fn wait_for_break(&mut self, generation: u64) -> bool {
        loop {
            match tokio::time::timeout(PULSE, self.breaks.recv()).await {
                Ok(None) => return false,
                Ok(Some(broken)) if broken == generation => return true,
                Ok(Some(_)) => {}
                Err(_) => {
                    if let Err(error) = self.feel_pulse().await {
                        self.link.lost(&error);
                        return true;
                    }
                }
            }
        }
    }

    /// An idle connection that is cut may not tell of it.
    async fn feel_pulse(&self) -> Result<(), String> {
        let live = self.lives.borrow().clone();
        let Some(Live { mut connection, .. }) = live else { return Ok(()) };
        let command = self.place.probe();
        let answer = tokio::time::timeout(PULSE, command.query_async::<Value>(&mut connection));
        match answer.await {
            Ok(Err(error)) if failure::is_broken(&error) => Err(error.to_string()),
            Ok(_) => Ok(()),
            Err(_) => Err("it does not answer".to_owned()),
        }
    }

    async fn reconnect(&self) -> MultiplexedConnection {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.place.dial().await {
                Ok(dialed) => return dialed.connection,
                Err(error) => self.link.lost(&error),
            }
            tokio::time::sleep(jittered(pause)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Many that lost a server together must not come back together.
pub(super) fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.5..1.0))
}
