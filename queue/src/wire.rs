//! Results and worker status as bytes: protobuf, so that other versions and languages read them.

use ebb_proto::ebb::v1;
use prost::Message;

use crate::result::CANCELLED;
use crate::{
    BatchTime, Error, ErrorKind, Failure, FailureKind, JobResult, Outcome, Phase, Result,
    Timestamp, WorkerStatus,
};

impl JobResult {
    /// The result as `ebb.v1.JobResult`.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let outcome = match &self.outcome {
            Outcome::Completed { content_type, body } => {
                let (content_type, body) = (content_type.clone(), body.to_vec());
                v1::job_result::Outcome::Completed(v1::Completed { content_type, body })
            }
            Outcome::Failed(Failure { kind, reason }) => {
                let (reason, kind) = (reason.clone(), kind.word().to_owned());
                v1::job_result::Outcome::Failed(v1::Failed { reason, cancelled: false, kind })
            }
            Outcome::Cancelled => {
                let (reason, kind) = (CANCELLED.to_owned(), String::new());
                v1::job_result::Outcome::Failed(v1::Failed { reason, cancelled: true, kind })
            }
        };
        let message = v1::JobResult {
            id: self.id.to_string(),
            attempt: self.attempt,
            finished_at_ms: self.finished_at.as_millisecond(),
            outcome: Some(outcome),
            queue: self.queue.clone().unwrap_or_default(),
        };
        message.encode_to_vec()
    }

    /// Reads `ebb.v1.JobResult`.
    ///
    /// # Errors
    /// [`ErrorKind::Incompatible`] for anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let message = v1::JobResult::decode(bytes).map_err(|error| unreadable("result", error))?;
        let outcome = match message.outcome {
            Some(v1::job_result::Outcome::Completed(v1::Completed { content_type, body })) => {
                Outcome::Completed { content_type, body: body.into() }
            }
            Some(v1::job_result::Outcome::Failed(v1::Failed { cancelled: true, .. })) => {
                Outcome::Cancelled
            }
            Some(v1::job_result::Outcome::Failed(v1::Failed { reason, kind, .. })) => {
                Outcome::Failed(Failure { kind: FailureKind::of_word(&kind), reason })
            }
            None => return Err(unreadable("result", "it has no outcome")),
        };
        let id = message.id.try_into().map_err(|error| unreadable("result", error))?;
        let finished_at = moment("result", message.finished_at_ms)?;
        let queue = Some(message.queue).filter(|queue| !queue.is_empty());
        Ok(Self { id, attempt: message.attempt, outcome, finished_at, queue })
    }
}

impl WorkerStatus {
    /// The status as `ebb.v1.WorkerStatus`.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let cold_start = self.cold_start.iter();
        let message = v1::WorkerStatus {
            id: self.id.clone(),
            pod: self.pod.clone(),
            phase: phase_on_wire(self.phase) as i32,
            in_flight: self.in_flight,
            slots: self.slots,
            completed: self.completed,
            failed: self.failed,
            batch_time: self.batch_time.map(|BatchTime { base, per_cost, per_job }| {
                v1::BatchTime { base, per_cost, per_job }
            }),
            cold_start: cold_start
                .map(|(name, seconds)| v1::ColdStartPhase { name: name.clone(), seconds: *seconds })
                .collect(),
            model: self.model.clone(),
            at_ms: self.at.as_millisecond(),
            first_result: self.first_result,
        };
        message.encode_to_vec()
    }

    /// Reads `ebb.v1.WorkerStatus`.
    ///
    /// # Errors
    /// [`ErrorKind::Incompatible`] for anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let message =
            v1::WorkerStatus::decode(bytes).map_err(|error| unreadable("worker status", error))?;
        let phase = match message.phase() {
            v1::worker_status::Phase::Starting => Phase::Starting,
            v1::worker_status::Phase::Idle => Phase::Idle,
            v1::worker_status::Phase::Busy => Phase::Busy,
            v1::worker_status::Phase::Draining => Phase::Draining,
            v1::worker_status::Phase::Unspecified => {
                return Err(unreadable("worker status", "its phase is not known"));
            }
        };
        let cold_start = message.cold_start.into_iter();
        Ok(Self {
            phase,
            at: moment("worker status", message.at_ms)?,
            id: message.id,
            pod: message.pod,
            in_flight: message.in_flight,
            slots: message.slots,
            completed: message.completed,
            failed: message.failed,
            batch_time: message.batch_time.map(|v1::BatchTime { base, per_cost, per_job }| {
                BatchTime { base, per_cost, per_job }
            }),
            cold_start: cold_start.map(|phase| (phase.name, phase.seconds)).collect(),
            first_result: message.first_result,
            model: message.model,
        })
    }
}

