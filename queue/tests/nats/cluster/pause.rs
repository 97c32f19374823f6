//! Servers that are held up, by a machine that stands still, say: a leader that nobody follows does
//! not know at first that it is none.

use std::num::NonZeroUsize;
use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::stream;
use ebb_queue::{Delivery, ErrorKind, Queue};
use ebb_servers::{Nats, NatsCluster, NatsVersion};
use futures::future::join_all;
use tokio::time::sleep;

use super::{leader, on_its_own, streams};
use crate::foreign::{looked_at, publish, reader, work};
use crate::{job, try_open, until, until_ok};

/// So long requests wait for the leader to go on; without a pause they would not lie there yet.
const WAITING: Duration = Duration::from_millis(300);

/// After so long others may have elected another leader.
const UNFOLLOWED: Duration = Duration::from_secs(4);

const MANY: NonZeroUsize = NonZeroUsize::new(9).unwrap();

#[test]
fn a_leader_that_nobody_follows_takes_nothing_for_stored_and_what_waits_not_for_nothing() {
    // Newer servers mostly notice before they answer.
    on_its_own(NatsVersion::Oldest, async |cluster| {
        assert_what_waits_for_others_is_not_taken_for_nothing(cluster).await;
        let queues = join_all([0, 1, 2].map(|nth| paused_at(cluster, nth))).await;
        let place = leader(&streams(cluster).await, "EBB_JOBS_paused").await;
        assert_what_is_not_stored_is_not_known(cluster, &queues[place], place).await;
        let place = leader(&streams(cluster).await, "EBB_JOBS_paused").await;
        let other = &queues[(place + 1) % 3];
        assert_what_waits_is_not_taken_for_nothing(cluster, &queues[place], other, place).await;
    });
}

/// The queue through one server. What is handed out and not heard of comes back soon.
async fn paused_at(cluster: &NatsCluster, nth: usize) -> Queue {
    let url = cluster.nodes()[nth].url();
    try_open(&format!("{url}?queue=paused&replicas=3&lease=5s")).await.unwrap()
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

/// The one that leads a stream that others made, and its consumer, is cut off: nobody follows it.
async fn assert_what_waits_for_others_is_not_taken_for_nothing(cluster: &NatsCluster) {
    let js = streams(cluster).await;
    let config = stream::Config { num_replicas: 3, ..stream::Config::default() };
    let stream = work(&js, config).await;
    let mut consumer = reader(&stream, "pool", pull::Config::default()).await;
    let info = consumer.info().await.unwrap();
    let leads = info.cluster.as_ref().and_then(|it| it.leader.as_ref()).unwrap();
    let place: usize = leads.trim_start_matches('n').parse().unwrap();
    // Who leads it has to hear of the others first.
    let url = cluster.nodes()[place].url();
    let scaler = until_ok(async || looked_at(&url, "pool").await).await;
    for n_jobs in [0, 1] {
        if n_jobs > 0 {
            publish(&js, "work.a").await;
        }
        until("it is seen", async || {
            let depth = until_ok(async || scaler.depth().await).await;
            (depth.ready, depth.in_flight) == (n_jobs, 0)
        })
        .await;
    }
    let others = [(place + 1) % 3, (place + 2) % 3];
    for other in others {
        pause(&cluster.nodes()[other]).await;
    }
    // Sooner than a server notices by itself.
    sleep(UNFOLLOWED).await;
    let look = scaler.depth().await;
    for other in others {
        cluster.nodes()[other].resume().unwrap();
    }
    let error = look.expect_err("nobody knows how it stands");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert_eq!(until_ok(async || scaler.depth().await).await.ready, 1);
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
