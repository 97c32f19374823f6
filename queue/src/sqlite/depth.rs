//! How much waits and runs: counters, corrected by what time alone has changed since.

use rusqlite::{Connection, OptionalExtension};

use super::failure::Outcome;
use super::tx::{Counters, Millis, State, moment};
use crate::{Depth, Timestamp};

/// Jobs that the counters still have in another state.
#[derive(Debug, Default)]
struct Range {
    n: i64,
    cost: i64,
    oldest: Option<Millis>,
}

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
    Ok(Depth {
        ready: count(counters.ready - late_ready.n + due.n + lapsed_alive.n),
        in_flight: count(counters.leased - lapsed.n),
        delayed: count(counters.delayed - due.n - late_delayed.n),
        dead: count(counters.dead + late_ready.n + late_delayed.n + late_lapsed - answered),
        oldest_ready: oldest
            .into_iter()
            .chain(due.oldest)
            .chain(lapsed_alive.oldest)
            .min()
            .map(moment),
        next_due: next_due(db, queue, at)?.map(moment),
        cost: Some(cost as f64 / 1e3),
        as_of: now,
    })
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
        "SELECT count(*), coalesce(sum(cost), 0), min(enqueued_at)
         FROM jobs INDEXED BY {index} WHERE queue = ?1 AND {condition}"
    );
    let range = db.prepare_cached(&sql)?.query_row((queue, now), |row| {
        Ok(Range { n: row.get(0)?, cost: row.get(1)?, oldest: row.get(2)? })
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
    let mut soonest: Option<Millis> = None;
    for (state, index) in [(State::Delayed, "jobs_delayed"), (State::Leased, "jobs_leased")] {
        let sql = format!(
            "SELECT due FROM jobs INDEXED BY {index}
             WHERE queue = ?1 AND state = {} AND due > ?2
             AND (deadline IS NULL OR deadline > due) ORDER BY due LIMIT 1",
            state as i64
        );
        let next = db.prepare_cached(&sql)?.query_row((queue, now), |row| row.get(0)).optional()?;
        soonest = soonest.into_iter().chain(next).min();
    }
    Ok(soonest)
}
