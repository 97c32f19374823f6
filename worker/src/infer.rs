//! The middle stages: group jobs into batches, run them, and find out who spoiled a batch.

mod waiter;

use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ebb_model::{InferError, InferErrorKind};
use ebb_queue::{Job, Timestamp};
use futures::FutureExt;
use futures::future::{MaybeDone, maybe_done};
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::batcher::{Batch, Entry, Size, View};
use crate::bisect::{Next, Run};
use crate::codec::{Asked, Spent};
use crate::device::{Answer, Begun, Load};
use crate::fit;
use crate::held::{End, Finished, Held, Item, Output};
use crate::lanes::Lanes;
use crate::served::Lane;
use crate::settle::Exit;
use crate::shared::{EXPIRED, Shared, TOO_LATE, send, sleep_until};
use crate::trace::BatchRun;
use waiter::Waiter;

/// A batch on its way to the device and back.
#[derive(Debug)]
pub(crate) struct Submitted {
    jobs: Vec<Sent>,
    size: Size,
    /// What became of these jobs before, if they failed.
    failed: Option<Failed>,
    answer: MaybeDone<oneshot::Receiver<Answer>>,
}

/// What became of jobs that run again.
#[derive(Debug, Clone, Copy)]
struct Failed {
    /// How many batches with these jobs have failed.
    times: u32,
    /// The number of the last of them on the device.
    batch: u64,
}

/// Jobs that are to run again, and the number of the batch in which they failed.
type Again = (Run<Item>, u64);

/// A job whose input is with the device.
#[derive(Debug)]
struct Sent {
    held: Held,
    asked: Asked,
    size: Size,
}

/// What a closed batch came to: jobs that are on the device, and jobs that came too late.
#[derive(Debug)]
pub(crate) struct Bound {
    submitted: Option<Submitted>,
    late: Vec<Finished>,
}

/// The ways on from the batcher.
pub(crate) struct Exits {
    /// To who waits for the batches of a lane, by lane.
    pub(crate) lanes: Vec<Sender<Bound>>,
    /// Of the jobs of a queue, by queue.
    pub(crate) queues: Vec<Exit>,
}

/// Binds batches as late as the device allows, and sends them to it.
pub(crate) async fn batch(shared: Arc<Shared>, mut decoded: Receiver<Vec<Item>>, exits: Exits) {
    let mut lanes = Lanes::new(shared.lanes.len(), shared.settings.limits);
    let load = shared.device.load();
    let mut is_open = true;
    loop {
        let was_wedged = shared.wedged.get();
        if shared.gives_back() {
            shared.give_back(lanes.drain(), &exits).await;
        }
        // Asked here and not above: with the last jobs given back nothing may happen any more.
        if !is_open && lanes.is_empty() {
            return;
        }
        for (place, lane) in shared.lanes.iter().enumerate() {
            if let Some(max_cost) = NonZeroUsize::new(lane.memory().limit()) {
                lanes.bound(place, max_cost);
            }
        }
        let now = Instant::now();
        let (seen, n_taken) = (load.get(), shared.n_taken.get());
        let views = shared.views(seen, &exits, now);
        if let Some((lane, batch)) = lanes.close(now, &views) {
            shared.submit(lane, batch, &exits.lanes[lane]).await;
            continue;
        }
        let deadline = lanes.deadline(&views);
        tokio::select! { biased;
            items = decoded.recv(), if is_open => match items {
                Some(items) => items.into_iter().for_each(|item| {
                    lanes.push(item.lane, entry(item), now);
                }),
                None => is_open = false,
            },
            _ = load.until(|load| *load != seen) => {}
            _ = shared.n_taken.until(|n| *n != n_taken) => {}
            _ = shared.wedged.until(|wedged| *wedged != was_wedged) => {}
            () = shared.halt.cancelled(), if !lanes.is_empty() => {}
            () = sleep_until(deadline) => {}
        }
    }
}

/// Takes what comes back from the device for one lane; a batch that failed is taken apart.
pub(crate) async fn infer(shared: Arc<Shared>, lane: usize, bound: Receiver<Bound>, exit: Exit) {
    let mut waiter = Waiter::new(shared, lane, bound, exit);
    while let Some(Bound { submitted, late }) = waiter.next().await {
        waiter.exit().finish(late).await;
        let mut runs = match submitted {
            Some(first) => waiter.conclude(first).await,
            None => Vec::new(),
        };
        while let Some((run, batch)) = runs.pop() {
            debug!(items = run.items.len(), failures = run.failures, "running again");
            runs.extend(waiter.run_again((run, batch)).await);
        }
    }
}

