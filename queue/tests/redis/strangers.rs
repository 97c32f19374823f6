//! What plain producers write is a job like any other.

use std::time::Duration;

use ebb_queue::{
    Cancelled, Delivery, ErrorKind, Failure, JobState, OpenOptions, Outcome, PayloadsUrl, Priority,
    Queue,
};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use redis::aio::MultiplexedConnection;

use crate::{answer, handle, job, plain, server, take, tell, url};

const SOON: Duration = Duration::from_secs(30);

/// Who looked once a second would be later than that at the median.
const AT_ONCE: Duration = Duration::from_millis(100);

#[tokio::test]
async fn an_entry_without_headers_is_a_job() {
    let server = server("").await;
    let queue = handle(&url(&server)).await;
    let mut client = plain(&server).await;
    let words = ["XADD", "ebb:{jobs}", "*", "body", r#"{"input": "hi"}"#];
    let entry: String = tell(&mut client, &words).await.unwrap();
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.ready, depth.oldest_ready.is_some()), (1, true));
    let delivery = take(&queue, 9, Duration::ZERO).await.remove(0);
    assert_eq!(delivery.job.id.as_str(), format!("redis-{entry}"));
    assert_eq!((&*delivery.job.body, delivery.attempt), (&br#"{"input": "hi"}"#[..], 1));
    let written: i64 = entry.split('-').next().unwrap().parse().unwrap();
    assert_eq!(delivery.job.enqueued_at.as_millisecond(), written);
    queue.settle(&[delivery.ack()]).await.unwrap();
    assert_eq!(queue.depth().await.unwrap().ready, 0);
    assert_eq!(tell::<u64>(&mut client, &["XLEN", "ebb:{jobs}"]).await.unwrap(), 0);
}

#[tokio::test]
async fn the_headers_of_an_entry_are_honoured() {
    let server = server("").await;
    let mut patient = url(&server);
    // Longer than anything here takes: what is held is not to come back before the last one.
    patient.behavior.lease = Duration::from_secs(60);
    let queue = handle(&patient).await;
    let mut client = plain(&server).await;
    for (id, header, value) in [
        ("low", "ebb-priority", "low"),
        ("normal", "ebb-key", "k"),
        ("again", "ebb-key", "k"),
        ("high", "EBB-Priority", "high"),
        ("late", "ebb-ttl", "0"),
        ("later", "ebb-delay", "3s"),
    ] {
        let words = ["XADD", "ebb:{jobs}", "*", "ebb-id", id, header, value, "body", id];
        tell::<String>(&mut client, &words).await.unwrap();
    }
    let deliveries = take(&queue, 99, Duration::ZERO).await;
    let ids: Vec<_> = deliveries.iter().map(|one| one.job.id.as_str()).collect();
    assert_eq!(ids, ["high", "normal", "low"]);
    assert_eq!(deliveries[0].job.headers.priority, Priority::High);
    assert_eq!(queue.depth().await.unwrap().delayed, 1);
    assert_eq!(take(&queue, 9, SOON).await[0].job.id.as_str(), "later");
    let letters = queue.list(9).await.unwrap();
    assert_eq!((letters[0].job.id.as_str(), &*letters[0].reason), ("late", "expired"));
}

#[tokio::test]
async fn entries_and_published_jobs_come_in_the_order_in_which_they_were_written() {
    let server = server("").await;
    let queue = handle(&url(&server)).await;
    let mut client = plain(&server).await;
    for nth in 0..6 {
        let id = format!("{nth}");
        if nth % 2 == 0 {
            queue.publish(vec![job(&id)]).await.unwrap();
        } else {
            let words = ["XADD", "ebb:{jobs}", "*", "ebb-id", &id, "body", "x"];
            tell::<String>(&mut client, &words).await.unwrap();
        }
        // Places are moments: the next is a later one.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let deliveries = take(&queue, 99, Duration::ZERO).await;
    let ids: Vec<_> = deliveries.iter().map(|one| one.job.id.as_str()).collect();
    assert_eq!(ids, ["0", "1", "2", "3", "4", "5"]);
}

#[tokio::test]
async fn an_entry_that_cannot_be_read_is_a_dead_letter_with_its_body() {
    let server = server("").await;
    let queue = handle(&url(&server)).await;
    let mut client = plain(&server).await;
    for words in [
        ["XADD", "ebb:{jobs}", "*", "ebb-id", "a", "ebb-ttl", "soon", "body", "kept"],
        ["XADD", "ebb:{jobs}", "*", "ebb-id", "b", "text", "kept", "input", "kept"],
    ] {
        tell::<String>(&mut client, &words).await.unwrap();
    }
    assert!(take(&queue, 9, Duration::ZERO).await.is_empty());
    let letters = queue.list(9).await.unwrap();
    let found: Vec<_> = letters.iter().map(|one| (one.job.id.as_str(), &*one.job.body)).collect();
    assert_eq!(found, [("b", &b""[..]), ("a", b"kept")]);
    assert!(letters[1].reason.contains("ebb-ttl"), "{}", letters[1].reason);
    assert!(letters[0].reason.contains("body"), "{}", letters[0].reason);
    let result = queue.get(&letters[1].job.id).await.unwrap().unwrap();
    assert_eq!(result.outcome, Outcome::Failed(Failure::invalid(letters[1].reason.clone())));
}

#[tokio::test]
async fn a_reply_does_no_harm_to_the_keys_of_a_queue() {
    let server = server("").await;
    let queue = handle(&url(&server)).await;
    let mut client = plain(&server).await;
    queue.publish(vec![job("a")]).await.unwrap();
    let result = answer(&take(&queue, 1, SOON).await.remove(0));
    for to in ["ebb:{jobs}:dead", "ebb:{other}:line", "ebb:{jobs}:jobs", "ebb:jobs"] {
        let error = queue.reply(to, &result, None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
    assert!(!tell::<bool>(&mut client, &["EXISTS", "ebb:{jobs}:dead"]).await.unwrap());
    assert_eq!(queue.depth().await.unwrap().dead, 0);
    queue.reply("ebb:{next}", &result, None).await.unwrap();
    assert_eq!(tell::<u64>(&mut client, &["XLEN", "ebb:{next}"]).await.unwrap(), 1);
}

#[tokio::test]
async fn an_entry_is_told_to_who_listens_and_wakes_who_waits() {
    let server = server("").await;
    let queue = handle(&url(&server)).await;
    let mut client = plain(&server).await;
    let mut told = handle(&url(&server)).await.arrivals().await.unwrap();
    let mut rounds = Vec::new();
    // A machine that does much else spoils one of them.
    while rounds.len() < 3 && rounds.iter().all(|median| *median >= AT_ONCE) {
        rounds.push(median_wait(&queue, &mut client, &mut told).await);
    }
    assert!(rounds.iter().any(|median| *median < AT_ONCE), "{rounds:?}");
}

/// How long it takes until a listener is told of an entry that somebody waits for: the median of five.
async fn median_wait(
    queue: &Queue,
    client: &mut MultiplexedConnection,
    told: &mut BoxStream<'static, ()>,
) -> Duration {
    let mut waits = Vec::new();
    for _ in 0..5 {
        let waiting = queue.receive(1.try_into().unwrap(), SOON);
        let write = async {
            // Whatever is told without cause comes first.
            crate::hush(told, Duration::from_millis(50)).await;
            let start = tokio::time::Instant::now();
            let words = ["XADD", "ebb:{jobs}", "*", "body", "x"];
            tell::<String>(client, &words).await.unwrap();
            tokio::time::timeout(SOON, told.next()).await.unwrap().unwrap();
            start.elapsed()
        };
        let (deliveries, took) = tokio::join!(waiting, write);
        let acks: Vec<_> = deliveries.unwrap().into_iter().map(Delivery::ack).collect();
        assert_eq!(acks.len(), 1);
        queue.settle(&acks).await.unwrap();
        waits.push(took);
    }
    waits.sort();
    waits[2]
}

#[tokio::test]
async fn what_arrives_while_a_purge_goes_on_stays() {
    let server = server("").await;
    let queue = handle(&url(&server)).await;
    let mut client = plain(&server).await;
    let delayed = |name: &str, more: &[(&str, &str)]| {
        let mut job = job(name);
        more.iter().chain(&[("ebb-delay", "1h")]).for_each(|(name, value)| {
            job.set(name, value).unwrap();
        });
        job
    };
    let early = (0..700).map(|nth| delayed(&format!("early-{nth}"), &[]));
    queue.publish(early.collect()).await.unwrap();
    tell::<String>(&mut client, &["XADD", "ebb:{jobs}", "*", "body", "early"]).await.unwrap();
    let mut steps = queue.purge_waiting().await.unwrap();
    let first = steps.next().await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(2)).await;
    let late = (0..600).map(|nth| match nth % 2 {
        // It is due before all of the others, so that it is met before them.
        0 => {
            let mut job = job(&format!("late-{nth}"));
            job.set("ebb-delay", "10m").unwrap();
            job
        }
        _ => delayed(&format!("late-{nth}"), &[("ebb-ttl", "5m")]),
    });
    queue.publish(late.collect()).await.unwrap();
    tell::<String>(&mut client, &["XADD", "ebb:{jobs}", "*", "body", "late"]).await.unwrap();
    let rest: Vec<_> = steps.try_collect().await.unwrap();
    let n_purged = first.n_jobs + rest.iter().map(|step| step.n_jobs).sum::<u64>();
    assert_eq!(n_purged, 701);
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.ready, depth.delayed), (1, 600));
}

#[tokio::test]
async fn an_entry_that_is_cancelled_before_it_is_found_is_dropped_and_replied_to_once() {
    let server = server("").await;
    let queue = handle(&url(&server)).await;
    let mut client = plain(&server).await;
    for nth in 0..40 {
        let id = format!("a-{nth}");
        let words =
            ["XADD", "ebb:{jobs}", "*", "ebb-id", &id, "ebb-reply-to", "replies", "body", "x"];
        tell::<String>(&mut client, &words).await.unwrap();
    }
    let cancel = async |name: &str| queue.cancel(&name.parse().unwrap()).await.unwrap();
    assert_eq!(cancel("a-0").await, Cancelled::Waiting);
    assert_eq!(cancel("a-39").await, Cancelled::Marked);
    assert_eq!(tell::<u64>(&mut client, &["XLEN", "replies"]).await.unwrap(), 1);
    // One of its name that comes later is a repetition.
    let words =
        ["XADD", "ebb:{jobs}", "*", "ebb-id", "a-39", "ebb-reply-to", "replies", "body", "x"];
    tell::<String>(&mut client, &words).await.unwrap();
    let mut n_taken = 0;
    while n_taken < 38 {
        let taken = take(&queue, 99, SOON).await;
        assert!(taken.iter().all(|one| !["a-0", "a-39"].contains(&one.job.id.as_str())));
        n_taken += taken.len();
    }
    assert_eq!(queue.depth().await.unwrap().ready, 0);
    assert_eq!(tell::<u64>(&mut client, &["XLEN", "replies"]).await.unwrap(), 2);
}

#[tokio::test]
async fn of_long_entries_no_more_than_a_mebibyte_or_so_is_read_at_once() {
    let server = server("").await;
    let queue = handle(&url(&server)).await;
    let mut client = plain(&server).await;
    let long = "x".repeat(300 << 10);
    for nth in 0..20 {
        let id = format!("a-{nth}");
        let words = ["XADD", "ebb:{jobs}", "*", "ebb-id", &id, "ebb-delay", "1h", "body", &long];
        tell::<String>(&mut client, &words).await.unwrap();
    }
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.ready, depth.delayed), (16, 4), "what was not read counts as ready");
    let cancel = async |name: &str| queue.cancel(&name.parse().unwrap()).await.unwrap();
    assert_eq!(cancel("a-0").await, Cancelled::Waiting);
    assert_eq!(cancel("a-19").await, Cancelled::Marked);
    let steps: Vec<_> = queue.purge_waiting().await.unwrap().try_collect().await.unwrap();
    assert_eq!(steps.iter().map(|step| step.n_jobs).sum::<u64>(), 19);
    assert!(steps.iter().all(|step| step.n_jobs <= 5), "each step is as bounded");
}

