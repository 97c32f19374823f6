//! What the scaler is told of a queue that nobody tidies, for its pool is at zero.

use std::time::Duration;

use ebb_queue::{ByPriority, Job, Priority, Queue, Timestamp};

use crate::{eventually, handle, job, server, url};

/// More expired jobs than a look reads.
const MANY: usize = 2100;

fn of(priority: Priority, name: &str) -> Job {
    let mut job = job(name);
    job.headers.priority = priority;
    job
}

/// Jobs of this priority that expire before anybody looks.
async fn publish_late(queue: &Queue, priority: Priority, n: usize) {
    let name = |nth: usize| format!("late-{priority:?}-{nth}");
    let mut late: Vec<_> = (0..n).map(|nth| of(priority, &name(nth))).collect();
    for job in &mut late {
        job.headers.deadline = Some(Timestamp::now() + Duration::from_millis(1));
    }
    queue.publish(late).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2)).await;
}

async fn publish(queue: &Queue, priority: Priority, n: usize) {
    let name = |nth: usize| format!("{priority:?}-{nth}");
    queue.publish((0..n).map(|nth| of(priority, &name(nth))).collect()).await.unwrap();
}

#[tokio::test]
async fn many_expired_jobs_of_one_priority_hide_none_of_another() {
    let server = server("").await;
    let queue = handle(&url(&server)).await;
    publish_late(&queue, Priority::Low, MANY).await;
    publish(&queue, Priority::High, 1).await;
    let depth = queue.depth().await.unwrap();
    let by = ByPriority { high: 1, ..ByPriority::default() };
    assert_eq!((depth.ready, depth.dead, depth.ready_by_priority), (1, MANY as u64, Some(by)));
    publish(&queue, Priority::Normal, 1300).await;
    publish(&queue, Priority::Low, 5).await;
    let by = ByPriority { high: 1, normal: 1300, low: 5 };
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.ready, depth.ready_by_priority), (1306, Some(by)));
}

#[tokio::test]
async fn many_expired_jobs_of_each_priority_hide_no_high_one_that_came_after_them() {
    let server = server("").await;
    let queue = handle(&url(&server)).await;
    for priority in [Priority::High, Priority::Normal, Priority::Low] {
        publish_late(&queue, priority, MANY).await;
    }
    publish(&queue, Priority::High, 2).await;
    publish(&queue, Priority::Low, 3).await;
    let depth = queue.depth().await.unwrap();
    let by = ByPriority { high: 2, normal: 0, low: 3 };
    assert_eq!((depth.ready, depth.ready_by_priority), (5, Some(by)));
}

#[tokio::test]
async fn deadlines_of_jobs_that_are_delayed_hide_none_of_a_job_in_line() {
    let server = server("").await;
    let queue = handle(&url(&server)).await;
    let now = Timestamp::now();
    let hour = Duration::from_secs(3600);
    let mut jobs: Vec<_> = (0..250).map(|nth| job(&format!("delayed-{nth}"))).collect();
    for job in &mut jobs {
        job.headers.not_before = Some(now + hour);
        job.headers.deadline = Some(now + 2 * hour);
    }
    let mut in_line = job("in-line");
    let deadline = Timestamp::from_millisecond((now + 3 * hour).as_millisecond()).unwrap();
    in_line.headers.deadline = Some(deadline);
    jobs.push(in_line);
    queue.publish(jobs).await.unwrap();
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.ready, depth.delayed, depth.first_deadline), (1, 250, Some(deadline)));
}

#[tokio::test]
async fn many_jobs_whose_delay_is_over_hide_no_high_one_in_line() {
    let server = server("").await;
    let queue = handle(&url(&server)).await;
    let mut due: Vec<_> = (0..MANY).map(|nth| of(Priority::Low, &format!("due-{nth}"))).collect();
    for job in &mut due {
        job.headers.not_before = Some(Timestamp::now() + Duration::from_millis(300));
    }
    queue.publish(due).await.unwrap();
    publish(&queue, Priority::High, 1).await;
    eventually("all are due", async || queue.depth().await.unwrap().delayed == 0).await;
    let depth = queue.depth().await.unwrap();
    let by = depth.ready_by_priority.unwrap();
    assert_eq!((depth.ready, by.high, by.normal + by.low), (MANY as u64 + 1, 1, MANY as u64));
}
