//! Nodes of a cluster: each has a part of the slots, and a queue lies in one slot.

use std::time::Duration;

use ebb_queue::{ErrorKind, Foreign, OpenOptions, Settled, look_at};
use ebb_servers::{Redis, RedisOptions};
use redis::aio::MultiplexedConnection;
use tokio::time::Instant;

use crate::{answer, eventually, handle, job, plain, take, tell, url};

/// The first slot of the second node.
const BORDER: u16 = 8192;

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

async fn slot(client: &mut MultiplexedConnection, key: &str) -> u16 {
    tell(client, &["CLUSTER", "KEYSLOT", key]).await.unwrap()
}

/// The same two, the one that has the queue `jobs` first.
fn in_order([one, two]: [Node; 2], slot_of_jobs: u16) -> [Node; 2] {
    if slot_of_jobs < BORDER { [one, two] } else { [two, one] }
}

/// Streams in other slots than the queue: one on its node, one on the other.
async fn near_and_far(client: &mut MultiplexedConnection) -> [String; 2] {
    let slot_of_jobs = slot(client, "ebb:{jobs}").await;
    let (mut near, mut far) = (None, None);
    for nth in 0.. {
        let name = format!("replies-{nth}");
        let slot = slot(client, &name).await;
        let is_near = (slot < BORDER) == (slot_of_jobs < BORDER);
        if slot != slot_of_jobs {
            *(if is_near { &mut near } else { &mut far }) = Some(name);
        }
        if near.is_some() && far.is_some() {
            break;
        }
    }
    [near.unwrap(), far.unwrap()]
}

#[tokio::test]
async fn the_node_that_has_the_queue_is_found() {
    let [(one, mut of_one), (two, mut of_two)] = cluster().await;
    for name in ["jobs", "other", "third", "fourth"] {
        let from_one = handle(&url(&one).with_queue(name).unwrap()).await;
        let from_two = handle(&url(&two).with_queue(name).unwrap()).await;
        from_one.publish(vec![job("a")]).await.unwrap();
        assert_eq!(take(&from_two, 9, Duration::from_secs(30)).await.len(), 1, "{name}");
        // So is the one that has a stream of others.
        let owner = if slot(&mut of_one, name).await < BORDER { &mut of_one } else { &mut of_two };
        tell::<()>(owner, &["XGROUP", "CREATE", name, "g", "0", "MKSTREAM"]).await.unwrap();
        tell::<String>(owner, &["XADD", name, "*", "body", "x"]).await.unwrap();
        let foreign = Foreign { stream: name.into(), reader: "g".into() };
        let seen = look_at(&url(&one), &foreign, OpenOptions::default()).await.unwrap();
        assert_eq!(seen.depth().await.unwrap().ready, 1, "{name}");
    }
}

/// What the two nodes are told while a slot moves, until it does after all, or does not.
async fn set_slot(nodes: [&mut MultiplexedConnection; 2], slot: u16, words: [&[&str]; 2]) {
    for (node, words) in nodes.into_iter().zip(words) {
        let slot = slot.to_string();
        let all = [&["CLUSTER", "SETSLOT", &slot][..], words].concat();
        tell::<()>(node, &all).await.unwrap();
    }
}

#[tokio::test]
async fn a_reply_waits_while_the_slot_of_its_stream_moves() {
    let mut nodes = cluster().await;
    let slot_of_jobs = slot(&mut nodes[0].1, "ebb:{jobs}").await;
    let [(old, mut here), (_new, mut there)] = in_order(nodes, slot_of_jobs);
    let queue = handle(&url(&old)).await;
    queue.publish(vec![job("a")]).await.unwrap();
    let result = answer(&take(&queue, 1, Duration::from_secs(30)).await.remove(0));
    let [near, _] = near_and_far(&mut here).await;
    let mut ids = Vec::new();
    for node in [&mut here, &mut there] {
        ids.push(tell::<String>(node, &["CLUSTER", "MYID"]).await.unwrap());
    }
    // One in the slot of the queue, which stays in the end, and one that moves without it.
    for to in ["{jobs}:replies".to_owned(), near] {
        let slot = slot(&mut here, &to).await;
        let begun = [&["MIGRATING", &ids[1]][..], &["IMPORTING", &ids[0]]];
        set_slot([&mut here, &mut there], slot, begun).await;
        let mut reply = std::pin::pin!(queue.reply(&to, &result, None));
        let early = tokio::time::timeout(Duration::from_millis(300), &mut reply).await;
        assert!(early.is_err(), "{to}: {early:?}");
        if slot == slot_of_jobs {
            set_slot([&mut here, &mut there], slot, [&["STABLE"], &["STABLE"]]).await;
            reply.await.unwrap();
            assert_eq!(tell::<u64>(&mut here, &["XLEN", &to]).await.unwrap(), 1);
        } else {
            let moved: &[&str] = &["NODE", &ids[1]];
            set_slot([&mut there, &mut here], slot, [moved; 2]).await;
            let error = reply.await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        }
    }
}