#[tokio::test]
async fn long_entries_are_all_handed_out() {
    let server = server("").await;
    let mut patient = url(&server);
    patient.behavior.lease = Duration::from_secs(60);
    let queue = handle(&patient).await;
    let mut client = plain(&server).await;
    for nth in 0..12 {
        let (id, body) = (format!("a-{nth}"), "x".repeat(nth * 61_440));
        let words = ["XADD", "ebb:{jobs}", "*", "ebb-id", &id, "body", &body];
        tell::<String>(&mut client, &words).await.unwrap();
    }
    let mut taken = Vec::new();
    while taken.len() < 12 {
        taken.extend(take(&queue, 99, SOON).await);
    }
    let found: Vec<_> = taken.iter().map(|one| one.job.body.len()).collect();
    assert_eq!(found, (0..12).map(|nth| nth * 61_440).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_id_that_reads_like_that_of_an_entry_and_is_none_is_not_known() {
    let server = server("").await;
    let queue = handle(&url(&server)).await;
    for id in [
        "redis-99999999999999999999-1",
        "redis-1-18446744073709551616",
        "redis-18446744073709551615-18446744073709551615",
        "redis-1-000000000000000000000",
        "redis-1",
    ] {
        let id = id.parse().unwrap();
        assert_eq!(queue.state(&id).await.unwrap(), Some(JobState::Unknown), "{id}");
        assert_eq!(queue.cancel(&id).await.unwrap(), Cancelled::Unknown, "{id}");
    }
}

#[tokio::test]
async fn a_purge_misses_nothing_that_falls_due_or_is_read_while_it_goes_on() {
    let server = server("").await;
    let mut patient = url(&server);
    patient.behavior.lease = SOON;
    let queue = handle(&patient).await;
    let mut client = plain(&server).await;
    let mut delayed = job("delayed");
    delayed.set("ebb-delay", "300ms").unwrap();
    queue.publish(vec![delayed]).await.unwrap();
    let mut steps = queue.purge_waiting().await.unwrap();
    for _ in 0..4 {
        steps.next().await.unwrap().unwrap();
    }
    tokio::time::sleep(Duration::from_millis(400)).await;
    steps.try_collect::<Vec<_>>().await.unwrap();
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.ready, depth.delayed), (0, 0));

    for name in ["a", "b"] {
        let words = ["XADD", "ebb:{jobs}", "*", "ebb-id", name, "body", "x"];
        tell::<String>(&mut client, &words).await.unwrap();
    }
    let mut steps = queue.purge_waiting().await.unwrap();
    for _ in 0..6 {
        steps.next().await.unwrap().unwrap();
    }
    // A worker comes, reads what plain clients wrote, and takes a part of it.
    take(&queue, 1, Duration::ZERO).await;
    steps.try_collect::<Vec<_>>().await.unwrap();
    assert_eq!(queue.depth().await.unwrap().ready, 0);
}

#[tokio::test]
async fn a_job_without_its_body_dies_though_its_reply_goes_nowhere() {
    let server = server("").await;
    let folder = tempfile::tempdir().unwrap();
    let payloads = ebb_queue::Payloads::open(&PayloadsUrl::File(folder.path().into())).unwrap();
    let options = OpenOptions { payloads: Some(payloads), ..OpenOptions::default() };
    let queue = ebb_queue::open(&url(&server), options).await.unwrap();
    let mut client = plain(&server).await;
    tell::<()>(&mut client, &["SET", "mine", "no stream"]).await.unwrap();
    let body = r#"{"key":"bodies/x","size":1,"sha256":"00"}"#;
    let mut words = vec!["XADD", "ebb:{jobs}", "*", "ebb-id", "a", "body", body];
    words.extend(["ebb-body-ref", "bodies/x", "ebb-reply-to", "mine"]);
    tell::<String>(&mut client, &words).await.unwrap();
    assert!(take(&queue, 1, Duration::ZERO).await.is_empty());
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.ready, depth.in_flight, depth.dead), (0, 0, 1));
}
