//! What a server tells long before it can be read, since it waits for its disk or for others.

use std::time::Duration;

use bytes::Bytes;
use ebb_queue::{Delivery, Frame, JobResult, Outcome, Timestamp};
use futures::StreamExt;
use tokio::time::{Instant, sleep, timeout};

use crate::way::Way;
use crate::{LONG, job, on_each, receive, try_open, until};

/// So long a server tells of something before it has it.
const LATE: Duration = Duration::from_millis(60);
/// Whoever looks each second finds it later.
const SOON: Duration = Duration::from_millis(500);
/// Others take the processor now and then: most of them count.
const ROUNDS: usize = 5;

/// What is told in place of what is stored, where a way passes on the second for the first.
const TOLD: (&str, &str) = ("SUB ebb.jobs.jobs", "SUB ebb.jobs.jobz");
const ANSWERED: (&str, &str) = ("SUB ebb.jobs.results", "SUB ebb.jobs.resultz");

fn are_soon(spans: &[Duration]) -> bool {
    2 * spans.iter().filter(|span| **span < SOON).count() > spans.len()
}

#[test]
fn a_job_that_is_told_long_before_it_can_be_seen_is_taken_soon() {
    on_each(async |server| {
        let way = Way::to(server.port()).await;
        let worker = try_open(&format!("nats://127.0.0.1:{}", way.port)).await.unwrap();
        let producer = try_open(&server.url()).await.unwrap();
        let client = async_nats::connect(server.url()).await.unwrap();
        way.change(TOLD.0, TOLD.1);
        let mut spans = Vec::new();
        for nth in 0..ROUNDS {
            way.count();
            let store = async {
                until("it listens", async || way.n_said(TOLD.1) > 0).await;
                client.publish("ebb.jobs.jobz", Bytes::new()).await.unwrap();
                client.flush().await.unwrap();
                sleep(LATE).await;
                producer.publish(vec![job(&nth.to_string())]).await.unwrap();
                Instant::now()
            };
            let (taken, stored) = tokio::join!(receive(&worker, 1), store);
            spans.push(stored.elapsed());
            let acks: Vec<_> = taken.unwrap().into_iter().map(Delivery::ack).collect();
            worker.settle(&acks).await.unwrap();
        }
        println!("taken after {spans:?}");
        assert!(are_soon(&spans), "{spans:?}");
    });
}

#[test]
fn many_jobs_that_are_due_at_one_moment_hold_up_none_that_is_ready() {
    const MANY: usize = 5000;
    on_each(async |server| {
        let queue = try_open(&server.url()).await.unwrap();
        let delayed = |n_jobs: usize, due: Timestamp| {
            let named = (0..n_jobs).map(move |nth| {
                let mut job = job(&format!("due-{nth}"));
                job.headers.not_before = Some(due);
                job
            });
            named.collect()
        };
        // They are not due before they are there, however slow this machine is.
        let other = try_open(&format!("{}?queue=other", server.url())).await.unwrap();
        let (begin, hour) = (Instant::now(), Duration::from_secs(3600));
        other.publish(delayed(MANY / 10, Timestamp::now() + hour)).await.unwrap();
        let due = Timestamp::now() + Duration::from_secs(2) + 15 * begin.elapsed();
        queue.publish(delayed(MANY, due)).await.unwrap();
        let mut ready = job("ready");
        ready.set("ebb-priority", "high").unwrap();
        queue.publish(vec![ready]).await.unwrap();
        assert_eq!(queue.depth().await.unwrap().delayed, MANY as u64);
        until("they are due", async || Timestamp::now() > due).await;
        let taken = receive(&queue, 1).await.unwrap().remove(0);
        assert_eq!(taken.job.id.as_str(), "ready");
        let client = async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap());
        let stream = client.get_stream("EBB_JOBS_jobs").await.unwrap();
        let n_stored = stream.cached_info().state.last_sequence as usize;
        let n_moved = n_stored - MANY - 1;
        println!("{n_moved} were moved before");
        assert!(n_moved < MANY / 2, "{n_moved}");
        // Nobody extends its lease while the others are moved, however slow this machine is.
        queue.settle(&[taken.ack()]).await.unwrap();
        let mut seen = std::collections::HashSet::new();
        while seen.len() < MANY {
            let taken = receive(&queue, 500).await.unwrap();
            assert!(taken.iter().all(|one| one.attempt == 1 && seen.insert(one.job.id.clone())));
            let acks: Vec<_> = taken.into_iter().map(Delivery::ack).collect();
            queue.settle(&acks).await.unwrap();
        }
        let depth = queue.depth().await.unwrap();
        assert_eq!((depth.ready, depth.delayed, depth.in_flight), (0, 0, 0));
    });
}

