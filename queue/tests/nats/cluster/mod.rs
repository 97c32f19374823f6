//! Three servers that keep three replicas of each stream.

mod again;
mod idle;
mod leader;
mod pause;
mod quorum;
mod reads;

use std::time::Duration;

use async_nats::jetstream::{self, Context};
use ebb_queue::{ErrorKind, Queue};
use ebb_servers::{NatsCluster, NatsVersion};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

use crate::{in_time, refusal, runtime, try_open, try_open_within};

/// The one of this program: each start costs seconds.
static CLUSTER: Mutex<Option<NatsCluster>> = Mutex::const_new(None);

/// Servers that elect leaders while others take the processor need patience. The time of a test begins
/// when its servers are up and no other test has them.
const LIMIT: Duration = Duration::from_secs(180);

/// Runs a test on a cluster all of which is up; one at a time, since they kill servers.
fn on_cluster(test: impl AsyncFnOnce(&mut NatsCluster)) {
    runtime().block_on(async {
        let mut shared = CLUSTER.lock().await;
        if shared.is_none() {
            *shared = Some(NatsCluster::start(NatsVersion::Newest).await.unwrap());
        }
        let cluster = shared.as_mut().unwrap();
        cluster.mend().await.unwrap();
        in_time(LIMIT, test(cluster)).await;
    });
}

/// Runs a test on a cluster of its own, of this version, while the other rests.
fn on_its_own(version: NatsVersion, test: impl AsyncFnOnce(&NatsCluster)) {
    runtime().block_on(async {
        let _other = CLUSTER.lock().await;
        let cluster = NatsCluster::start(version).await.unwrap();
        in_time(LIMIT, test(&cluster)).await;
    });
}

/// The queue of this name with three replicas, through any of the servers.
async fn replicated(cluster: &NatsCluster, name: &str) -> Queue {
    try_open(&format!("{}?queue={name}&replicas=3", cluster.url())).await.unwrap()
}

/// The same through one of them, as long as it lives.
async fn replicated_at(cluster: &NatsCluster, nth: usize, name: &str) -> Queue {
    let url = cluster.nodes()[nth].url();
    try_open(&format!("{url}?queue={name}&replicas=3")).await.unwrap()
}

async fn streams(cluster: &NatsCluster) -> Context {
    let hosts = cluster.url();
    let hosts: Vec<_> = hosts.trim_start_matches("nats://").split(',').collect();
    jetstream::new(async_nats::connect(hosts).await.unwrap())
}

/// The place of the server that leads a stream, once there is one that answers.
async fn leader(streams: &Context, stream: &str) -> usize {
    loop {
        let asked = timeout(Duration::from_secs(1), streams.get_stream(stream)).await;
        if let Ok(Ok(found)) = asked
            && let Some(leader) =
                found.cached_info().cluster.as_ref().and_then(|it| it.leader.as_ref())
        {
            return leader.trim_start_matches('n').parse().unwrap();
        }
        sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn more_replicas_than_servers_are_refused_by_their_option() {
    crate::on_each(async |server| {
        let error = refusal(&format!("{}?replicas=3", server.url())).await;
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains("option replicas"), "{error}");
    });
    on_cluster(async |cluster| {
        let url = format!("{}?queue=five&replicas=5", cluster.url());
        let opened = try_open_within(Duration::from_secs(1), &url).await;
        let error = opened.err().expect("three are not five");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.to_string().contains("option replicas"), "{error}");
    });
}
