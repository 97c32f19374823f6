//! Replies to jobs that their queue ends by itself: no worker is there to send one.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::{Error, ErrorKind, Headers, JobId, JobResult, Result, Timestamp, header};

/// The longest that jobs wait for the replies of others.
const SENDING: Duration = Duration::from_secs(5);

/// The result of a job as it is stored, and where the job asked to be told of it.
#[derive(Debug, Clone)]
pub(crate) struct Owed {
    pub(crate) to: String,
    pub(crate) result: JobResult,
    pub(crate) traceparent: Option<String>,
}

impl Owed {
    /// What is owed to whoever waits for a job with these headers, where this is its stored result.
    /// Nothing where it asked for no reply, nor where it has gone on to another queue, which tells.
    pub(crate) fn new(headers: &Headers, stored: JobResult) -> Option<Self> {
        if stored.moved_to().is_some() {
            return None;
        }
        let to = headers.reply_to.clone()?;
        Some(Self { to, result: stored, traceparent: headers.traceparent.clone() })
    }
}

/// Whether a reply may go to this address, where a broker finds this against it. A reply has the rights
/// of the worker, and who names the address may have fewer: of what is Ebb's or the server's it goes
/// only to where any client may publish jobs.
pub(crate) fn check_address(to: &str, why_not: Option<&str>) -> Result<()> {
    let Some(why) = why_not else { return Ok(()) };
    Err(Error::new(ErrorKind::Invalid, format!("{}: {to:?} {why}", header::REPLY_TO)))
}

/// Says so if the reply to a job was not sent. The job has ended all the same, and whoever waits for it
/// can ask for its result.
pub(crate) fn note(id: &JobId, sent: Result<()>) {
    if let Err(error) = sent {
        tracing::warn!(job.id = %id, %error, "the reply to a job that ended without a worker was not sent");
    }
}

/// Until when replies may be sent for which the jobs wait that come along with them, and are leased
/// already: half a lease from now, and [`SENDING`] at most. What has not gone by then does not go.
pub(crate) fn sending_ends(lease: Duration) -> Instant {
    Instant::now() + SENDING.min(lease / 2)
}

/// Whether whoever stored this result has told it by now, or was lost before. Clocks may differ.
pub(crate) fn is_old(stored: &JobResult, now: Timestamp) -> bool {
    now.duration_since(stored.finished_at).unsigned_abs() > SENDING
}

/// What comes of a reply by then; one that would begin later does not.
pub(crate) async fn in_time(end: Instant, reply: impl Future<Output = Result<()>>) -> Result<()> {
    let sent = match Instant::now() < end {
        true => timeout_at(end, reply).await.ok(),
        false => None,
    };
    let words = "the replies before it took too long";
    sent.unwrap_or_else(|| Err(Error::new(ErrorKind::Unavailable, words)))
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn replies_that_do_not_go_keep_the_jobs_beside_them_only_so_long() {
        let begin = Instant::now();
        let end = sending_ends(SENDING * 6);
        assert!(in_time(end, ready(Ok(()))).await.is_ok());
        assert!(in_time(end, pending()).await.is_err());
        assert_eq!(begin.elapsed(), SENDING);
        assert!(in_time(end, ready(Ok(()))).await.is_err(), "it is not begun");
    }

    #[tokio::test(start_paused = true)]
    async fn replies_take_no_more_than_half_a_lease() {
        let lease = Duration::from_secs(1);
        let begin = Instant::now();
        assert!(in_time(sending_ends(lease), pending()).await.is_err());
        assert_eq!(begin.elapsed(), lease / 2);
    }

    #[test]
    fn a_result_is_owed_to_who_asked_for_a_reply_where_the_job_ended() {
        let (id, now) = ("a".parse::<crate::JobId>().unwrap(), Timestamp::UNIX_EPOCH);
        let asked = Headers { reply_to: Some("inbox".to_owned()), ..Headers::default() };
        let failure = JobResult::buried(id.clone(), 2, crate::Failure::expired(), now);
        let owed = Owed::new(&asked, failure.clone()).unwrap();
        assert_eq!((&*owed.to, &owed.result), ("inbox", &failure));
        assert!(Owed::new(&Headers::default(), failure).is_none());
        assert!(Owed::new(&asked, JobResult::moved(id, "jobs-canary", now)).is_none());
    }
}
