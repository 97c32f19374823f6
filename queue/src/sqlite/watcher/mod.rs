//! Notices what other connections have committed, in this process and in others.
//!
//! A commit appends to the write-ahead log, which inotify tells a little before the commit can be
//! seen; so the watcher looks again and again from then on, until it sees it and a little longer:
//! the next commit may have been told already. Elsewhere than on Linux, and where inotify cannot
//! be had, it looks a hundred times a second.
//!
//! Handles that were opened with clones of one [`Watchers`] share the thread of a file, however many
//! queues of it they are for; the first subscription starts it. It does not wake while nothing is
//! written, but for one look a second.

mod stir;

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rusqlite::Connection;
use tokio::runtime::Runtime;
use tokio::sync::{OnceCell, oneshot};
use tokio::time::Instant;

use super::failure::Outcome;
use super::signals::Signals;
use super::{File, busy, schema};
use crate::{Error, ErrorKind, JobId, Result};
use stir::Stir;

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
/// and each process that has one is woken by every commit.
const FIRST_PAUSE_OF_OTHERS: Duration = Duration::from_millis(5);

/// News that one look reads at most.
const STEP: usize = 1000;

/// The SQLite files that are watched for some handles; clones are the same.
///
/// Each file has one thread that notices what is committed to it, for all handles that were opened
/// with the same of these.
#[derive(Debug, Clone, Default)]
pub struct Watchers(Arc<Mutex<HashMap<FileId, Weak<Watcher>>>>);

/// A file by its device and its number there, whatever its path: another may come to have that.
type FileId = (u64, u64);

/// Keeps the thread of one file running; it ends with the last handle.
#[derive(Debug, Default)]
pub(super) struct Watcher {
    listeners: Arc<Listeners>,
    stop: OnceCell<oneshot::Sender<()>>,
}

/// Who is told, by the number of their queue.
#[derive(Debug, Default)]
struct Listeners(Mutex<Vec<(i64, Weak<Signals>)>>);

impl Watchers {
    /// Returns once nothing that is committed from now on goes unnoticed.
    pub(super) async fn start(&self, file: &File, signals: &Arc<Signals>) -> Result<Arc<Watcher>> {
        let watcher = self.of(&file.path).map_err(|error| broken(&file.path, error))?;
        watcher.listeners.add(file.queue, signals);
        let start = || arm(file.path.clone(), Arc::clone(&watcher.listeners));
        watcher.stop.get_or_try_init(start).await?;
        Ok(watcher)
    }

    /// The one for a file.
    fn of(&self, path: &Path) -> std::io::Result<Arc<Watcher>> {
        let file = std::fs::metadata(path)?;
        let mut watchers = lock(&self.0);
        watchers.retain(|_, watcher| watcher.strong_count() > 0);
        let known = watchers.entry((file.dev(), file.ino())).or_default();
        // A thread that panicked tells nobody any more.
        let lives =
            |watcher: &Arc<Watcher>| watcher.stop.get().is_none_or(|stop| !stop.is_closed());
        Ok(known.upgrade().filter(lives).unwrap_or_else(|| {
            let watcher = Arc::default();
            *known = Arc::downgrade(&watcher);
            watcher
        }))
    }
}

impl Listeners {
    fn add(&self, queue: i64, signals: &Arc<Signals>) {
        let mut listeners = lock(&self.0);
        listeners.retain(|(_, signals)| signals.strong_count() > 0);
        let place = listeners.partition_point(|(other, _)| *other < queue);
        listeners.insert(place, (queue, Arc::downgrade(signals)));
    }

