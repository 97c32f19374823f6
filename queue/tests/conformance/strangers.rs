//! What any client of the broker publishes is a job like those that we publish.

use ebb_queue::{ByPriority, Queue};

use crate::fixture::{Fixture, settle, words};
use crate::plain::Plain;

/// A new queue and a plain client of it; none where nobody but us can publish.
async fn fresh(fixture: &dyn Fixture) -> Option<(Queue, Plain)> {
    let queue = fixture.fresh().await;
    Some((queue, fixture.plain().await?))
}

pub async fn plain_jobs_go_by_their_priority(fixture: &dyn Fixture) {
    let Some((queue, mut plain)) = fresh(fixture).await else { return };
    for low in ["l1", "l2", "l3", "l4", "l5", "l6"] {
        plain.send(low, &[("ebb-priority", "low")]).await;
    }
    plain.send("h1", &[("ebb-priority", "high")]).await;
    plain.send("n1", &[]).await;
    let mut seen = Vec::new();
    for _ in 0..8 {
        let delivery = fixture.take_one_of(&queue).await;
        assert_eq!(delivery.attempt, 1, "what was let wait is charged nothing");
        seen.push(delivery.job.id.to_string());
        settle(&queue, delivery.ack()).await;
    }
    assert_eq!(seen, ["h1", "n1", "l1", "l2", "l3", "l4", "l5", "l6"]);
    fixture.assert_counts(&queue, [0, 0, 0, 0]).await;
}

pub async fn plain_jobs_that_come_together_go_by_their_priority(fixture: &dyn Fixture) {
    let Some((queue, mut plain)) = fresh(fixture).await else { return };
    for (id, priority) in [("l1", "low"), ("n1", "normal"), ("h1", "high"), ("l2", "low")] {
        plain.send(id, &[("ebb-priority", priority)]).await;
    }
    fixture.assert_takes(&queue, 9, &["h1", "n1", "l1", "l2"]).await;
}

pub async fn a_plain_job_that_repeats_an_id_or_a_key_is_the_first_job(fixture: &dyn Fixture) {
    let queue = fixture.fresh_patient().await;
    let Some(mut plain) = fixture.plain().await else { return };
    plain.send("a", &[("ebb-key", "k")]).await;
    plain.send("b", &[("ebb-key", "k")]).await;
    plain.send("a", &[]).await;
    plain.send("c", &[]).await;
    let mut taken = fixture.take(&queue, 2).await;
    assert_eq!(taken.iter().map(|one| one.job.id.as_str()).collect::<Vec<_>>(), ["a", "c"]);
    fixture.assert_nothing_ready(&queue).await;
    // While the one runs, and the other is dead.
    settle(&queue, taken.remove(1).reject("no")).await;
    let unread = [("ebb-priority", "urgent")];
    for (id, headers) in
        [("a", [].as_slice()), ("d", &[("ebb-key", "k")]), ("c", &[]), ("a", &unread)]
    {
        plain.send(id, headers).await;
    }
    // A look may come before the last of them is seen everywhere.
    let look = async || {
        fixture.assert_nothing_ready(&queue).await;
        fixture.counts(&queue).await
    };
    assert_eq!(fixture.when(look, |seen| *seen == [0, 1, 0, 1]).await, [0, 1, 0, 1]);
    assert_eq!(queue.get(&taken[0].job.id).await.unwrap(), None, "of what is no job");
    // A purge forgets at once.
    queue.purge(None).await.unwrap();
    plain.send("c", &[]).await;
    assert_eq!(fixture.take_one(&queue).await.job.id.as_str(), "c");
}

pub async fn a_plain_job_waits_for_its_delay_and_dies_of_its_deadline(fixture: &dyn Fixture) {
    let Some((queue, mut plain)) = fresh(fixture).await else { return };
    let soon = words(fixture.short());
    plain.send("delayed", &[("ebb-delay", &soon)]).await;
    plain.send("late", &[("ebb-ttl", "0")]).await;
    let look = async || {
        fixture.assert_nothing_ready(&queue).await;
        fixture.counts(&queue).await
    };
    assert_eq!(fixture.when(look, |seen| *seen == [0, 0, 1, 1]).await, [0, 0, 1, 1]);
    fixture.pass_by(fixture.short()).await;
    let delivery = fixture.take_one(&queue).await;
    assert_eq!((delivery.job.id.as_str(), delivery.attempt), ("delayed", 1));
}

pub async fn the_headers_of_plain_jobs_are_counted_before_a_worker_is_there(fixture: &dyn Fixture) {
    let Some((queue, mut plain)) = fresh(fixture).await else { return };
    plain.send("delayed", &[("ebb-delay", &words(fixture.far()))]).await;
    fixture.assert_counts(&queue, [0, 0, 1, 0]).await;
    plain.send("late", &[("ebb-ttl", "0")]).await;
    plain.send("low", &[("ebb-priority", "low"), ("ebb-ttl", &words(fixture.far()))]).await;
    plain.send("high", &[("ebb-priority", "high")]).await;
    fixture.assert_counts(&queue, [2, 0, 1, 1]).await;
    let depth = fixture.depth(&queue).await;
    let by = ByPriority { high: 1, normal: 0, low: 1 };
    assert_eq!(depth.ready_by_priority, Some(by));
    let (now, far) = (fixture.now(), fixture.far());
    for moment in [depth.next_due.unwrap(), depth.first_deadline.unwrap()] {
        assert!(moment > now + far / 2 && moment <= now + far * 2, "{moment}");
    }
}
