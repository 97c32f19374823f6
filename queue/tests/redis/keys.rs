//! Keys of others, keys of other versions, and no room for more keys.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use ebb_queue::{
    Cancelled, Clock, Delivery, ErrorKind, Job, JobResult, Missing, OpenOptions, Outcome, QueueUrl,
    Settled, Stored, Timestamp,
};
use ebb_servers::Redis;

use crate::{answer, handle, job, plain, refusal, server, take, tell, url};

#[tokio::test]
async fn a_key_of_somebody_else_is_named_and_left_alone() {
    for key in ["ebb:{jobs}", "ebb:{jobs}:line", "ebb:{jobs}:meta"] {
        let server = server("").await;
        let mut client = plain(&server).await;
        tell::<()>(&mut client, &["SET", key, "mine"]).await.unwrap();
        let error = refusal(&url(&server), OpenOptions::default()).await;
        assert_eq!(error.kind(), ErrorKind::Incompatible, "{error}");
        assert!(error.to_string().contains(key), "{error}");
        assert_eq!(tell::<String>(&mut client, &["GET", key]).await.unwrap(), "mine");
    }
}

#[tokio::test]
async fn another_layout_is_refused() {
    let server = server("").await;
    let mut client = plain(&server).await;
    for (layout, remedy) in [("1", "with the ebb that made it"), ("99", "a newer ebb")] {
        let words = ["HSET", "ebb:{jobs}:meta", "layout", layout];
        tell::<()>(&mut client, &words).await.unwrap();
        let error = refusal(&url(&server), OpenOptions::default()).await;
        assert_eq!(error.kind(), ErrorKind::Incompatible, "{error}");
        assert!(error.to_string().contains(remedy), "{error}");
    }
}

#[tokio::test]
async fn a_queue_that_the_server_lost_is_there_again_once_anybody_uses_it() {
    let server = server("").await;
    let mut client = plain(&server).await;
    let options = || OpenOptions { missing: Missing::Refuse, ..OpenOptions::default() };
    let queue = handle(&url(&server)).await;
    let outcome = Outcome::Failed("no".into());
    let (id, finished_at) = ("a".parse().unwrap(), Timestamp::now());
    let result = JobResult { id, attempt: 1, outcome, finished_at, queue: None };
    for use_it in 0..3 {
        tell::<()>(&mut client, &["FLUSHALL"]).await.unwrap();
        let error = refusal(&url(&server), options()).await;
        assert!(error.to_string().contains("ebb queue init"), "{error}");
        match use_it {
            0 => drop(queue.publish(vec![job("a")]).await.unwrap()),
            1 => assert!(take(&queue, 1, Duration::ZERO).await.is_empty()),
            _ => drop(queue.put(&result).await.unwrap()),
        }
        ebb_queue::open(&url(&server), options()).await.unwrap();
    }
}

#[tokio::test]
async fn who_extends_or_gives_back_a_part_needs_no_room_either() {
    let server = server("maxmemory-policy noeviction\n").await;
    let queue = handle(&url(&server)).await;
    let mut client = plain(&server).await;
    queue.publish(["a", "b", "c"].map(job).into()).await.unwrap();
    let deliveries = take(&queue, 3, Duration::ZERO).await;
    let [first, second, third] = deliveries.try_into().unwrap();
    tell::<()>(&mut client, &["CONFIG", "SET", "maxmemory", "1"]).await.unwrap();
    let extended = queue.extend(&[second.receipt().clone()]).await.unwrap();
    assert_eq!(extended, [Settled::Held]);
    let back = [first.release(), third.ack()];
    assert_eq!(queue.settle(&back).await.unwrap(), [Settled::Held; 2]);
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.ready, depth.in_flight), (1, 1));
    assert_eq!(queue.settle(&[second.ack()]).await.unwrap(), [Settled::Held]);
}

