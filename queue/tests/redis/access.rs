//! Who may do what, and what is said to those who may not.

use std::time::Duration;

use ebb_queue::{
    Error, ErrorKind, JobState, Missing, OpenOptions, Phase, QueueUrl, Settled, Timestamp,
    WorkerStatus,
};
use ebb_servers::{Redis, RedisOptions};
use futures::StreamExt;

use crate::{handle, job, plain, refusal, server, tell, url, url_of};

/// What the module says that a scaler needs.
const LOOKER: &str = "%R~ebb:{jobs}* &ebb:{jobs}* +eval_ro +evalsha_ro +time +type +hget +hmget +hlen \
                      +zcard +zcount +zrange +zscore +xlen +xrange +xread +xinfo|stream +subscribe";

/// What it says that a worker needs beside that.
const WORKER: &str = "~ebb:{jobs}* +eval +evalsha +hset +hsetnx +hdel +hincrby +hexists +zadd +zrem \
                      +zremrangebyrank +del +exists +pexpire +xdel +publish";

/// What it says that anybody needs whose URL names a database.
const SELECT: &str = "+select";

/// Lets a user in who has these rights and no others.
async fn admit(server: &Redis, name: &str, rights: &[&str]) -> QueueUrl {
    let rights = rights.join(" ");
    let user = ["ACL", "SETUSER", name, "on", ">secret"].into_iter().chain(rights.split(' '));
    let mut admin = plain(server).await;
    tell::<()>(&mut admin, &user.collect::<Vec<_>>()).await.unwrap();
    url_of(server, &format!("{name}:secret"))
}

fn quick() -> OpenOptions {
    OpenOptions { connect_timeout: Duration::from_millis(700), ..OpenOptions::default() }
}

#[tokio::test]
async fn who_may_only_look_sees_all_and_changes_nothing() {
    let server = server("").await;
    let mut patient = url(&server);
    // Longer than this takes: what is held stays held.
    patient.behavior.lease = Duration::from_secs(60);
    let queue = handle(&patient).await;
    let mut admin = plain(&server).await;
    let url = admit(&server, "scaler", &[LOOKER]).await;
    let refuse = OpenOptions { missing: Missing::Refuse, ..OpenOptions::default() };
    let looker = ebb_queue::open(&url, refuse).await.unwrap();
    let mut told = looker.arrivals().await.unwrap();
    queue.report(&status()).await.unwrap();
    queue.publish(vec![job("a"), job("b")]).await.unwrap();
    let delivery = crate::take(&queue, 1, Duration::ZERO).await.remove(0);
    tokio::time::timeout(Duration::from_secs(30), told.next()).await.unwrap().unwrap();
    let words = ["XADD", "ebb:{jobs}", "*", "body", "x"];
    tell::<String>(&mut admin, &words).await.unwrap();
    let depth = looker.depth().await.unwrap();
    assert_eq!((depth.ready, depth.in_flight), (2, 1));
    assert!(depth.next_due.is_some() && depth.oldest_ready.is_some());
    assert_eq!(looker.workers().await.unwrap(), [status()]);
    let state = async |id: &str| looker.state(&id.parse().unwrap()).await.unwrap();
    assert_eq!(state("a").await, Some(JobState::Running));
    assert_eq!(state("b").await, Some(JobState::Waiting));
    assert_eq!(state("nobody").await, None, "it may be in the inbox");
    let info = looker.info().await.unwrap();
    assert_eq!(info.warnings[0].code, "unknown_durability");
    for refused in [
        looker.publish(vec![job("c")]).await.map(drop),
        looker.settle(&[delivery.ack()]).await.map(drop).map_err(Error::from),
        looker.receive(1.try_into().unwrap(), Duration::ZERO).await.map(drop),
        looker.purge(None).await.map(drop),
        looker.purge_waiting().await.unwrap().next().await.unwrap().map(drop),
    ] {
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(error.to_string().contains("ACL"), "{error}");
    }
    assert_eq!(queue.depth().await.unwrap().ready, 2);
}

