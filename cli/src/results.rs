//! Results as the binary prints them.

use anyhow::{Result, bail};
use ebb_queue::{Frame, JobId, JobResult, Outcome, Queue};
use futures::StreamExt;
use serde_json::{Value, json};

/// Waits for the result of a job.
///
/// # Errors
/// When the queue does not answer, or has forgotten the job.
pub(crate) async fn result_of(queue: &Queue, id: &JobId) -> Result<JobResult> {
    if let Some(result) = queue.get(id).await? {
        return Ok(result);
    }
    let mut frames = queue.follow(id, 0).await?;
    while let Some(frame) = frames.next().await {
        if let Frame::Final(result) = frame? {
            return Ok(result);
        }
    }
    bail!("the queue forgot {id} before it had a result")
}

/// A result as one JSON object: `id`, `outcome`, and `body` or `error`.
#[must_use]
pub(crate) fn to_json(result: &JobResult) -> Value {
    let mut object = json!({
        "id": result.id,
        "attempt": result.attempt,
        "finished_at": result.finished_at,
    });
    match &result.outcome {
        Outcome::Completed { content_type, body } => {
            object["outcome"] = json!("completed");
            object["content_type"] = json!(content_type);
            object["body"] = body_of(body);
        }
        Outcome::Failed { reason } => {
            object["outcome"] = json!("failed");
            object["error"] = json!(reason);
        }
    }
    object
}

/// What stands for a result that did not come in time.
#[must_use]
pub(crate) fn late(id: &JobId) -> Value {
    json!({ "id": id, "outcome": "waiting", "error": "no result yet" })
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
    use ebb_queue::Timestamp;

    use super::*;

    fn result(outcome: Outcome) -> Value {
        let id = "job-1".parse().unwrap();
        to_json(&JobResult { id, attempt: 2, outcome, finished_at: Timestamp::UNIX_EPOCH })
    }

    #[test]
    fn a_completed_result_shows_its_body() {
        let outcome = Outcome::Completed {
            content_type: "application/json".into(),
            body: r#"{"score":0.5}"#.into(),
        };
        let expected = json!({
            "id": "job-1", "attempt": 2, "finished_at": "1970-01-01T00:00:00Z",
            "outcome": "completed", "content_type": "application/json", "body": {"score": 0.5},
        });
        assert_eq!(result(outcome), expected);
    }

    #[test]
    fn a_failed_result_shows_why() {
        let expected = json!({
            "id": "job-1", "attempt": 2, "finished_at": "1970-01-01T00:00:00Z",
            "outcome": "failed", "error": "expired",
        });
        assert_eq!(result(Outcome::Failed { reason: "expired".into() }), expected);
    }

    #[test]
    fn a_body_that_is_no_json_is_text_or_bytes() {
        assert_eq!(body_of(b"plain"), json!("plain"));
        assert_eq!(body_of(&[255, 0]), json!([255, 0]));
    }
}
