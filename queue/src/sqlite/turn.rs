//! Whose turn it is to write, fair among processes.
//!
//! SQLite lets one connection write at a time, and whoever asks at the right moment wins: a busy
//! process that has just committed is there first, again and again. So who wants to write first
//! takes a lock on a file beside the database, keeps it until it has the write lock, and then lets
//! go: the one that has just written finds the next one standing there. The lock is a courtesy:
//! what keeps the data whole is SQLite's own. Both vanish with the process that held them.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;
use tokio::time::Instant;

use super::failure::Outcome;
use crate::{Error, ErrorKind};

/// How long a write waits for its turn, and for the database, before it gives up.
const PATIENCE: Duration = Duration::from_secs(10);

/// The pause between two looks at a lock, before jitter. A commit takes as long.
const PAUSE: Duration = Duration::from_micros(300);

/// The lock file of one database.
#[derive(Debug)]
pub(super) struct Turn {
    file: File,
}

impl Turn {
    pub(super) fn open(database: &Path) -> Outcome<Self> {
        let mut name = database.as_os_str().to_owned();
        name.push("-turn");
        let file = File::options().create(true).truncate(false).write(true).open(&name);
        let file = file.map_err(|error| {
            let words = format!("cannot open {}", name.display());
            Error::new(ErrorKind::Unavailable, words).caused_by(error)
        })?;
        Ok(Self { file })
    }

    /// Begins a write transaction when it is our turn.
    pub(super) fn begin(&self, db: &Connection) -> Outcome<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < until => pause(PAUSE),
                Err(TryLockError::WouldBlock) => {
                    let words = "too many processes write to the queue file; try again";
                    return Err(Error::new(ErrorKind::Unavailable, words).into());
                }
                // A file system without locks: SQLite's own remain.
                Err(TryLockError::Error(_)) => break,
            }
        }
        let begun = db.execute_batch("BEGIN IMMEDIATE");
        let freed = self.file.unlock();
        begun?;
        if let Err(error) = freed {
            tracing::debug!(%error, "lock file not unlocked");
        }
        Ok(())
    }
}

/// A busy handler that looks often at first, since the lock is seldom held for long.
pub(super) fn patience() -> impl FnMut(i32) -> bool + Send + 'static {
    let mut since = Instant::now();
    move |tries| {
        let now = Instant::now();
        if tries == 0 {
            since = now;
        }
        let waited = now.duration_since(since);
        pause(if waited < PATIENCE / 20 { PAUSE } else { PAUSE * 10 });
        waited < PATIENCE
    }
}

/// Sleeps for about this long, give or take a half, so that waiters do not march in step.
#[allow(clippy::disallowed_methods, reason = "runs on threads of its own, never on tokio's")]
pub(super) fn pause(length: Duration) {
    std::thread::sleep(length.mul_f64(rand::random_range(0.5..1.5)));
}
