//! The run itself: a producer, two killers and a watcher side by side, until every job has ended.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use ebb_queue::{Job, JobId, Queue, Timestamp};
use futures::{StreamExt, TryStreamExt, stream};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::fleet::Fleet;
use super::ledger::Ledger;
use super::patience::patiently;
use super::plan::{Plan, PlannedJob};
use crate::broker::Bed;
use crate::report::progress;

/// A chaos run under way.
pub(super) struct Run<'a> {
    plan: &'a Plan,
    /// The watcher's own handle.
    queue: Queue,
    /// The producer's own handle.
    producer: Queue,
    seed: u64,
    enqueued: watch::Sender<usize>,
    ended: watch::Sender<usize>,
    kills: watch::Sender<usize>,
    restarts: watch::Sender<usize>,
}

/// What came of a run.
#[derive(Debug)]
pub(super) struct Ended {
    /// Jobs that the broker accepted.
    pub(super) enqueued: usize,
    /// Workers that were killed.
    pub(super) kills: usize,
    /// Brokers that were killed and came back.
    pub(super) restarts: usize,
    /// What the watcher saw.
    pub(super) ledger: Ledger,
}

/// Between two looks of the watcher.
const LOOK: Duration = Duration::from_millis(50);
/// Between two words of the watcher.
const TELL: Duration = Duration::from_secs(2);
/// Jobs that the watcher asks for in one look: enough to keep up, few enough to cost little.
const WINDOW: usize = 300;
/// Jobs published in one commit.
const CHUNK: usize = 50;
/// How long nothing waits or runs before a job without an end is called lost: a broker may see what
/// others hold a moment later than they.
const QUIET: Duration = Duration::from_secs(20);

/// Jobs without a completed result, as far as was seen.
#[derive(Debug, Default)]
struct Open<'a> {
    /// Without any.
    unseen: VecDeque<&'a PlannedJob>,
    /// With a failed one: their letters may not be there yet, and one that runs again may be completed.
    failed: VecDeque<&'a PlannedJob>,
}

impl Open<'_> {
    fn len(&self) -> usize {
        self.unseen.len() + self.failed.len()
    }
}

impl<'a> Run<'a> {
    pub(super) fn new(plan: &'a Plan, queue: Queue, producer: Queue, seed: u64) -> Self {
        let count = || watch::Sender::new(0);
        let (enqueued, ended, kills, restarts) = (count(), count(), count(), count());
        Self { plan, queue, producer, seed, enqueued, ended, kills, restarts }
    }

    /// Runs until every job has ended and all that was planned is done, or the limit has passed.
    pub(super) async fn drive(
        &self,
        fleet: &mut Fleet,
        bed: &mut Bed,
        limit: Duration,
    ) -> anyhow::Result<Ended> {
        let now = |count: &watch::Sender<usize>| *count.borrow();
        let mut ledger = Ledger::default();
        let all = async {
            tokio::try_join!(
                self.produce(),
                self.kill(fleet),
                self.restart(bed),
                self.watch(&mut ledger)
            )
            .map(drop)
        };
        match timeout(limit, all).await {
            Ok(result) => result?,
            Err(_) => {
                let n_open = now(&self.enqueued).saturating_sub(now(&self.ended));
                let limit = limit.as_secs();
                progress(format_args!("gave up after {limit} s, {n_open} jobs unfinished"));
            }
        }
        Ok(Ended {
            enqueued: now(&self.enqueued),
            kills: now(&self.kills),
            restarts: now(&self.restarts),
            ledger,
        })
    }

    /// Publishes job after job, never far ahead of the workers or of what is to happen to them.
    async fn produce(&self) -> anyhow::Result<()> {
        let room = (self.plan.jobs.len() / 20).clamp(2 * CHUNK, 1_000);
        let mut ended = self.ended.subscribe();
        let (mut kills, mut restarts) = (self.kills.subscribe(), self.restarts.subscribe());
        let mut n_sent = 0;
        for chunk in self.plan.jobs.chunks(CHUNK) {
            ended.wait_for(|ended| n_sent < ended + room).await?;
            let due = self.plan.kills.iter().filter(|kill| kill.after + room <= n_sent).count();
            kills.wait_for(|kills| *kills >= due).await?;
            let due = self.plan.restarts.iter().filter(|one| one.after + room <= n_sent).count();
            restarts.wait_for(|restarts| *restarts >= due).await?;
            // A chunk that is sent again after an error is one chunk: the ids are the same.
            patiently(|| async { self.producer.publish(requests(chunk)?).await }).await?;
            n_sent += chunk.len();
            self.enqueued.send_replace(n_sent);
        }
        Ok(())
    }

