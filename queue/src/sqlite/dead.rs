//! Jobs that failed for good.

use std::collections::HashSet;

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension};
use tracing::warn;

use super::SqliteQueue;
use super::failure::{Failure, Outcome};
use super::names::{self, Kind};
use super::reply;
use super::results::{self, End};
use super::settle;
use super::stored::{self, COLUMNS, History, StoredJob};
use super::tx::{Millis, State, Tx, millis, moment, span};
use crate::owed::{self, Owed};
use crate::{Behavior, DeadLetter, DeadLetters, Headers, JobId, JobResult, Result};

/// Jobs that one command changes at most: others wait for the writer.
pub(super) const STEP: usize = 500;

/// Letters that are read at once: an open look keeps the log from being folded back into the file.
const PAGE: usize = 64;

/// How long things are remembered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ttls {
    pub(super) result: Millis,
    /// Of the names of a job that is done.
    pub(super) key: Millis,
}

impl Ttls {
    pub(super) fn of(behavior: &Behavior) -> Self {
        Self { result: span(behavior.result_ttl), key: span(behavior.key_ttl) }
    }
}

/// Why and when a job ended.
#[derive(Debug)]
pub(super) struct Death<'a> {
    pub(super) at: Millis,
    pub(super) why: &'a crate::Failure,
    /// The settlement that asked for it, if one did.
    pub(super) settled: Option<i64>,
}

/// Makes a dead letter of a job.
pub(super) fn bury(
    tx: &mut Tx<'_>,
    (n, state, cost): (i64, State, Option<i64>),
    history: &History,
    death: &Death<'_>,
) -> Outcome<()> {
    let place = tx.place();
    let sql = "UPDATE jobs SET state = 3, place = ?2, due = NULL, deadline = NULL, lease = NULL, worker = NULL,
               settled = ?3, history = ?4, failure = ?5, reason = ?6, died_at = ?7 WHERE n = ?1";
    let crate::Failure { kind, reason } = death.why;
    let row = (n, place, death.settled, &history.0, kind.word(), reason, death.at);
    tx.sql(sql)?.execute(row)?;
    tx.moves(state, State::Dead, cost);
    Ok(())
}

/// Makes dead letters of jobs whose deadline has passed while nobody held them; those that have been
/// answered are done instead. Either is told where the job asked for a reply.
///
/// One that cannot be read stays, is told of once, and keeps no other from it.
pub(super) fn expire(tx: &mut Tx<'_>, now: Millis, ttls: Ttls) -> Outcome<usize> {
    let most = STEP + tx.unread.len();
    let expired: Vec<(i64, String)> = tx
        .sql(
            "SELECT n, id FROM jobs INDEXED BY jobs_deadline JOIN payloads USING (n)
             WHERE queue = ?1 AND deadline <= ?2
             AND (state <> 1 OR due <= ?2) ORDER BY deadline, place LIMIT ?3",
        )?
        .query_map((tx.queue, now, most as i64), |row| {
            Ok((row.get(0)?, row.get(1).unwrap_or_default()))
        })?
        .collect::<Result<_, _>>()?;
    let mut n_expired = 0;
    for (n, id) in expired {
        match tx.step(|tx| expire_one(tx, now, ttls, n)) {
            Ok(()) => n_expired += 1,
            Err(failure) => {
                let error = failure.of_one_row()?;
                if tx.unread.insert(n) {
                    warn!(job.id = id, %error, "a job that has expired is not buried");
                }
            }
        }
    }
    Ok(n_expired)
}

fn expire_one(tx: &mut Tx<'_>, now: Millis, ttls: Ttls, n: i64) -> Outcome<()> {
    let sql = "SELECT state, id, headers FROM jobs JOIN payloads USING (n) WHERE n = ?1";
    let (state, id, headers): (State, String, String) = tx
        .sql(sql)?
        .query_row([n], |row| Ok((stored::state(row, 0)?, row.get(1)?, row.get(2)?)))?;
    let id: JobId = id.parse()?;
    if results::end(tx, id.as_str(), now)?.is_some_and(End::is_final) {
        // Whoever gave the answer died before the ack.
        settle::finish_answered(tx, now + ttls.key, n)?;
    } else {
        let attempts = bury_expired(tx, now, (n, state))?;
        let failure =
            JobResult::buried(id.clone(), attempts, crate::Failure::expired(), moment(now));
        results::bury(tx, now, ttls.result, failure)?;
    }
    // A reply that cannot be sent leaves nothing behind, and keeps no job alive.
    match tx.step(|tx| tell(tx, (now, ttls.result), &id, &headers)) {
        Err(Failure::Refused(error)) => owed::note(&id, Err(error)),
        told => told?,
    }
    Ok(())
}