#[tokio::test]
async fn a_full_memory_refuses_new_jobs_and_lets_workers_drain_the_queue() {
    let server = server("maxmemory-policy noeviction\n").await;
    let queue = handle(&url(&server)).await;
    let mut client = plain(&server).await;
    queue.publish(vec![job("a"), job("b")]).await.unwrap();
    let delivery = take(&queue, 1, Duration::ZERO).await.remove(0);
    tell::<()>(&mut client, &["CONFIG", "SET", "maxmemory", "1"]).await.unwrap();
    let error = queue.publish(vec![job("c")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full, "{error}");
    assert!(error.to_string().contains("maxmemory"), "{error}");
    assert_eq!(queue.put(&answer(&delivery)).await.unwrap(), Stored::Stored);
    queue.reply("replies", &answer(&delivery), None).await.unwrap();
    assert_eq!(tell::<u64>(&mut client, &["XLEN", "replies"]).await.unwrap(), 1);
    assert_eq!(queue.settle(&[delivery.ack()]).await.unwrap(), [Settled::Held]);
    let delivery = take(&queue, 1, Duration::ZERO).await.remove(0);
    assert_eq!(queue.extend(&[delivery.receipt().clone()]).await.unwrap(), [Settled::Held]);
    let retry = delivery.retry(Duration::ZERO, "again");
    assert_eq!(queue.settle(&[retry]).await.unwrap(), [Settled::Held]);
    let delivery = take(&queue, 1, Duration::ZERO).await.remove(0);
    assert_eq!(queue.settle(&[delivery.reject("bad")]).await.unwrap(), [Settled::Held]);
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.ready, depth.in_flight, depth.dead), (0, 0, 1));
    tell::<()>(&mut client, &["CONFIG", "SET", "maxmemory", "0"]).await.unwrap();
    queue.publish(vec![job("c")]).await.unwrap();
    assert_eq!(queue.depth().await.unwrap().ready, 1);
}

#[tokio::test]
async fn a_full_memory_lets_jobs_be_received_though_the_mark_of_the_queue_is_lost() {
    let server = server("maxmemory-policy noeviction\n").await;
    let queue = handle(&url(&server)).await;
    let mut client = plain(&server).await;
    queue.publish(vec![job("a"), job("b")]).await.unwrap();
    let unmark = ["HDEL", "ebb:{jobs}:meta", "layout"];
    tell::<()>(&mut client, &["CONFIG", "SET", "maxmemory", "1"]).await.unwrap();
    // Also where nothing waits.
    for n_jobs in [2, 0] {
        tell::<()>(&mut client, &unmark).await.unwrap();
        // New jobs are refused all the same, and nothing is marked for them.
        let error = queue.publish(vec![job("c")]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Full, "{error}");
        assert_eq!(take(&queue, 9, Duration::ZERO).await.len(), n_jobs);
        assert!(tell::<bool>(&mut client, &["HEXISTS", unmark[1], unmark[2]]).await.unwrap());
    }
}

#[tokio::test]
async fn a_queue_that_filled_the_memory_is_drained_with_all_its_results() {
    let server = server("maxmemory 12mb\nmaxmemory-policy noeviction\n").await;
    let queue = handle(&url(&server)).await;
    let mut n_published = 0;
    let error = loop {
        let jobs = (0..50).map(|_| Job::new(vec![b'x'; 8000], Timestamp::now()));
        match queue.publish(jobs.collect()).await {
            Ok(published) => n_published += published.len(),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Full, "{error}");
    let mut n_done = 0;
    while n_done < n_published {
        let deliveries = take(&queue, 64, Duration::ZERO).await;
        assert!(!deliveries.is_empty(), "{n_done} of {n_published}");
        for delivery in &deliveries {
            assert_eq!(queue.put(&answer(delivery)).await.unwrap(), Stored::Stored);
        }
        let acks: Vec<_> = deliveries.into_iter().map(Delivery::ack).collect();
        assert_eq!(queue.settle(&acks).await.unwrap(), vec![Settled::Held; acks.len()]);
        n_done += acks.len();
    }
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.ready, depth.in_flight, depth.dead), (0, 0, 0));
}

#[tokio::test]
async fn a_setting_that_is_weaker_than_the_promise_is_told() {
    let weak = server("maxmemory 1gb\nmaxmemory-policy allkeys-lru\n").await;
    let info = handle(&url(&weak)).await.info().await.unwrap();
    let codes: Vec<_> = info.warnings.iter().map(|warning| warning.code).collect();
    assert_eq!(codes, ["power_loss", "eviction"]);
    assert!(info.version.starts_with("Redis ") || info.version.starts_with("Valkey "));
    let options = ebb_servers::RedisOptions {
        persistence: ebb_servers::Persistence::Always,
        ..ebb_servers::RedisOptions::default()
    };
    let strong = ebb_servers::Redis::start(options).await.unwrap();
    let info = handle(&url(&strong)).await.info().await.unwrap();
    assert_eq!(info.warnings, []);
}

/// The queue `jobs`, where all is forgotten sooner than a URL may ask for.
fn brief(server: &Redis) -> QueueUrl {
    let mut url = url(server);
    (url.behavior.result_ttl, url.behavior.key_ttl) =
        (Duration::from_millis(50), Duration::from_millis(50));
    url
}

