//! Forgets what is past its time, and buries jobs that have expired, a little now and then, in a
//! transaction that was due anyway: where no worker runs nobody else would, and each look reads them all.

use super::dead::{self, Ttls};
use super::failure::Outcome;
use super::tx::{Millis, Tx, span};
use crate::STATUS_TTL;

/// Rows of one kind that a step deletes at most: others wait for the writer.
const STEP: usize = 500;

/// The pause when nothing is left to do.
pub(super) const PAUSE: Millis = 1000;

/// The pause when there is more.
const NO_PAUSE: Millis = 20;

/// Deletes a few rows, and buries a few jobs; returns how long the next step may wait.
pub(super) fn step(tx: &mut Tx<'_>, now: Millis, ttls: Ttls) -> Outcome<Millis> {
    let mut most = dead::expire(tx, now, ttls)?;
    for (table, row) in [("names", "queue, kind, name"), ("results", "n"), ("chunks", "n")] {
        let sql = format!(
            "DELETE FROM {table} WHERE ({row}) IN
             (SELECT {row} FROM {table} WHERE expires <= ?1 ORDER BY expires LIMIT ?2)"
        );
        most = most.max(tx.sql(&sql)?.execute((now, STEP as i64))?);
    }
    let gone = now - span(STATUS_TTL);
    tx.sql("DELETE FROM workers WHERE queue = ?1 AND seen <= ?2")?.execute((tx.queue, gone))?;
    Ok(if most >= STEP { NO_PAUSE } else { PAUSE })
}
