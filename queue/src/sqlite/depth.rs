//! How much waits and runs: counters, corrected by what time alone has changed since.

use rusqlite::{Connection, OptionalExtension};

use super::failure::Outcome;
use super::tx::{Counters, Millis, State, moment, rank};
use crate::{ByPriority, Depth, Priority, Timestamp};

/// Jobs that the counters still have in another state.
#[derive(Debug, Default)]
struct Range {
    n: i64,
    high: i64,
    low: i64,
    cost: i64,
    oldest: Option<Millis>,
    /// The soonest deadline.
    deadline: Option<Millis>,
}

/// So many jobs of a priority are counted in line; beyond that the others are, and the rest is
/// known from the total.
const COUNTED: i64 = 1000;

/// Counts the jobs by state. What it reads does not grow with the backlog.
pub(super) fn depth(
    db: &Connection,
    queue: i64,
    counters: &Counters,
    now: Timestamp,
) -> Outcome<Depth> {
    let at = now.as_millisecond();
    let range = |index: &str, condition: &str| range(db, (queue, at), index, condition);
    let alive = "(deadline IS NULL OR deadline > ?2)";
    let due = range("jobs_delayed", &format!("state = 2 AND due <= ?2 AND {alive}"))?;
    let lapsed = range("jobs_leased", "state = 1 AND due <= ?2")?;
    let lapsed_alive = range("jobs_leased", &format!("state = 1 AND due <= ?2 AND {alive}"))?;
    let late_ready = range("jobs_deadline", "state = 0 AND deadline <= ?2")?;
    let late_delayed = range("jobs_deadline", "state = 2 AND deadline <= ?2")?;
    let late_lapsed = lapsed.n - lapsed_alive.n;
    let answered = answered_late(db, queue, at)?;
    let oldest = oldest_in_line(db, queue, at)?;
    let cost = counters.cost + due.cost - late_ready.cost - (lapsed.cost - lapsed_alive.cost);
    let ready = count(counters.ready - late_ready.n + due.n + lapsed_alive.n);
    let deadline = soonest_deadline(db, queue, at)?;
    let next_delayed = next_of(db, (queue, at), State::Delayed)?;
    let next_lapse = next_of(db, (queue, at), State::Leased)?;
    Ok(Depth {
        ready,
        in_flight: count(counters.leased - lapsed.n),
        delayed: count(counters.delayed - due.n - late_delayed.n),
        dead: count(counters.dead + late_ready.n + late_delayed.n + late_lapsed - answered),
        oldest_ready: oldest
            .into_iter()
            .chain(due.oldest)
            .chain(lapsed_alive.oldest)
            .min()
            .map(moment),
        next_due: next_delayed.into_iter().chain(next_lapse).min().map(moment),
        next_delayed: next_delayed.map(moment),
        cost: Some(cost as f64 / 1e3),
        ready_by_priority: Some(by_priority(db, (queue, at), ready, [&due, &lapsed_alive])?),
        first_deadline: [deadline, due.deadline, lapsed_alive.deadline]
            .into_iter()
            .flatten()
            .min()
            .map(moment),
        ..Depth::empty(now)
    })
}

/// The ready jobs by priority. What it reads does not grow with the backlog, so that where more
/// than one priority has many jobs, some of them count as normal.
fn by_priority(
    db: &Connection,
    (queue, now): (i64, Millis),
    ready: u64,
    elsewhere: [&Range; 2],
) -> Outcome<ByPriority> {
    let in_line = |priority: Priority| {
        let sql = "SELECT count(*) FROM (
                       SELECT 1 FROM jobs INDEXED BY jobs_line
                       WHERE queue = ?1 AND rank = ?2 AND state = 0
                       AND (deadline IS NULL OR deadline > ?3) LIMIT ?4)";
        let row = (queue, rank(priority), now, COUNTED);
        db.prepare_cached(sql)?.query_row(row, |row| row.get::<_, i64>(0))
    };
    let high = in_line(Priority::High)? + elsewhere.iter().map(|range| range.high).sum::<i64>();
    let low = in_line(Priority::Low)? + elsewhere.iter().map(|range| range.low).sum::<i64>();
    let (mut high, mut low) = (count(high).min(ready), count(low).min(ready));
    if high.max(low) >= COUNTED.cast_unsigned() {
        let n_elsewhere: i64 = elsewhere.iter().map(|range| range.n - range.high - range.low).sum();
        let normal = in_line(Priority::Normal)? + n_elsewhere;
        if normal < COUNTED {
            let rest = ready.saturating_sub(count(normal));
            (high, low) = if high < low {
                (high, rest.saturating_sub(high))
            } else {
                (rest.saturating_sub(low), low)
            };
        }
    }
    let low = low.min(ready - high);
    Ok(ByPriority { high, normal: ready - high - low, low })
}

