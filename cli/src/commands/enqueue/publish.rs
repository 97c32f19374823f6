//! Batches of jobs on their way to the queue, and what is known of those that are there.

use std::time::Duration;

use anyhow::Result;
use ebb_queue::{ErrorKind, Job, Published, Queue};
use ebb_telemetry::{Span, Traces};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::exit::{interrupted, usage};
use crate::output::{Output, Reader, grouped, note};
use crate::results::Awaited;
use crate::spread::Spread;
use crate::trace::publication;

/// How long a batch that is on its way at Ctrl-C may take to be confirmed.
const MOMENT: Duration = Duration::from_secs(2);

/// Where jobs go, and where their results are asked for.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    /// What the queue is called.
    pub(super) name: &'a str,
    pub(super) queue: &'a Queue,
    pub(super) spread: Option<&'a Spread>,
}

impl Target<'_> {
    pub(super) fn check(self, jobs: &[Job]) -> Result<()> {
        self.spread.map_or(Ok(()), |spread| spread.check(jobs))
    }

    /// Publishes the jobs, and notes of each that is taken under which id it is known.
    async fn publish(self, jobs: Vec<Job>, told: &mut [Option<Published>]) -> Result<()> {
        match self.spread {
            Some(spread) => spread.publish(jobs, told).await,
            None => {
                let published = self.queue.publish(jobs).await?;
                told.iter_mut().zip(published).for_each(|(told, one)| *told = Some(one));
                Ok(())
            }
        }
    }

    /// Whether a refusal of so many jobs is one of each of them. A broker that stores job by job may have
    /// stored the first of them, and so may one of the queues that they are spread over.
    async fn refuses_all(self, n_jobs: usize) -> bool {
        // Its broker has just refused something, so that it answers now.
        self.spread.is_none() && (n_jobs == 1 || self.has_whole_batches().await)
    }

    async fn has_whole_batches(self) -> bool {
        self.queue.info().await.is_ok_and(|info| info.has_whole_batches())
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
    /// Of the ids.
    pub(super) reader: Reader,
}

pub(super) async fn publish(
    target: Target<'_>,
    mut jobs: Vec<Job>,
    enqueued: &mut Enqueued,
    stop: &CancellationToken,
    (wait, output): (bool, Output),
) -> Result<()> {
    let mut spans: Vec<Span> =
        jobs.iter_mut().map(|job| publication(&enqueued.traces, job)).collect();
    let sent: Vec<Awaited> = jobs.iter().map(Awaited::of).collect();
    let mut told = vec![None; jobs.len()];
    let answer = confirmed(target.publish(jobs, &mut told), stop).await;
    if !matches!(answer, Some(Ok(()))) {
        untold(&mut spans, &told).for_each(Span::fail);
    }
    // Until here, since they end when they are dropped.
    drop(spans);
    let Some(answer) = answer else {
        // Who knows the ids can ask again, and may send the same jobs again.
        sent.iter().for_each(|job| note(format!("sent and not confirmed: {}", job.id)));
        return Err(interrupted("interrupted while the queue did not answer"));
    };
    if let Err(error) = answer {
        let is_of_all = target.refuses_all(sent.len()).await;
        return Err(unless_refused(error, &sent, is_of_all));
    }
    enqueued.n_jobs += told.len();
    for (job, sent) in told.into_iter().flatten().zip(sent) {
        enqueued.n_known += usize::from(job.duplicate);
        match (wait, output.json) {
            // What is known of it is another job's.
            (true, _) if job.duplicate => enqueued.jobs.push(Awaited::known_by_id(job.id)),
            (true, _) => enqueued.jobs.push(Awaited { id: job.id, ..sent }),
            (false, true) => {
                let line = json!({ "id": job.id, "duplicate": job.duplicate });
                enqueued.reader.print(|| output.json(&line))?;
            }
            (false, false) => enqueued.reader.print(|| output.line(job.id.as_str()))?,
        }
    }
    Ok(())
}

/// What stands beside jobs of which no queue has said that it took them.
fn untold<'a, T>(
    beside: &'a mut [T],
    told: &'a [Option<Published>],
) -> impl Iterator<Item = &'a mut T> {
    beside.iter_mut().zip(told).filter(|(_, told)| told.is_none()).map(|(one, _)| one)
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

/// That it is not known of jobs whether they are stored, and what to do.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error(
    "jobs that are not confirmed may be stored; send them again under the same ids (--id, or `id` \
     in a JSON line)"
)]
struct InDoubt;

