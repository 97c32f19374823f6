//! Answers, and the pieces of those still being made.

use std::collections::HashMap;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use redis::Value;

use super::keeper::Again;
use super::news::Follower;
use super::script;
use super::value::{bytes, garbled, int, list, moment, small, text};
use super::{Calls, RedisQueue};
use crate::follow::{Hope, Standing};
use crate::{Frame, JSON, JobId, JobResult, Outcome, Result, Stored};

/// Who follows a result looks again at least this often: it may never come.
const FOLLOW_NAP: Duration = Duration::from_secs(10);

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

/// What one look found.
#[derive(Debug)]
struct Found {
    frames: Vec<Frame>,
    cursor: Cursor,
    /// There may be more already.
    is_cut: bool,
    standing: Standing,
}

impl Calls {
    /// Offers results, and says for each what became of it.
    pub(super) async fn put(&self, results: &[JobResult]) -> Result<Vec<Stored>> {
        let call = self.call(&script::PUT).span(self.behavior.result_ttl);
        let call = results.iter().fold(call, |call, result| {
            let call = call.text(result.id.as_str()).number(result.attempt);
            let call = match &result.outcome {
                Outcome::Completed { content_type, body } => {
                    call.text("completed").text(content_type.as_str()).bytes(&**body)
                }
                Outcome::Failed { reason } => call.text("failed").text(reason.as_str()).text(""),
            };
            call.number(result.finished_at.as_millisecond())
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
    async fn frames(&self, id: &JobId, cursor: Cursor) -> Result<Found> {
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
        let (pieces, result) = (list(next()?)?, list(next()?)?);
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

/// Reads the fields of a result: `outcome`, `attempt`, `finished-at`, and `content-type` and `body` or
/// `error`.
fn read_result(id: &JobId, fields: Vec<Value>) -> Result<JobResult> {
    let mut by_name = HashMap::new();
    let mut fields = fields.into_iter();
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        by_name.insert(text(name)?, value);
    }
    let mut take = |name: &str| by_name.remove(name).ok_or_else(|| garbled("a result"));
    let attempt = small(&take("attempt")?)?;
    let finished_at = moment(int(&take("finished-at")?)?);
    let outcome = match &*text(take("outcome")?)? {
        "completed" => Outcome::Completed {
            content_type: take("content-type").map_or_else(|_| Ok(JSON.to_owned()), text)?,
            body: bytes(take("body")?)?.into(),
        },
        "failed" => Outcome::Failed { reason: text(take("error")?)? },
        _ => return Err(garbled("a result")),
    };
    Ok(JobResult { id: id.clone(), attempt, outcome, finished_at })
}

/// The pieces as they come, then the result, then the end.
pub(super) fn follow(
    queue: RedisQueue,
    mut follower: Follower,
    id: JobId,
    from_seq: u64,
) -> BoxStream<'static, Result<Frame>> {
    let mut cursor = Cursor { attempt: 0, seq: from_seq.min(LAST_PIECE) };
    let mut hope = Hope::default();
    let frames = async_stream::try_stream! {
        loop {
            let found = queue.calls().frames(&id, cursor).await?;
            cursor = found.cursor;
            for frame in found.frames {
                let is_last = matches!(frame, Frame::Final(_));
                yield frame;
                if is_last {
                    return;
                }
            }
            if found.is_cut {
                continue;
            }
            if hope.is_lost(found.standing) {
                return;
            }
            // Of what is forgotten in time there is no news.
            tokio::time::timeout(FOLLOW_NAP, follower.news()).await.ok();
        }
    };
    frames.boxed()
}
