//! The ends of deliveries, the extension of leases, and replies.

use futures::{StreamExt, stream};
use redis::{RedisError, Value};
use tracing::debug;

use super::keeper::Again;
use super::results::read_result;
use super::script::{self, Call};
use super::value::{bytes, garbled, int, list, text};
use super::{Calls, failure};
use crate::header;
use crate::open::check_queue;
use crate::owed::{self, Owed};
use crate::{
    Error, ErrorKind, Failure, Headers, JobResult, Receipt, Result, Settled, Settlement, Unsettled,
    Verdict,
};

/// Leases that one script looks at: others wait for the server.
const STEP: usize = 1000;

/// Replies that are on their way at the same time.
const ABREAST: usize = 64;

impl Calls {
    /// Carries out verdicts.
    pub(super) async fn settle(
        &self,
        settlements: &[Settlement],
    ) -> Result<Vec<Settled>, Unsettled> {
        let mut told = Vec::with_capacity(settlements.len());
        for step in settlements.chunks(STEP) {
            match self.settle_step(step).await {
                Ok(settled) => told.extend(settled.into_iter().map(Some)),
                Err(error) => return Err(Unsettled::new(error, told)),
            }
        }
        Ok(told.into_iter().flatten().collect())
    }

    async fn settle_step(&self, settlements: &[Settlement]) -> Result<Vec<Settled>> {
        let call = self.call(&script::SETTLE).span(self.behavior.key_ttl);
        // Most often all of a batch are acked, and each argument costs the server time.
        let alike = |one: &Settlement, next: &Settlement| {
            one.receipt().token == next.receipt().token && one.verdict() == next.verdict()
        };
        let call = settlements.chunk_by(alike).fold(call, |call, group| {
            let call = call.text(&*group[0].receipt().token);
            let call = match group[0].verdict() {
                Verdict::Ack => call.text("ack").number(0).text("").text(""),
                Verdict::Retry { after, reason } => {
                    call.text("retry").span(*after).text(reason.as_str()).text("")
                }
                Verdict::Release => call.text("release").number(0).text("").text(""),
                Verdict::Reject(Failure { kind, reason }) => {
                    call.text("reject").number(0).text(reason.as_str()).text(kind.word())
                }
            };
            let ids = group.iter().map(|one| one.receipt().job.as_str());
            ids.fold(call.number(group.len()), Call::text)
        });
        settled(self.run(call, Again::Yes).await?, settlements.len())
    }

    /// Starts leases anew.
    pub(super) async fn extend(&self, receipts: &[Receipt]) -> Result<Vec<Settled>> {
        if receipts.is_empty() {
            return Ok(Vec::new());
        }
        let call = self.call(&script::EXTEND).span(self.behavior.lease);
        let call = receipts
            .iter()
            .fold(call, |call, receipt| call.text(receipt.job.as_str()).text(&*receipt.token));
        settled(self.run(call, Again::Yes).await?, receipts.len())
    }

    /// Writes the result to a stream.
    pub(super) async fn reply(
        &self,
        to: &str,
        result: &JobResult,
        traceparent: Option<&str>,
    ) -> Result<()> {
        check_reply_to(to)?;
        let (content_type, body) = result.reply_body();
        let call = self.call(&script::REPLY);
        let call = match is_ours(to) {
            // A job waits for its worker, however long that takes.
            true => call.text(""),
            false => call.span(self.behavior.result_ttl),
        };
        let mut call = call.text("body").bytes(&*body);
        call = call.text(header::ID).text(result.id.as_str());
        call = call.text(header::ATTEMPT).number(result.attempt);
        call = call.text(header::OUTCOME).text(result.outcome.word());
        if let Some(kind) = result.outcome.failure_kind() {
            call = call.text(header::KIND).text(kind.word());
        }
        call = call.text(header::CONTENT_TYPE).text(content_type);
        if let Some(queue) = &result.queue {
            call = call.text(header::QUEUE).text(queue.as_str());
        }
        if let Some(traceparent) = traceparent {
            call = call.text(header::TRACEPARENT).text(traceparent);
        }
        let answer = self.keeper.run_on(to, &call, Again::Yes).await?;
        answer.map(drop).map_err(|error| self.not_replied(to, error))
    }

