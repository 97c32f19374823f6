//! New jobs.

use super::Calls;
use super::keeper::Again;
use super::script::{self, Call};
use super::value::{self, garbled, list, text};
use crate::{Error, ErrorKind, Job, Priority, Published, Result};

/// A job whose cost hint is absurd shall not spoil the sum of all: a thousand million tokens.
const DEAREST: f64 = 1e9;

impl Calls {
    pub(super) async fn publish(&self, jobs: &[Job], max_body: u64) -> Result<Vec<Published>> {
        if let Some(job) = jobs.iter().find(|job| job.body.len() as u64 > max_body) {
            let words = format!(
                "job {}: its body of {} bytes is longer than the {max_body} that redis takes \
                 (proto-max-bulk-len)",
                job.id,
                job.body.len()
            );
            return Err(Error::new(ErrorKind::Invalid, words));
        }
        let max_ready = self.behavior.max_ready;
        let call = self.call(&script::PUBLISH).maybe(max_ready);
        let call = jobs.iter().try_fold(call, |call, job| sketch(call, job, &job.body))?;
        // Sent twice, jobs that were stored would be answered as duplicates of themselves.
        let answer = self.run(call, Again::No).await?;
        if matches!(answer, redis::Value::BulkString(_) | redis::Value::SimpleString(_)) {
            if text(answer)? == "full" {
                let limit = max_ready.unwrap_or_default();
                let words = format!("the queue is full: max_ready is {limit} jobs; publish later");
                return Err(Error::new(ErrorKind::Full, words));
            }
            return Err(garbled("what became of the jobs"));
        }
        let known_as = list(answer)?;
        if known_as.len() != jobs.len() {
            return Err(garbled("what became of the jobs"));
        }
        let published = jobs.iter().zip(known_as).map(|(job, known)| {
            let known = value::text(known)?;
            let duplicate = !known.is_empty();
            let id = if duplicate { known.try_into()? } else { job.id.clone() };
            Ok(Published { id, duplicate })
        });
        published.collect()
    }
}

/// A job as scripts take it in.
pub(super) fn sketch<'a>(call: Call<'a>, job: &Job, body: &'a [u8]) -> Result<Call<'a>> {
    let headers = &job.headers;
    let head = serde_json::to_vec(headers).map_err(|error| {
        Error::new(ErrorKind::Internal, "the headers cannot be written").caused_by(error)
    })?;
    let lane = match headers.priority {
        Priority::High => 0,
        Priority::Normal => 1,
        Priority::Low => 2,
    };
    Ok(call
        .text(job.id.as_str())
        .bytes(head)
        .bytes(body)
        .number(lane)
        .number(job.enqueued_at.as_millisecond())
        .maybe(headers.deadline.map(|at| at.as_millisecond()))
        .maybe(headers.not_before.map(|at| at.as_millisecond()))
        .text(headers.key.clone().unwrap_or_default())
        .maybe(headers.cost.map(thousandths)))
}

/// Whole numbers, so that what is added can be taken away again exactly.
#[allow(clippy::cast_possible_truncation, reason = "clamped before")]
fn thousandths(cost: f64) -> i64 {
    (cost.clamp(0.0, DEAREST) * 1e3).round() as i64
}
