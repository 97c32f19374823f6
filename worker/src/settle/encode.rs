//! Writes answers, on CPU threads.

use std::panic::{AssertUnwindSafe, catch_unwind};

use ebb_queue::{Failure, FailureKind, Job};

use crate::codec::{Answer, Spent};
use crate::held::{End, Finished, Output};
use crate::served::Served;

/// An answer, and what its job took of the device, to be counted once it is known whether anybody
/// has it.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) answer: Answer,
    lane: usize,
    spent: Spent,
}

impl Served {
    /// How a job ended, with its answer written.
    pub(super) fn encode_one(&self, finished: &mut Finished) -> End<Written> {
        // The job has what is returned for its end.
        match std::mem::replace(&mut finished.end, End::Overtaken) {
            // Nobody has that answer.
            End::Done(output) if finished.loan.is_cancelled() => {
                let lane = &self.shared.lanes[output.lane];
                self.shared.metrics.waste(&lane.name, output.spent.seconds);
                End::Cancelled
            }
            End::Done(output) => match self.encode(output, &finished.delivery.job) {
                Some(written) => End::Done(written),
                None => panicked(),
            },
            End::Retry(reason) => End::Retry(reason),
            End::Reject(failure) => End::Reject(failure),
            End::Overtaken => End::Overtaken,
            End::Cancelled => End::Cancelled,
        }
    }

    /// The answer; none if that made the encoder panic.
    fn encode(&self, output: Output, job: &Job) -> Option<Written> {
        let Output { lane, output, asked, spent } = output;
        let own = &self.shared.lanes[lane];
        let encode = || own.codec.encode(output, asked, job, &spent);
        let answer = catch_unwind(AssertUnwindSafe(encode)).ok();
        if answer.is_none() {
            self.shared.metrics.waste(&own.name, spent.seconds);
        }
        answer.map(|answer| Written { answer, lane, spent })
    }

    /// Counts an answer for whoever it is for, or as one that nobody has.
    pub(super) fn count_answer(&self, written: &Written, job: &Job, is_told: bool) {
        let Written { answer, lane, spent } = written;
        let (name, metrics) = (&self.shared.lanes[*lane].name, &self.shared.metrics);
        match is_told {
            true => metrics.spend(name, job.headers.tenant.as_deref(), answer, spent),
            false => metrics.waste(name, spent.seconds),
        }
    }
}

/// How a job ends whose answer cannot be written.
pub(super) fn panicked() -> End<Written> {
    let reason = "the answer made the encoder panic; a bug of ours";
    End::Reject(Failure::new(FailureKind::Model, reason))
}
