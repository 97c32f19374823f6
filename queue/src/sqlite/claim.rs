//! Jobs on loan: handing them out, and what time does to those that wait.

use std::sync::Arc;

use super::dead::{self, Ttls};
use super::depth;
use super::failure::Outcome;
use super::mark::Mark;
use super::stored::{COLUMNS, StoredJob};
use super::tx::{Millis, State, Tx};
use crate::{Delivery, Receipt};

/// Jobs that one claim moves at most when their time has come: others wait for the writer.
const STEP: usize = 1000;

/// Who asks for jobs, and on what terms.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) max: usize,
    pub(super) now: Millis,
    pub(super) until: Millis,
    pub(super) worker: Arc<str>,
    /// Chance: tells the leases of this claim from all others.
    pub(super) mark: i64,
    pub(super) ttls: Ttls,
}

/// What a claim got, or when it is worth another.
#[derive(Debug)]
pub(super) struct Claimed {
    pub(super) deliveries: Vec<Delivery>,
    pub(super) next_due: Option<Millis>,
}

/// Leases what is ready, best first.
pub(super) fn claim(tx: &mut Tx<'_>, claim: &Claim) -> Outcome<Claimed> {
    dead::expire(tx, claim.now, claim.ttls)?;
    ripen(tx, claim.now)?;
    let ready: Vec<StoredJob> = tx
        .sql(&format!(
            "SELECT {COLUMNS} FROM jobs INDEXED BY jobs_line JOIN payloads USING (n)
             WHERE queue = ?1 AND state = 0 AND (deadline IS NULL OR deadline > ?2)
             ORDER BY rank, place LIMIT ?3"
        ))?
        .query_map((tx.queue, claim.now, i64::try_from(claim.max).unwrap_or(i64::MAX)), |row| {
            StoredJob::read(row)
        })?
        .collect::<Result<_, _>>()?;
    let deliveries: Vec<_> =
        ready.into_iter().map(|job| lease(tx, claim, job)).collect::<Outcome<_>>()?;
    let next_due =
        if deliveries.is_empty() { depth::next_due(tx.db(), tx.queue, claim.now)? } else { None };
    Ok(Claimed { deliveries, next_due })
}

fn lease(tx: &mut Tx<'_>, claim: &Claim, mut stored: StoredJob) -> Outcome<Delivery> {
    if stored.lease.is_some() {
        let (worker, ended) = (stored.worker.unwrap_or_default(), stored.due.unwrap_or(claim.now));
        stored.history.push_crash(stored.attempts, ended, &worker)?;
    }
    let attempt = stored.attempts + 1;
    tx.sql(
        "UPDATE jobs SET state = 1, due = ?2, attempts = ?3, lease = ?4, worker = ?5, history = ?6,
         settled = NULL WHERE n = ?1",
    )?
    .execute((
        stored.n,
        claim.until,
        attempt,
        claim.mark,
        &*claim.worker,
        &stored.history.0,
    ))?;
    tx.moves(State::Ready, State::Leased, stored.cost);
    let token = Mark { n: stored.n, lease: claim.mark }.token();
    let receipt = Receipt { job: stored.job.id.clone(), token };
    Ok(Delivery::new(stored.job, attempt, receipt))
}

/// Puts in line what was delayed until now, and what a lease no longer holds.
fn ripen(tx: &mut Tx<'_>, now: Millis) -> Outcome<()> {
    for (state, index) in [(State::Delayed, "jobs_delayed"), (State::Leased, "jobs_leased")] {
        let sql = format!(
            "UPDATE jobs SET state = 0 WHERE n IN
             (SELECT n FROM jobs INDEXED BY {index} WHERE queue = ?1 AND state = {} AND due <= ?2
              ORDER BY due LIMIT ?3)
             RETURNING cost",
            state as i64
        );
        let ripe: Vec<Option<i64>> = tx
            .sql(&sql)?
            .query_map((tx.queue, now, STEP as i64), |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        for cost in ripe {
            tx.moves(state, State::Ready, cost);
        }
    }
    Ok(())
}
