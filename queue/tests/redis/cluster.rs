//! Nodes of a cluster: each has a part of the slots, and a queue lies in one slot.

use std::time::Duration;

use ebb_servers::{Redis, RedisOptions};
use redis::aio::MultiplexedConnection;

use crate::{eventually, handle, job, plain, take, tell, url};

/// A node, and a plain client of it.
type Node = (Redis, MultiplexedConnection);

/// Two nodes with half of the slots each.
async fn cluster() -> [Node; 2] {
    let node = async || {
        let options = RedisOptions { cluster: true, ..RedisOptions::default() };
        let node = Redis::start(options).await.unwrap();
        let client = plain(&node).await;
        (node, client)
    };
    let (mut one, mut two) = (node().await, node().await);
    let slots = ["CLUSTER", "ADDSLOTSRANGE", "0", "8191"];
    tell::<()>(&mut one.1, &slots).await.unwrap();
    let slots = ["CLUSTER", "ADDSLOTSRANGE", "8192", "16383"];
    tell::<()>(&mut two.1, &slots).await.unwrap();
    let (port, bus_port) = (two.0.port().to_string(), two.0.bus_port().to_string());
    let meet = ["CLUSTER", "MEET", "127.0.0.1", &port, &bus_port];
    tell::<()>(&mut one.1, &meet).await.unwrap();
    for (_, client) in [&mut one, &mut two] {
        eventually("the cluster is up", async || {
            let state: String = tell(client, &["CLUSTER", "INFO"]).await.unwrap();
            state.contains("cluster_state:ok")
        })
        .await;
    }
    [one, two]
}

#[tokio::test]
async fn the_node_that_has_the_queue_is_found() {
    let [(one, _), (two, _)] = cluster().await;
    for name in ["jobs", "other", "third", "fourth"] {
        let from_one = handle(&url(&one).with_queue(name).unwrap()).await;
        let from_two = handle(&url(&two).with_queue(name).unwrap()).await;
        from_one.publish(vec![job("a")]).await.unwrap();
        assert_eq!(take(&from_two, 9, Duration::from_secs(30)).await.len(), 1, "{name}");
    }
}
