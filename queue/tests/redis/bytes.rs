//! How much of long bodies the server and a connection carry at once.

use std::time::Duration;

use ebb_queue::{Delivery, Job, Queue, QueueUrl, Timestamp};
use ebb_servers::Redis;
use redis::aio::MultiplexedConnection;

use crate::{handle, job, plain, server, take, tell, url};

const MANY: usize = 20;
const BODY: usize = 1 << 20;

/// A lease that outlasts all that is done here.
fn patient(server: &Redis) -> QueueUrl {
    let mut url = url(server);
    url.behavior.lease = Duration::from_secs(600);
    url
}

async fn publish(queue: &Queue) {
    for nth in 0..MANY {
        let mut job = Job::new(vec![b'x'; BODY], Timestamp::now());
        job.id = format!("long-{nth}").parse().unwrap();
        // Some with headers that are too long to be kept twice.
        job.headers.tenant = (nth % 3 == 0).then(|| "t".repeat(6000));
        queue.publish(vec![job]).await.unwrap();
    }
}

/// What all scripts together have sent since the last count.
async fn n_scripts(client: &mut MultiplexedConnection) -> u64 {
    let stats: String = tell(client, &["INFO", "commandstats"]).await.unwrap();
    tell::<()>(client, &["CONFIG", "RESETSTAT"]).await.unwrap();
    let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
    calls.map_or(0, |calls| calls.split(',').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn jobs_with_long_bodies_come_a_few_at_a_time_and_all_in_order() {
    let server = server("save \"\"").await;
    let queue = handle(&patient(&server)).await;
    publish(&queue).await;
    let mut taken: Vec<Delivery> = Vec::new();
    while taken.len() < MANY {
        let some = take(&queue, 99, Duration::ZERO).await;
        assert!((1..MANY).contains(&some.len()), "{} after {}", some.len(), taken.len());
        taken.extend(some);
    }
    for (nth, one) in taken.iter().enumerate() {
        let found = (one.job.id.as_str(), one.job.body.len(), one.attempt);
        assert_eq!(found, (&*format!("long-{nth}"), BODY, 1));
    }
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.ready, depth.in_flight), (0, MANY as u64));
}

#[tokio::test]
async fn a_short_job_leads_to_no_long_answer_of_jobs_whose_headers_are_long_too() {
    let server = server("save \"\"").await;
    let queue = handle(&patient(&server)).await;
    queue.publish(vec![job("short")]).await.unwrap();
    for nth in 0..MANY {
        let mut job = Job::new(vec![b'x'; BODY], Timestamp::now());
        job.id = format!("long-{nth}").parse().unwrap();
        job.headers.tenant = Some("t".repeat(6000));
        queue.publish(vec![job]).await.unwrap();
    }
    let taken = take(&queue, 99, Duration::ZERO).await;
    assert_eq!(taken[0].job.id.as_str(), "short");
    // As many as are 8 MiB together, and no more than the one with which they are.
    let n_bytes: usize = taken.iter().map(|one| one.job.body.len()).sum();
    assert!((2 * BODY..=9 * BODY).contains(&n_bytes), "{n_bytes} bytes, {} jobs", taken.len());
}

#[tokio::test]
async fn a_body_that_is_longer_than_what_is_read_at_once_comes_all_the_same() {
    let server = server("save \"\"").await;
    let queue = handle(&patient(&server)).await;
    let mut jobs: Vec<_> =
        [10, 20 << 20, 10].map(|n| Job::new(vec![b'x'; n], Timestamp::now())).into();
    for job in &mut jobs {
        queue.publish(vec![job.clone()]).await.unwrap();
    }
    let mut taken = Vec::new();
    while taken.len() < 3 {
        let some = take(&queue, 99, Duration::ZERO).await;
        assert!(!some.is_empty());
        taken.extend(some.into_iter().map(|one| one.job.body.len()));
    }
    assert_eq!(taken, [10, 20 << 20, 10]);
}

#[tokio::test]
async fn dead_letters_with_long_bodies_are_listed_a_few_at_a_time() {
    let server = server("save \"\"").await;
    let queue = handle(&patient(&server)).await;
    let mut client = plain(&server).await;
    publish(&queue).await;
    let mut n_dead = 0;
    while n_dead < MANY {
        let taken = take(&queue, 99, Duration::ZERO).await;
        n_dead += taken.len();
        let letters: Vec<_> = taken.into_iter().map(|one| one.reject("no")).collect();
        queue.settle(&letters).await.unwrap();
    }
    n_scripts(&mut client).await;
    let letters = queue.list(99).await.unwrap();
    let n = n_scripts(&mut client).await;
    assert!((2..=MANY as u64).contains(&n), "{n} scripts");
    let expected: Vec<_> = (0..MANY).rev().map(|nth| format!("long-{nth}")).collect();
    assert_eq!(letters.iter().map(|one| one.job.id.as_str()).collect::<Vec<_>>(), expected);
    assert_eq!(queue.list(3).await.unwrap().len(), 3);
}
