//! Two of three servers are gone, and the third was away while they worked: what it knows is old.

use std::num::NonZeroUsize;
use std::time::Duration;

use ebb_queue::{Delivery, Queue};
use ebb_servers::NatsCluster;
use tokio::time::{Instant, sleep};

use super::{leader, on_cluster, replicated, streams};
use crate::{LONG, job, until, until_ok};

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
        assert_eq!(until_ok(async || scaler.depth().await).await.ready, 0);
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
        until("it connects", async || producer.link().is_up() && scaler.link().is_up()).await;
        let end = Instant::now() + ALONE;
        tokio::join!(
            assert_nothing_is_known(&producer, end),
            assert_nothing_is_known(&scaler, end)
        );

        cluster.mend().await.unwrap();
        until_ok(async || producer.publish(vec![job("later")]).await).await;
        assert_eq!(until_ok(async || scaler.depth().await).await.ready, 3);
        assert_all_are_done(&scaler, &["a", "b", "later"]).await;
        assert_catches_up(cluster, stale).await;
        // One that comes back may lead a lane anew, and the lane answers nobody until it does.
        let rest = until_ok(async || Ok(scaler.receive(NonZeroUsize::MIN, Duration::ZERO).await?));
        assert!(rest.await.is_empty());
    });
}

/// A lane may hand out one now and another when it has caught up, and what was handed out to nobody comes
/// back with its lease: each comes, and no other.
async fn assert_all_are_done(queue: &Queue, names: &[&str]) {
    let (max, mut done) = (NonZeroUsize::new(9).unwrap(), Vec::new());
    let end = Instant::now() + 2 * LONG;
    while done.len() < names.len() {
        assert!(Instant::now() < end, "all are handed out: {done:?}");
        let wait = Duration::from_secs(1);
        let deliveries = until_ok(async || queue.receive(max, wait).await).await;
        done.extend(deliveries.iter().map(|one| one.job.id.to_string()));
        let acks: Vec<_> = deliveries.into_iter().map(Delivery::ack).collect();
        until_ok(async || Ok(queue.settle(&acks).await?)).await;
    }
    done.sort_unstable();
    assert_eq!(done, names);
}

/// The one that was away has all that the others have.
async fn assert_catches_up(cluster: &NatsCluster, stale: usize) {
    let streams = streams(cluster).await;
    until("it has caught up", async || {
        let Ok(jobs) = streams.get_stream("EBB_JOBS_quorum").await else { return false };
        let Some(keepers) = jobs.cached_info().cluster.clone() else { return false };
        let name = format!("n{stale}");
        keepers.leader.as_deref() == Some(&*name)
            || keepers.replicas.iter().any(|one| one.name == name && one.current)
    })
    .await;
}
