//! From a URL to a broker: the only match over brokers.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

use crate::address::WithSecret;
use crate::amqp::AmqpQueue;
use crate::apart::Apart;
use crate::claim::{self, Payloads};
use crate::job::parse_span;
use crate::moved::Trail;
use crate::nats::NatsQueue;
use crate::redis::RedisQueue;
use crate::server;
use crate::sqlite::{SqliteQueue, Watchers};
use crate::{
    Address, AnyQueue, Behavior, Clock, Error, ErrorKind, Result, Synchronous, SystemClock,
    WorkerId,
};

/// A queue on a broker, with all that one may do to it.
pub type Queue = Arc<dyn AnyQueue>;

/// The queue that is meant when a URL names none.
pub const DEFAULT_QUEUE: &str = "jobs";

/// A broker's address, a queue on it, and how that queue behaves.
///
/// `sqlite:PATH`, `nats://HOST`, `amqp://HOST/VHOST` or `redis://HOST/DATABASE`, each followed by
/// `[?queue=NAME&lease=30s&result_ttl=1d&key_ttl=1d&dead_ttl=SPAN&max_ready=N]` and options of its
/// own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueUrl {
    /// Which broker, and where.
    pub address: Address,
    /// The queue on that broker: 1 to 64 of `a-z A-Z 0-9 . _ -`.
    pub queue: String,
    /// How the queue behaves, the same on every broker.
    pub behavior: Behavior,
}

/// Who opens a queue, and how.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Stands in the history of the jobs that this handle receives.
    pub worker: WorkerId,
    /// What it takes the time from.
    pub clock: Arc<dyn Clock>,
    /// What to do where the queue is missing on its broker.
    pub missing: Missing,
    /// How long the first connect may take.
    pub connect_timeout: Duration,
    /// Where answers go, when not where the jobs are.
    pub results: Option<Results>,
    /// Where large bodies go; without it all bodies travel with their jobs.
    pub payloads: Option<Payloads>,
    /// What to do about a job that has gone on to another queue.
    pub moved: Moved,
    /// Who notices what is committed to SQLite files; clones of these options share it.
    pub watchers: Watchers,
}

/// What to do where a queue is missing on its broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Missing {
    /// Create it.
    #[default]
    Create,
    /// Say that it is missing, and how to make it; create nothing.
    Refuse,
}

/// What who asks for an answer gets when its job has gone on to another queue of the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Moved {
    /// The answer, from there.
    #[default]
    Follow,
    /// The record that says where it went, see [`JobResult::moved`](crate::JobResult::moved).
    Show,
}

/// A store of answers apart from the queue of their jobs.
#[derive(Clone)]
pub struct Results(pub Queue);

impl fmt::Debug for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Results")
    }
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            worker: format!("pid-{}", std::process::id()),
            clock: Arc::new(SystemClock),
            missing: Missing::Create,
            connect_timeout: Duration::from_secs(10),
            results: None,
            payloads: None,
            moved: Moved::default(),
            watchers: Watchers::default(),
        }
    }
}

/// Opens the queue that the URL names, creating it where it is missing and that is allowed.
///
/// # Errors
/// [`ErrorKind::Invalid`] for an address that cannot be right, [`ErrorKind::Unavailable`] for a
/// broker that does not answer, [`ErrorKind::Denied`] for one that does not let us in,
/// [`ErrorKind::Incompatible`] for data of another version or a queue that does not fit, with what
/// differs.
// Boxed here: an `async fn` is compiled in each crate that awaits it, with all that it awaits.
#[inline(never)]
pub fn open(url: &QueueUrl, options: OpenOptions) -> BoxFuture<'_, Result<Queue>> {
    Box::pin(async move {
        let (payloads, clock) = (options.payloads.clone(), Arc::clone(&options.clock));
        let queue = open_plain(url, options).await.map_err(server::distrusted)?;
        Ok(match payloads {
            Some(payloads) => claim::over(queue, payloads, url.behavior.result_ttl, clock).await?,
            None => queue,
        })
    })
}