    /// Those who are there, in the order of their queues.
    fn present(&self) -> Vec<(i64, Arc<Signals>)> {
        let listeners = lock(&self.0);
        let present = |(queue, signals): &(_, Weak<_>)| Some((*queue, signals.upgrade()?));
        listeners.iter().filter_map(present).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the thread, and returns what ends it when it is dropped.
async fn arm(path: PathBuf, listeners: Arc<Listeners>) -> Result<oneshot::Sender<()>> {
    let (stop, stopped) = oneshot::channel();
    let (ready, armed) = oneshot::channel();
    super::spawn("ebb-sqlite-watcher", move || match open(&path, listeners) {
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
    Ok(stop)
}

fn open(path: &Path, listeners: Arc<Listeners>) -> Result<(Runtime, Eye)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| broken(path, error))?;
    let eye = {
        let _guard = runtime.enter();
        Eye::new(path, listeners, Stir::new).map_err(|failure| failure.into_error(path))?
    };
    Ok((runtime, eye))
}

fn broken(path: &Path, error: std::io::Error) -> Error {
    let words = format!("cannot watch queue file {}", path.display());
    Error::new(ErrorKind::Unavailable, words).caused_by(error)
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
    path: PathBuf,
    listeners: Arc<Listeners>,
    /// SQLite's count of the commits of others.
    version: i64,
    /// The last result and the last chunk told, while somebody follows one.
    tail: Option<(i64, i64)>,
}

impl Eye {
    fn new(
        path: &Path,
        listeners: Arc<Listeners>,
        stir: impl FnOnce(&Path) -> Stir,
    ) -> Outcome<Self> {
        // The log exists once a connection has read.
        let db = schema::connect(path)?;
        // It is beside the file itself, whatever links lead there.
        let stir = stir(&path.canonicalize().unwrap_or_else(|_| path.to_owned()));
        let mut eye = Self { db, stir, path: path.to_owned(), listeners, version: -1, tail: None };
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
        // Lets the end of the last handle be heard.
        tokio::task::yield_now().await;
    }

    fn try_look(&mut self) -> Seen {
        self.look().unwrap_or_else(|failure| {
            let error = failure.into_error(&self.path);
            tracing::warn!(%error, "cannot look for news");
            Seen::Nothing
        })
    }

    /// Tells what is new, and whether anything was.
    fn look(&mut self) -> Outcome<Seen> {
        let version =
            self.db.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
        // After the version: who comes in between is told of what that version did not have.
        let listeners = self.listeners.present();
        let followed = listeners.iter().any(|(_, signals)| !signals.followers.is_empty());
        let is_new = version != self.version;
        if !is_new && self.tail.is_some() == followed {
            return Ok(Seen::Nothing);
        }
        let is_told = self.tell_arrivals(&listeners)?;
        match self.tail {
            Some(tail) if followed => self.tell_from(tail)?,
            _ if followed => {
                self.tail = Some((self.last("results")?, self.last("chunks")?));
                // Those who came before the tail was set: they may have looked before it, too.
                for (_, signals) in self.listeners.present() {
                    signals.followers.tell_all();
                }
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

    /// True when there were any.
    fn tell_arrivals(&self, listeners: &[(i64, Arc<Signals>)]) -> Outcome<bool> {
        let (Some((first, _)), Some((last, _))) = (listeners.first(), listeners.last()) else {
            return Ok(false);
        };
        let sql = "SELECT id, arrivals FROM queues WHERE id BETWEEN ?1 AND ?2 ORDER BY id";
        let mut statement = self.db.prepare_cached(sql)?;
        let mut rows = statement.query([first, last])?;
        let mut waiting = listeners.iter().peekable();
        let mut is_told = false;
        while let Some(row) = rows.next()? {
            let (id, arrivals): (i64, i64) = (row.get(0)?, row.get(1)?);
            while let Some((queue, signals)) = waiting.next_if(|(queue, _)| *queue <= id) {
                is_told |= *queue == id && signals.tell_arrivals(arrivals);
            }
        }
        Ok(is_told)
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
                // Only now: who comes later than the rows looks later than they were stored.
                for (ours, signals) in self.listeners.present() {
                    if signals.followers.is_empty() {
                        continue;
                    }
                    let ours = rows.iter().filter(|(_, queue, _)| *queue == ours);
                    let ids: Vec<JobId> = ours.filter_map(|(_, _, id)| id.parse().ok()).collect();
                    signals.followers.tell(&ids);
                }
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

#[cfg(test)]
mod tests;