#[tokio::test]
async fn a_worker_needs_no_more_than_the_page_says() {
    let server = server("").await;
    let url = admit(&server, "worker", &[LOOKER, WORKER, "~replies +xadd"]).await;
    let queue = handle(&url).await;
    let mut told = queue.arrivals().await.unwrap();
    let mut expiring = job("late");
    expiring.headers.deadline = Some(expiring.enqueued_at);
    expiring.headers.key = Some("k".to_owned());
    queue.publish(vec![job("a"), job("b"), expiring]).await.unwrap();
    told.next().await.unwrap();
    let mut admin = plain(&server).await;
    let words = ["XADD", "ebb:{jobs}", "*", "ebb-id", "c", "body", "x"];
    tell::<String>(&mut admin, &words).await.unwrap();
    let mut deliveries = crate::take(&queue, 9, Duration::from_secs(5)).await;
    // Within a millisecond the server's order and ours may differ.
    deliveries.sort_by_key(|one| one.job.id.to_string());
    let ids: Vec<_> = deliveries.iter().map(|one| one.job.id.as_str()).collect();
    assert_eq!(ids, ["a", "b", "c"]);
    let receipts: Vec<_> = deliveries.iter().map(|one| one.receipt().clone()).collect();
    assert_eq!(queue.extend(&receipts).await.unwrap(), [Settled::Held; 3]);
    let result = crate::answer(&deliveries[0]);
    queue.chunk(&result.id, 1, 0, "piece".into()).await.unwrap();
    queue.put(&result).await.unwrap();
    queue.reply("replies", &result, None).await.unwrap();
    assert_eq!(queue.follow(&result.id, 0).await.unwrap().count().await, 2);
    let mut deliveries = deliveries.into_iter();
    let mut next = || deliveries.next().unwrap();
    let settlements =
        [next().ack(), next().retry(Duration::from_secs(9), "again"), next().reject("bad")];
    assert_eq!(queue.settle(&settlements).await.unwrap(), [Settled::Held; 3]);
    queue.report(&status()).await.unwrap();
    assert_eq!(queue.workers().await.unwrap(), [status()]);
    assert_eq!(queue.redrive(Some(&[result.id])).await.unwrap(), 0);
    assert_eq!(queue.list(9).await.unwrap().len(), 2);
    assert_eq!(queue.redrive(None).await.unwrap(), 2);
    assert_eq!(queue.purge(None).await.unwrap(), 0);
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.ready, depth.in_flight, depth.delayed, depth.dead), (2, 0, 1, 0));
    tell::<String>(&mut admin, &words).await.unwrap();
    let steps = queue.purge_waiting().await.unwrap();
    assert_eq!(
        steps.map(|step| step.unwrap().n_jobs).collect::<Vec<_>>().await.iter().sum::<u64>(),
        4
    );
    let fields: Vec<Vec<(String, String)>> = {
        let words = ["XRANGE", "replies", "-", "+"];
        let entries: Vec<(String, Vec<(String, String)>)> = tell(&mut admin, &words).await.unwrap();
        entries.into_iter().map(|(_, fields)| fields).collect()
    };
    let expected = [
        ("body", "body"),
        ("ebb-id", "a"),
        ("ebb-attempt", "1"),
        ("ebb-outcome", "completed"),
        ("content-type", "text/plain"),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(fields, [expected.to_vec()]);
}

fn status() -> WorkerStatus {
    WorkerStatus {
        id: "one".to_owned(),
        pod: "pod".to_owned(),
        phase: Phase::Idle,
        in_flight: 0,
        slots: 1,
        completed: 0,
        failed: 0,
        batch_time: None,
        cold_start: Vec::new(),
        first_result: None,
        model: "echo".to_owned(),
        at: Timestamp::from_millisecond(1_900_000_000_000).unwrap(),
    }
}

#[tokio::test]
async fn who_may_not_listen_is_told_so_at_once() {
    let server = server("").await;
    handle(&url(&server)).await;
    for right in [" +subscribe", " +xread", " &ebb:{jobs}*"] {
        let user = format!("without{}", right.trim().replace(['+', '&', '{', '}', ':', '*'], "-"));
        let url = admit(&server, &user, &[&LOOKER.replace(right, "")]).await;
        let queue = handle(&url).await;
        let start = tokio::time::Instant::now();
        let error = queue.arrivals().await.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{right}: {error}");
        // Who only hears nothing is given up after ten.
        assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    }
}

#[tokio::test]
async fn a_wrong_password_and_a_wrong_database_are_named() {
    let options =
        RedisOptions { password: Some("right".to_owned()), ..ebb_servers::RedisOptions::default() };
    let server = ebb_servers::Redis::start(options).await.unwrap();
    for (who, part) in [
        (":wrong@".to_owned(), "password"),
        (String::new(), "password"),
        ("nobody:right@".to_owned(), "password"),
    ] {
        let url = format!("redis://{who}127.0.0.1:{}", server.port()).parse().unwrap();
        let error = refusal(&url, OpenOptions::default()).await;
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
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
    // By itself it is given up after more than nine.
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
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
    // A single try to connect may take five; a busy machine may be slow once or twice.
    let (bound, mut times) = (Duration::from_millis(4_500), Vec::new());
    while times.len() < 3 && times.iter().all(|time| *time >= bound) {
        let start = tokio::time::Instant::now();
        let error = refusal(&url, quick()).await;
        times.push(start.elapsed());
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }
    assert!(times.iter().any(|time| *time < bound), "{times:?}");
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
    let mut error = refusal(&url(&replica), quick()).await;
    if !error.to_string().contains("replica") {
        // On a slow machine the time was over before anybody had answered.
        error = refusal(&url(&replica), OpenOptions::default()).await;
    }
    assert!(error.to_string().contains("replica"), "{error}");
}

#[tokio::test]
async fn a_database_of_its_own_takes_one_right_more() {
    let server = server("").await;
    for (name, rights, is_enough) in
        [("without", &[LOOKER, WORKER][..], false), ("with", &[LOOKER, WORKER, SELECT], true)]
    {
        admit(&server, name, rights).await;
        let url = format!("redis://{name}:secret@127.0.0.1:{}/1", server.port()).parse().unwrap();
        if is_enough {
            let queue = handle(&url).await;
            queue.publish(vec![job("a")]).await.unwrap();
            assert_eq!(crate::take(&queue, 1, Duration::ZERO).await.len(), 1);
        } else {
            let error = refusal(&url, quick()).await;
            assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
            assert!(error.to_string().contains("ACL"), "{error}");
        }
    }
}
