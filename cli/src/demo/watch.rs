//! One run of the demo: feeds the queue, watches what happens when, and collects the results.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ebb_queue::{Job, JobId, JobResult, Published, Queue, Timestamp, WorkerStatus};
use tokio::sync::{mpsc, watch};

use super::verdict::{Audit, Verdict, quantile};
use super::work::Work;
use crate::local::Local;
use crate::output::{Live, grouped};
use crate::results::result_unless_forgotten;

/// Jobs stored in one commit.
const BATCH: usize = 64;

/// How often the line changes, and the workers are asked how much they did.
const TICK: Duration = Duration::from_millis(200);

/// How long a result may stay away before we look whether any work is left that can bring it.
const QUIET: Duration = Duration::from_millis(500);

/// Workers that may end by themselves before the demo gives up.
const MOST_CRASHES: u64 = 3;

/// A run, and what was seen of it.
pub(crate) struct Show {
    local: Local,
    queue: Queue,
    model: String,
    audit: Audit,
    moments: Moments,
    waits: Vec<f64>,
    /// What the queue accepted and nobody has waited for yet.
    accepted: Option<mpsc::Receiver<(Published, Timestamp)>>,
}

impl std::fmt::Debug for Show {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Show").field("moments", &self.moments).finish_non_exhaustive()
    }
}

/// When what happened first.
#[derive(Debug, Default)]
struct Moments {
    enqueued: Option<Instant>,
    ready: Option<Instant>,
    first_result: Option<Instant>,
    last_result: Option<Instant>,
    zero: Option<Instant>,
}

impl Show {
    /// A run that has not begun.
    pub(crate) fn new(local: Local, queue: Queue, model: String) -> Self {
        let (audit, moments) = (Audit::default(), Moments::default());
        Self { local, queue, model, audit, moments, waits: Vec::new(), accepted: None }
    }

    /// From an empty queue and no workers to an empty queue and no workers.
    ///
    /// # Errors
    /// When a part fails.
    pub(crate) async fn run(&mut self, work: &Work, live: &mut Live) -> Result<()> {
        self.stand_by().await?;
        let bodies = work.bodies();
        let (told, progress) = watch::channel(0);
        // Room for all: whoever feeds a queue does not wait for its results.
        let (published, accepted) = mpsc::channel(bodies.len());
        // Kept outside of this run: if time runs out, what nobody waited for counts as well.
        let accepted = self.accepted.insert(accepted);
        let Self { local, queue, audit, moments, waits, .. } = self;
        let (jobs, started, said) = (bodies.len(), HashMap::new(), Vec::new());
        let mut watching = Watching { local, live, progress, jobs, started, said };
        moments.enqueued = Some(Instant::now());
        {
            let collected = collect(queue, accepted, (audit, moments, waits), &told);
            let all = async { tokio::try_join!(feed(queue, bodies, published), collected) };
            tokio::pin!(all);
            loop {
                tokio::select! {
                    done = &mut all => {
                        done?;
                        break;
                    }
                    looked = watching.look() => looked?,
                }
            }
        }
        let (started, said) = watching.until_zero().await?;
        self.moments.zero = Some(Instant::now());
        // A worker says how long it took from its start to readiness, to the millisecond; its
        // first report comes a little later.
        let ready =
            said.iter().filter(|worker| !worker.cold_start.is_empty()).filter_map(|worker| {
                let seconds: f64 = worker.cold_start.iter().map(|(_, seconds)| seconds).sum();
                Some(*started.get(&worker.id)? + Duration::from_secs_f64(seconds))
            });
        self.moments.ready = ready.min();
        for worker in said {
            self.audit.worker(&worker.id, worker.completed);
        }
        self.check_again().await
    }

