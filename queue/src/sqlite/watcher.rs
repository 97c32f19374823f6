//! Notices what other processes have committed.
//!
//! A commit appends to the write-ahead log, which inotify tells a little before the commit can be
//! seen; so the watcher looks again and again from then on, until it sees it and a little longer:
//! the next commit may have been told already. Elsewhere than on Linux, and where inotify cannot
//! be had, it looks a hundred times a second. One thread per handle, started with the first
//! subscription; it does not wake while nothing is written, but for one look a second.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::failure::Outcome;
use super::signals::Signals;
use super::{File, busy, schema};
use crate::{Error, ErrorKind, JobId, Result};

/// The first pause between two looks for a commit that is under way; they grow with the wait.
const FIRST_PAUSE: Duration = Duration::from_micros(200);

/// The longest.
const LAST_PAUSE: Duration = Duration::from_millis(10);

/// No commit is looked for longer than this; the look once a second finds what comes later.
const LONGEST: Duration = Duration::from_millis(500);

/// How long it looks on after a commit: another may have been told together with that one, and be
/// seen only now.
const TAIL: Duration = Duration::from_millis(50);

/// The first pause after a commit: many in a row are told as few.
const FIRST_TAIL_PAUSE: Duration = Duration::from_millis(1);

/// The first pause after a commit that had nothing for who waits here. A file may hold many queues,
/// and each handle in it is woken by every commit: fifty of them would keep a processor busy.
const FIRST_PAUSE_OF_OTHERS: Duration = Duration::from_millis(5);

/// The pause between two looks where nobody tells of writes: half the time within which an arrival
/// is to be told.
const PULSE: Duration = Duration::from_millis(10);

/// News that one look reads at most.
const STEP: usize = 1000;

/// Keeps the thread running.
#[derive(Debug)]
pub(super) struct Watcher {
    _stop: oneshot::Sender<()>,
}

impl Watcher {
    /// Returns once nothing that is committed from now on goes unnoticed.
    pub(super) async fn start(file: Arc<File>, signals: Arc<Signals>) -> Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let (ready, armed) = oneshot::channel();
        super::spawn("ebb-sqlite-watcher", move || match arm(&file, signals) {
            Ok((runtime, eye)) => {
                // Who asked may have gone meanwhile; then `stopped` says so.
                ready.send(Ok(())).ok();
                runtime.block_on(eye.watch(stopped));
            }
            Err(error) => {
                ready.send(Err(error)).ok();
            }
        })?;
        armed.await.map_err(|_| super::writer::gone())??;
        Ok(Self { _stop: stop })
    }
}

fn arm(file: &Arc<File>, signals: Arc<Signals>) -> Result<(tokio::runtime::Runtime, Eye)> {
    let broken = |error: std::io::Error| {
        let words = format!("cannot watch queue file {}", file.path.display());
        Error::new(ErrorKind::Unavailable, words).caused_by(error)
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(broken)?;
    let eye = {
        let _guard = runtime.enter();
        Eye::new(file, signals, Stir::new).map_err(|failure| failure.into_error(&file.path))?
    };
    Ok((runtime, eye))
}

/// What a look has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// No commit.
    Nothing,
    /// A commit that nobody here waits for.
    Others,
    /// One with news.
    Ours,
}

/// What the watcher has seen so far.
struct Eye {
    db: Connection,
    stir: Stir,
    file: Arc<File>,
    signals: Arc<Signals>,
    /// SQLite's count of the commits of others.
    version: i64,
    /// The last result and the last chunk told, while somebody follows one.
    tail: Option<(i64, i64)>,
}

impl Eye {
    fn new(
        file: &Arc<File>,
        signals: Arc<Signals>,
        stir: impl FnOnce(&Path) -> Stir,
    ) -> Outcome<Self> {
        // The log exists once a connection has read.
        let db = schema::connect(&file.path)?;
        let stir = stir(&file.path);
        let mut eye = Self { db, stir, file: file.clone(), signals, version: -1, tail: None };
        eye.look()?;
        Ok(eye)
    }

