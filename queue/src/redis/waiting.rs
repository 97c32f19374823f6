//! Jobs that wait: where one is, and the purge of all.

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use redis::Value;

use super::keeper::Again;
use super::receive::stored;
use super::value::{bytes, garbled, int, list, text};
use super::{Calls, RedisQueue, script};
use crate::{Cancelled, Job, JobId, JobState, Operator, Purged, Result, Timestamp};

/// The part that holds what plain producers wrote and nobody has read; a purge begins there.
const INBOX: i64 = 6;

/// Where a step of a purge begins, in the words of the script.
#[derive(Debug, Clone)]
struct Sweep {
    part: i64,
    /// Where to go on in it, empty at its beginning.
    from: String,
    last_place: String,
    last_entry: String,
}

impl Calls {
    /// Deletes the next jobs that wait; where to go on, if there may be more.
    async fn purge_step(&self, sweep: Sweep) -> Result<(Purged, Option<Sweep>)> {
        let Sweep { part, from, last_place, last_entry } = sweep;
        let call = self
            .call(&script::PURGE)
            .span(self.behavior.result_ttl)
            .span(self.behavior.key_ttl)
            .number(part)
            .text(from)
            .text(last_place)
            .text(last_entry);
        // Sent twice, the bodies of what the first one deleted would stay, and its jobs count for none.
        let mut parts = list(self.run(call, Again::No).await?)?.into_iter();
        let mut next = || parts.next().ok_or_else(|| garbled("a step of a purge"));
        let (n_jobs, next_part, from) = (int(&next()?)?, int(&next()?)?, text(next()?)?);
        let (last_place, last_entry) = (text(next()?)?, text(next()?)?);
        let read = if part == INBOX { stranger } else { known };
        let referring = list(next()?)?.into_iter().map(read).collect::<Result<_>>()?;
        self.send_owed(next()?).await;
        let n_jobs = u64::try_from(n_jobs).unwrap_or_default();
        let rest = Sweep { part: next_part, from, last_place, last_entry };
        Ok((Purged { n_jobs, referring, n_left: 0 }, Some(rest).filter(|rest| rest.part >= 0)))
    }
}

/// Reads a job as scripts hand it out.
pub(super) fn known(value: Value) -> Result<Job> {
    Ok(stored(&mut list(value)?.into_iter())?.job)
}

/// What matters of an entry is where its body lies.
fn stranger(value: Value) -> Result<Job> {
    let mut parts = list(value)?.into_iter();
    let mut next = || parts.next().ok_or_else(|| garbled("an entry"));
    let (entry, key, body) = (text(next()?)?, bytes(next()?)?, bytes(next()?)?);
    let mut job = Job::new(body, Timestamp::UNIX_EPOCH);
    job.id = format!("redis-{entry}").try_into()?;
    job.headers.body_ref = String::from_utf8(key).ok();
    Ok(job)
}

#[async_trait]
impl Operator for RedisQueue {
    async fn state(&self, id: &JobId) -> Result<Option<JobState>> {
        use JobState::{Dead, Delayed, Done, Running, Unknown, Waiting};
        let calls = self.calls();
        let told = text(calls.look(calls.call(&script::STATE).text(id.as_str())).await?)?;
        if told.is_empty() {
            return Ok(None);
        }
        let known = [Waiting, Delayed, Running, Dead, Done, Unknown];
        let state = known.into_iter().find(|state| state.word() == told);
        state.map(Some).ok_or_else(|| garbled("the state of a job"))
    }

    async fn has_gone_on(&self, id: &JobId) -> Result<bool> {
        Ok(self.calls().result(id).await?.is_some_and(|found| found.moved_to().is_some()))
    }

    async fn cancel(&self, id: &JobId) -> Result<Cancelled> {
        use Cancelled::{Ended, Marked, Running, Unknown, Waiting};
        let calls = self.calls();
        loop {
            let behavior = &calls.behavior;
            let call = calls.call(&script::CANCEL).span(behavior.result_ttl);
            let call = call.span(behavior.key_ttl).text(id.as_str());
            let mut parts = list(calls.run(call, Again::Yes).await?)?.into_iter();
            let mut next = || parts.next().ok_or_else(|| garbled("what a job was"));
            let told = text(next()?)?;
            calls.send_owed(next()?).await;
            if told == "again" {
                continue;
            }
            let known = [Waiting, Running, Marked, Ended, Unknown];
            let cancelled = known.into_iter().find(|one| one.word() == told);
            return cancelled.ok_or_else(|| garbled("what a job was"));
        }
    }

    async fn purge_waiting(&self) -> Result<BoxStream<'static, Result<Purged>>> {
        let [from, last_place, last_entry] = [(); 3].map(|()| String::new());
        let first = Sweep { part: INBOX, from, last_place, last_entry };
        let steps = stream::try_unfold((self.clone(), Some(first)), |(queue, next)| async move {
            let Some(sweep) = next else { return Ok(None) };
            let (purged, next) = queue.calls().purge_step(sweep).await?;
            Ok(Some((purged, (queue, next))))
        });
        Ok(steps.boxed())
    }
}
