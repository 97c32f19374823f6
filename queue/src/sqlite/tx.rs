//! What a command sees of the write transaction that it runs in, and the counters it keeps.

use std::collections::HashSet;

use rusqlite::{CachedStatement, Connection};

use crate::{JobId, Priority, Timestamp};

/// Milliseconds since the epoch, as stored.
pub(super) type Millis = i64;

/// The moment in milliseconds, as stored.
pub(super) fn millis(at: Timestamp) -> Millis {
    at.as_millisecond()
}

/// The moment that was stored.
pub(super) fn moment(at: Millis) -> Timestamp {
    Timestamp::from_millisecond(at).unwrap_or(Timestamp::MAX)
}

/// The span in milliseconds; ten years at most come in here.
pub(super) fn span(length: std::time::Duration) -> Millis {
    i64::try_from(length.as_millis()).unwrap_or(i64::MAX / 4)
}

/// A job's place among those of other priorities, as stored: the lower, the earlier.
pub(super) fn rank(priority: Priority) -> i64 {
    match priority {
        Priority::High => 0,
        Priority::Normal => 1,
        Priority::Low => 2,
    }
}

/// Where a job is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Waits in line; leads to `Leased`, past its deadline to `Dead`.
    Ready = 0,
    /// On loan; leads anywhere and out, and past the lease's end to `Ready`.
    Leased = 1,
    /// Waits for its time; leads to `Ready`, past its deadline to `Dead`.
    Delayed = 2,
    /// Failed for good; leads to `Ready` when it is put back, or out.
    Dead = 3,
}

impl State {
    pub(super) fn from_stored(number: i64) -> Self {
        match number {
            0 => Self::Ready,
            1 => Self::Leased,
            2 => Self::Delayed,
            _ => Self::Dead,
        }
    }
}

/// The counters of one queue: a row of `queues`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counters {
    pub(super) ready: i64,
    pub(super) leased: i64,
    pub(super) delayed: i64,
    pub(super) dead: i64,
    pub(super) cost: i64,
    pub(super) places: i64,
    pub(super) arrivals: i64,
}

impl Counters {
    pub(super) fn load(db: &Connection, queue: i64) -> rusqlite::Result<Self> {
        let sql = "SELECT ready, leased, delayed, dead, cost, places, arrivals
                   FROM queues WHERE id = ?1";
        db.prepare_cached(sql)?.query_row([queue], |row| {
            Ok(Self {
                ready: row.get(0)?,
                leased: row.get(1)?,
                delayed: row.get(2)?,
                dead: row.get(3)?,
                cost: row.get(4)?,
                places: row.get(5)?,
                arrivals: row.get(6)?,
            })
        })
    }

    fn save(&self, db: &Connection, queue: i64) -> rusqlite::Result<()> {
        let sql = "UPDATE queues SET ready = ?2, leased = ?3, delayed = ?4, dead = ?5, cost = ?6,
                   places = ?7, arrivals = ?8 WHERE id = ?1";
        let Self { ready, leased, delayed, dead, cost, places, arrivals } = *self;
        let row = (queue, ready, leased, delayed, dead, cost, places, arrivals);
        db.prepare_cached(sql)?.execute(row)?;
        Ok(())
    }

    fn add(&mut self, state: State, cost: Option<i64>, by: i64) {
        let counter = match state {
            State::Ready => &mut self.ready,
            State::Leased => &mut self.leased,
            State::Delayed => &mut self.delayed,
            State::Dead => &mut self.dead,
        };
        *counter += by;
        if matches!(state, State::Ready | State::Leased) {
            self.cost += by * cost.unwrap_or(0);
        }
    }
}

/// A write transaction on one queue.
#[derive(Debug)]
pub(super) struct Tx<'a> {
    db: &'a Connection,
    /// The number of the queue.
    pub(super) queue: i64,
    /// As they will be stored.
    pub(super) counters: Counters,
    stored: Counters,
    /// Jobs whose results have news.
    pub(super) news: Vec<JobId>,
    /// Rows that could not be read, by number, of which it was told.
    pub(super) unread: HashSet<i64>,
}

impl<'a> Tx<'a> {
    /// The transaction that has been begun on this connection.
    pub(super) fn begun(db: &'a Connection, queue: i64) -> rusqlite::Result<Self> {
        let counters = Counters::load(db, queue)?;
        let (news, unread) = (Vec::new(), HashSet::new());
        Ok(Self { db, queue, counters, stored: counters, news, unread })
    }

    /// A statement, prepared once per connection.
    pub(super) fn sql(&self, sql: &str) -> rusqlite::Result<CachedStatement<'a>> {
        self.db.prepare_cached(sql)
    }

    /// The connection, to look at what is stored.
    pub(super) fn db(&self) -> &'a Connection {
        self.db
    }

    /// The number of the row inserted last.
    pub(super) fn last_row(&self) -> i64 {
        self.db.last_insert_rowid()
    }

    /// Counts a job in.
    pub(super) fn enters(&mut self, state: State, cost: Option<i64>) {
        self.counters.add(state, cost, 1);
    }

    /// Counts a job out.
    pub(super) fn leaves(&mut self, state: State, cost: Option<i64>) {
        self.counters.add(state, cost, -1);
    }

    /// Counts a job from one state to another.
    pub(super) fn moves(&mut self, from: State, to: State, cost: Option<i64>) {
        self.leaves(from, cost);
        self.enters(to, cost);
    }

    /// The next place in line.
    pub(super) fn place(&mut self) -> i64 {
        self.counters.places += 1;
        self.counters.places
    }

    /// Has all observers look again after the commit.
    pub(super) fn tell(&mut self) {
        self.counters.arrivals += 1;
    }

    /// Runs a step on another queue of the same file, in this transaction.
    pub(super) fn on_queue<T, E: From<rusqlite::Error>>(
        &mut self,
        queue: i64,
        step: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut other = Self::begun(self.db, queue)?;
        let value = step(&mut other)?;
        other.counters.save(self.db, queue)?;
        self.news.append(&mut other.news);
        Ok(value)
    }

    /// Runs a step that leaves nothing behind when it fails.
    pub(super) fn step<T, E: From<rusqlite::Error>>(
        &mut self,
        step: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<T, E> {
        let (counters, n_news) = (self.counters, self.news.len());
        self.sql("SAVEPOINT step")?.execute([])?;
        let outcome = step(self);
        if outcome.is_err() && !self.db.is_autocommit() {
            self.sql("ROLLBACK TO step")?.execute([])?;
            self.counters = counters;
            self.news.truncate(n_news);
        }
        // A full disk may have ended the transaction as a whole.
        if !self.db.is_autocommit() {
            self.sql("RELEASE step")?.execute([])?;
        }
        outcome
    }

    /// Stores the counters and commits; returns what is to be told.
    pub(super) fn commit(self) -> rusqlite::Result<(i64, Vec<JobId>)> {
        if self.counters != self.stored {
            self.counters.save(self.db, self.queue)?;
        }
        self.db.execute_batch("COMMIT")?;
        Ok((self.counters.arrivals, self.news))
    }
}