/// A queue whose bodies all travel with their jobs.
async fn open_plain(url: &QueueUrl, options: OpenOptions) -> Result<Queue> {
    let results = options.results.clone();
    let (moved, trail, clock) = (options.moved, options.clone(), Arc::clone(&options.clock));
    let queue = open_single(url, options).await?;
    if matches!(url.address, Address::Amqp(_)) {
        // Keeps no answers of its own, so it asks the store itself.
        return Ok(queue);
    }
    let queue = match moved {
        Moved::Follow => Arc::new(Trail::new(queue, url.clone(), trail)),
        Moved::Show => queue,
    };
    Ok(match results {
        Some(Results(answers)) => Arc::new(Apart::new(queue, answers, clock)),
        None => queue,
    })
}

/// A queue as its broker has it.
pub(crate) async fn open_single(url: &QueueUrl, options: OpenOptions) -> Result<Queue> {
    open_there(url, options).await.map_err(|error| error.at(url))
}

async fn open_there(url: &QueueUrl, options: OpenOptions) -> Result<Queue> {
    let QueueUrl { address, queue: name, behavior } = url;
    Ok(match address {
        Address::Sqlite { path, synchronous } => {
            Arc::new(SqliteQueue::open(path, name, *synchronous, behavior, options).await?)
        }
        Address::Nats(nats) => Arc::new(NatsQueue::open(nats, name, behavior, options).await?),
        Address::Redis(redis) => Arc::new(RedisQueue::open(redis, name, behavior, options).await?),
        Address::Amqp(amqp) => Arc::new(AmqpQueue::open(amqp, name, behavior, options).await?),
    })
}

impl QueueUrl {
    /// Another queue on the same broker.
    ///
    /// # Errors
    /// When the name is not one.
    pub fn with_queue(&self, name: &str) -> Result<Self> {
        check_queue(name)?;
        Ok(Self { queue: name.to_owned(), ..self.clone() })
    }

    /// The embedded queue in this file.
    #[must_use]
    pub fn sqlite(path: impl Into<std::path::PathBuf>) -> Self {
        Self {
            address: Address::Sqlite { path: path.into(), synchronous: Synchronous::default() },
            queue: DEFAULT_QUEUE.to_owned(),
            behavior: Behavior::default(),
        }
    }
}

impl FromStr for QueueUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (scheme, rest) = text.split_once(':').ok_or_else(|| {
            invalid(
                text,
                "it has no scheme; write sqlite:PATH, such as sqlite:/var/lib/ebb/queue.db",
            )
        })?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let address = match scheme {
            "sqlite" => {
                let path = place.strip_prefix("//").unwrap_or(place);
                if path.is_empty() {
                    return Err(invalid(text, "it names no file; write sqlite:PATH"));
                }
                Address::Sqlite { path: path.into(), synchronous: Synchronous::default() }
            }
            "nats" | "tls" | "amqp" | "amqps" | "redis" | "rediss" => {
                Address::parse(scheme, place).map_err(|remedy| invalid(text, &remedy))?
            }
            _ => {
                let remedy = "its scheme is not known; use sqlite:PATH, nats://HOST, amqp://HOST or \
                              redis://HOST";
                return Err(invalid(text, remedy));
            }
        };
        let (queue, behavior) = (DEFAULT_QUEUE.to_owned(), Behavior::default());
        let mut url = Self { address, queue, behavior };
        let mut has_key_ttl = false;
        for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let taken = url.address.set(&key, &value).map_err(|remedy| invalid(text, &remedy))?;
            if !taken {
                url.set(text, &key, &value)?;
                has_key_ttl |= key == "key_ttl";
            }
        }
        if !has_key_ttl {
            url.behavior.key_ttl = url.behavior.key_ttl.max(url.behavior.result_ttl);
        }
        url.behavior.check().map_err(|remedy| invalid(text, &remedy))?;
        url.address.check().map_err(|remedy| invalid(text, &remedy))?;
        Ok(url)
    }
}

