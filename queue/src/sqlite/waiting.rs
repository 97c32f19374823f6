//! Jobs that wait: where one is, and the purge of all.

use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use rusqlite::{Connection, OptionalExtension};

use super::dead::STEP;
use super::failure::{Failure, Outcome};
use super::names::{self, Kind};
use super::tx::{Millis, State, Tx, moment, span};
use super::{SqliteQueue, cancel, results};
use crate::{
    Cancelled, Elsewhere, Headers, Job, JobId, JobState, Operator, Purged, Result, ResultStore,
};

/// Jobs that wait are found by what they wait for; the places of those that were published before
/// the purge began are no higher than `last`.
#[derive(Debug, Clone, Copy)]
struct Sweep {
    part: Part,
    last: Option<i64>,
}

/// Where a step of a purge looks: first where jobs go in line from, since some do meanwhile.
#[derive(Debug, Clone, Copy)]
enum Part {
    /// Among the delayed, from this moment on.
    Delayed(Millis),
    /// Among those whose lease has ended.
    Lapsed,
    /// In line, with this rank.
    Line(i64),
}

impl Part {
    const FIRST: Self = Self::Delayed(0);

    fn next(self) -> Option<Self> {
        match self {
            Self::Delayed(_) => Some(Self::Lapsed),
            Self::Lapsed => Some(Self::Line(0)),
            Self::Line(rank) if rank < 2 => Some(Self::Line(rank + 1)),
            Self::Line(_) => None,
        }
    }

    /// The rows of the next jobs, each with its moment.
    fn rows(self, tx: &Tx<'_>, now: Millis, last: i64) -> Outcome<Vec<(i64, Millis)>> {
        let (index, condition, value, order) = match self {
            Self::Delayed(from) => ("jobs_delayed", "state = 2 AND due >= ?2", from, "due"),
            Self::Lapsed => ("jobs_leased", "state = 1 AND due <= ?2", now, "due"),
            Self::Line(rank) => ("jobs_line", "state = 0 AND rank = ?2", rank, "place"),
        };
        let sql = format!(
            "SELECT n, coalesce(due, 0) FROM jobs INDEXED BY {index}
             WHERE queue = ?1 AND {condition} AND place <= ?3
             AND (deadline IS NULL OR deadline > ?4) ORDER BY {order} LIMIT ?5"
        );
        let row = (tx.queue, value, last, now, STEP as i64);
        Ok(tx.sql(&sql)?.query_map(row, |row| row.try_into())?.collect::<Result<_, _>>()?)
    }
}

/// Deletes the next jobs that wait; where to go on, if there may be more.
fn step(tx: &mut Tx<'_>, now: Millis, sweep: Sweep) -> Outcome<(Purged, Option<Sweep>)> {
    let last = sweep.last.unwrap_or(tx.counters.places);
    let rows = sweep.part.rows(tx, now, last)?;
    let mut purged = Purged { n_jobs: rows.len() as u64, ..Purged::default() };
    for (n, _) in &rows {
        purged.referring.extend(delete(tx, now, *n)?);
    }
    let part = match (rows.last(), sweep.part) {
        (Some((_, due)), part) if rows.len() == STEP => match part {
            Part::Delayed(_) => Some(Part::Delayed(*due)),
            part => Some(part),
        },
        (_, part) => part.next(),
    };
    Ok((purged, part.map(|part| Sweep { part, last: Some(last) })))
}

/// Deletes a job and all that is known of it; returns it where its body lies elsewhere and is of use
/// to no other queue.
fn delete(tx: &mut Tx<'_>, now: Millis, n: i64) -> Outcome<Option<Job>> {
    type Row = (i64, String, Option<String>, Option<i64>, Millis);
    let sql = "DELETE FROM jobs WHERE n = ?1 RETURNING state, id, key, cost, enqueued_at";
    let row: Row = tx.sql(sql)?.query_row([n], |row| row.try_into())?;
    let (state, id, key, cost, enqueued_at) = row;
    let id: JobId = id.parse()?;
    let sql = "SELECT headers, body FROM payloads
               WHERE n = ?1 AND json_extract(headers, '$.body_ref') IS NOT NULL";
    let referring: Option<(String, Vec<u8>)> =
        tx.sql(sql)?.query_row([n], |row| row.try_into()).optional()?;
    tx.sql("DELETE FROM payloads WHERE n = ?1")?.execute([n])?;
    names::forget(tx, id.as_str(), key.as_deref())?;
    let has_gone_on = results::reset(tx, now, id.as_str())?;
    tx.news.push(id.clone());
    tx.leaves(State::from_stored(state), cost);
    let Some((headers, body)) = referring.filter(|_| !has_gone_on) else { return Ok(None) };
    let headers: Headers =
        serde_json::from_str(&headers).map_err(|error| Failure::garbled("headers", error))?;
    Ok(Some(Job { id, enqueued_at: moment(enqueued_at), headers, body: body.into() }))
}

