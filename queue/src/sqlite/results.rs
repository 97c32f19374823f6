//! Answers, and the pieces of those still being made.

use rusqlite::{Connection, OptionalExtension};

use super::failure::Outcome;
use super::names;
use super::tx::{Millis, Tx};
use crate::follow::Found;
use crate::{Frame, JobId, JobResult, Stored};

/// Pieces that one look takes at most.
const STEP: usize = 256;

/// Stores a result unless one is there that stays.
pub(super) fn put(
    tx: &mut Tx<'_>,
    now: Millis,
    ttl: Millis,
    result: &JobResult,
) -> Outcome<Stored> {
    let id = result.id.as_str();
    let completed = result.outcome.is_completed();
    let is_final = result.outcome.is_final();
    let before = end(tx, id, now)?;
    if before.is_some_and(End::is_final) {
        return Ok(Stored::Duplicate);
    }
    let latest = latest_attempt(tx, id, now)?;
    if latest.is_some_and(|latest| result.attempt < latest) {
        return Ok(Stored::Stale);
    }
    if before.is_some() && !is_final {
        return Ok(Stored::Duplicate);
    }
    if latest.is_some_and(|latest| !completed || latest < result.attempt) {
        // Pieces of a whole that is not theirs.
        forget_chunks(tx, id)?;
    }
    tx.sql(
        "INSERT OR REPLACE INTO results (queue, id, completed, expires, value)
         VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute((tx.queue, id, End::of(&result.outcome) as i64, now + ttl, result.encode()))?;
    tx.news.push(result.id.clone());
    Ok(Stored::Stored)
}

/// Stores the failure of a job that its queue buries by itself: nobody has the job, so pieces of an
/// attempt that gave it back are void, whatever number they bear.
pub(super) fn bury(
    tx: &mut Tx<'_>,
    now: Millis,
    ttl: Millis,
    mut failure: JobResult,
) -> Outcome<Stored> {
    let latest = latest_attempt(tx, failure.id.as_str(), now)?;
    failure.attempt = failure.attempt.max(latest.unwrap_or_default());
    put(tx, now, ttl, &failure)
}

/// How a job ended, as the column `completed` has it: to older versions a cancelled job is a completed
/// one, whose result stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Failed = 0,
    Completed = 1,
    Cancelled = 2,
}

impl End {
    fn of(outcome: &crate::Outcome) -> Self {
        match outcome {
            crate::Outcome::Failed { .. } => Self::Failed,
            crate::Outcome::Completed { .. } => Self::Completed,
            crate::Outcome::Cancelled => Self::Cancelled,
        }
    }

    pub(super) fn is_final(self) -> bool {
        self != Self::Failed
    }
}

/// How the job ended, as far as its result says.
pub(super) fn end(tx: &Tx<'_>, id: &str, now: Millis) -> Outcome<Option<End>> {
    let sql = "SELECT completed FROM results WHERE queue = ?1 AND id = ?2 AND expires > ?3";
    let found: Option<i64> =
        tx.sql(sql)?.query_row((tx.queue, id, now), |row| row.get(0)).optional()?;
    Ok(found.map(|end| match end {
        0 => End::Failed,
        1 => End::Completed,
        _ => End::Cancelled,
    }))
}

/// The attempt that failed, as far as its result says.
pub(super) fn failed_attempt(tx: &Tx<'_>, id: &str, now: Millis) -> Outcome<Option<u32>> {
    let sql = "SELECT value FROM results
               WHERE queue = ?1 AND id = ?2 AND completed = 0 AND expires > ?3";
    let value: Option<Vec<u8>> =
        tx.sql(sql)?.query_row((tx.queue, id, now), |row| row.get(0)).optional()?;
    let failure = value.as_deref().map(JobResult::decode).transpose()?;
    Ok(failure.map(|failure| failure.attempt))
}

/// The latest attempt that has sent pieces.
fn latest_attempt(tx: &Tx<'_>, id: &str, now: Millis) -> Outcome<Option<u32>> {
    let sql = "SELECT attempt FROM chunks WHERE queue = ?1 AND id = ?2 AND expires > ?3
               ORDER BY attempt DESC, seq DESC LIMIT 1";
    Ok(tx.sql(sql)?.query_row((tx.queue, id, now), |row| row.get(0)).optional()?)
}

fn forget_chunks(tx: &Tx<'_>, id: &str) -> Outcome<()> {
    tx.sql("DELETE FROM chunks WHERE queue = ?1 AND id = ?2")?.execute((tx.queue, id))?;
    Ok(())
}

/// One piece of an answer.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) id: JobId,
    pub(super) attempt: u32,
    pub(super) seq: i64,
    pub(super) body: bytes::Bytes,
}

