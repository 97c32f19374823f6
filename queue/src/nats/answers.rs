//! Results and their pieces: one record per job, replaced only by whoever saw the last one.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use async_nats::{HeaderMap, HeaderValue};
use bytes::Bytes;

use super::NatsQueue;
use super::read::Kept;
use super::settle::token_of;
use crate::{Error, ErrorKind, Frame, JobId, JobResult, Result, Stored};

/// In a record: which attempt's pieces count, and the number that stands in their subjects.
const PIECES: &str = "ebb-pieces";
/// How many answers a handle remembers to have given.
const MEMORY: usize = 65_536;
/// How often a record is tried that others write as well.
const TRIES: usize = 100;

/// The jobs that this handle answered and has not acknowledged yet.
#[derive(Debug, Default)]
pub(super) struct Answered(Mutex<(HashSet<JobId>, VecDeque<JobId>)>);

impl Answered {
    fn add(&self, id: &JobId) {
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, order) = &mut *guard;
        if known.insert(id.clone()) {
            order.push_back(id.clone());
        }
        while order.len() > MEMORY
            && let Some(oldest) = order.pop_front()
        {
            known.remove(&oldest);
        }
    }

    /// Whether it was answered; asked once.
    pub(super) fn take(&self, id: &JobId) -> bool {
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        guard.0.remove(id)
    }
}

/// What is known of an answer.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// Its number in the stream, 0 where there is none.
    seq: u64,
    pub(super) result: Option<JobResult>,
    encoded: Bytes,
    /// The latest attempt that sent pieces, 0 for none.
    attempt: u32,
    /// What the subjects of its pieces have in common.
    epoch: u64,
}

impl Record {
    fn read(kept: Option<Kept>) -> Result<Self> {
        let Some(kept) = kept else { return Ok(Self::default()) };
        let pieces = kept.headers.get_last(PIECES).map_or("0:0", HeaderValue::as_str);
        let (attempt, epoch) = pieces.split_once(':').unwrap_or(("0", "0"));
        let epoch = epoch.parse().unwrap_or(0);
        let is_empty = kept.body.is_empty();
        let result = if is_empty { None } else { Some(JobResult::decode(&kept.body)?) };
        Ok(Self {
            seq: kept.seq,
            result,
            encoded: kept.body,
            attempt: attempt.parse().unwrap_or(0),
            // The first record of an attempt gives its pieces their number.
            epoch: if epoch == 0 { kept.seq } else { epoch },
        })
    }

    pub(super) fn is_final(&self) -> bool {
        self.result.as_ref().is_some_and(|result| result.outcome.is_final())
    }
}

fn pieces(attempt: u32, epoch: u64) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(PIECES, format!("{attempt}:{epoch}"));
    headers
}

/// How far somebody has followed a result.
#[derive(Debug)]
pub(super) struct Cursor {
    pub(super) attempt: u32,
    pub(super) epoch: u64,
    /// The next piece to read.
    pub(super) seq: u64,
}

impl NatsQueue {
    pub(super) fn result_subject(&self, id: &JobId) -> String {
        self.shared.names.subject(&format!("results.{}", token_of(id)))
    }

    fn chunk_subject(&self, id: &JobId, epoch: u64, seq: u64) -> String {
        self.shared.names.subject(&format!("chunks.{}.{epoch}.{seq}", token_of(id)))
    }

    /// Where the pieces of all attempts lie.
    pub(super) fn chunk_subjects(&self, id: &JobId) -> String {
        self.shared.names.subject(&format!("chunks.{}.>", token_of(id)))
    }

    pub(super) async fn record(&self, id: &JobId) -> Result<Record> {
        let shared = &*self.shared;
        Record::read(shared.api.last(&shared.names.results, &self.result_subject(id)).await?)
    }

    pub(super) async fn answer(&self, id: &JobId) -> Result<Option<JobResult>> {
        Ok(self.record(id).await?.result)
    }

    pub(super) async fn put_result(&self, result: &JobResult) -> Result<Stored> {
        let shared = &*self.shared;
        let subject = self.result_subject(&result.id);
        let body: Bytes = result.encode().into();
        let longest = shared.api.client.server_info().max_payload.saturating_sub(1024);
        if body.len() > longest {
            let words = format!(
                "the result of job {} has {} bytes where {longest} is the limit of this NATS server \
                 (max_payload)",
                result.id,
                body.len()
            );
            return Err(Error::new(ErrorKind::Invalid, words));
        }
        let completed = result.outcome.is_completed();
        // Most jobs have no record yet, so that one try is all.
        let mut record = Record::default();
        for _ in 0..TRIES {
            if record.is_final() {
                shared.answered.add(&result.id);
                return Ok(Stored::Duplicate);
            }
            if result.attempt < record.attempt {
                return Ok(Stored::Stale);
            }
            if record.result.is_some() && !result.outcome.is_final() {
                return Ok(Stored::Duplicate);
            }
            let is_void = !completed || result.attempt > record.attempt;
            let headers = if is_void { pieces(0, 0) } else { pieces(record.attempt, record.epoch) };
            let stored = shared.api.swap(&subject, headers, body.clone(), record.seq).await?;
            if stored.is_some() {
                shared.answered.add(&result.id);
                return Ok(Stored::Stored);
            }
            record = self.record(&result.id).await?;
        }
        Err(contended(&result.id))
    }

