//! A job that comes again: of an id that is asked for and not known an older cluster believes for a while
//! that it is about to be stored, and stores nothing by it.

use std::time::Duration;

use ebb_queue::{Cancelled, Job, JobId, Queue, Settled};
use ebb_servers::{NatsCluster, NatsVersion};
use tokio::time::{Instant, sleep, timeout};

use super::{on_cluster, on_its_own, replicated, streams};
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

/// A cluster looks whether an id is known before it looks whether there is room, and an older one believes then
/// that it is about to be stored.
async fn assert_is_handed_out_where_the_stream_is_full(cluster: &NatsCluster) {
    let url = format!("{}?queue=full&replicas=3&lease=3s", cluster.url());
    let (first, next) = (try_open(&url).await.unwrap(), try_open(&url).await.unwrap());
    let large = Job { body: vec![7; 100_000].into(), ..job("a") };
    until_ok(async || first.publish(vec![large.clone()]).await).await;
    let taken = until_ok(async || receive(&first, 1).await).await.remove(0);
    let streams = streams(cluster).await;
    let mut stream = streams.get_stream("EBB_JOBS_full").await.unwrap();
    let info = stream.info().await.unwrap();
    let mut config = info.config.clone();
    config.max_bytes = i64::try_from(info.state.bytes).unwrap() + 50_000;
    streams.update_stream(&config).await.unwrap();
    first.settle(&[taken.retry(Duration::ZERO, "again")]).await.unwrap_err();
    let end = Instant::now() + LONG;
    let again = loop {
        assert!(Instant::now() < end, "it is handed out");
        match receive(&next, 1).await {
            Ok(mut taken) if !taken.is_empty() => break taken.remove(0),
            // Servers that have no time for each other answer nobody for some seconds.
            _ => sleep(Duration::from_millis(50)).await,
        }
    };
    assert_eq!(again.attempt, 2);
    let done = [again.ack()];
    until_ok(async || Ok(next.settle(&done).await?)).await;
}

#[test]
fn a_job_that_a_cluster_has_no_room_to_store_anew_is_handed_out_all_the_same() {
    on_cluster(async |cluster| assert_is_handed_out_where_the_stream_is_full(cluster).await);
    on_its_own(NatsVersion::Oldest, assert_is_handed_out_where_the_stream_is_full);
}

/// What waits is found by its id, and of an id that is not known nobody believes anything.
async fn assert_is_cancelled(cluster: &NatsCluster, name: &str) -> Queue {
    let queue = replicated(cluster, name).await;
    until_ok(async || queue.publish(vec![job("waits")]).await).await;
    let cancel = async |id: JobId| until_ok(async || queue.cancel(&id).await).await;
    assert_eq!(cancel("waits".parse().unwrap()).await, Cancelled::Waiting);
    assert_eq!(cancel("unknown".parse().unwrap()).await, Cancelled::Marked);
    queue
}

#[test]
fn what_is_cancelled_before_a_cluster_knows_it_can_be_published_at_once() {
    on_cluster(async |cluster| {
        let queue = assert_is_cancelled(cluster, "cancelled").await;
        let begin = Instant::now();
        let published = until_ok(async || queue.publish(vec![job("unknown")]).await).await;
        assert!(!published[0].duplicate && begin.elapsed() < LONG, "{published:?}");
    });
    // Older ones believe for two minutes that it is being stored.
    on_its_own(NatsVersion::Oldest, async |cluster| {
        drop(assert_is_cancelled(cluster, "cancelled").await);
    });
}
