//! The middle stages: group jobs into batches, run them, and find out who spoiled a batch.
//!
//! A job that its model has not done with comes back for another turn. Those that are under way are
//! in the next batch of their lane, together with who came meanwhile: such a lane has one batch out at
//! a time, else there would be two halves of one for ever.

mod conclude;
mod waiter;

use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ebb_queue::{Failure, FailureKind, Job, Timestamp};
use futures::FutureExt;
use futures::future::{MaybeDone, maybe_done};
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::debug;

use crate::batcher::{Batch, Entry, Size, View};
use crate::bisect::Run;
use crate::codec::Asked;
use crate::device::{Answer, Begun, Load};
use crate::fit;
use crate::held::{End, Finished, Held, Item};
use crate::lanes::Lanes;
use crate::served::Lane;
use crate::settle::Exit;
use crate::shared::{EXPIRED, Shared, TOO_LATE, send, sleep_until};
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
    outing: Outing,
}

/// A batch that is out. When it is dropped, all that is left of the batch is where it belongs.
struct Outing {
    shared: Arc<Shared>,
    lane: usize,
    begun: Begun,
}

/// The ways on from the batcher.
pub(crate) struct Exits {
    /// To who waits for the batches of a lane, by lane.
    pub(crate) lanes: Vec<Sender<Bound>>,
    /// Of the jobs of a queue, by queue.
    pub(crate) queues: Vec<Exit>,
}

/// The ways on for jobs that have run.
pub(crate) struct Out {
    pub(crate) exit: Exit,
    /// Back to the batcher, for another turn.
    pub(crate) again: Sender<Vec<Item>>,
}

/// Binds batches as late as the device allows, and sends them to it.
pub(crate) async fn batch(
    shared: Arc<Shared>,
    mut decoded: Receiver<Vec<Item>>,
    mut turned: Receiver<Vec<Item>>,
    exits: Exits,
) {
    let mut lanes = Lanes::new(shared.lanes.len(), shared.settings.limits);
    let load = shared.device.load();
    let (mut is_open, mut n_heeded) = (true, 0);
    loop {
        let (was_wedged, was_halted) = (shared.wedged.get(), shared.halt.is_cancelled());
        let (turns_end, n_taken) = (shared.turns_end.get(), shared.n_taken.get());
        if shared.gives_all_back(Instant::now()) {
            shared.give_back(lanes.drain(), &exits).await;
        } else if shared.gives_back() {
            shared.give_back(lanes.drain_unbegun(), &exits).await;
        }
        let n_cancelled = shared.n_cancelled.get();
        if std::mem::replace(&mut n_heeded, n_cancelled) != n_cancelled {
            shared.end_cancelled(&mut lanes, &exits).await;
        }
        // Asked here and not above: with the last jobs given back nothing may happen any more. What
        // is out may come back for another turn, and has when it is out no more.
        if !is_open && lanes.is_empty() && !shared.has_batches_out() && turned.is_empty() {
            return;
        }
        shared.bound(&mut lanes);
        let (now, seen) = (Instant::now(), load.get());
        let views = shared.views(seen, &lanes, &exits, now);
        if let Some((lane, batch)) = lanes.close(now, &views) {
            shared.submit(lane, batch, &exits.lanes[lane]).await;
            continue;
        }
        let deadline = lanes.deadline(&views);
        let waits = !lanes.is_empty();
        tokio::select! { biased;
            Some(items) = turned.recv() => push(&mut lanes, items),
            items = decoded.recv(), if is_open => match items {
                Some(items) => push(&mut lanes, items),
                None => is_open = false,
            },
            _ = load.until(|load| *load != seen) => {}
            _ = shared.n_taken.until(|n| *n != n_taken) => {}
            _ = shared.n_cancelled.until(|n| *n != n_cancelled) => {}
            _ = shared.wedged.until(|wedged| *wedged != was_wedged) => {}
            _ = shared.turns_end.until(|end| *end != turns_end), if waits => {}
            () = shared.halt.cancelled(), if waits && !was_halted => {}
            () = sleep_until(turns_end), if waits => {}
            () = sleep_until(deadline) => {}
        }
    }
}

