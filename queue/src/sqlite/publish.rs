//! New jobs.

use super::depth;
use super::failure::{Failure, Outcome};
use super::names::{self, Kind};
use super::tx::{Counters, Millis, State, Tx, millis, moment, rank};
use crate::{Error, ErrorKind, Job, Published};

/// A job whose cost hint is absurd shall not spoil the sum of all: a thousand million tokens.
const DEAREST: f64 = 1e9;

/// Stores the jobs, or none when more would wait than may.
pub(super) fn publish(
    tx: &mut Tx<'_>,
    now: Millis,
    jobs: &[Job],
    max_ready: Option<u64>,
) -> Outcome<Vec<Published>> {
    let published: Vec<_> =
        jobs.iter().map(|job| publish_one(tx, now, job)).collect::<Outcome<_>>()?;
    if published.iter().all(|one| one.duplicate) {
        return Ok(published);
    }
    if let Some(limit) = max_ready
        && more_wait_than(tx, now, limit)?
    {
        let words = format!("the queue is full: max_ready is {limit} jobs; publish later");
        return Err(Error::new(ErrorKind::Full, words).into());
    }
    tx.tell();
    Ok(published)
}

fn more_wait_than(tx: &Tx<'_>, now: Millis, limit: u64) -> Outcome<bool> {
    let Counters { ready, leased, delayed, .. } = tx.counters;
    if u64::try_from(ready + leased + delayed).unwrap_or(0) <= limit {
        return Ok(false);
    }
    // Leases that have run out wait, and jobs past their deadline do not.
    let depth = depth::depth(tx.db(), tx.queue, &tx.counters, moment(now))?;
    Ok(depth.ready + depth.delayed > limit)
}

fn publish_one(tx: &mut Tx<'_>, now: Millis, job: &Job) -> Outcome<Published> {
    let headers = &job.headers;
    let id = job.id.as_str();
    if names::known(tx, Kind::Id, id, now)?.is_some() {
        return Ok(Published { id: job.id.clone(), duplicate: true });
    }
    if let Some(key) = &headers.key
        && let Some(first) = names::known(tx, Kind::Key, key, now)?
    {
        return Ok(Published { id: first.try_into()?, duplicate: true });
    }
    let due = headers.not_before.map(millis).filter(|due| *due > now);
    let state = if due.is_some() { State::Delayed } else { State::Ready };
    let cost = headers.cost.map(thousandths);
    let place = tx.place();
    tx.sql(
        "INSERT INTO jobs
         (queue, id, state, rank, place, due, deadline, cost, enqueued_at, key)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )?
    .execute((
        tx.queue,
        id,
        state as i64,
        rank(headers.priority),
        place,
        due,
        headers.deadline.map(millis),
        cost,
        millis(job.enqueued_at),
        &headers.key,
    ))?;
    let n = tx.last_row();
    let envelope =
        serde_json::to_string(headers).map_err(|error| Failure::garbled("headers", error))?;
    tx.sql("INSERT INTO payloads (n, headers, body) VALUES (?1, ?2, ?3)")?
        .execute((n, envelope, &*job.body))?;
    names::remember(tx, Kind::Id, id, id, n)?;
    if let Some(key) = &headers.key {
        names::remember(tx, Kind::Key, key, id, n)?;
    }
    tx.enters(state, cost);
    Ok(Published { id: job.id.clone(), duplicate: false })
}

/// Whole numbers, so that what is added can be taken away again exactly.
#[allow(clippy::cast_possible_truncation, reason = "clamped before")]
fn thousandths(cost: f64) -> i64 {
    (cost.clamp(0.0, DEAREST) * 1e3).round() as i64
}
