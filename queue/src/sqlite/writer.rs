//! The one thread of a handle that writes.
//!
//! A commit costs a wait for the disk, so commands that wait together are carried out in one
//! transaction; each has a savepoint and an outcome of its own, told when the commit is through.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::dead::Ttls;
use super::failure::Outcome;
use super::signals::Signals;
use super::tx::{Millis, Tx, millis};
use super::{File, sweep};
use crate::{Clock, Error, ErrorKind, Result};

/// Commands that may wait for the writer before callers wait to be let in.
const WAITING: usize = 256;

/// A transaction takes no more commands in after this long: others want to write as well.
const LONGEST: Duration = Duration::from_millis(20);

/// The way to the thread that writes; it ends when the last of these is dropped.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    commands: mpsc::Sender<Box<dyn Command>>,
}

impl Writer {
    pub(super) fn start(
        db: Connection,
        file: Arc<File>,
        signals: Arc<Signals>,
        (clock, ttls): (Arc<dyn Clock>, Ttls),
    ) -> Result<Self> {
        let (commands, waiting) = mpsc::channel(WAITING);
        let thread = Thread { db, file, signals, clock, ttls, sweep_at: 0, unread: HashSet::new() };
        super::spawn("ebb-sqlite-writer", move || thread.serve(waiting))?;
        Ok(Self { commands })
    }