    /// Stores that a job was cancelled, unless another result is there by now than in this record; whether
    /// it did. Nobody's pieces are of use any more.
    pub(super) async fn put_cancelled(&self, id: &JobId, before: Record) -> Result<bool> {
        let shared = &*self.shared;
        let (failure, mut record) = (before.result.clone(), before);
        for _ in 0..TRIES {
            let result = JobResult::cancelled(id.clone(), record.attempt, self.now());
            let body = result.encode().into();
            let subject = self.result_subject(id);
            if shared.api.swap(&subject, pieces(0, 0), body, record.seq).await?.is_some() {
                shared.answered.add(id);
                return Ok(true);
            }
            record = self.record(id).await?;
            if record.result != failure {
                return Ok(false);
            }
        }
        Err(contended(id))
    }

    /// Stores the failure of a job that its queue buries by itself: nobody has the job, so pieces of an
    /// attempt that gave it back are void, whatever number they bear.
    pub(super) async fn put_burial(&self, failure: &mut JobResult) -> Result<Stored> {
        for _ in 0..TRIES {
            match self.put_result(failure).await? {
                Stored::Stale => {
                    let latest = self.record(&failure.id).await?.attempt;
                    failure.attempt = failure.attempt.max(latest);
                }
                stored => return Ok(stored),
            }
        }
        Err(contended(&failure.id))
    }

    pub(super) async fn put_chunk(
        &self,
        id: &JobId,
        attempt: u32,
        seq: u64,
        body: Bytes,
    ) -> Result<Stored> {
        let shared = &*self.shared;
        for _ in 0..TRIES {
            let record = self.record(id).await?;
            if record.is_final() || attempt < record.attempt {
                return Ok(Stored::Stale);
            }
            let mut epoch = record.epoch;
            if attempt > record.attempt {
                let subject = self.result_subject(id);
                let headers = pieces(attempt, 0);
                let begun = shared.api.swap(&subject, headers, record.encoded, record.seq).await?;
                let Some(begun) = begun else { continue };
                epoch = begun;
            }
            let subject = self.chunk_subject(id, epoch, seq);
            let stored = shared.api.swap(&subject, HeaderMap::new(), body, 0).await?;
            return Ok(if stored.is_some() { Stored::Stored } else { Stored::Duplicate });
        }
        Err(contended(id))
    }

    /// Forgets a failed result and the pieces of a job that is put back, unless it has gone on to
    /// another queue: whether it has.
    pub(super) async fn forget_failure(&self, id: &JobId) -> Result<bool> {
        let shared = &*self.shared;
        let record = self.record(id).await?;
        let has_gone_on = record.result.as_ref().is_some_and(|one| one.moved_to().is_some());
        if record.seq > 0 && !record.is_final() && !has_gone_on {
            shared.api.delete(&shared.names.results, record.seq).await?;
        }
        Ok(has_gone_on)
    }

    /// What came since the cursor, which moves on.
    pub(super) async fn frames(&self, id: &JobId, cursor: &mut Cursor) -> Result<Vec<Frame>> {
        let record = self.record(id).await?;
        let mut frames = Vec::new();
        if record.attempt > 0 {
            if record.epoch != cursor.epoch {
                // What was read of another attempt is void.
                cursor.seq = if cursor.epoch == 0 { cursor.seq } else { 0 };
                (cursor.attempt, cursor.epoch) = (record.attempt, record.epoch);
            }
            let api = &self.shared.api;
            let stream = &self.shared.names.results;
            while let Some(kept) =
                api.last(stream, &self.chunk_subject(id, cursor.epoch, cursor.seq)).await?
            {
                let (attempt, seq) = (cursor.attempt, cursor.seq);
                frames.push(Frame::Chunk { attempt, seq, body: kept.body });
                cursor.seq += 1;
            }
        }
        frames.extend(record.result.map(Frame::Final));
        Ok(frames)
    }

    /// Whether the job ended without an answer, or was purged.
    pub(super) async fn has_ended(&self, id: &JobId) -> Result<bool> {
        let shared = &*self.shared;
        let subject = shared.names.subject(&format!("notes.end.{}", token_of(id)));
        Ok(shared.api.last(&shared.names.notes, &subject).await?.is_some())
    }
}

fn contended(id: &JobId) -> Error {
    let words = format!("the result of job {id} is being written by many at once; try again");
    Error::new(ErrorKind::Unavailable, words)
}
