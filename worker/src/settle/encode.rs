//! Writes answers, on CPU threads.

use std::panic::{AssertUnwindSafe, catch_unwind};

use ebb_queue::{Failure, FailureKind, Job};

use crate::codec::Answer;
use crate::held::{End, Finished, Output};
use crate::served::Served;

impl Served {
    /// How a job ended, with its answer written.
    pub(super) fn encode_one(&self, finished: &mut Finished) -> End<Answer> {
        // The job has what is returned for its end.
        match std::mem::replace(&mut finished.end, End::Overtaken) {
            // Nobody has that answer.
            End::Done(output) if finished.loan.is_cancelled() => {
                let lane = &self.shared.lanes[output.lane];
                self.shared.metrics.waste(&lane.name, output.spent.seconds);
                End::Cancelled
            }
            End::Done(output) => match self.encode(output, &finished.delivery.job) {
                Some(answer) => End::Done(answer),
                None => panicked(),
            },
            End::Retry(reason) => End::Retry(reason),
            End::Reject(failure) => End::Reject(failure),
            End::Overtaken => End::Overtaken,
            End::Cancelled => End::Cancelled,
        }
    }

    /// The answer, counted for whoever it is for; none if that made the encoder panic.
    fn encode(&self, output: Output, job: &Job) -> Option<Answer> {
        let Output { lane, output, asked, spent } = output;
        let lane = &self.shared.lanes[lane];
        let encode = || lane.codec.encode(output, asked, job, &spent);
        let (answer, metrics) = (catch_unwind(AssertUnwindSafe(encode)).ok(), &self.shared.metrics);
        let tenant = job.headers.tenant.as_deref();
        match &answer {
            Some(answer) => metrics.spend(&lane.name, tenant, answer, &spent),
            None => metrics.waste(&lane.name, spent.seconds),
        }
        answer
    }
}

/// How a job ends whose answer cannot be written.
pub(super) fn panicked() -> End<Answer> {
    let reason = "the answer made the encoder panic; a bug of ours";
    End::Reject(Failure::new(FailureKind::Model, reason))
}