/// The soonest deadline in line, if it is among the first of all deadlines to come.
fn soonest_deadline(db: &Connection, queue: i64, now: Millis) -> Outcome<Option<Millis>> {
    let sql = "SELECT min(deadline) FROM (
                   SELECT deadline, state FROM jobs INDEXED BY jobs_deadline
                   WHERE queue = ?1 AND deadline > ?2 ORDER BY deadline LIMIT ?3)
               WHERE state = 0";
    Ok(db.prepare_cached(sql)?.query_row((queue, now, COUNTED), |row| row.get(0))?)
}

/// Expired jobs that are done, for their answers are there.
fn answered_late(db: &Connection, queue: i64, now: Millis) -> Outcome<i64> {
    let sql = "SELECT count(*) FROM jobs INDEXED BY jobs_deadline
               WHERE queue = ?1 AND deadline <= ?2 AND (state <> 1 OR due <= ?2)
               AND EXISTS (SELECT 1 FROM results WHERE results.queue = ?1
                           AND results.id = jobs.id AND completed AND results.expires > ?2)";
    Ok(db.prepare_cached(sql)?.query_row((queue, now), |row| row.get(0))?)
}

fn count(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

fn range(
    db: &Connection,
    (queue, now): (i64, Millis),
    index: &str,
    condition: &str,
) -> Outcome<Range> {
    let sql = format!(
        "SELECT count(*), coalesce(sum(cost), 0), min(enqueued_at), min(deadline),
                coalesce(sum(rank = {}), 0), coalesce(sum(rank = {}), 0)
         FROM jobs INDEXED BY {index} WHERE queue = ?1 AND {condition}",
        rank(Priority::High),
        rank(Priority::Low)
    );
    let range = db.prepare_cached(&sql)?.query_row((queue, now), |row| {
        Ok(Range {
            n: row.get(0)?,
            cost: row.get(1)?,
            oldest: row.get(2)?,
            deadline: row.get(3)?,
            high: row.get(4)?,
            low: row.get(5)?,
        })
    });
    Ok(range?)
}

fn oldest_in_line(db: &Connection, queue: i64, now: Millis) -> Outcome<Option<Millis>> {
    let sql = "SELECT enqueued_at FROM jobs INDEXED BY jobs_age
               WHERE queue = ?1 AND state = 0 AND (deadline IS NULL OR deadline > ?2)
               ORDER BY enqueued_at LIMIT 1";
    Ok(db.prepare_cached(sql)?.query_row((queue, now), |row| row.get(0)).optional()?)
}

/// The next moment at which time alone makes a job ready.
pub(super) fn next_due(db: &Connection, queue: i64, now: Millis) -> Outcome<Option<Millis>> {
    let delayed = next_of(db, (queue, now), State::Delayed)?;
    Ok(delayed.into_iter().chain(next_of(db, (queue, now), State::Leased)?).min())
}

/// The same of the jobs that are delayed, or of those that are leased.
fn next_of(db: &Connection, (queue, now): (i64, Millis), state: State) -> Outcome<Option<Millis>> {
    let index = if matches!(state, State::Delayed) { "jobs_delayed" } else { "jobs_leased" };
    let sql = format!(
        "SELECT due FROM jobs INDEXED BY {index}
         WHERE queue = ?1 AND state = {} AND due > ?2
         AND (deadline IS NULL OR deadline > due) ORDER BY due LIMIT 1",
        state as i64
    );
    Ok(db.prepare_cached(&sql)?.query_row((queue, now), |row| row.get(0)).optional()?)
}
