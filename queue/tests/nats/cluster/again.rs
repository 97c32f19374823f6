//! A job that comes again: of an id that is asked for and not known a cluster believes for a while that it
//! is about to be stored, and stores nothing by it.

use std::time::Duration;

use ebb_queue::Settled;
use ebb_servers::{NatsCluster, NatsVersion};
use tokio::time::timeout;

use super::{on_cluster, on_its_own};
use crate::{LONG, job, receive, try_open, until, until_ok};

async fn assert_is_put_back(cluster: &NatsCluster) {
    let url = format!("{}?queue=again&replicas=3&lease=3s", cluster.url());
    let (lost, next) = (try_open(&url).await.unwrap(), try_open(&url).await.unwrap());
    until_ok(async || next.publish(vec![job("a")]).await).await;
    drop(until_ok(async || receive(&lost, 1).await).await);
    let again = until_ok(async || receive(&next, 1).await).await.remove(0);
    assert_eq!(again.attempt, 2);
    let back = [again.retry(Duration::ZERO, "again")];
    // Servers that have no time for each other answer nobody for some seconds.
    let settled = timeout(LONG, until_ok(async || Ok(next.settle(&back).await?))).await;
    assert_eq!(settled.expect("it is put back"), [Settled::Held]);
    let last = until_ok(async || receive(&next, 1).await).await.remove(0);
    assert_eq!(last.attempt, 3);
    let done = [last.ack()];
    until_ok(async || Ok(next.settle(&done).await?)).await;
    until("nothing is left", async || until_ok(async || next.depth().await).await.ready == 0).await;
}

#[test]
fn a_job_that_was_taken_over_is_put_back_at_once() {
    on_cluster(async |cluster| assert_is_put_back(cluster).await);
    on_its_own(NatsVersion::Oldest, assert_is_put_back);
}
