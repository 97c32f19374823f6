//! Who waits for news, and the connections of their own on which it comes.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use redis::aio::MultiplexedConnection;
use redis::{RedisError, Value};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tracing::debug;

use super::connect::{self, Place};
use super::keeper::{Live, jittered};
use super::value;
use crate::follow::{Follower, Followers};
use crate::{Error, ErrorKind, JobId, Result};

/// How long a look at the inbox blocks, and after how long its connection is taken for dead.
const BLOCK: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(15);

/// How often a connection on which nothing is told is looked after, and how long it has to answer.
const PULSE: Duration = Duration::from_secs(5);

/// What comes faster than this is told as one.
const REST: Duration = Duration::from_millis(2);

/// A stream of others that gets entries all the time is told of ever less often, down to this: each
/// telling reads some.
const LONGEST_REST: Duration = Duration::from_millis(500);

/// An entry that comes sooner than this after the last was told is one of many.
const SOON: Duration = Duration::from_secs(1);

/// The first connection may take this long.
const ARMING: Duration = Duration::from_secs(10);

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Cancelled jobs that wait to be heard of.
const HINTS: usize = 1024;

type Lives = watch::Receiver<Option<Live>>;

/// How far a listener has come.
#[derive(Debug, Default)]
enum Arming {
    /// Connects; leads to `Armed` or `Refused`.
    #[default]
    Begun,
    /// Hears what is told from now on.
    Armed,
    /// The server does not let us listen, for this reason; leads to `Armed` should it change its mind.
    Refused(Error),
}

impl Arming {
    fn note(armed: &watch::Sender<Self>, error: Error) {
        debug!(%error, "cannot listen");
        if error.kind() != ErrorKind::Unavailable {
            armed.send_replace(Self::Refused(error));
        }
    }
}

/// A task that listens; it ends with this.
#[derive(Debug)]
struct Ear(AbortHandle);

impl Drop for Ear {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Tells when a job may have become ready.
#[derive(Debug)]
pub(super) struct Arrivals {
    told: watch::Sender<()>,
    _ears: Vec<Ear>,
}

impl Arrivals {
    /// Armed when this returns.
    pub(super) async fn start(place: Arc<Place>, lives: Lives) -> Result<Self> {
        let told = watch::Sender::new(());
        let tell = {
            let told = told.clone();
            move |_: &[u8]| told.send_replace(())
        };
        let channel = place.key("arrivals");
        let (heard, heard_armed) = start_hearing(place.clone(), channel, lives.clone(), tell);
        let (seen, seen_armed) = start_watching(place.clone(), lives, told.clone(), REST);
        wait_until_armed(heard_armed, &place).await?;
        wait_until_armed(seen_armed, &place).await?;
        Ok(Self { told, _ears: vec![heard, seen] })
    }

    /// The same of a stream of others, of which only its entries tell.
    pub(super) async fn of_stream(place: Arc<Place>, lives: Lives) -> Result<Self> {
        let told = watch::Sender::new(());
        let (seen, armed) = start_watching(place.clone(), lives, told.clone(), LONGEST_REST);
        wait_until_armed(armed, &place).await?;
        Ok(Self { told, _ears: vec![seen] })
    }

    /// Told from now on.
    pub(super) fn listen(&self) -> watch::Receiver<()> {
        let mut told = self.told.subscribe();
        told.mark_unchanged();
        told
    }
}

/// Tells who follows results.
#[derive(Debug)]
pub(super) struct Answers {
    followers: Followers,
    _ear: Ear,
}

impl Answers {
    /// Armed when this returns.
    pub(super) async fn start(place: Arc<Place>, lives: Lives) -> Result<Self> {
        let followers = Followers::default();
        let tell = {
            let followers = followers.clone();
            move |ids: &[u8]| tell(&followers, ids)
        };
        let channel = place.key("answers");
        let (ear, armed) = start_hearing(place.clone(), channel, lives, tell);
        wait_until_armed(armed, &place).await?;
        Ok(Self { followers, _ear: ear })
    }

