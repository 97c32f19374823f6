//! What travels between the stages.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ebb_queue::{Delivery, Failure, Priority};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::batcher::Size;
use crate::codec::{Asked, Spent};
use crate::device::Cargo;
use crate::lease::Loan;
use crate::settle::Exit;
use crate::stream::Stream;
use crate::trace::Way;
use crate::under_way::{GoesOn, UnderWay};

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
    pub(crate) turns: Turns,
}

/// What a job has behind it of the turns that its model takes with it.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    n: u32,
    /// When it first came to the batcher.
    first: Option<Instant>,
    /// What it took of the device, in seconds.
    seconds: f64,
    /// What the batches took that it was in.
    of_batches: f64,
    /// Where its pieces go, once it has said one.
    stream: Option<Stream>,
    /// As one that is under way, once it has another turn before it.
    goes_on: Option<GoesOn>,
    /// Whether there was no room for it in the last one.
    waits: bool,
}

impl Turns {
    /// Whether the job was with the device, and has its output.
    pub(crate) fn has_begun(&self) -> bool {
        self.n > 0
    }

    /// When the job first came to the batcher, which is now unless it was there before.
    pub(crate) fn first(&mut self, now: Instant) -> Instant {
        *self.first.get_or_insert(now)
    }

    /// Adds a turn in a batch that took so long, of jobs that cost so much together; what the job took
    /// of the device in all.
    pub(crate) fn ran(&mut self, cost: usize, all: usize, took: Duration) -> Spent {
        let last = Spent::of(cost, all, took);
        self.n += 1;
        self.seconds += last.seconds;
        self.of_batches += took.as_secs_f64();
        let is_known = self.n > 1 && self.of_batches > 0.0;
        let share = if is_known { self.seconds / self.of_batches } else { last.share };
        Spent { seconds: self.seconds, share }
    }

    /// The job has had a turn, which began then unless it was under way before, and goes on.
    pub(crate) fn go_on(&mut self, all: &Arc<UnderWay>, since: Instant) {
        self.goes_on.get_or_insert_with(|| all.begin(since));
    }

    /// Whether there was no room for it in its last turn.
    pub(crate) fn waits(&self) -> bool {
        self.waits
    }

    /// Notes that.
    pub(crate) fn set_waits(&mut self, waits: bool) {
        self.waits = waits;
    }

    /// What the job took of the device so far, in seconds.
    pub(crate) fn seconds(&self) -> f64 {
        self.seconds
    }

    /// Whether another attempt has the job, or has answered it.
    pub(crate) fn is_overtaken(&self) -> bool {
        self.stream.as_ref().is_some_and(Stream::is_overtaken)
    }
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
    /// Where its pieces went, if it said any.
    pub(crate) stream: Option<Stream>,
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
    Reject(Failure),
    /// Not here: another attempt has it, or has answered it.
    Overtaken,
    /// Nobody wants it any more, and that is stored.
    Cancelled,
}

impl<T> Finished<T> {
    /// The same job with another end.
    pub(crate) fn ending<U>(self, end: End<U>) -> Finished<U> {
        let Self { delivery, lane, loan, way, room, stream, end: _ } = self;
        Finished { delivery, lane, loan, way, room, stream, end }
    }
}

impl Held {
    /// Keeps its room until the next stage has some.
    pub(crate) fn finish(self, end: End<Output>) -> Finished {
        let Self { delivery, lane, loan, mut way, room, turns } = self;
        way.finished(turns.n);
        loan.leave_device();
        Finished { delivery, lane, loan, way, room, stream: turns.stream, end }
    }

    /// Passes a piece on to who stores it; whether it is given up, for the store takes no more of them.
    pub(crate) async fn say(&mut self, piece: Bytes, exit: &Exit) -> bool {
        if let Some(stream) = &self.turns.stream {
            return stream.say(piece);
        }
        let (stream, telling) = Stream::begin(&self.delivery);
        let is_given_up = stream.say(piece);
        self.turns.stream = Some(stream);
        exit.tell(telling).await;
        is_given_up
    }

    pub(crate) fn priority(&self) -> Priority {
        self.delivery.job.headers.priority
    }

    /// A job that was begun before may be what crashed its worker. It runs in a batch of its own,
    /// so that a second crash can be nobody else's fault. That goes for its first turn: alone in all
    /// of them it would have the device half of the time. Who crashes a later one charges those beside
    /// it too, and they prove themselves alone, in all their turns, at their third attempt.
    pub(crate) fn is_suspect(&self) -> bool {
        self.delivery.attempt > 1 && !self.turns.has_begun()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_spends_what_all_its_turns_took() {
        let mut turns = Turns::default();
        let first = turns.ran(1, 4, Duration::from_secs(4));
        assert_eq!(first, Spent { seconds: 1.0, share: 0.25 });
        let both = turns.ran(1, 2, Duration::from_secs(4));
        assert_eq!(both, Spent { seconds: 3.0, share: 0.375 });
        let mut idle = Turns::default();
        idle.ran(1, 4, Duration::ZERO);
        assert_eq!(idle.ran(1, 2, Duration::ZERO), Spent { seconds: 0.0, share: 0.5 });
    }
}