#[tokio::test]
async fn a_reply_to_a_stream_on_another_node_is_refused_with_the_remedy() {
    let mut nodes = cluster().await;
    let slot_of_jobs = slot(&mut nodes[0].1, "ebb:{jobs}").await;
    let [(_here, mut here), (there, _)] = in_order(nodes, slot_of_jobs);
    let queue = handle(&url(&there)).await;
    queue.publish(vec![job("a")]).await.unwrap();
    let delivery = take(&queue, 1, Duration::from_secs(30)).await.remove(0);
    let result = answer(&delivery);
    let [near, far] = near_and_far(&mut here).await;
    let mut soonest = Duration::MAX;
    for _ in 0..3 {
        let start = Instant::now();
        let error = queue.reply(&far, &result, None).await.unwrap_err();
        soonest = soonest.min(start.elapsed());
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        for part in ["ebb-reply-to", &far, "{jobs}"] {
            assert!(error.to_string().contains(part), "{error}");
        }
    }
    // Who tried again would do so for five seconds each time.
    assert!(soonest < Duration::from_secs(4), "{soonest:?}");
    // Nothing is wrong with the connection.
    assert_eq!((queue.link().n_losses(), queue.link().is_up()), (0, true));
    for to in [&near, &format!("{{jobs}}:{far}")] {
        queue.reply(to, &result, None).await.unwrap();
        assert_eq!(tell::<u64>(&mut here, &["XLEN", to]).await.unwrap(), 1, "{to}");
    }
    assert_eq!(queue.settle(&[delivery.ack()]).await.unwrap(), [Settled::Held]);
    // The same for jobs that nobody answers: they die, wherever they asked for a reply.
    let late = [&near, &far].map(|to| {
        let mut late = job(to);
        late.set("ebb-ttl", "0").unwrap();
        late.set("ebb-reply-to", to).unwrap();
        late
    });
    queue.publish(late.to_vec()).await.unwrap();
    assert!(take(&queue, 9, Duration::ZERO).await.is_empty());
    assert_eq!(queue.depth().await.unwrap().dead, 2);
    assert_eq!(tell::<u64>(&mut here, &["XLEN", &near]).await.unwrap(), 2);
    assert_eq!((queue.link().n_losses(), queue.link().is_up()), (0, true));
}

#[tokio::test]
async fn a_reply_finds_its_stream_where_the_queue_has_moved_to() {
    let mut nodes = cluster().await;
    let slot_of_jobs = slot(&mut nodes[0].1, "ebb:{jobs}").await;
    let [(here, mut old), (_there, mut new)] = in_order(nodes, slot_of_jobs);
    let queue = handle(&url(&here)).await;
    queue.publish(vec![job("a")]).await.unwrap();
    let result = answer(&take(&queue, 1, Duration::from_secs(30)).await.remove(0));
    let [near, _] = near_and_far(&mut old).await;
    let heir: String = tell(&mut new, &["CLUSTER", "MYID"]).await.unwrap();
    // A slot with keys in it stays where it is.
    tell::<()>(&mut old, &["FLUSHALL"]).await.unwrap();
    for slot in [slot_of_jobs, slot(&mut old, &near).await] {
        for client in [&mut new, &mut old] {
            let words = ["CLUSTER", "SETSLOT", &slot.to_string(), "NODE", &heir];
            tell::<()>(client, &words).await.unwrap();
        }
    }
    queue.reply(&near, &result, None).await.unwrap();
    assert_eq!(tell::<u64>(&mut new, &["XLEN", &near]).await.unwrap(), 1);
    assert_eq!(queue.link().n_losses(), 1);
}

#[tokio::test]
async fn no_script_is_cut_off_midway_while_the_slot_of_its_queue_moves() {
    let mut nodes = cluster().await;
    let slot_of_jobs = slot(&mut nodes[0].1, "ebb:{jobs}").await;
    let [(old, mut here), (_new, mut there)] = in_order(nodes, slot_of_jobs);
    let mut patient = url(&old);
    patient.behavior.lease = Duration::from_secs(60);
    let queue = handle(&patient).await;
    // A plain client used the queue once, so that its stream is there; and nothing is ready.
    let entry: String = tell(&mut here, &["XADD", "ebb:{jobs}", "*", "body", "x"]).await.unwrap();
    tell::<()>(&mut here, &["XDEL", "ebb:{jobs}", &entry]).await.unwrap();
    queue.publish(vec![job("done"), job("held")]).await.unwrap();
    let deliveries = take(&queue, 9, Duration::ZERO).await;
    let [done, held] = deliveries.try_into().unwrap();
    queue.settle(&[done.ack()]).await.unwrap();
    let mut ids = Vec::new();
    for node in [&mut here, &mut there] {
        ids.push(tell::<String>(node, &["CLUSTER", "MYID"]).await.unwrap());
    }
    let begun = [&["MIGRATING", &ids[1]][..], &["IMPORTING", &ids[0]]];
    set_slot([&mut here, &mut there], slot_of_jobs, begun).await;
    let ack = [held.ack()];
    let published = queue.publish(vec![job("x")]).await.map(drop);
    let settled = queue.settle(&ack).await.map(drop).map_err(ebb_queue::Error::from);
    set_slot([&mut here, &mut there], slot_of_jobs, [&["STABLE"], &["STABLE"]]).await;
    let published_again = queue.publish(vec![job("x")]).await.unwrap();
    assert!(!published_again[0].duplicate, "none of the first was done: {published:?}");
    for refused in [published, settled] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unavailable);
    }
    assert_eq!(queue.settle(&ack).await.unwrap(), [Settled::Held]);
    let taken = take(&queue, 9, Duration::ZERO).await;
    assert_eq!(taken.iter().map(|one| one.job.id.as_str()).collect::<Vec<_>>(), ["x"]);
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.ready, depth.in_flight), (0, 1));
}
