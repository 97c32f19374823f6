//! What there is to do about a job that failed is told to all who hear of it.

use ebb_queue::{Failure, FailureKind, JobResult, Outcome, Queue};

use crate::fixture::{Fixture, publish, settle, soon, words};

const KINDS: [FailureKind; 6] = [
    FailureKind::Invalid,
    FailureKind::Expired,
    FailureKind::Attempts,
    FailureKind::Model,
    FailureKind::Lost,
    FailureKind::Other,
];

/// A failed result of this kind.
fn failed(fixture: &dyn Fixture, name: &str, kind: FailureKind) -> JobResult {
    let outcome = Outcome::Failed(Failure::new(kind, "say \"why\""));
    JobResult { outcome, ..fixture.completed(name, 1, "") }
}

async fn stored_kind(queue: &Queue, name: &str) -> Option<FailureKind> {
    let result = queue.get(&name.parse().unwrap()).await.unwrap();
    result.expect("a failure is stored").outcome.failure_kind()
}

pub async fn the_kind_of_a_failure_is_stored_and_kept_with_its_dead_letter(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    for kind in KINDS {
        let name = kind.word();
        fixture.publish(&queue, &[name]).await;
        let result = failed(fixture, name, kind);
        let delivery = fixture.take_one(&queue).await;
        queue.put(&result).await.unwrap();
        settle(&queue, delivery.reject(Failure::new(kind, "no"))).await;
        let again = fixture.again("two").await;
        assert_eq!(again.get(&result.id).await.unwrap().unwrap().outcome, result.outcome);
        let letter = again.show(&result.id).await.unwrap().unwrap();
        assert_eq!((letter.kind, &*letter.reason), (kind, "no"));
    }
    let kinds: Vec<_> = queue.list(9).await.unwrap().iter().rev().map(|one| one.kind).collect();
    assert_eq!(kinds, KINDS);
}

pub async fn a_reply_tells_the_kind_of_a_failure(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let Some(mut mailbox) = fixture.mailbox().await else { return };
    for kind in KINDS {
        let result = failed(fixture, kind.word(), kind);
        queue.reply(&mailbox.to, &result, None).await.unwrap();
        let mail = soon(&mut mailbox.mails).await.expect("somebody writes");
        let told: serde_json::Value = serde_json::from_slice(&mail.body).unwrap();
        assert_eq!(told, serde_json::json!({ "error": "say \"why\"", "kind": kind.word() }));
        // On the embedded queue a reply is a job, which has no outcome.
        let header = (fixture.kind() != "sqlite").then_some(kind.word());
        assert_eq!(mail.headers.get("ebb-kind").map(String::as_str), header, "{mail:?}");
    }
    queue.reply(&mailbox.to, &fixture.completed("done", 1, "{}"), None).await.unwrap();
    let mail = soon(&mut mailbox.mails).await.expect("somebody writes");
    assert!(!mail.headers.contains_key("ebb-kind"), "{mail:?}");
}

pub async fn a_dead_letter_that_dies_again_is_of_the_later_kind(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["a"]).await;
    for kind in [FailureKind::Model, FailureKind::Attempts, FailureKind::Other] {
        let delivery = fixture.take_one(&queue).await;
        settle(&queue, delivery.reject(Failure::new(kind, "no"))).await;
        assert_eq!(queue.list(9).await.unwrap()[0].kind, kind);
        assert_eq!(queue.redrive(None).await.unwrap(), 1);
    }
}

pub async fn what_a_queue_buries_by_itself_is_expired_or_invalid(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    publish(&queue, fixture.job("late", &[("ebb-ttl", &words(fixture.short()))])).await;
    fixture.pass_by(fixture.short()).await;
    let look = async || {
        fixture.assert_nothing_ready(&queue).await;
        fixture.counts(&queue).await
    };
    let expected = [0, 0, 0, 1];
    assert_eq!(fixture.when(look, |seen| *seen == expected).await, expected);
    assert_eq!(queue.list(9).await.unwrap()[0].kind, FailureKind::Expired);
    assert_eq!(stored_kind(&queue, "late").await, Some(FailureKind::Expired));
    let Some(mut plain) = fixture.plain().await else { return };
    plain.send("bad", &[("ebb-priority", "urgent")]).await;
    let expected = [0, 0, 0, 2];
    assert_eq!(fixture.when(look, |seen| *seen == expected).await, expected);
    assert_eq!(queue.list(9).await.unwrap()[0].kind, FailureKind::Invalid);
    assert_eq!(stored_kind(&queue, "bad").await, Some(FailureKind::Invalid));
}