impl Submitted {
    /// Whether it is known by now that this batch is never begun.
    fn came_back(&mut self) -> bool {
        let _ = (&mut self.answer).now_or_never();
        matches!(Pin::new(&mut self.answer).output_mut(), Some(Err(_)))
    }
}

impl Shared {
    /// What the batchers need to know of the world, one by one.
    fn views(&self, load: Load, exits: &Exits, now: Instant) -> Vec<View> {
        let free_at = match load {
            Load { queued: 1.., .. } | Load { loading: Some(_), .. } => None,
            Load { running: None, .. } => Some(now),
            Load { running: Some(batch), .. } => {
                let running = fit::Device::Running { since: batch.since, cost: batch.size.cost() };
                self.lanes[batch.lane].fit().free_at(running, now)
            }
        };
        let max_cost = self.settings.limits.max_cost.get();
        let view = |(place, lane): (usize, &Lane)| {
            let fit = lane.fit();
            View {
                // Who waits for the batches of a lane may be waiting for its store.
                free_at: free_at.filter(|_| exits.lanes[place].capacity() > 0),
                more: self.queues[lane.queue].n_decoding.load(Ordering::Relaxed) > 0,
                overhead: fit.worth(max_cost),
                enough: fit.enough(),
            }
        };
        self.lanes.iter().enumerate().map(view).collect()
    }

    /// Gives jobs back that were not begun.
    async fn give_back(&self, items: Vec<Item>, exits: &Exits) {
        for item in items {
            exits.queues[self.lanes[item.lane].queue].give_back([item.held]).await;
        }
    }

    async fn submit(&self, lane: usize, batch: Batch<Item>, out: &Sender<Bound>) {
        let (items, late) = self.shed(lane, batch.items);
        let submitted = if items.is_empty() {
            None
        } else {
            let model = [self.lanes[lane].name.as_str()];
            // Of those that are left of it.
            let (metrics, size) = (&self.metrics, together(&items));
            metrics.batches.with_label_values(&[model[0], batch.closed.word()]).inc();
            metrics.batch_items.with_label_values(&model).observe(items.len() as f64);
            let filled = self.settings.limits.filled(size);
            metrics.batch_fill.with_label_values(&model).observe(filled);
            metrics.batch_padding.with_label_values(&model).observe(size.padding());
            let waits = metrics.batch_wait.with_label_values(&model);
            for item in &items {
                waits.observe(item.held.way.since.elapsed().as_secs_f64());
            }
            Some(self.send_to_device(lane, items, None))
        };
        send(out, Bound { submitted, late }).await;
    }

    /// Parts the jobs that may still meet their deadlines from those that cannot.
    fn shed(&self, lane: usize, items: Vec<Item>) -> (Vec<Item>, Vec<Finished>) {
        let (now, begins) = (self.clock.now(), self.begins(lane));
        let own = &self.lanes[lane];
        let (mut timely, mut late) = (Vec::with_capacity(items.len()), Vec::new());
        for item in items {
            // Its own cost alone, though it shares a batch: who might have made it is not shed.
            let takes =
                begins.and_then(|begins| Some(begins + own.fit().at_least(item.size.cost())?));
            match refusal(&item.held.delivery.job, now, takes) {
                None => timely.push(item),
                Some((word, reason)) => {
                    self.metrics.shed.with_label_values(&[own.name.as_str(), word]).inc();
                    late.push(item.held.finish(End::Reject(reason)));
                }
            }
        }
        (timely, late)
    }

    /// How long it takes at least until the next batch of this lane begins; `None` where the times
    /// of its batches are not known, or are of long ago.
    fn begins(&self, lane: usize) -> Option<Duration> {
        let Some(running) = self.device.load().get().running else {
            return self.lanes[lane].is_fresh().then_some(Duration::ZERO);
        };
        let is_fresh = running.lane == lane || self.lanes[lane].is_fresh();
        let takes = self.lanes[running.lane].fit().at_least(running.size.cost());
        let left = takes.unwrap_or_default().saturating_sub(running.since.elapsed());
        is_fresh.then_some(left)
    }