#[tokio::test]
async fn nothing_is_left_of_jobs_that_are_done_and_forgotten() {
    let server = server("").await;
    let queue = handle(&brief(&server)).await;
    let mut client = plain(&server).await;
    let jobs = (0..50).map(|nth| {
        let mut job = Job::new(vec![1; 100], Timestamp::now());
        job.headers.key = Some(format!("key-{nth}"));
        job.headers.cost = Some(1.5);
        job.headers.deadline = Some(Timestamp::now() + Duration::from_secs(3600));
        job
    });
    queue.publish(jobs.collect()).await.unwrap();
    let deliveries = take(&queue, 99, Duration::ZERO).await;
    for delivery in &deliveries {
        queue.chunk(&delivery.job.id, 1, 0, "piece".into()).await.unwrap();
        queue.put(&answer(delivery)).await.unwrap();
    }
    let acks: Vec<_> = deliveries.into_iter().map(ebb_queue::Delivery::ack).collect();
    queue.settle(&acks).await.unwrap();
    crate::eventually("only the counters stay", async || {
        let keys: Vec<String> = tell(&mut client, &["KEYS", "*"]).await.unwrap();
        keys == ["ebb:{jobs}:meta"]
    })
    .await;
    assert_eq!(queue.depth().await.unwrap().cost, Some(0.0));
}

#[tokio::test]
async fn what_is_forgotten_is_swept_while_other_jobs_come_and_go() {
    let server = server("").await;
    let queue = handle(&brief(&server)).await;
    let mut client = plain(&server).await;
    let jobs = (0..50).map(|nth| {
        let mut job = job(&format!("old-{nth}"));
        job.headers.key = Some(format!("key-{nth}"));
        job
    });
    queue.publish(jobs.collect()).await.unwrap();
    let mut nth = 0;
    crate::eventually("only the latest are remembered", async || {
        nth += 1;
        queue.publish(vec![job(&format!("new-{nth}"))]).await.unwrap();
        let deliveries = take(&queue, 99, Duration::ZERO).await;
        for delivery in &deliveries {
            queue.put(&answer(delivery)).await.unwrap();
        }
        let acks: Vec<_> = deliveries.into_iter().map(ebb_queue::Delivery::ack).collect();
        queue.settle(&acks).await.unwrap();
        let mut remembered = Vec::new();
        for name in ["done", "fates", "done_keys"] {
            let key = format!("ebb:{{jobs}}:{name}");
            remembered.push(tell::<Vec<String>>(&mut client, &["HKEYS", &key]).await.unwrap());
        }
        let is_old = |name: &String| name.starts_with("old") || name.starts_with("key");
        nth > 1 && !remembered.iter().flatten().any(is_old)
    })
    .await;
}

