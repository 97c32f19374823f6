//! The embedded broker: one SQLite file on a local disk, many processes.
//!
//! A handle and its clones share two threads that end with the last clone: `ebb-sqlite-writer` commits
//! what waits together, and `ebb-sqlite-reader` looks without ever waiting for a writer. Handles of a
//! file opened with the same [`Watchers`] share `ebb-sqlite-watcher`, which notices others' commits.

mod busy;
mod cancel;
mod claim;
mod dead;
mod depth;
mod failure;
mod mark;
mod names;
mod publish;
mod reader;
mod reply;
mod results;
mod schema;
mod settle;
mod signals;
mod stored;
mod sweep;
mod tx;
mod waiting;
mod watcher;
mod workers;
mod writer;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::follow;
use crate::owed::Owed;
use crate::{
    Backlog, Behavior, Broker, Clock, Delivery, Depth, Elsewhere, Error, ErrorKind, Frame, Info,
    Job, JobId, JobResult, Link, Missing, OpenOptions, Published, Purged, Receipt, Result,
    ResultStore, Settled, Settlement, Stored, Synchronous, Unsettled, Warning, WorkerStatus,
};
use claim::{Claim, Claimed};
use dead::{Step, Ttls, Which};
use failure::Outcome;
use reader::Reader;
use results::{Cursor, Piece};
use settle::Settling;
use signals::Signals;
use tx::{Counters, Millis, Tx, millis, span};
use watcher::Watcher;
pub use watcher::Watchers;
use writer::Writer;

/// A wait looks again at least this often, should a clock have jumped.
const LONGEST_NAP: Duration = Duration::from_secs(1);

/// A queue in a SQLite file; clones share its threads.
#[derive(Debug, Clone)]
pub struct SqliteQueue {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    file: Arc<File>,
    behavior: Behavior,
    synchronous: Synchronous,
    link: Link,
    worker: Arc<str>,
    clock: Arc<dyn Clock>,
    writer: Writer,
    reader: Reader,
    signals: Arc<Signals>,
    watchers: Watchers,
    watcher: OnceCell<Arc<Watcher>>,
}

/// Which file, and which queue in it.
#[derive(Debug)]
struct File {
    path: PathBuf,
    queue: i64,
}

/// A thread with a name, which ends when its work does.
fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.map(drop).map_err(|error| {
        Error::new(ErrorKind::Unavailable, format!("cannot start thread {name}")).caused_by(error)
    })
}

fn make_folder(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.map_or(Ok(()), std::fs::create_dir_all).map_err(|error| {
        let words = format!("cannot create the folder of {}", path.display());
        Error::new(ErrorKind::Unavailable, words).caused_by(error)
    })
}

impl SqliteQueue {
    /// Opens the file and the queue in it, or creates them with the folder, if that is allowed. Any
    /// number may do so at once.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when the file cannot be opened, [`ErrorKind::Incompatible`] when
    /// it holds something else or was written by a newer version, [`ErrorKind::Invalid`] when the
    /// queue is missing and must not be made.
    pub async fn open(
        path: &Path,
        queue: &str,
        synchronous: Synchronous,
        behavior: &Behavior,
        options: OpenOptions,
    ) -> Result<Self> {
        let (path, queue, behavior) = (path.to_owned(), queue.to_owned(), behavior.clone());
        let opening = tokio::task::spawn_blocking(move || {
            Self::open_here(&path, &queue, synchronous, behavior, options)
                .map_err(|failure| failure.into_error(&path))
        });
        opening.await.map_err(|error| {
            Error::new(ErrorKind::Internal, "opening the queue was cut short").caused_by(error)
        })?
    }