/// Takes what comes back from the device for one lane; a batch that failed is taken apart.
pub(crate) async fn infer(shared: Arc<Shared>, lane: usize, bound: Receiver<Bound>, out: Out) {
    let mut waiter = Waiter::new(shared, lane, bound, out);
    while let Some(Bound { submitted, late, outing }) = waiter.next().await {
        waiter.exit().finish(late).await;
        let mut runs = match submitted {
            Some(first) => waiter.conclude(first).await,
            None => Vec::new(),
        };
        while let Some((run, batch)) = runs.pop() {
            debug!(items = run.items.len(), failures = run.failures, "running again");
            runs.extend(waiter.run_again((run, batch)).await);
        }
        waiter.turn().await;
        drop(outing);
    }
}

impl Outing {
    fn begin(shared: &Arc<Shared>, lane: usize, begun: Begun) -> Self {
        let own = &shared.lanes[lane];
        own.n_out.fetch_add(1, Ordering::SeqCst);
        own.n_between.fetch_add(usize::from(begun == Begun::Between), Ordering::SeqCst);
        Self { shared: Arc::clone(shared), lane, begun }
    }
}

impl Drop for Outing {
    fn drop(&mut self) {
        let own = &self.shared.lanes[self.lane];
        own.n_between.fetch_sub(usize::from(self.begun == Begun::Between), Ordering::SeqCst);
        own.n_out.fetch_sub(1, Ordering::SeqCst);
        self.shared.n_taken.update(|n| *n += 1);
    }
}

