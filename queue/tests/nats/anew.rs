//! A stream of jobs that was lost and made anew: its numbers begin again, and those who hold jobs of the
//! old one go by theirs.

use std::num::NonZeroUsize;
use std::time::Duration;

use async_nats::jetstream;
use ebb_queue::{Delivery, Queue, Settled, Timestamp};
use ebb_servers::Nats;
use tokio::time::Instant;

use crate::{job, on_each, take, try_open, until};

/// Nobody is to wait for long until a lease ends.
const SHORT: &str = "queue=short&lease=3s";

async fn open(server: &Nats, options: &str) -> Queue {
    try_open(&format!("{}?{options}", server.url())).await.unwrap()
}

/// Deletes the stream with all its jobs, and makes it anew.
async fn begin_anew(server: &Nats, options: &str) -> Queue {
    let client = async_nats::connect(server.url()).await.unwrap();
    let name = options.split(['=', '&']).nth(1).unwrap();
    jetstream::new(client).delete_stream(format!("EBB_JOBS_{name}")).await.unwrap();
    open(server, options).await
}

/// The same with a job in it, under the number that the first job of the old one had, and who holds that.
async fn begin_anew_with_another(server: &Nats, options: &str) -> (Queue, Delivery) {
    let next = begin_anew(server, options).await;
    next.publish(vec![job("b")]).await.unwrap();
    let held = take(&next, 1).await.remove(0);
    (next, held)
}

async fn hold_one(queue: &Queue) -> Delivery {
    queue.publish(vec![job("a")]).await.unwrap();
    take(queue, 1).await.remove(0)
}

/// What is held is there, and can be settled.
async fn assert_holds(queue: &Queue, held: Delivery) {
    assert_eq!(queue.extend(&[held.receipt().clone()]).await.unwrap(), [Settled::Held]);
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.ready, depth.in_flight), (0, 1));
    assert_eq!(queue.settle(&[held.ack()]).await.unwrap(), [Settled::Held]);
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.ready, depth.in_flight), (0, 0));
}

#[test]
fn a_job_of_a_lost_stream_is_lost_to_whoever_looked_since_and_takes_no_other_with_it() {
    on_each(async |server| {
        for look in ["counts", "extends", "receives"] {
            let options = format!("queue={look}");
            let queue = open(&server, &options).await;
            let held = hold_one(&queue).await;
            let receipts = [held.receipt().clone()];
            let (next, other) = begin_anew_with_another(&server, &options).await;
            match look {
                "counts" => drop(queue.depth().await.unwrap()),
                "extends" => drop(queue.extend(&receipts).await.unwrap()),
                _ => {
                    let wait = Duration::from_secs(2);
                    let found = queue.receive(NonZeroUsize::MIN, wait).await.unwrap();
                    assert!(found.is_empty(), "{found:?}");
                }
            }
            assert_eq!(queue.settle(&[held.ack()]).await.unwrap(), [Settled::Lost], "{look}");
            assert_eq!(queue.extend(&receipts).await.unwrap(), [Settled::Lost], "{look}");
            assert_holds(&next, other).await;
        }
    });
}

#[test]
fn a_job_of_a_lost_stream_whose_lease_ended_takes_no_other_with_it() {
    on_each(async |server| {
        let queue = open(&server, SHORT).await;
        let held = [hold_one(&queue).await.ack()];
        let begin = Instant::now();
        until("its lease has ended", async || begin.elapsed() > queue.lease()).await;
        let (next, other) = begin_anew_with_another(&server, SHORT).await;
        assert_eq!(queue.settle(&held).await.unwrap(), [Settled::Lost]);
        assert_holds(&next, other).await;
    });
}

#[test]
fn a_job_of_a_lost_stream_is_put_back_in_the_place_of_no_other() {
    const OPTIONS: &str = "queue=long";
    on_each(async |server| {
        let queue = open(&server, OPTIONS).await;
        let held = [hold_one(&queue).await.retry(Duration::ZERO, "again")];
        let (next, other) = begin_anew_with_another(&server, OPTIONS).await;
        // Through a handle that never had it.
        let settled = open(&server, OPTIONS).await.settle(&held).await.unwrap();
        assert_eq!(settled, [Settled::Lost]);
        assert_holds(&next, other).await;
    });
}

/// Holds a job twice, which is noted.
async fn hold_twice(queue: &Queue) {
    drop(hold_one(queue).await);
    assert_eq!(take(queue, 1).await[0].attempt, 2);
}

#[test]
fn who_held_a_job_of_a_lost_stream_is_not_taken_for_who_holds_another_of_its_number() {
    on_each(async |server| {
        let queue = open(&server, SHORT).await;
        hold_twice(&queue).await;
        let (next, other) = begin_anew_with_another(&server, SHORT).await;
        // Through a handle that has to look who holds it.
        let settled = open(&server, SHORT).await.settle(&[other.ack()]).await.unwrap();
        assert_eq!(settled, [Settled::Held]);
        let depth = next.depth().await.unwrap();
        assert_eq!((depth.ready, depth.in_flight), (0, 0));
    });
}

#[test]
fn a_dead_letter_tells_nothing_of_a_job_of_a_lost_stream_that_had_its_number() {
    on_each(async |server| {
        hold_twice(&open(&server, SHORT).await).await;
        let next = begin_anew(&server, SHORT).await;
        let mut late = job("b");
        late.headers.deadline = Some(Timestamp::now() - Duration::from_secs(1));
        next.publish(vec![late]).await.unwrap();
        let letters = next.list(9).await.unwrap();
        assert_eq!((letters.len(), letters[0].attempts), (1, 0));
        assert!(letters[0].history.is_empty(), "{:?}", letters[0].history);
    });
}
