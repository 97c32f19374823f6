//! High goes before normal before low, and within each the first published first.

use crate::fixture::{Fixture, publish, settle, words};

pub async fn high_goes_before_normal_before_low(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    for (name, priority) in [
        ("l1", "low"),
        ("n1", "normal"),
        ("h1", "high"),
        ("l2", "low"),
        ("h2", "high"),
        ("n2", "normal"),
    ] {
        publish(&queue, fixture.job(name, &[("ebb-priority", priority)])).await;
    }
    fixture.assert_takes(&queue, 3, &["h1", "h2", "n1"]).await;
    fixture.assert_takes(&queue, 9, &["n2", "l1", "l2"]).await;
}

pub async fn a_delayed_or_retried_job_comes_back_with_its_priority(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    fixture.publish(&queue, &["n1"]).await;
    let high = [("ebb-priority", "high")];
    publish(&queue, fixture.job("h1", &high)).await;
    publish(&queue, fixture.job("h2", &[high[0], ("ebb-delay", &words(fixture.short()))])).await;
    let first = fixture.take(&queue, 1).await.remove(0);
    settle(&queue, first.retry(fixture.short(), "again")).await;
    publish(&queue, fixture.job("h3", &high)).await;
    fixture.pass_by(fixture.short()).await;
    // All of them, before the first is taken.
    fixture.assert_counts(&queue, [4, 0, 0, 0]).await;
    fixture.assert_takes(&queue, 9, &["h1", "h2", "h3", "n1"]).await;
}
