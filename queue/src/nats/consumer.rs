//! A JetStream consumer that others made and read, to be looked at: what it has not handed out yet,
//! and what it handed out and nobody acknowledged.
//!
//! Rights of a scaler: to publish on `$JS.API.CONSUMER.INFO.STREAM.CONSUMER`, and to subscribe to its
//! inbox. With `$JS.API.STREAM.INFO.STREAM` and the subjects of the stream to subscribe to, arrivals
//! are told as they come, else looked for once a second; with `$JS.API.DIRECT.GET.STREAM`, or
//! `$JS.API.STREAM.MSG.GET.STREAM` where the stream allows no direct gets, the age of the oldest job
//! is told.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::try_join_all;
use futures::stream::BoxStream;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::api::Api;
use super::bell::{self, Bell};
use super::connect::{self, Refusal};
use super::progress::{Delivered, First, Handed};
use crate::source::{self, Foreign};
use crate::{
    Backlog, Clock, Depth, Error, ErrorKind, Info, Link, NatsAddress, OpenOptions, Result,
    Timestamp, Warning, WorkerStatus,
};

/// The server tells what it refuses apart from the request, at once; the client needs a moment more.
const MOMENT: Duration = Duration::from_millis(10);

/// The least often that a busy stream is listened to anew.
const LONGEST_HUSH: Duration = Duration::from_millis(500);

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
    /// Why arrivals are not told.
    deaf: Mutex<Option<String>>,
    first: Mutex<First>,
    handed: Mutex<Handed>,
}

/// A consumer as the server tells of it.
#[derive(Debug, Deserialize)]
struct Told {
    config: Config,
    /// When it was made.
    #[serde(default)]
    created: String,
    delivered: Delivered,
    #[serde(default)]
    num_pending: u64,
    #[serde(default)]
    num_ack_pending: u64,
    #[serde(default)]
    ts: Option<Timestamp>,
}

#[derive(Debug, PartialEq, Deserialize)]
struct Config {
    #[serde(default)]
    ack_policy: String,
    #[serde(default)]
    filter_subject: String,
    #[serde(default)]
    filter_subjects: Vec<String>,
}

