//! What there is to do about a failure, where another version did not say it, or a client did.

use std::time::Duration;

use ebb_queue::{Failure, FailureKind, Queue};

use crate::letters::{failed, letter};
use crate::{eventually, handle, job, plain, server, take, tell, url};

/// What is told soon.
const SOON: Duration = Duration::from_secs(20);

/// The store of an older version: no kind with a dead letter, and none in the line of a failed result.
const FORGET_KINDS: &str = "
  for _, id in ipairs(redis.call('HKEYS', KEYS[1] .. ':life')) do
    local life = { cmsgpack.unpack(redis.call('HGET', KEYS[1] .. ':life', id)) }
    redis.call('HSET', KEYS[1] .. ':life', id, cmsgpack.pack(unpack(life, 1, 15)))
  end
  local n_results = 0
  for _, name in ipairs(redis.call('KEYS', KEYS[1] .. ':results:*')) do
    for _, id in ipairs(redis.call('HKEYS', name)) do
      local text = redis.call('HGET', name, id)
      local older, n = string.gsub(text, '^(failed %d+ %d+) model\\n', '%1 \\n')
      n_results = n_results + n
      redis.call('HSET', name, id, older)
    end
  end
  return n_results
";

/// Takes the only job and has it die of something.
async fn let_die(queue: &Queue, failure: impl Into<Failure>) {
    let delivery = take(queue, 1, SOON).await.remove(0);
    queue.settle(&[delivery.reject(failure)]).await.unwrap();
}

#[tokio::test]
async fn a_failure_of_an_older_version_is_of_no_known_kind_and_its_job_can_be_put_back() {
    let server = server("").await;
    let queue = handle(&url(&server)).await;
    let mut client = plain(&server).await;
    queue.publish(vec![job("a")]).await.unwrap();
    let result = failed("a", FailureKind::Model);
    let delivery = take(&queue, 1, SOON).await.remove(0);
    queue.put(&result).await.unwrap();
    queue.settle(&[delivery.reject(Failure::new(FailureKind::Model, "no"))]).await.unwrap();
    assert_eq!(letter(&queue).await, (FailureKind::Model, "no".to_owned()));
    let n_results: u64 =
        tell(&mut client, &["EVAL", FORGET_KINDS, "1", "ebb:{jobs}"]).await.unwrap();
    assert_eq!(n_results, 1);
    let stored = queue.get(&result.id).await.unwrap().unwrap();
    assert_eq!(stored.outcome, failed("a", FailureKind::Other).outcome);
    assert_eq!(letter(&queue).await, (FailureKind::Other, "no".to_owned()));
    assert_eq!(queue.redrive(None).await.unwrap(), 1);
    let_die(&queue, Failure::invalid("again")).await;
    assert_eq!(letter(&queue).await, (FailureKind::Invalid, "again".to_owned()));
}

#[tokio::test]
async fn a_kind_that_a_client_sends_with_its_job_is_not_taken_for_ours() {
    let server = server("").await;
    let queue = handle(&url(&server)).await;
    let mut client = plain(&server).await;
    let words = ["XADD", "ebb:{jobs}", "*", "ebb-kind", "model", "body", "x"];
    tell::<String>(&mut client, &words).await.unwrap();
    let_die(&queue, "no").await;
    assert_eq!(letter(&queue).await, (FailureKind::Other, "no".to_owned()));
    queue.purge(None).await.unwrap();
    let words = [
        "XADD",
        "ebb:{jobs}",
        "*",
        "ebb-id",
        "late",
        "ebb-kind",
        "lost",
        "ebb-ttl",
        "0",
        "body",
        "x",
    ];
    tell::<String>(&mut client, &words).await.unwrap();
    eventually("it is dead", async || {
        assert!(take(&queue, 1, Duration::ZERO).await.is_empty());
        queue.depth().await.unwrap().dead == 1
    })
    .await;
    assert_eq!(letter(&queue).await.0, FailureKind::Expired);
    let result = queue.get(&"late".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(result.outcome.failure_kind(), Some(FailureKind::Expired));
}

#[tokio::test]
async fn the_kind_of_a_reply_is_not_that_of_the_job_it_becomes() {
    let server = server("").await;
    let queue = handle(&url(&server)).await;
    let next = handle(&format!("{}?queue=next", server.url()).parse().unwrap()).await;
    let told = failed("a", FailureKind::Model);
    queue.reply("ebb:{next}", &told, None).await.unwrap();
    let_die(&next, "another").await;
    assert_eq!(letter(&next).await, (FailureKind::Other, "another".to_owned()));
    assert_eq!(next.get(&told.id).await.unwrap(), None);
}
