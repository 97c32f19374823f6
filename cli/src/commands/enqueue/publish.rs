//! Batches of jobs on their way to the queue, and what is known of those that are there.

use std::io;
use std::time::Duration;

use anyhow::Result;
use ebb_queue::{ErrorKind, Job, Published, Queue};
use ebb_telemetry::{Span, Traces};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::exit::{interrupted, usage};
use crate::output::{Output, grouped, note};
use crate::results::{Awaited, Expiry};
use crate::spread::Spread;
use crate::trace::publication;

/// How long a batch that is on its way at Ctrl-C may take to be confirmed.
const MOMENT: Duration = Duration::from_secs(2);

/// Where jobs go, and where their results are asked for.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) queue: &'a Queue,
    pub(super) spread: Option<&'a Spread>,
}

impl Target<'_> {
    pub(super) fn check(self, jobs: &[Job]) -> Result<()> {
        self.spread.map_or(Ok(()), |spread| spread.check(jobs))
    }

    async fn publish(self, jobs: Vec<Job>) -> Result<Vec<Published>> {
        match self.spread {
            Some(spread) => spread.publish(jobs).await,
            None => Ok(self.queue.publish(jobs).await?),
        }
    }
}

/// What was enqueued so far.
#[derive(Debug, Default)]
pub(super) struct Enqueued {
    pub(super) n_jobs: usize,
    /// Of these, jobs that the queue had already.
    pub(super) n_known: usize,
    /// With --wait, what is waited for; else the ids are printed and forgotten.
    pub(super) jobs: Vec<Awaited>,
    pub(super) traces: Traces,
    /// Whoever read the ids has seen enough of them.
    pub(super) unread: bool,
}

impl Enqueued {
    /// Prints as long as somebody reads. After that the jobs are still to be enqueued:
    /// `ebb enqueue --file jobs.jsonl | head`.
    fn print(&mut self, print: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.unread {
            return Ok(());
        }
        let printed = print();
        let is_broken = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
        self.unread = matches!(&printed, Err(error) if error.downcast_ref().is_some_and(is_broken));
        if self.unread { Ok(()) } else { printed }
    }
}

pub(super) async fn publish(
    target: Target<'_>,
    mut jobs: Vec<Job>,
    enqueued: &mut Enqueued,
    stop: &CancellationToken,
    (wait, output): (bool, Output),
) -> Result<()> {
    let spans: Vec<Span> = jobs.iter_mut().map(|job| publication(&enqueued.traces, job)).collect();
    let sent: Vec<Awaited> = jobs.iter().map(Awaited::of).collect();
    let Some(published) = confirmed(target.publish(jobs), stop).await else {
        // Who knows the ids can ask again, and may send the same jobs again.
        sent.iter().for_each(|job| note(format!("sent and not confirmed: {}", job.id)));
        return Err(interrupted("interrupted while the queue did not answer"));
    };
    let published =
        published.map_err(|error| unless_refused(error, &sent, target.spread.is_some()))?;
    // Until here, since they end when they are dropped.
    drop(spans);
    enqueued.n_jobs += published.len();
    for (job, sent) in published.into_iter().zip(sent) {
        enqueued.n_known += usize::from(job.duplicate);
        // What is known of it is another job's.
        let expiry = if job.duplicate { Expiry::Unknown } else { sent.expiry };
        match (wait, output.json) {
            (true, _) => enqueued.jobs.push(Awaited { id: job.id, expiry }),
            (false, true) => {
                let line = json!({ "id": job.id, "duplicate": job.duplicate });
                enqueued.print(|| output.json(&line))?;
            }
            (false, false) => enqueued.print(|| output.line(job.id.as_str()))?,
        }
    }
    Ok(())
}

/// What the queue answers; nothing when it does not soon after Ctrl-C.
async fn confirmed<T>(asked: impl Future<Output = T>, stop: &CancellationToken) -> Option<T> {
    let mut asked = std::pin::pin!(asked);
    tokio::select! {
        answer = &mut asked => return Some(answer),
        () = stop.cancelled() => {}
    }
    tokio::time::timeout(MOMENT, asked).await.ok()
}

