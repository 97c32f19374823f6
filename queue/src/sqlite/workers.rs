//! What workers say of themselves.

use rusqlite::{Connection, OptionalExtension};

use super::failure::Outcome;
use super::tx::{Millis, Tx, span};
use crate::{Phase, STATUS_TTL, WorkerStatus};

/// Keeps the last status of a worker; a new phase is told.
pub(super) fn report(tx: &mut Tx<'_>, now: Millis, status: &WorkerStatus) -> Outcome<()> {
    let sql = "SELECT phase FROM workers WHERE queue = ?1 AND id = ?2 AND seen > ?3";
    let known = (tx.queue, &status.id, now - span(STATUS_TTL));
    let before: Option<i64> = tx.sql(sql)?.query_row(known, |row| row.get(0)).optional()?;
    let phase = number(status.phase);
    let sql = "INSERT OR REPLACE INTO workers (queue, id, phase, seen, status)
               VALUES (?1, ?2, ?3, ?4, ?5)";
    tx.sql(sql)?.execute((tx.queue, &status.id, phase, now, status.encode()))?;
    if before != Some(phase) {
        tx.tell();
    }
    Ok(())
}

fn number(phase: Phase) -> i64 {
    match phase {
        Phase::Starting => 1,
        Phase::Idle => 2,
        Phase::Busy => 3,
        Phase::Draining => 4,
    }
}

/// The last status of each worker that is not taken for gone.
pub(super) fn alive(db: &Connection, queue: i64, now: Millis) -> Outcome<Vec<WorkerStatus>> {
    let sql = "SELECT status FROM workers WHERE queue = ?1 AND seen > ?2 ORDER BY id";
    let stored: Vec<Vec<u8>> = db
        .prepare_cached(sql)?
        .query_map((queue, now - span(STATUS_TTL)), |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    stored.iter().map(|bytes| Ok(WorkerStatus::decode(bytes)?)).collect()
}