impl std::fmt::Debug for Outing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outing").field("lane", &self.lane).finish_non_exhaustive()
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
    /// Whether a batch may bring jobs back for another turn.
    fn has_batches_out(&self) -> bool {
        self.lanes.iter().any(|lane| lane.n_out.load(Ordering::SeqCst) > 0)
    }

    /// Tells the batchers what the memory of the device allows.
    fn bound(&self, lanes: &mut Lanes<Item>) {
        for (place, lane) in self.lanes.iter().enumerate() {
            if let Some(max_cost) = NonZeroUsize::new(lane.memory().limit()) {
                lanes.bound(place, max_cost);
            }
        }
    }

    /// What the batchers need to know of the world, one by one.
    fn views(&self, load: Load, lanes: &Lanes<Item>, exits: &Exits, now: Instant) -> Vec<View> {
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
            let n = |count: &AtomicUsize| count.load(Ordering::SeqCst);
            let are_under_way = lanes.has_begun(place) || n(&lane.n_between) > 0;
            let (fit, turns) = (lane.fit(), lane.codec.takes_turns() || are_under_way);
            // Who is out and comes back belongs into the next batch as well.
            let is_together = !turns || n(&lane.n_out) == 0;
            // Who waits for the batches of a lane may be waiting for its store.
            let has_room = exits.lanes[place].capacity() > 0;
            View {
                free_at: free_at.filter(|_| has_room && is_together),
                more: self.queues[lane.queue].n_decoding.load(Ordering::Relaxed) > 0,
                overhead: if turns { usize::MAX } else { fit.worth(max_cost) },
                enough: if turns { usize::MAX } else { fit.enough() },
            }
        };
        self.lanes.iter().enumerate().map(view).collect()
    }

    /// Gives jobs back that were not begun, or that are between two turns.
    async fn give_back(&self, items: Vec<Item>, exits: &Exits) {
        for item in items {
            self.waste(item.lane, &item.held);
            exits.queues[self.lanes[item.lane].queue].give_back([item.held]).await;
        }
    }

    /// Ends jobs that wait for their turn and that somebody cancelled.
    async fn end_cancelled(&self, lanes: &mut Lanes<Item>, exits: &Exits) {
        for item in lanes.drain_if(|item| item.held.loan.is_cancelled()) {
            let finished = self.end(item.lane, item.held, End::Cancelled);
            exits.queues[self.lanes[item.lane].queue].finish(vec![finished]).await;
        }
    }

    async fn submit(self: &Arc<Self>, lane: usize, batch: Batch<Item>, out: &Sender<Bound>) {
        let (items, late) = self.shed(lane, batch.items);
        let outing = Outing::begin(self, lane, begun(&items));
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
            for item in items.iter().filter(|item| !item.held.turns.has_begun()) {
                waits.observe(item.held.way.since.elapsed().as_secs_f64());
            }
            Some(self.send_to_device(lane, items, None))
        };
        send(out, Bound { submitted, late, outing }).await;
    }

    /// Parts the jobs that may still meet their deadlines, and are wanted, from those that cannot.
    fn shed(&self, lane: usize, items: Vec<Item>) -> (Vec<Item>, Vec<Finished>) {
        let (now, begins) = (self.clock.now(), self.begins(lane));
        let own = &self.lanes[lane];
        let (mut timely, mut late) = (Vec::with_capacity(items.len()), Vec::new());
        let may_be_cancelled = self.n_cancelled.get() > 0;
        for item in items {
            if may_be_cancelled && item.held.loan.is_cancelled() {
                late.push(self.end(lane, item.held, End::Cancelled));
                continue;
            }
            // A deadline is one for beginning.
            if item.held.turns.has_begun() {
                timely.push(item);
                continue;
            }
            // Its own cost alone, though it shares a batch: who might have made it is not shed.
            let takes =
                begins.and_then(|begins| Some(begins + own.fit().at_least(item.size.cost())?));
            match refusal(&item.held.delivery.job, now, takes) {
                None => timely.push(item),
                Some((word, failure)) => {
                    self.metrics.shed.with_label_values(&[own.name.as_str(), word]).inc();
                    late.push(item.held.finish(End::Reject(failure)));
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
        let begun = match failed {
            Some(_) => Begun::Yes,
            None => begun(&items),
        };
        let size = together(&items);
        let split = items.into_iter();
        let split =
            split.map(|Item { held, input, asked, size, .. }| (Sent { held, asked, size }, input));
        let (jobs, inputs) = split.unzip();
        let answer = self.lanes[lane].device.submit(lane, inputs, size, begun);
        Submitted { jobs, size, failed, answer: maybe_done(answer) }
    }
}

/// Of jobs that have not failed.
fn begun(items: &[Item]) -> Begun {
    let has_begun = items.iter().any(|item| item.held.turns.has_begun());
    if has_begun { Begun::Between } else { Begun::No }
}

fn together(items: &[Item]) -> Size {
    items.iter().map(|item| item.size).reduce(Size::and).unwrap_or(Size::ONE)
}

/// Why a job is not run whose answer takes so long at least, if so: the word, and the words.
fn refusal(job: &Job, now: Timestamp, takes: Option<Duration>) -> Option<(&'static str, Failure)> {
    if job.expired(now) {
        return Some((EXPIRED, Failure::expired()));
    }
    let (deadline, takes) = job.headers.deadline.zip(takes)?;
    let left = Duration::try_from(deadline.duration_since(now)).unwrap_or_default();
    let reason = || {
        let (left, takes) = (left.as_secs_f64(), takes.as_secs_f64());
        format!(
            "too late: the deadline is in {left:.3} s, an answer is not to be had within {takes:.3} s"
        )
    };
    (left < takes).then(|| (TOO_LATE, Failure::new(FailureKind::Expired, reason())))
}

fn push(lanes: &mut Lanes<Item>, items: Vec<Item>) {
    let now = Instant::now();
    for mut item in items {
        let (size, priority, alone) = (item.size, item.held.priority(), item.held.is_suspect());
        let (turns, lane) = (&mut item.held.turns, item.lane);
        let first = turns.first(now);
        let begun = turns.has_begun().then_some(first);
        lanes.push(lane, Entry { item, size, priority, alone, begun }, now);
    }
}
