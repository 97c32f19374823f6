//! The ends of deliveries, and the extension of leases.

use rusqlite::OptionalExtension;

use super::failure::Outcome;
use super::mark::Mark;
use super::names;
use super::results::{self, End};
use super::stored::{self, History};
use super::tx::{Millis, State, Tx, span};
use super::{dead, tx};
use crate::{JobId, Receipt, Settled, Settlement, Verdict};

/// A settlement that can travel to the writer.
#[derive(Debug)]
pub(super) struct Settling {
    id: JobId,
    mark: Option<Mark>,
    verdict: Verdict,
}

impl From<&Settlement> for Settling {
    fn from(settlement: &Settlement) -> Self {
        let receipt = settlement.receipt();
        Self {
            id: receipt.job.clone(),
            mark: Mark::parse(&receipt.token),
            verdict: settlement.verdict().clone(),
        }
    }
}

/// A job whose last lease nobody has settled or taken over.
#[derive(Debug)]
struct Held {
    mark: Mark,
    state: State,
    attempts: u32,
    cost: Option<i64>,
    key: Option<String>,
    history: History,
}

/// Carries out verdicts.
pub(super) fn settle(
    tx: &mut Tx<'_>,
    now: Millis,
    key_ttl: Millis,
    settlings: &[Settling],
) -> Outcome<Vec<Settled>> {
    let settle_one = |settling| settle_one(tx, now, key_ttl, settling);
    settlings.iter().map(settle_one).collect()
}

fn settle_one(
    tx: &mut Tx<'_>,
    now: Millis,
    key_ttl: Millis,
    settling: &Settling,
) -> Outcome<Settled> {
    let Some(mark) = settling.mark else { return Ok(Settled::Lost) };
    let Some(held) = held(tx, &settling.id, mark)? else {
        return settled_before(tx, now, &settling.id, mark);
    };
    match &settling.verdict {
        Verdict::Ack => finish(tx, now + key_ttl, &settling.id, &held)?,
        Verdict::Retry { after, reason } => {
            let mut history = held.history;
            history.push(held.attempts, now, reason)?;
            let due = Some(now + span(*after)).filter(|due| *due > now);
            put_back(tx, &Held { history, ..held }, held.attempts, due)?;
        }
        Verdict::Release => put_back(tx, &held, held.attempts.saturating_sub(1), None)?,
        Verdict::Reject(why) => {
            let mut history = held.history;
            history.push(held.attempts, now, &why.reason)?;
            let death = dead::Death { at: now, why, settled: Some(mark.lease) };
            dead::bury(tx, (mark.n, held.state, held.cost), &history, &death)?;
        }
    }
    Ok(Settled::Held)
}

/// The job while this lease is its last. One that has run out counts until somebody takes over.
fn held(tx: &Tx<'_>, id: &JobId, mark: Mark) -> Outcome<Option<Held>> {
    let sql = "SELECT state, attempts, cost, key, history FROM jobs
               WHERE n = ?1 AND lease = ?2 AND queue = ?3 AND id = ?4";
    let row = (mark.n, mark.lease, tx.queue, id.as_str());
    let held = tx.sql(sql)?.query_row(row, |row| {
        Ok(Held {
            mark,
            state: stored::state(row, 0)?,
            attempts: row.get(1)?,
            cost: row.get(2)?,
            key: row.get(3)?,
            history: History(row.get(4)?),
        })
    });
    Ok(held.optional()?)
}

/// A settlement that is sent again was carried out the first time.
fn settled_before(tx: &Tx<'_>, now: Millis, id: &JobId, mark: Mark) -> Outcome<Settled> {
    let sql = "SELECT 1 FROM jobs WHERE n = ?1 AND settled = ?2 AND queue = ?3 AND id = ?4";
    let lives = tx.sql(sql)?.exists((mark.n, mark.lease, tx.queue, id.as_str()))?;
    let is_known = lives || names::ended_by(tx, id.as_str(), mark.lease, now)?;
    if is_known { Ok(Settled::Held) } else { lost(tx, now, id) }
}

/// Why a lease is not held.
fn lost(tx: &Tx<'_>, now: Millis, id: &JobId) -> Outcome<Settled> {
    let is_cancelled = results::end(tx, id.as_str(), now)? == Some(End::Cancelled);
    Ok(if is_cancelled { Settled::Cancelled } else { Settled::Lost })
}

fn finish(tx: &mut Tx<'_>, expires: Millis, id: &JobId, held: &Held) -> Outcome<()> {
    tx.sql("DELETE FROM jobs WHERE n = ?1")?.execute([held.mark.n])?;
    tx.sql("DELETE FROM payloads WHERE n = ?1")?.execute([held.mark.n])?;
    names::ends(tx, (id.as_str(), held.key.as_deref()), Some(held.mark.lease), expires)?;
    tx.news.push(id.clone());
    tx.leaves(held.state, held.cost);
    Ok(())
}

/// Ends a job that has been answered but not acked.
pub(super) fn finish_answered(tx: &mut Tx<'_>, expires: Millis, n: i64) -> Outcome<()> {
    type Row = (i64, String, Option<String>, Option<i64>, Option<i64>);
    let sql = "DELETE FROM jobs WHERE n = ?1
               RETURNING state, id, key, cost, coalesce(lease, settled)";
    let row: Row = tx.sql(sql)?.query_row([n], |row| row.try_into())?;
    let (state, id, key, cost, settled) = row;
    tx.sql("DELETE FROM payloads WHERE n = ?1")?.execute([n])?;
    names::ends(tx, (&id, key.as_deref()), settled, expires)?;
    tx.leaves(State::from_stored(state), cost);
    Ok(())
}

fn put_back(tx: &mut Tx<'_>, held: &Held, attempts: u32, due: Option<Millis>) -> Outcome<()> {
    let state = if due.is_some() { State::Delayed } else { State::Ready };
    let sql = "UPDATE jobs SET state = ?2, due = ?3, attempts = ?4, lease = NULL, worker = NULL,
               settled = ?5, history = ?6 WHERE n = ?1";
    let row = (held.mark.n, state as i64, due, attempts, held.mark.lease, &held.history.0);
    tx.sql(sql)?.execute(row)?;
    tx.moves(held.state, state, held.cost);
    tx.tell();
    Ok(())
}

/// Starts leases anew.
pub(super) fn extend(
    tx: &mut Tx<'_>,
    (now, lease): (Millis, Millis),
    receipts: &[Receipt],
) -> Outcome<Vec<Settled>> {
    receipts.iter().map(|receipt| extend_one(tx, (now, now + lease), receipt)).collect()
}

fn extend_one(
    tx: &mut tx::Tx<'_>,
    (now, until): (Millis, Millis),
    receipt: &Receipt,
) -> Outcome<Settled> {
    let Some(mark) = Mark::parse(&receipt.token) else { return Ok(Settled::Lost) };
    let Some(held) = held(tx, &receipt.job, mark)? else { return lost(tx, now, &receipt.job) };
    tx.sql("UPDATE jobs SET state = 1, due = ?2 WHERE n = ?1")?.execute((mark.n, until))?;
    tx.moves(held.state, State::Leased, held.cost);
    Ok(Settled::Held)
}