#[test]
fn jobs_that_are_due_are_handed_out_beside_one_that_cannot_be_moved() {
    const MANY: usize = 100;
    on_each(async |server| {
        let queue = try_open(&server.url()).await.unwrap();
        let client = async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap());
        let due = Timestamp::now() + Duration::from_secs(2);
        let delayed = (0..=MANY).map(|nth| {
            let mut job = job(&nth.to_string());
            // The large one is moved first.
            job.headers.not_before = Some(due + Duration::from_millis(u64::from(nth > 0)));
            job.body = vec![7; if nth > 0 { 9 } else { 200_000 }].into();
            job
        });
        queue.publish(delayed.collect()).await.unwrap();
        let mut stream = client.get_stream("EBB_JOBS_jobs").await.unwrap();
        let info = stream.info().await.unwrap();
        let mut config = info.config.clone();
        config.max_bytes = i64::try_from(info.state.bytes).unwrap() + 100_000;
        client.update_stream(&config).await.unwrap();
        let mut taken = std::collections::HashSet::new();
        let end = Instant::now() + LONG;
        while taken.len() < MANY {
            assert!(Instant::now() < end, "{} were taken", taken.len());
            // It fails where there is nothing but what cannot be moved.
            let some = receive(&queue, MANY).await.unwrap_or_default();
            taken.extend(some.into_iter().map(|one| one.job.id));
        }
        until("the large one is left", async || {
            let depth = queue.depth().await.unwrap();
            (depth.ready, depth.in_flight) == (1, MANY as u64)
        })
        .await;
    });
}

#[test]
fn many_moments_whose_jobs_cannot_be_moved_hold_up_none_that_come_after_them() {
    const MANY: usize = 600;
    const FEW: usize = 9;
    on_each(async |server| {
        let queue = try_open(&server.url()).await.unwrap();
        let due = Timestamp::now() + Duration::from_secs(3);
        let delayed = (0..MANY + FEW).map(|nth| {
            let mut job = job(&nth.to_string());
            job.headers.not_before = Some(due + Duration::from_millis(nth as u64));
            job.body = vec![7; if nth < MANY { 20_000 } else { 9 }].into();
            job
        });
        queue.publish(delayed.collect()).await.unwrap();
        let client = async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap());
        let mut stream = client.get_stream("EBB_JOBS_jobs").await.unwrap();
        let info = stream.info().await.unwrap();
        let mut config = info.config.clone();
        config.max_bytes = i64::try_from(info.state.bytes).unwrap() + 10_000;
        client.update_stream(&config).await.unwrap();
        let last = due + Duration::from_millis((MANY + FEW) as u64);
        until("all are due", async || Timestamp::now() > last).await;
        let mut taken = std::collections::HashSet::new();
        let end = Instant::now() + LONG;
        while taken.len() < FEW {
            assert!(Instant::now() < end, "{} were taken", taken.len());
            // It fails where there is nothing but what cannot be moved.
            let some = receive(&queue, MANY).await.unwrap_or_default();
            taken.extend(some.into_iter().map(|one| one.job.id.to_string()));
        }
        assert!(taken.iter().all(|id| id.parse::<usize>().unwrap() >= MANY), "{taken:?}");
    });
}

#[test]
fn an_answer_that_is_told_long_before_it_can_be_read_is_told_soon() {
    on_each(async |server| {
        let way = Way::to(server.port()).await;
        let there = try_open(&format!("nats://127.0.0.1:{}", way.port)).await.unwrap();
        let here = try_open(&server.url()).await.unwrap();
        let client = async_nats::connect(server.url()).await.unwrap();
        way.change(ANSWERED.0, ANSWERED.1);
        let mut spans = Vec::new();
        for nth in 0..ROUNDS {
            let id = nth.to_string().parse().unwrap();
            way.count();
            let mut frames = there.follow(&id, 0).await.unwrap();
            let outcome =
                Outcome::Completed { content_type: "text/plain".to_owned(), body: "42".into() };
            let finished_at = Timestamp::from_second(1_900_000_000).unwrap();
            let answer = JobResult { id, attempt: 1, outcome, finished_at, queue: None };
            let store = async {
                until("it has looked", async || way.counted().n_requests >= 2).await;
                client.publish(format!("ebb.jobs.resultz.{nth}"), Bytes::new()).await.unwrap();
                client.flush().await.unwrap();
                sleep(LATE).await;
                here.put(&answer).await.unwrap();
                Instant::now()
            };
            let (told, stored) = tokio::join!(timeout(LONG, frames.next()), store);
            spans.push(stored.elapsed());
            assert_eq!(told.unwrap().unwrap().unwrap(), Frame::Final(answer));
        }
        println!("told after {spans:?}");
        assert!(are_soon(&spans), "{spans:?}");
    });
}
