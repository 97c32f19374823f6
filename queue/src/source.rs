//! What is looked at on a broker: a queue of ours, or a stream that others laid out and whose
//! workers are not ours. Of the latter there is a [`Backlog`] and nothing else: nothing is made,
//! taken or acknowledged there.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};

use crate::nats::Consumer;
use crate::redis::Group;
use crate::{Address, Backlog, Error, ErrorKind, OpenOptions, QueueUrl, Result, Warning, server};

/// What is looked at on a broker.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// A queue that Ebb laid out, by its name.
    Queue(String),
    /// A stream that others laid out.
    Foreign(Foreign),
}

/// A stream that others laid out, as one of its readers sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Foreign {
    /// A stream of JetStream, or the key of a Redis stream.
    pub stream: String,
    /// A durable consumer of JetStream, or a consumer group of Redis.
    pub reader: String,
}

/// How the readers of a stream are called, and by which key a trigger names one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// A consumer of JetStream.
    Consumer,
    /// A consumer group of Redis.
    Group,
}

impl Reader {
    /// The readers on this broker; none where they cannot be looked at.
    #[must_use]
    pub fn on(address: &Address) -> Option<Self> {
        match address {
            Address::Nats(_) => Some(Self::Consumer),
            Address::Redis(_) => Some(Self::Group),
            Address::Sqlite { .. } | Address::Amqp(_) => None,
        }
    }

    /// Whether a stream or a reader may have this name there.
    #[must_use]
    pub fn takes(self, name: &str) -> bool {
        let fits = |letter: char| match self {
            Self::Consumer => !letter.is_whitespace() && !".*>/\\".contains(letter),
            // Any bytes are a key; these are ones that one can read in a log.
            Self::Group => true,
        };
        // Of a URL with a password in it nothing is to come into a log.
        (1..=255).contains(&name.len())
            && !name.contains("://")
            && name.chars().all(|letter| !letter.is_control() && fits(letter))
    }
}

/// As in logs and labels, another for each: no queue has a slash in its name, and what is behind the
/// last one is the reader, with its own slashes as in a URL.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queue(name) => f.write_str(name),
            Self::Foreign(Foreign { stream, reader }) => {
                let reader = reader.replace('%', "%25").replace('/', "%2F");
                write!(f, "{stream}/{reader}")
            }
        }
    }
}

/// Opens what others laid out, to be looked at; creates nothing.
///
/// # Behavior
/// - [`Backlog::workers`] is always empty: who works there does not tell.
/// - What is in flight is what was handed out and not acknowledged, be it held or lost.
///
/// # Errors
/// [`ErrorKind::Missing`] for a stream or a reader that is not there, [`ErrorKind::Invalid`] for a
/// broker or a reader that does not tell what is in flight, and those of [`open`](crate::open).
// Boxed here: an `async fn` is compiled in each crate that awaits it, with all that it awaits.
#[inline(never)]
pub fn look_at<'a>(
    url: &'a QueueUrl,
    foreign: &'a Foreign,
    options: OpenOptions,
) -> BoxFuture<'a, Result<Arc<dyn Backlog>>> {
    Box::pin(async move {
        let backlog: Result<Arc<dyn Backlog>> = match &url.address {
            Address::Nats(nats) => {
                Consumer::open(nats, foreign, options).await.map(|open| Arc::new(open) as _)
            }
            Address::Redis(redis) => {
                Group::open(redis, foreign, options).await.map(|open| Arc::new(open) as _)
            }
            Address::Sqlite { .. } | Address::Amqp(_) => {
                let broker = url.address.broker();
                let words = format!("{broker}: only a queue of Ebb can be looked at there");
                Err(Error::new(ErrorKind::Invalid, words))
            }
        };
        backlog.map_err(server::distrusted)
    })
}

/// How often arrivals are looked for where they are not told.
const POLL: Duration = Duration::from_secs(1);

/// Tells of arrivals without cause, for where nobody tells of them.
pub(crate) fn polls() -> BoxStream<'static, ()> {
    stream::repeat(()).then(|()| tokio::time::sleep(POLL)).boxed()
}

/// Why arrivals are not told, where they are not.
#[derive(Debug, Default)]
pub(crate) struct Deaf(Mutex<Option<String>>);

impl Deaf {
    /// From now on they are looked for; with what the scaler's user is to be allowed.
    pub(crate) fn note(&self, why: impl fmt::Display, remedy: impl fmt::Display) {
        let words = format!(
            "arrivals are looked for once a second, since they are not told: {why}; let the \
             scaler's user {remedy}"
        );
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(words);
    }

    pub(crate) fn warnings(&self) -> Vec<Warning> {
        let words = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        words.into_iter().map(|text| Warning { code: "no_push", text }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{Foreign, Reader, Source};

    #[test]
    fn no_two_sources_have_one_label() {
        let of = |stream: &str, reader: &str| {
            let (stream, reader) = (stream.to_owned(), reader.to_owned());
            Source::Foreign(Foreign { stream, reader }).to_string()
        };
        assert_eq!(of("work", "embedder"), "work/embedder");
        let same = [of("a", "b/c"), of("a/b", "c"), of("a", "b%2Fc")];
        assert_eq!(same, ["a/b%2Fc", "a/b/c", "a/b%252Fc"]);
    }

    #[test]
    fn names_are_those_that_the_broker_takes() {
        for (name, on_nats, on_redis) in [
            ("work", true, true),
            ("WORK_2-x", true, true),
            ("work:{eu}/a.b", false, true),
            ("a b", false, true),
            ("a://b", false, false),
            ("a>", false, true),
            ("", false, false),
            ("a\nb", false, false),
        ] {
            let taken = (Reader::Consumer.takes(name), Reader::Group.takes(name));
            assert_eq!(taken, (on_nats, on_redis), "{name:?}");
        }
    }
}