    /// Makes the kills, each when so many jobs have ended as the plan says.
    async fn kill(&self, fleet: &mut Fleet) -> anyhow::Result<()> {
        let mut rng = StdRng::seed_from_u64(self.seed.wrapping_add(1));
        for (n, kill) in self.plan.kills.iter().enumerate() {
            self.reach(kill.after, fleet).await?;
            while !fleet.kill(*kill, &self.queue, &mut rng).await? {}
            self.kills.send_replace(n + 1);
        }
        self.reach(self.plan.jobs.len(), fleet).await
    }

    /// Waits until so many jobs have ended; workers that end by themselves are started again.
    async fn reach(&self, n_ended: usize, fleet: &mut Fleet) -> anyhow::Result<()> {
        let mut ended = self.ended.subscribe();
        while timeout(LOOK, ended.wait_for(|ended| *ended >= n_ended)).await.is_err() {
            fleet.mend()?;
        }
        Ok(())
    }

    /// Kills the broker and starts it again, each time when so many jobs have ended.
    async fn restart(&self, bed: &mut Bed) -> anyhow::Result<()> {
        let mut ended = self.ended.subscribe();
        for (n, restart) in self.plan.restarts.iter().enumerate() {
            ended.wait_for(|ended| *ended >= restart.after).await?;
            sleep(restart.wait).await;
            let began = Instant::now();
            let what = bed.restart(restart.victim, restart.down).await?;
            let away = began.elapsed().as_secs_f64();
            progress(format_args!("{what} was killed and is back after {away:.1} s"));
            self.restarts.send_replace(n + 1);
        }
        Ok(())
    }

    /// Takes note of each result soon after it was stored, and counts the jobs that have ended.
    async fn watch(&self, ledger: &mut Ledger) -> anyhow::Result<()> {
        let mut open = Open::default();
        let mut n_listed = 0;
        let (mut told, mut quiet) = (Instant::now(), None);
        loop {
            let enqueued = *self.enqueued.borrow();
            let depth = patiently(|| self.queue.depth()).await?;
            let waiting = usize::try_from(depth.ready + depth.in_flight + depth.delayed)?;
            let ended = enqueued.saturating_sub(waiting);
            open.unseen.extend(&self.plan.jobs[n_listed..enqueued]);
            n_listed = enqueued;
            self.look(ledger, &mut open).await?;
            self.ended.send_replace(ended);
            if told.elapsed() > TELL {
                told = Instant::now();
                let (kills, restarts) = (*self.kills.borrow(), *self.restarts.borrow());
                let words = format!("{} dead, {kills} kills, {restarts} restarts", depth.dead);
                progress(format_args!("{ended} of {} jobs ended, {words}", self.plan.jobs.len()));
            }
            if ended < self.plan.jobs.len() || !self.all_is_done() {
                quiet = None;
            } else if open.len() <= usize::try_from(depth.dead)?
                && self.all_are_dead(&open, depth.dead).await?
            {
                return Ok(());
            } else if quiet.get_or_insert(Instant::now()).elapsed() > QUIET {
                let n_open = open.len();
                let words = "jobs have no completed result, dead letters of any jobs are";
                progress(format_args!("unfinished: {n_open} {words} {}", depth.dead));
                return Ok(());
            } else {
                // Whoever held it may have gone on.
                open.unseen.append(&mut open.failed);
            }
            sleep(LOOK).await;
        }
    }

    /// Whether each job without a completed result has its letter: another may have one too many.
    async fn all_are_dead(&self, open: &Open<'_>, n_dead: u64) -> anyhow::Result<bool> {
        let n_dead = usize::try_from(n_dead)?;
        let letters = patiently(|| self.queue.list(n_dead)).await?;
        let dead: HashSet<&str> = letters.iter().map(|letter| letter.job.id.as_str()).collect();
        Ok(open.unseen.iter().chain(&open.failed).all(|job| dead.contains(job.id.as_str())))
    }

    /// Whether all kills and restarts are made.
    fn all_is_done(&self) -> bool {
        *self.kills.borrow() == self.plan.kills.len()
            && *self.restarts.borrow() == self.plan.restarts.len()
    }