impl Config {
    fn filters(&self) -> Vec<&str> {
        let one = Some(&*self.filter_subject).filter(|filter| !filter.is_empty());
        one.into_iter().chain(self.filter_subjects.iter().map(String::as_str)).collect()
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
            deaf: Mutex::default(),
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

    /// Listens from now on; none where that is refused, or there is nothing to listen to.
    async fn listen(&self) -> Result<Option<Bell>> {
        let Shared { api, subjects, .. } = &*self.0;
        if subjects.is_empty() {
            self.is_deaf("the subjects of its stream cannot be listened to, or are not known");
            return Ok(None);
        }
        let begin = Instant::now();
        let bell = Bell::arm(&api.client, subjects).await?;
        // The server answers in turn: it has read the subscription when it answers this.
        self.look().await?;
        sleep(MOMENT).await;
        let Some(words) = unheard(&api.refusal, begin) else { return Ok(Some(bell)) };
        self.is_deaf(&words);
        Ok(None)
    }

    fn is_deaf(&self, why: &str) {
        let words = format!(
            "arrivals are looked for once a second, since they are not told: {why}; let the \
             scaler's user subscribe to the subjects of the stream {} and look at it \
             ($JS.API.STREAM.INFO)",
            self.0.foreign.stream
        );
        *self.0.deaf.lock().unwrap_or_else(PoisonError::into_inner) = Some(words);
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
        let told = self.look().await?;
        let now = told.ts.unwrap_or_else(|| self.0.clock.now());
        let oldest = if told.num_pending > 0 { self.oldest(&told).await } else { self.empty() };
        let mut handed = self.0.handed.lock().unwrap_or_else(PoisonError::into_inner);
        let done = handed.count(&told.delivered).saturating_sub(told.num_ack_pending);
        Ok(Depth {
            ready: told.num_pending,
            in_flight: told.num_ack_pending,
            // Stored by the server's clock, as `ts` is.
            oldest_ready: oldest.map(|at| at.min(now)),
            done: Some(done),
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
        Ok(bell::told(first, link, LONGEST_HUSH, is_refused, listen))
    }

    async fn info(&self) -> Result<Info> {
        let server = self.0.api.client.server_info();
        let deaf = self.0.deaf.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let deaf = deaf.map(|text| Warning { code: "no_push", text });
        Ok(Info {
            broker: "nats",
            version: format!("NATS {}", server.version),
            max_body: None,
            warnings: deaf.into_iter().collect(),
            limits: &[],
        })
    }

    fn link(&self) -> &Link {
        &self.0.link
    }
}

/// Why nothing is heard since then.
fn unheard(refusal: &Refusal, since: Instant) -> Option<String> {
    refusal.since(since).filter(|words| words.contains("ubscription"))
}

async fn consumer(api: &Api, foreign: &Foreign) -> Result<Told> {
    let Foreign { stream, reader } = foreign;
    let what = format!("CONSUMER.INFO.{stream}.{reader}");
    let told: Option<Told> = heard(api, &what, api.call(&what, &json!({}))).await?;
    if let Some(told) = told {
        if told.config.ack_policy == "none" {
            let words = format!(
                "consumer: {reader} of stream {stream} has the ack_policy none: nobody tells what \
                 its workers hold, so a busy pool would be taken for an idle one; make it with \
                 explicit"
            );
            return Err(Error::new(ErrorKind::Invalid, words));
        }
        return Ok(told);
    }
    let words = match self::stream(api, foreign).await {
        Ok(None) => format!(
            "stream: JetStream has no stream {stream:?} in the account of the scaler; correct the \
             name in the trigger, or the account in the profile, or make the stream"
        ),
        Err(error) if error.kind() != ErrorKind::Denied => return Err(error),
        Ok(Some(_)) | Err(_) => format!(
            "consumer: the stream {stream:?} of JetStream has no consumer {reader:?}; correct the \
             name in the trigger, or make a durable consumer of that name (the scaler makes none)"
        ),
    };
    Err(Error::new(ErrorKind::Missing, words))
}

/// How the stream is set, where there is one.
async fn stream(api: &Api, foreign: &Foreign) -> Result<Option<Value>> {
    let what = format!("STREAM.INFO.{}", foreign.stream);
    Ok(heard(api, &what, api.stream(&foreign.stream)).await?.map(|info| info.config))
}

/// What is answered; or at once that it may not be asked, which is told apart from the answer that
/// would be waited for.
async fn heard<T>(api: &Api, what: &str, asked: impl Future<Output = Result<T>>) -> Result<T> {
    let begin = Instant::now();
    let refused = async {
        loop {
            sleep(MOMENT).await;
            if let Some(words) = api.refusal.since(begin).filter(|words| words.contains(what)) {
                return words;
            }
        }
    };
    tokio::select! {
        answer = asked => answer,
        words = refused => {
            let words = format!("the NATS server refused to be asked: {words}");
            Err(Error::new(ErrorKind::Denied, words))
        }
    }
}

/// What to listen to for what comes to a consumer with these filters, and as little else as can be:
/// the filters, or the subjects of a stream where it takes less, or other, than they say.
fn worth_hearing(stream: Option<&Value>, filters: &[&str]) -> Vec<String> {
    // What it copies from other streams comes on no subject.
    let copies = |config: &&Value| ["mirror", "sources"].iter().any(|key| !config[key].is_null());
    if stream.is_some_and(|config| copies(&config)) {
        return Vec::new();
    }
    let taken = stream.map(|config| {
        let subjects = config["subjects"].as_array().into_iter().flatten();
        subjects.filter_map(Value::as_str).collect::<Vec<_>>()
    });
    // What is stored under another subject than it came with fits no filter when it comes.
    let is_renamed = stream.is_some_and(|config| !config["subject_transform"].is_null());
    let taken_in_whole = |filter: &&str| {
        taken.as_ref().is_none_or(|taken| taken.iter().any(|subject| covers(subject, filter)))
    };
    let is_narrow = !is_renamed && !filters.is_empty() && filters.iter().all(taken_in_whole);
    let subjects = if is_narrow { filters.to_vec() } else { taken.unwrap_or_default() };
    // All that anybody says, our own questions too, is no news of this stream.
    if subjects.iter().any(|subject| covers(subject, "a.>")) {
        return Vec::new();
    }
    subjects.into_iter().map(str::to_owned).collect()
}

/// Whether a pattern of subjects holds all that another does.
fn covers(pattern: &str, other: &str) -> bool {
    let (mut pattern, mut other) = (pattern.split('.'), other.split('.'));
    loop {
        match (pattern.next(), other.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(one), Some(token)) if one == token => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{covers, worth_hearing};

    #[test]
    fn a_pattern_covers_what_it_holds_in_whole() {
        for (pattern, other, expected) in [
            ("work", "work", true),
            ("work", "work.a", false),
            ("work.*", "work.a", true),
            ("work.*", "work.*", true),
            ("work.*", "work.>", false),
            ("work.*", "work", false),
            ("work.>", "work.*.b", true),
            ("work.>", "work", false),
            ("work.a", "work.*", false),
            (">", "work.>", true),
            ("*.b", "a.b", true),
        ] {
            assert_eq!(covers(pattern, other), expected, "{pattern} {other}");
        }
    }

    #[test]
    fn as_little_is_listened_to_as_tells_of_every_arrival() {
        let many = json!({ "subjects": ["work.*", "more.>"] });
        let check = |stream: Option<&serde_json::Value>, filters: &[&str], expected: &[&str]| {
            assert_eq!(worth_hearing(stream, filters), expected, "{stream:?} {filters:?}");
        };
        check(Some(&many), &[], &["work.*", "more.>"]);
        check(Some(&many), &["work.a"], &["work.a"]);
        check(Some(&many), &["work.a", "more.b.c"], &["work.a", "more.b.c"]);
        // A filter that takes in more than the stream does is not listened to.
        check(Some(&many), &[">"], &["work.*", "more.>"]);
        check(Some(&many), &["*.a"], &["work.*", "more.>"]);
        let renamed = json!({ "subjects": ["in.>"], "subject_transform": { "dest": "work.>" } });
        check(Some(&renamed), &["work.a"], &["in.>"]);
        // What comes out of other streams is not heard, and one that takes everything says nothing.
        check(Some(&json!({ "mirror": {} })), &["work.a"], &[]);
        check(Some(&json!({ "subjects": ["work.*"], "sources": [{}] })), &[], &[]);
        check(Some(&json!({ "subjects": [">"] })), &[], &[]);
        check(Some(&json!({ "subjects": [">"] })), &["work.a"], &["work.a"]);
        // Who may not look at the stream listens to what the consumer says.
        check(None, &["work.a"], &["work.a"]);
        check(None, &[], &[]);
        check(None, &[">"], &[]);
    }
}
