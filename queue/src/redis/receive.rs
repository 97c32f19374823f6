//! Jobs on loan, and the jobs of plain producers.

use std::num::NonZeroUsize;
use std::time::Duration;

use bytes::Bytes;
use redis::Value;
use tracing::warn;

use super::Calls;
use super::keeper::Again;
use super::publish::sketch;
use super::script;
use super::value::{bytes, garbled, int, list, moment, small, text};
use crate::{
    Delivery, Error, ErrorKind, Failure, FailureKind, Headers, Job, JobId, JobResult, Receipt,
    Result,
};

/// Jobs that one script hands out at most: others wait for the server.
const STEP: usize = 1000;

/// What a claim got, or when it is worth another.
#[derive(Debug)]
pub(super) struct Claimed {
    pub(super) deliveries: Vec<Delivery>,
    /// How long it takes until time alone makes a job ready.
    pub(super) until_due: Option<Duration>,
}

/// A job from a message of a plain producer, and what is wrong with it.
#[derive(Debug)]
pub(super) struct Stranger {
    entry: String,
    pub(super) job: Job,
    wrong: Option<Error>,
}

/// A job as scripts hand it out.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) job: Job,
    pub(super) attempts: u32,
    /// Why its headers cannot be read, which are then taken for none.
    pub(super) wrong: Option<Error>,
}

impl Calls {
    /// Leases what is ready, best first.
    pub(super) async fn claim(&self, max: NonZeroUsize, worker: &str) -> Result<Claimed> {
        let mut strangers = Vec::new();
        loop {
            let max = max.get().min(STEP);
            let mark = format!("{:016x}", rand::random::<u64>());
            let call = self
                .call(&script::CLAIM)
                .number(max)
                .span(self.behavior.lease)
                .text(worker)
                .text(mark.clone())
                .span(self.behavior.result_ttl)
                .span(self.behavior.key_ttl)
                .number(strangers.len());
            let call = strangers.iter().fold(call, |call, one: &Stranger| {
                let wrong = one.wrong.as_ref().map(ToString::to_string).unwrap_or_default();
                call.text(one.entry.clone()).text(wrong)
            });
            let call = strangers.iter().try_fold(call, |call, one| sketch(call, &one.job))?;
            let mut parts = list(self.run(call, Again::No).await?)?.into_iter();
            let mut next = || parts.next().ok_or_else(|| garbled("a delivery"));
            let (deliveries, entries) = (list(next()?)?, list(next()?)?);
            let (until_due, ahead, at_once) = (int(&next()?)?, int(&next()?)?, int(&next()?)?);
            self.send_owed(next()?).await;
            let deliveries = self.read_all(deliveries, &mark).await;
            let read = entries.into_iter().map(|entry| Stranger::read(entry, -ahead));
            strangers = read.collect::<Result<_>>()?;
            if !deliveries.is_empty() || at_once == 0 {
                let until_due = u64::try_from(until_due).ok().map(Duration::from_millis);
                return Ok(Claimed { deliveries, until_due });
            }
        }
    }
}

impl Calls {
    /// The deliveries of a claim. One that cannot be read harms none of the others, which are leased: it is
    /// buried, or where not even its name can be read, comes back by its lease.
    async fn read_all(&self, found: Vec<Value>, mark: &str) -> Vec<Delivery> {
        let mut deliveries = Vec::with_capacity(found.len());
        for one in found {
            match delivery(one, mark) {
                Ok((delivery, None)) => deliveries.push(delivery),
                Ok((delivery, Some(wrong))) => self.bury(delivery, &wrong).await,
                Err(error) => warn!(%error, "a job that cannot be read is not handed out"),
            }
        }
        deliveries
    }

    /// What fails here is left to the lease: the job comes back, and is buried then.
    async fn bury(&self, delivery: Delivery, wrong: &Error) {
        let reason =
            format!("{wrong}; put the job back with a version that reads it: ebb dlq redrive");
        let (id, attempt) = (delivery.job.id.clone(), delivery.attempt);
        let failure = Failure::new(FailureKind::Other, reason);
        let result = JobResult::buried(id.clone(), attempt, failure.clone(), self.clock.now());
        warn!(job.id = %id, reason = failure.reason, "a job is rejected: it cannot be read");
        let buried = async {
            self.put(&[result]).await?;
            self.settle(&[delivery.reject(failure)]).await.map_err(Error::from)
        };
        if let Err(error) = buried.await {
            warn!(job.id = %id, %error, "a job that cannot be read is no dead letter yet");
        }
    }
}

impl Stranger {
    /// Reads an entry of the inbox; the clock of the queue is so far ahead of the server's.
    pub(super) fn read(value: Value, ahead: i64) -> Result<Self> {
        let mut parts = list(value)?.into_iter();
        let mut next = || parts.next().ok_or_else(|| garbled("an entry"));
        let (entry, fields, written) = (text(next()?)?, list(next()?)?, int(&next()?)?);
        let fields = fields.into_iter().map(bytes).collect::<Result<Vec<_>>>()?;
        let fields: Vec<_> =
            fields.iter().map(|field| String::from_utf8_lossy(field).into_owned()).collect();
        let pairs = fields.chunks_exact(2).map(|pair| (&*pair[0], &*pair[1]));
        let written = moment(written.saturating_add(ahead));
        let id: JobId = format!("redis-{entry}").try_into()?;
        let has_body = pairs.clone().any(|(name, _)| name == "body");
        let (job, mut wrong) = Job::from_stranger(id, pairs, Bytes::new(), written);
        if !has_body {
            let words = "body: the field is missing; write the request into a field named body";
            wrong.get_or_insert(Error::new(ErrorKind::Invalid, words));
        }
        Ok(Self { entry, job, wrong })
    }
}

fn delivery(value: Value, mark: &str) -> Result<(Delivery, Option<Error>)> {
    let mut parts = list(value)?.into_iter();
    let Stored { job, attempts, wrong } = stored(&mut parts)?;
    let receipt = Receipt { job: job.id.clone(), token: mark.into() };
    Ok((Delivery::new(job, attempts, receipt), wrong))
}

/// Reads id, attempts, when it was published, whether it has a deadline, and headers with the body.
pub(super) fn stored(parts: &mut impl Iterator<Item = Value>) -> Result<Stored> {
    let mut next = || parts.next().ok_or_else(|| garbled("a job"));
    let id = text(next()?)?.try_into()?;
    let attempts = small(&next()?)?;
    let enqueued_at = moment(int(&next()?)?);
    let has_deadline = int(&next()?)? != 0;
    // One whose text is gone has no headers either.
    let (read, body) = headers_and_body(bytes(next()?).unwrap_or_default().into());
    let (mut headers, wrong) = match read {
        Ok(headers) => (headers, None),
        Err(error) => (Headers::default(), Some(error)),
    };
    if !has_deadline {
        // It had passed when the job was put back.
        headers.deadline = None;
    }
    Ok(Stored { job: Job { id, enqueued_at, headers, body }, attempts, wrong })
}

/// What is no job as this version writes them is all body.
fn headers_and_body(text: Bytes) -> (Result<Headers>, Bytes) {
    let Some(end) = text.iter().position(|byte| *byte == b'\n') else {
        return (Err(garbled("the headers of a job")), text);
    };
    match serde_json::from_slice(&text[..end]) {
        Ok(headers) => (Ok(headers), text.slice(end + 1..)),
        Err(error) => (Err(garbled("the headers of a job").caused_by(error)), text),
    }
}
