//! What becomes of the jobs of a batch that is back: an answer, another turn, another batch.

use std::panic::{AssertUnwindSafe, catch_unwind};

use ebb_model::{InferError, InferErrorKind, ItemError};
use ebb_queue::{Failure, FailureKind};
use tokio::time::Instant;
use tracing::{info, warn};

use super::{Again, Failed, Sent, Submitted};
use crate::batcher::Size;
use crate::bisect::{self, Run};
use crate::codec::{BadJob, Next, Spent, Step};
use crate::device::{Answer, Cargo};
use crate::held::{End, Finished, Held, Item, Output};
use crate::served::Lane;
use crate::settle::Exit;
use crate::shared::Shared;
use crate::trace::BatchRun;

impl Shared {
    /// Ends the jobs of a batch as its answer says, and returns what has to run again.
    pub(super) async fn conclude(
        &self,
        lane: usize,
        submitted: Submitted,
        answer: Option<Answer>,
        out: (&Exit, &mut Vec<Item>),
    ) -> Vec<Again> {
        let (exit, turned) = out;
        let Submitted { mut jobs, size, failed: before, .. } = submitted;
        let Some(Answer { batch, inputs, results, took, is_first }) = answer else {
            self.leave_unrun(lane, jobs, before, exit).await;
            return Vec::new();
        };
        let own = &self.lanes[lane];
        self.metrics.infer.with_label_values(&[&own.name]).observe(took.as_secs_f64());
        let (n_items, cost, failed) = (jobs.len(), size.cost(), results.is_err());
        let run = BatchRun { n_items, cost, took, failed };
        run.note(jobs.iter_mut().map(|job| &mut job.held.way));
        match results {
            Ok(results) => {
                if !is_first {
                    own.learn(jobs.len(), cost, took);
                }
                let limit = own.memory().sufficed(cost);
                self.tell_limit(own, limit, "larger batches are tried again");
                let n_turned = turned.len();
                let now = Instant::now();
                let began = now.checked_sub(took).unwrap_or(now);
                let is_new = jobs.iter().all(|job| !job.held.turns.has_begun());
                let all = jobs.iter().map(|job| job.size.cost()).sum();
                let mut ended = Vec::with_capacity(jobs.len());
                for ((mut job, input), result) in jobs.into_iter().zip(inputs).zip(results) {
                    let spent = job.held.turns.ran(job.size.cost(), all, took);
                    match self.advance(lane, job, (input, result), spent, exit).await {
                        Ok(mut item) => {
                            item.held.turns.go_on(&self.under_way, began);
                            turned.push(item);
                        }
                        Err(finished) => ended.push(finished),
                    }
                }
                if is_new && turned.len() == n_turned && !is_first {
                    // What a turn takes is not what a job takes.
                    self.queues[own.queue].fit().learn(n_items, cost, took);
                }
                exit.finish(ended).await;
                Vec::new()
            }
            Err(error) => {
                self.metrics.waste(&own.name, took.as_secs_f64());
                let items = jobs.into_iter().zip(inputs);
                let items = items.map(|(job, input)| {
                    let Sent { held, asked, size } = job;
                    Item { held, lane, input, asked, size }
                });
                let failures = before.map_or(0, |failed| failed.times);
                let run = Run { items: items.collect(), failures };
                let runs = self.blame(lane, run, size, &error, exit).await;
                runs.into_iter().map(|run| (run, batch)).collect()
            }
        }
    }

    /// The next turn of a job that has run, or its end.
    async fn advance(
        &self,
        lane: usize,
        Sent { mut held, mut asked, .. }: Sent,
        (input, result): (Cargo, Result<Cargo, ItemError>),
        spent: Spent,
        exit: &Exit,
    ) -> Result<Item, Finished> {
        let own = &self.lanes[lane];
        let job = &held.delivery.job;
        let step = result.map_err(|error| BadJob::from(error).failure()).and_then(|output| {
            let advance = || own.codec.advance(input, output, &mut asked, job);
            let step = catch_unwind(AssertUnwindSafe(advance)).map_err(|_| {
                Failure::new(FailureKind::Model, "a turn made the codec panic; a bug of ours")
            })?;
            step.map_err(BadJob::failure)
        });
        let step = match step {
            Ok(Step { next, piece }) => {
                held.turns.set_waits(matches!(next, Next::Wait(_)));
                if let Some(piece) = piece
                    && held.say(piece, exit).await
                {
                    self.metrics.chunks.with_label_values(&["given_up"]).inc();
                }
                Ok(next)
            }
            Err(failure) => Err(End::Reject(failure)),
        };
        let end = match step {
            Ok(Next::Answer(output)) => {
                return Err(held.finish(End::Done(Output { lane, output, asked, spent })));
            }
            Ok(_) if held.loan.is_cancelled() => End::Cancelled,
            Ok(_) if held.turns.is_overtaken() => End::Overtaken,
            Ok(_) if held.loan.is_lost() => End::Retry("its lease was lost".to_owned()),
            Ok(Next::Turn((input, size)) | Next::Wait((input, size))) => {
                let size = size.laid(own.device.layout());
                return Ok(Item { held, lane, input, asked, size });
            }
            Err(end) => end,
        };
        Err(self.end(lane, held, end))
    }

