//! What a second publication is recognised by: ids, and idempotency keys.

use rusqlite::{Connection, OptionalExtension};

use super::tx::{Millis, Tx};
use crate::follow::Standing;

/// What a name is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// The id of a job.
    Id = 0,
    /// An idempotency key.
    Key = 1,
}

/// The id of the job that is known under this name, unless it ended too long ago.
pub(super) fn known(
    tx: &Tx<'_>,
    kind: Kind,
    name: &str,
    now: Millis,
) -> rusqlite::Result<Option<String>> {
    let sql = "SELECT job FROM names WHERE queue = ?1 AND kind = ?2 AND name = ?3
               AND (expires IS NULL OR expires > ?4)";
    let row = (tx.queue, kind as i64, name, now);
    tx.sql(sql)?.query_row(row, |row| row.get(0)).optional()
}

/// What is known of the job under this id.
pub(super) fn standing(
    db: &Connection,
    queue: i64,
    now: Millis,
    id: &str,
) -> rusqlite::Result<Standing> {
    let sql = "SELECT expires FROM names WHERE queue = ?1 AND kind = ?2 AND name = ?3
               AND (expires IS NULL OR expires > ?4)";
    let row = (queue, Kind::Id as i64, id, now);
    let expires: Option<Option<Millis>> =
        db.prepare_cached(sql)?.query_row(row, |row| row.get(0)).optional()?;
    Ok(match expires {
        None => Standing::Unknown,
        Some(None) => Standing::Open,
        Some(Some(_)) => Standing::Done,
    })
}

/// Remembers a name of job `n` while there is the job.
pub(super) fn remember(
    tx: &Tx<'_>,
    kind: Kind,
    name: &str,
    job: &str,
    n: i64,
) -> rusqlite::Result<()> {
    let sql = "INSERT OR REPLACE INTO names (queue, kind, name, job, n)
               VALUES (?1, ?2, ?3, ?4, ?5)";
    tx.sql(sql)?.execute((tx.queue, kind as i64, name, job, n))?;
    Ok(())
}

/// The job has ended: forgets it at `expires`, and until then knows which settlement ended it.
pub(super) fn ends(
    tx: &Tx<'_>,
    (id, key): (&str, Option<&str>),
    settled: Option<i64>,
    expires: Millis,
) -> rusqlite::Result<()> {
    let sql = "UPDATE names SET n = NULL, settled = ?4, expires = ?5
               WHERE queue = ?1 AND kind = ?2 AND name = ?3";
    tx.sql(sql)?.execute((tx.queue, Kind::Id as i64, id, settled, expires))?;
    if let Some(key) = key {
        tx.sql(sql)?.execute((tx.queue, Kind::Key as i64, key, settled, expires))?;
    }
    Ok(())
}

/// Forgets a job that an operator deleted.
pub(super) fn forget(tx: &Tx<'_>, id: &str, key: Option<&str>) -> rusqlite::Result<()> {
    let sql = "DELETE FROM names WHERE queue = ?1 AND kind = ?2 AND name = ?3";
    tx.sql(sql)?.execute((tx.queue, Kind::Id as i64, id))?;
    if let Some(key) = key {
        tx.sql(sql)?.execute((tx.queue, Kind::Key as i64, key))?;
    }
    Ok(())
}

/// Whether the job under this id was ended by this very settlement.
pub(super) fn ended_by(tx: &Tx<'_>, id: &str, settled: i64, now: Millis) -> rusqlite::Result<bool> {
    let sql = "SELECT 1 FROM names WHERE queue = ?1 AND kind = ?2 AND name = ?3 AND settled = ?4
               AND (expires IS NULL OR expires > ?5)";
    tx.sql(sql)?.exists((tx.queue, Kind::Id as i64, id, settled, now))
}
