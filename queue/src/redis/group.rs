//! A consumer group of a Redis stream that others made and read, to be looked at: what it has not
//! handed out yet, and what it handed out and nobody acknowledged.
//!
//! Rights of a scaler: `%R~STREAM +eval_ro +evalsha_ro +type +time +xinfo|groups +xrange +xlen`; with
//! `+xinfo|stream +xread` arrivals are told as they come, else looked for once a second.

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use redis::Value;
use tokio::sync::OnceCell;

use super::connect::Place;
use super::info;
use super::keeper::{Again, Keeper};
use super::news::Arrivals;
use super::script::{self, Call};
use super::value::{self, garbled, int, list, text};
use crate::source::{self, Deaf, Foreign};
use crate::{
    Backlog, Depth, Error, ErrorKind, Info, Link, OpenOptions, RedisAddress, Result, Timestamp,
    WorkerStatus,
};

/// Entries that are counted one by one where the server does not know how many are to come: it reads
/// them whole, and nobody else is answered meanwhile.
const MOST_COUNTED: u32 = 256;
const PAGE: u32 = 16;
/// No more are counted after so many bytes of them.
const MOST_READ: u32 = 1 << 20;

/// No entry is older: an id below was chosen by whoever wrote it, and is no time.
const FIRST_TIME: i64 = 1_000_000_000_000;

/// A consumer group of others; clones share its connections.
#[derive(Debug, Clone)]
pub(crate) struct Group(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    place: Arc<Place>,
    keeper: Keeper,
    foreign: Foreign,
    arrivals: OnceCell<Arrivals>,
    deaf: Deaf,
}

impl Group {
    /// Connects, and looks whether there is such a group.
    ///
    /// # Errors
    /// [`ErrorKind::Missing`] when it or its stream is not there, also when the key is none, and
    /// those of a connection.
    pub(crate) async fn open(
        address: &RedisAddress,
        foreign: &Foreign,
        options: OpenOptions,
    ) -> Result<Self> {
        let place = Arc::new(Place::foreign(address, &foreign.stream));
        let keeper = Keeper::open(place.clone(), options.connect_timeout).await?;
        let (arrivals, deaf, foreign) = (OnceCell::new(), Deaf::default(), foreign.clone());
        let group = Self(Arc::new(Shared { place, keeper, foreign, arrivals, deaf }));
        group.depth().await?;
        Ok(group)
    }

    /// What the script said instead of what it saw.
    fn not_seen(&self, what: &str, kind: Option<Value>) -> Error {
        let Foreign { stream, reader } = &self.0.foreign;
        let (kind, words) = match what {
            "none" => (
                ErrorKind::Missing,
                format!(
                    "stream: redis has no key {stream:?} in the database of the profile; correct \
                     the name in the trigger, or the database in the profile's URL, or make it: \
                     XGROUP CREATE {stream} {reader} 0 MKSTREAM"
                ),
            ),
            "group" => (
                ErrorKind::Missing,
                format!(
                    "consumerGroup: the stream {stream:?} of redis has no consumer group \
                     {reader:?}; correct the name in the trigger, or make it (the scaler makes \
                     none): XGROUP CREATE {stream} {reader} 0"
                ),
            ),
            "type" => {
                let kind = kind.and_then(|kind| text(kind).ok()).unwrap_or_default();
                let words = format!(
                    "stream: the key {stream:?} of redis is a {kind} and no stream; correct the \
                     name in the trigger"
                );
                (ErrorKind::Missing, words)
            }
            _ => return garbled("a group"),
        };
        Error::new(kind, words)
    }

    async fn listener(&self) -> Result<&Arrivals> {
        let Shared { place, keeper, arrivals, .. } = &*self.0;
        let start = || Arrivals::of_stream(place.clone(), keeper.watch());
        arrivals.get_or_try_init(start).await
    }
}

#[async_trait]
impl Backlog for Group {
    async fn depth(&self) -> Result<Depth> {
        let call = Call::new(&script::GROUP).text(&*self.0.foreign.reader);
        let call = call.number(MOST_COUNTED).number(PAGE).number(MOST_READ).reading();
        let mut seen = list(self.0.keeper.run(&call, Again::Yes).await?)?.into_iter();
        let what = seen.next().map(text).transpose()?.unwrap_or_default();
        if what != "seen" {
            return Err(self.not_seen(&what, seen.next()));
        }
        let mut next = || seen.next().ok_or_else(|| garbled("a group"));
        let (ready, in_flight, n_read) = (int(&next()?)?, int(&next()?)?, int(&next()?)?);
        let (first, now) = (text(next()?)?, value::moment(int(&next()?)?));
        let count = |n: i64| u64::try_from(n).unwrap_or(0);
        Ok(Depth {
            ready: count(ready),
            in_flight: count(in_flight),
            oldest_ready: written_at(&first, now),
            done: u64::try_from(n_read).ok().map(|n| n.saturating_sub(count(in_flight))),
            ..Depth::empty(now)
        })
    }

    async fn workers(&self) -> Result<Vec<WorkerStatus>> {
        Ok(Vec::new())
    }

    async fn arrivals(&self) -> Result<BoxStream<'static, ()>> {
        let told = match self.listener().await {
            Ok(arrivals) => arrivals.listen(),
            Err(error) if error.kind() == ErrorKind::Denied => {
                let Shared { foreign, deaf, .. } = &*self.0;
                let remedy =
                    format_args!("read the stream {} (+xread +xinfo|stream)", foreign.stream);
                deaf.note(error, remedy);
                return Ok(source::polls());
            }
            Err(error) => return Err(error),
        };
        // The listener lives as long as the stream does.
        let told = stream::unfold((told, self.clone()), |(mut told, group)| async move {
            told.changed().await.ok()?;
            Some(((), (told, group)))
        });
        Ok(told.boxed())
    }

    async fn info(&self) -> Result<Info> {
        Ok(Info {
            broker: "redis",
            version: info::version(&self.0.keeper).await?,
            max_body: None,
            warnings: self.0.deaf.warnings(),
            limits: &[],
        })
    }

    fn link(&self) -> &Link {
        self.0.keeper.link()
    }

    async fn close(&self) -> Result<()> {
        // Nothing is fetched.
        Ok(())
    }
}

/// When an entry was written, by the id that the server gave it.
fn written_at(id: &str, now: Timestamp) -> Option<Timestamp> {
    let (millis, _) = id.split_once('-')?;
    let millis = millis.parse().ok().filter(|millis| *millis >= FIRST_TIME)?;
    Some(value::moment(millis).min(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_is_no_time_tells_no_age() {
        let now = value::moment(1_800_000_000_000);
        for (id, millis) in [
            ("", None),
            ("1-0", None),
            ("1799999999000-3", Some(1_799_999_999_000)),
            // A clock that was set back.
            ("1900000000000-0", Some(1_800_000_000_000)),
            ("18446744073709551615-1", None),
        ] {
            assert_eq!(written_at(id, now), millis.map(value::moment), "{id}");
        }
    }
}