/// Adds a piece unless it is not wanted any more.
pub(super) fn chunk(tx: &mut Tx<'_>, now: Millis, ttl: Millis, piece: &Piece) -> Outcome<Stored> {
    let id = piece.id.as_str();
    if end(tx, id, now)?.is_some_and(End::is_final) {
        return Ok(Stored::Stale);
    }
    match latest_attempt(tx, id, now)? {
        Some(latest) if piece.attempt < latest => return Ok(Stored::Stale),
        Some(latest) if piece.attempt > latest => forget_chunks(tx, id)?,
        _ => {}
    }
    let sql = "INSERT INTO chunks (queue, id, attempt, seq, expires, body)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6)
               ON CONFLICT (queue, id, attempt, seq) DO UPDATE
               SET expires = excluded.expires, body = excluded.body WHERE expires <= ?7";
    let row = (tx.queue, id, piece.attempt, piece.seq, now + ttl, &*piece.body, now);
    if tx.sql(sql)?.execute(row)? == 0 {
        return Ok(Stored::Duplicate);
    }
    tx.news.push(piece.id.clone());
    Ok(Stored::Stored)
}

/// Forgets what a job that is put back left behind: its attempts count from 1 again. Returns whether
/// it has gone on to another queue.
///
/// A completed result stays, with its pieces, and so does the record that it has gone on.
pub(super) fn reset(tx: &Tx<'_>, now: Millis, id: &str) -> Outcome<bool> {
    let sql = "SELECT completed, CASE WHEN completed THEN NULL ELSE value END FROM results
               WHERE queue = ?1 AND id = ?2 AND expires > ?3";
    let found: Option<(bool, Option<Vec<u8>>)> =
        tx.sql(sql)?.query_row((tx.queue, id, now), |row| row.try_into()).optional()?;
    let (is_completed, failed) = found.unwrap_or_default();
    let failed = failed.as_deref().map(JobResult::decode).transpose()?;
    let has_gone_on = failed.is_some_and(|failed| failed.moved_to().is_some());
    if !is_completed && !has_gone_on {
        let sql = "DELETE FROM results WHERE queue = ?1 AND id = ?2";
        tx.sql(sql)?.execute((tx.queue, id))?;
        forget_chunks(tx, id)?;
    }
    Ok(has_gone_on)
}

/// The result, while its time lasts.
pub(super) fn get(
    db: &Connection,
    queue: i64,
    now: Millis,
    id: &JobId,
) -> Outcome<Option<JobResult>> {
    let sql = "SELECT value FROM results WHERE queue = ?1 AND id = ?2 AND expires > ?3";
    let value: Option<Vec<u8>> = db
        .prepare_cached(sql)?
        .query_row((queue, id.as_str(), now), |row| row.get(0))
        .optional()?;
    Ok(value.as_deref().map(JobResult::decode).transpose()?)
}

/// How far somebody has followed a result.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor {
    /// 0 as long as no piece has been seen.
    attempt: u32,
    seq: i64,
}

impl Cursor {
    pub(super) fn from_seq(seq: u64) -> Self {
        Self { attempt: 0, seq: i64::try_from(seq).unwrap_or(i64::MAX) }
    }
}

/// What came since the cursor: the pieces in order without a gap, then the result.
pub(super) fn frames(
    db: &Connection,
    queue: i64,
    now: Millis,
    (id, mut cursor): (&JobId, Cursor),
) -> Outcome<Found<Cursor>> {
    // First: who answers does so before the job is done.
    let standing = names::standing(db, queue, now, id.as_str())?;
    let sql = "SELECT max(attempt) FROM chunks WHERE queue = ?1 AND id = ?2 AND expires > ?3";
    let latest: Option<u32> =
        db.prepare_cached(sql)?.query_row((queue, id.as_str(), now), |row| row.get(0))?;
    if let Some(latest) = latest.filter(|latest| *latest != cursor.attempt) {
        // What was read of another attempt is void.
        let seq = if cursor.attempt == 0 { cursor.seq } else { 0 };
        cursor = Cursor { attempt: latest, seq };
    }
    let sql = "SELECT seq, body FROM chunks
               WHERE queue = ?1 AND id = ?2 AND attempt = ?3 AND seq >= ?4 AND expires > ?5
               ORDER BY seq LIMIT ?6";
    let row = (queue, id.as_str(), cursor.attempt, cursor.seq, now, STEP as i64);
    let mut frames = Vec::new();
    let mut statement = db.prepare_cached(sql)?;
    let mut rows = statement.query(row)?;
    while let Some(row) = rows.next()? {
        let seq: i64 = row.get(0)?;
        if seq != cursor.seq {
            break;
        }
        cursor.seq += 1;
        let (attempt, body) = (cursor.attempt, row.get::<_, Vec<u8>>(1)?.into());
        frames.push(Frame::Chunk { attempt, seq: seq.cast_unsigned(), body });
    }
    let is_cut = frames.len() == STEP;
    if !is_cut {
        frames.extend(get(db, queue, now, id)?.map(Frame::Final));
    }
    Ok(Found { frames, cursor, is_cut, standing })
}