    fn open_here(
        path: &Path,
        queue: &str,
        synchronous: Synchronous,
        behavior: Behavior,
        options: OpenOptions,
    ) -> Outcome<Self> {
        let (db, number) = match options.missing {
            Missing::Create => {
                make_folder(path)?;
                let mut db = schema::open(path, synchronous)?;
                let number = schema::queue(&mut db, queue)?;
                (db, number)
            }
            Missing::Refuse => schema::find(path, queue, synchronous)?,
        };
        let file = Arc::new(File { path: path.to_owned(), queue: number });
        let reading = schema::connect(path)?;
        let counters = Counters::load(&reading, file.queue)?;
        let signals = Arc::new(Signals::new(counters.arrivals));
        let time = (options.clock.clone(), Ttls::of(&behavior));
        let shared = Shared {
            writer: Writer::start(db, file.clone(), signals.clone(), time)?,
            reader: Reader::start(reading, file.clone())?,
            link: Link::new(format!("sqlite:{}", file.path.display())),
            file,
            behavior,
            synchronous,
            worker: options.worker.into(),
            clock: options.clock,
            signals,
            watchers: options.watchers,
            watcher: OnceCell::new(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    fn now(&self) -> Millis {
        millis(self.shared.clock.now())
    }

    fn ttls(&self) -> Ttls {
        Ttls::of(&self.shared.behavior)
    }

    /// Makes sure that what other processes do is noticed from now on.
    async fn watch(&self) -> Result<()> {
        let shared = &self.shared;
        let start = || shared.watchers.start(&shared.file, &shared.signals);
        self.shared.watcher.get_or_try_init(start).await?;
        Ok(())
    }

    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Tx<'_>, Millis) -> Outcome<T> + Send + 'static,
    ) -> Result<T> {
        self.shared.writer.run(work).await
    }

    async fn claim(&self, max: NonZeroUsize) -> Result<Claimed> {
        let shared = &self.shared;
        let (worker, mark) = (shared.worker.clone(), rand::random());
        let (lease, ttls) = (span(shared.behavior.lease), self.ttls());
        let claim = move |tx: &mut Tx<'_>, now| {
            let until = now + lease;
            claim::claim(tx, &Claim { max: max.get(), now, until, worker, mark, ttls })
        };
        self.write(claim).await
    }

    /// Makes dead letters of the jobs whose deadline has passed by now.
    async fn bury_expired(&self) -> Result<()> {
        let ttls = self.ttls();
        let expire = move |tx: &mut Tx<'_>, now| dead::expire(tx, now, ttls);
        while self.write(expire).await? >= dead::STEP {}
        Ok(())
    }

    /// Changes dead letters, those included whose deadline has passed just now.
    async fn letters<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Tx<'_>, Millis) -> Outcome<T> + Send + 'static,
    ) -> Result<T> {
        self.bury_expired().await?;
        self.write(work).await
    }

    /// Goes on in small steps, between which others can write.
    async fn steps(
        &self,
        which: Which,
        step: fn(&mut Tx<'_>, Millis, &Which) -> Outcome<Step>,
    ) -> Result<u64> {
        let mut next = Some(which);
        let mut n_done = 0;
        while let Some(which) = next {
            let done = self.letters(move |tx, now| step(tx, now, &which)).await?;
            n_done += done.n_done;
            next = done.rest;
        }
        Ok(n_done)
    }
}

#[async_trait]
impl Backlog for SqliteQueue {
    async fn depth(&self) -> Result<Depth> {
        let now = self.shared.clock.now();
        let look = move |db: &_, queue| {
            let counters = Counters::load(db, queue)?;
            depth::depth(db, queue, &counters, now)
        };
        self.shared.reader.run(look).await
    }

    async fn workers(&self) -> Result<Vec<WorkerStatus>> {
        let now = self.now();
        self.shared.reader.run(move |db, queue| workers::alive(db, queue, now)).await
    }

    async fn arrivals(&self) -> Result<BoxStream<'static, ()>> {
        self.watch().await?;
        let arrivals = self.shared.signals.arrivals();
        // The watcher lives as long as the stream does.
        let told = stream::unfold((arrivals, self.clone()), |(mut arrivals, queue)| async move {
            arrivals.changed().await.ok()?;
            Some(((), (arrivals, queue)))
        });
        Ok(told.boxed())
    }

    async fn info(&self) -> Result<Info> {
        let shared = &self.shared;
        let warnings = match shared.synchronous {
            Synchronous::Full => Vec::new(),
            Synchronous::Normal => vec![Warning {
                code: "power_loss",
                text: "synchronous=normal: the last moments before a loss of power may be lost; \
                       set synchronous=full"
                    .to_owned(),
            }],
        };
        let version = format!("SQLite {}", rusqlite::version());
        Ok(Info { broker: "sqlite", version, max_body: None, warnings, limits: &[] })
    }