/// Deletes the next dead letters that died longer ago than this.
pub(super) fn old(
    tx: &mut Tx<'_>,
    now: Millis,
    (ttl, elsewhere): (Duration, Elsewhere),
) -> Outcome<Purged> {
    let sql = "SELECT n, died_at, json_extract(headers, '$.body_ref') IS NOT NULL
               FROM jobs INDEXED BY jobs_dead JOIN payloads USING (n)
               WHERE queue = ?1 AND state = 3 ORDER BY place LIMIT ?2";
    let found: Vec<(i64, Millis, bool)> = tx
        .sql(sql)?
        .query_map((tx.queue, STEP as i64), |row| row.try_into())?
        .collect::<Result<_, _>>()?;
    let last = now - span(ttl);
    // In the order in which they died, so that no more than a step is looked at.
    let old = found.into_iter().take_while(|(_, died_at, _)| *died_at <= last);
    let may_go =
        |(.., is_referring): &(i64, Millis, bool)| elsewhere == Elsewhere::Take || !is_referring;
    let (old, left): (Vec<_>, Vec<_>) = old.partition(may_go);
    let mut purged = Purged { n_left: left.len() as u64, ..Purged::default() };
    for (n, ..) in old.into_iter().take(elsewhere.step(STEP)) {
        purged.n_jobs += 1;
        purged.referring.extend(delete(tx, now, n)?);
    }
    Ok(purged)
}

/// Where the job under this id is.
fn state(db: &Connection, queue: i64, now: Millis, id: &JobId) -> Outcome<JobState> {
    type Row = (Option<State>, Option<Millis>, Option<Millis>);
    let sql = "SELECT state, due, deadline FROM names LEFT JOIN jobs USING (n)
               WHERE names.queue = ?1 AND kind = ?2 AND name = ?3
               AND (expires IS NULL OR expires > ?4)";
    let row = (queue, Kind::Id as i64, id.as_str(), now);
    let found: Option<Row> = db
        .prepare_cached(sql)?
        .query_row(row, |row| {
            let state: Option<i64> = row.get(0)?;
            Ok((state.map(State::from_stored), row.get(1)?, row.get(2)?))
        })
        .optional()?;
    let Some((state, due, deadline)) = found else { return Ok(JobState::Unknown) };
    let is_to_come = due.is_some_and(|due| due > now);
    let is_late = deadline.is_some_and(|deadline| deadline <= now);
    Ok(match state {
        None => JobState::Done,
        Some(State::Dead) => JobState::Dead,
        Some(State::Leased) if is_to_come => JobState::Running,
        Some(_) if is_late => {
            let answer = results::get(db, queue, now, id)?;
            let is_answered = answer.is_some_and(|answer| answer.outcome.is_completed());
            if is_answered { JobState::Done } else { JobState::Dead }
        }
        Some(State::Delayed) if is_to_come => JobState::Delayed,
        Some(_) => JobState::Waiting,
    })
}

#[async_trait]
impl Operator for SqliteQueue {
    async fn state(&self, id: &JobId) -> Result<Option<JobState>> {
        let (now, id) = (self.now(), id.clone());
        let look = move |db: &_, queue| state(db, queue, now, &id);
        self.shared.reader.run(look).await.map(Some)
    }

    async fn has_gone_on(&self, id: &JobId) -> Result<bool> {
        Ok(self.get(id).await?.is_some_and(|found| found.moved_to().is_some()))
    }

    async fn cancel(&self, id: &JobId) -> Result<Cancelled> {
        let (id, ttls) = (id.clone(), self.ttls());
        self.letters(move |tx, now| cancel::cancel(tx, now, ttls, &id)).await
    }

    async fn purge_waiting(&self) -> Result<BoxStream<'static, Result<Purged>>> {
        let first = Sweep { part: Part::FIRST, last: None };
        let steps = stream::try_unfold((self.clone(), Some(first)), |(queue, next)| async move {
            let Some(sweep) = next else { return Ok(None) };
            // What has expired is a dead letter before the next step looks.
            let (purged, next) = queue.letters(move |tx, now| step(tx, now, sweep)).await?;
            Ok(Some((purged, (queue, next))))
        });
        Ok(steps.boxed())
    }
}
