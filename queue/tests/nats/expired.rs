//! A backlog of jobs that died waiting: whoever clears it away keeps nobody else waiting.

use std::num::NonZeroUsize;
use std::time::Duration;

use ebb_queue::{Job, Queue, Timestamp};
use ebb_servers::Nats;

use crate::{job, on_each, receive, try_open};

/// More than are cleared away in a moment.
const MANY: u64 = 5000;

async fn publish_expired(queue: &Queue) {
    let deadline = Some(Timestamp::now() - Duration::from_secs(60));
    let jobs = (0..MANY).map(|nth| {
        let mut job: Job = job(&format!("expired-{nth}"));
        job.headers.deadline = deadline;
        job
    });
    queue.publish(jobs.collect()).await.unwrap();
}

/// How many were made dead letters.
async fn n_buried(server: &Nats) -> u64 {
    let client = async_nats::connect(server.url()).await.unwrap();
    let streams = async_nats::jetstream::new(client);
    streams.get_stream("EBB_DEAD_jobs").await.unwrap().cached_info().state.messages
}

#[test]
fn what_is_found_is_handed_out_before_all_that_expired_is_buried() {
    on_each(async |server| {
        let queue = try_open(&server.url()).await.unwrap();
        publish_expired(&queue).await;
        let mut urgent = job("urgent");
        urgent.set("ebb-priority", "high").unwrap();
        queue.publish(vec![urgent]).await.unwrap();
        let found = receive(&queue, 9).await.unwrap();
        assert_eq!(found[0].job.id.as_str(), "urgent");
        let n_buried = n_buried(&server).await;
        assert!(n_buried < MANY, "{n_buried}");
    });
}

#[test]
fn a_lane_of_expired_jobs_holds_up_no_other() {
    on_each(async |server| {
        let queue = try_open(&server.url()).await.unwrap();
        publish_expired(&queue).await;
        let mut patient = job("patient");
        patient.set("ebb-priority", "low").unwrap();
        queue.publish(vec![patient]).await.unwrap();
        let found = receive(&queue, 9).await.unwrap();
        assert_eq!(found[0].job.id.as_str(), "patient");
        let n_buried = n_buried(&server).await;
        assert!(n_buried < MANY, "{n_buried}");
    });
}

#[test]
fn a_receive_that_meets_only_expired_jobs_ends_with_its_wait_and_gets_on() {
    on_each(async |server| {
        let queue = try_open(&server.url()).await.unwrap();
        publish_expired(&queue).await;
        queue.publish(vec![job("behind")]).await.unwrap();
        let some = NonZeroUsize::new(9).unwrap();
        let wait = Duration::from_millis(200);
        // On a busy machine a wait may be over before the first of them is buried.
        let mut before = 0;
        while before == 0 {
            assert!(queue.receive(some, wait).await.unwrap().is_empty());
            before = n_buried(&server).await;
        }
        assert!((1..MANY).contains(&before), "{before}");
        // What is left does not count as expired to come.
        assert_eq!(queue.depth().await.unwrap().ready, 1);
        let found = loop {
            let found = queue.receive(some, Duration::ZERO).await.unwrap();
            if !found.is_empty() {
                break found;
            }
        };
        assert_eq!(found[0].job.id.as_str(), "behind");
        assert_eq!(n_buried(&server).await, MANY);
    });
}

#[test]
fn what_expired_in_a_lane_is_not_taken_for_what_came_due() {
    on_each(async |server| {
        let queue = try_open(&server.url()).await.unwrap();
        let jobs = (0..5).map(|nth| {
            let mut late = job(&format!("late-{nth}"));
            late.set("ebb-priority", "low").unwrap();
            late.headers.deadline = Some(Timestamp::now() - Duration::from_secs(60));
            late
        });
        queue.publish(jobs.collect()).await.unwrap();
        let mut due = job("due");
        due.set("ebb-delay", "50ms").unwrap();
        queue.publish(vec![due]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let depth = queue.depth().await.unwrap();
        assert_eq!((depth.ready, depth.dead), (1, 5));
        let by = depth.ready_by_priority.unwrap();
        assert_eq!((by.high, by.normal, by.low), (0, 1, 0), "nobody may leave it out as low");
    });
}