    async fn watch(mut self, mut stopped: oneshot::Receiver<()>) {
        loop {
            tokio::select! {
                _ = &mut stopped => return,
                stirred = self.stir.wait() => {
                    if stirred {
                        self.look_out().await;
                    } else {
                        self.try_look();
                    }
                }
            }
        }
    }

    /// Looks until it has seen a commit and then none for a while.
    async fn look_out(&mut self) {
        let begun = Instant::now();
        let (mut since, mut patience, mut first_pause) = (begun, LONGEST, FIRST_PAUSE);
        while since.elapsed() < patience && begun.elapsed() < 2 * LONGEST {
            let pause = match self.try_look() {
                Seen::Nothing => None,
                Seen::Others => Some(FIRST_PAUSE_OF_OTHERS),
                Seen::Ours => Some(FIRST_TAIL_PAUSE),
            };
            if let Some(pause) = pause {
                (since, patience, first_pause) = (Instant::now(), TAIL, pause);
            }
            busy::pause((since.elapsed() / 10).clamp(first_pause, LAST_PAUSE));
        }
        // Lets the end of the handle be heard.
        tokio::task::yield_now().await;
    }

    fn try_look(&mut self) -> Seen {
        self.look().unwrap_or_else(|failure| {
            let error = failure.into_error(&self.file.path);
            tracing::warn!(%error, "cannot look for news");
            Seen::Nothing
        })
    }

    /// Tells what is new, and whether anything was.
    fn look(&mut self) -> Outcome<Seen> {
        let version =
            self.db.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
        let followed = !self.signals.followers.is_empty();
        let is_new = version != self.version;
        if !is_new && self.tail.is_some() == followed {
            return Ok(Seen::Nothing);
        }
        let sql = "SELECT arrivals FROM queues WHERE id = ?1";
        let arrivals =
            self.db.prepare_cached(sql)?.query_row([self.file.queue], |row| row.get(0))?;
        let is_told = self.signals.tell_arrivals(arrivals);
        match self.tail {
            Some(tail) if followed => self.tell_from(tail)?,
            _ if followed => {
                self.tail = Some((self.last("results")?, self.last("chunks")?));
                self.signals.followers.tell_all();
            }
            _ => self.tail = None,
        }
        // Only now: what a failed look has not told is new to the next one.
        self.version = version;
        Ok(match is_new {
            false => Seen::Nothing,
            // Results come in many commits, and who follows one is in a hurry.
            true if is_told || followed => Seen::Ours,
            true => Seen::Others,
        })
    }

    fn last(&self, table: &str) -> Outcome<i64> {
        let sql = format!("SELECT coalesce(max(n), 0) FROM {table}");
        Ok(self.db.prepare_cached(&sql)?.query_row([], |row| row.get(0))?)
    }

    fn tell_from(&mut self, (mut result, mut chunk): (i64, i64)) -> Outcome<()> {
        for (table, last) in [("results", &mut result), ("chunks", &mut chunk)] {
            let sql = format!("SELECT n, queue, id FROM {table} WHERE n > ?1 ORDER BY n LIMIT ?2");
            loop {
                let mut statement = self.db.prepare_cached(&sql)?;
                let rows = statement.query_map((*last, STEP as i64), |row| {
                    Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, String>(2)?))
                })?;
                let rows: Vec<_> = rows.collect::<std::result::Result<_, _>>()?;
                let ours = rows.iter().filter(|(_, queue, _)| *queue == self.file.queue);
                let ids: Vec<JobId> = ours.filter_map(|(_, _, id)| id.parse().ok()).collect();
                self.signals.followers.tell(&ids);
                *last = rows.last().map_or(*last, |(n, ..)| *n);
                if rows.len() < STEP {
                    break;
                }
            }
        }
        self.tail = Some((result, chunk));
        Ok(())
    }
}

/// Waits for a reason to look.
enum Stir {
    /// The kernel tells of writes.
    #[cfg(target_os = "linux")]
    Told(Box<linux::Told>),
    /// Nobody does.
    Untold,
}

impl Stir {
    #[cfg(target_os = "linux")]
    fn new(database: &Path) -> Self {
        linux::Told::new(database).map_or_else(
            |error| {
                let remedy = "raise fs.inotify.max_user_instances to save them";
                tracing::warn!(%error, remedy, "no inotify: looks for news 100 times a second");
                Self::Untold
            },
            |told| Self::Told(Box::new(told)),
        )
    }

