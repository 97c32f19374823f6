//! The first answer is the answer.

use ebb_queue::{JobId, Stored};

use crate::fixture::Fixture;

pub async fn a_result_is_read_as_it_was_stored(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let result = fixture.completed("a", 3, "\u{0}\u{1f600}");
    assert_eq!(queue.put(&result).await.unwrap(), Stored::Stored);
    assert_eq!(fixture.again("two").await.get(&result.id).await.unwrap(), Some(result));
    let failed = fixture.failed("b", 5, "no such model");
    assert_eq!(queue.put(&failed).await.unwrap(), Stored::Stored);
    assert_eq!(queue.get(&failed.id).await.unwrap(), Some(failed));
    assert_eq!(queue.get(&id("c")).await.unwrap(), None);
}

pub async fn a_completed_result_is_never_replaced(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let first = fixture.completed("a", 2, "first");
    queue.put(&first).await.unwrap();
    for other in [
        fixture.completed("a", 2, "first"),
        fixture.completed("a", 3, "later"),
        fixture.completed("a", 1, "earlier"),
        fixture.failed("a", 3, "no"),
    ] {
        assert_eq!(queue.put(&other).await.unwrap(), Stored::Duplicate);
    }
    assert_eq!(queue.get(&id("a")).await.unwrap(), Some(first));
}

pub async fn a_failed_result_gives_way_to_a_completed_one_only(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let failed = fixture.failed("a", 3, "no");
    queue.put(&failed).await.unwrap();
    let again = fixture.failed("a", 4, "again");
    assert_eq!(queue.put(&again).await.unwrap(), Stored::Duplicate);
    assert_eq!(queue.get(&id("a")).await.unwrap(), Some(failed));
    let completed = fixture.completed("a", 1, "yes");
    assert_eq!(queue.put(&completed).await.unwrap(), Stored::Stored);
    assert_eq!(queue.get(&id("a")).await.unwrap(), Some(completed));
}

pub async fn a_result_is_forgotten_when_its_time_is_over(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    let ttl = fixture.behavior().result_ttl;
    queue.put(&fixture.completed("a", 1, "old")).await.unwrap();
    fixture.pass(ttl / 2).await;
    assert!(queue.get(&id("a")).await.unwrap().is_some());
    fixture.pass(ttl).await;
    assert_eq!(queue.get(&id("a")).await.unwrap(), None);
    let new = fixture.completed("a", 1, "new");
    assert_eq!(queue.put(&new).await.unwrap(), Stored::Stored);
    assert_eq!(queue.get(&id("a")).await.unwrap(), Some(new));
}

pub async fn an_attempt_that_was_overtaken_may_not_answer(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    queue.chunk(&id("a"), 2, 0, "new".into()).await.unwrap();
    assert_eq!(queue.put(&fixture.completed("a", 1, "old")).await.unwrap(), Stored::Stale);
    assert_eq!(queue.put(&fixture.failed("a", 1, "old")).await.unwrap(), Stored::Stale);
    assert_eq!(queue.get(&id("a")).await.unwrap(), None);
    assert_eq!(queue.put(&fixture.completed("a", 2, "new")).await.unwrap(), Stored::Stored);
}

pub async fn of_many_results_at_once_one_is_stored(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    // Opened before the first of them stores: what it stored must not be forgotten by the last.
    let mut handles = Vec::new();
    for _ in 0..8 {
        handles.push(fixture.again("worker").await);
    }
    let mut workers = tokio::task::JoinSet::new();
    for (queue, attempt) in handles.into_iter().zip(1..) {
        let result = fixture.completed("a", attempt, &format!("by {attempt}"));
        workers.spawn(async move { (queue.put(&result).await.unwrap(), result) });
    }
    let all = workers.join_all().await;
    let stored: Vec<_> = all.iter().filter(|(stored, _)| *stored == Stored::Stored).collect();
    assert_eq!(stored.len(), 1);
    assert_eq!(queue.get(&id("a")).await.unwrap().as_ref(), Some(&stored[0].1));
}

fn id(name: &str) -> JobId {
    name.parse().unwrap()
}