/// Tells the stored result of a job to where it asked for a reply. A worker that was lost may have
/// stored it, and not have told it.
pub(super) fn tell(
    tx: &mut Tx<'_>,
    (now, result_ttl): (Millis, Millis),
    id: &JobId,
    headers: &str,
) -> Outcome<()> {
    let headers = read_headers(headers)?;
    if headers.reply_to.is_none() {
        return Ok(());
    }
    let stored = results::get(tx.db(), tx.queue, now, id)?;
    let owed = stored.and_then(|stored| Owed::new(&headers, stored));
    owed.map_or(Ok(()), |owed| reply::reply(tx, (now, result_ttl), &owed))
}

fn read_headers(text: &str) -> Outcome<Headers> {
    serde_json::from_str(text).map_err(|error| Failure::garbled("headers", error))
}

/// Returns how many attempts were charged.
fn bury_expired(tx: &mut Tx<'_>, now: Millis, (n, state): (i64, State)) -> Outcome<u32> {
    type Row = (u32, Option<Millis>, Option<i64>, Option<String>, Option<i64>, Option<String>);
    let sql = "SELECT attempts, due, lease, worker, cost, history FROM jobs WHERE n = ?1";
    let row: Row = tx.sql(sql)?.query_row([n], |row| row.try_into())?;
    let (attempts, due, lease, worker, cost, history) = row;
    let mut history = History(history);
    if lease.is_some() {
        history.push_crash(attempts, due.unwrap_or(now), &worker.unwrap_or_default())?;
    }
    let death = Death { at: now, why: &crate::Failure::expired(), settled: None };
    bury(tx, (n, state, cost), &history, &death)?;
    Ok(attempts)
}

/// The newest of those that died before the one at this place, at most a page of them; and the place to go on
/// from, if there may be more.
fn page(
    db: &Connection,
    queue: i64,
    before: i64,
    max: usize,
) -> Outcome<(Vec<DeadLetter>, Option<i64>)> {
    let sql = format!(
        "SELECT {COLUMNS}, jobs.place FROM jobs INDEXED BY jobs_dead JOIN payloads USING (n)
         WHERE queue = ?1 AND state = 3 AND place < ?2 ORDER BY place DESC LIMIT ?3"
    );
    let max = max.min(PAGE);
    let row = (queue, before, max as i64);
    let found: Vec<(StoredJob, i64)> = db
        .prepare_cached(&sql)?
        .query_map(row, |row| Ok((StoredJob::read(row)?, row.get("place")?)))?
        .collect::<Result<_, _>>()?;
    let rest = found.last().map(|(_, place)| *place).filter(|_| found.len() == max);
    let letters = found.into_iter().map(|(stored, _)| stored.into_dead_letter());
    Ok((letters.collect::<Outcome<_>>()?, rest))
}

/// The dead letter under this id.
fn show(db: &Connection, queue: i64, id: &JobId) -> Outcome<Option<DeadLetter>> {
    let Some(n) = find(db, queue, id)? else { return Ok(None) };
    let sql = format!("SELECT {COLUMNS} FROM jobs JOIN payloads USING (n) WHERE n = ?1");
    let stored = db.prepare_cached(&sql)?.query_row([n], StoredJob::read)?;
    stored.into_dead_letter().map(Some)
}

fn find(db: &Connection, queue: i64, id: &JobId) -> Outcome<Option<i64>> {
    let sql = "SELECT jobs.n FROM names JOIN jobs USING (n)
               WHERE names.queue = ?1 AND kind = ?2 AND name = ?3 AND state = 3";
    let row = (queue, Kind::Id as i64, id.as_str());
    Ok(db.prepare_cached(sql)?.query_row(row, |row| row.get(0)).optional()?)
}

/// Which dead letters a step takes, in order.
#[derive(Debug, Clone)]
pub(super) enum Which {
    /// These, where they are dead letters.
    Named(Vec<JobId>),
    /// The next that died after the one at place `after`, and not after the one at `last`.
    Next { after: i64, last: i64 },
}

/// What a step did.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) n_done: u64,
    /// Where the next step goes on, if there is more to do.
    pub(super) rest: Option<Which>,
}

impl Which {
    /// All dead letters, or these.
    pub(super) fn new(ids: Option<&[JobId]>) -> Self {
        match ids {
            Some(ids) => Self::Named(ids.to_vec()),
            None => Self::Next { after: 0, last: i64::MAX },
        }
    }

