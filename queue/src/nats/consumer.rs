//! A JetStream consumer that others made and read, to be looked at: what it has not handed out yet,
//! and what it handed out and nobody acknowledged.
//!
//! Rights of a scaler: to publish on `$JS.API.CONSUMER.INFO.STREAM.CONSUMER`, and to subscribe to its
//! inbox. With `$JS.API.STREAM.INFO.STREAM` and the subjects of the stream to subscribe to, arrivals
//! are told as they come, else looked for once a second; with `$JS.API.DIRECT.GET.STREAM`, or
//! `$JS.API.STREAM.MSG.GET.STREAM` where the stream allows no direct gets, the age of the oldest job
//! is told.

mod hearing;
mod told;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::future::try_join_all;
use futures::stream::BoxStream;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::api::Api;
use super::awake::{Awake, Glance, Looked};
use super::bell::{self, Bell};
use super::connect::{self, Refusal};
use crate::source::{self, Deaf, Foreign};
use crate::{
    Backlog, Clock, Depth, Error, ErrorKind, Info, Link, NatsAddress, OpenOptions, Result,
    Timestamp, WorkerStatus,
};
use hearing::worth_hearing;
use told::{Config, Delivered, MOMENT, Told, consumer, heard, stream};

/// Who may not read the jobs is not asked for their age again for so long.
const BLIND_FOR: Duration = Duration::from_secs(60);

/// The least often that a busy stream is listened to anew.
const LONGEST_HUSH: Duration = Duration::from_millis(500);

/// The first message is read whole for its time, so not more often than this while it changes; and it
/// may be deleted without a word, so it counts for no longer than that.
const READ_AGAIN: Duration = Duration::from_secs(1);
const FORGOTTEN: Duration = Duration::from_secs(5);

/// Filters of a consumer whose first job is looked for; of more the age is not told.
const MOST_FILTERS: usize = 16;

/// A consumer of others; clones share its connection.
#[derive(Debug, Clone)]
pub(crate) struct Consumer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    api: Api,
    foreign: Foreign,
    /// As it was when it was opened.
    config: Config,
    created: String,
    link: Arc<Link>,
    clock: Arc<dyn Clock>,
    /// What to listen to; empty where nobody can.
    subjects: Vec<String>,
    is_direct: bool,
    deaf: Deaf,
    awake: Awake,
    first: Mutex<First>,
    handed: Mutex<Handed>,
}

/// How many messages were handed out, each counted once: one that is given back and handed out again
/// did not arrive again.
#[derive(Debug, Default)]
struct Handed {
    upto: Delivered,
    n: u64,
}

impl Handed {
    /// How many there are by now: of those handed out since no more are new than the consumer has come
    /// on in its stream.
    fn count(&mut self, now: &Delivered) -> u64 {
        let handed = now.consumer_seq.saturating_sub(self.upto.consumer_seq);
        self.n += handed.min(now.stream_seq.saturating_sub(self.upto.stream_seq));
        self.upto = *now;
        self.n
    }
}

/// The first job that was not handed out, as far as it was looked for.
#[derive(Debug, Clone, Copy)]
enum First {
    /// Leads to `Stored` and `Hidden`.
    Unknown,
    /// When it was stored, as long as the consumer has come as far and has no less to go; leads to
    /// `Unknown` after a while, and when nothing waits.
    Stored { after: u64, n_pending: u64, at: Option<Timestamp>, since: Instant },
    /// We may not read it; leads to `Unknown` after a while.
    Hidden { since: Instant },
}

impl First {
    /// What is said without asking again, where the consumer has come as far and has so many to go.
    fn still(self, after: u64, n_pending: u64, now: Instant) -> Option<Option<Timestamp>> {
        match self {
            Self::Stored { at, since, .. } if now < since + READ_AGAIN => Some(at),
            Self::Stored { after: known, n_pending: least, at: Some(at), since } => {
                let is_first = known == after && n_pending >= least && now < since + FORGOTTEN;
                is_first.then_some(Some(at))
            }
            Self::Hidden { since } if now < since + BLIND_FOR => Some(None),
            _ => None,
        }
    }
}

