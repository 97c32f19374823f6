//! Keeps a session with the broker, and makes a new one when it breaks.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::connect::Door;
use super::names::Names;
use super::session::Session;
use super::{errors, topology};
use crate::{AmqpAddress, Error, ErrorKind, Link, Missing, Result};

/// How often a session is looked at.
const LOOK: Duration = Duration::from_millis(100);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long who needs a session waits for one before giving up.
const WAIT: Duration = Duration::from_secs(1);

/// A task that ends with its owner.
#[derive(Debug)]
pub(super) struct Owned(pub(super) JoinHandle<()>);

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The present session, whoever asks.
pub(super) type Sessions = watch::Receiver<Option<Arc<Session>>>;

/// What it takes to make a session.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) address: AmqpAddress,
    pub(super) names: Names,
    pub(super) missing: Missing,
    /// What we are called in the broker's list of connections.
    pub(super) name: String,
    pub(super) limit: Duration,
}

impl Caller {
    /// Makes a session on which everything is ready to be used.
    async fn call(&self, epoch: u64) -> Result<Session> {
        let door = Door::open(&self.address)?;
        let pair = door.enter(&self.name, self.limit).await?;
        let session = Session::new(epoch, pair).await?;
        // A channel of its own, since the broker closes it when something does not fit.
        let channel = session.intake.create_channel();
        let channel = session.patiently("open a channel", channel).await?;
        let prepared = topology::prepare(&channel, &self.names, self.missing);
        let Ok(prepared) = timeout(self.limit.max(LONGEST_PAUSE), prepared).await else {
            return Err(errors::late("make the queues"));
        };
        prepared?;
        // What is left open is closed with the session.
        channel.close(200, "done".into()).await.ok();
        Ok(session)
    }
}

/// The first session, and the task that replaces it whenever it breaks.
pub(super) async fn open(caller: Caller, link: Arc<Link>) -> Result<(Sessions, Owned)> {
    let within = caller.limit + LONGEST_PAUSE;
    let first = match timeout(within, caller.call(0)).await {
        Ok(first) => first?,
        Err(_) => {
            let hosts = caller.address.server.shown();
            let words = format!("RabbitMQ at {hosts} did not answer in time");
            return Err(Error::new(ErrorKind::Unavailable, words));
        }
    };
    let first = Arc::new(first);
    let (sender, sessions) = watch::channel(Some(first.clone()));
    let keeper = tokio::spawn(keep(caller, link, sender, first));
    Ok((sessions, Owned(keeper)))
}

async fn keep(
    caller: Caller,
    link: Arc<Link>,
    sender: watch::Sender<Option<Arc<Session>>>,
    mut session: Arc<Session>,
) {
    loop {
        let end = loop {
            if let Some(end) = session.end() {
                break end;
            }
            session.rest(LOOK).await;
        };
        link.lost(&end);
        sender.send_replace(None);
        let (epoch, old) = (session.epoch + 1, session);
        // At the same time: a broker that does not answer takes a while to be left.
        let leaving = async move { old.shut().await };
        let (next, ()) = tokio::join!(renew(&caller, &link, epoch), leaving);
        session = Arc::new(next);
        sender.send_replace(Some(session.clone()));
        link.restored();
    }
}

/// Calls until the broker answers, for ever.
async fn renew(caller: &Caller, link: &Link, epoch: u64) -> Session {
    let mut pause = FIRST_PAUSE;
    loop {
        match caller.call(epoch).await {
            Ok(session) => return session,
            Err(error) => link.lost(&error),
        }
        let jitter = rand::rng().random_range(0.5..1.0);
        tokio::time::sleep(pause.mul_f64(jitter)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// The session, when there is one soon.
pub(super) async fn session(sessions: &Sessions) -> Result<Arc<Session>> {
    let mut sessions = sessions.clone();
    let there = timeout(WAIT, sessions.wait_for(Option::is_some)).await;
    let session = there.ok().and_then(std::result::Result::ok).and_then(|there| there.clone());
    session.ok_or_else(errors::down)
}

/// Waits until a session is not the present one any more, or nobody keeps one.
pub(super) async fn over(sessions: &Sessions, epoch: u64) {
    let mut sessions = sessions.clone();
    let is_other =
        |there: &Option<Arc<Session>>| there.as_ref().is_none_or(|one| one.epoch != epoch);
    sessions.wait_for(is_other).await.ok();
}