    /// The rows of this step, and where the next one goes on.
    fn rows(&self, tx: &Tx<'_>) -> Outcome<(Vec<i64>, Option<Self>)> {
        match self {
            Self::Named(ids) => {
                let mut seen = HashSet::new();
                let ids = ids.iter().filter(|id| seen.insert(*id));
                let rows: Outcome<_> =
                    ids.filter_map(|id| find(tx.db(), tx.queue, id).transpose()).collect();
                Ok((rows?, None))
            }
            Self::Next { after, last } => {
                let sql = "SELECT n, place FROM jobs INDEXED BY jobs_dead
                           WHERE queue = ?1 AND state = 3 AND place > ?2 AND place <= ?3
                           ORDER BY place LIMIT ?4";
                // What dies while the steps go on is not meant.
                let last = (*last).min(tx.counters.places);
                let row = (tx.queue, *after, last, STEP as i64);
                let found: Vec<(i64, i64)> =
                    tx.sql(sql)?.query_map(row, |row| row.try_into())?.collect::<Result<_, _>>()?;
                let is_cut = found.len() == STEP;
                let rest = found.last().filter(|_| is_cut);
                let rest = rest.map(|(_, after)| Self::Next { after: *after, last });
                Ok((found.into_iter().map(|(n, _)| n).collect(), rest))
            }
        }
    }
}

/// Puts a step of dead letters back in line.
pub(super) fn redrive(tx: &mut Tx<'_>, now: Millis, which: &Which) -> Outcome<Step> {
    let (rows, rest) = which.rows(tx)?;
    for n in &rows {
        redrive_one(tx, now, *n)?;
    }
    if !rows.is_empty() {
        tx.tell();
    }
    Ok(Step { n_done: rows.len() as u64, rest })
}

fn redrive_one(tx: &mut Tx<'_>, now: Millis, n: i64) -> Outcome<()> {
    let sql = "SELECT headers FROM payloads WHERE n = ?1";
    let headers: String = tx.sql(sql)?.query_row([n], |row| row.get(0))?;
    let mut headers = read_headers(&headers)?;
    if headers.deadline.is_some_and(|deadline| millis(deadline) <= now) {
        // Else the job would die again at once.
        headers.deadline = None;
        let text =
            serde_json::to_string(&headers).map_err(|error| Failure::garbled("headers", error))?;
        tx.sql("UPDATE payloads SET headers = ?2 WHERE n = ?1")?.execute((n, text))?;
    }
    let place = tx.place();
    let sql = "UPDATE jobs SET state = 0, place = ?2, attempts = 0, failure = NULL, reason = NULL, died_at = NULL,
               settled = NULL, deadline = ?3 WHERE n = ?1 RETURNING cost, id";
    let row = (n, place, headers.deadline.map(millis));
    let (cost, id): (Option<i64>, String) = tx.sql(sql)?.query_row(row, |row| row.try_into())?;
    results::reset(tx, now, &id)?;
    tx.moves(State::Dead, State::Ready, cost);
    Ok(())
}

/// Deletes a step of dead letters, and forgets their names and what they left behind.
pub(super) fn purge(tx: &mut Tx<'_>, now: Millis, which: &Which) -> Outcome<Step> {
    let (rows, rest) = which.rows(tx)?;
    for n in &rows {
        let sql = "DELETE FROM jobs WHERE n = ?1 RETURNING id, key, cost";
        let (id, key, cost): (String, Option<String>, Option<i64>) =
            tx.sql(sql)?.query_row([n], |row| row.try_into())?;
        tx.sql("DELETE FROM payloads WHERE n = ?1")?.execute([n])?;
        names::forget(tx, &id, key.as_deref())?;
        results::reset(tx, now, &id)?;
        tx.news.push(id.parse()?);
        tx.leaves(State::Dead, cost);
    }
    Ok(Step { n_done: rows.len() as u64, rest })
}

#[async_trait]
impl DeadLetters for SqliteQueue {
    async fn list(&self, max: usize) -> Result<Vec<DeadLetter>> {
        self.bury_expired().await?;
        // Many long bodies take their time to be read, in which others go on writing.
        let (mut letters, mut before) = (Vec::new(), Some(i64::MAX));
        while let Some(place) = before.filter(|_| letters.len() < max) {
            let left = max - letters.len();
            let look = move |db: &_, queue| page(db, queue, place, left);
            let (found, rest) = self.shared.reader.run(look).await?;
            letters.extend(found);
            before = rest;
        }
        Ok(letters)
    }

    async fn show(&self, id: &JobId) -> Result<Option<DeadLetter>> {
        self.bury_expired().await?;
        let id = id.clone();
        self.shared.reader.run(move |db, queue| show(db, queue, &id)).await
    }

    async fn redrive(&self, ids: Option<&[JobId]>) -> Result<u64> {
        self.steps(Which::new(ids), redrive).await
    }

    async fn purge(&self, ids: Option<&[JobId]>) -> Result<u64> {
        self.steps(Which::new(ids), purge).await
    }
}
