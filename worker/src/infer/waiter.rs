//! Who waits for the batches of one lane.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::future::MaybeDone;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::sync::oneshot;

use super::{Again, Bound, Failed, Out, Submitted};
use crate::device::{Answer, Door};
use crate::held::Item;
use crate::settle::Exit;
use crate::shared::{Shared, send};

/// Time before the next turn of jobs that had no room in the last, not one of them: others have what
/// they need, and are to come to their turns meanwhile.
const PAUSE: Duration = Duration::from_millis(5);

/// It takes one after the other.
pub(super) struct Waiter {
    shared: Arc<Shared>,
    lane: usize,
    bound: Receiver<Bound>,
    /// Whether there may be more of them.
    is_open: bool,
    /// Those that were looked at early, and had begun.
    behind: VecDeque<Bound>,
    exit: Exit,
    again: Sender<Vec<Item>>,
    /// Jobs of the batch that have another turn before them.
    turned: Vec<Item>,
}

impl Waiter {
    pub(super) fn new(
        shared: Arc<Shared>,
        lane: usize,
        bound: Receiver<Bound>,
        Out { exit, again }: Out,
    ) -> Self {
        let (behind, turned) = (VecDeque::new(), Vec::new());
        Self { shared, lane, bound, is_open: true, behind, exit, again, turned }
    }

    /// Of the jobs of this lane.
    pub(super) fn exit(&self) -> &Exit {
        &self.exit
    }

    /// The next batch of the lane.
    pub(super) async fn next(&mut self) -> Option<Bound> {
        if let Some(bound) = self.behind.pop_front() {
            return Some(bound);
        }
        let bound = self.bound.recv().await?;
        self.shared.n_taken.update(|n| *n += 1);
        Some(bound)
    }

    /// Runs jobs of a batch that failed, and says what has to run again.
    pub(super) async fn run_again(&mut self, (run, batch): Again) -> Vec<Again> {
        let failed = Failed { times: run.failures, batch };
        let again = self.shared.send_to_device(self.lane, run.items, Some(failed));
        self.conclude(again).await
    }

    /// Ends the jobs of a batch once it has run, and says what has to run again.
    pub(super) async fn conclude(&mut self, mut submitted: Submitted) -> Vec<Again> {
        let answer = self.answer(&mut submitted.answer).await;
        let out = (&self.exit, &mut self.turned);
        self.shared.conclude(self.lane, submitted, answer, out).await
    }

    /// Sends jobs back to the batcher that have another turn before them.
    pub(super) async fn turn(&mut self) {
        if !self.turned.is_empty() {
            if self.turned.iter().all(|item| item.held.turns.waits()) {
                tokio::time::sleep(PAUSE).await;
            }
            send(&self.again, std::mem::take(&mut self.turned)).await;
        }
    }

    /// Waits for a batch; without an answer it was not run.
    ///
    /// Batches behind it that the device takes no more are given back meanwhile: this one may run
    /// until the grace period ends, and on a wedged device for ever.
    async fn answer(
        &mut self,
        answer: &mut MaybeDone<oneshot::Receiver<Answer>>,
    ) -> Option<Answer> {
        let shared = Arc::clone(&self.shared);
        let door = shared.device.door();
        loop {
            let seen = door.get();
            for bound in std::mem::take(&mut self.behind) {
                self.look_at(bound).await;
            }
            tokio::select! { biased;
                () = &mut *answer => return std::pin::Pin::new(answer).take_output()?.ok(),
                _ = door.until(|door| *door != seen) => {}
                bound = self.bound.recv(), if self.is_open && seen != Door::Open => match bound {
                    Some(bound) => {
                        self.shared.n_taken.update(|n| *n += 1);
                        self.look_at(bound).await;
                    }
                    None => self.is_open = false,
                },
            }
        }
    }

    /// Gives a batch back that the device took no more, or keeps it for later.
    async fn look_at(&mut self, mut bound: Bound) {
        match bound.submitted.take_if(Submitted::came_back) {
            Some(Submitted { jobs, .. }) => {
                self.exit.finish(bound.late).await;
                self.shared.give_back_unrun(self.lane, jobs, &self.exit).await;
            }
            None => self.behind.push_back(bound),
        }
    }
}