    /// Told from now on of one job, until it is dropped.
    pub(super) fn follow(&self, id: &JobId) -> Follower {
        self.followers.follow(id)
    }
}

/// Tells of jobs that were cancelled.
#[derive(Debug)]
pub(super) struct Cancellations {
    told: mpsc::Receiver<JobId>,
    _ear: Ear,
}

impl Cancellations {
    /// Armed when this returns; it ends with the stream.
    pub(super) async fn listen(
        place: Arc<Place>,
        lives: Lives,
    ) -> Result<BoxStream<'static, JobId>> {
        let (sender, told) = mpsc::channel(HINTS);
        let tell = move |id: &[u8]| {
            let id = std::str::from_utf8(id).ok().and_then(|id| id.parse().ok());
            // Of more than there is room for, the leases tell.
            id.map(|id| sender.try_send(id).is_ok());
        };
        let (ear, armed) = start_hearing(place.clone(), place.key("cancelled"), lives, tell);
        wait_until_armed(armed, &place).await?;
        let heard = stream::unfold(Self { told, _ear: ear }, |mut heard| async move {
            let id = heard.told.recv().await?;
            Some((id, heard))
        });
        Ok(heard.boxed())
    }
}

/// Tells those who follow one of these jobs, or everybody when none is named.
fn tell(followers: &Followers, ids: &[u8]) {
    if ids.is_empty() {
        return followers.tell_all();
    }
    let ids = String::from_utf8_lossy(ids);
    let ids: Vec<JobId> = ids.split(' ').filter_map(|id| id.parse().ok()).collect();
    followers.tell(&ids);
}

async fn wait_until_armed(mut armed: watch::Receiver<Arming>, place: &Place) -> Result<()> {
    let ready = armed.wait_for(|arming| !matches!(arming, Arming::Begun));
    if let Ok(Ok(arming)) = tokio::time::timeout(ARMING, ready).await {
        return match &*arming {
            Arming::Refused(error) => Err(Error::new(error.kind(), error.to_string())),
            Arming::Begun | Arming::Armed => Ok(()),
        };
    }
    let words = format!("redis at {} does not answer who wants to listen", place.shown());
    Err(Error::new(ErrorKind::Unavailable, words))
}

