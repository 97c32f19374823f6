//! Jobs and dead letters from their rows.

use rusqlite::{Row, types::Type};

use super::failure::Failure;
use super::tx::{Millis, State, moment};
use crate::{Attempt, DeadLetter, FailureKind, Job};

/// A job's row with its payload, read by [`COLUMNS`].
#[derive(Debug)]
pub(super) struct StoredJob {
    pub(super) n: i64,
    pub(super) attempts: u32,
    pub(super) due: Option<Millis>,
    pub(super) lease: Option<i64>,
    pub(super) worker: Option<String>,
    pub(super) cost: Option<i64>,
    pub(super) history: History,
    pub(super) kind: Option<String>,
    pub(super) reason: Option<String>,
    pub(super) died_at: Option<Millis>,
    pub(super) job: Job,
}

/// What [`StoredJob::read`] reads, `FROM jobs JOIN payloads USING (n)`.
pub(super) const COLUMNS: &str = "n, jobs.id, attempts, due, lease, worker, cost, history, \
                                  reason, died_at, enqueued_at, headers, body, failure";

impl StoredJob {
    pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let id: String = row.get(1)?;
        let headers: String = row.get(11)?;
        let job = Job {
            id: id.try_into().map_err(|error| garbled(1, error))?,
            enqueued_at: moment(row.get(10)?),
            headers: serde_json::from_str(&headers).map_err(|error| garbled(11, error))?,
            body: row.get::<_, Vec<u8>>(12)?.into(),
        };
        Ok(Self {
            n: row.get(0)?,
            attempts: row.get(2)?,
            due: row.get(3)?,
            lease: row.get(4)?,
            worker: row.get(5)?,
            cost: row.get(6)?,
            history: History(row.get(7)?),
            kind: row.get(13)?,
            reason: row.get(8)?,
            died_at: row.get(9)?,
            job,
        })
    }

    pub(super) fn into_dead_letter(self) -> Result<DeadLetter, Failure> {
        Ok(DeadLetter {
            attempts: self.attempts,
            kind: FailureKind::of_word(&self.kind.unwrap_or_default()),
            reason: self.reason.unwrap_or_default(),
            died_at: moment(self.died_at.unwrap_or_default()),
            history: self.history.attempts()?,
            job: self.job,
        })
    }
}

fn garbled(
    column: usize,
    error: impl std::error::Error + Send + Sync + 'static,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
}

/// What became of each attempt, as stored: JSON, or nothing yet.
#[derive(Debug, Default)]
pub(super) struct History(pub(super) Option<String>);

impl History {
    fn attempts(&self) -> Result<Vec<Attempt>, Failure> {
        let Some(text) = &self.0 else { return Ok(Vec::new()) };
        serde_json::from_str(text).map_err(|error| Failure::garbled("history", error))
    }

    /// Adds the end of an attempt.
    pub(super) fn push(&mut self, attempt: u32, at: Millis, what: &str) -> Result<(), Failure> {
        let mut attempts = self.attempts()?;
        attempts.push(Attempt { attempt, at: moment(at), what: what.to_owned() });
        let text = serde_json::to_string(&attempts);
        self.0 = Some(text.map_err(|error| Failure::garbled("history", error))?);
        Ok(())
    }

    /// The last holder let its lease run out: it is taken for crashed.
    pub(super) fn push_crash(
        &mut self,
        attempt: u32,
        at: Millis,
        worker: &str,
    ) -> Result<(), Failure> {
        self.push(attempt, at, &format!("lease expired, held by {worker}"))
    }
}

/// The state as it is stored.
pub(super) fn state(row: &Row<'_>, column: usize) -> rusqlite::Result<State> {
    Ok(State::from_stored(row.get(column)?))
}