    /// Ends all parts, and says what was seen.
    ///
    /// # Errors
    /// When a part fails.
    pub(crate) async fn end(self) -> Result<(Verdict, Audit)> {
        let Self { local, queue, model, mut audit, moments, mut waits, mut accepted } = self;
        // Only when time ran out there is anything left here.
        while let Some((job, _)) = accepted.as_mut().and_then(|rest| rest.try_recv().ok()) {
            audit.accepted(job.id, job.duplicate);
        }
        for id in audit.ids().to_vec() {
            if audit.result(&id).is_none()
                && let Some(result) = queue.get(&id).await?
            {
                audit.saw(&result);
            }
        }
        let pool = local.pool.clone();
        let active = local.autoscaler.borrow().first_push;
        // Counted before anything is told to stop.
        let final_workers = pool.borrow().members.len();
        local.stop().await?;
        let since = |moment: Option<Instant>| {
            let span = moment?.duration_since(moments.enqueued?);
            Some(rounded(span.as_secs_f64() * 1e3))
        };
        waits.sort_by(f64::total_cmp);
        let pool = pool.borrow();
        let verdict = Verdict {
            model,
            enqueued: audit.ids().len() as u64,
            completed: audit.completed(),
            failed: audit.failed(),
            lost: audit.lost(),
            duplicated: audit.duplicated(),
            max_workers: pool.peak,
            final_workers,
            crashed: pool.crashed,
            alerts: None,
            completed_by_worker: audit.shares(),
            first_enqueue_to_active_ms: since(active),
            first_enqueue_to_first_worker_ready_ms: since(moments.ready),
            first_enqueue_to_first_result_ms: since(moments.first_result),
            first_enqueue_to_last_result_ms: since(moments.last_result),
            first_enqueue_to_zero_ms: since(moments.zero),
            job_p50_ms: quantile(&waits, 0.5).map(rounded),
            job_p95_ms: quantile(&waits, 0.95).map(rounded),
        };
        Ok((verdict, audit))
    }

    /// Waits until the autoscaler has asked once and listens: before, there is nothing to measure.
    async fn stand_by(&mut self) -> Result<()> {
        let listens = self.local.autoscaler.wait_for(|view| view.streaming && view.target > 0.0);
        listens.await.context("the autoscaler ended")?;
        Ok(())
    }

    /// Looks at each result a second time, now that nobody works any more.
    async fn check_again(&mut self) -> Result<()> {
        for id in self.audit.ids().to_vec() {
            match self.queue.get(&id).await? {
                Some(result) => self.audit.saw(&result),
                None => self.audit.missed(&id),
            }
        }
        let depth = self.queue.depth().await?;
        if depth.ready + depth.in_flight + depth.delayed > 0 {
            bail!("the pool went to zero with work left: {depth:?}");
        }
        Ok(())
    }
}

/// Milliseconds to a tenth.
fn rounded(ms: f64) -> f64 {
    (ms * 10.0).round() / 10.0
}

/// Enqueues as fast as the queue takes it.
async fn feed(
    queue: &Queue,
    bodies: Vec<String>,
    published: mpsc::Sender<(Published, Timestamp)>,
) -> Result<()> {
    let mut bodies = bodies.into_iter().peekable();
    while bodies.peek().is_some() {
        let now = Timestamp::now();
        let jobs = bodies.by_ref().take(BATCH).map(|body| Job::new(body, now)).collect();
        for job in queue.publish(jobs).await.context("cannot enqueue")? {
            published.send((job, now)).await.context("nobody collects the results")?;
        }
    }
    Ok(())
}

/// Takes each result as soon as it is there, in the order of the jobs.
async fn collect(
    queue: &Queue,
    accepted: &mut mpsc::Receiver<(Published, Timestamp)>,
    (audit, moments, waits): (&mut Audit, &mut Moments, &mut Vec<f64>),
    told: &watch::Sender<usize>,
) -> Result<()> {
    let mut patience = QUIET;
    while let Some((job, enqueued)) = accepted.recv().await {
        audit.accepted(job.id.clone(), job.duplicate);
        // A job that ended without a result is lost; the audit finds that out.
        let Some(result) = result_or_lost(queue, &job.id, patience).await? else {
            // Whatever else was lost with it has had its time as well.
            patience = Duration::ZERO;
            continue;
        };
        patience = QUIET;
        let now = Instant::now();
        moments.first_result.get_or_insert(now);
        moments.last_result = Some(now);
        waits.push(result.finished_at.duration_since(enqueued).as_secs_f64() * 1e3);
        audit.saw(&result);
        told.send_modify(|n_results| *n_results += 1);
    }
    Ok(())
}