fn phase_on_wire(phase: Phase) -> v1::worker_status::Phase {
    match phase {
        Phase::Starting => v1::worker_status::Phase::Starting,
        Phase::Idle => v1::worker_status::Phase::Idle,
        Phase::Busy => v1::worker_status::Phase::Busy,
        Phase::Draining => v1::worker_status::Phase::Draining,
    }
}

fn moment(what: &str, millis: i64) -> Result<Timestamp> {
    Timestamp::from_millisecond(millis).map_err(|error| unreadable(what, error))
}

fn unreadable(what: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    let words = format!("a {what} cannot be read; was it written by a newer version?");
    Error::new(ErrorKind::Incompatible, words).caused_by(source)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn moments() -> impl Strategy<Value = Timestamp> {
        (0..4_000_000_000_000i64).prop_map(|ms| Timestamp::from_millisecond(ms).unwrap())
    }

    fn outcomes() -> impl Strategy<Value = Outcome> {
        prop_oneof![
            (any::<String>(), any::<Vec<u8>>()).prop_map(|(content_type, body)| {
                Outcome::Completed { content_type, body: body.into() }
            }),
            (any::<String>(), 0..6usize).prop_map(|(reason, kind)| {
                let words = ["invalid", "expired", "attempts", "model", "lost", "other"];
                Outcome::Failed(Failure { kind: FailureKind::of_word(words[kind]), reason })
            }),
            Just(Outcome::Cancelled),
        ]
    }

    fn phases() -> impl Strategy<Value = Phase> {
        prop_oneof![
            Just(Phase::Starting),
            Just(Phase::Idle),
            Just(Phase::Busy),
            Just(Phase::Draining)
        ]
    }

    proptest! {
        #[test]
        fn a_result_survives_the_wire(
            id in "[!-~]{1,256}", attempt: u32, outcome in outcomes(), finished_at in moments(),
            queue in prop::option::of("[a-z0-9._-]{1,64}"),
        ) {
            let id = id.parse().unwrap();
            let result = JobResult { id, attempt, outcome, finished_at, queue };
            prop_assert_eq!(JobResult::decode(&result.encode()).unwrap(), result);
        }

        #[test]
        fn a_worker_status_survives_the_wire(
            (id, pod, model) in any::<(String, String, String)>(),
            (in_flight, slots, completed, failed) in any::<(u64, u64, u64, u64)>(),
            phase in phases(),
            times in proptest::option::of((0.0..1e9f64, 0.0..1e9f64, 0.0..1e9f64)),
            (cold_start, first_result) in (
                proptest::collection::vec((any::<String>(), 0.0..1e6f64), 0..4),
                proptest::option::of(0.0..1e9f64),
            ),
            at in moments(),
        ) {
            let batch_time =
                times.map(|(base, per_cost, per_job)| BatchTime { base, per_cost, per_job });
            let status = WorkerStatus {
                id, pod, phase, in_flight, slots, completed, failed, batch_time, cold_start,
                first_result, model, at,
            };
            prop_assert_eq!(WorkerStatus::decode(&status.encode()).unwrap(), status);
        }

        #[test]
        fn a_failure_of_another_version_is_read(reason: String, kind in "[a-z]{0,9}") {
            let kind_read = FailureKind::of_word(&kind);
            let failed = v1::Failed { reason: reason.clone(), cancelled: false, kind };
            let outcome = Some(v1::job_result::Outcome::Failed(failed));
            let message = v1::JobResult { id: "job".into(), outcome, ..v1::JobResult::default() };
            let read = JobResult::decode(&message.encode_to_vec()).unwrap();
            prop_assert_eq!(read.outcome, Outcome::Failed(Failure { kind: kind_read, reason }));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let (result, status) = (JobResult::decode(&bytes), WorkerStatus::decode(&bytes));
            prop_assert!(result.is_ok() || result.unwrap_err().kind() == ErrorKind::Incompatible);
            prop_assert!(status.is_ok() || status.unwrap_err().kind() == ErrorKind::Incompatible);
        }
    }
}
