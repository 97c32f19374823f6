//! What it costs to know who is owed a reply.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use ebb_queue::{Clock, Job, OpenOptions, Queue, Timestamp, open};
use redis::aio::MultiplexedConnection;

use crate::{plain, server, tell, url};

/// Jobs that die together.
const JOBS: u64 = 100;
const BODY: usize = 1 << 20;

/// The clock of the system, set forward by hours: jobs expire when all of them are there.
#[derive(Debug, Default)]
struct Ahead(AtomicI64);

impl Clock for Ahead {
    fn now(&self) -> Timestamp {
        Timestamp::now() + jiff::SignedDuration::from_hours(self.0.load(Ordering::SeqCst))
    }
}

/// What an older version knew of a job: nothing of its headers beside its life.
const FORGET_HEADERS: &str = "for _, id in ipairs(redis.call('HKEYS', KEYS[1] .. ':life')) do
    local life = { cmsgpack.unpack(redis.call('HGET', KEYS[1] .. ':life', id)) }
    redis.call('HSET', KEYS[1] .. ':life', id, cmsgpack.pack(unpack(life, 1, 14)))
  end";

/// Publishes jobs with long bodies, of which the first asks for a reply there.
async fn publish(queue: &Queue, clock: &Ahead, to: &str) {
    for nth in 0..JOBS {
        let mut job = Job::new(vec![b'x'; BODY], clock.now());
        job.id = format!("{to}-{nth}").parse().unwrap();
        job.set("ebb-ttl", "1h").unwrap();
        if nth == 0 {
            job.set("ebb-reply-to", to).unwrap();
        }
        queue.publish(vec![job]).await.unwrap();
    }
}

/// The microseconds that the server's scripts take to bury what has expired.
async fn bury(queue: &Queue, client: &mut MultiplexedConnection) -> u64 {
    assert_eq!(queue.depth().await.unwrap().dead, JOBS, "all have expired");
    tell::<()>(client, &["CONFIG", "RESETSTAT"]).await.unwrap();
    assert!(queue.list(0).await.unwrap().is_empty());
    let stats: String = tell(client, &["INFO", "commandstats"]).await.unwrap();
    let scripts = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:")).unwrap();
    let usec = scripts.split(',').find_map(|part| part.strip_prefix("usec=")).unwrap();
    assert_eq!(queue.purge(None).await.unwrap(), JOBS);
    usec.parse().unwrap()
}

#[tokio::test]
async fn who_is_owed_a_reply_is_known_without_reading_long_bodies() {
    let server = server("save \"\"").await;
    let clock = Arc::new(Ahead::default());
    let options = OpenOptions { clock: clock.clone(), ..OpenOptions::default() };
    let queue = open(&url(&server), options).await.unwrap();
    let mut client = plain(&server).await;
    // The server has its scripts from here on: the first run of one is counted apart.
    assert!(queue.list(0).await.unwrap().is_empty());
    // The shortest of three each, since a machine that does much else spoils one.
    let mut took = [u64::MAX; 2];
    for nth in 0..3 {
        for (kind, shortest) in ["old", "new"].into_iter().zip(&mut took) {
            let to = format!("{kind}-{nth}");
            publish(&queue, &clock, &to).await;
            if kind == "old" {
                let forget = ["EVAL", FORGET_HEADERS, "1", "ebb:{jobs}"];
                tell::<()>(&mut client, &forget).await.unwrap();
            }
            clock.0.fetch_add(2, Ordering::SeqCst);
            *shortest = bury(&queue, &mut client).await.min(*shortest);
            // What an older version published is told as well.
            let n_replies: u64 = tell(&mut client, &["XLEN", &to]).await.unwrap();
            assert_eq!(n_replies, 1, "{to}");
        }
    }
    let [old, new] = took;
    let ratio = Duration::from_micros(old).div_duration_f64(Duration::from_micros(new));
    println!(
        "{JOBS} jobs of {BODY} bytes: {old} us with their bodies, {new} us without, {ratio:.1}"
    );
    assert!(ratio > 2.0, "{took:?}");
}
