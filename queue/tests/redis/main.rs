//! What Redis promises beyond the conformance suite: servers that crash and connections that break,
//! the jobs of plain producers, and who may do what.
#![allow(unreachable_pub, reason = "nobody is outside a test binary")]
#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

mod access;
mod bytes;
mod cluster;
mod depth;
mod foreign;
mod hosts;
mod keys;
mod kinds;
#[path = "../support/letters.rs"]
mod letters;
mod moments;
mod outages;
mod owed;
mod purge;
mod replies;
mod silence;
mod strangers;
mod tls;

use std::num::NonZeroUsize;
use std::time::Duration;

use ebb_queue::{
    Delivery, Error, Job, JobResult, OpenOptions, Outcome, Queue, QueueUrl, Timestamp, open,
};
use ebb_servers::{Redis, RedisOptions};
use futures::StreamExt;
use futures::stream::BoxStream;
use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, RedisResult};

/// A server of one's own, set as the text says.
pub async fn server(extra_config: &str) -> Redis {
    let options = RedisOptions { extra_config: extra_config.to_owned(), ..RedisOptions::default() };
    Redis::start(options).await.unwrap()
}

/// The queue `jobs` on it, where no lease ends while a test runs.
pub fn url(server: &Redis) -> QueueUrl {
    format!("{}?lease=60s", server.url()).parse().unwrap()
}

/// The same for a handle whose leases end soon.
pub fn brief(server: &Redis) -> QueueUrl {
    let mut brief = url(server);
    brief.behavior.lease = Duration::from_secs(2);
    brief
}

/// The same as this user.
pub fn url_of(server: &Redis, user: &str) -> QueueUrl {
    format!("redis://{user}@127.0.0.1:{}", server.port()).parse().unwrap()
}

/// A handle with connections of its own.
pub async fn handle(url: &QueueUrl) -> Queue {
    open(url, OpenOptions::default()).await.unwrap()
}

/// Why it is not opened.
pub async fn refusal(url: &QueueUrl, options: OpenOptions) -> Error {
    let Err(error) = open(url, options).await else { panic!("{url} was opened") };
    error
}

/// What a plain client sends with.
pub async fn plain(server: &Redis) -> MultiplexedConnection {
    let client = redis::Client::open(server.url()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

/// Sends a command, written as for `redis-cli`.
pub async fn tell<T: FromRedisValue>(
    connection: &mut MultiplexedConnection,
    words: &[&str],
) -> RedisResult<T> {
    let mut command = redis::cmd(words[0]);
    for word in &words[1..] {
        command.arg(*word);
    }
    command.query_async(connection).await
}

/// A job of this name.
pub fn job(name: &str) -> Job {
    let mut job = Job::new("body", Timestamp::now());
    job.id = name.parse().unwrap();
    job
}

/// Receives at most so many, waiting a while for the first.
pub async fn take(queue: &Queue, max: usize, wait: Duration) -> Vec<Delivery> {
    queue.receive(NonZeroUsize::new(max).unwrap(), wait).await.unwrap()
}

/// Waits for what must come true soon.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.expect(what);
}

/// Hears out what is told, until nothing is for so long.
pub async fn hush(told: &mut BoxStream<'static, ()>, pause: Duration) {
    while let Ok(Some(())) = tokio::time::timeout(pause, told.next()).await {}
}

/// The answer to a delivery: its own body.
pub fn answer(delivery: &Delivery) -> JobResult {
    let (content_type, body) = ("text/plain".to_owned(), delivery.job.body.clone());
    JobResult {
        id: delivery.job.id.clone(),
        attempt: delivery.attempt,
        outcome: Outcome::Completed { content_type, body },
        finished_at: Timestamp::now(),
        queue: None,
    }
}