/// Subscribes to a channel, over and over.
fn start_hearing(
    place: Arc<Place>,
    channel: String,
    lives: Lives,
    tell: impl Fn(&[u8]) + Send + Sync + 'static,
) -> (Ear, watch::Receiver<Arming>) {
    let (armed, is_armed) = watch::channel(Arming::Begun);
    let hearing = async move {
        let mut pause = FIRST_PAUSE;
        loop {
            match hear(&place, &channel, lives.clone(), &tell, &armed).await {
                Ok(()) => pause = FIRST_PAUSE,
                Err(error) => Arming::note(&armed, error),
            }
            tokio::time::sleep(jittered(pause)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    };
    (Ear(tokio::spawn(hearing).abort_handle()), is_armed)
}

/// Listens until the connection ends, or that of the commands was made anew.
async fn hear(
    place: &Place,
    channel: &str,
    mut lives: Lives,
    tell: &(impl Fn(&[u8]) + Sync),
    armed: &watch::Sender<Arming>,
) -> Result<()> {
    lives.mark_unchanged();
    let client = place.dial().await?.client;
    let news = client.get_async_pubsub().await.map_err(|error| place.told(error))?;
    let (mut subscriber, mut messages) = news.split();
    subscriber.subscribe(channel).await.map_err(|error| place.told(error))?;
    armed.send_replace(Arming::Armed);
    // For what was told meanwhile.
    tell(b"");
    loop {
        tokio::select! {
            message = messages.next() => {
                let Some(message) = message else { return Ok(()) };
                tell(message.get_payload_bytes());
            }
            // The server may be another by now.
            _ = lives.changed() => return Ok(()),
            // A connection that is cut may not tell of it. To subscribe once more is answered like
            // the first time; a ping would take a further right.
            () = tokio::time::sleep(PULSE) => {
                let again = tokio::time::timeout(PULSE, subscriber.subscribe(channel)).await;
                let Ok(again) = again else { return Ok(()) };
                again.map_err(|error| place.told(error))?;
            }
        }
    }
}

/// Waits for entries of plain producers, over and over.
fn start_watching(
    place: Arc<Place>,
    lives: Lives,
    told: watch::Sender<()>,
    longest: Duration,
) -> (Ear, watch::Receiver<Arming>) {
    let (armed, is_armed) = watch::channel(Arming::Begun);
    let watching = async move {
        let mut pause = FIRST_PAUSE;
        loop {
            match watch_once(&place, lives.clone(), &told, (&armed, longest)).await {
                Ok(()) => pause = FIRST_PAUSE,
                Err(error) => {
                    let is_refused = error.kind() != ErrorKind::Unavailable;
                    Arming::note(&armed, error);
                    // It may be so for good: whoever waits is to look now and then.
                    if is_refused {
                        told.send_replace(());
                    }
                }
            }
            tokio::time::sleep(jittered(pause)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    };
    (Ear(tokio::spawn(watching).abort_handle()), is_armed)
}

async fn watch_once(
    place: &Place,
    mut lives: Lives,
    told: &watch::Sender<()>,
    (armed, longest): (&watch::Sender<Arming>, Duration),
) -> Result<()> {
    lives.mark_unchanged();
    let client = place.dial().await?.client;
    let connection = connect::connected(&client, None).await;
    let mut connection = connection.map_err(|error| place.told(error))?;
    let mut last = last_entry(&mut connection, place).await?;
    // May we look at all?
    let look = next_entry(&mut connection, &place.inbox, &last, None);
    look.await.map_err(|error| place.told(error))?;
    armed.send_replace(Arming::Armed);
    let mut rest = REST;
    loop {
        told.send_replace(());
        let since = Instant::now();
        tokio::time::sleep(rest).await;
        loop {
            let look = next_entry(&mut connection, &place.inbox, &last, Some(BLOCK));
            let found = tokio::select! {
                found = tokio::time::timeout(SILENCE, look) => found,
                _ = lives.changed() => return Ok(()),
            };
            let Ok(found) = found else { return Ok(()) };
            if found.map_err(|error| place.told(error))? {
                break;
            }
        }
        rest = if since.elapsed() < SOON { (rest * 2).min(longest) } else { REST };
        last = last_entry(&mut connection, place).await?;
    }
}

/// Whether there is an entry after this one, waiting a while for it or not at all.
async fn next_entry(
    connection: &mut MultiplexedConnection,
    inbox: &str,
    last: &str,
    wait: Option<Duration>,
) -> Result<bool, RedisError> {
    let mut look = redis::cmd("XREAD");
    look.arg("COUNT").arg(1);
    if let Some(wait) = wait {
        look.arg("BLOCK").arg(wait.as_millis().to_string());
    }
    look.arg("STREAMS").arg(inbox).arg(last);
    let found: Value = look.query_async(connection).await?;
    Ok(found != Value::Nil)
}

/// The last entry that was ever written.
async fn last_entry(connection: &mut MultiplexedConnection, place: &Place) -> Result<String> {
    let look = redis::cmd("XINFO").arg("STREAM").arg(&place.inbox).clone();
    let fields = match look.query_async::<Value>(connection).await {
        Ok(Value::Array(fields)) => fields,
        Ok(_) => return Err(value::garbled("the inbox")),
        Err(error) if error.detail().is_some_and(|words| words.contains("no such key")) => {
            return Ok("0-0".to_owned());
        }
        Err(error) => return Err(place.told(error)),
    };
    let mut fields = fields.into_iter();
    while let (Some(name), Some(field)) = (fields.next(), fields.next()) {
        if value::text(name)? == "last-generated-id" {
            return value::text(field);
        }
    }
    Err(value::garbled("the inbox"))
}
