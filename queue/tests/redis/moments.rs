//! Entries whose ids are no moments of about now, which producers may choose as they like.

use std::time::Duration;

use ebb_queue::{ByPriority, Timestamp};

use crate::{brief, eventually, handle, job, plain, server, take, tell, url};

const SOON: Duration = Duration::from_secs(10);

/// An id in microseconds; all that the server chooses itself from then on are of this one, too.
const MICROSECONDS: &str = "1760000000000000-0";

#[tokio::test]
async fn an_entry_of_another_era_is_of_normal_priority_whoever_held_it() {
    let server = server("").await;
    let queue = handle(&brief(&server)).await;
    let mut client = plain(&server).await;
    for (id, name) in [("1-1", "old"), (MICROSECONDS, "new")] {
        let words = ["XADD", "ebb:{jobs}", id, "ebb-id", name, "body", "x"];
        tell::<String>(&mut client, &words).await.unwrap();
    }
    let normal = ByPriority { normal: 2, ..ByPriority::default() };
    assert_eq!(queue.depth().await.unwrap().ready_by_priority, Some(normal));
    let held = take(&queue, 9, Duration::ZERO).await;
    let now = Timestamp::now();
    assert_eq!(held.iter().map(|one| one.job.id.as_str()).collect::<Vec<_>>(), ["old", "new"]);
    let written: Vec<_> = held.iter().map(|one| one.job.enqueued_at).collect();
    assert!(written[0] >= "2025-01-01T00:00:00Z".parse().unwrap(), "{written:?}");
    assert!(written[1] <= now + Duration::from_secs(1), "{written:?} at {now}");
    // Their worker is lost, and nobody but the scaler looks.
    eventually("both are ready again", async || queue.depth().await.unwrap().ready == 2).await;
    assert_eq!(queue.depth().await.unwrap().ready_by_priority, Some(normal));
}

#[tokio::test]
async fn entries_after_one_of_another_era_keep_their_order_and_delays() {
    let server = server("").await;
    let queue = handle(&url(&server)).await;
    let mut client = plain(&server).await;
    for (id, name) in [(MICROSECONDS, "c"), ("*", "b"), ("*", "a")] {
        let words = ["XADD", "ebb:{jobs}", id, "ebb-id", name, "body", "x"];
        tell::<String>(&mut client, &words).await.unwrap();
    }
    let words = ["XADD", "ebb:{jobs}", "*", "ebb-id", "later", "ebb-delay", "300ms", "body", "x"];
    tell::<String>(&mut client, &words).await.unwrap();
    let taken = take(&queue, 9, Duration::ZERO).await;
    assert_eq!(taken.iter().map(|one| one.job.id.as_str()).collect::<Vec<_>>(), ["c", "b", "a"]);
    assert_eq!(take(&queue, 9, SOON).await[0].job.id.as_str(), "later");
}

#[tokio::test]
async fn a_place_that_an_older_version_gave_to_such_an_entry_does_no_harm() {
    let server = server("").await;
    let queue = handle(&brief(&server)).await;
    let mut client = plain(&server).await;
    queue.publish(vec![job("a")]).await.unwrap();
    let misplace = "local place = 800 * 2251799813685248 + 7
        local life = { cmsgpack.unpack(redis.call('HGET', KEYS[1] .. ':life', 'a')) }
        life[2] = place
        redis.call('HSET', KEYS[1] .. ':life', 'a', cmsgpack.pack(unpack(life)))
        redis.call('ZADD', KEYS[1] .. ':line', string.format('%d', place), 'a')";
    tell::<()>(&mut client, &["EVAL", misplace, "1", "ebb:{jobs}"]).await.unwrap();
    let depth = queue.depth().await.unwrap();
    assert!(depth.oldest_ready.is_some());
    let told = |by: Option<ByPriority>| by.map(|by| by.high + by.normal + by.low);
    assert_eq!((depth.ready, told(depth.ready_by_priority)), (1, Some(1)));
    let held = take(&queue, 9, Duration::ZERO).await.remove(0);
    queue.settle(&[held.reject("to be put back")]).await.unwrap();
    queue.redrive(None).await.unwrap();
    assert_eq!(take(&queue, 9, Duration::ZERO).await.len(), 1);
    eventually("it is ready again", async || queue.depth().await.unwrap().ready == 1).await;
    assert_eq!(told(queue.depth().await.unwrap().ready_by_priority), Some(1));
}
