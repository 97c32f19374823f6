//! The middle stages: group jobs into batches, run them, and find out who spoiled a batch.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ebb_model::{InferError, InferErrorKind};
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::batcher::{Batch, Batcher, Entry, Size, View};
use crate::bisect::{Next, Run};
use crate::codec::Codec;
use crate::device::{Answer, Begun, Load, Ran};
use crate::fit;
use crate::held::{End, Finished, Held, Item};
use crate::shared::{EXPIRED, Shared, send, send_all};
use crate::trace::BatchRun;

/// A batch on its way to the device and back.
#[derive(Debug)]
pub(crate) struct Submitted<I, O> {
    jobs: Vec<(Held, Size)>,
    size: Size,
    /// How many batches with these jobs have failed.
    failures: u32,
    answer: oneshot::Receiver<Answer<I, O>>,
}

/// Binds batches as late as the device allows, and sends them to it.
pub(crate) async fn batch<C: Codec>(
    shared: Arc<Shared<C>>,
    mut decoded: Receiver<Vec<Item<C::Input>>>,
    out: Sender<Submitted<C::Input, C::Output>>,
    finished: Sender<Finished<C::Output>>,
) {
    let mut batcher = Batcher::new(shared.parts.settings.limits);
    let load = shared.parts.device.load();
    let mut is_open = true;
    loop {
        let was_wedged = shared.wedged.get();
        if shared.gives_back() {
            let items = batcher.drain();
            shared
                .release(items.into_iter().map(|item: Item<_>| item.held).collect(), &finished)
                .await;
        }
        // Asked here and not above: with the last jobs given back nothing may happen any more.
        if !is_open && batcher.is_empty() {
            return;
        }
        if let Some(room) = NonZeroUsize::new(shared.memory.load(Ordering::Relaxed)) {
            batcher.shrink(room);
        }
        let now = Instant::now();
        let seen = load.get();
        let view = shared.view(seen, now);
        if let Some(batch) = batcher.close(now, &view) {
            shared.submit(batch, &out, &finished).await;
            continue;
        }
        let deadline = batcher.deadline(&view);
        tokio::select! { biased;
            items = decoded.recv(), if is_open => match items {
                Some(items) => items.into_iter().for_each(|item| batcher.push(entry(item), now)),
                None => is_open = false,
            },
            _ = load.until(|load| *load != seen) => {}
            _ = shared.wedged.until(|wedged| *wedged != was_wedged) => {}
            () = shared.halt.cancelled(), if !batcher.is_empty() => {}
            () = sleep_until(deadline) => {}
        }
    }
}

/// Takes what comes back from the device; a batch that failed is taken apart.
pub(crate) async fn infer<C: Codec>(
    shared: Arc<Shared<C>>,
    mut submitted: Receiver<Submitted<C::Input, C::Output>>,
    finished: Sender<Finished<C::Output>>,
) {
    while let Some(first) = submitted.recv().await {
        let mut runs = shared.conclude(first, &finished).await;
        while let Some(run) = runs.pop() {
            let again = shared.submit_again(run).await;
            runs.extend(shared.conclude(again, &finished).await);
        }
    }
}

impl<C: Codec> Shared<C> {
    /// What the batcher needs to know of the world.
    fn view(&self, load: Load, now: Instant) -> View {
        let device = match load {
            Load { queued: 1.., .. } => fit::Device::Bound,
            Load { running: None, .. } => fit::Device::Free,
            Load { running: Some(batch), .. } => {
                fit::Device::Running { since: batch.since, cost: batch.size.cost() }
            }
        };
        let more = self.n_decoding.load(Ordering::Relaxed) > 0;
        self.fit().view(device, more, self.parts.settings.limits.max_cost.get(), now)
    }

