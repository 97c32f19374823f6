//! Failures and what is left of them, for the tests of each broker.

use ebb_queue::{Failure, FailureKind, JobResult, Outcome, Queue, Timestamp};

/// The result of a job that failed like this.
pub fn failed(id: &str, kind: FailureKind) -> JobResult {
    let outcome = Outcome::Failed(Failure::new(kind, "no"));
    let (id, finished_at) = (id.parse().unwrap(), Timestamp::now());
    JobResult { id, attempt: 1, outcome, finished_at, queue: None }
}

/// Of what kind the only dead letter is, and its reason.
pub async fn letter(queue: &Queue) -> (FailureKind, String) {
    let mut letters = queue.list(9).await.unwrap();
    assert_eq!(letters.len(), 1, "{letters:?}");
    let letter = letters.remove(0);
    let shown = queue.show(&letter.job.id).await.unwrap().unwrap();
    assert_eq!((shown.kind, &shown.reason), (letter.kind, &letter.reason));
    (letter.kind, letter.reason)
}
