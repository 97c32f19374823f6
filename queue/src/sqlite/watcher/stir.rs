//! What makes the watcher look: a write to the log, or time.

use std::path::Path;
#[cfg(target_os = "linux")]
use std::path::PathBuf;
use std::time::Duration;

/// The pause between two looks where nobody tells of writes: half the time within which an arrival
/// is to be told.
const PULSE: Duration = Duration::from_millis(10);

/// Waits for a reason to look.
pub(super) enum Stir {
    /// The kernel tells of writes.
    #[cfg(target_os = "linux")]
    Told(Box<linux::Told>),
    /// Nobody does.
    Untold,
}

impl Stir {
    #[cfg(target_os = "linux")]
    pub(super) fn new(database: &Path) -> Self {
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
    pub(super) fn new(_database: &Path) -> Self {
        Self::Untold
    }

    /// True after a write, false when it is time to look without one.
    pub(super) async fn wait(&mut self) -> bool {
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
    pub(in super::super) struct Told {
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
