//! Who asked for a reply gets it where it waits, in the broker's own protocol.

use ebb_queue::JobResult;

use crate::fixture::{Fixture, soon};
use crate::mail::{Mail, Mailbox};

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

pub async fn an_answer_is_sent_to_where_its_job_asked_for_it(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let Some(mut mailbox) = fixture.mailbox().await else { return };
    let queue_of_it = Some("jobs-canary".to_owned());
    let result = JobResult { queue: queue_of_it, ..fixture.completed("a", 2, "\u{0}\u{1f600}") };
    queue.reply(&mailbox.to, &result, Some(TRACE)).await.unwrap();
    let mail = assert_comes(fixture, &mut mailbox, &result, "completed", "text/plain").await;
    assert_eq!(mail.headers.get("traceparent").map(String::as_str), Some(TRACE), "{mail:?}");
    // Its own queue has nothing of it.
    fixture.assert_counts(&queue, [0, 0, 0, 0]).await;
}

pub async fn a_failure_is_sent_with_its_reason(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let Some(mut mailbox) = fixture.mailbox().await else { return };
    let result = fixture.failed("a", 3, "say \"why\"");
    queue.reply(&mailbox.to, &result, None).await.unwrap();
    assert_comes(fixture, &mut mailbox, &result, "failed", "application/json").await;
}

async fn assert_comes(
    fixture: &dyn Fixture,
    mailbox: &mut Mailbox,
    result: &JobResult,
    outcome: &str,
    content_type: &str,
) -> Mail {
    let mail = soon(&mut mailbox.mails).await.expect("somebody writes");
    let body = match &result.outcome {
        ebb_queue::Outcome::Completed { body, .. } => body.clone(),
        ebb_queue::Outcome::Failed { .. } => r#"{"error":"say \"why\""}"#.into(),
    };
    assert_eq!(mail.body, body);
    let attempt = result.attempt.to_string();
    let (id, kind) = (result.id.as_str(), fixture.kind());
    let expected = [("ebb-id", id), ("content-type", content_type)];
    // On the embedded queue a reply is a job, which has no attempt yet.
    let of_a_message = [("ebb-attempt", &*attempt), ("ebb-outcome", outcome)];
    let of_a_worker = result.queue.as_deref().map(|queue| ("ebb-queue", queue));
    let of_a_message = of_a_message.into_iter().chain(of_a_worker);
    let of_a_message = of_a_message.filter(|_| kind != "sqlite");
    for (name, value) in expected.into_iter().chain(of_a_message) {
        assert_eq!(mail.headers.get(name).map(String::as_str), Some(value), "{name}: {mail:?}");
    }
    mail
}
