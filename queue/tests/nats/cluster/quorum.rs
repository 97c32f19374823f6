//! Two of three servers are gone, and the third was away while they worked: what it knows is old.

use std::num::NonZeroUsize;
use std::time::Duration;

use ebb_queue::Queue;
use ebb_servers::NatsCluster;
use tokio::time::{Instant, sleep};

use super::{leader, on_cluster, replicated, streams};
use crate::{job, receive, until, until_ok};

/// So long it is alone.
const ALONE: Duration = Duration::from_secs(5);
/// No call may take longer to say that nobody is there.
const ANSWER: Duration = Duration::from_secs(10);

/// Nothing is stored and nothing is known, and both are said in time.
async fn assert_nothing_is_known(queue: &Queue, end: Instant) {
    while Instant::now() < end {
        let begin = Instant::now();
        let error = queue.publish(vec![job("later")]).await.unwrap_err();
        assert!(error.kind().heals(), "{error}");
        assert!(begin.elapsed() < ANSWER, "{:?}", begin.elapsed());
        let begin = Instant::now();
        match queue.depth().await {
            Ok(depth) => panic!("nobody can know that: {depth:?}"),
            Err(error) => assert!(error.kind().heals(), "{error}"),
        }
        assert!(begin.elapsed() < ANSWER, "{:?}", begin.elapsed());
        sleep(Duration::from_millis(200)).await;
    }
}

/// A server other than the one that leads the jobs.
async fn follower(cluster: &NatsCluster) -> usize {
    (leader(&streams(cluster).await, "EBB_JOBS_quorum").await + 1) % 3
}

#[test]
fn without_a_majority_nothing_is_known_and_with_it_all_goes_on() {
    on_cluster(async |cluster| {
        let producer = replicated(cluster, "quorum").await;
        let scaler = replicated(cluster, "quorum").await;
        assert_eq!(scaler.depth().await.unwrap().ready, 0);
        let stale = follower(cluster).await;
        let others = [(stale + 1) % 3, (stale + 2) % 3];
        cluster.nodes_mut()[stale].kill();
        for name in ["a", "b"] {
            until_ok(async || producer.publish(vec![job(name)]).await).await;
        }
        for other in others {
            cluster.nodes_mut()[other].kill();
        }
        cluster.nodes_mut()[stale].restart().await.unwrap();
        let end = Instant::now() + ALONE;
        until("it connects", async || producer.link().is_up() && scaler.link().is_up()).await;
        tokio::join!(
            assert_nothing_is_known(&producer, end),
            assert_nothing_is_known(&scaler, end)
        );

        cluster.mend().await.unwrap();
        until_ok(async || producer.publish(vec![job("later")]).await).await;
        assert_eq!(until_ok(async || scaler.depth().await).await.ready, 3);
        let deliveries = until_ok(async || receive(&scaler, 9).await).await;
        assert_eq!(deliveries.len(), 3);
        let acks: Vec<_> = deliveries.into_iter().map(ebb_queue::Delivery::ack).collect();
        until_ok(async || Ok(scaler.settle(&acks).await?)).await;
        assert_catches_up(cluster, stale).await;
        // One that comes back may lead a lane anew, and the lane answers nobody until it does.
        let rest = until_ok(async || Ok(scaler.receive(NonZeroUsize::MIN, Duration::ZERO).await?));
        assert!(rest.await.is_empty());
    });
}

/// The one that was away has all that the others have.
async fn assert_catches_up(cluster: &NatsCluster, stale: usize) {
    let streams = streams(cluster).await;
    until("it has caught up", async || {
        let jobs = streams.get_stream("EBB_JOBS_quorum").await.unwrap();
        let keepers = jobs.cached_info().cluster.clone().unwrap();
        let name = format!("n{stale}");
        keepers.leader.as_deref() == Some(&*name)
            || keepers.replicas.iter().any(|one| one.name == name && one.current)
    })
    .await;
}
