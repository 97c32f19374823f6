//! Who may do what, and what is said to those who may not.

use std::time::Duration;

use ebb_queue::{ErrorKind, Missing, OpenOptions, Phase, QueueUrl, WorkerStatus};
use futures::StreamExt;

use crate::{handle, job, plain, refusal, server, tell, url, url_of};

/// What the module says that a scaler needs.
const LOOKER: &[&str] = &[
    "+eval_ro",
    "+evalsha_ro",
    "+hello",
    "+time",
    "+type",
    "+exists",
    "+get",
    "+hget",
    "+hmget",
    "+zcard",
    "+zcount",
    "+zrange",
    "+zscore",
    "+xlen",
    "+xrange",
    "+xread",
    "+xinfo|stream",
    "+subscribe",
    "%R~ebb:{jobs}*",
    "&ebb:{jobs}*",
];

fn quick() -> OpenOptions {
    OpenOptions { connect_timeout: Duration::from_millis(700), ..OpenOptions::default() }
}

#[tokio::test]
async fn who_may_only_look_sees_all_and_changes_nothing() {
    let server = server("").await;
    let queue = handle(&url(&server)).await;
    let mut admin = plain(&server).await;
    let user = [&["ACL", "SETUSER", "scaler", "on", ">secret"][..], LOOKER].concat();
    tell::<()>(&mut admin, &user).await.unwrap();
    let url = url_of(&server, "scaler:secret");
    let refuse = OpenOptions { missing: Missing::Refuse, ..OpenOptions::default() };
    let looker = ebb_queue::open(&url, refuse).await.unwrap();
    let mut told = looker.arrivals().await.unwrap();
    let at = ebb_queue::Timestamp::from_millisecond(1_900_000_000_000).unwrap();
    let status = WorkerStatus {
        id: "one".to_owned(),
        pod: "pod".to_owned(),
        phase: Phase::Idle,
        in_flight: 0,
        slots: 1,
        completed: 0,
        failed: 0,
        batch_time: None,
        cold_start: Vec::new(),
        model: "echo".to_owned(),
        at,
    };
    queue.report(&status).await.unwrap();
    queue.publish(vec![job("a"), job("b")]).await.unwrap();
    let delivery = crate::take(&queue, 1, Duration::ZERO).await.remove(0);
    tokio::time::timeout(Duration::from_secs(5), told.next()).await.unwrap().unwrap();
    let words = ["XADD", "ebb:{jobs}", "*", "body", "x"];
    tell::<String>(&mut admin, &words).await.unwrap();
    let depth = looker.depth().await.unwrap();
    assert_eq!((depth.ready, depth.in_flight), (2, 1));
    assert!(depth.next_due.is_some() && depth.oldest_ready.is_some());
    assert_eq!(looker.workers().await.unwrap(), [status]);
    let info = looker.info().await.unwrap();
    assert_eq!(info.warnings[0].code, "unknown_durability");
    for refused in [
        looker.publish(vec![job("c")]).await.map(drop),
        looker.settle(&[delivery.ack()]).await.map(drop),
        looker.receive(1.try_into().unwrap(), Duration::ZERO).await.map(drop),
        looker.purge(None).await.map(drop),
    ] {
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains("ACL"), "{error}");
    }
    assert_eq!(queue.depth().await.unwrap().ready, 2);
}

#[tokio::test]
async fn a_wrong_password_and_a_wrong_database_are_named() {
    let options = ebb_servers::RedisOptions {
        password: Some("right".to_owned()),
        ..ebb_servers::RedisOptions::default()
    };
    let server = ebb_servers::Redis::start(options).await.unwrap();
    for (who, part) in [
        (":wrong@".to_owned(), "password"),
        (String::new(), "password"),
        ("nobody:right@".to_owned(), "password"),
    ] {
        let url = format!("redis://{who}127.0.0.1:{}", server.port()).parse().unwrap();
        let error = refusal(&url, OpenOptions::default()).await;
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains(part), "{error}");
        assert!(!error.to_string().contains("wrong"), "{error}");
    }
    let url: QueueUrl = format!("{}/99", server.url()).parse().unwrap();
    let error = refusal(&url, OpenOptions::default()).await;
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(error.to_string().contains("database"), "{error}");
    handle(
        &url.to_string()
            .replace("/99", "/3")
            .replace("redis://", "redis://:right@")
            .parse()
            .unwrap(),
    )
    .await;
}