impl QueueUrl {
    /// The URL with its password, for a process of ours; never to be logged.
    #[must_use]
    pub fn with_secrets(&self) -> String {
        let mut text = String::new();
        // Writing into a string cannot fail.
        self.write(&mut text, WithSecret::Yes).unwrap_or_default();
        text
    }

    fn write(&self, f: &mut impl fmt::Write, with_secret: WithSecret) -> fmt::Result {
        let (behavior, usual) = (&self.behavior, Behavior::default());
        self.address.write(f, with_secret)?;
        write!(f, "?queue={}", self.queue)?;
        let spans = [
            ("lease", Some(behavior.lease), Some(usual.lease)),
            ("result_ttl", Some(behavior.result_ttl), Some(usual.result_ttl)),
            ("key_ttl", Some(behavior.key_ttl), Some(usual.key_ttl)),
            ("dead_ttl", behavior.dead_ttl, None),
        ];
        // What nobody chose would only hide what somebody did.
        for (name, span, usual) in spans {
            if let Some(span) = span.filter(|span| Some(*span) != usual) {
                write!(f, "&{name}={}ms", span.as_millis())?;
            }
        }
        if let Some(limit) = behavior.max_ready {
            write!(f, "&max_ready={limit}")?;
        }
        self.address.write_options(f)
    }

    fn set(&mut self, text: &str, key: &str, value: &str) -> Result<()> {
        let behavior = &mut self.behavior;
        match key {
            "queue" => {
                check_queue(value)?;
                value.clone_into(&mut self.queue);
            }
            "lease" => {
                behavior.lease = parse_span("option lease", value)?;
                if behavior.lease < Duration::from_millis(100) {
                    return Err(invalid(text, "option lease is 100ms or more"));
                }
            }
            "result_ttl" => behavior.result_ttl = parse_span("option result_ttl", value)?,
            "key_ttl" => behavior.key_ttl = parse_span("option key_ttl", value)?,
            "dead_ttl" => {
                let span = parse_span("option dead_ttl", value)?;
                behavior.dead_ttl = Some(span).filter(|span| !span.is_zero());
            }
            "max_ready" => {
                let limit = value.parse().map_err(|_| {
                    invalid(text, "option max_ready is a number of jobs, such as 100000")
                })?;
                behavior.max_ready = Some(limit);
            }
            other => {
                let own = self.address.options();
                let known =
                    format!("queue, lease, result_ttl, key_ttl, dead_ttl, max_ready, {own}");
                // The rest of a password with a question mark in it is no name.
                let is_name =
                    other.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
                let named = if is_name { format!("option {other}") } else { "an option".into() };
                return Err(invalid(text, &format!("{named} is not known; use {known}")));
            }
        }
        Ok(())
    }
}

/// Parses back to the same URL, but for a password, which is left out.
impl fmt::Display for QueueUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, WithSecret::No)
    }
}

pub(crate) fn check_queue(name: &str) -> Result<()> {
    let fits = (1..=64).contains(&name.len());
    if fits && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) {
        return Ok(());
    }
    let words = format!("queue name {name:?} is not valid; use 1 to 64 of a-z A-Z 0-9 . _ -");
    Err(Error::new(ErrorKind::Invalid, words))
}

/// Where replies are jobs in another queue, the address is the name of that queue.
pub(crate) fn check_reply_to(to: &str) -> Result<()> {
    check_queue(to)
        .map_err(|error| Error::new(ErrorKind::Invalid, format!("ebb-reply-to: {error}")))
}

fn invalid(url: &str, remedy: &str) -> Error {
    let shown = without_secrets(url);
    Error::new(ErrorKind::Invalid, format!("queue URL {shown:?} is not valid: {remedy}"))
}

