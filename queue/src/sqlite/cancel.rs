//! Jobs that somebody cancels, and how those are told who may be running them.

use std::collections::VecDeque;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use rusqlite::{Connection, OptionalExtension};

use super::SqliteQueue;
use super::dead::{self, Ttls};
use super::failure::{Failure, Outcome};
use super::names::{self, Kind};
use super::results::{self, End};
use super::tx::{Millis, State, Tx, moment};
use crate::owed;
use crate::{Cancelled, JobId, JobResult, Result};

/// News comes with each publication, so that many are looked at together.
const REST: Duration = Duration::from_millis(100);

/// A cancelled job is looked for at least this often, should news be missing.
const NAP: Duration = Duration::from_secs(10);

/// Jobs that one look finds at most.
const STEP: usize = 1000;

/// A job that may be cancelled.
struct Found {
    n: Option<i64>,
    state: Option<State>,
    due: Option<Millis>,
    attempts: Option<u32>,
}

/// Ends a job that nobody wants any more, as if acked, and tells whoever waits for it. Those whose
/// deadline has passed are dead letters by now.
pub(super) fn cancel(tx: &mut Tx<'_>, now: Millis, ttls: Ttls, id: &JobId) -> Outcome<Cancelled> {
    let Some(found) = find(tx, now, id)? else { return Ok(Cancelled::Unknown) };
    let (Some(n), Some(state)) = (found.n, found.state) else { return Ok(Cancelled::Ended) };
    let is_held = state == State::Leased && found.due.is_some_and(|due| due > now);
    let end = results::end(tx, id.as_str(), now)?;
    // A failure that is stored while somebody holds the job is about to bury it, unless it is of an attempt
    // before.
    let failed = results::failed_attempt(tx, id.as_str(), now)?;
    let is_buried = is_held && failed.is_some_and(|failed| Some(failed) >= found.attempts);
    if state == State::Dead || end.is_some_and(|end| end.is_final() || is_buried) {
        return Ok(Cancelled::Ended);
    }
    let sql = "DELETE FROM payloads WHERE n = ?1 RETURNING headers";
    let headers: String = tx.sql(sql)?.query_row([n], |row| row.get(0))?;
    let sql = "DELETE FROM jobs WHERE n = ?1 RETURNING key, cost";
    let (key, cost): (Option<String>, Option<i64>) =
        tx.sql(sql)?.query_row([n], |row| row.try_into())?;
    names::ends(tx, (id.as_str(), key.as_deref()), None, now + ttls.key)?;
    tx.leaves(state, cost);
    let result = JobResult::cancelled(id.clone(), found.attempts.unwrap_or_default(), moment(now));
    results::bury(tx, now, ttls.result, result)?;
    // Who counts the jobs is to count anew, and who runs it is told.
    tx.tell();
    match tx.step(|tx| dead::tell(tx, (now, ttls.result), id, &headers)) {
        Err(Failure::Refused(error)) => owed::note(id, Err(error)),
        told => told?,
    }
    Ok(if is_held { Cancelled::Running } else { Cancelled::Waiting })
}

fn find(tx: &Tx<'_>, now: Millis, id: &JobId) -> Outcome<Option<Found>> {
    let sql = "SELECT jobs.n, state, due, attempts FROM names LEFT JOIN jobs USING (n)
               WHERE names.queue = ?1 AND kind = ?2 AND name = ?3
               AND (expires IS NULL OR expires > ?4)";
    let row = (tx.queue, Kind::Id as i64, id.as_str(), now);
    let found = tx.sql(sql)?.query_row(row, |row| {
        let state: Option<i64> = row.get(1)?;
        Ok(Found {
            n: row.get(0)?,
            state: state.map(State::from_stored),
            due: row.get(2)?,
            attempts: row.get(3)?,
        })
    });
    Ok(found.optional()?)
}

/// Yields jobs that were cancelled from now on, by anybody.
pub(super) async fn told(queue: SqliteQueue) -> Result<BoxStream<'static, JobId>> {
    let arrivals = queue.shared.signals.arrivals();
    let last = queue.shared.reader.run(|db, _| last(db)).await?;
    let begin = (queue, arrivals, last, VecDeque::new(), false);
    let told =
        stream::unfold(begin, |(queue, mut arrivals, mut last, mut ids, mut is_cut)| async move {
            loop {
                if let Some(id) = ids.pop_front() {
                    return Some((id, (queue, arrivals, last, ids, is_cut)));
                }
                if !is_cut {
                    tokio::time::timeout(NAP, arrivals.changed()).await.ok();
                    tokio::time::sleep(REST).await;
                }
                arrivals.mark_unchanged();
                match queue.shared.reader.run(move |db, n| cancelled(db, n, last)).await {
                    Ok(found) => {
                        (last, ids) = found;
                        is_cut = ids.len() == STEP;
                    }
                    Err(error) => {
                        is_cut = false;
                        tracing::warn!(%error, "cancelled jobs cannot be looked for");
                    }
                }
            }
        });
    Ok(told.boxed())
}

/// The number of the last result of the file.
fn last(db: &Connection) -> Outcome<i64> {
    let sql = "SELECT coalesce(max(n), 0) FROM results";
    Ok(db.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
}

/// The jobs of a queue that were cancelled since the result of this number, and the number of the last
/// result that was looked at.
fn cancelled(db: &Connection, queue: i64, since: i64) -> Outcome<(i64, VecDeque<JobId>)> {
    let until = last(db)?;
    let sql = "SELECT n, id FROM results WHERE n > ?1 AND n <= ?2 AND queue = ?3 AND completed = ?4
               ORDER BY n LIMIT ?5";
    let row = (since, until, queue, End::Cancelled as i64, STEP as i64);
    let mut statement = db.prepare_cached(sql)?;
    let found = statement.query_map(row, |row| row.try_into())?;
    let found: Vec<(i64, String)> = found.collect::<std::result::Result<_, _>>()?;
    // Where they are as many as one look takes, there may be more.
    let last = found.last().filter(|_| found.len() == STEP).map_or(until, |(n, _)| *n);
    Ok((last, found.iter().filter_map(|(_, id)| id.parse().ok()).collect()))
}