    async fn submit(
        &self,
        batch: Batch<Item<C::Input>>,
        out: &Sender<Submitted<C::Input, C::Output>>,
        finished: &Sender<Finished<C::Output>>,
    ) {
        let now = self.parts.clock.now();
        let is_expired = |item: &Item<_>| item.held.delivery.job.expired(now);
        let (expired, items): (Vec<_>, Vec<_>) = batch.items.into_iter().partition(is_expired);
        let expired = expired.into_iter();
        let expired = expired.map(|item| item.held.finish(End::Reject(EXPIRED.to_owned())));
        send_all(finished, expired.collect()).await;
        if items.is_empty() {
            return;
        }
        let metrics = &self.parts.metrics;
        metrics.batches.with_label_values(&[batch.closed.word()]).inc();
        metrics.batch_items.observe(items.len() as f64);
        let real: usize = items.iter().map(|item| item.size.cost()).sum();
        metrics.batch_padding.observe(1.0 - real as f64 / batch.size.cost().max(1) as f64);
        for item in &items {
            metrics.batch_wait.observe(item.held.way.since.elapsed().as_secs_f64());
        }
        let submitted = self.send_to_device(items, 0, Begun::No).await;
        send(out, submitted).await;
    }

    async fn submit_again(&self, run: Run<Item<C::Input>>) -> Submitted<C::Input, C::Output> {
        debug!(items = run.items.len(), failures = run.failures, "running again");
        self.send_to_device(run.items, run.failures, Begun::Yes).await
    }

    async fn send_to_device(
        &self,
        items: Vec<Item<C::Input>>,
        failures: u32,
        begun: Begun,
    ) -> Submitted<C::Input, C::Output> {
        let size = items.iter().map(|item| item.size).reduce(Size::and).unwrap_or(Size::ONE);
        let split = items.into_iter().map(|Item { held, input, size }| ((held, size), input));
        let (jobs, inputs) = split.unzip();
        let answer = self.parts.device.submit(inputs, size, begun).await;
        Submitted { jobs, size, failures, answer }
    }

    /// Ends the jobs of a batch as its answer says, and returns what has to run again.
    async fn conclude(
        &self,
        submitted: Submitted<C::Input, C::Output>,
        finished: &Sender<Finished<C::Output>>,
    ) -> Vec<Run<Item<C::Input>>> {
        let Submitted { mut jobs, size, failures, answer } = submitted;
        // Without an answer, or one without a run, the batch was never begun.
        let answer = answer.await.ok();
        let Some((inputs, ran)) = answer.and_then(|answer| Some((answer.inputs, answer.ran?)))
        else {
            self.release(jobs.into_iter().map(|(held, _)| held).collect(), finished).await;
            return Vec::new();
        };
        let Ran { results, took } = ran;
        self.parts.metrics.infer.observe(took.as_secs_f64());
        let (n_items, cost, failed) = (jobs.len(), size.cost(), results.is_err());
        let run = BatchRun { n_items, cost, took, failed };
        run.note(jobs.iter_mut().map(|(held, _)| &mut held.way));
        match results {
            Ok(results) => {
                self.fit().learn(jobs.len(), size.cost(), took);
                let ended = jobs.into_iter().zip(results).map(|((held, _), result)| {
                    held.finish(match result {
                        Ok(output) => End::Done(output),
                        Err(fault) => End::Reject(fault.to_string()),
                    })
                });
                send_all(finished, ended.collect()).await;
                Vec::new()
            }
            Err(error) => {
                let items = jobs.into_iter().zip(inputs);
                let items = items.map(|((held, size), input)| Item { held, input, size });
                let run = Run { items: items.collect(), failures };
                self.blame(run, size, &error, finished).await
            }
        }
    }

    /// A batch failed as a whole: halves it, or ends its jobs.
    async fn blame(
        &self,
        run: Run<Item<C::Input>>,
        size: Size,
        error: &InferError,
        finished: &Sender<Finished<C::Output>>,
    ) -> Vec<Run<Item<C::Input>>> {
        warn!(batch.items = run.items.len(), %error, "a batch failed");
        self.parts.metrics.batches_failed.inc();
        if error.kind() == InferErrorKind::OutOfMemory {
            self.memory.fetch_min((size.cost() / 2).max(1), Ordering::Relaxed);
        }
        match run.failed(error.kind()) {
            Next::Rerun(runs) => runs,
            Next::Reject(item) => {
                send(finished, item.held.finish(End::Reject(error.to_string()))).await;
                Vec::new()
            }
            Next::Retry(items) => {
                let items = items.into_iter();
                let items = items.map(|item| item.held.finish(End::Retry(error.to_string())));
                send_all(finished, items.collect()).await;
                Vec::new()
            }
        }
    }
}

fn entry<I>(item: Item<I>) -> Entry<Item<I>> {
    let (size, priority, alone) = (item.size, item.held.priority(), item.held.is_suspect());
    Entry { item, size, priority, alone }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
