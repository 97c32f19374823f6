//! Jobs and answers on their way to the broker.

use std::collections::HashMap;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use tokio::time::Instant;

use super::connect::Version;
use super::core::Core;
use super::counts::Unknown;
use super::names::{Lane, check_reply_to};
use super::parcel::{MAX_VALUE, Parcel, long};
use super::session::{Message, Posted, Session};
use super::voice;
use crate::{Error, ErrorKind, Job, JobId, JobResult, Published, Result, header};

/// The longest body that a server takes unless it is set otherwise; it closes the connection of who
/// sends more.
pub(super) fn max_body(version: &Version) -> u64 {
    let mebibytes = if version.number >= (4, 0) { 16 } else { 128 };
    mebibytes * 1024 * 1024
}

pub(super) async fn publish(core: &Core, jobs: Vec<Job>) -> Result<Vec<Published>> {
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let session = core.session().await?;
    let limit = max_body(&session.version);
    if let Some(job) = jobs.iter().find(|job| job.body.len() as u64 > limit) {
        let size = job.body.len();
        let words =
            format!("the body of job {} is {size} bytes long, and RabbitMQ takes {limit}", job.id);
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("{words}; put it elsewhere and send its address"),
        ));
    }
    let (published, new) = without_repetitions(jobs);
    check_room(core, &session, new.len()).await?;
    let now = core.clock.now();
    let mut messages = Vec::with_capacity(new.len());
    let (mut is_delayed, mut ids) = (false, Vec::with_capacity(new.len()));
    for job in new {
        ids.push(job.id.clone());
        let due = job.headers.not_before.unwrap_or(now);
        let delay = Duration::try_from(due.duration_since(now)).unwrap_or_default();
        is_delayed |= !delay.is_zero();
        let lane = Lane::New(job.headers.priority);
        let parcel = Parcel::new(job, core.next_place());
        parcel.check()?;
        messages.push(core.to_lane_after(&session, &parcel, (lane, delay)).await?);
    }
    let Posted { is_stored, failed } = session.post_up_to_a_refusal(messages).await;
    if let Some(error) = failed {
        let stored = ids.into_iter().zip(is_stored).filter_map(|(id, is)| is.then_some(id));
        let is_refused = error.kind() == ErrorKind::Full && error.may_be_stored();
        let again = "publish it again under the same id";
        let error = if is_refused { error.and(again) } else { error };
        return Err(error.but_stored(stored.collect()));
    }
    if is_delayed {
        voice::tell_of_delay(core, &session).await;
    }
    Ok(published)
}

/// Finds repetitions within a batch, by id and then by key; more the broker cannot tell.
fn without_repetitions(jobs: Vec<Job>) -> (Vec<Published>, Vec<Job>) {
    let mut by_id: HashMap<JobId, ()> = HashMap::new();
    let mut by_key: HashMap<String, JobId> = HashMap::new();
    let (mut published, mut new) = (Vec::with_capacity(jobs.len()), Vec::with_capacity(jobs.len()));
    for job in jobs {
        let by_id_known = by_id.contains_key(&job.id).then(|| job.id.clone());
        let key = job.headers.key.as_ref();
        let known = by_id_known.or_else(|| by_key.get(key?).cloned());
        let duplicate = known.is_some();
        published.push(Published { id: known.unwrap_or_else(|| job.id.clone()), duplicate });
        if !duplicate {
            by_id.insert(job.id.clone(), ());
            by_key.extend(key.map(|key| (key.clone(), job.id.clone())));
            new.push(job);
        }
    }
    (published, new)
}

async fn check_room(core: &Core, session: &Session, n_new: usize) -> Result<()> {
    let Some(limit) = core.behavior.max_ready else { return Ok(()) };
    let asked_at = Instant::now();
    // All who ask meanwhile share what is told next: the broker may wait for a queue that does not answer, and
    // were it asked for each of them there would be ever more who wait.
    let mut counted = core.counted.lock().await;
    let (at, n_waiting) = match *counted {
        Some(counted) if counted.0 >= asked_at => counted,
        _ => {
            core.find_levels(session).await?;
            // Whoever may publish is not to wait for one queue that does not answer.
            let counts = core.count_waiting(session, &[], Unknown::IsNone).await?;
            (Instant::now(), counts.iter().sum())
        }
    };
    let n_to_come = n_waiting + n_new as u64;
    let is_full = n_to_come > limit;
    *counted = Some((at, if is_full { n_waiting } else { n_to_come }));
    if is_full {
        let words = format!("the queue is full: max_ready is {limit} jobs; publish later");
        return Err(Error::new(ErrorKind::Full, words));
    }
    Ok(())
}

/// Sends a result to where its job asked for it, with the mark that the producer gave its request.
pub(super) async fn reply(
    core: &Core,
    to: &str,
    result: &JobResult,
    (traceparent, correlation): (Option<&str>, Option<ShortString>),
) -> Result<()> {
    check_reply_to(to)?;
    let session = core.session().await?;
    let (content_type, body) = result.reply_body();
    let mut headers = FieldTable::default();
    let mut put = |name: &str, value: AMQPValue| {
        headers.insert(name.into(), value);
    };
    put(header::ID, long(result.id.as_str()));
    put(header::ATTEMPT, long(result.attempt.to_string()));
    put(header::OUTCOME, long(result.outcome.word()));
    if let Some(kind) = result.outcome.failure_kind() {
        put(header::KIND, long(kind.word()));
    }
    put(header::CONTENT_TYPE, long(content_type.clone()));
    if let Some(queue) = &result.queue {
        put(header::QUEUE, long(queue.as_str()));
    }
    if let Some(traceparent) = traceparent.filter(|text| text.len() <= MAX_VALUE) {
        put(header::TRACEPARENT, long(traceparent));
    }
    let mut properties = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
    if let Ok(content_type) = ShortString::try_new(content_type) {
        properties = properties.with_content_type(content_type);
    }
    let correlation = correlation.or_else(|| ShortString::try_new(result.id.as_str()).ok());
    if let Some(correlation) = correlation {
        properties = properties.with_correlation_id(correlation);
    }
    let (exchange, key) = (String::new(), to.to_owned());
    let message = Message { exchange, key, properties, body, must_arrive: true };
    let replied = session.publish(vec![message]).await;
    replied.map_err(|error| match error.kind() {
        // Who asked is gone, or never made the queue.
        ErrorKind::Incompatible => {
            let words = format!("{}: there is no queue {to:?} on RabbitMQ", header::REPLY_TO);
            Error::new(ErrorKind::Invalid, words)
        }
        _ => error,
    })
}