/// Says of jobs that may be stored all the same which they are. Of those that are spread over several
/// queues some may be, whatever one queue says.
fn unless_refused(error: anyhow::Error, sent: &[Awaited], is_spread: bool) -> anyhow::Error {
    let refusal = error.downcast_ref().filter(|error: &&ebb_queue::Error| !error.may_be_stored());
    if refusal.is_some() && !is_spread {
        return error;
    }
    sent.iter().for_each(|job| note(format!("sent and not confirmed: {}", job.id)));
    error.context(
        "jobs that are not confirmed may be stored; send them again under the same ids (--id, or \
         `id` in a JSON line)",
    )
}

/// Jobs that are more than may wait do not fit at once, however empty the queue is.
pub(super) fn unless_too_many(error: anyhow::Error, n_jobs: u64, limit: u64) -> anyhow::Error {
    let is_refusal =
        |error: &ebb_queue::Error| error.kind() == ErrorKind::Full && !error.may_be_stored();
    if n_jobs <= limit || !error.downcast_ref().is_some_and(is_refusal) {
        return error;
    }
    let (n_jobs, limit) = (grouped(n_jobs), grouped(limit));
    usage(format!(
        "the queue is full: {n_jobs} jobs are more than may wait in it (max_ready is {limit}), so \
         they do not fit at once; raise max_ready, or enqueue fewer at a time"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    #[test]
    fn jobs_that_never_fit_are_told_apart_from_a_queue_that_is_full_for_now() {
        for (kind, n_jobs, exit, told) in [
            (ErrorKind::Full, 1000, Exit::Usage, "1,000 jobs are more than may wait"),
            (ErrorKind::Full, 500, Exit::Unavailable, "publish later"),
            (ErrorKind::Denied, 1000, Exit::Usage, "publish later"),
        ] {
            let error = ebb_queue::Error::new(kind, "publish later");
            let error = unless_too_many(error.into(), n_jobs, 500);
            assert_eq!(Exit::of(&error), exit, "{n_jobs}: {error}");
            assert!(error.to_string().contains(told), "{n_jobs}: {error}");
        }
    }

    #[test]
    fn jobs_that_may_be_stored_all_the_same_are_not_told_as_refused() {
        let sent = [Awaited { id: "a".parse().unwrap(), expiry: Expiry::Unknown }];
        for (kind, is_spread, is_in_doubt, exit) in [
            (ErrorKind::Full, false, false, Exit::Unavailable),
            (ErrorKind::Full, true, true, Exit::Unavailable),
            (ErrorKind::Invalid, false, false, Exit::Usage),
            (ErrorKind::Unavailable, false, true, Exit::Unavailable),
            (ErrorKind::Internal, false, true, Exit::Failed),
        ] {
            let error = ebb_queue::Error::new(kind, "words").into();
            let error = unless_refused(error, &sent, is_spread);
            let words = format!("{error:#}");
            assert_eq!(words.contains("again under the same ids"), is_in_doubt, "{words}");
            assert!(words.ends_with("words"), "{words}");
            assert_eq!(Exit::of(&error), exit, "{words}");
        }
    }

    #[test]
    fn who_reads_no_more_ids_stops_the_printing_alone() {
        let fails = |kind| move || Err(io::Error::from(kind).into());
        let mut enqueued = Enqueued::default();
        assert!(enqueued.print(fails(io::ErrorKind::StorageFull)).is_err());
        assert!(enqueued.print(fails(io::ErrorKind::BrokenPipe)).is_ok());
        enqueued.print(|| unreachable!("nobody reads it")).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_on_its_way_at_ctrl_c_has_a_moment_to_be_confirmed() {
        let stop = CancellationToken::new();
        stop.cancel();
        let slow = tokio::time::sleep(MOMENT / 2);
        assert_eq!(confirmed(slow, &stop).await, Some(()));
        assert_eq!(confirmed(std::future::pending::<()>(), &stop).await, None);
    }
}