    fn link(&self) -> &Link {
        &self.shared.link
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl Broker for SqliteQueue {
    async fn publish(&self, jobs: Vec<Job>) -> Result<Vec<Published>> {
        let max_ready = self.shared.behavior.max_ready;
        self.write(move |tx, now| publish::publish(tx, now, &jobs, max_ready)).await
    }

    async fn receive(&self, max: NonZeroUsize, wait: Duration) -> Result<Vec<Delivery>> {
        let began = Instant::now();
        let mut arrivals = self.shared.signals.arrivals();
        loop {
            arrivals.mark_unchanged();
            let claimed = self.claim(max).await?;
            let left = wait.saturating_sub(began.elapsed());
            if !claimed.deliveries.is_empty() || left.is_zero() {
                return Ok(claimed.deliveries);
            }
            if !self.shared.watcher.initialized() {
                // Another look is due for what came before it watched.
                self.watch().await?;
                continue;
            }
            let due = claimed.next_due.map(|due| due.saturating_sub(self.now()).max(1));
            let due = due.map_or(LONGEST_NAP, |due| Duration::from_millis(due.cast_unsigned()));
            // Both an arrival and the end of the nap mean to look again.
            let nap = left.min(due).min(LONGEST_NAP);
            tokio::time::timeout(nap, arrivals.changed()).await.ok();
        }
    }

    async fn extend(&self, receipts: &[Receipt]) -> Result<Vec<Settled>> {
        let (receipts, lease) = (receipts.to_vec(), span(self.lease()));
        self.write(move |tx, now| settle::extend(tx, (now, lease), &receipts)).await
    }

    async fn cancellations(&self) -> Result<BoxStream<'static, JobId>> {
        self.watch().await?;
        cancel::told(self.clone()).await
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<Vec<Settled>, Unsettled> {
        let settlings: Vec<_> = settlements.iter().map(Settling::from).collect();
        let key_ttl = span(self.shared.behavior.key_ttl);
        Ok(self.write(move |tx, now| settle::settle(tx, now, key_ttl, &settlings)).await?)
    }

    async fn report(&self, status: &WorkerStatus) -> Result<()> {
        let status = status.clone();
        self.write(move |tx, now| workers::report(tx, now, &status)).await
    }

    async fn reply(&self, to: &str, result: &JobResult, traceparent: Option<&str>) -> Result<()> {
        let (to, traceparent) = (to.to_owned(), traceparent.map(str::to_owned));
        let owed = Owed { to, result: result.clone(), traceparent };
        let ttl = span(self.result_ttl());
        self.write(move |tx, now| reply::reply(tx, (now, ttl), &owed)).await
    }

    async fn purge_old(&self, elsewhere: Elsewhere) -> Result<Purged> {
        match self.shared.behavior.dead_ttl {
            Some(ttl) => self.letters(move |tx, now| waiting::old(tx, now, (ttl, elsewhere))).await,
            None => Ok(Purged::default()),
        }
    }

    fn lease(&self) -> Duration {
        self.shared.behavior.lease
    }
}

#[async_trait]
impl ResultStore for SqliteQueue {
    async fn put(&self, result: &JobResult) -> Result<Stored> {
        let (result, ttl) = (result.clone(), span(self.shared.behavior.result_ttl));
        self.write(move |tx, now| results::put(tx, now, ttl, &result)).await
    }

    async fn get(&self, id: &JobId) -> Result<Option<JobResult>> {
        let (now, id) = (self.now(), id.clone());
        self.shared.reader.run(move |db, queue| results::get(db, queue, now, &id)).await
    }

    async fn chunk(&self, id: &JobId, attempt: u32, seq: u64, body: Bytes) -> Result<Stored> {
        let seq = i64::try_from(seq)
            .map_err(|_| Error::new(ErrorKind::Invalid, "chunk seq is too large"))?;
        let (id, ttl) = (id.clone(), span(self.shared.behavior.result_ttl));
        let piece = Piece { id, attempt, seq, body };
        self.write(move |tx, now| results::chunk(tx, now, ttl, &piece)).await
    }

    async fn follow(&self, id: &JobId, from_seq: u64) -> Result<BoxStream<'static, Result<Frame>>> {
        let follower = self.shared.signals.followers.follow(id);
        self.watch().await?;
        let (queue, id) = (self.clone(), id.clone());
        let look = move |cursor| {
            let (queue, now, id) = (queue.clone(), queue.now(), id.clone());
            async move {
                let look = move |db: &_, n| results::frames(db, n, now, (&id, cursor));
                queue.shared.reader.run(look).await
            }
        };
        Ok(follow::frames(follower, Cursor::from_seq(from_seq), look))
    }

    fn result_ttl(&self) -> Duration {
        self.shared.behavior.result_ttl
    }
}