    #[cfg(not(target_os = "linux"))]
    fn new(_database: &Path) -> Self {
        Self::Untold
    }

    /// True after a write, false when it is time to look without one.
    async fn wait(&mut self) -> bool {
        match self {
            #[cfg(target_os = "linux")]
            Self::Told(told) => told.wait().await,
            Self::Untold => {
                tokio::time::sleep(PULSE).await;
                false
            }
        }
    }
}

/// The log beside a database.
#[cfg(target_os = "linux")]
fn log_of(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io::Result;
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    use futures::{FutureExt, StreamExt};
    use inotify::{EventMask, EventStream, Inotify, WatchDescriptor, WatchMask};

    /// Looks for what the kernel would not tell.
    const PULSE: Duration = Duration::from_secs(1);

    /// Waits for a write to the log.
    pub(super) struct Told {
        events: EventStream<[u8; 4096]>,
        log: PathBuf,
        watch: Option<WatchDescriptor>,
    }

    impl Told {
        pub(super) fn new(database: &Path) -> Result<Self> {
            let events = Inotify::init()?.into_event_stream([0; 4096])?;
            let mut stir = Self { events, log: super::log_of(database), watch: None };
            stir.arm();
            Ok(stir)
        }

        /// The log is deleted with the last connection and made anew with the next one.
        fn arm(&mut self) {
            let mask = WatchMask::MODIFY | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF;
            if self.watch.is_none() {
                self.watch = self.events.watches().add(&self.log, mask).ok();
            }
        }

        /// True after a write, false when it is time to look without one.
        pub(super) async fn wait(&mut self) -> bool {
            self.arm();
            // There is no log yet, or no watch to be had for it.
            let pulse = if self.watch.is_none() { super::PULSE } else { PULSE };
            let mut next = tokio::time::timeout(pulse, self.events.next()).await.ok().flatten();
            let stirred = next.is_some();
            let mut is_gone = false;
            while let Some(Ok(event)) = next {
                let end = EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::IGNORED;
                is_gone |= event.mask.intersects(end);
                next = self.events.next().now_or_never().flatten();
            }
            if is_gone && let Some(watch) = self.watch.take() {
                // The kernel has dropped it already when the log was deleted.
                self.events.watches().remove(watch).ok();
            }
            stirred
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[tokio::test]
        async fn a_log_that_is_deleted_and_made_anew_is_watched_again() {
            let folder = tempfile::tempdir().unwrap();
            let database = folder.path().join("queue.db");
            let log = super::super::log_of(&database);
            let mut stir = Told::new(&database).unwrap();
            for _ in 0..2 {
                std::fs::write(&log, "").unwrap();
                // The pulse finds the new log.
                while stir.wait().await {}
                std::fs::write(&log, "frames").unwrap();
                assert!(stir.wait().await, "the write is noticed");
                std::fs::remove_file(&log).unwrap();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::SqliteQueue;
    use crate::{Behavior, Broker, Job, OpenOptions, Synchronous, Timestamp};

    #[tokio::test]
    async fn without_inotify_a_commit_is_seen_by_looking() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queue.db");
        let (behavior, options) = (Behavior::default(), OpenOptions::default());
        let queue =
            SqliteQueue::open(&path, "default", Synchronous::Normal, &behavior, options).await;
        let queue = queue.unwrap();
        // None of the signals that the writer of the queue tells.
        let signals = Arc::new(Signals::new(0));
        let mut arrivals = signals.arrivals();
        let eye = Eye::new(&queue.shared.file, signals, |_| Stir::Untold).unwrap();
        let (stop, stopped) = oneshot::channel();
        let publish = async {
            queue.publish(vec![Job::new("body", Timestamp::now())]).await.unwrap();
            let told = tokio::time::timeout(Duration::from_secs(5), arrivals.changed()).await;
            told.expect("the arrival is told").unwrap();
            drop(stop);
        };
        tokio::join!(eye.watch(stopped), publish);
    }
}