impl Consumer {
    /// Connects, and looks whether there is such a consumer.
    ///
    /// # Errors
    /// [`ErrorKind::Missing`] when it or its stream is not there, [`ErrorKind::Invalid`] when it does
    /// not tell what is in flight, and those of a connection.
    pub(crate) async fn open(
        address: &NatsAddress,
        foreign: &Foreign,
        options: OpenOptions,
    ) -> Result<Self> {
        let link = Arc::new(Link::new(format!("nats {}", address.server.shown())));
        let (client, refusal) = connect::connect(address, options.connect_timeout, &link).await?;
        let api = Api { client, refusal, replicas: address.replicas };
        let consumer = consumer(&api, foreign).await?;
        // Who may look at the consumer need not be allowed to look at its stream.
        let stream = match stream(&api, foreign).await {
            Err(error) if error.kind() == ErrorKind::Denied => None,
            told => told?,
        };
        let subjects = worth_hearing(stream.as_ref(), &consumer.config.filters());
        let is_direct = stream.is_some_and(|config| config["allow_direct"] == json!(true));
        Ok(Self(Arc::new(Shared {
            api,
            foreign: foreign.clone(),
            config: consumer.config,
            created: consumer.created,
            link,
            clock: options.clock,
            subjects,
            is_direct,
            deaf: Deaf::default(),
            awake: Awake::default(),
            first: Mutex::new(First::Unknown),
            handed: Mutex::default(),
        })))
    }

    /// What the server tells of it now.
    ///
    /// # Errors
    /// Also when it is another by now, or has other filters: then it is to be opened anew.
    async fn look(&self) -> Result<Told> {
        let Shared { api, foreign, config, created, .. } = &*self.0;
        let told = consumer(api, foreign).await?;
        if told.config == *config && told.created == *created {
            return Ok(told);
        }
        let Foreign { stream, reader } = foreign;
        let words = format!("the consumer {reader} of stream {stream} was changed or made anew");
        Err(Error::new(ErrorKind::Unavailable, words))
    }

    async fn glance(&self) -> Result<Glance> {
        Ok(self.look().await?.glance())
    }

    /// Listens from now on; none where that is refused, or there is nothing to listen to.
    async fn listen(&self) -> Result<Option<Bell>> {
        let Shared { api, subjects, .. } = &*self.0;
        if subjects.is_empty() {
            self.polls("the subjects of its stream cannot be listened to, or are not known");
            return Ok(None);
        }
        let begin = Instant::now();
        let bell = Bell::arm(&api.client, subjects).await?;
        // The server answers in turn: it has read the subscription when it answers this.
        self.look().await?;
        sleep(MOMENT).await;
        let Some(words) = unheard(&api.refusal, begin) else { return Ok(Some(bell)) };
        self.polls(&words);
        Ok(None)
    }

    fn polls(&self, why: &str) {
        let Shared { foreign, deaf, .. } = &*self.0;
        deaf.note(
            why,
            format_args!(
                "subscribe to the subjects of the stream {} and look at it ($JS.API.STREAM.INFO)",
                foreign.stream
            ),
        );
    }

    /// What comes next is another first.
    fn empty(&self) -> Option<Timestamp> {
        let mut first = self.0.first.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*first, First::Stored { .. }) {
            *first = First::Unknown;
        }
        None
    }

    /// When the first job was stored that was not handed out yet, where we may know.
    async fn oldest(&self, told: &Told) -> Option<Timestamp> {
        let (after, n_pending) = (told.delivered.stream_seq, told.num_pending);
        let known = *self.0.first.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = known.still(after, n_pending, Instant::now()) {
            return at;
        }
        let what = format!("GET.{}", self.0.foreign.stream);
        let found = heard(&self.0.api, &what, self.first_after(after, &told.config)).await;
        let (first, at) = match found {
            Ok(at) => (First::Stored { after, n_pending, at, since: Instant::now() }, at),
            Err(error) => {
                tracing::debug!(%error, "the age of the oldest job is not told");
                (First::Hidden { since: Instant::now() }, None)
            }
        };
        *self.0.first.lock().unwrap_or_else(PoisonError::into_inner) = first;
        at
    }

    async fn first_after(&self, after: u64, config: &Config) -> Result<Option<Timestamp>> {
        let filters = config.filters();
        if filters.len() > MOST_FILTERS {
            return Ok(None);
        }
        let filters = if filters.is_empty() { vec![">"] } else { filters };
        let firsts = filters.into_iter().map(|filter| self.first_on(after + 1, filter));
        Ok(try_join_all(firsts).await?.into_iter().flatten().min())
    }

    async fn first_on(&self, from: u64, filter: &str) -> Result<Option<Timestamp>> {
        let Shared { api, foreign, is_direct, .. } = &*self.0;
        if *is_direct {
            return Ok(api.next(&foreign.stream, from, filter).await?.map(|kept| kept.at));
        }
        let what = format!("STREAM.MSG.GET.{}", foreign.stream);
        let request = json!({ "seq": from, "next_by_subj": filter });
        let found: Option<Value> = api.call(&what, &request).await?;
        let time = found.as_ref().and_then(|found| found["message"]["time"].as_str());
        Ok(time.and_then(|time| time.parse().ok()))
    }
}