#[tokio::test]
async fn a_password_that_changes_is_read_again() {
    let server = server("").await;
    let mut admin = plain(&server).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "first\n").unwrap();
    let user = |password: &'static str| {
        ["ACL", "SETUSER", "me", "on", "resetpass", password, "~*", "&*", "+@all"]
    };
    tell::<()>(&mut admin, &user(">first")).await.unwrap();
    let url = format!("redis://me@127.0.0.1:{}?password_file={}", server.port(), file.display());
    let queue = handle(&url.parse().unwrap()).await;
    std::fs::write(&file, "second\n").unwrap();
    tell::<()>(&mut admin, &user(">second")).await.unwrap();
    let words = ["CLIENT", "KILL", "USER", "me"];
    tell::<u64>(&mut admin, &words).await.unwrap();
    assert_eq!(queue.depth().await.unwrap().ready, 0);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named_in_time() {
    let url: QueueUrl = "redis://127.0.0.1:9".parse().unwrap();
    let start = tokio::time::Instant::now();
    let error = refusal(&url, quick()).await;
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    for part in ["127.0.0.1:9", "is it running"] {
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_is_stopped_is_given_up_in_time() {
    let server = server("").await;
    let url = url(&server);
    server.pause().unwrap();
    let start = tokio::time::Instant::now();
    let error = refusal(&url, quick()).await;
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    server.resume().unwrap();
    handle(&url).await;
}

#[tokio::test]
async fn of_several_hosts_the_first_that_is_a_master_is_taken() {
    let master = server("").await;
    let replica = server(&format!("replicaof 127.0.0.1 {}\n", master.port())).await;
    let hosts = format!("127.0.0.1:9,127.0.0.1:{},127.0.0.1:{}", replica.port(), master.port());
    let queue = handle(&format!("redis://{hosts}").parse().unwrap()).await;
    queue.publish(vec![job("a")]).await.unwrap();
    assert_eq!(handle(&url(&master)).await.depth().await.unwrap().ready, 1);
    let error = refusal(&url(&replica), quick()).await;
    assert!(error.to_string().contains("replica"), "{error}");
}

#[tokio::test]
async fn the_node_of_a_cluster_that_has_the_queue_is_found() {
    let one = server("cluster-enabled yes\n").await;
    let two = server("cluster-enabled yes\n").await;
    let (mut first, mut second) = (plain(&one).await, plain(&two).await);
    let slots = ["CLUSTER", "ADDSLOTSRANGE", "0", "8191"];
    tell::<()>(&mut first, &slots).await.unwrap();
    let slots = ["CLUSTER", "ADDSLOTSRANGE", "8192", "16383"];
    tell::<()>(&mut second, &slots).await.unwrap();
    let port = two.port().to_string();
    tell::<()>(&mut first, &["CLUSTER", "MEET", "127.0.0.1", &port]).await.unwrap();
    for node in [&mut first, &mut second] {
        crate::eventually("the cluster is up", async || {
            let state: String = tell(node, &["CLUSTER", "INFO"]).await.unwrap();
            state.contains("cluster_state:ok")
        })
        .await;
    }
    for name in ["jobs", "other", "third", "fourth"] {
        let from_one = handle(&url(&one).with_queue(name).unwrap()).await;
        let from_two = handle(&url(&two).with_queue(name).unwrap()).await;
        from_one.publish(vec![job("a")]).await.unwrap();
        assert_eq!(crate::take(&from_two, 9, Duration::from_secs(5)).await.len(), 1, "{name}");
    }
}