#[tokio::test]
async fn who_only_stores_results_here_forgets_them_too() {
    let server = server("").await;
    let store = handle(&brief(&server)).await;
    let mut client = plain(&server).await;
    let result = |name: &str| JobResult {
        id: name.parse().unwrap(),
        attempt: 1,
        outcome: Outcome::Completed { content_type: "text/plain".into(), body: "answer".into() },
        finished_at: Timestamp::now(),
        queue: None,
    };
    for nth in 0..20 {
        store.put(&result(&format!("old-{nth}"))).await.unwrap();
    }
    let mut nth = 0;
    crate::eventually("only the latest are known", async || {
        nth += 1;
        store.put(&result(&format!("new-{nth}"))).await.unwrap();
        let fates: Vec<String> = tell(&mut client, &["HKEYS", "ebb:{jobs}:fates"]).await.unwrap();
        !fates.iter().any(|name| name.starts_with("old"))
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_refused_and_harms_none_beside_it() {
    const MOST: usize = 1 << 20;
    let server = server("proto-max-bulk-len 1mb").await;
    let queue = handle(&url(&server)).await;
    let result = |name: &str, n: usize| JobResult {
        id: name.parse().unwrap(),
        attempt: 1,
        outcome: Outcome::Completed { content_type: "text/plain".into(), body: vec![1; n].into() },
        finished_at: Timestamp::from_millisecond(1_900_000_000_000).unwrap(),
        queue: None,
    };
    let (first, fits, large) = (result("a", 10), result("b", MOST - 100), result("large", MOST));
    let puts = tokio::join!(queue.put(&first), queue.put(&large), queue.put(&fits));
    assert_eq!((puts.0.unwrap(), puts.2.unwrap()), (Stored::Stored, Stored::Stored));
    assert_eq!(queue.get(&fits.id).await.unwrap(), Some(fits));
    let piece = queue.chunk(&large.id, 1, 0, vec![1; MOST + 1].into()).await;
    for error in [puts.1.unwrap_err(), piece.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains("proto-max-bulk-len"), "{error}");
    }
}

#[tokio::test]
async fn a_job_that_cannot_be_read_is_buried_and_keeps_no_other_from_its_worker() {
    let server = server("").await;
    let mut patient = url(&server);
    patient.behavior.lease = Duration::from_secs(60);
    let queue = handle(&patient).await;
    let mut client = plain(&server).await;
    queue.publish(["a", "odd", "gone", "b"].map(job).to_vec()).await.unwrap();
    let rewrite = ["HSET", "ebb:{jobs}:jobs", "odd", "{\"priority\":\"urgent\"}\nbody"];
    tell::<u64>(&mut client, &rewrite).await.unwrap();
    tell::<u64>(&mut client, &["HDEL", "ebb:{jobs}:jobs", "gone"]).await.unwrap();
    let taken = take(&queue, 9, Duration::ZERO).await;
    let names: Vec<_> = taken.iter().map(|one| one.job.id.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    let letters = queue.list(9).await.unwrap();
    assert_eq!(letters.len(), 2, "{letters:?}");
    for letter in &letters {
        let reason = &letter.reason;
        assert!(
            reason.contains("cannot be read") && reason.contains("ebb dlq redrive"),
            "{reason}"
        );
        let told = queue.get(&letter.job.id).await.unwrap().unwrap();
        assert_eq!(told.outcome.failure_kind(), Some(letter.kind));
    }
    let odd = queue.show(&"odd".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(&*odd.job.body, b"{\"priority\":\"urgent\"}\nbody");
    assert_eq!(queue.redrive(Some(&[odd.job.id])).await.unwrap(), 1);
    tell::<u64>(&mut client, &["HSET", "ebb:{jobs}:jobs", "odd", "{}\nbody"]).await.unwrap();
    let again = take(&queue, 9, Duration::ZERO).await.remove(0);
    assert_eq!((again.job.id.as_str(), &*again.job.body, again.attempt), ("odd", &b"body"[..], 1));
    assert_eq!(queue.purge(None).await.unwrap(), 1);
}

#[tokio::test]
async fn that_an_unread_job_was_cancelled_is_forgotten_as_any_end_is() {
    let server = server("").await;
    let clock = Arc::new(Ahead::default());
    let options = OpenOptions { clock: clock.clone(), ..OpenOptions::default() };
    let mut minute = url(&server);
    let ttl = Duration::from_secs(60);
    (minute.behavior.result_ttl, minute.behavior.key_ttl) = (ttl, ttl);
    let queue = ebb_queue::open(&minute, options).await.unwrap();
    let mut client = plain(&server).await;
    for nth in 0..40 {
        let id = format!("old-{nth}");
        let words = ["XADD", "ebb:{jobs}", "*", "ebb-id", &id, "body", "x"];
        tell::<String>(&mut client, &words).await.unwrap();
    }
    let cancelled = queue.cancel(&"old-39".parse().unwrap()).await.unwrap();
    assert_eq!(cancelled, Cancelled::Marked);
    clock.pass(30);
    let mut taken = Vec::new();
    while taken.len() < 39 {
        taken.extend(take(&queue, 99, Duration::from_secs(10)).await);
    }
    let acks: Vec<_> = taken.into_iter().map(Delivery::ack).collect();
    queue.settle(&acks).await.unwrap();
    let mut nth = 0;
    // Others come and go, first when its time is over, then when that of a later end is, too.
    crate::eventually("the mark is swept", async || {
        nth += 1;
        clock.pass(if nth == 3 { 60 } else { 31 });
        queue.publish(vec![job(&format!("new-{nth}"))]).await.unwrap();
        let acks: Vec<_> =
            take(&queue, 9, Duration::ZERO).await.into_iter().map(Delivery::ack).collect();
        queue.settle(&acks).await.unwrap();
        nth > 5
            && !tell::<bool>(&mut client, &["HEXISTS", "ebb:{jobs}:done", "old-39"]).await.unwrap()
    })
    .await;
}

/// The clock of the system, set forward.
#[derive(Debug, Default)]
struct Ahead(AtomicI64);

impl Ahead {
    fn pass(&self, seconds: i64) {
        self.0.fetch_add(seconds, Ordering::SeqCst);
    }
}

impl Clock for Ahead {
    fn now(&self) -> Timestamp {
        Timestamp::now() + jiff::SignedDuration::from_secs(self.0.load(Ordering::SeqCst))
    }
}