#[async_trait]
impl Backlog for Consumer {
    async fn depth(&self) -> Result<Depth> {
        let is_sure = |told: &Told| !told.is_empty() || told.n_servers() <= 1;
        let (once, glance) = (|| self.look(), || self.glance());
        let looked = self.0.awake.look(once, glance, Told::glance, is_sure).await?;
        let Looked { seen: told, age, waited } = looked;
        let now = told.ts.map_or_else(|| self.0.clock.now(), |at| at + age);
        let oldest = if told.num_pending > 0 { self.oldest(&told).await } else { self.empty() };
        let mut handed = self.0.handed.lock().unwrap_or_else(PoisonError::into_inner);
        let done = handed.count(&told.delivered).saturating_sub(told.num_ack_pending);
        Ok(Depth {
            ready: told.num_pending,
            in_flight: told.num_ack_pending,
            // Stored by the server's clock, as `ts` is.
            oldest_ready: oldest.map(|at| at.min(now)),
            done: Some(done),
            waited,
            ..Depth::empty(now)
        })
    }

    async fn workers(&self) -> Result<Vec<WorkerStatus>> {
        Ok(Vec::new())
    }

    async fn arrivals(&self) -> Result<BoxStream<'static, ()>> {
        let Some(first) = self.listen().await? else {
            return Ok(source::polls());
        };
        let (link, consumer) = (self.0.link.clone(), self.clone());
        let refusal = self.0.api.refusal.clone();
        let is_refused = move |since| unheard(&refusal, since).is_some();
        let refused = || Error::new(ErrorKind::Denied, "the subscription is refused");
        let listen = move || {
            let consumer = consumer.clone();
            async move { consumer.listen().await?.ok_or_else(refused) }
        };
        let told = bell::told(first, link, LONGEST_HUSH, is_refused, listen);
        let consumer = self.clone();
        let keep = async move { consumer.0.awake.keep(|| consumer.glance()).await };
        Ok(told.take_until(keep).boxed())
    }

    async fn info(&self) -> Result<Info> {
        let server = self.0.api.client.server_info();
        Ok(Info {
            broker: "nats",
            version: format!("NATS {}", server.version),
            max_body: None,
            warnings: self.0.deaf.warnings(),
            limits: &[],
        })
    }

    fn link(&self) -> &Link {
        &self.0.link
    }

    async fn close(&self) -> Result<()> {
        // Nothing is fetched.
        Ok(())
    }
}

/// Why nothing is heard since then.
fn unheard(refusal: &Refusal, since: Instant) -> Option<String> {
    refusal.since(since).filter(|words| words.contains("ubscription"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::told::Delivered;
    use super::{First, Handed};
    use crate::Timestamp;

    #[test]
    fn the_first_message_is_read_no_oftener_than_it_must_be_and_not_believed_for_ever() {
        let (since, at) = (Instant::now(), Some(Timestamp::UNIX_EPOCH));
        let stored = |at| First::Stored { after: 7, n_pending: 3, at, since };
        let hidden = First::Hidden { since };
        for (first, after, n_pending, millis, expected) in [
            (stored(at), 7, 3, 4_900, Some(at)),
            (stored(at), 7, 9, 4_900, Some(at)),
            // It may be gone: deleted, or too old.
            (stored(at), 7, 3, 5_000, None),
            (stored(at), 7, 2, 1_000, None),
            // Of a busy consumer it is another at each look.
            (stored(at), 99, 3, 999, Some(at)),
            (stored(at), 99, 3, 1_000, None),
            (stored(None), 7, 3, 999, Some(None)),
            (stored(None), 7, 3, 1_000, None),
            (hidden, 99, 3, 59_000, Some(None)),
            (hidden, 99, 3, 60_000, None),
            (First::Unknown, 7, 3, 0, None),
        ] {
            let told = first.still(after, n_pending, since + Duration::from_millis(millis));
            assert_eq!(told, expected, "{first:?} {after} {n_pending} {millis}");
        }
    }

    #[test]
    fn what_is_given_back_and_handed_out_again_did_not_arrive_again() {
        let mut handed = Handed::default();
        for (consumer_seq, stream_seq, expected) in [
            // It began at the end of a long stream.
            (2, 1_000, 2),
            (5, 1_003, 5),
            // A message that nobody can do.
            (5_000, 1_003, 5),
            (9_000, 1_004, 6),
            // Of a few in the stream.
            (9_001, 2_000, 7),
            // The consumer was set back.
            (0, 0, 7),
            (3, 3, 10),
        ] {
            let told = handed.count(&Delivered { consumer_seq, stream_seq });
            assert_eq!(told, expected, "{consumer_seq} {stream_seq}");
        }
    }
}
