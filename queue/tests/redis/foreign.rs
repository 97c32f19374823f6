//! Streams and consumer groups that others made, and whose entries others take: looked at, and left
//! as they are.

use std::sync::Arc;
use std::time::Duration;

use ebb_queue::{Backlog, ErrorKind, Foreign, OpenOptions, QueueUrl, Result, look_at};
use ebb_servers::Redis;
use futures::StreamExt;
use futures::stream::BoxStream;
use redis::Value;
use redis::aio::MultiplexedConnection;
use tokio::time::{Instant, timeout};

use crate::{plain, server, tell, url, url_of};

/// Within this an arrival is told, also where it has to be looked for.
const SOON: Duration = Duration::from_secs(30);

async fn looked_at(url: &QueueUrl) -> Result<Arc<dyn Backlog>> {
    let foreign = Foreign { stream: "work:eu".into(), reader: "embedders".into() };
    look_at(url, &foreign, OpenOptions::default()).await
}

/// Sends a command whose words have no spaces.
async fn say(client: &mut MultiplexedConnection, words: &str) -> Value {
    tell(client, &words.split(' ').collect::<Vec<_>>()).await.unwrap()
}

/// A server with the stream and the group, and a client.
async fn made() -> (Redis, MultiplexedConnection) {
    let server = server("").await;
    let mut client = plain(&server).await;
    say(&mut client, "XGROUP CREATE work:eu embedders 0 MKSTREAM").await;
    (server, client)
}

async fn add(client: &mut MultiplexedConnection) -> String {
    tell(client, &["XADD", "work:eu", "*", "body", "{}"]).await.unwrap()
}

/// Hands so many entries out.
async fn take(client: &mut MultiplexedConnection, n: usize) {
    say(client, &format!("XREADGROUP GROUP embedders w1 COUNT {n} STREAMS work:eu >")).await;
}

/// What waits and what is in flight.
async fn seen(backlog: &Arc<dyn Backlog>) -> (u64, u64) {
    let depth = backlog.depth().await.unwrap();
    (depth.ready, depth.in_flight)
}

/// How long it takes until something is told.
async fn told(arrivals: &mut BoxStream<'static, ()>) -> Duration {
    let since = Instant::now();
    timeout(SOON, arrivals.next()).await.expect("an arrival is told").unwrap();
    since.elapsed()
}

/// How soon an entry is told, at best of so many: a machine that does much else is late with one.
async fn soonest(
    client: &mut MultiplexedConnection,
    arrivals: &mut BoxStream<'static, ()>,
    n_entries: u32,
) -> Duration {
    let mut best = Duration::MAX;
    for _ in 0..n_entries {
        add(client).await;
        best = best.min(told(arrivals).await);
    }
    best
}

#[tokio::test]
async fn an_arrival_is_told_as_it_comes_and_not_when_somebody_looks() {
    let (server, mut client) = made().await;
    let backlog = looked_at(&url(&server)).await.unwrap();
    let mut arrivals = backlog.arrivals().await.unwrap();
    // From here on who looks once a second has just looked, and is late each time.
    soonest(&mut client, &mut arrivals, 1).await;
    let soonest = soonest(&mut client, &mut arrivals, 5).await;
    assert!(soonest < Duration::from_millis(500), "{soonest:?}");
}

#[tokio::test]
async fn what_waits_and_what_is_held_is_counted_and_nothing_is_changed() {
    let (server, mut client) = made().await;
    let backlog = looked_at(&url(&server)).await.unwrap();
    let mut arrivals = backlog.arrivals().await.unwrap();
    assert_eq!(seen(&backlog).await, (0, 0));
    let first = add(&mut client).await;
    told(&mut arrivals).await;
    assert_eq!(backlog.info().await.unwrap().warnings, []);
    let rest = [add(&mut client).await, add(&mut client).await];
    let depth = backlog.depth().await.unwrap();
    assert_eq!((depth.ready, depth.in_flight, depth.done), (3, 0, Some(0)));
    let written = |id: &str| id.split('-').next().unwrap().parse::<i64>().unwrap();
    assert_eq!(depth.oldest_ready.unwrap().as_millisecond(), written(&first));

    take(&mut client, 2).await;
    let depth = backlog.depth().await.unwrap();
    assert_eq!((depth.ready, depth.in_flight, depth.done), (1, 2, Some(0)));
    assert_eq!(depth.oldest_ready.unwrap().as_millisecond(), written(&rest[1]));
    say(&mut client, &format!("XACK work:eu embedders {first}")).await;
    assert_eq!(seen(&backlog).await, (1, 1));
    // Handed on to another, it is held as before.
    say(&mut client, &format!("XCLAIM work:eu embedders w2 0 {}", rest[0])).await;
    assert_eq!(seen(&backlog).await, (1, 1));
    take(&mut client, 9).await;
    assert_eq!(seen(&backlog).await, (0, 2));
    say(&mut client, &format!("XACK work:eu embedders {} {}", rest[0], rest[1])).await;
    let depth = backlog.depth().await.unwrap();
    assert_eq!((depth.ready, depth.in_flight, depth.done), (0, 0, Some(3)));
    assert_eq!((depth.oldest_ready, backlog.workers().await.unwrap()), (None, vec![]));

    let keys: Vec<String> = tell(&mut client, &["KEYS", "*"]).await.unwrap();
    assert_eq!(keys, ["work:eu"], "nothing is created");
    let consumers: Vec<Value> =
        tell(&mut client, &["XINFO", "CONSUMERS", "work:eu", "embedders"]).await.unwrap();
    assert_eq!(consumers.len(), 2, "nobody joined the group");
}

/// The lag as the server tells it.
async fn lag(client: &mut MultiplexedConnection) -> Value {
    let groups: Vec<Vec<Value>> = tell(client, &["XINFO", "GROUPS", "work:eu"]).await.unwrap();
    groups[0].last().unwrap().clone()
}