/// Anything before an @ may be a password, and so may any option.
fn without_secrets(url: &str) -> &str {
    match url.split_once('?') {
        // A password with a question mark in it, or one among the options.
        Some((place, options)) if options.contains('@') => {
            place.split_once(':').map_or("", |(scheme, _)| scheme)
        }
        Some((place, _)) => without_secrets(place),
        None => url.rsplit_once('@').map_or(url, |(_, host)| host),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<QueueUrl> {
        text.parse()
    }

    #[test]
    fn a_path_is_all_it_takes() {
        for (text, path) in [
            ("sqlite:queue.db", "queue.db"),
            ("sqlite:/var/lib/ebb/queue.db", "/var/lib/ebb/queue.db"),
            ("sqlite:///var/lib/ebb/queue.db", "/var/lib/ebb/queue.db"),
            ("sqlite:./a b/queue.db?queue=jobs", "./a b/queue.db"),
            ("sqlite:////share/queue.db", "//share/queue.db"),
        ] {
            assert_eq!(parse(text).unwrap(), QueueUrl::sqlite(path), "{text}");
        }
    }

    #[test]
    fn every_option_is_read() {
        let url = parse(
            "sqlite:q.db?queue=alerts.v1&lease=1500ms&result_ttl=2h&key_ttl=7d&dead_ttl=30d\
             &max_ready=100&synchronous=normal",
        );
        let url = url.unwrap();
        assert_eq!(url.queue, "alerts.v1");
        let synchronous = Synchronous::Normal;
        assert_eq!(url.address, Address::Sqlite { path: "q.db".into(), synchronous });
        let expected = Behavior {
            lease: Duration::from_millis(1500),
            result_ttl: Duration::from_secs(7200),
            key_ttl: Duration::from_secs(7 * 86_400),
            dead_ttl: Some(Duration::from_secs(30 * 86_400)),
            max_ready: Some(100),
        };
        assert_eq!(url.behavior, expected);
    }

    #[test]
    fn a_url_is_shown_with_what_somebody_chose() {
        for (text, shown) in [
            ("sqlite:q.db?lease=30s&result_ttl=24h", "sqlite:q.db?queue=jobs"),
            ("sqlite:q.db?lease=5s&max_ready=9", "sqlite:q.db?queue=jobs&lease=5000ms&max_ready=9"),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), shown);
        }
    }

    #[test]
    fn names_are_known_for_as_long_as_answers_unless_it_is_said() {
        for (options, days) in [("", 1), ("result_ttl=7d", 7), ("result_ttl=1h", 1)] {
            let behavior = parse(&format!("sqlite:q.db?{options}")).unwrap().behavior;
            assert_eq!(behavior.key_ttl, Duration::from_secs(days * 86_400), "{options}");
        }
    }

    #[test]
    fn dead_letters_are_kept_for_ever_unless_a_span_is_given() {
        for text in ["sqlite:q.db", "sqlite:q.db?dead_ttl=0", "sqlite:q.db?dead_ttl=0s"] {
            assert_eq!(parse(text).unwrap().behavior.dead_ttl, None, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_the_remedy() {
        for (text, part) in [
            ("queue.db", "sqlite:PATH"),
            ("sqlite:", "names no file"),
            ("mysql:queue.db", "scheme is not known"),
            ("sqlite:q.db?queue=a/b", "use 1 to 64 of"),
            ("sqlite:q.db?queue=", "use 1 to 64 of"),
            ("sqlite:q.db?lease=10ms", "100ms or more"),
            ("sqlite:q.db?lease=soon", "option lease"),
            ("sqlite:q.db?lease=99999d", "ten years"),
            ("sqlite:q.db?key_ttl=1h", "set result_ttl to 3600s or less"),
            ("sqlite:q.db?key_ttl=1h", "result_ttl (86400s, its default)"),
            ("sqlite:q.db?key_ttl=7d&result_ttl=8d", "leave key_ttl out"),
            ("sqlite:q.db?result_ttl=10s", "set result_ttl to 30s or more"),
            ("sqlite:q.db?lease=2d", "result_ttl (86400s, its default) is shorter than lease"),
            ("sqlite:q.db?dead_ttl=never", "option dead_ttl"),
            ("sqlite:q.db?max_ready=-1", "option max_ready"),
            ("sqlite:q.db?synchronous=off", "full or normal"),
            ("sqlite:q.db?colour=red", "option colour is not known"),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{text}");
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        let error = parse("nats://me:secret@host:4222?colour=red").unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
        assert!(error.to_string().contains("host:4222"), "{error}");
        for (text, shown) in [
            ("redis://host?password=secret", "\"redis://host\" is not valid: option password"),
            ("redis://host?password=a@secret", "\"redis\" is not valid"),
            ("redis://:a@b?secret@host", "\"redis\" is not valid: an option is not known"),
            ("mysql://me:secret@host?x=1", "\"host\" is not valid"),
        ] {
            let told = parse(text).unwrap_err().to_string();
            assert!(told.contains(shown) && !told.contains("secret"), "{text}: {told}");
        }
    }

    #[test]
    fn another_queue_is_on_the_same_broker() {
        let url = parse("sqlite:q.db?lease=5s").unwrap();
        let alerts = url.with_queue("alerts").unwrap();
        assert_eq!(alerts, QueueUrl { queue: "alerts".to_owned(), ..url.clone() });
        assert_eq!(url.with_queue("a b").unwrap_err().kind(), ErrorKind::Invalid);
    }

    #[tokio::test]
    async fn what_is_opened_is_the_queue_that_was_named() {
        let folder = tempfile::tempdir().unwrap();
        let url = QueueUrl::sqlite(folder.path().join("new").join("queue.db"));
        let queue = open(&url, OpenOptions::default()).await.unwrap();
        let job = crate::Job::new("body", crate::Timestamp::UNIX_EPOCH);
        queue.publish(vec![job]).await.unwrap();
        let alerts = url.with_queue("alerts").unwrap();
        let alerts = open(&alerts, OpenOptions::default()).await.unwrap();
        assert_eq!(alerts.depth().await.unwrap().ready, 0);
        let again = open(&url, OpenOptions::default()).await.unwrap();
        assert_eq!(again.depth().await.unwrap().ready, 1);
    }

    proptest! {
        #[test]
        fn a_url_is_read_back_as_it_was_written(
            path in "/{0,3}[a-zA-Z0-9._%+& -][a-zA-Z0-9._%+&/ -]{0,40}",
            queue in "[a-zA-Z0-9._-]{1,64}",
            (lease, result_more, key_more) in (100..1_000_000u64, 0..10u64.pow(11), 0..10u64.pow(11)),
            dead_ttl in prop::option::of(1..10u64.pow(11)),
            max_ready: Option<u64>,
            is_full: bool,
        ) {
            let synchronous = if is_full { Synchronous::Full } else { Synchronous::Normal };
            let url = QueueUrl {
                address: Address::Sqlite { path: path.into(), synchronous },
                queue,
                behavior: Behavior {
                    lease: Duration::from_millis(lease),
                    result_ttl: Duration::from_millis(lease + result_more),
                    key_ttl: Duration::from_millis(lease + result_more + key_more),
                    dead_ttl: dead_ttl.map(Duration::from_millis),
                    max_ready,
                },
            };
            prop_assert_eq!(parse(&url.to_string()).unwrap(), url);
        }

        #[test]
        fn no_text_makes_it_panic(text in "(sqlite:)?.{0,40}") {
            if let Ok(url) = parse(&text) {
                prop_assert_eq!(parse(&url.to_string()).unwrap(), url);
            }
        }
    }
}
