//! Servers that are held up, by a machine that stands still, say: a leader that nobody follows does
//! not know at first that it is none.

use std::num::NonZeroUsize;
use std::time::Duration;

use ebb_queue::{Delivery, Queue};
use ebb_servers::{Nats, NatsCluster, NatsVersion};
use futures::future::join_all;
use tokio::time::sleep;

use super::{leader, replicated_at, streams};
use crate::{block_on, job, until, until_ok};

/// So long requests wait for the leader to go on; without a pause they would not lie there yet.
const WAITING: Duration = Duration::from_millis(300);

const MANY: NonZeroUsize = NonZeroUsize::new(9).unwrap();

#[test]
fn a_leader_that_nobody_follows_takes_nothing_for_stored_and_what_waits_not_for_nothing() {
    block_on(async {
        // Newer servers mostly notice before they answer.
        let cluster = NatsCluster::start(NatsVersion::Oldest).await.unwrap();
        let queues = join_all([0, 1, 2].map(|nth| replicated_at(&cluster, nth, "paused"))).await;
        let place = leader(&streams(&cluster).await, "EBB_JOBS_paused").await;
        assert_what_is_not_stored_is_not_known(&cluster, &queues[place], place).await;
        let place = leader(&streams(&cluster).await, "EBB_JOBS_paused").await;
        let other = &queues[(place + 1) % 3];
        assert_what_waits_is_not_taken_for_nothing(&cluster, &queues[place], other, place).await;
    });
}

/// Holds a server up, and waits until all of its threads stand still.
async fn pause(server: &Nats) {
    server.pause().unwrap();
    let tasks = format!("/proc/{}/task", server.pid().unwrap());
    until("it stands still", async || {
        let mut tasks = std::fs::read_dir(&tasks).unwrap().flatten();
        tasks.all(|task| {
            let stat = std::fs::read_to_string(task.path().join("stat"));
            stat.is_ok_and(|stat| stat.contains(") T "))
        })
    })
    .await;
}

/// The others are held up.
async fn assert_what_is_not_stored_is_not_known(
    cluster: &NatsCluster,
    queue: &Queue,
    place: usize,
) {
    let others = [(place + 1) % 3, (place + 2) % 3];
    for other in others {
        pause(&cluster.nodes()[other]).await;
    }
    for _ in 0..2 {
        let error = queue.publish(vec![job("a")]).await.unwrap_err();
        assert!(error.kind().heals(), "{error}");
    }
    for other in others {
        cluster.nodes()[other].resume().unwrap();
    }
    until_ok(async || queue.publish(vec![job("a")]).await).await;
    // Whether an attempt that was cut off comes to something after all is the server's affair.
    until("all of it is done", async || {
        let deliveries = until_ok(async || queue.receive(MANY, Duration::ZERO).await).await;
        let acks: Vec<_> = deliveries.into_iter().map(Delivery::ack).collect();
        until_ok(async || Ok(queue.settle(&acks).await?)).await;
        let depth = until_ok(async || queue.depth().await).await;
        (depth.ready, depth.in_flight) == (0, 0)
    })
    .await;
}

/// The leader is held up, and another elected.
async fn assert_what_waits_is_not_taken_for_nothing(
    cluster: &NatsCluster,
    scaler: &Queue,
    producer: &Queue,
    place: usize,
) {
    pause(&cluster.nodes()[place]).await;
    for name in ["b", "c"] {
        until_ok(async || producer.publish(vec![job(name)]).await).await;
    }
    let looks = join_all((0..5).map(|_| scaler.depth()));
    let go_on = async {
        sleep(WAITING).await;
        cluster.nodes()[place].resume().unwrap();
    };
    let (looks, ()) = tokio::join!(looks, go_on);
    for look in looks {
        match look {
            Ok(depth) => assert!(depth.ready >= 2, "{depth:?}"),
            Err(error) => assert!(error.kind().heals(), "{error}"),
        }
    }
    assert!(until_ok(async || scaler.depth().await).await.ready >= 2);
}