/// Says of jobs that may be stored all the same which they are: unless a refusal is one of all.
fn unless_refused(error: anyhow::Error, sent: &[Awaited], is_of_all: bool) -> anyhow::Error {
    let refusal = error.downcast_ref().filter(|error: &&ebb_queue::Error| !error.may_be_stored());
    if refusal.is_some() && is_of_all {
        return error;
    }
    sent.iter().for_each(|job| note(format!("sent and not confirmed: {}", job.id)));
    error.context(InDoubt)
}

/// Jobs that are more than may wait do not fit at once, however empty the queue is.
pub(super) fn unless_too_many(error: anyhow::Error, n_jobs: u64, limit: u64) -> anyhow::Error {
    let is_refusal =
        |error: &ebb_queue::Error| error.kind() == ErrorKind::Full && !error.may_be_stored();
    if n_jobs <= limit || !error.downcast_ref().is_some_and(is_refusal) {
        return error;
    }
    let (n_jobs, limit) = (grouped(n_jobs), grouped(limit));
    let too_many = usage(format!(
        "the queue is full: {n_jobs} jobs are more than may wait in it (max_ready is {limit}), so \
         they do not fit at once; raise max_ready, or enqueue fewer at a time"
    ));
    // Those that did fit may be there.
    if error.is::<InDoubt>() { too_many.context(InDoubt) } else { too_many }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ebb_queue::faulty::{Faults, Faulty};
    use ebb_queue::memory::MemoryQueue;
    use ebb_queue::{Behavior, OpenOptions};

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
        let sent = [Awaited::known_by_id("a".parse().unwrap())];
        for (kind, is_of_all, is_in_doubt, exit) in [
            (ErrorKind::Full, true, false, Exit::Unavailable),
            (ErrorKind::Full, false, true, Exit::Unavailable),
            (ErrorKind::Invalid, true, false, Exit::Usage),
            (ErrorKind::Invalid, false, true, Exit::Usage),
            (ErrorKind::Unavailable, true, true, Exit::Unavailable),
            (ErrorKind::Internal, true, true, Exit::Failed),
        ] {
            let error = ebb_queue::Error::new(kind, "words").into();
            let error = unless_refused(error, &sent, is_of_all);
            let words = format!("{error:#}");
            assert_eq!(words.contains("again under the same ids"), is_in_doubt, "{words}");
            assert!(words.ends_with("words"), "{words}");
            assert_eq!(Exit::of(&error), exit, "{words}");
        }
    }

    #[test]
    fn of_more_jobs_than_ever_fit_those_that_may_be_stored_are_told() {
        let full = || ebb_queue::Error::new(ErrorKind::Full, "publish later").into();
        for (is_of_all, begins) in [(true, "the queue is full"), (false, "jobs that are not")] {
            let error = unless_too_many(unless_refused(full(), &[], is_of_all), 2, 1);
            let words = format!("{error:#}");
            assert!(words.starts_with(begins), "{words}");
            assert!(words.contains("2 jobs are more than may wait"), "{words}");
            assert_eq!(Exit::of(&error), Exit::Usage, "{words}");
        }
    }

    #[tokio::test]
    async fn a_refusal_is_one_of_all_jobs_where_the_broker_says_that_it_stores_all_or_none() {
        let memory = MemoryQueue::new(&Behavior::default(), OpenOptions::default());
        let faults = Faults { fail_before: 1.0, ..Faults::NONE };
        let silent: Queue = Arc::new(Faulty::new(Arc::new(memory.clone()), faults, 7));
        let whole: Queue = Arc::new(memory);
        for (queue, n_jobs, is_of_all) in
            [(&whole, 2, true), (&whole, 1, true), (&silent, 2, false), (&silent, 1, true)]
        {
            let target = Target { name: "jobs", queue, spread: None };
            assert_eq!(target.refuses_all(n_jobs).await, is_of_all, "{n_jobs}");
        }
    }

    #[test]
    fn only_jobs_that_no_queue_took_end_as_failed() {
        let taken = Published { id: "a".parse().unwrap(), duplicate: false };
        let mut beside = ["taken", "refused", "taken too"];
        untold(&mut beside, &[Some(taken.clone()), None, Some(taken)])
            .for_each(|one| *one = "failed");
        assert_eq!(beside, ["taken", "failed", "taken too"]);
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
