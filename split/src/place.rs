//! Where a job goes: chosen by weight once, written down, and the same ever after.
//!
//! The record is stored before the job is published, so that a job that is split again after a crash
//! goes where it went, whatever the weights are by then; and whoever waits for the answer at the
//! intake is led on. RabbitMQ keeps no results and so no records: there the weights alone decide.

use ebb_queue::{Address, Job, JobResult, Queue, QueueUrl, Result, Stored, Timestamp};
use ebb_telemetry::{TraceId, trace_of};
use tracing::field::display;
use tracing::warn;

/// Where a job goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// To this queue.
    Queue {
        /// Its name.
        name: String,
        /// Whether that was written down before, so that the job may be there already.
        before: bool,
    },
    /// Nowhere: its answer is here, or it was cancelled.
    Answered,
}

/// Whether the broker of this queue keeps records of where its jobs went.
#[must_use]
pub fn keeps_records(url: &QueueUrl) -> bool {
    !matches!(url.address, Address::Amqp(_))
}

/// Writes down where a job goes, unless that is written down already.
///
/// The intake is opened with [`ebb_queue::Moved::Show`].
///
/// # Errors
/// When the broker does not answer.
pub async fn place(intake: &Queue, job: &Job, chosen: &str, now: Timestamp) -> Result<Place> {
    let record = JobResult::moved(job.id.clone(), chosen, now);
    let chosen = |before| Place::Queue { name: chosen.to_owned(), before };
    if intake.put(&record).await? == Stored::Stored {
        return Ok(chosen(false));
    }
    let Some(found) = intake.get(&job.id).await? else { return Ok(chosen(true)) };
    if let Some(name) = found.moved_to() {
        return Ok(Place::Queue { name: name.to_owned(), before: true });
    }
    if found.outcome.is_final() {
        return Ok(Place::Answered);
    }
    let trace_id = trace_id(job).map(display);
    warn!(
        job.id = %job.id, trace_id,
        "an earlier failure of this job stays at the intake for its result_ttl"
    );
    Ok(chosen(false))
}

/// The trace that a job belongs to, which log lines about it name.
pub(crate) fn trace_id(job: &Job) -> Option<TraceId> {
    trace_of(job.headers.traceparent.as_deref()?)
}