    /// Sends the replies of jobs that ended in a script, which can write to no stream but the queue's.
    /// What has not gone in time does not go.
    pub(super) async fn send_owed(&self, owed: Value) {
        // What another version wrote there is not worth the jobs that come along with it.
        let owed = list(owed).unwrap_or_default().into_iter().filter_map(|one| {
            read_owed(one).map_err(|error| debug!(%error, "a reply that is owed is not sent")).ok()
        });
        let end = owed::sending_ends(self.behavior.lease);
        let replies = stream::iter(owed.flatten()).for_each_concurrent(ABREAST, async |owed| {
            let Owed { to, result, traceparent } = owed;
            let reply = self.reply(&to, &result, traceparent.as_deref());
            owed::note(&result.id, owed::in_time(end, reply).await);
        });
        replies.await;
    }

    fn not_replied(&self, to: &str, error: RedisError) -> Error {
        match out_of_reach(&self.place.queue, to, &error) {
            Some(why) => why.caused_by(error),
            None => self.place.told(error),
        }
    }
}

/// Why a reply cannot go there, where this is about the stream and not about the server. A move that
/// outlasts our patience may be stuck: who waited for its end would hold a job all that time.
fn out_of_reach(queue: &str, to: &str, error: &RedisError) -> Option<Error> {
    if !failure::is_elsewhere(error) {
        return None;
    }
    let (kind, why) = match failure::is_moving(error) {
        true => (ErrorKind::Missing, "is on its way to another node of the redis cluster for long"),
        false => (ErrorKind::Invalid, "is on another node of the redis cluster than its queue"),
    };
    let words = format!(
        "{}: the stream {to:?} {why}; begin its name with {{{queue}}}, and it is where the queue \
         {queue} is",
        header::REPLY_TO
    );
    Some(Error::new(kind, words))
}

/// Whether a reply may go there: to any stream, but see [`owed::check_address`]. Any other key of Ebb's
/// would be a stream before the queue has made it what it is to be.
fn check_reply_to(to: &str) -> Result<()> {
    let queue = to.strip_prefix("ebb:{").and_then(|rest| rest.strip_suffix('}'));
    let is_for_jobs = queue.is_some_and(|queue| check_queue(queue).is_ok());
    let why = "belongs to Ebb; of its keys only ebb:{NAME} takes replies";
    owed::check_address(to, (is_ours(to) && !is_for_jobs).then_some(why))
}

/// Whether a key belongs to a queue.
fn is_ours(key: &str) -> bool {
    key.starts_with("ebb:")
}

/// Reads id, stored result, and headers.
fn read_owed(value: Value) -> Result<Option<Owed>> {
    let mut parts = list(value)?.into_iter();
    let mut next = || parts.next().ok_or_else(|| garbled("a reply"));
    let (id, result, headers) = (text(next()?)?.try_into()?, bytes(next()?)?, bytes(next()?)?);
    let headers: Headers = serde_json::from_slice(&headers)
        .map_err(|error| garbled("the headers of a job").caused_by(error))?;
    Ok(Owed::new(&headers, read_result(&id, result)?))
}

fn settled(answer: Value, n_asked: usize) -> Result<Vec<Settled>> {
    let answers = list(answer)?;
    if answers.len() != n_asked {
        return Err(garbled("what became of the leases"));
    }
    let held = |held: &Value| {
        Ok(match int(held)? {
            1 => Settled::Held,
            2 => Settled::Cancelled,
            _ => Settled::Lost,
        })
    };
    answers.iter().map(held).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_wait_may_mend_is_unavailable_to_a_reply() {
        for (answer, expected) in [
            // Stuck, after all the time that a call has.
            ("-ASK 1 127.0.0.1:1\r\n", Some(ErrorKind::Missing)),
            ("-MOVED 1 127.0.0.1:1\r\n", Some(ErrorKind::Invalid)),
            ("-LOADING x\r\n", None),
        ] {
            let error = redis::parse_redis_value(answer.as_bytes()).unwrap();
            let error = error.extract_error().unwrap_err();
            let told = out_of_reach("jobs", "replies", &error);
            assert_eq!(told.map(|told| told.kind()), expected, "{answer}");
        }
    }
}