    /// Ends a job without an answer: what it took of the device was for nothing.
    pub(super) fn end(&self, lane: usize, held: Held, end: End<Output>) -> Finished {
        self.waste(lane, &held);
        held.finish(end)
    }

    /// Gives jobs back that the device did not take, or not for another turn.
    pub(super) async fn give_back_unrun(&self, lane: usize, jobs: Vec<Sent>, exit: &Exit) {
        jobs.iter().for_each(|job| self.waste(lane, &job.held));
        exit.give_back(jobs.into_iter().map(|job| job.held)).await;
    }

    /// Counts what the turns of a job took that has no answer here.
    pub(super) fn waste(&self, lane: usize, held: &Held) {
        if held.turns.has_begun() {
            self.metrics.waste(&self.lanes[lane].name, held.turns.seconds());
        }
    }

    /// Ends jobs that the device runs no more: it drains, is wedged or is lost.
    async fn leave_unrun(&self, lane: usize, jobs: Vec<Sent>, failed: Option<Failed>, exit: &Exit) {
        let spoiler = self.device.lost_to();
        if failed.is_none_or(|failed| spoiler != Some(failed.batch)) {
            return self.give_back_unrun(lane, jobs, exit).await;
        }
        // One of these, nobody can tell which. Uncharged, it would cost one worker after the other its
        // device; charged, each runs alone the next time.
        let lost = || End::Retry("the device was lost after their batch failed".to_owned());
        let jobs = jobs.into_iter().map(|job| self.end(lane, job.held, lost()));
        exit.finish(jobs.collect()).await;
    }

    /// Says what a batch may cost from now on, if that changed.
    fn tell_limit(&self, own: &Lane, changed: Option<usize>, why: &str) {
        let Some(max_cost) = changed else { return };
        info!(model = %own.name, max_cost, "{why}");
        // Two queues may have one model, and each its own limit: the smaller one tells of trouble.
        let limits = self.lanes.iter().filter(|lane| lane.name == own.name);
        let least = limits.map(|lane| lane.memory().limit()).min().unwrap_or(max_cost);
        self.metrics.max_cost.with_label_values(&[&own.name]).set(least as i64);
    }

    /// A batch failed as a whole: halves it, or ends its jobs.
    async fn blame(
        &self,
        lane: usize,
        run: Run<Item>,
        size: Size,
        error: &InferError,
        exit: &Exit,
    ) -> Vec<Run<Item>> {
        let own = &self.lanes[lane];
        warn!(model = %own.name, batch.items = run.items.len(), %error, "a batch failed");
        self.metrics.batches_failed.with_label_values(&[&own.name]).inc();
        // What one job costs alone bounds nothing: it runs alone in any case, and others are not as it.
        if error.kind() == InferErrorKind::OutOfMemory && run.items.len() > 1 {
            let limit = own.memory().lacked(size.cost());
            self.tell_limit(own, limit, "batches are made smaller, for lack of memory");
        }
        match run.failed(error.kind()) {
            bisect::Next::Rerun(runs) => runs,
            bisect::Next::Reject(item) => {
                let end = End::Reject(Failure::new(FailureKind::Model, error.to_string()));
                exit.finish(vec![self.end(lane, item.held, end)]).await;
                Vec::new()
            }
            bisect::Next::Retry(items) => {
                let end = |item: Item| self.end(lane, item.held, End::Retry(error.to_string()));
                exit.finish(items.into_iter().map(end).collect()).await;
                Vec::new()
            }
        }
    }
}
