//! Results and the pieces of those still being made. Pure: the time comes in as an argument.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bytes::Bytes;

use crate::{Frame, JobId, JobResult, Outcome, Settled, Stored, Timestamp};

/// The answers to all jobs of a queue.
#[derive(Debug)]
pub(super) struct Answers {
    ttl: Duration,
    by_job: HashMap<JobId, Answer>,
}

#[derive(Debug)]
struct Answer {
    result: Option<JobResult>,
    /// The latest attempt that sent chunks, 0 for none: what earlier ones send is stale.
    attempt: u32,
    chunks: BTreeMap<u64, Bytes>,
    forget_at: Timestamp,
}

impl Answer {
    fn is_final(&self) -> bool {
        self.result.as_ref().is_some_and(|result| result.outcome.is_final())
    }

    fn is_completed(&self) -> bool {
        self.result.as_ref().is_some_and(|result| result.outcome.is_completed())
    }
}

/// How far somebody has followed a result.
#[derive(Debug)]
pub(super) struct Cursor {
    attempt: u32,
    seq: u64,
}

impl Cursor {
    pub(super) fn from_seq(seq: u64) -> Self {
        Self { attempt: 0, seq }
    }
}

impl Answers {
    pub(super) fn new(ttl: Duration) -> Self {
        Self { ttl, by_job: HashMap::new() }
    }

    pub(super) fn put(&mut self, result: &JobResult, now: Timestamp) -> Stored {
        let forget_at = now + self.ttl;
        let answer = self.answer(&result.id, now);
        let completed = result.outcome.is_completed();
        if answer.is_final() {
            return Stored::Duplicate;
        }
        if result.attempt < answer.attempt {
            return Stored::Stale;
        }
        if answer.result.is_some() && !result.outcome.is_final() {
            return Stored::Duplicate;
        }
        if !completed || result.attempt > answer.attempt {
            answer.attempt = 0;
            answer.chunks.clear();
        }
        answer.result = Some(result.clone());
        answer.forget_at = forget_at;
        Stored::Stored
    }

    /// Stores the failure of a job that its queue buries by itself: nobody has the job, so pieces of an
    /// attempt that gave it back are void, whatever number they bear.
    pub(super) fn bury(&mut self, mut failure: JobResult, now: Timestamp) -> JobResult {
        failure.attempt = failure.attempt.max(self.answer(&failure.id, now).attempt);
        self.put(&failure, now);
        failure
    }

    pub(super) fn get(&self, id: &JobId, now: Timestamp) -> Option<JobResult> {
        self.by_job.get(id).filter(|answer| answer.forget_at > now)?.result.clone()
    }

    /// Whether there is a completed result.
    pub(super) fn is_completed(&self, id: &JobId, now: Timestamp) -> bool {
        self.by_job.get(id).is_some_and(|answer| answer.forget_at > now && answer.is_completed())
    }

    /// What is said of a lease that is not held: that the job was cancelled, if it was.
    pub(super) fn unless_cancelled(&self, id: &JobId, held: Settled, now: Timestamp) -> Settled {
        let is_cancelled =
            |result: Option<JobResult>| result.is_some_and(|one| one.outcome == Outcome::Cancelled);
        match held {
            Settled::Lost if is_cancelled(self.get(id, now)) => Settled::Cancelled,
            held => held,
        }
    }

    pub(super) fn chunk(
        &mut self,
        (id, attempt): (&JobId, u32),
        (seq, body): (u64, Bytes),
        now: Timestamp,
    ) -> Stored {
        let forget_at = now + self.ttl;
        let answer = self.answer(id, now);
        if answer.is_final() || attempt < answer.attempt {
            return Stored::Stale;
        }
        if attempt > answer.attempt {
            answer.attempt = attempt;
            answer.chunks.clear();
        }
        if answer.chunks.contains_key(&seq) {
            return Stored::Duplicate;
        }
        answer.chunks.insert(seq, body);
        answer.forget_at = forget_at;
        Stored::Stored
    }

    /// Forgets what a job that is put back left behind, unless it has gone on to another queue: whether
    /// it has.
    pub(super) fn reset(&mut self, id: &JobId) -> bool {
        let Some(answer) = self.by_job.get(id) else { return false };
        let has_gone_on = answer.result.as_ref().is_some_and(|result| result.moved_to().is_some());
        if !answer.is_final() && !has_gone_on {
            self.by_job.remove(id);
        }
        has_gone_on
    }

    /// Forgets what nobody may ask for any more.
    pub(super) fn tidy(&mut self, now: Timestamp) {
        self.by_job.retain(|_, answer| answer.forget_at > now);
    }

    /// What came since the cursor, which moves on.
    pub(super) fn frames(&self, id: &JobId, cursor: &mut Cursor, now: Timestamp) -> Vec<Frame> {
        let Some(answer) = self.by_job.get(id).filter(|answer| answer.forget_at > now) else {
            return Vec::new();
        };
        if answer.attempt != cursor.attempt && !answer.chunks.is_empty() {
            // What was read of another attempt is void.
            cursor.seq = if cursor.attempt == 0 { cursor.seq } else { 0 };
            cursor.attempt = answer.attempt;
        }
        let mut frames = Vec::new();
        while let Some(body) = answer.chunks.get(&cursor.seq) {
            let seq = cursor.seq;
            frames.push(Frame::Chunk { attempt: answer.attempt, seq, body: body.clone() });
            cursor.seq += 1;
        }
        frames.extend(answer.result.clone().map(Frame::Final));
        frames
    }

    fn answer(&mut self, id: &JobId, now: Timestamp) -> &mut Answer {
        let fresh = || Answer {
            result: None,
            attempt: 0,
            chunks: BTreeMap::new(),
            forget_at: now + self.ttl,
        };
        let answer = self.by_job.entry(id.clone()).or_insert_with(fresh);
        if answer.forget_at <= now {
            *answer = fresh();
        }
        answer
    }
}