    /// Carries the work out in a write transaction, at the time at which it may write, and returns once
    /// that is committed: what waits for others, for seconds perhaps, shall not lose them of a lease.
    ///
    /// Work that has not begun when the caller goes away is never begun.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Tx<'_>, Millis) -> Outcome<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let pending = Pending { work: Some(work), outcome: None, reply };
        self.commands.send(Box::new(pending)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

pub(super) fn gone() -> Error {
    Error::new(ErrorKind::Internal, "the queue's thread has ended; open the queue anew")
}

/// A piece of work whose caller waits.
trait Command: Send {
    /// Whether the caller has gone.
    fn is_abandoned(&self) -> bool;
    /// Does the work; the outcome is kept until the commit.
    fn execute(&mut self, tx: &mut Tx<'_>, now: Millis, file: &File);
    /// Tells the outcome, or why there is none.
    fn finish(self: Box<Self>, failure: Option<&Error>);
}

struct Pending<T, F> {
    work: Option<F>,
    outcome: Option<Result<T>>,
    reply: oneshot::Sender<Result<T>>,
}

impl<T: Send, F: FnOnce(&mut Tx<'_>, Millis) -> Outcome<T> + Send> Command for Pending<T, F> {
    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    fn execute(&mut self, tx: &mut Tx<'_>, now: Millis, file: &File) {
        let Some(work) = self.work.take() else { return };
        let outcome = tx.step(|tx| work(tx, now));
        self.outcome = Some(outcome.map_err(|failure| failure.into_error(&file.path)));
    }

    fn finish(self: Box<Self>, failure: Option<&Error>) {
        // The work's own refusal says more than a commit that failed after it.
        let outcome = match (self.outcome, failure) {
            (Some(Err(error)), _) => Err(error),
            (Some(outcome), None) => outcome,
            (_, Some(error)) => Err(Error::new(error.kind(), error.to_string())),
            (None, None) => Err(gone()),
        };
        // A caller that has gone needs no answer.
        self.reply.send(outcome).ok();
    }
}

struct Thread {
    db: Connection,
    file: Arc<File>,
    signals: Arc<Signals>,
    clock: Arc<dyn Clock>,
    ttls: Ttls,
    sweep_at: Millis,
    /// Rows that could not be read, of which it was told.
    unread: HashSet<i64>,
}

impl Thread {
    fn serve(mut self, mut waiting: mpsc::Receiver<Box<dyn Command>>) {
        while let Some(first) = waiting.blocking_recv() {
            let mut group = vec![first];
            let committed = self.transact(&mut group, &mut waiting);
            if committed.is_err() {
                // Those who came meanwhile would wait as long, and in vain.
                while let Ok(next) = waiting.try_recv() {
                    group.push(next);
                }
            }
            let failure = committed.err().map(|failure| failure.into_error(&self.file.path));
            for command in group {
                command.finish(failure.as_ref());
            }
        }
    }

    fn transact(
        &mut self,
        group: &mut Vec<Box<dyn Command>>,
        waiting: &mut mpsc::Receiver<Box<dyn Command>>,
    ) -> Outcome<()> {
        self.db.execute_batch("BEGIN IMMEDIATE")?;
        let outcome = self.fill(group, waiting);
        if outcome.is_err() && !self.db.is_autocommit() {
            self.db.execute_batch("ROLLBACK")?;
        }
        outcome
    }

    /// Carries out the first command and all that wait meanwhile, and commits.
    fn fill(
        &mut self,
        group: &mut Vec<Box<dyn Command>>,
        waiting: &mut mpsc::Receiver<Box<dyn Command>>,
    ) -> Outcome<()> {
        let began = Instant::now();
        let mut tx = Tx::begun(&self.db, self.file.queue)?;
        tx.unread = std::mem::take(&mut self.unread);
        let mut now = Millis::MIN;
        let mut done = 0;
        while let Some(command) = group.get_mut(done) {
            done += 1;
            now = now.max(millis(self.clock.now()));
            if !command.is_abandoned() {
                command.execute(&mut tx, now, &self.file);
            }
            if self.db.is_autocommit() {
                // A disk that is full or failing ends the transaction as a whole.
                let words = "the disk refused a write; try again when it has room";
                return Err(Error::new(ErrorKind::Unavailable, words).into());
            }
            if began.elapsed() < LONGEST
                && let Ok(next) = waiting.try_recv()
            {
                group.push(next);
            }
        }
        // Further off than any pause is a clock that was set back meanwhile.
        if now >= self.sweep_at || self.sweep_at - now > sweep::PAUSE {
            self.sweep_at = now + tx.step(|tx| sweep::step(tx, now, self.ttls))?;
        }
        self.unread = std::mem::take(&mut tx.unread);
        let (arrivals, news) = tx.commit()?;
        self.signals.tell_arrivals(arrivals);
        self.signals.followers.tell(&news);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::{publish, schema, tx::Counters};
    use crate::{Job, Synchronous, SystemClock, Timestamp};

    async fn publish(writer: &Writer, body: Vec<u8>) -> Result<()> {
        let job = Job::new(body, Timestamp::UNIX_EPOCH);
        writer.run(move |tx, now| publish::publish(tx, now, &[job], None).map(drop)).await
    }

    #[tokio::test]
    async fn a_full_disk_says_so_and_spoils_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queue.db");
        let mut db = schema::open(&path, Synchronous::Normal).unwrap();
        let queue = schema::queue(&mut db, "jobs").unwrap();
        db.pragma_update(None, "max_page_count", 60).unwrap();
        let file = Arc::new(File { path: path.clone(), queue });
        let (signals, ttls) = (Arc::new(Signals::new(0)), Ttls { result: 1000, key: 1000 });
        let writer = Writer::start(db, file, signals, (Arc::new(SystemClock), ttls)).unwrap();
        let (small, large) = (vec![1; 10], vec![1; 1 << 20]);
        let (first, refused, second) = tokio::join!(
            publish(&writer, small.clone()),
            publish(&writer, large),
            publish(&writer, small.clone()),
        );
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("disk is full"), "{error}");
        publish(&writer, small).await.unwrap();
        // Who shared its transaction may have been refused as well, but was told so.
        let n_stored = 1 + i64::from(first.is_ok()) + i64::from(second.is_ok());
        let db = schema::connect(&path).unwrap();
        let sql = "SELECT count(*) FROM jobs JOIN payloads USING (n)";
        let n: i64 = db.query_row(sql, [], |row| row.get(0)).unwrap();
        assert_eq!((n, Counters::load(&db, queue).unwrap().ready), (n_stored, n_stored));
    }
}