/// Waits for the result of a job, or until there is no work left that could bring it.
async fn result_or_lost(
    queue: &Queue,
    id: &JobId,
    patience: Duration,
) -> Result<Option<JobResult>> {
    let result = result_unless_forgotten(queue, id);
    tokio::pin!(result);
    loop {
        tokio::select! {
            biased;
            result = &mut result => return result,
            () = tokio::time::sleep(patience) => {}
        }
        let depth = queue.depth().await?;
        if depth.ready + depth.in_flight + depth.delayed == 0 {
            // Results are stored before jobs are acknowledged: now it is there, or never.
            return Ok(queue.get(id).await?);
        }
    }
}

/// Shows the line, and notes what the workers say.
struct Watching<'a> {
    local: &'a mut Local,
    live: &'a mut Live,
    progress: watch::Receiver<usize>,
    jobs: usize,
    started: HashMap<String, Instant>,
    said: Vec<WorkerStatus>,
}

impl Watching<'_> {
    /// One look, after a while.
    async fn look(&mut self) -> Result<()> {
        tokio::time::sleep(TICK).await;
        let look = self.local.look().await?;
        let pool = self.local.pool.borrow().clone();
        self.started.extend(pool.members.into_iter().map(|member| (member.id, member.started)));
        if pool.crashed > MOST_CRASHES {
            bail!("{}", pool.failure.unwrap_or_default());
        }
        let results = grouped(*self.progress.borrow() as u64);
        self.live.show(format!("{results:>5}/{}  {look}", grouped(self.jobs as u64)));
        self.said.extend(look.workers);
        Ok(())
    }

    /// Until no worker is wanted and none is left; then when each was started, and all they said.
    async fn until_zero(mut self) -> Result<(HashMap<String, Instant>, Vec<WorkerStatus>)> {
        while self.local.autoscaler.borrow().replicas > 0
            || !self.local.pool.borrow().members.is_empty()
        {
            self.look().await?;
        }
        // Their last words, which outlive them for a moment.
        self.said.extend(self.local.look().await?.workers);
        Ok((self.started, self.said))
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use ebb_queue::{OpenOptions, Outcome, QueueUrl};

    use super::*;

    #[tokio::test]
    async fn jobs_whose_result_never_comes_are_lost_and_end_the_collecting() {
        let dir = tempfile::tempdir().unwrap();
        let url = QueueUrl::sqlite(dir.path().join("queue.db"));
        let queue = ebb_queue::open(&url, OpenOptions::default()).await.unwrap();
        let (published, mut accepted) = mpsc::channel(8);
        // The queue has never heard of these: it waits for them for ever.
        let vanished =
            |n: usize| Published { id: format!("v-{n}").parse().unwrap(), duplicate: false };
        for n in 0..2 {
            published.send((vanished(n), Timestamp::now())).await.unwrap();
        }
        let bodies = vec!["answered".to_owned(), "acknowledged without an answer".to_owned()];
        feed(&queue, bodies, published).await.unwrap();

        let (mut audit, mut moments, mut waits) = Default::default();
        let (told, progress) = watch::channel(0);
        let collected =
            collect(&queue, &mut accepted, (&mut audit, &mut moments, &mut waits), &told);
        let work = async {
            let most = NonZeroUsize::new(8).unwrap();
            let held = queue.receive(most, Duration::from_secs(10)).await.unwrap();
            for delivery in held {
                if delivery.job.body == "answered" {
                    let outcome =
                        Outcome::Completed { content_type: "text/plain".into(), body: "x".into() };
                    let (id, finished_at) = (delivery.job.id.clone(), Timestamp::now());
                    let result = JobResult { id, attempt: 1, outcome, finished_at, queue: None };
                    queue.put(&result).await.unwrap();
                }
                queue.settle(&[delivery.ack()]).await.unwrap();
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(60), collected);
        let (collected, ()) = tokio::join!(in_time, work);
        collected.expect("no waiting for what cannot come").unwrap();
        assert_eq!((audit.completed(), audit.failed(), audit.lost()), (1, 0, 3));
        assert_eq!((*progress.borrow(), waits.len()), (1, 1));
    }

    #[tokio::test]
    async fn a_job_that_is_still_in_the_queue_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let url = QueueUrl::sqlite(dir.path().join("queue.db"));
        let queue = ebb_queue::open(&url, OpenOptions::default()).await.unwrap();
        let job = queue.publish(vec![Job::new("x", Timestamp::now())]).await.unwrap().remove(0);
        let waiting = result_or_lost(&queue, &job.id, Duration::ZERO);
        assert!(tokio::time::timeout(Duration::from_millis(100), waiting).await.is_err());
    }
}
