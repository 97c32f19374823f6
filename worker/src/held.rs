//! What travels between the stages.

use ebb_queue::{Delivery, Priority};
use tokio::sync::OwnedSemaphorePermit;

use crate::batcher::Size;
use crate::codec::{Asked, Spent};
use crate::device::Cargo;
use crate::lease::Loan;
use crate::trace::Way;

/// A job that is held: its delivery, its lease and its room.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) delivery: Delivery,
    /// Where it will run; none where it asks for a model that is not here.
    pub(crate) lane: Option<usize>,
    pub(crate) loan: Loan,
    pub(crate) way: Way,
    /// Given back when the job has run and there is room for it among those to be stored.
    pub(crate) room: OwnedSemaphorePermit,
}

/// A job that is ready to run.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) held: Held,
    pub(crate) lane: usize,
    pub(crate) input: Cargo,
    pub(crate) asked: Asked,
    pub(crate) size: Size,
}

/// A job that has run, or will not.
#[derive(Debug)]
pub(crate) struct Finished<T = Output> {
    pub(crate) delivery: Delivery,
    pub(crate) lane: Option<usize>,
    pub(crate) loan: Loan,
    pub(crate) way: Way,
    /// That of a job that is to be stored, or where enough are, still that of one that has not run.
    pub(crate) room: OwnedSemaphorePermit,
    pub(crate) end: End<T>,
}

/// What a model gave, and what its answer depends on besides.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) lane: usize,
    pub(crate) output: Cargo,
    pub(crate) asked: Asked,
    pub(crate) spent: Spent,
}

/// How a job ended here.
#[derive(Debug)]
pub(crate) enum End<T> {
    /// With an answer.
    Done(T),
    /// With a failure that another attempt may not have.
    Retry(String),
    /// With a failure that every attempt will have.
    Reject(String),
}

impl Held {
    /// Keeps its room until the next stage has some.
    pub(crate) fn finish(self, end: End<Output>) -> Finished {
        let Self { delivery, lane, loan, mut way, room } = self;
        way.finished();
        Finished { delivery, lane, loan, way, room, end }
    }

    pub(crate) fn priority(&self) -> Priority {
        self.delivery.job.headers.priority
    }

    /// A job that was begun before may be what crashed its worker. It runs in a batch of its own,
    /// so that a second crash can be nobody else's fault.
    pub(crate) fn is_suspect(&self) -> bool {
        self.delivery.attempt > 1
    }
}