    /// Asks for the results of some jobs in turn, until each has one.
    async fn look(&self, ledger: &mut Ledger, open: &mut Open<'a>) -> anyhow::Result<()> {
        let asked: Vec<_> = open.unseen.drain(..open.unseen.len().min(WINDOW)).collect();
        let answers = stream::iter(asked).map(|job| async move {
            let id: JobId = job.id.parse()?;
            anyhow::Ok((job, patiently(|| self.queue.get(&id)).await?))
        });
        let answers: Vec<_> = answers.buffered(16).try_collect().await?;
        for (job, result) in answers {
            match result {
                Some(result) if result.outcome.is_completed() => ledger.see(&result),
                Some(_) => open.failed.push_back(job),
                None => open.unseen.push_back(job),
            }
        }
        Ok(())
    }
}

fn requests(jobs: &[PlannedJob]) -> ebb_queue::Result<Vec<Job>> {
    let request = |planned: &PlannedJob| {
        let mut job = Job::new(planned.body.clone(), Timestamp::now());
        job.id = planned.id.parse()?;
        Ok(job)
    };
    jobs.iter().map(request).collect()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::pin::pin;
    use std::sync::Arc;

    use ebb_queue::memory::MemoryQueue;
    use ebb_queue::{Behavior, JobResult, OpenOptions, Outcome};

    use super::super::plan::Sizes;
    use super::*;

    fn result(job: &PlannedJob, attempt: u32, outcome: Outcome) -> JobResult {
        let id = job.id.parse().unwrap();
        JobResult { id, attempt, outcome, finished_at: Timestamp::now(), queue: None }
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_that_failed_has_not_ended_before_its_letter_is_there_or_it_is_completed() {
        let sizes = Sizes { n_jobs: 2, n_kills: 0, n_restarts: 0, poison: 0.0, max_job_ms: 0 };
        let plan = Plan::draw(sizes, 5);
        let queue: Queue = Arc::new(MemoryQueue::new(&Behavior::default(), OpenOptions::default()));
        let run = Run::new(&plan, queue.clone(), queue.clone(), 5);
        run.enqueued.send_replace(plan.jobs.len());
        // The broker says that nothing waits and nothing is held, and knows of both failures.
        for job in &plan.jobs {
            queue.put(&result(job, 1, Outcome::Failed("bad".into()))).await.unwrap();
        }
        let mut ledger = Ledger::default();
        let mut watching = pin!(run.watch(&mut ledger));
        assert!(timeout(QUIET / 4, &mut watching).await.is_err(), "it ended with two failures");
        let outcome = Outcome::Completed { content_type: "text/plain".into(), body: "x".into() };
        queue.put(&result(&plan.jobs[0], 2, outcome)).await.unwrap();
        assert!(timeout(QUIET / 4, &mut watching).await.is_err(), "it ended with one failure");
        // One letter too many is that of another job.
        queue.publish(requests(&plan.jobs[..1]).unwrap()).await.unwrap();
        let held = queue.receive(NonZeroUsize::MIN, Duration::ZERO).await.unwrap().pop().unwrap();
        queue.settle(&[held.reject("bad")]).await.unwrap();
        assert!(timeout(QUIET / 4, &mut watching).await.is_err(), "it ended with another's letter");
        queue.publish(requests(&plan.jobs[1..]).unwrap()).await.unwrap();
        let held = queue.receive(NonZeroUsize::MIN, Duration::ZERO).await.unwrap().pop().unwrap();
        assert!(timeout(QUIET / 4, &mut watching).await.is_err(), "it ended while one is held");
        queue.settle(&[held.reject("bad")]).await.unwrap();
        assert!(timeout(QUIET / 4, &mut watching).await.is_ok(), "its letter is there");
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_of_which_nothing_is_known_is_waited_for_no_longer_than_that() {
        let sizes = Sizes { n_jobs: 1, n_kills: 0, n_restarts: 0, poison: 0.0, max_job_ms: 0 };
        let plan = Plan::draw(sizes, 5);
        let queue: Queue = Arc::new(MemoryQueue::new(&Behavior::default(), OpenOptions::default()));
        let run = Run::new(&plan, queue.clone(), queue, 5);
        run.enqueued.send_replace(1);
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        run.watch(&mut ledger).await.unwrap();
        assert!((QUIET..QUIET + 4 * LOOK).contains(&start.elapsed()), "{:?}", start.elapsed());
    }
}