#[tokio::test]
async fn a_lag_that_the_server_does_not_know_is_counted() {
    let (server, mut client) = made().await;
    let backlog = looked_at(&url(&server)).await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(add(&mut client).await);
    }
    take(&mut client, 1).await;
    say(&mut client, &format!("XDEL work:eu {}", ids[2])).await;
    assert_eq!(lag(&mut client).await, Value::Nil);
    assert_eq!(seen(&backlog).await, (3, 1));
    // A group that begins somewhere.
    say(&mut client, &format!("XGROUP SETID work:eu embedders {}", ids[3])).await;
    assert_eq!(seen(&backlog).await, (1, 1));
    assert_eq!(backlog.depth().await.unwrap().done, None, "the server does not know");
    // Of very many so many are counted as are known to be there.
    let many = "for n = 1, 3000 do redis.call('XADD', KEYS[1], '*', 'body', n) end";
    tell::<Value>(&mut client, &["EVAL", many, "1", "work:eu"]).await.unwrap();
    let (ready, _) = seen(&backlog).await;
    assert!((256..=3001).contains(&ready), "{ready}");
    // All that there is, at any length.
    say(&mut client, "XGROUP SETID work:eu embedders 0-1").await;
    assert_eq!(seen(&backlog).await, (3004, 1));
    say(&mut client, "XGROUP SETID work:eu embedders $").await;
    assert_eq!(seen(&backlog).await, (0, 1));
}

#[tokio::test]
async fn what_was_trimmed_away_is_no_work() {
    let (server, mut client) = made().await;
    let backlog = looked_at(&url(&server)).await.unwrap();
    add(&mut client).await;
    take(&mut client, 1).await;
    for _ in 0..50 {
        say(&mut client, "XADD work:eu MAXLEN 3 * body {}").await;
    }
    assert_eq!(seen(&backlog).await, (3, 1));
    say(&mut client, "XTRIM work:eu MAXLEN 0").await;
    assert_eq!(seen(&backlog).await, (0, 1));
}

#[tokio::test]
async fn of_large_entries_few_are_read_to_be_counted() {
    let (server, mut client) = made().await;
    let backlog = looked_at(&url(&server)).await.unwrap();
    add(&mut client).await;
    take(&mut client, 1).await;
    let many =
        "for n = 1, 100 do redis.call('XADD', KEYS[1], '*', 'body', string.rep('x', 1e5)) end";
    tell::<Value>(&mut client, &["EVAL", many, "1", "work:eu"]).await.unwrap();
    let last: Vec<(String, Value)> =
        tell(&mut client, &["XREVRANGE", "work:eu", "+", "-", "COUNT", "1"]).await.unwrap();
    say(&mut client, &format!("XDEL work:eu {}", last[0].0)).await;
    assert_eq!(lag(&mut client).await, Value::Nil);
    assert_eq!(seen(&backlog).await, (16, 1));
}

#[tokio::test]
async fn what_is_not_there_is_named_with_the_key_and_the_remedy() {
    let server = server("").await;
    let mut client = plain(&server).await;
    let refused = async |words: &[&str]| {
        let Err(error) = looked_at(&url(&server)).await else { panic!("{words:?}") };
        assert_eq!(error.kind(), ErrorKind::Missing, "{error}");
        let told = error.to_string();
        assert!(words.iter().all(|part| told.contains(part)), "{told}");
    };
    refused(&["stream: ", "no key \"work:eu\"", "MKSTREAM"]).await;
    say(&mut client, "SET work:eu x").await;
    refused(&["stream: ", "is a string and no stream"]).await;
    say(&mut client, "DEL work:eu").await;
    add(&mut client).await;
    let words = ["consumerGroup: ", "no consumer group \"embedders\"", "XGROUP CREATE work:eu"];
    refused(&words).await;

    say(&mut client, "XGROUP CREATE work:eu embedders 0").await;
    let backlog = looked_at(&url(&server)).await.unwrap();
    assert_eq!(seen(&backlog).await, (1, 0));
    say(&mut client, "XGROUP DESTROY work:eu embedders").await;
    assert_eq!(backlog.depth().await.unwrap_err().kind(), ErrorKind::Missing);
}

#[tokio::test]
async fn who_may_see_less_sees_the_jobs_all_the_same() {
    let (server, mut client) = made().await;
    let least = "%R~work:eu +eval_ro +evalsha_ro +type +time +xinfo|groups +xrange +xlen";
    for (who, rights, is_told) in [("least", "", false), ("scaler", " +xinfo|stream +xread", true)]
    {
        say(&mut client, &format!("ACL SETUSER {who} on >secret {least}{rights}")).await;
        let backlog = looked_at(&url_of(&server, &format!("{who}:secret"))).await.unwrap();
        let mut arrivals = backlog.arrivals().await.unwrap();
        let codes = backlog.info().await.unwrap().warnings;
        let codes: Vec<_> = codes.into_iter().map(|warning| warning.code).collect();
        assert_eq!(codes, if is_told { vec![] } else { vec!["no_push"] }, "{who}");
        let before = seen(&backlog).await.0;
        let soonest = soonest(&mut client, &mut arrivals, 3).await;
        assert!(soonest < Duration::from_secs(2), "{who}: {soonest:?}");
        assert_eq!(seen(&backlog).await, (before + 3, 0));
        assert!(backlog.depth().await.unwrap().oldest_ready.is_some());
        if is_told {
            // Who may listen no more is told without cause.
            say(&mut client, "ACL SETUSER scaler -xread").await;
            add(&mut client).await;
            for _ in 0..6 {
                told(&mut arrivals).await;
            }
        }
    }
}
