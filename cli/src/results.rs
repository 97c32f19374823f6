//! Results as the binary prints them.

use std::time::Duration;

use anyhow::{Context, Result};
use ebb_queue::claim::REFERENCE;
use ebb_queue::{Frame, JobId, JobResult, Outcome, Queue, Timestamp};
use futures::{StreamExt, stream};
use serde::Serialize;
use serde_json::{Value, json};

/// Results that are asked for at the same time, and how long the queue has to tell all of them.
const AT_ONCE: usize = 64;
const PATIENCE: Duration = Duration::from_secs(5);

/// Waits for the result of a job.
///
/// # Errors
/// When the queue does not answer, or has forgotten the job.
pub(crate) async fn result_of(queue: &Queue, id: &JobId) -> Result<JobResult> {
    let result = result_unless_forgotten(queue, id).await?;
    result.with_context(|| format!("the queue forgot {id} before it had a result"))
}

/// The results that are there now; none where the queue does not answer soon.
pub(crate) async fn results_now(queue: &Queue, ids: &[JobId]) -> Vec<Option<JobResult>> {
    let mut found = Vec::with_capacity(ids.len());
    let asked = async {
        let mut answers = stream::iter(ids).map(|id| queue.get(id)).buffered(AT_ONCE);
        while let Some(Ok(result)) = answers.next().await {
            found.push(result);
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.ok();
    found.resize(ids.len(), None);
    found
}

/// Waits for the result of a job, or until the queue knows that there will be none.
///
/// # Errors
/// When the queue does not answer.
pub(crate) async fn result_unless_forgotten(
    queue: &Queue,
    id: &JobId,
) -> Result<Option<JobResult>> {
    if let Some(result) = queue.get(id).await? {
        return Ok(Some(result));
    }
    let mut frames = queue.follow(id, 0).await?;
    while let Some(frame) = frames.next().await {
        if let Frame::Final(result) = frame? {
            return Ok(Some(result));
        }
    }
    Ok(None)
}

/// What is said in the place of an answer that [`lies_elsewhere`].
pub(crate) const ELSEWHERE: &str =
    "the answer lies in a store of payloads; name it with --payloads, as the worker does";

/// Whether the answer is not here: a reference to it is.
pub(crate) fn lies_elsewhere(result: &JobResult) -> bool {
    matches!(&result.outcome, Outcome::Completed { content_type, .. } if content_type == REFERENCE)
}

/// A result as one JSON object, `body` or `error` in it by its outcome.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Line<'a> {
    id: &'a JobId,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

impl<'a> Line<'a> {
    /// What there is.
    pub(crate) fn of(result: &'a JobResult) -> Self {
        let line = Self {
            attempt: Some(result.attempt),
            finished_at: Some(result.finished_at),
            queue: result.queue.as_deref(),
            ..Self::waiting(&result.id)
        };
        match &result.outcome {
            Outcome::Completed { .. } if lies_elsewhere(result) => {
                Self { outcome: "completed", error: Some(ELSEWHERE), ..line }
            }
            Outcome::Completed { content_type, body } => Self {
                outcome: "completed",
                content_type: Some(content_type),
                body: Some(body_of(body)),
                error: None,
                ..line
            },
            Outcome::Failed { reason } => Self { outcome: "failed", error: Some(reason), ..line },
        }
    }

    /// What stands for a result that did not come in time.
    pub(crate) fn waiting(id: &'a JobId) -> Self {
        Self {
            id,
            outcome: "waiting",
            attempt: None,
            finished_at: None,
            queue: None,
            content_type: None,
            body: None,
            error: Some("no result yet"),
        }
    }
}

/// A body in JSON: itself if it is JSON, else text, else a list of bytes.
#[must_use]
pub(crate) fn body_of(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_else(|_| match std::str::from_utf8(body) {
        Ok(text) => json!(text),
        Err(_) => json!(body),
    })
}

#[cfg(test)]
mod tests {
    use ebb_queue::{JSON, Job, QueueUrl};

    use super::*;

    async fn queue(folder: &std::path::Path) -> Queue {
        crate::options::open(&QueueUrl::sqlite(folder.join("queue.db"))).await.unwrap()
    }

    async fn publish(queue: &Queue, id: &str) -> JobId {
        let mut job = Job::new("{}", Timestamp::now());
        job.id = id.parse().unwrap();
        queue.publish(vec![job]).await.unwrap().remove(0).id
    }

    async fn complete(queue: &Queue, id: &JobId) -> JobResult {
        let outcome = Outcome::Completed { content_type: JSON.into(), body: "42".into() };
        let (id, finished_at) = (id.clone(), Timestamp::UNIX_EPOCH);
        let result = JobResult { id, attempt: 1, outcome, finished_at, queue: None };
        queue.put(&result).await.unwrap();
        result
    }

    #[tokio::test]
    async fn each_job_behind_an_open_one_is_told_as_it_stands() {
        let folder = tempfile::tempdir().unwrap();
        let queue = queue(folder.path()).await;
        let mut jobs = Vec::new();
        for id in ["open", "done", "open-too"] {
            jobs.push(publish(&queue, id).await);
        }
        let done = complete(&queue, &jobs[1]).await;
        assert_eq!(results_now(&queue, &jobs).await, [None, Some(done), None]);
    }

    fn check(outcome: Outcome, expected: &str) {
        let id = "job-1".parse().unwrap();
        let finished_at = Timestamp::UNIX_EPOCH;
        let result = JobResult { id, attempt: 2, outcome, finished_at, queue: None };
        assert_eq!(serde_json::to_string(&Line::of(&result)).unwrap(), expected);
    }

    #[test]
    fn a_result_is_one_line() {
        check(
            Outcome::Completed { content_type: JSON.into(), body: r#"{"score":0.5}"#.into() },
            r#"{"id":"job-1","outcome":"completed","attempt":2,"finished_at":"1970-01-01T00:00:00Z","content_type":"application/json","body":{"score":0.5}}"#,
        );
        check(
            Outcome::Failed { reason: "expired".into() },
            r#"{"id":"job-1","outcome":"failed","attempt":2,"finished_at":"1970-01-01T00:00:00Z","error":"expired"}"#,
        );
        check(
            Outcome::Completed { content_type: REFERENCE.into(), body: r#"{"key":"a"}"#.into() },
            r#"{"id":"job-1","outcome":"completed","attempt":2,"finished_at":"1970-01-01T00:00:00Z","error":"the answer lies in a store of payloads; name it with --payloads, as the worker does"}"#,
        );
        let id = "job-1".parse().unwrap();
        let waiting = serde_json::to_string(&Line::waiting(&id)).unwrap();
        assert_eq!(waiting, r#"{"id":"job-1","outcome":"waiting","error":"no result yet"}"#);
    }

    #[test]
    fn a_body_that_is_no_json_is_text_or_bytes() {
        assert_eq!(body_of(b"plain"), json!("plain"));
        assert_eq!(body_of(&[255, 0]), json!([255, 0]));
    }
}
