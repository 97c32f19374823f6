//! Answers, and the pieces of those still being made.

use bytes::Bytes;
use futures::stream::BoxStream;
use redis::Value;

use super::keeper::Again;
use super::script;
use super::value::{bytes, garbled, int, list, moment, small, text};
use super::{Calls, RedisQueue};
use crate::follow::{self, Follower, Found, Standing};
use crate::result::CANCELLED;
use crate::{
    Error, ErrorKind, Failure, FailureKind, Frame, JobId, JobResult, Outcome, Result, Stored,
};

/// Pieces that one look takes at most.
const STEP: usize = 256;

/// The place of the last piece that an answer can have: scripts count no further.
pub(super) const LAST_PIECE: u64 = 1 << 52;

/// How far somebody has followed a result.
#[derive(Debug, Clone, Copy)]
struct Cursor {
    /// 0 as long as no piece has been seen.
    attempt: u32,
    seq: u64,
}

impl Calls {
    /// Offers results, and says for each what became of it.
    pub(super) async fn put(&self, results: &[JobResult]) -> Result<Vec<Stored>> {
        let call = self.call(&script::PUT).span(self.behavior.result_ttl);
        let call = results.iter().fold(call, |call, result| {
            let call = call.text(result.id.as_str()).number(result.attempt);
            call.text(result.outcome.word()).bytes(written(result))
        });
        let told = list(self.run(call, Again::Yes).await?)?;
        if told.len() != results.len() {
            return Err(garbled("what became of the results"));
        }
        told.into_iter().map(became).collect()
    }

    pub(super) async fn chunk(
        &self,
        (id, attempt): (&JobId, u32),
        (seq, body): (u64, &[u8]),
    ) -> Result<Stored> {
        let call = self.call(&script::CHUNK).span(self.behavior.result_ttl);
        let call = call.text(id.as_str()).number(attempt).number(seq).bytes(body);
        became(self.run(call, Again::Yes).await?)
    }

    /// The result, while its time lasts.
    pub(super) async fn result(&self, id: &JobId) -> Result<Option<JobResult>> {
        // A look for no pieces.
        let look = self.frames(id, Cursor { attempt: 0, seq: LAST_PIECE }).await?;
        let last = look.frames.into_iter().last();
        Ok(last.and_then(|frame| match frame {
            Frame::Final(result) => Some(result),
            Frame::Chunk { .. } => None,
        }))
    }

    /// What came since the cursor: the pieces in order without a gap, then the result.
    async fn frames(&self, id: &JobId, cursor: Cursor) -> Result<Found<Cursor>> {
        let call = self.call(&script::FRAMES).text(id.as_str()).number(cursor.attempt);
        let call = call.number(cursor.seq).number(STEP);
        let mut parts = list(self.look(call).await?)?.into_iter();
        let mut next = || parts.next().ok_or_else(|| garbled("a result"));
        let standing = match &*text(next()?)? {
            "open" => Standing::Open,
            "done" => Standing::Done,
            _ => Standing::Unknown,
        };
        let attempt = small(&next()?)?;
        let mut seq = u64::try_from(int(&next()?)?).unwrap_or_default();
        let (pieces, result) = (list(next()?)?, bytes(next()?)?);
        let is_cut = pieces.len() == STEP;
        let mut frames = Vec::new();
        for piece in pieces {
            frames.push(Frame::Chunk { attempt, seq, body: bytes(piece)?.into() });
            seq += 1;
        }
        if !result.is_empty() {
            frames.push(Frame::Final(read_result(id, result)?));
        }
        Ok(Found { frames, cursor: Cursor { attempt, seq }, is_cut, standing })
    }
}

fn became(value: Value) -> Result<Stored> {
    match &*text(value)? {
        "stored" => Ok(Stored::Stored),
        "duplicate" => Ok(Stored::Duplicate),
        "stale" => Ok(Stored::Stale),
        _ => Err(garbled("what became of a result")),
    }
}