    fn send_to_device(&self, lane: usize, items: Vec<Item>, failed: Option<Failed>) -> Submitted {
        let begun = if failed.is_some() { Begun::Yes } else { Begun::No };
        let size = together(&items);
        let split = items.into_iter();
        let split =
            split.map(|Item { held, input, asked, size, .. }| (Sent { held, asked, size }, input));
        let (jobs, inputs) = split.unzip();
        let answer = self.lanes[lane].device.submit(lane, inputs, size, begun);
        Submitted { jobs, size, failed, answer: maybe_done(answer) }
    }

    /// Ends the jobs of a batch as its answer says, and returns what has to run again.
    async fn conclude(
        &self,
        lane: usize,
        submitted: Submitted,
        answer: Option<Answer>,
        exit: &Exit,
    ) -> Vec<Again> {
        let Submitted { mut jobs, size, failed: before, .. } = submitted;
        let Some(Answer { batch, inputs, results, took }) = answer else {
            self.leave_unrun(jobs, before, exit).await;
            return Vec::new();
        };
        let own = &self.lanes[lane];
        self.metrics.infer.with_label_values(&[&own.name]).observe(took.as_secs_f64());
        let (n_items, cost, failed) = (jobs.len(), size.cost(), results.is_err());
        let run = BatchRun { n_items, cost, took, failed };
        run.note(jobs.iter_mut().map(|job| &mut job.held.way));
        match results {
            Ok(results) => {
                own.learn(jobs.len(), cost, took);
                let limit = own.memory().sufficed(cost);
                self.tell_limit(own, limit, "larger batches are tried again");
                self.queues[own.queue].fit().learn(jobs.len(), cost, took);
                let all = jobs.iter().map(|job| job.size.cost()).sum();
                let ended = jobs.into_iter().zip(results).map(|(job, result)| {
                    let Sent { held, asked, size } = job;
                    let spent = Spent::of(size.cost(), all, took);
                    held.finish(match result {
                        Ok(output) => End::Done(Output { lane, output, asked, spent }),
                        Err(fault) => {
                            self.metrics.waste(&own.name, spent.seconds);
                            End::Reject(fault.to_string())
                        }
                    })
                });
                exit.finish(ended.collect()).await;
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

    /// Ends jobs that the device runs no more: it drains, is wedged or is lost.
    async fn leave_unrun(&self, jobs: Vec<Sent>, failed: Option<Failed>, exit: &Exit) {
        let jobs = jobs.into_iter().map(|job| job.held);
        let spoiler = self.device.lost_to();
        if failed.is_none_or(|failed| spoiler != Some(failed.batch)) {
            return exit.give_back(jobs).await;
        }
        // One of these, nobody can tell which. Uncharged, it would cost one worker after the other its
        // device; charged, each runs alone the next time.
        let lost = || End::Retry("the device was lost after their batch failed".to_owned());
        exit.finish(jobs.map(|held| held.finish(lost())).collect()).await;
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
        if error.kind() == InferErrorKind::OutOfMemory {
            let limit = own.memory().lacked(size.cost());
            self.tell_limit(own, limit, "batches are made smaller, for lack of memory");
        }
        match run.failed(error.kind()) {
            Next::Rerun(runs) => runs,
            Next::Reject(item) => {
                exit.finish(vec![item.held.finish(End::Reject(error.to_string()))]).await;
                Vec::new()
            }
            Next::Retry(items) => {
                let items = items.into_iter();
                let items = items.map(|item| item.held.finish(End::Retry(error.to_string())));
                exit.finish(items.collect()).await;
                Vec::new()
            }
        }
    }
}

fn together(items: &[Item]) -> Size {
    items.iter().map(|item| item.size).reduce(Size::and).unwrap_or(Size::ONE)
}

/// Why a job is not run whose answer takes so long at least, if so: the word, and the words.
fn refusal(job: &Job, now: Timestamp, takes: Option<Duration>) -> Option<(&'static str, String)> {
    if job.expired(now) {
        return Some((EXPIRED, EXPIRED.to_owned()));
    }
    let (deadline, takes) = job.headers.deadline.zip(takes)?;
    let left = Duration::try_from(deadline.duration_since(now)).unwrap_or_default();
    let reason = || {
        let (left, takes) = (left.as_secs_f64(), takes.as_secs_f64());
        format!(
            "too late: the deadline is in {left:.3} s, an answer is not to be had within {takes:.3} s"
        )
    };
    (left < takes).then(|| (TOO_LATE, reason()))
}

fn entry(item: Item) -> Entry<Item> {
    let (size, priority, alone) = (item.size, item.held.priority(), item.held.is_suspect());
    Entry { item, size, priority, alone }
}
