//! What it costs to know who is owed a reply.

use std::time::Duration;

use ebb_queue::{Job, Queue};
use redis::aio::MultiplexedConnection;

use crate::{eventually, handle, job, plain, server, tell, url};

/// Jobs that die together.
const JOBS: u64 = 100;
const BODY: usize = 1 << 20;

/// What an older version knew of a job: nothing of its headers beside its life.
const FORGET_HEADERS: &str = "for _, id in ipairs(redis.call('HKEYS', KEYS[1] .. ':life')) do
    local life = { cmsgpack.unpack(redis.call('HGET', KEYS[1] .. ':life', id)) }
    redis.call('HSET', KEYS[1] .. ':life', id, cmsgpack.pack(unpack(life, 1, 14)))
  end";

/// Publishes jobs with long bodies, of which the first asks for a reply there.
async fn publish(queue: &Queue, to: &str) {
    for nth in 0..JOBS {
        let mut job = Job { body: vec![b'x'; BODY].into(), ..job(&format!("{to}-{nth}")) };
        job.set("ebb-ttl", "3s").unwrap();
        if nth == 0 {
            job.set("ebb-reply-to", to).unwrap();
        }
        queue.publish(vec![job]).await.unwrap();
    }
}

/// The microseconds that the server's scripts take to bury what has expired.
async fn bury(queue: &Queue, client: &mut MultiplexedConnection) -> u64 {
    eventually("all have expired", async || queue.depth().await.unwrap().dead == JOBS).await;
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
    let queue = handle(&url(&server)).await;
    let mut client = plain(&server).await;
    let mut took = Vec::new();
    for (to, is_old) in [("warm-up", false), ("old", true), ("new", false)] {
        publish(&queue, to).await;
        if is_old {
            tell::<()>(&mut client, &["EVAL", FORGET_HEADERS, "1", "ebb:{jobs}"]).await.unwrap();
        }
        took.push(bury(&queue, &mut client).await);
        // What an older version published is told as well.
        let n_replies: u64 = tell(&mut client, &["XLEN", to]).await.unwrap();
        assert_eq!(n_replies, 1, "{to}");
    }
    let (old, new) = (took[1], took[2]);
    let ratio = Duration::from_micros(old).div_duration_f64(Duration::from_micros(new));
    println!(
        "{JOBS} jobs of {BODY} bytes: {old} us with their bodies, {new} us without, {ratio:.1}"
    );
    assert!(ratio > 2.0, "{took:?}");
}