/// A result as it lies in the store: a line of its outcome, attempt, when it was finished (and where,
/// behind an `@`) and its content type, then the answer, or the reason of a failure. A failure has no
/// content type: its kind stands there, and `cancelled`, which is no kind, of a job that was cancelled.
fn written(result: &JobResult) -> Vec<u8> {
    let (line, text) = line_and_text(result);
    let mut whole = line.into_bytes();
    whole.extend_from_slice(text);
    whole
}

fn line_and_text(result: &JobResult) -> (String, &[u8]) {
    let (outcome, content_type, text) = match &result.outcome {
        Outcome::Completed { content_type, body } => ("completed", content_type.as_str(), &**body),
        Outcome::Failed(Failure { kind, reason }) => ("failed", kind.word(), reason.as_bytes()),
        // Older versions read a failure.
        Outcome::Cancelled => ("failed", CANCELLED, CANCELLED.as_bytes()),
    };
    let finished = result.finished_at.as_millisecond();
    let place = result.queue.as_ref().map(|queue| format!("@{queue}")).unwrap_or_default();
    (format!("{outcome} {} {finished}{place} {content_type}\n", result.attempt), text)
}

/// Refuses a result that the server does not take: it would end the connection, and with it what others
/// store through that.
pub(super) fn check_size(result: &JobResult, most: u64) -> Result<()> {
    let (line, text) = line_and_text(result);
    check_bytes(&result.id, line.len() + text.len(), most)
}

/// The same of a piece of one.
pub(super) fn check_bytes(id: &JobId, n: usize, most: u64) -> Result<()> {
    if n as u64 <= most {
        return Ok(());
    }
    let words = format!(
        "job {id}: its answer of {n} bytes is longer than the {most} that redis takes \
         (proto-max-bulk-len)"
    );
    Err(Error::new(ErrorKind::Invalid, words))
}

pub(super) fn read_result(id: &JobId, whole: Vec<u8>) -> Result<JobResult> {
    let whole = Bytes::from(whole);
    let end = whole.iter().position(|byte| *byte == b'\n').ok_or_else(|| garbled("a result"))?;
    let line = std::str::from_utf8(&whole[..end]).map_err(|_| garbled("a result"))?;
    let mut words = line.splitn(4, ' ');
    let mut next = || words.next().ok_or_else(|| garbled("a result"));
    let (outcome, attempt, finished, content_type) = (next()?, next()?, next()?, next()?);
    let body = whole.slice(end + 1..);
    let outcome = match outcome {
        "completed" => Outcome::Completed { content_type: content_type.to_owned(), body },
        "failed" if content_type == CANCELLED => Outcome::Cancelled,
        "failed" => Outcome::Failed(Failure::new(
            FailureKind::of_word(content_type),
            String::from_utf8_lossy(&body),
        )),
        _ => return Err(garbled("a result")),
    };
    let attempt = attempt.parse().map_err(|_| garbled("a result"))?;
    let (finished, queue) = match finished.split_once('@') {
        Some((finished, queue)) => (finished, Some(queue.to_owned())),
        None => (finished, None),
    };
    let finished_at = moment(finished.parse().map_err(|_| garbled("a result"))?);
    Ok(JobResult { id: id.clone(), attempt, outcome, finished_at, queue })
}

/// The pieces as they come, then the result, then the end.
pub(super) fn follow(
    queue: RedisQueue,
    follower: Follower,
    id: JobId,
    from_seq: u64,
) -> BoxStream<'static, Result<Frame>> {
    let cursor = Cursor { attempt: 0, seq: from_seq.min(LAST_PIECE) };
    let look = move |cursor| {
        let (queue, id) = (queue.clone(), id.clone());
        async move { queue.calls().frames(&id, cursor).await }
    };
    follow::frames(follower, cursor, look)
}
